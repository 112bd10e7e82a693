//! Traffic of others on the same workers and tunnels, which nothing that a case does may disturb.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{Lab, Process};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Requests, and a held connection of TCP, from the pod `client` to the pod `server`.
pub struct Neighbour(Process);

impl Neighbour {
    /// Once the first request and the first echo were right.
    pub fn start(lab: &Lab) -> Result<Self> {
        let argv = ["mesh-lab-app", "steady", "--http", "server:80", "--tcp", "server:9000"];
        let mut steady = lab.pod("client")?.spawn(&argv)?;
        steady.wait_log(Duration::from_secs(20), "traffic to start", |log| log.contains("started").then_some(()))?;
        Ok(Self(steady))
    }

    /// Ends it; all of it must have been right.
    pub fn was_undisturbed(mut self) -> Result<()> {
        ensure!(self.0.running(), "the neighbours' traffic ended: {}", self.0.log());
        self.0.signal(Signal::SIGTERM);
        self.0.wait(Duration::from_secs(20))?;
        let last = self.0.log().lines().last().unwrap_or_default().to_owned();
        let said: Value = serde_json::from_str(&last).with_context(|| self.0.log())?;
        ensure!(said["failed_requests"] == 0 && said["failed_echoes"] == 0, "neighbours were disturbed: {said}");
        ensure!(said["requests"].as_u64() > Some(0) && said["echoes"].as_u64() > Some(0), "{said}");
        Ok(())
    }
}
