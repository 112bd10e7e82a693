//! The log of a debugging build of the programs (`cargo xtask build-ebpf --debug-log`), which tells of every decision. In:
//! records in aya-log's form. Out: one line for each decision, with its name. Other builds have no such map, and nothing
//! here runs for them.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use aya::Ebpf;
use aya_log::EbpfLogger;
use mesh_common::abi::Counter;

/// Name of aya-log's map in the object.
pub(super) const MAP: &str = "AYA_LOGS";
/// Lines taken at a time; what comes faster is left out.
const MAX_LINES: usize = 4096;

/// What the programs tell.
pub struct DebugLog {
    reader: EbpfLogger<Lines>,
    lines: Lines,
}

impl DebugLog {
    /// Nothing if the object was built without.
    pub(super) fn of(object: &mut Ebpf) -> Option<DebugLog> {
        object.map(MAP)?;
        let lines = Lines::default();
        let reader = EbpfLogger::init_with_logger(object, lines.clone());
        let reader = reader.inspect_err(|error| tracing::warn!(%error, "the programs' log cannot be read")).ok()?;
        Some(DebugLog { reader, lines })
    }

    /// What was told since the last time. Never waits.
    pub fn lines(&mut self) -> Vec<String> {
        self.reader.flush();
        std::mem::take(&mut *self.lines.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Takes aya-log's records.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < MAX_LINES {
            let told = record.args().to_string();
            lines.push(line(&told).unwrap_or(told));
        }
    }

    fn flush(&self) {}
}

/// A counter's number and the bytes of a [`Tuple`](mesh_common::abi::Tuple), as `report.rs` of the programs tells them.
fn line(told: &str) -> Option<String> {
    let (number, hex) = told.split_once(' ')?;
    let (_, name) = Counter::ALL.get(number.parse::<usize>().ok()?)?;
    let mut rest = hex;
    let mut byte = || {
        let (byte, behind) = rest.split_at_checked(2)?;
        rest = behind;
        u8::from_str_radix(byte, 16).ok()
    };
    let mut netns = [0; 8];
    for place in &mut netns {
        *place = byte()?;
    }
    let mut end = || {
        let (mut ip, mut port) = ([0; 16], [0; 4]);
        for place in ip.iter_mut().chain(&mut port) {
            *place = byte()?;
        }
        Some(SocketAddr::new(IpAddr::from(ip).to_canonical(), u32::from_ne_bytes(port) as u16))
    };
    let (client, server) = (end()?, end()?);
    Some(format!("{name} client={client} server={server} netns={}", u64::from_ne_bytes(netns)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_has_its_name() {
        let zero = "0".repeat(40);
        let netns = "0700000000000000";
        let told = format!("0 {netns}{zero}00000000000000000000ffffc000025050000000");
        assert_eq!(line(&told).unwrap(), "outbound_captured client=[::]:0 server=192.0.2.80:80 netns=7");
        assert_eq!(line(&format!("999 {netns}{zero}{zero}")), None);
        assert_eq!(line(&format!("0 {netns}{zero}")), None);
        assert_eq!(line(""), None);
    }
}
