//! Metrics and access log as Istio's users know them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::metrics::Sample;
use mesh_tests::sys::wait_for;
use mesh_tests::{Lab, capture};

use crate::{LAB, curl, json};

/// Labels of Istio's standard metrics that have the same value on both sides.
fn expected(server: &str, protocol: &str) -> Vec<(&'static str, String)> {
    let principal = |name: &str| format!("spiffe://cluster.local/ns/default/sa/{name}");
    let own = |s: &str| s.to_owned();
    vec![
        ("source_workload", own("client")),
        ("source_canonical_service", own("client")),
        ("source_canonical_revision", own("v1")),
        ("source_workload_namespace", own("default")),
        ("source_principal", principal("client")),
        ("source_app", own("client")),
        ("source_version", own("v1")),
        ("source_cluster", own("Kubernetes")),
        ("destination_workload", own(server)),
        ("destination_workload_namespace", own("default")),
        ("destination_principal", principal(server)),
        ("destination_app", own(server)),
        ("destination_version", own("v1")),
        ("destination_service", format!("{server}.default.svc.cluster.local")),
        ("destination_canonical_service", own(server)),
        ("destination_canonical_revision", own("v1")),
        ("destination_service_name", own(server)),
        ("destination_service_namespace", own("default")),
        ("destination_cluster", own("Kubernetes")),
        ("request_protocol", own(protocol)),
        ("response_flags", own("-")),
    ]
}

/// A series of one side, once it is there with a value above 0.
fn series(lab: &Lab, node: &str, reporter: &str, name: &str, server: &str) -> Result<Sample> {
    let labels = [
        ("reporter", reporter),
        ("source_workload", "client"),
        ("destination_workload", server),
        ("response_flags", "-"),
    ];
    let agent = lab.node(node)?.agent();
    let look = || Ok(agent.metrics()?.select(name, &labels).find(|s| s.value > 0.0).cloned());
    wait_for(Duration::from_secs(20), &format!("{name} of reporter {reporter}"), look).with_context(|| {
        let metrics = agent.metrics().unwrap_or_default();
        let near: Vec<_> = metrics.samples.iter().filter(|s| s.name == name).map(|s| format!("{s:?}")).collect();
        format!("node {node} has:\n{}", near.join("\n"))
    })
}

fn check(sample: &Sample, reporter: &str, expected: &[(&str, String)]) -> Result<()> {
    let policy = if reporter == "source" { "unknown" } else { "mutual_tls" };
    let all = expected.iter().cloned().chain([("connection_security_policy", policy.to_owned())]);
    for (key, value) in all {
        let have = sample.labels.get(key).map_or("(absent)", String::as_str);
        ensure!(have == value, "{} {reporter}: {key} is `{have}`, expected `{value}`", sample.name);
    }
    Ok(())
}

#[test]
fn request_metrics_carry_every_label_on_both_sides() -> Result<()> {
    LAB.test(|lab| {
        curl(lab, "client", "http://echo:8080/metrics-test", &[])?;
        let expected = expected("echo", "http");
        for (node, reporter) in [("a", "source"), ("b", "destination")] {
            for name in ["istio_requests_total", "istio_request_duration_milliseconds_count"] {
                let sample = series(lab, node, reporter, name, "echo")?;
                check(&sample, reporter, &expected)?;
                ensure!(sample.labels.get("response_code").is_some_and(|c| c == "200"), "{sample:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn tcp_metrics_carry_every_label_on_both_sides() -> Result<()> {
    LAB.test(|lab| {
        json(
            lab,
            "client",
            &["mesh-lab-app", "talk", "--to", "tcp:9000", "--say", "count", "--bytes", "100000", "--half-close"],
        )?;
        let expected = expected("tcp", "tcp");
        for (node, reporter) in [("a", "source"), ("b", "destination")] {
            for name in ["opened", "closed"].map(|w| format!("istio_tcp_connections_{w}_total")) {
                check(&series(lab, node, reporter, &name, "tcp")?, reporter, &expected)?;
            }
            for name in ["istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"] {
                check(&series(lab, node, reporter, name, "tcp")?, reporter, &expected)?;
            }
        }
        Ok(())
    })
}

#[test]
fn the_access_log_has_istios_default_format() -> Result<()> {
    LAB.test(|lab| {
        let path = "/access-log-test";
        curl(lab, "client", &format!("http://echo:8080{path}"), &["-A", "lab-agent/1"])?;
        let service = "outbound|8080||echo.default.svc.cluster.local";
        for (node, cluster) in [("a", service), ("b", "inbound|8080||")] {
            let agent = lab.node(node)?.agent();
            let line = wait_for(Duration::from_secs(10), &format!("the line of {path} on node {node}"), || {
                Ok(agent.access_log().lines().find(|l| l.contains(path)).map(str::to_owned))
            })?;
            let tokens = tokens(&line);
            ensure!(tokens.len() == 22, "node {node}: {} operators, expected 22: {line}", tokens.len());
            let started = &tokens[0];
            ensure!(started.starts_with("[20") && started.ends_with("Z]") && started.len() == 26, "START_TIME: {line}");
            ensure!(tokens[1] == format!("GET {path} HTTP/1.1"), "request: {line}");
            ensure!(tokens[2] == "200" && tokens[3] == "-" && tokens[4] == "via_upstream", "response: {line}");
            ensure!(tokens[7] == "0" && tokens[8].parse::<u64>().is_ok_and(|n| n > 0), "bytes: {line}");
            ensure!(tokens[9].parse::<u64>().is_ok(), "DURATION: {line}");
            ensure!(tokens[12] == "lab-agent/1" && tokens[14] == "echo:8080", "headers: {line}");
            ensure!(tokens[15] == format!("{}:8080", lab.pod("echo")?.address()), "UPSTREAM_HOST: {line}");
            ensure!(tokens[16].starts_with(cluster), "UPSTREAM_CLUSTER_RAW, expected {cluster}…: {line}");
            let remote = format!("{}:", lab.pod("client")?.address());
            ensure!(tokens[19].starts_with(&remote), "DOWNSTREAM_REMOTE_ADDRESS: {line}");
        }
        Ok(())
    })
}

/// Splits a line of the log: `[…]` and `"…"` are one each.
fn tokens(line: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (token, after) = if let Some(quoted) = rest.strip_prefix('"') {
            quoted.split_once('"').unwrap_or((quoted, ""))
        } else {
            rest.split_once(' ').unwrap_or((rest, ""))
        };
        tokens.push(token.to_owned());
        rest = after.trim_start();
    }
    tokens
}

#[test]
fn nothing_readable_crosses_the_wire() -> Result<()> {
    LAB.test(|lab| {
        let capture = lab.node("a")?.capture("tcp")?;
        let marker = "wire-marker-of-this-test";
        curl(lab, "client", &format!("http://echo:8080/{marker}"), &[])?;
        let file = capture.stop()?;
        let packets = std::fs::read(&file)?;
        ensure!(packets.len() > 1000, "the capture is empty");
        ensure!(!capture::contains(&packets, marker.as_bytes()), "the request crosses the wire in clear");
        Ok(())
    })
}
