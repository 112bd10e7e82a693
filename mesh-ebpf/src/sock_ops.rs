//! cgroup/sock_ops. In: a TCP socket's life. Out: ORIGIN travels by FLOW from the application's socket to the one that
//! the agent accepts, CLIENT by PEER from the agent's socket to the one that the application accepts. An entry lives
//! from just before the SYN until the connection is accepted or its socket closes, so a stale one can never lie. SHARES
//! counts them, so that no workload takes all places. What the agent dials on the wire repeats its SYN sooner than the
//! kernel would.

use core::arch::asm;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::abi::{Counter, MAX_FLOWS, MAX_PEERS, Role, Share, Tuple, Verdict};
use mesh_common::addr::Endpoint;
use mesh_common::capture;

use crate::maps::{AGENT, CLIENT, FLOW, ORIGIN, PEER, SHARES, VERDICT, WORKLOADS};
use crate::report::{count, tell};
use crate::socket::{Ends, of_sock_ops};

/// `enum` in linux/bpf.h: how long is the first SYN to wait for its answer? In jiffies; 0 leaves it at a second.
const TIMEOUT_INIT: u32 = 1;
/// The socket is about to send its SYN; its source address and port are known.
const TCP_CONNECT_CB: u32 = 3;
/// The handshake of an incoming connection is complete; `accept()` has not seen it yet.
const PASSIVE_ESTABLISHED_CB: u32 = 5;
/// The socket's state changes; called only for sockets that asked for it.
const STATE_CB: u32 = 10;
/// What asks for `STATE_CB`.
const STATE_CB_FLAG: i32 = 1 << 2;
const TCP_CLOSE: u32 = 7;
const OK: u32 = 1;
const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

/// How long the agent's own SYNs wait before they are sent again, in jiffies: 100 ms where HZ is 1000, 400 ms where it is
/// 250, and nowhere longer than the kernel's own second. An agent that was away is found that much sooner.
const SYN_TIMEOUT: u32 = 100;

pub fn run(ctx: &SockOpsContext) -> u32 {
    let sk = of_sock_ops(ctx);
    if sk.is_null() {
        return OK;
    }
    let op = ctx.op();
    if op == TIMEOUT_INIT {
        if AGENT.get(sk) == Some(Role::Dial as u32) {
            ctx.set_reply(SYN_TIMEOUT);
        }
        return OK;
    }
    if op != TCP_CONNECT_CB && op != PASSIVE_ESTABLISHED_CB && op != STATE_CB {
        return OK;
    }
    let ends = Ends::of(ctx);
    match op {
        TCP_CONNECT_CB => connecting(ctx, sk, &ends),
        PASSIVE_ESTABLISHED_CB => accepted(ctx, sk, &ends),
        _ if ctx.arg(1) == TCP_CLOSE => closed(ctx, sk, &ends),
        _ => {}
    }
    OK
}

/// FLOW or PEER, and the part of a workload's share in it.
struct Way<const N: usize> {
    map: &'static HashMap<Tuple, Endpoint, N>,
    part: fn(*mut Share) -> *mut i64,
    full: Counter,
}

const TO_AGENT: Way<{ MAX_FLOWS as usize }> =
    // SAFETY: only the address is taken.
    Way { map: &FLOW, part: |share| unsafe { &raw mut (*share).flows }, full: Counter::FlowFull };
const TO_APP: Way<{ MAX_PEERS as usize }> =
    // SAFETY: as above.
    Way { map: &PEER, part: |share| unsafe { &raw mut (*share).peers }, full: Counter::PeerFull };

#[inline(always)]
fn connecting(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    if let Some(origin) = ORIGIN.get(sk) {
        // If not: the agent finds nothing for the accepted socket and resets it.
        TO_AGENT.note(ctx, ends, &origin);
    } else if let Some(client) = CLIENT.get(sk)
        && !TO_APP.note(ctx, ends, &client)
    {
        // So that the agent sees that the application will not know its client, and ends the connection.
        CLIENT.delete(sk);
    }
}

impl<const N: usize> Way<N> {
    /// Puts a connection on its way. False, and told, if there is no place for it.
    #[inline(always)]
    fn note(&self, ctx: &SockOpsContext, ends: &Ends, value: &Endpoint) -> bool {
        let key = ends.connected(ctx);
        if self.put(&key, value) {
            let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | STATE_CB_FLAG);
            return true;
        }
        // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
        let id = unsafe { WORKLOADS.get(key.netns) }.map_or(0, |w| w.id);
        tell(self.full, id, &key);
        false
    }

    #[inline(always)]
    fn put(&self, key: &Tuple, value: &Endpoint) -> bool {
        let Some(counted) = self.counted(key) else { return false };
        // SAFETY: the count lives in the map's entry, which stays readable until this program has ended.
        if !capture::may_have_more(unsafe { counted.read_volatile() }) {
            return false;
        }
        match self.map.insert(key, value, BPF_NOEXIST) {
            Ok(()) => add(counted, 1),
            Err(EEXIST) => return self.map.insert(key, value, 0).is_ok(),
            Err(_) => return false,
        }
        true
    }

    /// Takes a connection off its way. False if it was not there.
    #[inline(always)]
    fn remove(&self, key: &Tuple) -> bool {
        if self.map.remove(key).is_err() {
            return false;
        }
        if let Some(counted) = self.counted(key) {
            add(counted, -1);
        }
        true
    }

    #[inline(always)]
    fn counted(&self, key: &Tuple) -> Option<*mut i64> {
        SHARES.get_ptr_mut(key.netns).map(self.part)
    }
}

#[inline(always)]
fn add(counted: *mut i64, n: i64) {
    // SAFETY: an aligned number in the map's entry, as in put. One instruction (RFC 9669, 5.3), because the others are on
    // other CPUs; the compiler's own atomics are not there for this target.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) counted, in(reg) n) };
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    match AGENT.get(sk) {
        Some(role) if role == Role::Outbound as u32 => {
            if let Some(origin) = take(ctx, ends, &TO_AGENT) {
                ORIGIN.set(sk, origin);
            }
        }
        Some(_) => {}
        // The agent always dials an application from a loopback address.
        None if ends.remote.addr.is_loopback() => {
            if let Some(client) = take(ctx, ends, &TO_APP) {
                CLIENT.set(sk, client);
            }
        }
        None => passed(ctx, sk, ends),
    }
}

/// The application itself accepts from the wire: `ingress` has let the connection pass, so its answers may leave.
#[inline(always)]
fn passed(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    let tuple = ends.accepted(ctx);
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    if let Some(workload) = unsafe { WORKLOADS.get(tuple.netns) }
        && !VERDICT.set(sk, Verdict::Accepted as u32)
    {
        tell(Counter::StorageFailed, workload.id, &tuple);
    }
}

#[inline(always)]
fn take<const N: usize>(ctx: &SockOpsContext, ends: &Ends, way: &Way<N>) -> Option<Endpoint> {
    let key = ends.accepted(ctx);
    // SAFETY: an entry is written once, before the SYN of this connection, and copied here at once.
    let value = *unsafe { way.map.get(key) }?;
    way.remove(&key);
    Some(value)
}

#[inline(always)]
fn closed(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    let key = ends.connected(ctx);
    let removed = if ORIGIN.get(sk).is_some() { TO_AGENT.remove(&key) } else { TO_APP.remove(&key) };
    if removed {
        count(Counter::Abandoned);
    }
}
