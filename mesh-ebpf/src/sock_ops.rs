//! cgroup/sock_ops. In: a TCP socket's life. Out: where an application wanted to go travels by FLOW from its socket (`far`)
//! to the AGENT of the one that the agent accepts, the client by PEER from the AGENT of the agent's socket to the FAR of the
//! one that the application accepts. An entry lives from just before the SYN until the connection is accepted or its
//! socket closes, so a stale one can never lie. Addresses decide first which of these it can be, so that a socket outside
//! the mesh costs one look. SHARES counts them, so that no workload takes all places. What the agent dials on the wire
//! repeats its SYN sooner than the kernel would. What connections on the wire, and direct ones, have come to is `stats`.

use core::arch::asm;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::abi::{
    Agent, Counter, Far, LINK_WANTED, MAX_FLOWS, MAX_PEERS, Path, Role, SHORTCUTS, Share, TUNNEL_PORT, Tuple, Verdict,
};
use mesh_common::addr::Endpoint;
use mesh_common::shortcut::Reader;
use mesh_common::{capture, tcp};

use crate::direct;
use crate::far;
use crate::host;
use crate::maps::{AGENT, FAR, FLOW, PEER, SHARES, VERDICT, WORKLOADS};
use crate::report::{decided, tell};
use crate::shortcut;
use crate::socket::{Ends, netns, of_sock_ops, role};
use crate::stats;

/// `enum` in linux/bpf.h: how long is the first SYN to wait for its answer? In jiffies; 0 leaves it at a second.
const TIMEOUT_INIT: u32 = 1;
/// The socket is about to send its SYN; its source address and port are known.
const TCP_CONNECT_CB: u32 = 3;
/// The handshake of an outgoing connection is complete; `connect()` has not returned yet.
const ACTIVE_ESTABLISHED_CB: u32 = 4;
/// The handshake of an incoming connection is complete; `accept()` has not seen it yet.
const PASSIVE_ESTABLISHED_CB: u32 = 5;
/// The socket's state changes; called only for sockets that asked for it.
const STATE_CB: u32 = 10;
/// What asks for `STATE_CB`.
const STATE_CB_FLAG: i32 = 1 << 2;
/// What asks to be called when the socket sends something again, which nobody is interested in: it is the mark of a socket
/// whose place in ASKED another has.
const STORED_FLAG: i32 = 1 << 1;
/// What asks to be called when the socket's timer for that runs out, which nobody is interested in either: the mark of the
/// agent's sockets on the wire.
const WIRE_FLAG: i32 = 1 << 0;
/// TCP is about to send something, and asks how long our part of its header is; called only for sockets that asked for it.
const HDR_OPT_LEN_CB: u32 = 14;
const OK: u32 = 1;
const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

/// How long the agent's own SYNs wait before they are sent again, in jiffies: 100 ms where HZ is 1000, 400 ms where it is
/// 250, and nowhere longer than the kernel's own second. An agent that was away is found that much sooner.
const SYN_TIMEOUT: u32 = 100;

#[inline(always)]
pub fn run(ctx: &SockOpsContext) -> u32 {
    let sk = of_sock_ops(ctx);
    if sk.is_null() {
        return OK;
    }
    match ctx.op() {
        TIMEOUT_INIT if role(sk) == Some(Role::Dial as u32) => {
            ctx.set_reply(SYN_TIMEOUT);
            mark_wire(ctx);
        }
        TCP_CONNECT_CB => connecting(ctx, sk, &Ends::of(ctx)),
        ACTIVE_ESTABLISHED_CB if ctx.cb_flags() & shortcut::MARK != 0 => shortcut::connected(ctx, sk),
        PASSIVE_ESTABLISHED_CB => accepted(ctx, sk, &Ends::of(ctx)),
        HDR_OPT_LEN_CB => shortcut::by_tcp(ctx, sk),
        STATE_CB => match ctx.arg(1) {
            tcp::CLOSE => closed(ctx, sk, &Ends::of(ctx)),
            state @ (tcp::ESTABLISHED | tcp::FIN_WAIT2 | tcp::LAST_ACK) => {
                direct::becomes(ctx, sk, &Ends::of(ctx), state);
            }
            _ => {}
        },
        _ => {}
    }
    OK
}

/// FLOW or PEER, and the part of a workload's share in it.
struct Way<V: 'static, const N: usize> {
    map: &'static HashMap<Tuple, V, N>,
    part: fn(*mut Share) -> *mut i64,
    full: Counter,
}

const TO_AGENT: Way<Far, { MAX_FLOWS as usize }> =
    // SAFETY: only the address is taken.
    Way { map: &FLOW, part: |share| unsafe { &raw mut (*share).flows }, full: Counter::FlowFull };
const TO_APP: Way<Endpoint, { MAX_PEERS as usize }> =
    // SAFETY: as above.
    Way { map: &PEER, part: |share| unsafe { &raw mut (*share).peers }, full: Counter::PeerFull };

#[inline(always)]
fn connecting(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    if capture::is_to_app(&ends.local.addr, &ends.remote.addr) {
        if let Some(agent) = AGENT.get(sk)
            && agent.role == Role::DialApp as u32
        {
            if !TO_APP.note(ctx, ends, &agent.far) {
                // So that the agent sees that the application will not know its client, and ends the connection.
                AGENT.set(sk, Agent { far: Endpoint::ZERO, ..agent });
            } else if agent.link == LINK_WANTED {
                shortcut::begin(sk, Reader::App);
                mark(ctx, shortcut::MARK as i32);
            }
        }
    } else if capture::may_be_redirected(&ends.local.addr, &ends.remote.addr) {
        redirecting(ctx, sk, ends);
    } else if direct::is_connecting(sk) {
        far::sending(ctx, sk);
        mark(ctx, STATE_CB_FLAG | shortcut::mark(sk));
    }
}

/// To loopback, or by a socket that is bound to a device: an application that was redirected, if it is a workload's.
#[inline(always)]
fn redirecting(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    if let Some(own) = host::flags(netns(ctx))
        && let Some(far) = far::sending(ctx, sk)
    {
        let short = if own & SHORTCUTS != 0 { shortcut::mark(sk) } else { 0 };
        // Also where there is no place in FLOW: its place in ASKED is to be left at its end.
        let flags = ctx.cb_flags() as i32 & !STORED_FLAG | STATE_CB_FLAG | short;
        let _ = ctx.set_cb_flags(flags | if far.stored { STORED_FLAG } else { 0 });
        // If not: the agent finds nothing for the accepted socket and resets it.
        TO_AGENT.note(ctx, ends, far.far);
    }
}

impl<V: Copy, const N: usize> Way<V, N> {
    /// Puts a connection on its way. False, and told, if there is no place for it.
    #[inline(always)]
    fn note(&self, ctx: &SockOpsContext, ends: &Ends, value: &V) -> bool {
        let key = ends.connected(ctx);
        if self.put(&key, value) {
            follow(ctx);
            return true;
        }
        // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
        let id = unsafe { WORKLOADS.get(key.netns) }.map_or(0, |w| w.id);
        tell(self.full, id, &key);
        false
    }

    #[inline(always)]
    fn put(&self, key: &Tuple, value: &V) -> bool {
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
pub fn add(counted: *mut i64, n: i64) {
    // SAFETY: an aligned number in the map's entry, as in put. One instruction (RFC 9669, 5.3), because the others are on
    // other CPUs; the compiler's own atomics are not there for this target.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) counted, in(reg) n) };
}

/// Has the socket's close told.
#[inline(always)]
fn follow(ctx: &SockOpsContext) {
    mark(ctx, STATE_CB_FLAG);
}

/// Gives the socket these callback flags too.
#[inline(always)]
fn mark(ctx: &SockOpsContext, flags: i32) {
    let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | flags);
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    if capture::is_to_app(&ends.remote.addr, &ends.local.addr) {
        dialled(ctx, sk, ends);
    } else if ends.local.addr.is_loopback() {
        redirected(ctx, sk, ends);
    } else {
        from_outside(ctx, sk, ends);
    }
}

/// To a loopback address, or by a socket that is bound to a device: an application that was redirected, if to the agent.
#[inline(always)]
fn redirected(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    if let Some(agent) = AGENT.get(sk)
        && agent.role == Role::Outbound as u32
        && let Some(Far { to, chosen }) = take(ctx, ends, &TO_AGENT)
    {
        let link = if agent.link == LINK_WANTED { shortcut::accepted(ctx, sk, ends, Reader::App) } else { 0 };
        AGENT.set(sk, Agent { far: to, chosen, link, ..agent });
    }
}

/// The agent, on behalf of a client.
#[inline(always)]
fn dialled(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    if let Some(client) = take(ctx, ends, &TO_APP)
        && AGENT.get(sk).is_none()
    {
        FAR.set(sk, Far { to: client, chosen: Endpoint::ZERO });
        shortcut::accepted(ctx, sk, ends, Reader::Agent);
    }
}

/// Between addresses of which none is loopback.
#[inline(always)]
fn from_outside(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    let tuple = ends.accepted(ctx);
    // What nobody judges on its way out needs no word for it.
    if host::is_host(tuple.netns) {
        return if role(sk).is_some_and(on_wire) {
            mark_wire(ctx)
        };
    }
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let Some(workload) = (unsafe { WORKLOADS.get(tuple.netns) }) else { return };
    match role(sk) {
        Some(role) if on_wire(role) => return mark_wire(ctx),
        Some(_) => return redirected(ctx, sk, ends),
        None => {}
    }
    // The application itself accepts: `ingress` has let the connection pass, so its answers may leave.
    let direct = direct::is_accepted(workload, tuple.netns, ends);
    let verdict = if direct { Verdict::DirectAccepted } else { Verdict::Accepted };
    if !VERDICT.set(sk, verdict as u32) {
        tell(Counter::StorageFailed, workload.id, &tuple);
    } else if direct {
        follow(ctx);
        if workload.flags & SHORTCUTS != 0 {
            shortcut::accepted_directly(ctx, sk, ends);
        }
    }
}

#[inline(always)]
fn take<V: Copy, const N: usize>(ctx: &SockOpsContext, ends: &Ends, way: &Way<V, N>) -> Option<V> {
    let key = ends.accepted(ctx);
    // SAFETY: an entry is written once, before the SYN of this connection, and copied here at once.
    let value = *unsafe { way.map.get(key) }?;
    way.remove(&key);
    Some(value)
}

#[inline(always)]
fn closed(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    let to_app = capture::is_to_app(&ends.local.addr, &ends.remote.addr);
    if !to_app && !capture::may_be_redirected(&ends.local.addr, &ends.remote.addr) {
        if ctx.cb_flags() as i32 & WIRE_FLAG != 0 {
            on_the_wire(ctx, sk, ends);
        } else {
            direct::becomes(ctx, sk, ends, tcp::CLOSE);
        }
        return;
    }
    let key = ends.connected(ctx);
    if ctx.cb_flags() & shortcut::MARK != 0 && !shortcut::closed(sk, &key) {
        return;
    }
    let removed = match to_app {
        true => TO_APP.remove(&key),
        false => (ctx.cb_flags() as i32 & STORED_FLAG != 0 || far::over(ctx)) && TO_AGENT.remove(&key),
    };
    if removed {
        decided(Counter::Abandoned, || key);
    }
}

/// Whether the agent's sockets of this role accept what comes from the wire.
#[inline(always)]
fn on_wire(role: u32) -> bool {
    role == Role::Tunnel as u32 || role == Role::Inbound as u32
}

/// Has the close told of a socket of the agent's that is not between it and an application.
#[inline(always)]
fn mark_wire(ctx: &SockOpsContext) {
    mark(ctx, STATE_CB_FLAG | WIRE_FLAG);
}

/// Such a socket closes.
#[inline(always)]
fn on_the_wire(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    let Some(role) = role(sk) else { return };
    // Nothing is known of one that nobody has answered.
    if ctx.arg(0) != tcp::SYN_SENT {
        let dialled = role == Role::Dial as u32 && ends.remote.port == u32::from(TUNNEL_PORT);
        let tunnel = dialled || role == Role::Tunnel as u32;
        stats::measured(ctx, if tunnel { Path::Tunnel } else { Path::Plain });
    }
}
