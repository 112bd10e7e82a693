//! Looks whether the tests' labs have gone.
//!
//! In: the prefix of their names. Out: success, or what is still there. A janitor may still be at work, so it waits.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long janitors get.
const LIMIT: Duration = Duration::from_secs(30);

/// Prefix of the names of this run's labs: other runs on this machine are not ours to judge.
pub fn prefix() -> String {
    format!("t{}", std::process::id())
}

/// Waits until no directory, namespace, cgroup or pin of this run is left.
pub fn check() -> Result<()> {
    let start = Instant::now();
    loop {
        let left = left();
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            bail!("the tests have left these behind: {}", left.join(", "));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn left() -> Vec<String> {
    let prefix = prefix();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroup =
        mounts.lines().find(|l| l.contains(" - cgroup2 ")).and_then(|l| l.split(' ').nth(4)).unwrap_or("/nowhere");
    let places = [
        ("/run/mesh-lab", format!("{prefix}-")),
        ("/run/netns", format!("ml.{prefix}-")),
        (cgroup, format!("mesh-lab.{prefix}-")),
        ("/sys/fs/bpf/mesh-lab", format!("{prefix}-")),
    ];
    let mut found = Vec::new();
    for (directory, start) in places {
        for entry in std::fs::read_dir(Path::new(directory)).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&start) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}
