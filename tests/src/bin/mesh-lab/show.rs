//! Prints a lab: its nodes and pods, its logs.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use mesh_tests::network;
use mesh_tests::state::State;

/// Nodes, pods and their addresses as a table.
pub fn topology(state: &State) -> String {
    let mut text = format!("lab {} · mesh {}\n", state.name, if state.mesh { "on" } else { "off" });
    let width = state.topology.pods.iter().map(|p| p.name.len()).max().unwrap_or(0);
    for (i, node) in state.topology.nodes.iter().enumerate() {
        let (v4, v6) = network::node_addresses(i);
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "node {node}  {v4}  {v6}");
        for pod in state.topology.pods.iter().filter(|p| p.node == *node) {
            let identity = match (state.mesh, pod.enrolled) {
                (true, true) => format!("spiffe://cluster.local/ns/{}/sa/{}", pod.namespace, pod.service_account),
                (true, false) => "not enrolled".to_owned(),
                (false, _) => String::new(),
            };
            let all: Vec<_> = pod.addresses.iter().chain(&pod.private_addresses).map(ToString::to_string).collect();
            let _ = writeln!(text, "  pod {:width$}  {}  {identity}", pod.name, all.join(" "));
        }
    }
    text
}

/// Prints one log, or all of a kind.
///
/// # Errors
/// No such kind, no such log.
pub fn logs(state: &State, what: Option<&str>, of: Option<&str>) -> Result<()> {
    let start = match what {
        None => String::new(),
        Some("control") => "control".to_owned(),
        Some(kind @ ("agent" | "access" | "pod")) => format!("{kind}-{}", of.unwrap_or_default()),
        Some(other) => bail!("no logs of `{other}`: say control, agent [NODE], access [NODE] or pod POD"),
    };
    let dir = state.dir().join("logs");
    let exact = dir.join(format!("{start}.log"));
    if exact.is_file() {
        return print(&exact);
    }
    let entries = std::fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&start)) && of.is_none());
    paths.sort();
    if paths.is_empty() {
        bail!("lab {} has no log `{start}`", state.name);
    }
    for path in paths {
        println!("==> {}", path.display());
        print(&path)?;
    }
    Ok(())
}

fn print(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    print!("{}", String::from_utf8_lossy(&bytes));
    Ok(())
}
