//! `cargo xtask fuzz`: throws made-up bytes at every parser of what comes from outside, each for a while.
//!
//! In: targets of `fuzz/`, or all of them, and for how long. Out: how many inputs each has borne; or the input that one has not, which is
//! kept, with the command that tries it again. What was learnt about a target is kept too, for the next run. Needs a C++ compiler, and
//! neither nightly nor cargo-fuzz: what those add is for unsafe code, of which there is none here.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::cargo;
use crate::packages::{self, Use};

/// What LLVM is told: count which branches are taken, and with what they compare.
const FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// One input that takes longer is a finding, in seconds.
const TIMEOUT: &str = "-timeout=10";
/// One that needs more is a finding, in MiB.
const MEMORY: &str = "-rss_limit_mb=2048";

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub struct Options {
    /// Only these targets (names of files in `fuzz/fuzz_targets`).
    targets: Vec<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

/// Fuzzes, as many targets at once as there are cores.
pub fn run(options: &Options) -> Result<()> {
    packages::ensure(Use::Fuzz)?;
    let targets = targets(&options.targets)?;
    let built = build()?;
    let work = cargo::target()?.join("fuzz-work");
    let cores = thread::available_parallelism().map_or(1, usize::from);
    println!("{} targets, {} s each, {cores} at once", targets.len(), options.seconds);
    let (left, findings) = (Mutex::new(VecDeque::from(targets)), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let next = left.lock().ok().and_then(|mut left| left.pop_front());
                    let Some(target) = next else { return };
                    match one(&target, &built, &work, options.seconds) {
                        Ok(done) => println!("  {target:<20} {done}"),
                        Err(error) => {
                            println!("  {target:<20} FAILED: {error:#}");
                            findings.lock().map(|mut findings| findings.push(target)).unwrap_or_default();
                        }
                    }
                }
            });
        }
    });
    let findings = findings.into_inner().unwrap_or_default();
    ensure!(findings.is_empty(), "findings: {}", findings.join(", "));
    Ok(())
}

/// All targets, or those that were named.
fn targets(named: &[String]) -> Result<Vec<String>> {
    let dir = cargo::root().join("fuzz/fuzz_targets");
    let mut all = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if let (Some("rs"), Some(name)) = (path.extension().and_then(|e| e.to_str()), path.file_stem()) {
            all.push(name.to_string_lossy().into_owned());
        }
    }
    all.sort();
    if let Some(unknown) = named.iter().find(|name| !all.contains(name)) {
        bail!("no target {unknown}; there are: {}", all.join(", "));
    }
    Ok(if named.is_empty() { all } else { named.to_vec() })
}

/// Builds all targets; where they are.
fn build() -> Result<PathBuf> {
    println!("building (the first time takes some minutes)");
    let host = host()?;
    let dir = cargo::target()?.join("fuzz");
    let mut command = cargo::cargo(&["build", "--release", "--quiet", "--manifest-path", "fuzz/Cargo.toml"]);
    // With a target named, what runs while building is left alone.
    command.args(["--target", &host, "--target-dir"]).arg(&dir);
    command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    cargo::run(&mut command)?;
    Ok(dir.join(host).join("release"))
}

/// The machine's own target, as rustc names it.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").stderr(Stdio::inherit()).output().context("starting rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not say what it builds for")
}

/// Fuzzes one target; what it bore.
fn one(target: &str, built: &Path, work: &Path, seconds: u64) -> Result<String> {
    let (corpus, findings) = (work.join("corpus").join(target), work.join("findings").join(target));
    for dir in [&corpus, &findings] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let log = work.join(format!("{target}.log"));
    let program = built.join(target);
    let mut command = Command::new(&program);
    command.arg(&corpus).arg(format!("-max_total_time={seconds}")).args([TIMEOUT, MEMORY, "-print_final_stats=1"]);
    // With the separator, it is a folder.
    command.arg(format!("-artifact_prefix={}/", findings.display()));
    let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let status = command.status().with_context(|| format!("starting {}", program.display()))?;
    let text = fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    if !status.success() {
        let kept = text.lines().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path));
        let again = kept.map(|path| format!("; try it again: {} {path}", program.display())).unwrap_or_default();
        bail!("{status}, see {}{again}", log.display());
    }
    let inputs = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let inputs = inputs.context("it does not say how many inputs it tried")?.trim().to_owned();
    ensure!(inputs != "0", "it tried nothing, see {}", log.display());
    Ok(format!("{inputs} inputs"))
}
