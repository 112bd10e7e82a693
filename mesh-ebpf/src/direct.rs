//! Connections between two workloads of one node without the agent, on their way through the hooks. In: what a hook knows.
//! Out: whether it goes, leaves, comes in. ALLOWED says who may; DIRECT holds every connection from its SYN's leaving the
//! client's pod until the socket that owns the record closes. What is said of a record is in mesh-common's `direct`.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::abi::{
    Allowance, Counter, Direct, HAS_DIRECT, Path, SHORTCUTS, Service, Slot, Stage, TAKES_DIRECT, Tuple, Verdict, Way,
    Workload,
};
use mesh_common::addr::Endpoint;
pub use mesh_common::direct::Arriving;
use mesh_common::direct::{self, Leaving};
use mesh_common::tcp;

use crate::maps::{ALLOWED, DIRECT, SERVICES, SHARES, SLOTS, VERDICT, WORKLOADS};
use crate::packet::Packet;
use crate::report::tell;
use crate::sock_ops::add;
use crate::socket::{Ends, netns};
use crate::{far, shortcut, stats};

const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

/// An endpoint, if `to` is the address of a service whose endpoint is chosen here.
#[inline(always)]
pub fn choose(workload: &Workload, netns: u64, to: &Endpoint) -> Option<Endpoint> {
    if workload.flags & HAS_DIRECT == 0 {
        return None;
    }
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let Service { id, count, .. } = *unsafe { SERVICES.get(way(netns, to)) }?;
    // SAFETY: no arguments, no precondition.
    let random = unsafe { bpf_get_prandom_u32() };
    let slot = Slot { service: id, index: direct::draw(random, count), zero: 0 };
    // SAFETY: as above.
    unsafe { SLOTS.get(slot) }.copied()
}

/// Whether a new connection of a workload goes directly; `chosen`: to what `choose` has said.
#[inline(always)]
pub fn goes(workload: &Workload, netns: u64, to: &Endpoint, chosen: bool) -> bool {
    direct::goes_directly(workload, chosen, || allowance(netns, to), || held(netns))
}

/// Whether a segment of a socket that connects directly may leave. The SYN leaves a record first.
#[inline(always)]
pub fn leaves(netns: u64, packet: &Packet) -> bool {
    let key = direct::key(&packet.source, &packet.destination);
    if !direct::is_opening(packet.flags) {
        return goes_on(netns, packet, &key);
    }
    let told = |counter| {
        tell(counter, 0, &packet.sent(netns));
        false
    };
    // Data in it (RFC 7413) would go out before it is known to whom; it comes again without.
    if !packet.empty {
        return false;
    }
    let Some(Allowance { server, generation, .. }) =
        allowance(netns, &packet.destination).filter(|way| direct::may_open(way, true))
    else {
        return told(Counter::DirectRevoked);
    };
    let (sequence, stage, to) = (packet.sequence, Stage::Sent as u32, Endpoint::ZERO);
    let record = Direct { client: netns, server, generation, sequence, stage, to, received: 0, link: 0 };
    match DIRECT.insert(key, record, BPF_NOEXIST) {
        Ok(()) => hold(netns, 1),
        Err(EEXIST) => return again(&key, &record) || told(Counter::DirectFull),
        Err(_) => return told(Counter::DirectFull),
    }
    true
}

/// Without a record the connection is over, or one of its ends is no workload any more.
#[inline(always)]
fn goes_on(netns: u64, packet: &Packet, key: &Tuple) -> bool {
    let Some(record) = record(key) else { return true };
    match direct::leaving(&record, netns, packet.flags) {
        Leaving::Pass => true,
        Leaving::Missed => {
            missed(&Tuple { netns: record.client, ..*key });
            false
        }
    }
}

/// A SYN that is sent again finds its record; that of an older connection is replaced.
#[inline(always)]
fn again(key: &Tuple, record: &Direct) -> bool {
    // SAFETY: the value is compared field by field with what this pod's own sockets send.
    if let Some(there) = unsafe { DIRECT.get(key) }
        && there.sequence == record.sequence
        && there.generation == record.generation
    {
        return true;
    }
    DIRECT.insert(key, record, 0).is_ok()
}

/// Whether a segment of a socket that accepted directly may leave; without a record as in `goes_on`.
#[inline(always)]
pub fn answers(netns: u64, packet: &Packet) -> bool {
    let Some(record) = record(&direct::key(&packet.destination, &packet.source)) else { return true };
    if direct::is_allowed(&record, allowance(record.client, &packet.source).as_ref()) {
        return true;
    }
    tell(Counter::DirectRevoked, 0, &packet.answered(netns));
    false
}

/// Judges a segment that comes to a pod; nothing if it is of no direct connection.
#[inline(always)]
pub fn arrives(workload: &Workload, netns: u64, packet: &Packet) -> Option<Arriving> {
    if workload.flags & TAKES_DIRECT == 0 {
        return None;
    }
    let mut key = direct::key(&packet.source, &packet.destination);
    let record = DIRECT.get_ptr_mut(key)?;
    // SAFETY: the entry stays readable until this program has ended.
    let client = unsafe { (*record).client };
    let way = ALLOWED.get_ptr_mut(way(client, &packet.destination));
    // SAFETY: as above.
    let allowance = || way.map(|way| unsafe { *way });
    // SAFETY: as above.
    let judged = direct::arriving(unsafe { &*record }, netns, packet.flags, packet.sequence, allowance);
    match judged {
        Arriving::Pass if direct::is_opening(packet.flags) => arrived(record, way),
        Arriving::Pass | Arriving::Unrelated => {}
        Arriving::Drop => {
            key.netns = netns;
            tell(Counter::DirectRevoked, workload.id, &key);
        }
    }
    Some(judged)
}

#[inline(always)]
fn arrived(record: *mut Direct, way: Option<*mut Allowance>) {
    // SAFETY: fields in the maps' entries, which stay readable and writable until this program has ended. The client's
    // socket waits for the answer to this SYN and writes nothing meanwhile.
    unsafe {
        if (*record).stage == Stage::Sent as u32 {
            (*record).stage = Stage::Arrived as u32;
        }
        if let Some(way) = way
            && (*way).missed != 0
        {
            (*way).missed = 0;
        }
    }
}

/// Whether a new connection, for which the kernel looks for a listener, is a direct one, which `arrives` has let in.
#[inline(always)]
pub fn is_expected(workload: &Workload, netns: u64, client: &Endpoint, server: &Endpoint) -> bool {
    workload.flags & TAKES_DIRECT != 0
        && record(&direct::key(client, server)).is_some_and(|record| record.server == netns)
}

/// A socket is about to send the SYN of a direct connection.
#[inline(always)]
pub fn is_connecting(sk: *mut bpf_sock) -> bool {
    VERDICT.get(sk) == Some(Verdict::Direct as u32)
}

/// Whether a connection that a workload's socket has accepted is a direct one. From now on the record is the server's.
#[inline(always)]
pub fn is_accepted(workload: &Workload, netns: u64, ends: &Ends) -> bool {
    if workload.flags & TAKES_DIRECT == 0 {
        return false;
    }
    let Some(record) = DIRECT.get_ptr_mut(direct::key(&ends.remote, &ends.local)) else { return false };
    // SAFETY: the entry stays readable and writable until this program has ended.
    unsafe {
        if (*record).server != netns {
            return false;
        }
        (*record).stage = Stage::Accepted as u32;
    }
    true
}

/// The record of a connection that this socket has made, if it may have a shortcut: both workloads' may.
#[inline(always)]
pub fn to_shorten(netns: u64, ends: &Ends) -> Option<*mut Direct> {
    let record = DIRECT.get_ptr_mut(direct::key(&ends.local, &ends.remote))?;
    // SAFETY: the entry stays readable until this program has ended.
    let there = unsafe { *record };
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let server = unsafe { WORKLOADS.get(there.server) }?;
    (direct::may_be_shortened(&there, netns) && server.flags & SHORTCUTS != 0).then_some(record)
}

/// The shortcut of a direct connection that a workload's socket has accepted, or 0.
#[inline(always)]
pub fn link(ends: &Ends) -> u64 {
    record(&direct::key(&ends.remote, &ends.local)).map_or(0, |record| record.link)
}

/// Whether a connection that had this record when it began, and goes to `to`, is still allowed.
#[inline(always)]
pub fn is_allowed(record: &Direct, to: &Endpoint) -> bool {
    direct::is_allowed(record, allowance(record.client, to).as_ref())
}

/// A socket's state changes, and what became of its connection is noted: established, half closed, closed. When the socket
/// closes that the record goes with, so does that.
#[inline(always)]
pub fn becomes(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends, state: u32) {
    let verdict = VERDICT.get(sk);
    let clients = verdict == Some(Verdict::Direct as u32);
    if !clients && verdict != Some(Verdict::DirectAccepted as u32) {
        return;
    }
    let (client, server) = if clients { (&ends.local, &ends.remote) } else { (&ends.remote, &ends.local) };
    let mut key = direct::key(client, server);
    let netns = netns(ctx);
    let record = DIRECT.get_ptr_mut(key).filter(|record| {
        // SAFETY: the entry stays readable and writable until this program has ended, as long as nobody has taken it out.
        netns == unsafe { if clients { (**record).client } else { (**record).server } }
    });
    if clients {
        stats::of_client(ctx, sk, ends, state, record);
    }
    if state != tcp::CLOSE {
        return;
    }
    if clients {
        far::over(ctx);
        shortcut::closed_directly(ctx, sk);
    }
    stats::measured(ctx, Path::Direct);
    let Some(record) = record else { return };
    // Word by word: the stack has no room for a copy beside what a debugging build has there.
    // SAFETY: as above.
    let (client, stage) = unsafe { ((*record).client, (*record).stage) };
    if direct::is_clients(stage) != clients {
        return;
    }
    if DIRECT.remove(key).is_ok() {
        hold(client, -1);
    }
    if stage == Stage::Sent as u32 {
        key.netns = client;
        missed(&key);
    }
}

/// Nothing of the connection has come to its server as it had left its client.
#[inline(always)]
fn missed(connection: &Tuple) {
    if let Some(way) = ALLOWED.get_ptr_mut(way(connection.netns, &connection.server)) {
        // SAFETY: a field in the map's entry, as in `arrived`; a lost count only means one attempt more.
        unsafe { (*way).missed = (*way).missed.saturating_add(1) };
    }
    tell(Counter::DirectMissed, 0, connection);
}

#[inline(always)]
fn way(netns: u64, to: &Endpoint) -> Way {
    Way { netns, to: *to, zero: 0 }
}

#[inline(always)]
fn allowance(netns: u64, to: &Endpoint) -> Option<Allowance> {
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    unsafe { ALLOWED.get(way(netns, to)) }.copied()
}

#[inline(always)]
fn record(key: &Tuple) -> Option<Direct> {
    // SAFETY: what is changed in a record is single words, and copied as such; of `to`, which is several, nobody here asks.
    unsafe { DIRECT.get(key) }.copied()
}

#[inline(always)]
fn held(netns: u64) -> Option<i64> {
    let share = SHARES.get_ptr_mut(netns)?;
    // SAFETY: the count lives in the map's entry, which stays readable until this program has ended.
    Some(unsafe { (&raw const (*share).direct).read_volatile() })
}

#[inline(always)]
fn hold(netns: u64, more: i64) {
    if let Some(share) = SHARES.get_ptr_mut(netns) {
        // SAFETY: only the address is taken.
        add(unsafe { &raw mut (*share).direct }, more);
    }
}
