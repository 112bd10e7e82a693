//! Ctrl-C and SIGTERM while a lab is being made: take it down, then go.

use anyhow::{Context, Result};
use mesh_tests::state;
use nix::sys::signal::{SigSet, Signal};

/// From now on SIGINT, SIGTERM and SIGHUP take the labs down and end the process with 128 + the signal's number. Programs
/// that we start in a place are not affected: they begin with an empty mask.
///
/// # Errors
/// The kernel refuses the signal mask.
pub fn take_down(names: &[&str]) -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    // Before any other thread exists, so that all inherit it.
    signals.thread_block().context("blocking signals")?;
    let names: Vec<_> = names.iter().map(|&n| n.to_owned()).collect();
    std::thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        for name in names {
            eprintln!("{signal}: taking lab {name} down");
            if let Err(e) = state::teardown(&name) {
                eprintln!("{e:#}");
            }
        }
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}
