//! One lab for all tests of a test program.
//!
//! In: how to build it. Out: the lab, built once, whoever asks first. It goes with the test program: its janitor sees to
//! that, since values of a program's whole life are never dropped.

use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};

use crate::Lab;
use crate::state::State;
use crate::sys;

/// Lines of each log that a failed test shows.
const SHOWN: usize = 8;

/// A lab that tests share; make it a `static`.
pub struct Shared {
    build: fn() -> Result<Lab>,
    lab: OnceLock<Result<Lab, String>>,
}

impl Shared {
    /// A lab that `build` brings up when first asked for.
    pub const fn new(build: fn() -> Result<Lab>) -> Self {
        Self { build, lab: OnceLock::new() }
    }

    /// The lab.
    ///
    /// # Errors
    /// It could not be brought up, now or for an earlier test.
    pub fn lab(&self) -> Result<&Lab> {
        let lab = self.lab.get_or_init(|| (self.build)().map_err(|e| format!("{e:#}")));
        lab.as_ref().map_err(|e| anyhow!("the lab does not stand: {e}"))
    }

    /// Runs a test on the lab; when it fails, the error carries the ends of the logs.
    ///
    /// # Errors
    /// The test's.
    pub fn test(&self, test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
        let lab = self.lab()?;
        test(lab).with_context(|| logs(lab.state()))
    }
}

/// The ends of the control plane's and the agents' logs.
pub fn logs(state: &State) -> String {
    let mut names = vec!["control".to_owned()];
    for node in &state.topology.nodes {
        names.extend([format!("agent-{node}"), format!("access-{node}")]);
    }
    let show = |name: &String| format!("---- {name}\n{}\n", sys::tail(&state.log(name), SHOWN));
    names.iter().map(show).collect::<String>() + "----"
}
