//! Missing files, rights and kernel parts: one clear line that says what to do.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::sys::{self, wait_for};

/// Settings that would do, if their files were there.
const GOOD: &str = "node: n\ncontrolPlane: {address: 'http://127.0.0.1:9'}\n";

/// Runs a program of ours that must end by itself, badly, and returns what it said.
fn refused(argv: &[&str]) -> Result<String> {
    let mut command = Command::new(argv[0]);
    command
        .args(&argv[1..])
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {argv:?}"))?;
    let ended = wait_for(Duration::from_secs(20), &format!("{argv:?} to give up"), || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ended.with_context(|| said.clone())?;
    ensure!(!output.status.success(), "{argv:?} did not mind: {said}");
    ensure!(!said.contains("panicked"), "{said}");
    Ok(said)
}

fn agent(dir: &Path, settings: &str) -> Result<String> {
    let file = dir.join("agent.yaml");
    std::fs::write(&file, settings)?;
    refused(&[&sys::binary("mesh-agent")?.display().to_string(), "--config", &file.display().to_string()])
}

#[test]
fn the_agent_says_what_is_missing_and_what_to_do() -> Result<()> {
    sys::require_root()?;
    sys::ensure_bpffs()?;
    let dir = tempfile::tempdir()?;
    let program = sys::binary("mesh-agent")?.display().to_string();

    let said = refused(&[&program, "--config", "/nowhere/agent.yaml"])?;
    ensure!(said.contains("/nowhere/agent.yaml"), "no settings file: {said}");

    let said = agent(dir.path(), "node: n\ncontrolPlane: {address: 'http://127.0.0.1:9'}\nnodes: 3\n")?;
    ensure!(said.contains("agent.yaml:3") && said.contains("nodes"), "an unknown field: {said}");

    let said = agent(dir.path(), "node: [\n")?;
    ensure!(said.contains("agent.yaml:"), "malformed YAML: {said}");

    let said = agent(dir.path(), &format!("{GOOD}kernel: {{object: /nowhere/mesh-ebpf.o}}\n"))?;
    ensure!(said.contains("/nowhere/mesh-ebpf.o"), "no kernel object: {said}");

    let said = agent(dir.path(), &format!("{GOOD}kernel: {{pinPath: {}/pins}}\n", dir.path().display()))?;
    ensure!(said.contains("mount -t bpf"), "pins outside a BPF file system: {said}");

    let said = agent(dir.path(), &format!("{GOOD}kernel: {{cgroup: {}}}\n", dir.path().display()))?;
    ensure!(said.contains("cgroup"), "no cgroup v2 directory: {said}");

    // The directory must be enterable for somebody without rights.
    std::fs::write(dir.path().join("agent.yaml"), GOOD)?;
    let open = |path: &Path, mode| std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode));
    open(dir.path(), 0o755)?;
    open(&dir.path().join("agent.yaml"), 0o644)?;
    let copy = dir.path().join("mesh-agent");
    // By another process: a descriptor of ours, open for writing, would be inherited by what other tests start meanwhile,
    // and the kernel runs no file that somebody writes.
    ensure!(Command::new("cp").arg(&program).arg(&copy).status()?.success());
    let settings = dir.path().join("agent.yaml").display().to_string();
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        &copy.display().to_string(),
        "--config",
        &settings,
    ];
    let said = refused(&nobody)?;
    ensure!(said.contains("root"), "no root: {said}");
    Ok(())
}

#[test]
fn the_control_plane_says_what_is_wrong_with_its_settings() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = sys::binary("mesh-control")?.display().to_string();
    let said = refused(&[&program, "--config", "/nowhere/control.yaml"])?;
    ensure!(said.contains("/nowhere/control.yaml"), "no settings file: {said}");
    let file = dir.path().join("control.yaml");
    std::fs::write(&file, "configDir: /nowhere\ncaDir: /nowhere\ncertTTL: 3\n")?;
    let said = refused(&[&program, "--config", &file.display().to_string()])?;
    ensure!(said.contains("control.yaml:3") && said.contains("certTTL"), "an unknown field: {said}");
    Ok(())
}
