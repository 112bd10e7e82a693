//! Each right is needed: without it the agent says what fails and ends, or does less (docs/security.md).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use mesh_agent::kernel::capabilities::CAPABILITIES;
use mesh_tests::place::Place;
use mesh_tests::topology::PodSpec;
use mesh_tests::{Agent, Lab, LabBuilder, Topology, sys};

/// What ends the agent at its start without a capability; `None` if nothing does.
fn fails(name: &str) -> Option<&'static str> {
    match name {
        "CAP_NET_ADMIN" => Some("its loopback: Operation not permitted"),
        "CAP_SYS_ADMIN" => Some("a network namespace: Operation not permitted"),
        "CAP_NET_RAW" => None,
        other => panic!("say in docs/security.md and here what fails without {other}"),
    }
}

/// The agent's place without a capability.
fn without(agent: &Agent<'_>, number: u32) -> Result<Place> {
    let mut place = agent.place();
    place.confinement.as_mut().context("not confined")?.capabilities.retain(|n| *n != number);
    Ok(place)
}

fn command(agent: &Agent<'_>) -> Result<[String; 3]> {
    let settings = agent.settings_file().display().to_string();
    Ok([sys::binary("mesh-agent")?.display().to_string(), "--config".into(), settings])
}

#[test]
fn without_any_of_these_the_agent_does_not_start() -> Result<()> {
    let lab = LabBuilder::for_test("needed", Topology::of_nodes(&["a"]).pod(PodSpec::new("client", "a"))).up()?;
    let agent = lab.node("a")?.agent();
    agent.stop()?;
    for left_out in CAPABILITIES {
        let Some(what) = fails(left_out.name) else { continue };
        let output = without(&agent, left_out.number)?.try_run(&command(&agent)?)?;
        let said = format!("{}{}", output.text(), output.stderr);
        ensure!(!output.status.success(), "it does not mind the lack of {}: {said}", left_out.name);
        for wanted in [what, &format!("give the agent {} (docs/security.md)", left_out.name)] {
            ensure!(said.contains(wanted), "without {}: {said}", left_out.name);
        }
    }
    // And where it may not write its pins.
    let mut place = agent.place();
    place.confinement.as_mut().context("not confined")?.writable.retain(|path| path != Path::new(sys::BPFFS));
    let output = place.try_run(&command(&agent)?)?;
    ensure!(!output.status.success() && output.stderr.contains("Read-only file system"), "{}", output.stderr);
    agent.start()
}

/// Whether an application is told at once that a DNS server is not there.
fn is_refused(lab: &Lab) -> Result<bool> {
    let nobody = format!("@{}", lab.pod("nobody")?.address());
    let told = lab.pod("client")?.try_run(&["dig", "+tries=1", "+timeout=3", &nobody, "who.test"])?.text();
    ensure!(told.contains("connection refused") || told.contains("timed out"), "{told}");
    Ok(told.contains("connection refused"))
}

#[test]
fn without_raw_sockets_nobody_is_told_that_a_dns_server_is_not_there() -> Result<()> {
    let raw = CAPABILITIES.iter().find(|c| c.name == "CAP_NET_RAW").context("not in the list")?;
    let topology = Topology::of_nodes(&["a"]).pod(PodSpec::new("client", "a"));
    let lab = LabBuilder::for_test("raw", topology.pod(PodSpec::new("nobody", "a").unenrolled())).up()?;
    let agent = lab.node("a")?.agent();
    ensure!(is_refused(&lab)?, "with all capabilities");
    agent.stop()?;
    let log = lab.pod("client")?.scratch()?.join("agent.log");
    let _agent = without(&agent, raw.number)?.spawn(&command(&agent)?, &log)?;
    agent.wait_ready()?;
    ensure!(!is_refused(&lab)?, "without {}", raw.name);
    Ok(())
}
