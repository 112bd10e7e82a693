//! TCP and UDP packets as the tc programs see them. In: a packet. Out: its addresses, ports and flags, and what the kernel
//! has for them. Decides nothing.

use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1 as Addresses};
use aya_ebpf::bindings::{
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
};
use aya_ebpf::helpers::generated::{bpf_sk_fullsock, bpf_sk_release, bpf_skb_load_bytes_relative, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use mesh_common::abi::{PortKey, Tuple, Workload};
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::capture::{self, Found};
use mesh_common::egress::{ACK, SYN};

use crate::maps::{AGENT, KEPT, PORT_MODES, VERDICT};
use crate::socket::{BPF_F_CURRENT_NETNS, TCP_LISTEN};

pub const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
pub const ETH_P_IPV6: u32 = (0x86dd_u16).to_be() as u32;
const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_UDPLITE: u8 = 136;
/// IPv6 extension headers (RFC 8200, 4) that may stand before TCP and UDP.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const PIECE: u8 = 44;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
/// Extension headers that are looked into. A packet with more hides something.
const MAX_EXTENSIONS: usize = 6;
const IPV6_HEADER: u32 = 40;
/// Version and length of an IPv4 header without options.
const PLAIN_IPV4: u8 = 0x45;
/// "More fragments" and the offset, in IPv4's fragment word.
const FRAGMENT: u16 = 0x3fff;
/// The offset alone.
const OFFSET: u16 = 0x1fff;
const BPF_HDR_START_MAC: u32 = 0;
const BPF_HDR_START_NET: u32 = 1;
/// Tags of VLANs (IEEE 802.1Q, 802.1ad), as types of frames.
pub const ETH_P_8021Q: u32 = (0x8100_u16).to_be() as u32;
pub const ETH_P_8021AD: u32 = (0x88a8_u16).to_be() as u32;
/// Where an Ethernet frame tells its type (IEEE 802.3).
const ETHERTYPE: u32 = 12;
/// Length of its header.
const ETHERNET: usize = 14;
const TCP_TIME_WAIT: u32 = 6;

/// RFC 791, 3.1.
#[repr(C)]
struct Ipv4 {
    version_length: u8,
    _tos: u8,
    total: u16,
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
    head: u32,
    length: u16,
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
    sequence: u32,
    _acknowledged: u32,
    offset: u8,
    flags: u8,
}

/// What TCP's header begins with, and UDP's (RFC 768, RFC 3828).
#[repr(C)]
struct Ports {
    source: u16,
    destination: u16,
}

/// An extension header's first bytes; its length is in units of eight bytes, without the first.
#[repr(C)]
struct Extension {
    next: u8,
    length: u8,
}

/// A fragment's header (RFC 8200, 4.5), up to the offset.
#[repr(C)]
struct Piece {
    next: u8,
    _reserved: u8,
    offset: u16,
}

/// Both headers where nothing stands between them: one copy instead of two.
#[repr(C)]
struct Ipv4Tcp {
    ip: Ipv4,
    tcp: Tcp,
}

/// As [`Ipv4Tcp`].
#[repr(C)]
struct Ipv6Tcp {
    ip: Ipv6,
    tcp: Tcp,
}

/// What stands behind an IP header.
pub enum Content {
    /// A whole TCP header.
    Tcp(Packet),
    /// TCP whose header is not here, or not all of it: a fragment.
    TcpPart,
    /// Another protocol, or one behind IPv6 extension headers.
    Else(u8),
}

/// A TCP packet.
pub struct Packet {
    pub source: Endpoint,
    pub destination: Endpoint,
    pub flags: u8,
    pub sequence: u32,
    /// It carries no data.
    pub empty: bool,
}

/// What stands behind IPv6 extension headers.
pub enum Behind {
    /// TCP, and where its header is, unless it is in another piece.
    Tcp(Option<u32>),
    /// UDP, and where its header is, unless it is in another piece.
    Udp(Option<u32>),
    /// It cannot be told.
    Hidden,
    /// Something else.
    Else,
}

/// A datagram of UDP or the beginning of TCP's header, or a piece without either.
pub struct Datagram {
    /// Without a port in a piece that is not the first.
    pub source: Endpoint,
    /// As the source.
    pub destination: Endpoint,
    /// It is not the first piece. The first has eight bytes at least, so the ports are there.
    pub later: bool,
}

/// What a frame on its way out carries: `ETH_P_IP`, `ETH_P_IPV6` or another type; `None` if it is another thing to who
/// gets it than to this kernel. A packet socket says the one to the kernel and writes the other; a frame with a tag of
/// VLAN 0 is to Linux as one without.
#[inline(always)]
pub fn carries(ctx: &TcContext) -> Option<u32> {
    // SAFETY: a field of the context.
    let said = unsafe { (*ctx.skb.skb).protocol };
    if u32::from(load_from::<u16>(ctx, ETHERTYPE, BPF_HDR_START_MAC)?) == said {
        return if said == ETH_P_8021Q || said == ETH_P_8021AD { None } else { Some(said) };
    }
    // On an interface without link layer headers the packet begins where its frame does.
    let frame: [u32; 4] = load_from(ctx, 0, BPF_HDR_START_MAC)?;
    let packet: [u32; 4] = load(ctx, 0)?;
    let same = Addr(frame).same(&Addr(packet));
    if same { Some(said) } else { None }
}

/// An IPv4 packet; `None` if it is cut off, or none.
#[inline(always)]
pub fn v4(ctx: &TcContext) -> Option<Content> {
    if let Some(Ipv4Tcp { ip, tcp }) = load(ctx, 0)
        && ip.version_length == PLAIN_IPV4
        && ip.protocol == IPPROTO_TCP
        && u16::from_be(ip.fragment) & FRAGMENT == 0
    {
        return Some(Content::Tcp(packet4(&ip, &tcp)));
    }
    let ip: Ipv4 = load(ctx, 0)?;
    if ip.version_length >> 4 != 4 {
        return None;
    }
    if ip.protocol != IPPROTO_TCP {
        return Some(Content::Else(ip.protocol));
    }
    if u16::from_be(ip.fragment) & FRAGMENT != 0 {
        return Some(Content::TcpPart);
    }
    let header = u32::from(ip.version_length & 0x0f) * 4;
    let tcp: Tcp = load(ctx, header)?;
    Some(Content::Tcp(packet4(&ip, &tcp)))
}

#[inline(always)]
fn packet4(ip: &Ipv4, tcp: &Tcp) -> Packet {
    let header = u32::from(ip.version_length & 0x0f) * 4;
    let data = u32::from(u16::from_be(ip.total)).wrapping_sub(header);
    packet(tcp, Addr::from_v4_wire(ip.source), Addr::from_v4_wire(ip.destination), data)
}

/// An IPv6 packet; `None` if it is cut off, or none.
#[inline(always)]
pub fn v6(ctx: &TcContext) -> Option<Content> {
    if let Some(Ipv6Tcp { ip, tcp }) = load(ctx, 0)
        && u32::from_be(ip.head) >> 28 == 6
        && ip.next == IPPROTO_TCP
    {
        return Some(Content::Tcp(packet6(&ip, &tcp)));
    }
    let ip: Ipv6 = load(ctx, 0)?;
    if u32::from_be(ip.head) >> 28 != 6 {
        return None;
    }
    if ip.next != IPPROTO_TCP {
        return Some(Content::Else(ip.next));
    }
    let tcp: Tcp = load(ctx, size_of::<Ipv6>() as u32)?;
    Some(Content::Tcp(packet6(&ip, &tcp)))
}

#[inline(always)]
fn packet6(ip: &Ipv6, tcp: &Tcp) -> Packet {
    packet(tcp, Addr(ip.source), Addr(ip.destination), u16::from_be(ip.length).into())
}

/// The ends of an IPv4 packet whose protocol is UDP, UDP-Lite or TCP; `None` if it is cut off.
#[inline(always)]
pub fn datagram4(ctx: &TcContext) -> Option<Datagram> {
    let ip: Ipv4 = load(ctx, 0)?;
    let later = u16::from_be(ip.fragment) & OFFSET != 0;
    let header = u32::from(ip.version_length & 0x0f) * 4;
    datagram(
        ctx,
        Addr::from_v4_wire(ip.source),
        Addr::from_v4_wire(ip.destination),
        if later { None } else { Some(header) },
    )
}

/// The ends of an IPv6 packet whose UDP or TCP header stands at an offset, if it is in this piece of it.
#[inline(always)]
pub fn datagram6(ctx: &TcContext, header: Option<u32>) -> Option<Datagram> {
    let ip: Ipv6 = load(ctx, 0)?;
    datagram(ctx, Addr(ip.source), Addr(ip.destination), header)
}

#[inline(always)]
fn datagram(ctx: &TcContext, source: Addr, destination: Addr, header: Option<u32>) -> Option<Datagram> {
    let (from, to) = match header {
        Some(offset) => {
            let ports: Ports = load(ctx, offset)?;
            (u16::from_be(ports.source).into(), u16::from_be(ports.destination).into())
        }
        None => (0, 0),
    };
    let (source, destination) = (Endpoint { addr: source, port: from }, Endpoint { addr: destination, port: to });
    Some(Datagram { source, destination, later: header.is_none() })
}

/// What stands behind the extension headers of an IPv6 packet, of which the first is `first`.
#[inline(always)]
pub fn behind(ctx: &TcContext, first: u8) -> Behind {
    let mut next = first;
    let mut offset = IPV6_HEADER;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            IPPROTO_TCP => return Behind::Tcp(Some(offset)),
            IPPROTO_UDP | IPPROTO_UDPLITE => return Behind::Udp(Some(offset)),
            PIECE => return in_piece(ctx, offset),
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY => {}
            _ => return Behind::Else,
        }
        let Some(header) = load::<Extension>(ctx, offset) else { return Behind::Hidden };
        offset += (u32::from(header.length) + 1) * 8;
        next = header.next;
    }
    Behind::Hidden
}

/// Behind the header of a piece that is not the first one there is data, but its next header tells of what.
#[inline(always)]
fn in_piece(ctx: &TcContext, offset: u32) -> Behind {
    let Some(piece) = load::<Piece>(ctx, offset) else { return Behind::Hidden };
    let first = u16::from_be(piece.offset) & 0xfff8 == 0;
    let header = if first { Some(offset + 8) } else { None };
    match piece.next {
        IPPROTO_UDP | IPPROTO_UDPLITE => Behind::Udp(header),
        IPPROTO_TCP => Behind::Tcp(header),
        // The chain goes on, inside of what is cut into pieces.
        HOP_BY_HOP | ROUTING | PIECE | DESTINATION | MOBILITY => Behind::Hidden,
        _ => Behind::Else,
    }
}

/// `length`: of TCP's header and data.
#[inline(always)]
fn packet(tcp: &Tcp, source: Addr, destination: Addr, length: u32) -> Packet {
    Packet {
        source: Endpoint { addr: source, port: u16::from_be(tcp.source).into() },
        destination: Endpoint { addr: destination, port: u16::from_be(tcp.destination).into() },
        flags: tcp.flags,
        sequence: u32::from_be(tcp.sequence),
        // Longer than the 16 bits can say (BIG TCP) is said as 0, which is not the header's length either.
        empty: length == u32::from(tcp.offset >> 4) * 4,
    }
}

/// To which port a TCP packet goes that opens no connection. `None` for all others, and where that is not seen at the first
/// look. Of the later pieces of a packet it tells any port: nothing depends on these.
#[inline(always)]
pub fn going_on(ctx: &TcContext) -> Option<u16> {
    // SAFETY: a field of the context.
    let protocol = unsafe { (*ctx.skb.skb).protocol };
    // SAFETY: parts of headers that are within the packet.
    let (plain, next, flags, port) = unsafe {
        match protocol {
            ETH_P_IP => {
                let header = behind_ethernet::<Ipv4Tcp>(ctx, protocol)?;
                let plain = (*header).ip.version_length == PLAIN_IPV4;
                (plain, (*header).ip.protocol, (*header).tcp.flags, &raw const (*header).tcp.destination)
            }
            ETH_P_IPV6 => {
                let header = behind_ethernet::<Ipv6Tcp>(ctx, protocol)?;
                (true, (*header).ip.next, (*header).tcp.flags, &raw const (*header).tcp.destination)
            }
            _ => return None,
        }
    };
    if !plain || next != IPPROTO_TCP || flags & (SYN | ACK) == SYN {
        return None;
    }
    // SAFETY: as above.
    Some(u16::from_be(unsafe { port.read_unaligned() }))
}

/// Where a header is, if an Ethernet header stands before it. Not aligned. `None`: it may be elsewhere.
#[inline(always)]
fn behind_ethernet<T>(ctx: &TcContext, protocol: u32) -> Option<*const T> {
    let start = ctx.data();
    if start + ETHERNET + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the packet.
    let ethertype = unsafe { ((start + ETHERTYPE as usize) as *const u16).read_unaligned() };
    (u32::from(ethertype) == protocol).then_some((start + ETHERNET) as *const T)
}

impl Packet {
    /// The connection, with the sender in the client's place.
    #[inline(always)]
    pub fn sent(&self, netns: u64) -> Tuple {
        Tuple { netns, client: self.source, server: self.destination }
    }

    /// The connection, with the receiver in the client's place.
    #[inline(always)]
    pub fn answered(&self, netns: u64) -> Tuple {
        Tuple { netns, client: self.destination, server: self.source }
    }
}

/// A pair of ends as the socket lookups take it, and how much of it they read.
#[inline(always)]
pub fn sock_tuple<const V4: bool>(source: &Endpoint, destination: &Endpoint) -> (bpf_sock_tuple, u32) {
    let (sport, dport) = ((source.port as u16).to_be(), (destination.port as u16).to_be());
    if V4 {
        let ipv4 = Tuple4 { saddr: source.addr.0[3], daddr: destination.addr.0[3], sport, dport };
        (bpf_sock_tuple { __bindgen_anon_1: Addresses { ipv4 } }, size_of::<Tuple4>() as u32)
    } else {
        let ipv6 = Tuple6 { saddr: source.addr.0, daddr: destination.addr.0, sport, dport };
        (bpf_sock_tuple { __bindgen_anon_1: Addresses { ipv6 } }, size_of::<Tuple6>() as u32)
    }
}

/// What the kernel would find for a packet from `source` to `destination`. Only with `own`, whose the connection is.
#[inline(always)]
pub fn find<const V4: bool>(ctx: &TcContext, source: &Endpoint, destination: &Endpoint, own: Option<&Tuple>) -> Found {
    find_or::<V4>(ctx, source, destination, own, |_| {})
}

/// As [`find`]. Where the kernel's search ends at a listener, `listener` gets it, before it is released.
#[inline(always)]
pub fn find_or<const V4: bool>(
    ctx: &TcContext,
    source: &Endpoint,
    destination: &Endpoint,
    own: Option<&Tuple>,
    listener: impl FnOnce(*mut bpf_sock),
) -> Found {
    let (mut tuple, size) = sock_tuple::<V4>(source, destination);
    // SAFETY: the tuple is initialised in its first `size` bytes, which is what the helper reads.
    let sk = unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size, BPF_F_CURRENT_NETNS, 0) };
    if sk.is_null() {
        return Found::Nobody;
    }
    // SAFETY: sk came from the lookup and is not null.
    let state = unsafe { (*sk).state };
    let found = match (state, own) {
        (TCP_LISTEN, _) => {
            listener(sk);
            Found::Nobody
        }
        (TCP_TIME_WAIT, _) => Found::TimeWait,
        (_, Some(tuple)) if is_foreign(sk, tuple) => Found::Foreign,
        _ => Found::Live,
    };
    // SAFETY: the one release of this reference.
    unsafe { bpf_sk_release(sk.cast()) };
    found
}

/// Whether a connection's socket is an application's that nobody spoke for. A handshake is nobody's yet.
#[inline(always)]
fn is_foreign(sk: *mut bpf_sock, tuple: &Tuple) -> bool {
    // SAFETY: sk came from a lookup, is not null and not yet released.
    let full = unsafe { bpf_sk_fullsock(sk) };
    if full.is_null() {
        return false;
    }
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let kept = || unsafe { KEPT.get(tuple) }.copied();
    capture::is_foreign(AGENT.get(full).is_some(), VERDICT.get(full), kept)
}

/// Whether a port of this workload takes nothing in the open.
#[inline(always)]
pub fn is_strict(netns: u64, workload: &Workload, port: u16) -> bool {
    let key = PortKey { netns, port: port.into(), zero: 0 };
    // SAFETY: as in is_foreign.
    capture::is_strict(workload, port, || unsafe { PORT_MODES.get(key) }.copied())
}

/// A header at `offset` from the network header, wherever that is: not every interface has a link layer header.
#[inline(always)]
pub fn load<T>(ctx: &TcContext, offset: u32) -> Option<T> {
    load_from(ctx, offset, BPF_HDR_START_NET)
}

#[inline(always)]
fn load_from<T>(ctx: &TcContext, offset: u32, start: u32) -> Option<T> {
    let mut header = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes size_of::<T>() bytes to the header or fails.
    let failed = unsafe {
        bpf_skb_load_bytes_relative(ctx.as_ptr(), offset, header.as_mut_ptr().cast(), size_of::<T>() as u32, start)
    };
    // SAFETY: written in full, and the headers are made of integers.
    if failed == 0 { Some(unsafe { header.assume_init() }) } else { None }
}
