//! Units that start again, and agents that do.

use anyhow::{Result, ensure};
use mesh_tests::{Shared, sys};

use crate::{LIMIT, build, curl, directory, get, plain, says, settings, stop, unit};

/// These change what the others rely upon, so they have one order.
#[test]
fn a_unit_comes_goes_and_comes_again_and_so_does_the_agent() -> Result<()> {
    static LAB: Shared = Shared::new(|| build("host-life"));
    LAB.test(|lab| {
        let agent = lab.node("a")?.agent();
        // One that was never there: told, and no obstacle to the others.
        says(lab, "its cgroup is not there")?;
        ensure!(curl(&unit(lab, "web-2")?, "http://server:8080/")?.status.success());
        sys::create_dir(&directory(lab, "gone"))?;
        says(lab, "its cgroup is there: its processes are caught workload=\"default/gone\"")?;
        get(&unit(lab, "gone")?, "http://server:8080/")?;

        // Its unit is started again: another cgroup with another id.
        for round in 1..=3 {
            let place = unit(lab, "gone")?;
            let held = place.spawn(
                &["mesh-lab-app", "steady", "--tcp", "server:9000", "--pause", "20"],
                &lab.state().log("held"),
            )?;
            let before = std::fs::metadata(directory(lab, "gone")).map(|m| std::os::unix::fs::MetadataExt::ino(&m))?;
            stop(lab, "gone")?;
            drop(held);
            let told = |log: &str| log.matches("workload=\"default/gone\"").count();
            sys::create_dir(&directory(lab, "gone"))?;
            let after = std::fs::metadata(directory(lab, "gone")).map(|m| std::os::unix::fs::MetadataExt::ino(&m))?;
            ensure!(before != after, "the cgroup is the same in round {round}");
            // The server is STRICT, so who is served is caught.
            sys::wait_for(LIMIT, &format!("round {round}"), || {
                Ok(curl(&place, "http://server:8080/")?.status.success().then_some(()))
            })?;
            ensure!(told(&plain(&agent.log())) > 0);
        }

        // Another agent takes over, without a gap; one that dies leaves it closed, and the next one goes on.
        agent.upgrade_with(&settings(lab))?;
        get(&unit(lab, "web")?, "http://server:8080/")?;
        agent.wait_ready()?;
        sys::wait_for(LIMIT, "the old agent to go", || Ok((agent.processes().len() == 1).then_some(())))?;
        get(&unit(lab, "db")?, "http://server:8080/")?;
        agent.kill()?;
        let address = lab.pod("server")?.address();
        let url = format!("http://{address}:8080/");
        let run = curl(&unit(lab, "web")?, &url)?;
        ensure!(run.stderr.contains("refused") || run.stderr.contains("connect"), "{}", run.stderr);
        agent.spawn_with(&settings(lab))?;
        agent.wait_ready()?;
        get(&unit(lab, "web")?, "http://server:8080/")?;
        let page = agent.admin("/workloads")?;
        ensure!(page.contains("units/web-2") && page.contains("8081"), "{page}");
        Ok(())
    })
}
