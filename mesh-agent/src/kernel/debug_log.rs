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

/// `65538 10.0.0.1 10.0.0.2 7`: a counter (0) with both ports (1, 2), client, server, namespace, as `report.rs` of the programs
/// tells it.
fn line(told: &str) -> Option<String> {
    let mut words = told.split(' ');
    let numbers: u64 = words.next()?.parse().ok()?;
    let (_, name) = Counter::ALL.get(usize::try_from(numbers >> 32).ok()?)?;
    let mut end = |port: u64| {
        let ip: IpAddr = words.next()?.parse().ok()?;
        Some(SocketAddr::new(ip.to_canonical(), port as u16))
    };
    let (client, server) = (end(numbers >> 16)?, end(numbers)?);
    let netns = words.next()?;
    Some(format!("{name} client={client} server={server} netns={netns}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_has_its_name() {
        let told = "80 :: ::ffff:192.0.2.80 7";
        assert_eq!(line(told).unwrap(), "outbound_captured client=[::]:0 server=192.0.2.80:80 netns=7");
        assert_eq!(
            line("65538 10.0.0.1 10.0.0.2 7").unwrap(),
            "outbound_captured client=10.0.0.1:1 server=10.0.0.2:2 netns=7"
        );
        assert_eq!(line(&format!("{} :: :: 7", 99_u64 << 32)), None);
        assert_eq!(line(""), None);
    }
}
