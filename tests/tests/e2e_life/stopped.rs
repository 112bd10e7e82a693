//! A clean stop leaves nothing; `mesh-agent detach` does the same after a crash.

use anyhow::{Context, Result, ensure};
use mesh_tests::shared;

use crate::lab;

#[test]
fn a_stopped_agent_leaves_nothing_and_detach_removes_what_a_killed_one_left() -> Result<()> {
    let lab = lab("stopped", &[])?;
    let body = || -> Result<()> {
        let agent = lab.node("b")?.agent();
        let pins = lab.state().pins("b");
        let address = lab.pod("server")?.address();
        // From outside the mesh: whether the application is reached, with or without an agent.
        let direct =
            || lab.pod("outsider")?.try_run(&["curl", "-sS", "--max-time", "2", &format!("http://{address}:8080/")]);
        ensure!(pins.exists() && direct()?.status.success());
        agent.stop()?;
        ensure!(!pins.exists(), "left: {}", pins.display());
        ensure!(direct()?.status.success(), "the pod goes on without the mesh");

        agent.start()?;
        agent.kill()?;
        ensure!(pins.exists() && !direct()?.status.success(), "closed while nobody is there");
        let program = mesh_tests::sys::binary("mesh-agent")?.display().to_string();
        let file = agent.settings_file().display().to_string();
        let detach = || lab.state().agent_place("b").run(&[program.as_str(), "detach", "--config", &file]);
        ensure!(detach()?.text().contains("removed"));
        ensure!(!pins.exists() && direct()?.status.success());
        ensure!(detach()?.text().contains("nothing is pinned"));
        agent.start()?;
        ensure!(direct()?.status.success());
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
