//! tc ingress on every interface of a pod but loopback. In: a packet. Out: TCP that belongs to no live connection is
//! given to the agent's listener, which so accepts with the original local address; everything else goes on as it is.
//! With the agent's listener gone, the packet goes on to the application and is counted (PERMISSIVE).
//! Left to the kernel and so to `lookup`: IPv4 fragments, TCP behind IPv6 extension headers, and a SYN that meets
//! TIME_WAIT: a listener given here would find the old connection in its way and drop the SYN (Linux 6.10 and later).

use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1 as Addresses};
use aya_ebpf::bindings::{
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
};
use aya_ebpf::helpers::generated::{bpf_sk_assign, bpf_sk_release, bpf_skb_load_bytes_relative, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use mesh_common::abi::{self, Counter};
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::capture::{self, Found, Inbound};

use crate::maps::{INGRESS_NETNS, WORKLOADS};
use crate::report::{count, tell};

/// Go on with the next program, or to the stack if there is none.
const NEXT: i32 = -1;
const DROP: i32 = 2;

const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
const ETH_P_IPV6: u32 = (0x86dd_u16).to_be() as u32;
const IPPROTO_TCP: u8 = 6;
/// "More fragments" and the offset, in IPv4's fragment word.
const FRAGMENT: u16 = 0x3fff;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const BPF_HDR_START_NET: u32 = 1;
const BPF_F_CURRENT_NETNS: u64 = u64::MAX;
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;

/// RFC 791, 3.1.
#[repr(C)]
struct Ipv4 {
    version_length: u8,
    _tos: u8,
    _total: u16,
    _id: u16,
    fragment: u16,
    _ttl: u8,
    protocol: u8,
    _checksum: u16,
    source: u32,
    destination: u32,
}

/// RFC 8200, 3.
#[repr(C)]
struct Ipv6 {
    _head: u32,
    _length: u16,
    next: u8,
    _hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// RFC 9293, 3.1, up to the flags.
#[repr(C)]
struct Tcp {
    source: u16,
    destination: u16,
    _sequence: u32,
    _acknowledged: u32,
    _offset: u8,
    flags: u8,
    _window: u16,
}

pub fn run(ctx: &TcContext) -> i32 {
    // SAFETY: a field of the context.
    match unsafe { (*ctx.skb.skb).protocol } {
        ETH_P_IP => v4(ctx).unwrap_or(NEXT),
        ETH_P_IPV6 => v6(ctx).unwrap_or(NEXT),
        _ => NEXT,
    }
}

#[inline(always)]
fn v4(ctx: &TcContext) -> Option<i32> {
    let ip: Ipv4 = load(ctx, 0)?;
    if ip.protocol != IPPROTO_TCP || u16::from_be(ip.fragment) & FRAGMENT != 0 {
        return None;
    }
    let tcp: Tcp = load(ctx, u32::from(ip.version_length & 0x0f) * 4)?;
    let packet = Tuple4 { saddr: ip.source, daddr: ip.destination, sport: tcp.source, dport: tcp.destination };
    // Nobody has port 0 of 0.0.0.0 at the other end, so this finds a listener or nothing.
    let listener = |port: u16| Tuple4 { saddr: 0, daddr: 0, sport: 0, dport: port.to_be() };
    steer(
        ctx,
        &tcp,
        bpf_sock_tuple { __bindgen_anon_1: Addresses { ipv4: packet } },
        |port| bpf_sock_tuple { __bindgen_anon_1: Addresses { ipv4: listener(port) } },
        size_of::<Tuple4>() as u32,
        || (Addr::from_v4_wire(ip.source), Addr::from_v4_wire(ip.destination)),
    )
}

#[inline(always)]
fn v6(ctx: &TcContext) -> Option<i32> {
    let ip: Ipv6 = load(ctx, 0)?;
    if ip.next != IPPROTO_TCP {
        return None;
    }
    let tcp: Tcp = load(ctx, size_of::<Ipv6>() as u32)?;
    let packet = Tuple6 { saddr: ip.source, daddr: ip.destination, sport: tcp.source, dport: tcp.destination };
    let listener = |port: u16| Tuple6 { saddr: [0; 4], daddr: [0; 4], sport: 0, dport: port.to_be() };
    steer(
        ctx,
        &tcp,
        bpf_sock_tuple { __bindgen_anon_1: Addresses { ipv6: packet } },
        |port| bpf_sock_tuple { __bindgen_anon_1: Addresses { ipv6: listener(port) } },
        size_of::<Tuple6>() as u32,
        || (Addr(ip.source), Addr(ip.destination)),
    )
}

/// Gives the packet to one of the agent's listeners, or `None` if it is not for them.
#[inline(always)]
fn steer(
    ctx: &TcContext,
    tcp: &Tcp,
    packet: bpf_sock_tuple,
    listener: impl Fn(u16) -> bpf_sock_tuple,
    size: u32,
    addresses: impl Fn() -> (Addr, Addr),
) -> Option<i32> {
    let netns = INGRESS_NETNS.load();
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let workload = unsafe { WORKLOADS.get(netns) }?;
    let syn = tcp.flags & (SYN | ACK) == SYN;
    let found = find(ctx, packet, size);
    if syn && matches!(found, Found::TimeWait) {
        count(Counter::InboundTimeWait);
    }
    let port = match capture::inbound(workload, u16::from_be(tcp.destination), found)? {
        Inbound::Plain(port) | Inbound::Tunnel(port) => port,
    };
    let sk = lookup(ctx, &mut listener(port), size);
    if sk.is_null() {
        if syn {
            tell(Counter::InboundNoAgent, workload.id, &tuple(netns, tcp, addresses()));
        }
        return None;
    }
    // SAFETY: sk came from the lookup, is not null, and is released below.
    let listens = unsafe { (*sk).state } == TCP_LISTEN;
    // SAFETY: as above.
    let assigned = listens && unsafe { bpf_sk_assign(ctx.as_ptr(), sk.cast(), 0) } == 0;
    // SAFETY: as above; this is the one release of this reference.
    unsafe { bpf_sk_release(sk.cast()) };
    if !assigned {
        tell(Counter::InboundAssignFailed, workload.id, &tuple(netns, tcp, addresses()));
        return Some(DROP);
    }
    count(Counter::InboundAssigned);
    Some(NEXT)
}

/// What the kernel would find for a packet.
#[inline(always)]
fn find(ctx: &TcContext, mut packet: bpf_sock_tuple, size: u32) -> Found {
    let sk = lookup(ctx, &mut packet, size);
    if sk.is_null() {
        return Found::Nobody;
    }
    // SAFETY: sk came from the lookup and is not null.
    let state = unsafe { (*sk).state };
    // SAFETY: the one release of this reference.
    unsafe { bpf_sk_release(sk.cast()) };
    match state {
        TCP_LISTEN => Found::Nobody,
        TCP_TIME_WAIT => Found::TimeWait,
        _ => Found::Live,
    }
}

#[inline(always)]
fn lookup(ctx: &TcContext, tuple: &mut bpf_sock_tuple, size: u32) -> *mut bpf_sock {
    // SAFETY: the tuple is initialised in its first `size` bytes, which is what the helper reads.
    unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut *tuple, size, BPF_F_CURRENT_NETNS, 0) }
}

/// A header at `offset` from the network header, wherever that is: not every interface has a link layer header.
#[inline(always)]
fn load<T>(ctx: &TcContext, offset: u32) -> Option<T> {
    let mut header = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes size_of::<T>() bytes to the header or fails.
    let failed = unsafe {
        bpf_skb_load_bytes_relative(
            ctx.as_ptr(),
            offset,
            header.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            BPF_HDR_START_NET,
        )
    };
    // SAFETY: written in full, and the headers are made of integers.
    if failed == 0 { Some(unsafe { header.assume_init() }) } else { None }
}

#[inline(always)]
fn tuple(netns: u64, tcp: &Tcp, (source, destination): (Addr, Addr)) -> abi::Tuple {
    abi::Tuple {
        netns,
        client: Endpoint { addr: source, port: u16::from_be(tcp.source).into() },
        server: Endpoint { addr: destination, port: u16::from_be(tcp.destination).into() },
    }
}
