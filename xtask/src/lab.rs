//! `cargo xtask lab`: builds what a lab needs, then hands over to `mesh-lab`, which does the work.
//!
//! In: `up`, `exec`, `pods`, `logs`, `apply`, `down` and their options. Out: `mesh-lab`'s status.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo;
use crate::packages::{self, Use};

/// Runs a lab command. Only `up` builds: the others shall be quick.
pub fn run(arguments: &[String]) -> Result<()> {
    let program = cargo::target()?.join("debug/mesh-lab");
    let up = arguments.first().is_some_and(|a| a == "up");
    if up {
        packages::ensure(Use::Lab)?;
    }
    if up || !program.is_file() {
        let off = arguments.windows(2).any(|w| w[0] == "--mesh" && w[1] == "off");
        cargo::build_programs(false, up && !off && !arguments.iter().any(|a| a == "--mesh=off"))?;
    }
    // Replaces this process; comes back only when that fails.
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}
