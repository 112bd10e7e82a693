//! The part "held": memory of the proxies of a way for connections that are open and idle.
//!
//! In: the ways between two nodes. Out: a table, JSON. Each way holds so many connections, each after one exchange; what the proxies
//! have more than before, of their own and shared with others by halves (Pss), is divided by them. What the kernel has for sockets
//! is not in it, nor what a proxy has kept of memory from a way before: of ways through one proxy the first says most. Fails for no
//! figure.

use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::Lab;
use serde_json::{Value, json};

use crate::ways::{ECHO, HTTP, Table, Way};

/// Connections. Where a proxy has two sockets for each, more do not fit below the limit of 20,000 descriptors that machines for tests
/// often have.
const COUNTS: [usize; 2] = [1000, 9000];
/// How long they are held, in seconds, after the last has been opened.
const SECONDS: &str = "5";
/// How long what was needed to open them gets to be given back.
const SETTLE: Duration = Duration::from_secs(3);
/// For opening all.
const LIMIT: Duration = Duration::from_secs(120);

/// Measures every way between two nodes that has proxies.
pub fn measure(lab: &Lab, ways: &[Way], load: &str) -> Result<Value> {
    let mut report = Vec::new();
    for (title, port, speech) in [("HTTP/1.1", HTTP, "http"), ("TCP", ECHO, "echo")] {
        let counted =
            |way: &&Way| way.table == Some(Table::Nodes) && way.to.contains_key(&port) && !way.proxies.is_empty();
        println!("\nMemory of the proxies for idle {title} connections: KiB a connection, MiB in all");
        println!(
            "  (of ways through one proxy the first says most: memory that it has kept since is not counted again)"
        );
        println!("  {:<34} {:>18} {:>18}", "path", COUNTS[0], COUNTS[1]);
        for way in ways.iter().filter(counted) {
            print!("  {:<34}", way.name);
            for count in COUNTS {
                let (before, with) = hold(lab, way, port, load, speech, count)
                    .with_context(|| format!("holding {count} connections, {}", way.name))?;
                let each = (with - before) / count as f64;
                print!(" {:>9.1} ({:>6.1})", each / 1024.0, with / (1024.0 * 1024.0));
                report.push(
                    json!({ "path": way.name, "kind": speech, "connections": count, "before": before, "with": with }),
                );
            }
            println!();
        }
    }
    Ok(Value::Array(report))
}

/// Bytes of the proxies before, and with so many connections.
fn hold(lab: &Lab, way: &Way, port: u16, load: &str, speech: &str, count: usize) -> Result<(f64, f64)> {
    let to = way.to.get(&port).context("no such way")?.to_string();
    let count = count.to_string();
    let pod = lab.pod(way.pod)?;
    let argv =
        |count| [load, "hold", "--speech", speech, "--connect", &to, "--connections", count, "--seconds", SECONDS];
    // What is made once, such as a tunnel, is no connection's.
    pod.run(&argv("1"))?;
    let before = memory(&way.proxies)?;
    let mut holding = pod.spawn(&argv(&count))?;
    let all = format!("holding {count}\n");
    holding.wait_log(LIMIT, "all connections to be open", |log| log.contains(&all).then_some(()))?;
    std::thread::sleep(SETTLE);
    let with = memory(&way.proxies)?;
    let ended = holding.wait(LIMIT)?;
    // The next one finds nothing of it.
    std::thread::sleep(SETTLE);
    anyhow::ensure!(ended.success(), "the load generator failed: {}", holding.log());
    Ok((before, with))
}

fn memory(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| proportional(*pid)).sum()
}

/// Proportional set size of a process, in bytes.
fn proportional(pid: u32) -> Result<f64> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).with_context(|| format!("{file}: no Pss"))?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("{file}: {line}"))?;
    Ok(kibibytes * 1024.0)
}
