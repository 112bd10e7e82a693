//! What the mesh adds to a request: the same client, server and network with the mesh on and off, rounds in turn.

use std::net::IpAddr;

use anyhow::{Context, Result};
use mesh_tests::Lab;
use serde_json::Value;

use super::proofs::Proofs;

/// Rounds on each side; the middle one counts.
const ROUNDS: usize = 5;
/// Seconds of a round.
const SECONDS: &str = "1";
/// The service asked; it runs on the other node.
const SERVICE: &str = "ratings";
/// Its port.
const PORT: u16 = 9080;

struct Figures {
    p50: f64,
    p99: f64,
}

/// Prints the table; proves only that both sides answered everything. Figures are shown, not judged.
pub fn show(lab: &Lab, twin: &Lab, proofs: &mut Proofs) -> Result<()> {
    println!("  {:>11}  {:>12}  {:>12}  {:>12}  {:>12}", "connections", "", "off", "on", "added");
    let mut errors = 0;
    for connections in ["1", "16"] {
        let (mut on, mut off) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            on.push(round(lab, connections, &mut errors)?);
            off.push(round(twin, connections, &mut errors)?);
        }
        for (name, of) in [("p50", (|f| f.p50) as fn(&Figures) -> f64), ("p99", |f| f.p99)] {
            let (on, off) = (median(&on, of), median(&off, of));
            println!("  {connections:>11}  {name:>12}  {off:>9.0} µs  {on:>9.0} µs  {:>9.0} µs", on - off);
        }
    }
    proofs.add(errors == 0, "every request of the latency rounds was answered with 200");
    Ok(())
}

fn round(lab: &Lab, connections: &str, errors: &mut u64) -> Result<Figures> {
    let hosts = std::fs::read_to_string(lab.state().pod_dir("client").join("hosts"))?;
    let address = hosts.lines().find(|l| l.split(' ').any(|name| name == SERVICE)).and_then(|l| l.split(' ').next());
    let address: IpAddr = address.with_context(|| format!("no address of {SERVICE}"))?.parse()?;
    let to = std::net::SocketAddr::new(address, PORT).to_string();
    let argv = [
        "mesh-load",
        "http",
        "--connect",
        &to,
        "--host",
        SERVICE,
        "--path",
        "/ratings/0",
        "--connections",
        connections,
        "--seconds",
        SECONDS,
    ];
    let said = lab.pod("client")?.run(&argv)?.text();
    let report: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    *errors += report["errors"].as_u64().unwrap_or(1);
    let figure = |name: &str| report[name].as_f64().with_context(|| format!("no {name} in {report}"));
    Ok(Figures { p50: figure("p50_us")?, p99: figure("p99_us")? })
}

fn median(rounds: &[Figures], of: fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<_> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
