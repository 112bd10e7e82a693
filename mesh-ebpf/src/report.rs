//! Counting and reporting. In: what happened. Out: METRICS and EVENTS. Nothing here changes what happens to a
//! connection.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mesh_common::abi::{Counter, Event, Tuple};

use crate::maps::{EVENTS, METRICS};

/// Counts.
#[inline(always)]
pub fn count(counter: Counter) {
    add(counter, 1);
}

/// Counts several.
#[inline(always)]
pub fn add(counter: Counter, n: u64) {
    if let Some(value) = METRICS.get_ptr_mut(counter as u32) {
        // SAFETY: this CPU's own value; programs of one CPU do not run at the same time here, and a lost count after a
        // nested run would only be a lost count.
        unsafe { *value += n };
    }
}

/// Counts what is decided on every ordinary connection, of which nobody wants to hear but in a debugging build.
#[inline(always)]
pub fn decided(counter: Counter, tuple: impl FnOnce() -> Tuple) {
    count(counter);
    if cfg!(feature = "log") {
        line(counter, &tuple());
    }
}

/// A line of the debugging build's log: the counter's number, and the connection's bytes as they are. The stack has room for
/// no more: Linux 6.1 rounds each frame up to 32 bytes.
#[cfg(feature = "log")]
#[inline(never)]
fn line(counter: Counter, tuple: &Tuple) {
    // SAFETY: a tuple has no padding.
    let bytes: &[u8; size_of::<Tuple>()] = unsafe { &*core::ptr::from_ref(tuple).cast() };
    aya_log_ebpf::info!((), "{} {:x}", counter as u32, bytes);
}

#[cfg(not(feature = "log"))]
#[inline(always)]
fn line(_counter: Counter, _tuple: &Tuple) {}

/// Counts, and tells the agent about this connection.
#[inline(always)]
pub fn tell(counter: Counter, workload: u32, tuple: &Tuple) {
    count(counter);
    line(counter, tuple);
    match EVENTS.reserve(0) {
        Some(mut entry) => {
            // SAFETY: the helper has no arguments and no precondition.
            let time = unsafe { bpf_ktime_get_ns() };
            entry.write(Event { time, tuple: *tuple, workload, reason: counter as u32 });
            entry.submit(0);
        }
        None => count(Counter::EventLost),
    }
}
