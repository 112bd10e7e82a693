//! Names and times the phases of a long command.
//!
//! In: closures. Out: a line when a phase starts, one when it ends, a summary of all.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The phases so far.
pub struct Steps {
    start: Instant,
    done: Vec<(String, Duration)>,
}

impl Steps {
    /// No phases yet.
    pub fn new() -> Self {
        Self { start: Instant::now(), done: Vec::new() }
    }

    /// Runs one phase.
    pub fn run<T>(&mut self, name: &str, phase: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("==> {name}");
        let start = Instant::now();
        let result = phase().with_context(|| name.to_owned());
        let took = start.elapsed();
        println!("==> {name}: {} in {:.1} s", if result.is_ok() { "ok" } else { "FAILED" }, took.as_secs_f32());
        self.done.push((name.to_owned(), took));
        result
    }

    /// One line with all times.
    pub fn summary(&self) {
        let phases: Vec<_> =
            self.done.iter().map(|(name, took)| format!("{name} {:.0} s", took.as_secs_f32())).collect();
        println!("==> {} · together {:.0} s", phases.join(" · "), self.start.elapsed().as_secs_f32());
    }
}
