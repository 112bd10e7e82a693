//! The agent's rights: the lab's agents have those that the agent lists and no others, each of them is needed, and
//! `deploy/` asks for the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod daemonset;
mod exact;
mod needed;
mod unit;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mesh_agent::kernel::capabilities::CAPABILITIES;
use mesh_tests::sys;

/// A file of the repository.
fn file(path: &str) -> Result<(PathBuf, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok((path, text))
}

/// The names of what the agent needs.
fn names() -> BTreeSet<String> {
    CAPABILITIES.iter().map(|c| c.name.to_owned()).collect()
}

/// Fails unless the agent understands this command line, whose settings file is replaced by one that is there.
fn agent_understands(arguments: &[String]) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let settings = directory.path().join("agent.yaml");
    std::fs::write(&settings, "node: n\ncontrolPlane: {address: 'http://127.0.0.1:9'}\n")?;
    let at = arguments.iter().position(|a| a == "/etc/mesh/agent.yaml").context("no /etc/mesh/agent.yaml")?;
    let mut arguments = arguments.to_owned();
    arguments[at] = settings.display().to_string();
    let output = std::process::Command::new(sys::binary("mesh-agent")?).args(&arguments).arg("--check").output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn the_document_has_a_row_for_each() -> Result<()> {
    let (_, text) = file("docs/security.md")?;
    let rows: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `CAP_")?.split_once('`').map(|(name, _)| format!("CAP_{name}")))
        .collect();
    assert_eq!(rows, names());
    Ok(())
}
