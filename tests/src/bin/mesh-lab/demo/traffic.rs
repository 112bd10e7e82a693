//! Drives the application with curl, one process for many requests, and counts who answered.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use mesh_tests::Lab;
use serde_json::Value;

use super::proofs::Proofs;

/// Requests as jason, and for the front page.
const FEW: u32 = 50;
/// Share of v3 that proves a split of 10 %, in per cent: four standard deviations at 1,000 requests.
const SPLIT: std::ops::RangeInclusive<f64> = 6.0..=14.0;

/// Who answered how often.
pub struct Outcome {
    front: BTreeMap<String, u32>,
    everybody: BTreeMap<String, u32>,
    jason: BTreeMap<String, u32>,
}

/// The whole programme.
pub fn all(lab: &Lab, requests: u32, marker: &str) -> Result<Outcome> {
    Ok(Outcome {
        front: front_page(lab, marker)?,
        everybody: ask(lab, &format!("http://reviews:9080/reviews/[1-{requests}]"), &[])?,
        jason: ask(lab, &format!("http://reviews:9080/reviews/[1-{FEW}]"), &["-H", "end-user: jason"])?,
    })
}

/// The front page, which asks details and reviews, which asks ratings; every request carries the marker.
pub fn front_page(lab: &Lab, marker: &str) -> Result<BTreeMap<String, u32>> {
    let header = format!("x-marker: {marker}");
    // As jason, for v2 is on the other node and asks ratings.
    ask(lab, &format!("http://productpage:9080/productpage?n=[1-{FEW}]"), &["-H", &header, "-H", "end-user: jason"])
}

fn ask(lab: &Lab, url: &str, more: &[&str]) -> Result<BTreeMap<String, u32>> {
    let mut argv = vec!["curl", "-sS", "--max-time", "60", "-w", "%{stderr}%{http_code}\\n", url];
    argv.extend(more);
    let output = lab.pod("client")?.run(&argv)?;
    let mut who = BTreeMap::new();
    for line in output.text().lines() {
        let answer: Value = serde_json::from_str(line).with_context(|| format!("{url} answered: {line}"))?;
        let mut pod = answer["from"]["pod"].as_str().unwrap_or("?").to_owned();
        if answer.to_string().contains("\"error\"") {
            pod += " with an error";
        }
        *who.entry(pod).or_insert(0) += 1;
    }
    let refused = output.stderr.lines().filter(|status| *status != "200").count();
    if refused > 0 {
        who.insert("status other than 200".to_owned(), u32::try_from(refused)?);
    }
    Ok(who)
}

impl Outcome {
    /// Prints and proves.
    pub fn show(&self, proofs: &mut Proofs) {
        let list = |who: &BTreeMap<String, u32>| {
            who.iter().map(|(pod, count)| format!("{pod} {count}")).collect::<Vec<_>>().join(", ")
        };
        println!("  front page, details, reviews and ratings: {}", list(&self.front));
        println!("  reviews, everybody:                       {}", list(&self.everybody));
        println!("  reviews, with `end-user: jason`:          {}", list(&self.jason));
        proofs.add(only(&self.front, "productpage-v1"), "every front page is complete: four services, two nodes");
        let count = |pod: &str| f64::from(self.everybody.get(pod).copied().unwrap_or(0));
        let (v1, v3) = (count("reviews-v1"), count("reviews-v3"));
        let share = 100.0 * v3 / (v1 + v3).max(1.0);
        let nobody_else = self.everybody.keys().all(|k| k == "reviews-v1" || k == "reviews-v3");
        let split = format!("the VirtualService splits reviews 90/10: v3 got {share:.1} % of {:.0} requests", v1 + v3);
        proofs.add(SPLIT.contains(&share) && nobody_else, split);
        proofs.add(only(&self.jason, "reviews-v2"), "the header `end-user: jason` pins reviews to v2");
    }
}

fn only(who: &BTreeMap<String, u32>, pod: &str) -> bool {
    who.len() == 1 && who.contains_key(pod)
}
