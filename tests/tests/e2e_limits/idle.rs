//! An agent that has started and has nothing to do keeps little memory.

use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::sys::wait_for;
use mesh_tests::topology::PodSpec;
use mesh_tests::{LabBuilder, Topology, shared};

use crate::memory;

/// Bytes of its own that it has at most. Starting takes twice as many.
const IDLE: u64 = 16 << 20;
/// Longest until then.
const LIMIT: Duration = Duration::from_secs(40);

#[test]
fn what_starting_took_is_given_back() -> Result<()> {
    let lab = LabBuilder::for_test("idle", Topology::of_nodes(&["a"]).pod(PodSpec::new("x", "a"))).up()?;
    let little = || Ok((memory(&lab, "a", "RssAnon")? <= IDLE).then_some(()));
    wait_for(LIMIT, &format!("the agent to have at most {IDLE} bytes"), little)
        .with_context(|| format!("{:?}; {}", memory(&lab, "a", "RssAnon"), shared::logs(lab.state())))
}
