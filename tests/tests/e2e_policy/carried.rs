//! What connections between pods of one node carry without the agent stands in its metrics, to the last byte.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use mesh_tests::sys::wait_for;
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Topology, shared};

use crate::{LIMIT, server, service};

/// Opened, closed, bytes received from the client, bytes sent to it.
type Told = [u64; 4];

const NAMES: [&str; 4] = [
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_received_bytes_total",
    "istio_tcp_sent_bytes_total",
];

/// What both ends report, wherever else they differ.
const BOTH: [(&str, &str); 20] = [
    ("source_workload", "near"),
    ("source_canonical_service", "near"),
    ("source_canonical_revision", "v1"),
    ("source_workload_namespace", "bank"),
    ("source_principal", "spiffe://cluster.local/ns/bank/sa/near"),
    ("source_app", "near"),
    ("source_version", "v1"),
    ("source_cluster", "Kubernetes"),
    ("destination_workload", "local"),
    ("destination_workload_namespace", "default"),
    ("destination_principal", "spiffe://cluster.local/ns/default/sa/local"),
    ("destination_app", "local"),
    ("destination_version", "v1"),
    ("destination_canonical_service", "local"),
    ("destination_canonical_revision", "v1"),
    ("destination_service_name", "local"),
    ("destination_service_namespace", "default"),
    ("destination_cluster", "Kubernetes"),
    ("request_protocol", "tcp"),
    ("response_flags", "-"),
];

/// What one end has told, of connections with every label as it should be.
fn told(lab: &Lab, reporter: &str, security: &str) -> Result<Told> {
    let metrics = lab.node("b")?.agent().metrics()?;
    let own = [
        ("reporter", reporter),
        ("connection_security_policy", security),
        ("destination_service", "local.default.svc.cluster.local"),
    ];
    let labels: Vec<(&str, &str)> = BOTH.into_iter().chain(own).collect();
    // Whatever is told with other labels is wrong.
    let all = |name| metrics.sum(name, &[("reporter", reporter)]) == metrics.sum(name, &labels);
    ensure!(NAMES.into_iter().all(all), "{:?}", metrics.select(NAMES[0], &[]).collect::<Vec<_>>());
    Ok(NAMES.map(|name| metrics.sum(name, &labels) as u64))
}

/// Waits until both ends have told this.
fn wait_told(lab: &Lab, wanted: Told) -> Result<()> {
    let mut last = Vec::new();
    wait_for(LIMIT, "what was carried to be told", || {
        last = vec![told(lab, "source", "unknown")?, told(lab, "destination", "none")?];
        Ok(last.iter().all(|one| *one == wanted).then_some(()))
    })
    .with_context(|| format!("told {last:?}, not {wanted:?}"))
}

/// A client that sends a line and 1000 bytes, 2000 more when the first file appears, and ends when the second one does.
fn steps(files: [&Path; 2]) -> [String; 3] {
    let [first, second] = files.map(|file| format!("until [ -e {} ]; do sleep 0.05; done", file.display()));
    let script = format!(
        "exec 3<>/dev/tcp/local.default/9000; printf 'count\\n' >&3; head -c 1000 /dev/zero >&3; {first}; \
         head -c 2000 /dev/zero >&3; {second}"
    );
    ["bash", "-c", &script].map(str::to_owned)
}

fn build() -> Result<Lab> {
    let near = PodSpec::new("near", "b").account("bank", "near").label("version", "v1");
    let topology = Topology::of_nodes(&["b"]).pod(near).pod(server("local", "b").label("version", "v1"));
    LabBuilder::for_test("carried", topology).config("services.yaml", &service("local")).up()
}

#[test]
fn what_goes_directly_is_told_at_both_ends_by_one_agent_after_the_other() -> Result<()> {
    let lab = build()?;
    let body = || -> Result<()> {
        let agent = lab.node("b")?.agent();
        let near = lab.pod("near")?;
        wait_for(LIMIT, "direct ways", || {
            Ok((agent.metrics()?.sum("mesh_agent_direct_ways", &[]) > 0.0).then_some(()))
        })?;
        let files = ["first", "second"].map(|name| near.scratch().map(|dir| dir.join(name)));
        let [first, second] = files;
        let (first, second) = (first?, second?);
        let mut open = near.spawn(&steps([&first, &second]))?;

        // `count` and its 100,000 bytes; the answer is a number and a hash.
        let talk = ["mesh-lab-app", "talk", "--to", "local.default:9000", "--say", "count", "--bytes", "100000"];
        let said = near.run(&[&talk[..], &["--half-close"]].concat())?.text();
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let answer = said["received"].as_str().unwrap_or_default().len() as u64;
        ensure!(answer > 20 && said["end"] == "eof", "{said}");
        wait_told(&lab, [2, 1, 100_006 + 1006, answer])?;
        let metrics = agent.metrics()?;
        ensure!(metrics.sum("mesh_agent_kernel_total", &[("event", "direct_opened")]) == 2.0);
        for direction in ["sent", "received"] {
            let labels = [("path", "direct"), ("direction", direction)];
            let bytes = metrics.sum("mesh_agent_bytes_total", &labels) as u64;
            ensure!(bytes == 100_006 + 1006 + answer, "{direction}: {bytes}");
        }
        let direct = [("path", "direct")];
        ensure!(metrics.sum("mesh_agent_tcp_rtt_seconds_count", &direct) == 2.0, "both sockets that have closed");
        let rtt = metrics.sum("mesh_agent_tcp_rtt_seconds_sum", &direct);
        ensure!(rtt > 0.0 && rtt < 1.0, "{rtt}");

        // What is carried while nobody is there is told by the next agent, and what was told is not.
        agent.kill()?;
        std::fs::write(&first, "")?;
        agent.start()?;
        wait_told(&lab, [0, 0, 2000, 0])?;
        std::fs::write(&second, "")?;
        open.wait(LIMIT)?;
        wait_told(&lab, [0, 1, 2000, 0])
    };
    body().with_context(|| shared::logs(lab.state()))
}
