//! Who talked to whom with which identity, as the destinations' agents count it.

use std::collections::BTreeMap;

use anyhow::Result;
use mesh_tests::Lab;

use super::proofs::Proofs;

/// Pairs that the traffic must have made, by service account.
const EXPECTED: [(&str, &str); 5] = [
    ("client", "bookinfo-productpage"),
    ("client", "bookinfo-reviews"),
    ("bookinfo-productpage", "bookinfo-details"),
    ("bookinfo-productpage", "bookinfo-reviews"),
    ("bookinfo-reviews", "bookinfo-ratings"),
];

/// Prints the table and proves that every pair is there, with mutual TLS and no other.
pub fn show(lab: &Lab, proofs: &mut Proofs) -> Result<()> {
    let mut rows: BTreeMap<(String, String, String, String), f64> = BTreeMap::new();
    for node in &lab.topology().nodes {
        let metrics = lab.node(node)?.agent().metrics()?;
        for sample in metrics.select("istio_requests_total", &[("reporter", "destination")]) {
            let label = |name: &str| sample.labels.get(name).cloned().unwrap_or_default();
            let key = (
                label("source_principal"),
                label("destination_principal"),
                label("destination_service"),
                label("connection_security_policy"),
            );
            *rows.entry(key).or_default() += sample.value;
        }
    }
    let width =
        |of: fn(&(String, String, String, String)) -> &String| rows.keys().map(|k| of(k).len()).max().unwrap_or(0);
    let (from, to) = (width(|k| &k.0), width(|k| &k.1));
    for ((source, destination, service, policy), count) in &rows {
        println!("  {source:from$} → {destination:to$}  {count:5} requests  {policy}  {service}");
    }
    let id = |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}");
    let missing: Vec<_> = EXPECTED
        .iter()
        .filter(|(a, b)| !rows.keys().any(|k| k.0 == id(a) && k.1 == id(b)))
        .map(|(a, b)| format!("{a} → {b}"))
        .collect();
    let statement = match missing.as_slice() {
        [] => format!("{} pairs of workloads talked, each with its own SPIFFE identity", EXPECTED.len()),
        missing => format!("pairs of identities that never talked: {}", missing.join(", ")),
    };
    proofs.add(missing.is_empty(), statement);
    let all_mutual = !rows.is_empty() && rows.keys().all(|k| k.3 == "mutual_tls");
    proofs.add(all_mutual, "every request was authenticated by mutual TLS at both ends");
    Ok(())
}
