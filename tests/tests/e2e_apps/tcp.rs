//! Plain TCP: many connections, halves, resets, servers that speak first.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::Lab;
use mesh_tests::sys::wait_for;
use serde_json::Value;

use crate::{LAB, json};

/// A server that speaks first is heard long before any protocol detection gives up (Istio's lasts 5 s).
const GREETING_LIMIT_MS: u64 = 2000;

fn talk(lab: &Lab, to: &str, more: &[&str]) -> Result<Value> {
    let mut argv = vec!["mesh-lab-app", "talk", "--to", to];
    argv.extend(more);
    json(lab, "client", &argv)
}

/// Waits for the server's line about how a client's connection ended.
fn server_end(lab: &Lab, client: &Value) -> Result<String> {
    let start = format!("end {} ", client["local"].as_str().unwrap_or_default());
    let server = lab.pod("tcp")?;
    wait_for(Duration::from_secs(10), &format!("the server to log `{start}…`"), || {
        Ok(server.log().lines().find_map(|l| l.strip_prefix(&start).map(str::to_owned)))
    })
}

#[test]
fn a_thousand_connections_at_once() -> Result<()> {
    LAB.test(|lab| {
        let held = json(lab, "client", &["mesh-lab-app", "hold", "--to", "tcp:9000", "--connections", "1000"])?;
        ensure!(held["right"] == 1000, "{held}");
        Ok(())
    })
}

/// More than three times the ports that one destination could have: closed by the client, each stays in TIME_WAIT for a
/// minute.
#[test]
fn a_hundred_thousand_short_connections() -> Result<()> {
    LAB.test(|lab| {
        let said = json(lab, "client", &["mesh-lab-app", "churn", "--to", "tcp:9000", "--connections", "100000"])?;
        ensure!(said["right"] == 100_000, "{said}");
        Ok(())
    })
}

#[test]
fn the_server_sees_the_client_from_accept() -> Result<()> {
    LAB.test(|lab| {
        let said = talk(lab, "tcp:9000", &["--say", "whoami"])?;
        let expected =
            format!("peer {} local {}:9000\n", said["local"].as_str().unwrap_or_default(), lab.pod("tcp")?.address());
        ensure!(said["received"] == expected.as_str(), "{said}");
        ensure!(said["end"] == "eof", "{said}");
        Ok(())
    })
}

#[test]
fn half_close_lets_the_other_half_go_on() -> Result<()> {
    LAB.test(|lab| {
        // The server answers only after our end: the answer needs the other half.
        let said = talk(lab, "tcp:9000", &["--say", "count", "--bytes", "3000000", "--half-close"])?;
        let expected = format!("3000000 {}\n", said["hash"].as_str().unwrap_or_default());
        ensure!(said["received"] == expected.as_str() && said["end"] == "eof", "expected {expected}: {said}");
        ensure!(server_end(lab, &said)? == "eof");
        Ok(())
    })
}

/// Where both workloads have `shortcuts: on`, on both agents: in words, and in bulk, which goes over to TCP on its way.
#[test]
fn what_goes_by_shortcut_arrives_as_by_tcp() -> Result<()> {
    LAB.test(|lab| {
        let before = ["a", "b"].map(|node| shortcut_sends(lab, node));
        let talk = |more: &[&str]| {
            let argv = [&["mesh-lab-app", "talk", "--to", "short-tcp:9000"], more].concat();
            json(lab, "short-client", &argv)
        };
        let said = talk(&["--say", "whoami"])?;
        let ends = format!("peer {} local ", said["local"].as_str().unwrap_or_default());
        ensure!(said["received"].as_str().is_some_and(|text| text.starts_with(&ends)), "{said}");
        let said = talk(&["--say", "count", "--bytes", "3000000", "--half-close"])?;
        let expected = format!("3000000 {}\n", said["hash"].as_str().unwrap_or_default());
        ensure!(said["received"] == expected.as_str() && said["end"] == "eof", "expected {expected}: {said}");
        ensure!(talk(&["--say", "reset"])?["end"] == "reset");
        for (node, before) in ["a", "b"].into_iter().zip(before) {
            let (before, after) = (before?, shortcut_sends(lab, node)?);
            let metrics = lab.node(node)?.agent().metrics()?;
            let all: Vec<_> = metrics.select("mesh_agent_kernel_total", &[]).collect();
            ensure!(after > before, "node {node}: nothing went by shortcut: {all:?}");
        }
        Ok(())
    })
}

fn shortcut_sends(lab: &Lab, node: &str) -> Result<f64> {
    let metrics = lab.node(node)?.agent().metrics()?;
    Ok(metrics.sum("mesh_agent_kernel_total", &[("event", "shortcut_sends")]))
}

#[test]
fn a_servers_reset_reaches_the_client() -> Result<()> {
    LAB.test(|lab| {
        let said = talk(lab, "tcp:9000", &["--say", "reset"])?;
        ensure!(said["end"] == "reset", "{said}");
        Ok(())
    })
}

#[test]
fn a_clients_reset_reaches_the_server() -> Result<()> {
    LAB.test(|lab| {
        let said = talk(lab, "tcp:9001", &["--say", "wait", "--greeted", "--reset"])?;
        let end = server_end(lab, &said)?;
        ensure!(end == "reset", "the server's end was `{end}`: {said}");
        Ok(())
    })
}

#[test]
fn a_server_that_speaks_first_is_heard_on_a_port_declared_tcp() -> Result<()> {
    LAB.test(|lab| {
        let said = talk(lab, "tcp:9001", &["--say", "echo", "--greeted", "--half-close"])?;
        let expected = format!("peer {} local ", said["local"].as_str().unwrap_or_default());
        ensure!(said["received"].as_str().is_some_and(|r| r.starts_with(&expected)), "{said}");
        ensure!(said["greeting_ms"].as_u64().is_some_and(|ms| ms < GREETING_LIMIT_MS), "{said}");
        Ok(())
    })
}

#[test]
fn a_closed_port_is_not_served() -> Result<()> {
    LAB.test(|lab| {
        let address = format!("{}:7", lab.pod("tcp")?.address());
        let said =
            lab.pod("client")?.try_run(&["mesh-lab-app", "talk", "--to", &address, "--say", "echo", "--half-close"])?;
        ensure!(!said.text().contains("\"received\":\"echo"), "{}", said.text());
        ensure!(
            !said.status.success() || said.text().contains("\"reset\"") || said.text().contains("\"received\":\"\"")
        );
        Ok(())
    })
}
