//! The lab itself, by its command line and with the mesh off: it works from several processes, and leaves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::sys::{self, wait_for};
use mesh_tests::{lab, state};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest that a lab takes to go.
const GONE: Duration = Duration::from_secs(20);

fn name(of: &str) -> String {
    let prefix = std::env::var(lab::PREFIX_VARIABLE).unwrap_or_else(|_| "t".to_owned());
    format!("{prefix}-{of}-{}", std::process::id())
}

fn command(arguments: &[&str]) -> Result<Command> {
    sys::require_root()?;
    let mut command = Command::new(sys::binary("mesh-lab")?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

fn run(arguments: &[&str]) -> Result<Output> {
    command(arguments)?.output().context("running mesh-lab")
}

fn said(arguments: &[&str]) -> Result<String> {
    let output = run(arguments)?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What of a lab is still there.
fn traces(name: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for path in [Path::new(state::ROOT).join(name), state::cgroup(name)?] {
        left.extend(path.exists().then(|| path.display().to_string()));
    }
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let netns = entry.file_name().to_string_lossy().into_owned();
        left.extend(netns.starts_with(&format!("ml.{name}.")).then_some(netns));
    }
    Ok(left)
}

fn wait_gone(name: &str) -> Result<()> {
    let gone = || Ok(traces(name)?.is_empty().then_some(()));
    wait_for(GONE, &format!("lab {name} to go"), gone).with_context(|| format!("left: {:?}", traces(name)))
}

/// Starts a lab that never gets ready, and waits until its pods stand.
fn endless(name: &str, dir: &Path) -> Result<Child> {
    let file = dir.join("endless.yaml");
    std::fs::write(&file, "nodes: [a]\npods:\n- {name: x, node: a, command: [sleep, '1000'], ports: [1]}\n")?;
    let child =
        command(&["up", "--mesh", "off", "--name", name, "--topology", &file.display().to_string()])?.spawn()?;
    let log = Path::new(state::ROOT).join(name).join("logs/pod-x.log");
    wait_for(GONE, "the pod's command to start", || Ok(log.exists().then_some(())))?;
    Ok(child)
}

#[test]
fn a_lab_is_used_from_other_processes_until_it_is_taken_down() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let name = name("many");
    let topology = dir.path().join("topology.yaml");
    let pods = "name: ignored\nnodes: [left, right]\npods:\n- {name: shop, namespace: mall, node: left}\n\
                - {name: till, namespace: mall, node: right, command: [mesh-lab-app, http-echo, --port, '7070'], ports: [7070]}\n";
    std::fs::write(&topology, pods)?;
    let objects = dir.path().join("objects");
    std::fs::create_dir(&objects)?;
    let service = |name: &str| {
        format!(
            "kind: Service\nmetadata: {{name: {name}, namespace: mall}}\nspec: {{selector: {{app: till}}, ports: [{{port: 7070}}]}}\n"
        )
    };
    std::fs::write(objects.join("s.yaml"), service("cashier"))?;
    let (file, config) = (topology.display().to_string(), objects.display().to_string());
    said(&["up", "--mesh", "off", "--name", &name, "--topology", &file, "--config", &config])?;

    let pods = said(&["pods", "--name", &name])?;
    ensure!(pods.contains("node right") && pods.contains("pod till"), "{pods}");
    let ask =
        |host: &str| run(&["exec", "--name", &name, "shop", "--", "curl", "-sS", &format!("http://{host}:7070/")]);
    for host in ["cashier", "cashier.mall", "cashier.mall.svc", "cashier.mall.svc.cluster.local"] {
        let answer = ask(host)?;
        ensure!(String::from_utf8_lossy(&answer.stdout).contains("\"pod\":\"till\""), "{host}: {answer:?}");
    }
    ensure!(ask("desk")?.status.code() == Some(6), "curl's status for a name that is not there");
    std::fs::write(objects.join("s.yaml"), service("desk"))?;
    said(&["apply", "--name", &name, "--config", &config])?;
    ensure!(ask("desk")?.status.success() && ask("cashier")?.status.code() == Some(6), "names after apply");
    ensure!(run(&["exec", "--name", &name, "shop", "--", "sh", "-c", "exit 42"])?.status.code() == Some(42));
    ensure!(said(&["logs", "--name", &name, "pod", "till"])?.is_empty());

    let again = run(&["up", "--mesh", "off", "--name", &name, "--topology", &file])?;
    ensure!(String::from_utf8_lossy(&again.stderr).contains("stands already"), "{again:?}");
    said(&["down", "--name", &name])?;
    ensure!(traces(&name)?.is_empty(), "{:?}", traces(&name));
    let missing = run(&["exec", "--name", &name, "shop", "--", "true"])?;
    ensure!(String::from_utf8_lossy(&missing.stderr).contains("no lab"), "{missing:?}");
    Ok(())
}

#[test]
fn a_lab_goes_when_its_owner_is_killed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let name = name("killed");
    let mut owner = endless(&name, dir.path())?;
    ensure!(!traces(&name)?.is_empty());
    owner.kill()?;
    owner.wait()?;
    wait_gone(&name)
}

#[test]
fn a_lab_goes_on_ctrl_c() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let name = name("stopped");
    let mut owner = endless(&name, dir.path())?;
    kill(Pid::from_raw(i32::try_from(owner.id())?), Signal::SIGINT)?;
    let status = owner.wait()?;
    ensure!(status.code() == Some(130), "{status}");
    wait_gone(&name)
}

#[test]
fn a_lab_that_does_not_come_up_says_why_and_goes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("bad.yaml");
    let name = name("bad");
    std::fs::write(&file, "nodes: [a]\npods:\n- {name: x, node: a, command: [no-such-program], ports: [1]}\n")?;
    let output = run(&["up", "--mesh", "off", "--name", &name, "--topology", &file.display().to_string()])?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && words.contains("pod x") && words.contains("no-such-program"), "{words}");
    ensure!(traces(&name)?.is_empty(), "{:?}", traces(&name));
    std::fs::write(&file, "nodes: [a]\npods:\n- name: x\n  node: b\n")?;
    let output = run(&["up", "--topology", &file.display().to_string()])?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(words.contains("bad.yaml:4: pods[0].node: no node `b`"), "{words}");
    Ok(())
}
