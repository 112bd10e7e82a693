//! Packet captures with tcpdump.
//!
//! In: a place, an interface, a filter. Out: a pcap file that surely holds everything sent before [`Capture::stop`]: a
//! last packet with a random mark is sent and waited for.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::network;
use crate::place::{Place, Process};
use crate::sys;

/// Port of the mark; nobody listens there (RFC 863).
const DISCARD_PORT: u16 = 9;
/// Longest that tcpdump takes to start or to see the mark.
const LIMIT: Duration = Duration::from_secs(10);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    place: Place,
    process: Process,
    file: PathBuf,
    mark: String,
}

impl Capture {
    pub(crate) fn start(place: Place, interface: &str, filter: &str, dir: &Path) -> Result<Self> {
        let mark = format!("mark-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let file = dir.join(format!("{mark}.pcap"));
        let filter = format!("({filter}) or udp port {DISCARD_PORT}");
        let path = file.display().to_string();
        // Root's own user, or tcpdump gives up root and may not write here.
        let argv = [
            "tcpdump",
            "-Z",
            "root",
            "-i",
            interface,
            "-n",
            "-U",
            "--immediate-mode",
            "-B",
            "16384",
            "-w",
            &path,
            &filter,
        ];
        let mut process = place.spawn(&argv, &file.with_extension("log"))?;
        process.wait_log(LIMIT, "tcpdump to start", |log| log.contains("listening on").then_some(()))?;
        Ok(Self { place, process, file, mark })
    }

    /// Ends the capture and gives its file, which goes with the lab.
    ///
    /// # Errors
    /// tcpdump lost the mark.
    pub fn stop(mut self) -> Result<PathBuf> {
        let mark = self.mark.clone();
        sys::wait_for(LIMIT, "the capture to catch up", || {
            self.place.within(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.send_to(mark.as_bytes(), (network::CONTROL.0, DISCARD_PORT))
            })??;
            Ok(contains(&std::fs::read(&self.file)?, self.mark.as_bytes()).then_some(()))
        })?;
        self.process.stop();
        Ok(self.file.clone())
    }
}

/// Whether `needle` occurs in `haystack`.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len().max(1)).any(|w| w == needle)
}

/// Runs tshark over a capture file and returns its output.
///
/// # Errors
/// tshark is missing or fails.
pub fn tshark(file: &Path, arguments: &[&str]) -> Result<String> {
    let output = std::process::Command::new("tshark").arg("-r").arg(file).args(arguments).output();
    let output = output.context("starting tshark (package tshark)")?;
    if !output.status.success() {
        anyhow::bail!("tshark on {}: {}", file.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
