//! Counting and reporting. In: what happened. Out: METRICS and EVENTS. Nothing here changes what happens to a
//! connection.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mesh_common::abi::{Counter, Event, Tuple};

use crate::maps::{EVENTS, METRICS};

/// Counts.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = METRICS.get_ptr_mut(counter as u32) {
        // SAFETY: this CPU's own value; programs of one CPU do not run at the same time here, and a lost count after a
        // nested run would only be a lost count.
        unsafe { *value += 1 };
    }
}

/// Counts, and tells the agent about this connection.
#[inline(always)]
pub fn tell(counter: Counter, workload: u32, tuple: &Tuple) {
    count(counter);
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
