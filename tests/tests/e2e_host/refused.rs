//! What cannot be a workload of the host, and what such a one does without: said where an operator looks.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_agent::settings::host::UNSUPPORTED;
use mesh_tests::sys;
use nix::sys::signal::Signal;

use crate::{LAB, cgroup, plain, says, settings, write_settings};

#[test]
fn what_is_unsupported_is_said_at_each_enrolment() -> Result<()> {
    LAB.test(|lab| {
        let log = plain(&lab.node("a")?.agent().log());
        for line in UNSUPPORTED {
            let said = format!("unsupported on the host: {line}");
            for unit in ["web", "db"] {
                let found = log.lines().any(|one| one.contains(&said) && one.contains(&format!("default/{unit}\"")));
                ensure!(found, "of {unit} is not said: {line}");
            }
        }
        Ok(())
    })
}

/// The agent's own cgroup: by the file where it can be told from there, else at the enrolment; the others go on.
#[test]
fn the_agent_is_none_of_its_workloads() -> Result<()> {
    LAB.test(|lab| {
        let own = lab.state().node_cgroup("a").join("agent");
        let own = format!("/{}", own.strip_prefix(sys::cgroup_mount()?)?.display());
        let good = settings(lab);
        let bad = good.replace(&cgroup(lab, "gone").display().to_string(), &own);
        ensure!(bad != good);
        write_settings(lab, &bad)?;
        lab.node("a")?.agent().signal(Signal::SIGHUP);
        says(lab, &format!("cgroup {own} is the agent's own, or one above it"))?;
        let page = lab.node("a")?.agent().admin("/workloads")?;
        ensure!(page.contains("run the agent in another one"), "{page}");
        crate::get(&crate::unit(lab, "web")?, "http://server:8080/")?;
        write_settings(lab, &good)?;
        lab.node("a")?.agent().signal(Signal::SIGHUP);
        says(lab, "enrolled workload=\"default/gone\"")?;

        // Where no cgroup namespace hides it, the file is refused: with its line.
        let directory = tempfile::tempdir()?;
        let mine = std::fs::read_to_string("/proc/self/cgroup")?;
        let mine = mine.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup v2")?.to_owned();
        if mine == "/" {
            return Ok(());
        }
        let file = directory.path().join("agent.yaml");
        let yaml = format!("node: n\ncontrolPlane: {{address: 'http://a:1'}}\nworkloads:\n- name: x\n  namespace: y\n  cgroup: {mine}\n");
        std::fs::write(&file, yaml)?;
        let run = Command::new(sys::binary("mesh-agent")?).arg("--config").arg(&file).output()?;
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        ensure!(said.contains("agent.yaml:6: workloads[0].cgroup: the agent itself is in it"), "{said}");
        Ok(())
    })
}
