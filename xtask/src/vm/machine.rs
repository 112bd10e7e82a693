//! One machine: boots a kernel under qemu and reads its console. In: a kernel, an initramfs. Out: what `mesh-vm-init` and
//! the tests said. No network, no disk; ended when its time is over.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::kernel::Kernel;

/// Longest that a machine may run. Emulated, everything takes some ten times as long as on the processor itself.
const LIMIT: Duration = Duration::from_secs(60 * 60);
/// Memory of the machine, MiB.
const MEMORY: &str = "1024";

/// What a kernel did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Name and version of the package, or what else tells the kernel apart.
    pub package: String,
    /// As the kernel itself says.
    pub release: String,
    /// Tests that passed.
    pub passed: Vec<String>,
    /// Tests that failed.
    pub failed: Vec<String>,
    /// Steps of the plan that did not end well, and what `mesh-vm-init` complained of.
    pub trouble: Vec<String>,
    /// Lines of `mesh-agent probe`.
    pub probe: Vec<String>,
    /// Whether the machine came to the end of its plan.
    pub finished: bool,
    /// Seconds from start to power off.
    pub seconds: u64,
}

impl Outcome {
    /// Whether everything held.
    pub fn good(&self) -> bool {
        self.finished && self.failed.is_empty() && self.trouble.is_empty() && !self.passed.is_empty()
    }

    /// Takes note of one line of the console.
    fn read(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(said) = line.strip_prefix("vm: ") {
            match said.split_once(": ") {
                Some(("kernel", release)) => self.release = release.to_owned(),
                Some((_, "ok")) => {}
                None if said == "off" => self.finished = true,
                _ => self.trouble.push(said.to_owned()),
            }
        } else if let Some((name, result)) = line.strip_prefix("test ").and_then(|l| l.split_once(" ... ")) {
            // What a test prints may stand between its name and its result.
            if result.ends_with("ok") {
                self.passed.push(name.to_owned());
            } else {
                self.failed.push(name.to_owned());
            }
        } else if line.starts_with('|') {
            self.probe.push(line.to_owned());
        }
    }
}

/// Boots, waits for the end, returns what was said; the whole console is kept in `place`.
pub fn run(kernel: &Kernel, initramfs: &Path, place: &Path) -> Result<Outcome> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", MEMORY])
        .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = Machine(qemu.spawn().context("starting qemu-system-x86_64")?);
    let console = child.0.stdout.take().context("the machine has no console")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(std::result::Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let log = place.join(format!("{}.log", kernel.release));
    let mut log = std::fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let mut outcome = Outcome { package: kernel.package.clone(), ..Outcome::default() };
    loop {
        match lines.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
            Ok(line) => {
                writeln!(log, "{}", line.trim_end()).context("writing the log")?;
                if line.starts_with("test ") || line.starts_with("vm: ") {
                    println!("  {}: {}", kernel.release, line.trim_end());
                }
                outcome.read(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                outcome.trouble.push(format!("not done after {} s", LIMIT.as_secs()));
                break;
            }
        }
    }
    outcome.seconds = start.elapsed().as_secs();
    Ok(outcome)
}

/// Ends the machine with this value.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_console() {
        let mut outcome = Outcome::default();
        for line in [
            "vm: kernel: 6.1.0\r",
            "test a::b ... ok\r",
            "test c ... said something ok",
            "test d ... FAILED",
            "| hook | here |",
            "|---|---|",
            "| tcx | no |",
            "vm: probe: ok",
            "vm: tests: exit status: 101",
            "vm: off",
        ] {
            outcome.read(line);
        }
        assert_eq!((outcome.release.as_str(), outcome.finished), ("6.1.0", true));
        assert_eq!(outcome.passed, ["a::b", "c"]);
        assert_eq!(outcome.failed, ["d"]);
        assert_eq!(outcome.probe, ["| hook | here |", "|---|---|", "| tcx | no |"]);
        assert_eq!(outcome.trouble, ["tests: exit status: 101"]);
        assert!(!outcome.good());
    }
}
