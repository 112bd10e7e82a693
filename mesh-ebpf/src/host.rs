//! Who is asking: the workload of a system call. In: the socket's namespace, and in the host's own the process's cgroups.
//! Out: the workload's entry, if it is one. Pods pay a comparison for it. Decides nothing: mesh-common's `host` does.

use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use mesh_common::abi::Workload;
use mesh_common::host;

use crate::maps::{CGROUPS, HOST_NETNS, LEVELS, WORKLOADS};

/// The workload that makes the system call, on a socket of this namespace.
#[inline(always)]
pub fn workload(netns: u64) -> Option<&'static Workload> {
    let key = if is_host(netns) { own()? } else { netns };
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    unsafe { WORKLOADS.get(key) }
}

/// If sockets of this namespace may be a workload's, its flags. In the host's, where there are any workloads, each socket has
/// to be asked for itself, and nothing is known of it: none of a workload's flags matters to who asks.
#[inline(always)]
pub fn flags(netns: u64) -> Option<u32> {
    if is_host(netns) {
        return if *LEVELS.get(0)? == 0 { None } else { Some(0) };
    }
    // SAFETY: as in workload.
    unsafe { WORKLOADS.get(netns) }.map(|workload| workload.flags)
}

/// Whether this is the host's own namespace.
#[inline(always)]
pub fn is_host(netns: u64) -> bool {
    netns == HOST_NETNS.load()
}

/// The number of the workload to whose cgroup the calling process belongs.
#[inline(always)]
fn own() -> Option<u64> {
    let levels = *LEVELS.get(0)?;
    host::find(
        levels,
        // SAFETY: no precondition; a level that is not there gives 0.
        |level| unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) },
        // SAFETY: the agent replaces whole entries, and the value is copied at once.
        |cgroup| unsafe { CGROUPS.get(cgroup) }.copied(),
    )
}
