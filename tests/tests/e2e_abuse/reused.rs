//! A workload given by its pid ends, and the kernel gives the pid to somebody else.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::sys::{self, wait_for};

const LIMIT: Duration = Duration::from_secs(20);

/// A process that is killed at the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process in a network namespace of its own, with an address.
fn pod() -> Result<Killed> {
    let script = "ip link add eth0 type veth peer name eth1 && ip addr add 10.78.0.2/24 dev eth0 && ip link set eth0 up \
                  && exec sleep 1000";
    let child = Command::new("unshare").args(["-n", "sh", "-c", script]).stdin(Stdio::null()).spawn();
    Ok(Killed(child.context("unshare, of util-linux")?))
}

/// Another one, with the pid of one that has ended.
fn pod_with(pid: u32) -> Result<Killed> {
    for _ in 0..1000 {
        // The next one gets the number after this, unless another program is faster.
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())?;
        let pod = pod()?;
        if pod.0.id() == pid {
            return Ok(pod);
        }
    }
    bail!("the kernel does not give the pid {pid} again")
}

fn agent(dir: &Path, log: &Path) -> Result<Killed> {
    let mut command = Command::new(sys::binary("mesh-agent")?);
    command.arg("--config").arg(dir.join("agent.yaml")).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    let log = File::create(log)?;
    Ok(Killed(command.stdout(log.try_clone()?).stderr(log).spawn()?))
}

fn says(log: &Path, text: &str) -> bool {
    read(log).contains(text)
}

/// Waits until an agent's log says something.
fn until(log: &Path, text: &str) -> Result<()> {
    wait_for(LIMIT, &format!("the agent to say \"{text}\""), || Ok(says(log, text).then_some(())))
        .with_context(|| read(log))
}

/// Removes what the killed agents leave, also when the test fails.
struct Pins(PathBuf, PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Ok(agent) = sys::binary("mesh-agent") {
            let _ = Command::new(agent).arg("detach").arg("--config").arg(&self.1).output();
        }
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn another_process_with_the_workloads_pid_is_never_enrolled() -> Result<()> {
    sys::require_root()?;
    sys::ensure_bpffs()?;
    let dir = tempfile::tempdir()?;
    let pins = Path::new("/sys/fs/bpf").join(format!("mesh-lab-reused-{}", std::process::id()));
    let settings = |pid: u32| {
        let (here, pins) = (dir.path().display(), pins.display());
        let text = format!(
            "node: n\ncontrolPlane: {{address: 'http://127.0.0.1:9'}}\nnodeSocket: {here}/node.sock\n\
             kernel: {{pinPath: {pins}}}\nlisten: {{admin: '127.0.0.1:0', metrics: '127.0.0.1:0', ready: '127.0.0.1:0'}}\n\
             workloads: [{{name: a, namespace: default, pid: {pid}}}]\n"
        );
        fs::write(dir.path().join("agent.yaml"), text)
    };
    let _pins = Pins(pins.clone(), dir.path().join("agent.yaml"));
    let first = pod()?;
    let pid = first.0.id();
    settings(pid)?;
    let log = dir.path().join("first.log");
    let running = agent(dir.path(), &log)?;
    until(&log, "enrolled")?;
    // The agent dies, the workload ends, and somebody else gets its pid.
    drop(running);
    drop(first);
    let other = pod_with(pid)?;
    let log = dir.path().join("second.log");
    let running = agent(dir.path(), &log)?;
    let told = format!("process {pid} is another one than the workload's");
    until(&log, &told)?;
    ensure!(says(&log, "as netns") && says(&log, "default/a"), "what to do: {}", read(&log));
    // What was in force for the old namespace goes with it, and nothing takes its place.
    until(&log, "removed what an earlier agent left")?;
    let pods: Vec<_> =
        fs::read_dir(&pins)?.flatten().filter_map(|v| fs::read_dir(v.path().join("pods")).ok()).collect();
    ensure!(pods.len() == 1 && pods.into_iter().all(|pods| pods.count() == 0), "{}", read(&log));
    ensure!(!says(&log, "enrolled"), "{}", read(&log));
    drop(running);
    // With the pid of another process it is another workload: that is the operator's word.
    let named = pod()?;
    settings(named.0.id())?;
    let log = dir.path().join("third.log");
    let running = agent(dir.path(), &log)?;
    until(&log, "enrolled")?;
    drop((running, other, named));
    Ok(())
}

fn read(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}
