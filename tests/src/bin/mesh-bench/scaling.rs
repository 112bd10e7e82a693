//! The part "workers": what a second worker adds.
//!
//! In: how many rounds. Out: tables, JSON. Two labs stand side by side, whose agents have one worker and two, and rounds go through
//! them in turn. Client and server share the machine's cores with the agents: where there are but two cores, the second worker only
//! takes what the others leave, and the ratio says how little two workers get into each other's way.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use mesh_tests::{Lab, LabBuilder, sys};
use serde_json::Value;

use crate::table::Results;
use crate::ways::{self, HTTP, Way};
use crate::{Args, MEASUREMENTS, run};

/// Agents of a lab: their workers, and what the table calls them.
const LABS: [(usize, &str); 2] = [(1, "1 worker"), (2, "2 workers")];
/// The ways whose agents they are.
const WAYS: [&str; 2] = ["mesh, one hop, plain", "mesh, pair, mTLS"];

/// Measures many connections of HTTP through each lab.
pub fn measure(args: &Args) -> Result<Vec<Value>> {
    let load = sys::binary("mesh-load")?.display().to_string();
    let measurement = MEASUREMENTS.iter().find(|one| one.port == HTTP && one.arguments.len() > 1);
    let measurement = measurement.context("no measurement with many connections of HTTP")?;
    let mut labs = Vec::new();
    for (workers, name) in LABS {
        println!("bringing up two nodes, {name} each …");
        let lab = LabBuilder::new(&format!("bench-{workers}-{}", std::process::id()), ways::topology())
            .config("bench.yaml", &ways::services())
            .access_log(false)
            .workers(workers)
            .up()?;
        let (ways, processes) = ways::start(&lab)?;
        labs.push((name, lab, ways, processes));
    }
    let mut reports = Vec::new();
    for name in WAYS {
        let mut results = Results {
            title: format!("{}, {name}", measurement.title),
            figures: measurement.figures,
            paths: LABS.map(|(_, name)| name).into(),
            rounds: BTreeMap::new(),
        };
        for round in 0..args.rounds.max(1) {
            for (lab_name, lab, ways, _) in &labs {
                let way: &Way = ways.iter().find(|way| way.name == name).context("no such way")?;
                let one = run(lab, way, measurement, &load, args.seconds)
                    .with_context(|| format!("{name}, {lab_name}, round {round}"))?;
                results.rounds.entry(lab_name).or_default().push(one);
            }
        }
        results.print();
        reports.push(results.json());
    }
    labs.into_iter().try_for_each(|(_, lab, _, processes)| {
        drop(processes);
        Lab::down(lab)
    })?;
    Ok(reports)
}
