//! Builds the test programs and runs them, several at a time.
//!
//! In: how many at once, a filter. Out: every test's line, and the whole output of what fails.

use std::collections::VecDeque;
use std::fmt;
use std::ops::AddAssign;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{Part, leftovers};
use crate::cargo;

/// A test program.
#[derive(Clone)]
pub struct Program {
    name: String,
    package: String,
    directory: PathBuf,
    executable: PathBuf,
}

impl Program {
    /// Its file.
    pub fn into_executable(self) -> PathBuf {
        self.executable
    }

    /// Which part of the tests it belongs to: by its name, as files of `tests/tests` are named after what they test.
    pub fn part(&self) -> Part {
        match self.name.as_str() {
            name if name.starts_with("bpf") => Part::Kernel,
            name if name.starts_with("e2e") => Part::E2e,
            _ => Part::Unit,
        }
    }
}

/// How many tests there were.
#[derive(Default, Clone, Copy)]
pub struct Tally {
    /// That passed.
    pub passed: usize,
    /// That were left out by the filter.
    pub filtered: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.filtered += other.filtered;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tests passed", self.passed)?;
        if self.filtered > 0 { write!(f, ", {} filtered out", self.filtered) } else { Ok(()) }
    }
}

/// One line of `cargo build --message-format=json`, as far as we care.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds every program and every test of the workspace.
pub fn build() -> Result<Vec<Program>> {
    build_of(&["--workspace", "--bins", "--tests"])
}

/// Builds what these arguments of cargo choose, and returns the tests among it.
pub fn build_of(choice: &[&str]) -> Result<Vec<Program>> {
    let mut command = cargo::cargo(&["build", "--message-format=json-render-diagnostics"]);
    command.args(choice);
    let output = command.stderr(Stdio::inherit()).output().context("starting cargo build")?;
    if !output.status.success() {
        bail!("`{}`: {}", cargo::line(&command), output.status);
    }
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Message>(line) else { continue };
        let (Some(executable), Some(manifest), Some(target), Some(profile)) =
            (message.executable, message.manifest_path, message.target, message.profile)
        else {
            continue;
        };
        let directory = manifest.parent().map(PathBuf::from).unwrap_or_default();
        if profile.test {
            let package = directory.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            programs.push(Program { name: target.name, package, directory, executable });
        }
    }
    programs.sort_by(|a, b| (&a.package, &a.name).cmp(&(&b.package, &b.name)));
    Ok(programs)
}

/// Runs programs, at most `at_once` at a time; all run, also when one fails.
pub fn run_all(programs: &[Program], at_once: usize, filter: Option<&str>) -> Result<Tally> {
    let queue = Mutex::new(programs.iter().collect::<VecDeque<_>>());
    let result = Mutex::new((Tally::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(program) = next else { return };
                    let outcome = run(program, filter);
                    let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
                    match outcome {
                        Ok(tally) => result.0 += tally,
                        Err(e) => result.1.push(format!("{e:#}")),
                    }
                }
            });
        }
    });
    let (tally, failures) = result.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(tally)
}

fn run(program: &Program, filter: Option<&str>) -> Result<Tally> {
    let start = Instant::now();
    let name = format!("{}/{}", program.package, program.name);
    let mut command = Command::new(&program.executable);
    command.args(filter).current_dir(&program.directory).stdin(Stdio::null());
    command.env("CARGO_MANIFEST_DIR", &program.directory).env("MESH_LAB_PREFIX", leftovers::prefix());
    // Errors carry the logs of the lab; a backtrace through the test harness says nothing beside them.
    command.env("RUST_LIB_BACKTRACE", "0");
    let output = command.output().with_context(|| format!("starting {}", program.executable.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut tally = Tally::default();
    let mut report = String::new();
    for line in text.lines() {
        if let Some(test) = line.strip_prefix("test ").filter(|l| l.contains(" ... ")) {
            report += &format!("  {name}: {test}\n");
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            tally.passed += count(counts, " passed");
            tally.filtered += count(counts, " filtered out");
        }
    }
    if !output.status.success() {
        println!("{report}---- {name}\n{text}\n{}----", String::from_utf8_lossy(&output.stderr));
        bail!("{name}: {}", output.status);
    }
    if tally.passed > 0 {
        println!("{report}  {name}: {} passed in {:.1} s", tally.passed, start.elapsed().as_secs_f32());
    }
    Ok(tally)
}

/// The number before a word in libtest's summary.
fn count(summary: &str, word: &str) -> usize {
    let before = summary.split(word).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn reads_libtests_summary() {
        let line = "ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.00s";
        assert_eq!((count(line, " passed"), count(line, " filtered out")), (12, 3));
    }
}
