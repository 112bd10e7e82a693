//! The control plane is killed and started again while traffic flows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::sys::wait_for;
use mesh_tests::{LabBuilder, shared};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{SERVICES, all_to, topology, who_answers};

#[test]
fn traffic_flows_while_the_control_plane_is_away_and_news_arrive_when_it_is_back() -> Result<()> {
    let lab = LabBuilder::for_test("restart", topology());
    let lab = lab.config("services.yaml", SERVICES).config("route.yaml", &all_to("v1")).up()?;
    let body = || -> Result<()> {
        ensure!(who_answers(&lab)? == "server-v1");
        let argv = ["mesh-lab-app", "steady", "--http", "server:8080", "--tcp", "server:9000"];
        let mut steady = lab.pod("client")?.spawn(&argv)?;
        steady.wait_log(Duration::from_secs(10), "traffic to start", |l| l.contains("started").then_some(()))?;

        lab.control().kill()?;
        lab.write_config("route.yaml", &all_to("v2"))?;
        for _ in 0..50 {
            ensure!(who_answers(&lab)? == "server-v1", "nobody can have told the agent of the new route");
        }
        lab.node("a")?.agent().wait_ready().context("an agent stays ready without its control plane")?;

        lab.control().start()?;
        wait_for(Duration::from_secs(30), "the new route", || Ok((who_answers(&lab)? == "server-v2").then_some(())))?;
        // And the stream works on: one more change arrives.
        lab.write_config("route.yaml", &all_to("v1"))?;
        wait_for(Duration::from_secs(10), "the old route", || Ok((who_answers(&lab)? == "server-v1").then_some(())))?;

        ensure!(steady.running(), "the traffic ended: {}", steady.log());
        steady.signal(Signal::SIGTERM);
        steady.wait(Duration::from_secs(15))?;
        let last = steady.log().lines().last().unwrap_or_default().to_owned();
        let said: Value = serde_json::from_str(&last).with_context(|| steady.log())?;
        ensure!(said["failed_requests"] == 0 && said["failed_echoes"] == 0, "{said}");
        ensure!(said["requests"].as_u64() > Some(20), "{said}");
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
