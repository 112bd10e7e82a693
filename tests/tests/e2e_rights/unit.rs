//! `deploy/mesh-agent.service`.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{agent_understands, file, names};

/// The value of a setting that stands once.
fn value<'a>(unit: &'a str, key: &str) -> Result<&'a str> {
    let mut all = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = all.next().with_context(|| format!("no {key}"))?;
    ensure!(all.next().is_none(), "{key} stands twice");
    Ok(value)
}

#[test]
fn the_unit_asks_for_what_the_lab_gives() -> Result<()> {
    let (_, unit) = file("deploy/mesh-agent.service")?;
    let held: BTreeSet<_> = value(&unit, "CapabilityBoundingSet")?.split(' ').map(str::to_owned).collect();
    assert_eq!(held, names());
    for (key, wanted) in [
        ("AmbientCapabilities", ""),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ReadWritePaths", "/sys/fs/bpf /sys/fs/cgroup"),
        ("RuntimeDirectory", "mesh-agent"),
        ("LimitMEMLOCK", "infinity"),
        ("Delegate", "yes"),
    ] {
        assert_eq!(value(&unit, key)?, wanted, "{key}");
    }
    let command: Vec<_> = value(&unit, "ExecStart")?.split(' ').skip(1).map(str::to_owned).collect();
    agent_understands(&command)
}

/// systemd's own eyes; it asks that the program be there, so one that is stands in its place.
#[test]
fn systemd_understands_the_unit() -> Result<()> {
    let (_, unit) = file("deploy/mesh-agent.service")?;
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("mesh-agent.service");
    std::fs::write(&copy, unit.replace("/usr/bin/mesh-agent", "/bin/true"))?;
    let verified = Command::new("systemd-analyze").arg("verify").arg(&copy).output();
    let verified = verified.context("systemd-analyze (package systemd)")?;
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    ensure!(verified.status.success() && said.is_empty(), "{said}");
    Ok(())
}
