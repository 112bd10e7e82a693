//! tc ingress on every interface of a pod but loopback. In: a packet. Out: what becomes of TCP that belongs to no live
//! connection: it is the agent's, whose listener so accepts with the original local address; everything else goes on as it
//! is. Where nothing is forbidden that is all left to the kernel, which asks `lookup` for a listener.
//! Most packets belong to a connection of a workload where nothing is forbidden: they cost one look at a flag and one at
//! their headers.
//! Under STRICT, packets for a connection of the application's own, which the agent never saw, are dropped, and the agent's
//! listener is given to what has no connection. With that listener gone, new connections pass or are dropped as the
//! workload's flags say.
//! A connection from the node to a port with a TCP probe is dropped unless the application listens there: the agent's
//! handshake must not answer in its place.
//! Always left to the kernel: TCP in pieces or behind IPv6 extension headers, and a SYN that meets TIME_WAIT: a listener
//! given here would find the old connection in its way and drop the SYN (Linux 6.10 and later).
//! `lookup` sees what opens connections only, so what STRICT forbids to one of the application's own is dropped here, in
//! any packing; and what cannot be told from it, too.

use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_sk_assign, bpf_sk_lookup_tcp, bpf_sk_release};
use aya_ebpf::programs::TcContext;
use mesh_common::abi::{Counter, PortKey, Role, Tuple, Workload, unguarded_at};
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::capture::{self, Arriving, Found, Inbound};
use mesh_common::egress::{ACK, SYN};

use crate::direct;
use crate::maps::{AGENT, INGRESS_NETNS, LISTENERS, NODE, PROBED, UNGUARDED, WORKLOADS};
use crate::packet::{
    self, Behind, Content, Datagram, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, Packet, find, find_or, is_strict,
    sock_tuple,
};
use crate::report::{decided, tell};
use crate::socket::{self, BPF_F_CURRENT_NETNS, TCP_LISTEN, listens};

/// Go on with the next program, or to the stack if there is none.
const NEXT: i32 = -1;
const DROP: i32 = 2;

/// Whoever asks for a listener asks in the name of port 0 of nobody, so the lookup finds a listener or nothing.
const NOBODY4: Endpoint = Endpoint { addr: Addr::from_v4_wire(0), port: 0 };

pub fn run(ctx: &TcContext) -> i32 {
    if is_unguarded(ctx) {
        return NEXT;
    }
    // SAFETY: a field of the context.
    match unsafe { (*ctx.skb.skb).protocol } {
        ETH_P_IP => match packet::v4(ctx) {
            Some(Content::Tcp(packet)) => steer::<true>(ctx, &packet),
            Some(Content::TcpPart) => leave::<true>(ctx, packet::datagram4(ctx)),
            Some(Content::Else(_)) | None => NEXT,
        },
        ETH_P_IPV6 => match packet::v6(ctx) {
            Some(Content::Tcp(packet)) => steer::<false>(ctx, &packet),
            Some(Content::Else(next)) => match packet::behind(ctx, next) {
                Behind::Tcp(header) => leave::<false>(ctx, packet::datagram6(ctx, header)),
                Behind::Hidden => hidden(),
                Behind::Udp(_) | Behind::Else => NEXT,
            },
            Some(Content::TcpPart) | None => NEXT,
        },
        // The kernel has taken one tag off before, and may take off another afterwards.
        ETH_P_8021Q | ETH_P_8021AD => hidden(),
        _ => NEXT,
    }
}

/// Whether a packet goes on a connection where nothing can be forbidden, as most do.
#[inline(always)]
fn is_unguarded(ctx: &TcContext) -> bool {
    let netns = INGRESS_NETNS.load();
    let Some(place) = UNGUARDED.get(unguarded_at(netns)) else { return false };
    place.netns == netns && packet::going_on(ctx).is_some_and(|port| !capture::is_marked(&place.mode_ports, port))
}

/// TCP that is left to the kernel, but for what STRICT forbids. Of a packet in pieces the first tells whose it is, and
/// without it the others are nothing. `None`: cut off, which the kernel drops.
#[inline(always)]
fn leave<const V4: bool>(ctx: &TcContext, part: Option<Datagram>) -> i32 {
    let Some(Datagram { source, destination, later: false }) = part else { return NEXT };
    let netns = INGRESS_NETNS.load();
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let Some(workload) = (unsafe { WORKLOADS.get(netns) }) else { return NEXT };
    let port = destination.port as u16;
    if !is_strict(netns, workload, port) {
        return NEXT;
    }
    let own = Tuple { netns, client: destination, server: source };
    let found = find::<V4>(ctx, &source, &destination, Some(&own));
    match capture::inbound(workload, port, found, true) {
        Arriving::Pass | Arriving::Steer(_) => NEXT,
        Arriving::Drop => {
            tell(Counter::InboundForeign, workload.id, &Tuple { netns, client: source, server: destination });
            DROP
        }
    }
}

/// Something that nobody can look into.
#[inline(always)]
fn hidden() -> i32 {
    let netns = INGRESS_NETNS.load();
    // SAFETY: as in leave.
    let Some(workload) = (unsafe { WORKLOADS.get(netns) }) else { return NEXT };
    match capture::hidden(workload) {
        Arriving::Pass | Arriving::Steer(_) => NEXT,
        Arriving::Drop => {
            let nobody = Endpoint::ZERO;
            tell(Counter::InboundForeign, workload.id, &Tuple { netns, client: nobody, server: nobody });
            DROP
        }
    }
}

#[inline(always)]
fn steer<const V4: bool>(ctx: &TcContext, packet: &Packet) -> i32 {
    let netns = INGRESS_NETNS.load();
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let Some(workload) = (unsafe { WORKLOADS.get(netns) }) else { return NEXT };
    match direct::arrives(workload, netns, packet) {
        Some(direct::Arriving::Pass) => return NEXT,
        Some(direct::Arriving::Drop) => return DROP,
        Some(direct::Arriving::Unrelated) | None => {}
    }
    let port = packet.destination.port as u16;
    let strict = is_strict(netns, workload, port);
    let syn = packet.flags & (SYN | ACK) == SYN;
    let probe = is_probe(workload, netns, packet, syn);
    // What opens a connection is to be told if there is no agent, and answered by the application if it is a probe.
    let answered = || {
        !probe
            && capture::lookup(workload, &packet.source.addr, &packet.destination.addr, port)
                .is_some_and(|to| listens(ptr::from_ref(&LISTENERS).cast(), &capture::place(to, V4)))
    };
    if capture::left_to_kernel(strict, syn, answered) {
        return NEXT;
    }
    let own = packet.answered(netns);
    let mut assigned = false;
    // The kernel's search asks `lookup`, and so mostly ends at the agent's listener already.
    let offer = |listener: *mut bpf_sock| {
        if let Arriving::Steer(to) = capture::inbound(workload, port, Found::Nobody, strict)
            && !probe
        {
            assigned = matches!(give(ctx, listener, place(to).1), Assigned::Done);
        }
    };
    let own = if strict { Some(&own) } else { None };
    let found = find_or::<V4>(ctx, &packet.source, &packet.destination, own, offer);
    if assigned {
        decided(Counter::InboundAssigned, || packet.sent(netns));
        return NEXT;
    }
    if syn && matches!(found, Found::TimeWait) {
        decided(Counter::InboundTimeWait, || packet.sent(netns));
    }
    match capture::inbound(workload, port, found, strict) {
        Arriving::Pass => NEXT,
        Arriving::Drop => {
            tell(Counter::InboundForeign, workload.id, &packet.sent(netns));
            DROP
        }
        Arriving::Steer(_) if probe && !app_listens::<V4>(ctx, &packet.destination) => {
            tell(Counter::ProbeUnanswered, workload.id, &packet.sent(netns));
            DROP
        }
        Arriving::Steer(to) => match assign::<V4>(ctx, to) {
            Assigned::Done => {
                decided(Counter::InboundAssigned, || packet.sent(netns));
                NEXT
            }
            Assigned::Failed => {
                tell(Counter::InboundAssignFailed, workload.id, &packet.sent(netns));
                DROP
            }
            Assigned::Gone => without_agent(workload, netns, packet, syn, strict),
        },
    }
}

/// Whether this may be a TCP probe.
#[inline(always)]
fn is_probe(workload: &Workload, netns: u64, packet: &Packet, syn: bool) -> bool {
    let key = PortKey { netns, port: packet.destination.port, zero: 0 };
    // SAFETY: only whether it is there is asked.
    let declared = || unsafe { PROBED.get(key) }.is_some();
    // SAFETY: as above.
    let from_node = || unsafe { NODE.get(packet.source.addr) }.is_some();
    capture::is_probe(workload, syn, declared, from_node)
}

/// Whether a socket that is not the agent's listens there.
#[inline(always)]
fn app_listens<const V4: bool>(ctx: &TcContext, at: &Endpoint) -> bool {
    let sk = listener_at::<V4>(ctx, at);
    if sk.is_null() {
        return false;
    }
    // SAFETY: sk came from the lookup, is not null, and is released below.
    let listens = unsafe { (*sk).state } == TCP_LISTEN && AGENT.get(sk).is_none();
    // SAFETY: as above; this is the one release of this reference.
    unsafe { bpf_sk_release(sk.cast()) };
    listens
}

/// The listener for an address, if there is one; to be released.
#[inline(always)]
fn listener_at<const V4: bool>(ctx: &TcContext, at: &Endpoint) -> *mut bpf_sock {
    let nobody = if V4 { NOBODY4 } else { Endpoint::ZERO };
    let (mut tuple, size) = sock_tuple::<V4>(&nobody, at);
    // SAFETY: the tuple is initialised in its first `size` bytes, which is what the helper reads.
    unsafe { bpf_sk_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size, BPF_F_CURRENT_NETNS, 0) }
}

/// The listener is gone, and its agent with it.
#[inline(always)]
fn without_agent(workload: &Workload, netns: u64, packet: &Packet, syn: bool, strict: bool) -> i32 {
    let passes = capture::passes_without_agent(workload, strict);
    // What is no SYN opens nothing; the kernel answers it with a reset, or it is one that nobody needs.
    if !syn {
        return if passes { NEXT } else { DROP };
    }
    let reason = if passes { Counter::InboundNoAgent } else { Counter::InboundRefused };
    tell(reason, workload.id, &packet.sent(netns));
    if passes { NEXT } else { DROP }
}

/// How the packet came to a listener.
enum Assigned {
    Done,
    /// The kernel refuses.
    Failed,
    /// No agent listens there.
    Gone,
}

/// Port and role of a listener.
#[inline(always)]
fn place(to: Inbound) -> (u16, Role) {
    match to {
        Inbound::Plain(port) => (port, Role::Inbound),
        Inbound::Tunnel(port) => (port, Role::Tunnel),
    }
}

#[inline(always)]
fn assign<const V4: bool>(ctx: &TcContext, to: Inbound) -> Assigned {
    let (port, role) = place(to);
    let nobody = if V4 { NOBODY4 } else { Endpoint::ZERO };
    let sk = listener_at::<V4>(ctx, &Endpoint { port: port.into(), ..nobody });
    if sk.is_null() {
        return Assigned::Gone;
    }
    let assigned = give(ctx, sk, role);
    // SAFETY: sk came from the lookup and is not null; this is the one release of this reference.
    unsafe { bpf_sk_release(sk.cast()) };
    assigned
}

/// Gives the packet to a listener, if it is the agent's: an application may have bound the port of an agent that died.
/// `sk` is not null.
#[inline(always)]
fn give(ctx: &TcContext, sk: *mut bpf_sock, role: Role) -> Assigned {
    // SAFETY: the caller's socket, not null and not yet released.
    if unsafe { (*sk).state } != TCP_LISTEN || socket::role(sk) != Some(role as u32) {
        return Assigned::Gone;
    }
    // SAFETY: as above.
    if unsafe { bpf_sk_assign(ctx.as_ptr(), sk.cast(), 0) } == 0 { Assigned::Done } else { Assigned::Failed }
}
