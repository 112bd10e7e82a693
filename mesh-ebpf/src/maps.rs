//! Every map: what it holds, by what key, how many, and who writes it. Key and value types, names and bounds are in
//! mesh-common's `abi`. No logic.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf, SockHash, SockMap};
use aya_ebpf::macros::btf_map;
use mesh_common::abi;
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::tcp;

/// Enrolled workloads. Key: netns cookie, or the number of a workload of the host. Bound: `MAX_WORKLOADS`. Writer: the agent.
#[btf_map]
pub static WORKLOADS: HashMap<u64, abi::Workload, { abi::MAX_WORKLOADS as usize }, NO_PREALLOC> = HashMap::new();

/// Workloads of which `ingress` looks only at what opens a connection, on most ports. Key: the place of the netns cookie.
/// Whoever finds its place taken is looked up in WORKLOADS, always. Bound: `MAX_UNGUARDED`. Writer: the agent, which takes a
/// workload out before WORKLOADS says anything stricter, and puts it in after.
#[btf_map]
pub static UNGUARDED: Array<abi::Unguarded, { abi::MAX_UNGUARDED as usize }> = Array::new();

/// Agents whose processes are left alone: their cgroups' ids. Key: 0. Bound: `MAX_AGENTS`. Writer: the agent.
#[btf_map]
pub static AGENTS: Array<[u64; abi::MAX_AGENTS], 1> = Array::new();

/// Cgroups of the host's workloads: a process below one of them is that workload's. Key: cgroup id; value: the workload's
/// number, by which WORKLOADS has it. Bound: `MAX_CGROUPS`. Writer: the agent.
#[btf_map]
pub static CGROUPS: HashMap<u64, u64, { abi::MAX_CGROUPS as usize }> = HashMap::new();

/// How deep these stand, a bit for each level, so that nobody looks where there is none. Key: 0. Writer: the agent.
#[btf_map]
pub static LEVELS: Array<u32, 1> = Array::new();

/// Ports of the host that workloads have. Value: the workload's number. Bound: `MAX_HOST_PORTS`. Writer: the agent.
#[btf_map]
pub static HOST_PORTS: HashMap<u32, u64, { abi::MAX_HOST_PORTS as usize }> = HashMap::new();

/// The agent's inbound listeners for these, in both families. A listener that is closed disappears from it. Bound: twice
/// `MAX_HOST_PORTS`. Writer: the agent.
#[btf_map]
pub static HOST_DOORS: SockHash<abi::DoorKey, { 2 * abi::MAX_HOST_PORTS as usize }> = SockHash::new();

/// Original destinations on their way from the socket that connected to the one that the agent accepts. Key: the
/// redirected connection. Bound: `MAX_FLOWS`. Writer: sock_ops (puts in at connect; takes out at accept or close).
#[btf_map]
pub static FLOW: HashMap<abi::Tuple, abi::Far, { abi::MAX_FLOWS as usize }> = HashMap::new();

/// Real clients on their way from the agent's socket to the one that the application accepts. Key: the agent's
/// connection. Bound: `MAX_PEERS`. Writer: sock_ops (as FLOW).
#[btf_map]
pub static PEER: HashMap<abi::Tuple, Endpoint, { abi::MAX_PEERS as usize }> = HashMap::new();

/// How many entries each workload has in FLOW and PEER, of which none may have them all. Key: netns cookie. Bound:
/// `MAX_WORKLOADS`. Writers: the agent makes and removes entries; sock_ops counts in them.
#[btf_map]
pub static SHARES: HashMap<u64, abi::Share, { abi::MAX_WORKLOADS as usize }, NO_PREALLOC> = HashMap::new();

/// Modes of ports that differ from their workload's. Key: the port. Bound: `MAX_PORT_MODES`. Writer: the agent.
#[btf_map]
pub static PORT_MODES: HashMap<abi::PortKey, u32, { abi::MAX_PORT_MODES as usize }, NO_PREALLOC> = HashMap::new();

/// Ports to which the orchestrator sends TCP probes. Key: the port; value: 1. Bound: `MAX_PROBED`. Writer: the agent.
#[btf_map]
pub static PROBED: HashMap<abi::PortKey, u32, { abi::MAX_PROBED as usize }, NO_PREALLOC> = HashMap::new();

/// Addresses of the node, from which probes come. Value: 1. Bound: `MAX_NODE_ADDRESSES`. Writer: the agent.
#[btf_map]
pub static NODE: HashMap<Addr, u32, { abi::MAX_NODE_ADDRESSES as usize }, NO_PREALLOC> = HashMap::new();

/// Connections older than their workload's enrolment that may go on. Key: the connection, with the workload's end in the
/// client's place whoever opened it; value: a `KEPT_` constant. Bound: `MAX_KEPT`. Writer: the agent.
#[btf_map]
pub static KEPT: HashMap<abi::Tuple, u32, { abi::MAX_KEPT as usize }, NO_PREALLOC> = HashMap::new();

/// DNS servers that applications have asked. Key: the loopback address that stands for one; value: the server. Bound:
/// `MAX_DNS_PLACES`. Writers: sendmsg and connect put in, never change; the agent removes those of a withdrawn workload.
#[btf_map]
pub static DNS: HashMap<abi::DnsPlace, Endpoint, { abi::MAX_DNS_PLACES as usize }, NO_PREALLOC> = HashMap::new();

/// Which ports of other workloads of this node a workload may connect to by itself. Bound: `MAX_ALLOWED`. Writers: the
/// agent; the programs count in it what was missed.
#[btf_map]
pub static ALLOWED: HashMap<abi::Way, abi::Allowance, { abi::MAX_ALLOWED as usize }, NO_PREALLOC> = HashMap::new();

/// Connections between workloads of this node without the agent. Key: the connection, with 0 for its namespace, of which
/// it has two. Bound: `MAX_DIRECT`. Writers: egress puts in; sock_ops takes out; the agent removes those of a withdrawn
/// workload.
#[btf_map]
pub static DIRECT: HashMap<abi::Tuple, abi::Direct, { abi::MAX_DIRECT as usize }, NO_PREALLOC> = HashMap::new();

/// Addresses of services whose endpoint is chosen here. Bound: `MAX_SERVICES`. Writer: the agent.
#[btf_map]
pub static SERVICES: HashMap<abi::Way, abi::Service, { abi::MAX_SERVICES as usize }, NO_PREALLOC> = HashMap::new();

/// The endpoints of these. Bound: `MAX_SLOTS`. Writer: the agent, which writes a list before SERVICES names it and removes
/// it after SERVICES names another.
#[btf_map]
pub static SLOTS: HashMap<abi::Slot, Endpoint, { abi::MAX_SLOTS as usize }, NO_PREALLOC> = HashMap::new();

/// Where sockets that were redirected, or go directly, wanted to go. Key: the place of the socket's cookie. Never the agent's
/// sockets. Bound: `MAX_ASKED`; whoever finds its place taken is in FAR. Writers: connect puts in, sock_ops and
/// sock_release take out.
#[btf_map]
pub static ASKED: Array<abi::Asked, { abi::MAX_ASKED as usize }> = Array::new();

/// Who is really at the other end of an application's socket: the client of an accepted one; where one that goes directly
/// wanted to go; or where a redirected one did for which ASKED had no place. Never on the agent's sockets. Lives as long
/// as its socket. Writers: connect, sock_ops.
#[btf_map]
pub static FAR: SkStorage<abi::Far, NO_PREALLOC> = SkStorage::new();

/// Marks a socket as the agent's, and holds for it what FAR does for others: so that an accepted one, which inherits it,
/// needs no storage more. Writers: the agent by descriptor, sock_ops (the far end only).
#[btf_map]
pub static AGENT: SkStorage<abi::Agent, CLONE> = SkStorage::new();

/// Lets a socket of an application send to the wire by itself; the value is a `Verdict`. Not inherited by accepted
/// sockets. Writers: connect, sock_ops.
#[btf_map]
pub static VERDICT: SkStorage<u32, NO_PREALLOC> = SkStorage::new();

/// The agent's inbound listeners in one pod, for `lookup`; each pod's instance has its own, without a pin. Key: a
/// `LISTENER_` constant. A listener that is closed disappears from it. Writer: the agent.
#[btf_map]
pub static LISTENERS: SockMap<{ abi::LISTENER_COUNT as usize }> = SockMap::new();

/// The agent's outbound listeners in all pods. Key: where it listens. Bound: `MAX_OUTBOUND`. A listener that is closed
/// disappears from it. Writer: the agent.
#[btf_map]
pub static OUTBOUND: SockHash<abi::OutboundKey, { abi::MAX_OUTBOUND as usize }> = SockHash::new();
/// Which end of which shortcut a socket is. Lives as long as its socket. Writers: connect (that it is to be one), sock_ops.
#[btf_map]
pub static SHORT: SkStorage<abi::Short, NO_PREALLOC> = SkStorage::new();

/// Connections with a shortcut, and how far each direction has come. Key: the cookie of the socket that connected. Bound:
/// `MAX_SHORTCUTS`. Writers: sock_ops puts in and takes out; shortcut counts, each sender in its own half.
#[btf_map]
pub static SHORTCUTS: HashMap<u64, abi::Shortcut, { abi::MAX_SHORTCUTS as usize }, NO_PREALLOC> = HashMap::new();

/// The sockets of both ends. A socket that closes disappears from it. Bound: twice `MAX_SHORTCUTS`. Writer: sock_ops.
#[btf_map]
pub static SHORT_SOCKETS: SockHash<abi::End, { 2 * abi::MAX_SHORTCUTS as usize }> = SockHash::new();

/// Ids of shortcuts on their way to the socket that accepts. Key: the connection. Bound: `MAX_SHORTCUTS`. Writer: sock_ops
/// (puts in when the client's side is established; takes out at accept or close).
#[btf_map]
pub static SHORT_WAY: HashMap<abi::Tuple, u64, { abi::MAX_SHORTCUTS as usize }, NO_PREALLOC> = HashMap::new();

/// Bytes that the agent has read. Key: the shortcut's id. Bound: `MAX_SHORTCUTS`. Writers: sock_ops puts in and takes out,
/// the agent counts.
#[btf_map]
pub static SHORT_READ: HashMap<u64, u64, { abi::MAX_SHORTCUTS as usize }, NO_PREALLOC> = HashMap::new();

/// What direct connections carry, by who connects to what. Bound: `MAX_PAIRS`; what does not fit counts for `Pair::NOBODY`.
/// Writers: sock_ops makes entries and counts in them; the agent removes those that rest, and makes nobody's.
#[btf_map]
pub static DIRECT_STATS: HashMap<abi::Pair, abi::Carried, { abi::MAX_PAIRS as usize }, NO_PREALLOC> = HashMap::new();

/// What agents have told of DIRECT_STATS, and of open connections, so that the next one goes on from there. Bound:
/// `MAX_PAIRS`. Writer: the agent; the programs never look.
#[btf_map]
pub static DIRECT_TOLD: HashMap<abi::Pair, abi::Carried, { abi::MAX_PAIRS as usize }, NO_PREALLOC> = HashMap::new();

/// Round-trip times and retransmissions of sockets that have closed, by path, per CPU. Key: a place of mesh-common's `tcp`.
/// Writer: sock_ops.
#[btf_map]
pub static TCP_STATS: PerCpuArray<u64, { tcp::TCP_PLACES as usize }> = PerCpuArray::new();

/// What happened how often, per CPU. Key: a `Counter`. Writers: every program.
#[btf_map]
pub static METRICS: PerCpuArray<u64, { abi::Counter::COUNT as usize }> = PerCpuArray::new();

/// Single connections that an operator may want to hear of. Bound: `EVENT_BYTES`; what does not fit is counted. Never
/// the base of a decision. Writers: every program.
#[btf_map]
pub static EVENTS: RingBuf<abi::Event, { abi::EVENT_BYTES as usize }> = RingBuf::new();

/// The cookie of the network namespace in which this instance of `ingress`, `egress` and `lookup` runs: tc programs can
/// ask for it from Linux 6.13 only. Set at load; 0 (no namespace) in the instance that is never attached.
#[unsafe(no_mangle)]
pub static INGRESS_NETNS: Global<u64> = Global::new(0);

/// The cookie of the host's network namespace, in which a workload is a cgroup: the agent's own. Set at load.
#[unsafe(no_mangle)]
pub static HOST_NETNS: Global<u64> = Global::new(0);

/// Where the kernel's structures have what `shortcut` looks at, by mesh-common's `queue`; 0 if that is not known, or the kernel
/// lets nobody look. Set at load.
#[unsafe(no_mangle)]
pub static QUEUE: Global<u64> = Global::new(0);

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const CLONE: usize = (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize;

/// A socket storage with flags of our choice, in the form in which BTF declares a map: the loader reads the fields'
/// types, nobody reads the fields.
#[repr(C)]
pub struct SkStorage<T, const FLAGS: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: a declaration for the loader; the pointers are null and never followed.
unsafe impl<T, const FLAGS: usize> Sync for SkStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SkStorage<T, FLAGS> {
    const fn new() -> Self {
        use core::ptr::null;
        SkStorage { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }

    /// The map, as the kernel's helpers take it.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}
