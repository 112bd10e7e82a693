//! `deploy/vm/`: what it shows is understood by those for whom it is.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_agent::settings::Settings;
use mesh_tests::sys;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/vm")
}

#[test]
fn the_agent_understands_the_settings() -> Result<()> {
    let file = directory().join("agent.yaml");
    let run = Command::new(sys::binary("mesh-agent")?).args(["--check", "--config"]).arg(&file).output()?;
    ensure!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let settings = Settings::load(&file)?;
    let slice = settings.workloads[0].host().context("no cgroup")?.cgroup;
    let name = slice.file_name().context("no name")?.to_string_lossy().into_owned();
    ensure!(directory().join(&name).exists(), "there is no unit {name}");
    let drop_in = std::fs::read_to_string(directory().join("web.service.d/mesh.conf"))?;
    ensure!(drop_in.lines().any(|line| line == format!("Slice={name}")), "{drop_in}");
    // The entry is the node's, has the workload's names, and leads to its port.
    let entry = std::fs::read_to_string(directory().join("workload-entry.yaml"))?;
    let web = &settings.workloads[0];
    for wanted in [
        format!("mesh.io/node: {}", settings.node),
        format!("name: {}", web.name),
        format!("namespace: {}", web.namespace),
        format!("serviceAccount: {}", web.service_account),
        format!("targetPort: {}", web.ports[0]),
    ] {
        ensure!(entry.contains(&wanted), "workload-entry.yaml has no {wanted}");
    }
    Ok(())
}

/// As far as that can be told without a running systemd.
#[test]
fn systemd_understands_the_units() -> Result<()> {
    let made = tempfile::tempdir()?;
    let at = |name: &str| made.path().join(name);
    std::fs::create_dir(at("web.service.d"))?;
    std::fs::copy(directory().join("web.service.d/mesh.conf"), at("web.service.d/mesh.conf"))?;
    std::fs::copy(directory().join("web.slice"), at("web.slice"))?;
    std::fs::write(at("web.service"), "[Service]\nExecStart=/bin/true\n")?;
    let verified = Command::new("systemd-analyze").arg("verify").args([at("web.service"), at("web.slice")]).output();
    let verified = verified.context("systemd-analyze (package systemd)")?;
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    ensure!(verified.status.success() && said.is_empty(), "{said}");
    Ok(())
}
