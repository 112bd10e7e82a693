//! Limits: long bodies in little memory, workloads that take all they can get beside one that goes on, agents with nothing to do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bodies;
mod budgets;
mod idle;

use anyhow::{Context, Result};
use mesh_tests::Lab;
use serde_json::Value;

/// The last line that a client printed, as JSON.
pub fn said(log: &str) -> Result<Value> {
    serde_json::from_str(log.lines().last().unwrap_or_default()).with_context(|| log.to_owned())
}

/// Memory of an agent, in bytes: a field of proc_pid_status(5).
pub fn memory(lab: &Lab, node: &str, field: &str) -> Result<u64> {
    let processes = lab.node(node)?.agent().processes();
    let [pid] = processes[..] else { anyhow::bail!("agent {node}: one process expected: {processes:?}") };
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value = value.with_context(|| format!("no {field}"))?;
    let kibibytes: u64 = value.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes << 10)
}
