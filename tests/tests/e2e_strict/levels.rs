//! Workload, namespace and port level; the refusals as operators see them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::Lab;
use mesh_tests::sys::wait_for;

use crate::intruder::{Verdict, addresses, everybody, seen_by, try_plain};
use crate::{HTTP, LAB, TCP, UNDECLARED, works};

/// Nobody outside reaches any of the ports, over either family, and the application hears nothing of it.
pub fn nobody_comes_in(lab: &Lab, pod: &str, ports: &[u16]) -> Result<usize> {
    let before = seen_by(lab, pod)?.len();
    let mut tried = 0;
    for place in everybody(lab)? {
        for address in addresses(lab, pod)? {
            for port in ports {
                let verdict = try_plain(&place, SocketAddr::new(address, *port))?;
                ensure!(verdict == Verdict::Refused, "{} to {address}:{port}: {verdict:?}", place.name);
                tried += 1;
            }
        }
    }
    // One that may come in is logged after all that came before it.
    let host = format!("{pod}.{}", lab.pod(pod)?.spec().namespace);
    let talk = ["mesh-lab-app", "talk", "--to", &format!("{host}:{TCP}"), "--say", "whoami"];
    let said = lab.pod("client")?.run(&talk)?.text();
    ensure!(said.contains("\"received\":\"peer "), "{said}");
    let client = lab.pod("client")?.address().to_string();
    wait_for(Duration::from_secs(10), "the application to log the client", || {
        Ok(seen_by(lab, pod)?.iter().skip(before).any(|peer| peer.starts_with(&format!("{client}:"))).then_some(()))
    })?;
    let strangers: Vec<String> =
        seen_by(lab, pod)?.into_iter().skip(before).filter(|peer| !peer.starts_with(&format!("{client}:"))).collect();
    ensure!(strangers.is_empty(), "the application has seen {strangers:?}");
    Ok(tried)
}

/// Everybody outside is served, over both families.
pub fn everybody_comes_in(lab: &Lab, pod: &str, ports: &[u16]) -> Result<()> {
    for place in everybody(lab)? {
        for address in addresses(lab, pod)? {
            for port in ports {
                let verdict = try_plain(&place, SocketAddr::new(address, *port))?;
                ensure!(matches!(verdict, Verdict::Served(_)), "{} to {address}:{port}: {verdict:?}", place.name);
            }
        }
    }
    Ok(())
}

#[test]
fn a_strict_workload_is_reached_by_the_mesh_only() -> Result<()> {
    LAB.test(|lab| {
        let refused = |lab: &Lab| -> Result<f64> {
            let metrics = lab.node("b")?.agent().metrics()?;
            Ok(metrics.sum("mesh_agent_plaintext_refused_total", &[("reason", "strict")]))
        };
        let before = refused(lab)?;
        let tried = nobody_comes_in(lab, "strict", &[HTTP, TCP, UNDECLARED])?;
        works(lab, "client", "strict")?;
        works(lab, "client-b", "strict")?;
        let counted = refused(lab)? - before;
        ensure!(counted >= tried as f64, "{counted} of {tried} are counted");
        let agent = lab.node("b")?.agent();
        let outside = lab.pod("outside")?.address();
        wait_for(Duration::from_secs(10), "the access log", || {
            let line =
                |line: &str| line.contains(" 0 NR filter_chain_not_found ") && line.contains(&format!(" {outside}:"));
            Ok(agent.access_log().lines().any(line).then_some(()))
        })?;
        let log = agent.log();
        let told = log.lines().find(|line| line.contains("plaintext connection refused") && line.contains("STRICT"));
        let told = told.unwrap_or_default();
        ensure!(["client=", "destination=", "remedy=", "workload="].iter().all(|part| told.contains(part)), "{told:?}");
        Ok(())
    })
}

#[test]
fn a_strict_namespace_with_an_exception() -> Result<()> {
    LAB.test(|lab| {
        nobody_comes_in(lab, "closed", &[HTTP, TCP, UNDECLARED])?;
        works(lab, "client", "closed.closed")?;
        everybody_comes_in(lab, "opened", &[HTTP, TCP, UNDECLARED])?;
        works(lab, "client", "opened.closed")
    })
}

#[test]
fn ports_differ_from_their_workload() -> Result<()> {
    LAB.test(|lab| {
        nobody_comes_in(lab, "mixed", &[UNDECLARED])?;
        everybody_comes_in(lab, "mixed", &[HTTP, TCP])?;
        works(lab, "client", "mixed")
    })
}

#[test]
fn without_an_object_both_come_in() -> Result<()> {
    LAB.test(|lab| {
        everybody_comes_in(lab, "open", &[HTTP, TCP, UNDECLARED])?;
        works(lab, "client", "open")
    })
}
