//! One agent takes over from another under traffic, on the client's node and on the server's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::shared;
use mesh_tests::sys::wait_for;
use nix::sys::signal::Signal;

use crate::{NAME, lab, said};

/// New connections each second.
const RATE: &str = "200";
/// And how many of them.
const CONNECTIONS: &str = "3000";
/// Questions to a DNS server.
const QUESTIONS: usize = 200;
/// Longest that a client of this test takes.
const LIMIT: Duration = Duration::from_secs(90);
/// How long the old agents get: one longer than the test, one not.
const LONG: u64 = 120;
const SHORT: u64 = 2;

#[test]
fn no_connection_fails_and_old_ones_go_on_until_the_limit() -> Result<()> {
    let lab = lab("replaced", &[])?;
    let body = || -> Result<()> {
        let (a, b) = (lab.node("a")?.agent(), lab.node("b")?.agent());
        let with_drain = |settings: String, seconds: u64| format!("drainSeconds: {seconds}\n{settings}");
        // The limits are those of the agents that will be old.
        for (agent, seconds) in [(&a, LONG), (&b, SHORT)] {
            agent.stop()?;
            agent.spawn_with(&with_drain(agent.settings(), seconds))?;
            agent.wait_ready()?;
        }
        let client = lab.pod("client")?;
        let churn =
            ["mesh-lab-app", "churn", "--to", "server:9000", "--connections", CONNECTIONS, "--per-second", RATE];
        let mut churn = client.spawn(&churn)?;
        let mut held = client.spawn(&["mesh-lab-app", "steady", "--tcp", "server:9000", "--pause", "20"])?;
        let urls = "http://server:8080/kept-[1-200]";
        let format = "%{http_code} %{num_connects}\\n";
        let mut kept =
            client.spawn(&["stdbuf", "-oL", "curl", "-sS", "--rate", "20/s", "-o", "/dev/null", "-w", format, urls])?;
        held.wait_log(LIMIT, "the held connection", |log| log.contains("started").then_some(()))?;
        kept.wait_log(LIMIT, "the client that keeps its connection", |log| (log.lines().count() > 3).then_some(()))?;

        let ask = format!("dig +tries=1 +timeout=10 +short @{} who.test TXT", lab.pod("server")?.address());
        let ask = format!("for i in $(seq {QUESTIONS}); do {ask}; sleep 0.05; done");
        let mut resolver = client.spawn(&["sh", "-c", &ask])?;
        resolver.wait_log(LIMIT, "the first answer", |log| log.contains(NAME).then_some(()))?;

        let old = a.processes();
        a.upgrade_with(&with_drain(a.settings(), LONG))?;
        ensure!(old.len() == 1 && a.processes().len() == 2, "{old:?}, then {:?}", a.processes());
        a.wait_ready()?;
        // Both go on: the one by the old agent, the other by a new connection.
        let answers = kept.log().lines().count();
        kept.wait_log(LIMIT, "further answers", |log| (log.lines().count() > answers + 20).then_some(()))?;
        ensure!(held.running() && a.processes().contains(&old[0]), "the held connection goes through the old agent");
        held.signal(Signal::SIGTERM);
        held.wait(LIMIT)?;
        let echoes = said(&held.log())?;
        ensure!(echoes["failed_echoes"] == 0 && echoes["echoes"].as_u64() > Some(10), "{echoes}");

        let mut held = client.spawn(&["mesh-lab-app", "steady", "--tcp", "server:9000", "--pause", "20"])?;
        held.wait_log(LIMIT, "the second held connection", |log| log.contains("started").then_some(()))?;
        let old = b.processes();
        b.upgrade_with(&with_drain(b.settings(), SHORT))?;
        b.wait_ready()?;
        wait_for(LIMIT, "the old agent's limit", || Ok((!b.processes().contains(&old[0])).then_some(())))?;
        held.wait_log(LIMIT, "the cut", |log| log.contains("broken").then_some(()))?;
        held.signal(Signal::SIGTERM);
        held.wait(LIMIT)?;
        let echoes = said(&held.log())?;
        ensure!(echoes["failed_echoes"] == 1, "cut at the limit: {echoes}");

        resolver.wait(LIMIT)?;
        let log = resolver.log();
        let bad: Vec<&str> = log.lines().filter(|line| !line.contains(NAME)).collect();
        ensure!(bad.is_empty() && log.lines().count() == QUESTIONS, "{} answers; {bad:?}", log.lines().count());
        churn.wait(LIMIT)?;
        let churned = said(&churn.log())?;
        ensure!(churned["failed"] == 0, "{churned}");
        kept.wait(LIMIT)?;
        let log = kept.log();
        let bad: Vec<&str> = log.lines().filter(|line| !line.starts_with("200 ")).collect();
        ensure!(bad.is_empty() && log.lines().count() == 200, "{bad:?}");
        let connections = log.lines().filter(|line| line.ends_with(" 1")).count();
        ensure!(connections >= 2, "the old agent asked for no new connection: {log}");
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}

#[test]
fn a_second_agent_by_mistake_and_a_successor_that_fails_change_nothing() -> Result<()> {
    let lab = lab("mistaken", &[])?;
    let body = || -> Result<()> {
        let agent = lab.node("a")?.agent();
        let own = agent.processes();
        let asks = || lab.pod("client")?.run(&["curl", "-sS", "--max-time", "10", "http://server:8080/"]);
        let ends = |arguments: &[&str], word: &str| -> Result<()> {
            let program = mesh_tests::sys::binary("mesh-agent")?.display().to_string();
            let argv: Vec<&str> = std::iter::once(program.as_str()).chain(arguments.iter().copied()).collect();
            let output = lab.state().agent_place("a").try_run(&argv)?;
            ensure!(!output.status.success(), "it did not mind");
            let words = output.text() + &output.stderr;
            ensure!(words.contains(word), "{words}");
            ensure!(agent.processes() == own, "{:?}", agent.processes());
            asks().map(drop)
        };
        let file = agent.settings_file().display().to_string();
        ends(&["--config", &file], "--take-over")?;

        // A successor that cannot load its programs.
        let other = lab.state().node_dir("a").join("other.yaml");
        let path = other.display().to_string();
        let broken = agent.settings().replace("kernel:\n", "kernel:\n  object: /nowhere/mesh-ebpf.o\n");
        std::fs::write(&other, broken)?;
        ends(&["--config", &path, "--take-over"], "/nowhere/mesh-ebpf.o")?;

        // And one of another node.
        std::fs::write(&other, agent.settings().replace("node: \"a\"", "node: \"z\""))?;
        ends(&["--config", &path, "--take-over"], "another node")?;
        agent.wait_ready()
    };
    body().with_context(|| shared::logs(lab.state()))
}

/// As a DaemonSet runs it: the process does not end, and its end changes nothing.
#[test]
fn one_that_is_to_stay_waits_for_its_end() -> Result<()> {
    let lab = lab("stays", &[])?;
    let body = || -> Result<()> {
        let agent = lab.node("b")?.agent();
        agent.stop()?;
        let settings = format!("drainSeconds: 1\n{}", agent.settings());
        std::fs::write(agent.settings_file(), &settings)?;
        let program = mesh_tests::sys::binary("mesh-agent")?.display().to_string();
        let file = agent.settings_file().display().to_string();
        let argv = [program.as_str(), "--config", &file, "--take-over", "--stay"];
        let mut old = lab.state().agent_place("b").spawn(&argv, &lab.state().log("agent-b"))?;
        agent.wait_ready()?;
        let processes = agent.processes();
        agent.upgrade_with(&settings)?;
        let command = || std::fs::read(format!("/proc/{}/cmdline", processes[0])).unwrap_or_default();
        wait_for(LIMIT, "the old agent to have drained", || Ok(command().ends_with(b"\0wait\0").then_some(())))?;
        let asks = || lab.pod("client")?.run(&["curl", "-sS", "--fail", "--max-time", "20", "http://server:8080/"]);
        asks()?;
        old.signal(Signal::SIGTERM);
        old.wait(LIMIT)?;
        ensure!(agent.processes().len() == 1 && !agent.processes().contains(&processes[0]));
        ensure!(lab.state().pins("b").exists(), "its end took the mesh away");
        asks()?;
        agent.wait_ready()
    };
    body().with_context(|| shared::logs(lab.state()))
}
