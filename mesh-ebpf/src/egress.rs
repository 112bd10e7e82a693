//! tc egress on every interface of a pod but loopback: the backstop behind the connect and sendmsg hooks. In: a packet on
//! its way out. Out: TCP passes that the agent sent, that a hook let go, that is older than the enrolment, or that the
//! kernel says by itself; UDP that the hooks would let pass, and questions to DNS servers that the agent sent or a hook
//! let go. The rest is dropped, counted and told. Other protocols pass.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::programs::TcContext;
use mesh_common::abi::{Counter, Tuple, Verdict};
use mesh_common::addr::Endpoint;
use mesh_common::capture::Found;
use mesh_common::egress::{self, Segment, Sender};
use mesh_common::udp::{self, Leaving};

use crate::direct;
use crate::maps::{AGENT, INGRESS_NETNS, KEPT, VERDICT, WORKLOADS};
use crate::packet::{
    self, Behind, Content, Datagram, ETH_P_IP, ETH_P_IPV6, IPPROTO_UDP, IPPROTO_UDPLITE, Packet, find,
};
use crate::report::tell;

/// Go on with the next program, or to the wire if there is none.
const NEXT: i32 = -1;
const DROP: i32 = 2;

const DIRECT: u32 = Verdict::Direct as u32;
const ACCEPTED: u32 = Verdict::DirectAccepted as u32;

pub fn run(ctx: &TcContext) -> i32 {
    let (sender, verdict) = sender(ctx);
    if matches!(sender, Sender::Agent | Sender::Kernel) {
        return NEXT;
    }
    let Some(carried) = packet::carries(ctx) else { return unreadable(sender) };
    match carried {
        ETH_P_IP => match packet::v4(ctx) {
            Some(Content::Tcp(packet)) => judge::<true>(ctx, sender, verdict, &packet),
            Some(Content::Else(IPPROTO_UDP | IPPROTO_UDPLITE)) => police(sender, packet::datagram4(ctx)),
            Some(Content::Else(_)) => NEXT,
            Some(Content::TcpPart) | None => unreadable(sender),
        },
        ETH_P_IPV6 => match packet::v6(ctx) {
            Some(Content::Tcp(packet)) => judge::<false>(ctx, sender, verdict, &packet),
            // No connection of the kernel's has any such headers before TCP.
            Some(Content::Else(next)) => match packet::behind(ctx, next) {
                Behind::Tcp(_) | Behind::Hidden => unreadable(sender),
                Behind::Udp(header) => police(sender, packet::datagram6(ctx, header)),
                Behind::Else => NEXT,
            },
            Some(Content::TcpPart) | None => unreadable(sender),
        },
        _ => NEXT,
    }
}

/// Whose packet it is, and why its socket was let go. One that was let go directly is not just let go: what nobody can
/// judge does not leave it.
#[inline(always)]
fn sender(ctx: &TcContext) -> (Sender, Option<u32>) {
    // SAFETY: a field of the context.
    let sk: *mut bpf_sock = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return (Sender::Nobody, None);
    }
    // Most packets of a pod are the agent's: what is no full socket has no storage.
    if AGENT.get(sk).is_some() {
        return (Sender::Agent, None);
    }
    // SAFETY: the context's socket, not null.
    let full = unsafe { bpf_sk_fullsock(sk) };
    if full.is_null() {
        return (Sender::Kernel, None);
    }
    let verdict = VERDICT.get(full);
    match verdict {
        None | Some(DIRECT | ACCEPTED) => (Sender::Unknown, verdict),
        Some(_) => (Sender::Released, verdict),
    }
}

#[inline(always)]
fn judge<const V4: bool>(ctx: &TcContext, sender: Sender, verdict: Option<u32>, packet: &Packet) -> i32 {
    let netns = INGRESS_NETNS.load();
    let direct = match verdict {
        Some(DIRECT) => Some(direct::leaves(netns, packet)),
        Some(ACCEPTED) => Some(direct::answers(netns, packet)),
        _ => None,
    };
    match direct {
        Some(true) => return NEXT,
        Some(false) => return DROP,
        None => {}
    }
    let tuple = packet.sent(netns);
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

/// UDP. `None`: cut off.
#[inline(always)]
fn police(sender: Sender, datagram: Option<Datagram>) -> i32 {
    let Some(Datagram { source, destination, later }) = datagram else { return unreadable(sender) };
    let netns = INGRESS_NETNS.load();
    // SAFETY: as in judge.
    let Some(workload) = (unsafe { WORKLOADS.get(netns) }) else { return NEXT };
    let reason = match udp::leaving(workload, sender, if later { None } else { Some(&destination) }) {
        Leaving::Pass => return NEXT,
        Leaving::Denied => Counter::UdpDenied,
        Leaving::Unexplained => Counter::EgressUnexplained,
    };
    tell(reason, workload.id, &Tuple { netns, client: source, server: destination });
    DROP
}

/// TCP, or UDP, of which not enough is there to judge it, or what hides its kind. A socket that a hook let go sends no such thing by itself.
#[inline(always)]
fn unreadable(sender: Sender) -> i32 {
    if matches!(sender, Sender::Released) { NEXT } else { refuse(&Endpoint::ZERO, &Endpoint::ZERO) }
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
