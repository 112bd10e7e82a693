//! tc egress on every interface of a pod but loopback: the backstop behind the connect hooks. In: a packet on its way
//! out. Out: TCP passes that the agent sent, that a hook let go, that is older than the enrolment, or that the kernel
//! says by itself; the rest is dropped, counted and told. UDP and other protocols pass.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::programs::TcContext;
use mesh_common::abi::{Counter, Tuple};
use mesh_common::addr::Endpoint;
use mesh_common::capture::Found;
use mesh_common::egress::{self, Segment, Sender};

use crate::maps::{AGENT, INGRESS_NETNS, KEPT, VERDICT, WORKLOADS};
use crate::packet::{self, Content, ETH_P_IP, ETH_P_IPV6, Packet, find, load};
use crate::report::tell;

/// Go on with the next program, or to the wire if there is none.
const NEXT: i32 = -1;
const DROP: i32 = 2;

const IPPROTO_TCP: u8 = 6;
/// IPv6 extension headers (RFC 8200, 4) that may stand before TCP.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
/// Extension headers that are looked into. A packet with more hides something.
const MAX_EXTENSIONS: usize = 6;
const IPV6_HEADER: u32 = 40;

pub fn run(ctx: &TcContext) -> i32 {
    let sender = sender(ctx);
    if matches!(sender, Sender::Agent | Sender::Released | Sender::Kernel) {
        return NEXT;
    }
    // SAFETY: a field of the context.
    match unsafe { (*ctx.skb.skb).protocol } {
        ETH_P_IP => match packet::v4(ctx) {
            Some(Content::Tcp(packet)) => judge::<true>(ctx, sender, &packet),
            Some(Content::Else(_)) => NEXT,
            Some(Content::TcpPart) | None => refuse(&Endpoint::ZERO, &Endpoint::ZERO),
        },
        ETH_P_IPV6 => match packet::v6(ctx) {
            Some(Content::Tcp(packet)) => judge::<false>(ctx, sender, &packet),
            Some(Content::Else(next)) if !hides_tcp(ctx, next) => NEXT,
            _ => refuse(&Endpoint::ZERO, &Endpoint::ZERO),
        },
        _ => NEXT,
    }
}

/// Whose packet it is.
#[inline(always)]
fn sender(ctx: &TcContext) -> Sender {
    // SAFETY: a field of the context.
    let sk: *mut bpf_sock = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return Sender::Nobody;
    }
    // SAFETY: the context's socket, not null.
    let full = unsafe { bpf_sk_fullsock(sk) };
    if full.is_null() {
        return Sender::Kernel;
    }
    if AGENT.get(full).is_some() {
        Sender::Agent
    } else if VERDICT.get(full).is_some() {
        Sender::Released
    } else {
        Sender::Unknown
    }
}

#[inline(always)]
fn judge<const V4: bool>(ctx: &TcContext, sender: Sender, packet: &Packet) -> i32 {
    let tuple = packet.sent(INGRESS_NETNS.load());
    let segment = Segment { flags: packet.flags, empty: packet.empty };
    let answers = || match find::<V4>(ctx, &packet.destination, &packet.source, Some(&tuple)) {
        Found::Live | Found::TimeWait => true,
        Found::Nobody | Found::Foreign => false,
    };
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    if egress::may_leave(sender, segment, || unsafe { KEPT.get(tuple) }.is_some(), answers) {
        return NEXT;
    }
    refuse(&packet.source, &packet.destination)
}

/// Drops and tells, if the pod is enrolled: it may just be leaving.
#[inline(always)]
fn refuse(source: &Endpoint, destination: &Endpoint) -> i32 {
    let netns = INGRESS_NETNS.load();
    // SAFETY: as in judge.
    let Some(workload) = (unsafe { WORKLOADS.get(netns) }) else { return NEXT };
    tell(Counter::EgressUnexplained, workload.id, &Tuple { netns, client: *source, server: *destination });
    DROP
}

/// An extension header's first bytes; its length is in units of eight bytes, without the first.
#[repr(C)]
struct Extension {
    next: u8,
    length: u8,
}

/// Whether TCP stands behind extension headers, or may: no connection of the kernel's has any.
#[inline(always)]
fn hides_tcp(ctx: &TcContext, first: u8) -> bool {
    let mut next = first;
    let mut offset = IPV6_HEADER;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            IPPROTO_TCP => return true,
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION | MOBILITY => {}
            _ => return false,
        }
        let Some(header) = load::<Extension>(ctx, offset) else { return true };
        // Behind a fragment's header that is not the first one there is data, but its next header tells of what.
        offset += if next == FRAGMENT { 8 } else { (u32::from(header.length) + 1) * 8 };
        if next == FRAGMENT {
            return header.next == IPPROTO_TCP || is_extension(header.next);
        }
        next = header.next;
    }
    true
}

/// Whether the chain goes on, inside of what is cut into pieces.
#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION | MOBILITY)
}
