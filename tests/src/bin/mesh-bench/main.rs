//! The benchmark: direct connections against the mesh, with nginx, HAProxy and iptables beside them, in one run.
//!
//! In: how many rounds of how many seconds. Out: tables of medians and ratios to the direct path, and a JSON file with
//! every round. Pods that are not enrolled stand beside enrolled ones in the same lab, so that rounds interleave. Then what
//! each kernel program takes, by the kernel's own account. It never judges: figures are printed, no threshold is asserted.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use mesh_tests::{Lab, LabBuilder, sys};

mod callgrind;
mod held;
mod hooks;
mod instructions;
mod measure;
mod pairs;
mod peers;
mod scale;
mod scaling;
mod table;
mod ways;

use measure::{Cpu, Round};
use table::{Figure, Results};
use ways::{ECHO, HTTP, ONCE, SINK, TABLES, Table, Way};

#[derive(Parser)]
#[command(about = "Measures the mesh against no mesh, nginx, HAProxy, Envoy and iptables (release builds, root)")]
struct Args {
    /// Rounds of every measurement on every path.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one round on one path.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only this part.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Services of the large cluster, each with ten endpoints; a policy for ten of them.
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// The program of the agent's unit tests, for the part "callgrind"; `cargo xtask bench` builds and names it.
    #[arg(long, required_if_eq("only", "callgrind"))]
    engine: Option<PathBuf>,
    /// Where to write the JSON.
    #[arg(long)]
    json: PathBuf,
}

/// A part of the benchmark.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The ways from a client to a server, against each other.
    Ways,
    /// Socket shortcuts, on against off.
    Shortcuts,
    /// User instructions a request; not part of a whole run, because not every machine can count them.
    Instructions,
    /// User instructions a request, by a simulator; not part of a whole run, because it takes a build of its own.
    Callgrind,
    /// What a second worker adds; not part of a whole run, because it takes labs of its own.
    Workers,
    /// Memory for connections that are open and idle.
    Held,
    /// The kernel programs.
    Hooks,
    /// A node of a large cluster: memory, and how long changes take.
    Scale,
}

struct Measurement {
    title: &'static str,
    figures: &'static [Figure],
    port: u16,
    arguments: &'static [&'static str],
    /// Seconds of a round, where they are part of what is measured.
    seconds: Option<f64>,
}

const fn relative(name: &'static str, heading: &'static str) -> Figure {
    Figure { name, heading, absolute: false }
}

const fn absolute(name: &'static str, heading: &'static str) -> Figure {
    Figure { name, heading, absolute: true }
}

const LATENCY: &[Figure] =
    &[relative("p50_us", "p50 µs"), relative("p99_us", "p99 µs"), absolute("cpu_us", "proxy CPU µs/op")];
const RATE: &[Figure] = &[
    relative("per_second", "per second"),
    relative("p50_us", "p50 µs"),
    relative("p99_us", "p99 µs"),
    absolute("cpu_us", "proxy CPU µs/op"),
];
const CONNECTIONS: &[Figure] = &[
    relative("per_second", "per second"),
    relative("p50_us", "p50 µs"),
    relative("p99_us", "p99 µs"),
    absolute("cpu_us", "proxy CPU µs/op"),
    relative("machine_us", "all CPU µs/op"),
];
const BULK: &[Figure] = &[relative("gbit_per_second", "Gbit/s"), absolute("cpu_s_per_gb", "proxy CPU s/GB")];

const MEASUREMENTS: &[Measurement] = &[
    Measurement {
        title: "TCP round trip, 128 bytes, 1 connection",
        figures: LATENCY,
        port: ECHO,
        arguments: &["round-trip"],
        seconds: None,
    },
    Measurement {
        title: "TCP bulk, 64 KiB writes, 1 connection",
        figures: BULK,
        port: SINK,
        arguments: &["bulk"],
        seconds: None,
    },
    Measurement {
        title: "New TCP connections, 16 clients",
        figures: CONNECTIONS,
        port: ONCE,
        arguments: &["connect", "--connections", "16"],
        seconds: None,
    },
    Measurement {
        title: "HTTP/1.1, 1 KiB replies, 1 connection",
        figures: LATENCY,
        port: HTTP,
        arguments: &["http"],
        seconds: None,
    },
    Measurement {
        title: "HTTP/1.1, 1 KiB replies, 64 connections",
        figures: RATE,
        port: HTTP,
        arguments: &["http", "--connections", "64"],
        seconds: None,
    },
];

/// An application, the agent, and another application of the same pod: nothing but the two legs that can have shortcuts.
const SHORTCUTS: &[Measurement] = &[
    Measurement {
        title: "Shortcuts: TCP round trip, 128 bytes, a connection's first 0.1 s",
        figures: LATENCY,
        port: ECHO,
        arguments: &["round-trip"],
        seconds: Some(0.1),
    },
    Measurement {
        title: "Shortcuts: TCP round trip, 128 bytes, 1 connection",
        figures: LATENCY,
        port: ECHO,
        arguments: &["round-trip"],
        seconds: None,
    },
    Measurement {
        title: "Shortcuts: TCP bulk, 64 KiB writes, 1 connection",
        figures: BULK,
        port: SINK,
        arguments: &["bulk"],
        seconds: None,
    },
];

fn main() -> Result<()> {
    let args = Args::parse();
    if cfg!(debug_assertions) {
        println!("This is a debug build: nothing below says how fast the agent is. Use `cargo xtask bench`.");
    }
    let wants = |part| args.only.is_none_or(|only| only == part);
    let (reports, hooks) = match (args.only, &args.engine) {
        (Some(Part::Scale), _) => (Vec::new(), None),
        (Some(Part::Callgrind), Some(engine)) => (vec![callgrind::measure(engine)?], None),
        (Some(Part::Workers), _) => (scaling::measure(&args)?, None),
        _ => two_nodes(&args, wants)?,
    };
    let scale = wants(Part::Scale).then(|| scale::measure(args.services)).transpose()?;
    if let Some(dir) = args.json.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let report = serde_json::json!({
        "rounds": args.rounds, "seconds": args.seconds, "measurements": reports, "kernel_hooks": hooks, "scale": scale,
    });
    std::fs::write(&args.json, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("writing {}", args.json.display()))?;
    println!("\nEvery round: {}", args.json.display());
    println!(
        "Ratios are to the first way of a table in the same round (medians). All of it shares this machine's cores."
    );
    println!(
        "Proxy CPU: the proxies' processes. All CPU: the machine, with client, server and what the kernel does for packets."
    );
    Ok(())
}

/// The ways between two nodes and on one of them, and the kernel programs on some of these.
fn two_nodes(args: &Args, wants: impl Fn(Part) -> bool) -> Result<(Vec<serde_json::Value>, Option<serde_json::Value>)> {
    println!("bringing up two nodes …");
    let lab = LabBuilder::new(&format!("bench-{}", std::process::id()), ways::topology())
        .config("bench.yaml", &ways::services())
        .access_log(false)
        .up()?;
    let (ways, processes) = ways::start(&lab)?;
    let load = sys::binary("mesh-load")?.display().to_string();
    let mut reports = Vec::new();
    if wants(Part::Ways) {
        reports = compare(&lab, &ways, MEASUREMENTS, &load, args)?;
    }
    if wants(Part::Shortcuts) {
        let (ways, processes) = ways::shortcuts(&lab)?;
        reports.extend(compare(&lab, &ways, SHORTCUTS, &load, args)?);
        drop(processes);
    }
    if wants(Part::Held) {
        reports.push(serde_json::json!({ "held": held::measure(&lab, &ways, &load)? }));
    }
    if args.only == Some(Part::Instructions) {
        let counts = instructions::measure(&lab, &ways, &load, args.rounds, args.seconds)?;
        reports.push(serde_json::json!({ "instructions": counts }));
    }
    let hooks =
        wants(Part::Hooks).then(|| hooks::measure(&lab, &ways, &load, args.rounds, args.seconds)).transpose()?;
    drop(processes);
    lab.down()?;
    Ok((reports, hooks))
}

/// All measurements on all ways, in rounds of one after the other.
fn compare(
    lab: &Lab,
    ways: &[Way],
    measurements: &'static [Measurement],
    load: &str,
    args: &Args,
) -> Result<Vec<serde_json::Value>> {
    let mut reports = Vec::new();
    let tables = measurements.iter().flat_map(|one| TABLES.map(|table| (one, table)));
    for (measurement, table) in tables {
        let ways: Vec<&Way> =
            ways.iter().filter(|way| way.table == Some(table) && way.to.contains_key(&measurement.port)).collect();
        if ways.is_empty() {
            continue;
        }
        let suffix = if table == Table::SameNode { ", two pods of one node" } else { "" };
        let mut results = Results {
            title: format!("{}{suffix}", measurement.title),
            figures: measurement.figures,
            paths: ways.iter().map(|way| way.name).collect(),
            rounds: BTreeMap::new(),
        };
        for round in 0..args.rounds.max(1) {
            for way in &ways {
                let seconds = measurement.seconds.unwrap_or(args.seconds);
                let one = run(lab, way, measurement, load, seconds)
                    .with_context(|| format!("{}, {}, round {round}", measurement.title, way.name))?;
                results.rounds.entry(way.name).or_default().push(one);
            }
        }
        results.print();
        reports.push(results.json());
    }
    Ok(reports)
}

fn run(lab: &Lab, way: &Way, measurement: &Measurement, load: &str, seconds: f64) -> Result<Round> {
    let to = way.to.get(&measurement.port).context("no such way")?.to_string();
    let seconds = seconds.to_string();
    let mut argv = vec![load];
    argv.extend(measurement.arguments);
    argv.extend(["--connect", &to, "--seconds", &seconds]);
    let before = Cpu::now(&way.proxies)?;
    let output = lab.pod(way.pod)?.run(&argv)?;
    Round::parse(&output.text(), Cpu::now(&way.proxies)?.since(before))
}
