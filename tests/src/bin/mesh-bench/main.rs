//! The benchmark: direct connections against the mesh, with nginx and HAProxy one hop beside them, in one run.
//!
//! In: how many rounds of how many seconds. Out: tables of medians and ratios to the direct path, and a JSON file with
//! every round. Pods that are not enrolled stand beside enrolled ones in the same lab, so that rounds interleave. It
//! never judges: figures are printed, no threshold is asserted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use mesh_tests::{Lab, LabBuilder, Process, Topology};
use mesh_tests::{sys, topology::PodSpec};

mod measure;
mod peers;
mod table;

use measure::{Round, cpu_of, family};
use table::{Figure, Results};

const HTTP: u16 = 8080;
const ECHO: u16 = 7001;
const SINK: u16 = 7002;
const ONCE: u16 = 7003;
/// Address of the Service in front of the enrolled server.
const MESHED: &str = "10.96.77.1";
/// Address of the Service in front of the server that is not enrolled.
const PLAIN: &str = "10.96.77.2";

#[derive(Parser)]
#[command(about = "Measures the mesh against no mesh, nginx and HAProxy (release builds, root)")]
struct Args {
    /// Rounds of every measurement on every path.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one round on one path.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Where to write the JSON.
    #[arg(long)]
    json: PathBuf,
}

/// A way from a client to a server.
struct Way {
    name: &'static str,
    /// The pod that the load comes from.
    pod: &'static str,
    /// What it connects to, by the port of the server behind.
    to: BTreeMap<u16, SocketAddr>,
    /// The proxies on the way, for their CPU time.
    proxies: Vec<u32>,
}

struct Measurement {
    title: &'static str,
    figures: &'static [Figure],
    port: u16,
    arguments: &'static [&'static str],
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
const BULK: &[Figure] = &[relative("gbit_per_second", "Gbit/s"), absolute("cpu_s_per_gb", "proxy CPU s/GB")];

const MEASUREMENTS: &[Measurement] = &[
    Measurement {
        title: "TCP round trip, 128 bytes, 1 connection",
        figures: LATENCY,
        port: ECHO,
        arguments: &["round-trip"],
    },
    Measurement { title: "TCP bulk, 64 KiB writes, 1 connection", figures: BULK, port: SINK, arguments: &["bulk"] },
    Measurement {
        title: "New TCP connections, 16 clients",
        figures: RATE,
        port: ONCE,
        arguments: &["connect", "--connections", "16"],
    },
    Measurement {
        title: "HTTP/1.1, 1 KiB replies, 1 connection",
        figures: LATENCY,
        port: HTTP,
        arguments: &["http", "--host", "server"],
    },
    Measurement {
        title: "HTTP/1.1, 1 KiB replies, 64 connections",
        figures: RATE,
        port: HTTP,
        arguments: &["http", "--host", "server", "--connections", "64"],
    },
];

fn main() -> Result<()> {
    let args = Args::parse();
    println!("bringing up two nodes …");
    let lab = LabBuilder::new(&format!("bench-{}", std::process::id()), topology())
        .config("bench.yaml", &services())
        .access_log(false)
        .up()?;
    let (ways, processes) = start(&lab)?;
    let load = sys::binary("mesh-load")?.display().to_string();
    let mut reports = Vec::new();
    for measurement in MEASUREMENTS {
        let ways: Vec<&Way> = ways.iter().filter(|way| way.to.contains_key(&measurement.port)).collect();
        let mut results = Results {
            title: measurement.title,
            figures: measurement.figures,
            paths: ways.iter().map(|way| way.name).collect(),
            rounds: BTreeMap::new(),
        };
        for round in 0..args.rounds.max(1) {
            for way in &ways {
                let one = run(&lab, way, measurement, &load, args.seconds)
                    .with_context(|| format!("{}, {}, round {round}", measurement.title, way.name))?;
                results.rounds.entry(way.name).or_default().push(one);
            }
        }
        results.print();
        reports.push(results.json());
    }
    drop(processes);
    lab.down()?;
    if let Some(dir) = args.json.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let report = serde_json::json!({ "rounds": args.rounds, "seconds": args.seconds, "measurements": reports });
    std::fs::write(&args.json, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("writing {}", args.json.display()))?;
    println!("\nEvery round: {}", args.json.display());
    println!("Ratios are to the direct path of the same round (medians). All of it shares this machine's cores.");
    Ok(())
}

fn run(lab: &Lab, way: &Way, measurement: &Measurement, load: &str, seconds: f64) -> Result<Round> {
    let to = way.to.get(&measurement.port).context("no such way")?.to_string();
    let seconds = seconds.to_string();
    let mut argv = vec![load];
    argv.extend(measurement.arguments);
    argv.extend(["--connect", &to, "--seconds", &seconds]);
    let before = cpu_of(&way.proxies)?;
    let output = lab.pod(way.pod)?.run(&argv)?;
    Round::parse(&output.text(), cpu_of(&way.proxies)?.saturating_sub(before))
}

fn topology() -> Topology {
    Topology::of_nodes(&["near", "far"])
        .pod(PodSpec::new("client", "near"))
        .pod(PodSpec::new("plain-client", "near").unenrolled())
        .pod(PodSpec::new("server", "far"))
        .pod(PodSpec::new("plain-server", "far").unenrolled())
}

fn services() -> String {
    [("server", MESHED), ("plain-server", PLAIN)]
        .map(|(name, address)| {
            format!(
                "apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: default }}
spec:
  clusterIP: {address}
  selector: {{ app: {name} }}
  ports:
  - {{ name: http, port: {HTTP} }}
  - {{ name: tcp-echo, port: {ECHO} }}
  - {{ name: tcp-sink, port: {SINK} }}
  - {{ name: tcp-once, port: {ONCE} }}
"
            )
        })
        .join("---\n")
}

/// Starts servers and peers, and lists the ways between the pods.
fn start(lab: &Lab) -> Result<(Vec<Way>, Vec<Process>)> {
    let mut processes = Vec::new();
    let load = sys::binary("mesh-load")?.display().to_string();
    for name in ["server", "plain-server"] {
        let pod = lab.pod(name)?;
        let [echo, sink, once] = [ECHO, SINK, ONCE].map(|port| format!("0.0.0.0:{port}"));
        processes.push(pod.serve(&[load.as_str(), "serve", "--echo", &echo, "--sink", &sink, "--once", &once], ONCE)?);
        let dir = pod.scratch()?;
        let file = dir.join("nginx.conf");
        std::fs::write(&file, peers::origin(&dir, HTTP))?;
        processes.push(pod.serve(&["nginx", "-c", &file.display().to_string()], HTTP)?);
    }
    let plain = lab.pod("plain-server")?.address();
    let plain_to = |port| SocketAddr::new(plain, port);
    let pod = lab.pod("plain-client")?;
    let dir = pod.scratch()?;
    let (nginx, haproxy) = (dir.join("nginx.conf"), dir.join("haproxy.cfg"));
    std::fs::write(&nginx, peers::nginx(&dir, plain_to(HTTP)))?;
    std::fs::write(&haproxy, peers::haproxy(plain_to(HTTP), plain_to(ECHO), plain_to(SINK), plain_to(ONCE)))?;
    let nginx = pod.serve(&["nginx", "-c", &nginx.display().to_string()], peers::NGINX_HTTP)?;
    let haproxy = pod.serve(&["haproxy", "-f", &haproxy.display().to_string()], peers::HAPROXY_HTTP)?;
    let all = |address: &str| -> Result<BTreeMap<u16, SocketAddr>> {
        let address = address.parse()?;
        Ok([HTTP, ECHO, SINK, ONCE].map(|port| (port, SocketAddr::new(address, port))).into())
    };
    let loopback =
        |pairs: &[(u16, u16)]| pairs.iter().map(|(of, at)| (*of, SocketAddr::from(([127, 0, 0, 1], *at)))).collect();
    let (near, far) = (agent(lab, "near")?, agent(lab, "far")?);
    let ways = vec![
        Way { name: "direct", pod: "plain-client", to: all(&plain.to_string())?, proxies: Vec::new() },
        Way { name: "mesh, pair, mTLS", pod: "client", to: all(MESHED)?, proxies: [near.clone(), far].concat() },
        Way { name: "mesh, one hop, plain", pod: "client", to: all(PLAIN)?, proxies: near },
        Way {
            name: "nginx, one hop, plain",
            pod: "plain-client",
            to: loopback(&[(HTTP, peers::NGINX_HTTP)]),
            proxies: nginx.id().map(family).unwrap_or_default(),
        },
        Way {
            name: "HAProxy, one hop, plain",
            pod: "plain-client",
            to: loopback(&[
                (HTTP, peers::HAPROXY_HTTP),
                (ECHO, peers::HAPROXY_ECHO),
                (SINK, peers::HAPROXY_SINK),
                (ONCE, peers::HAPROXY_ONCE),
            ]),
            proxies: haproxy.id().map(family).unwrap_or_default(),
        },
    ];
    processes.extend([nginx, haproxy]);
    Ok((ways, processes))
}

/// The processes of a node's agent, by its cgroup.
fn agent(lab: &Lab, node: &str) -> Result<Vec<u32>> {
    let cgroup = lab.state().agent_place(node).cgroup.context("an agent without a cgroup")?;
    let text = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}
