//! Keys, values and names of the kernel maps, and their sizes. In and out: nothing, these are declarations. No field is
//! ever padding: the kernel compares keys byte by byte, so a byte that nobody wrote would make equal keys differ.
//! A change of any layout here needs a new [`ABI_VERSION`], which is part of the pin path.

use crate::addr::{Addr, Endpoint};

mod carried;
mod direct;
mod host;
mod ports;
mod short;

pub use carried::{Carried, Pair, Path};
pub use direct::{Allowance, BY_SERVICE, Direct, PAUSED, Service, Slot, Stage, Way};
pub use host::{DoorKey, HOST_NETNS, MAX_CGROUPS, MAX_HOST_PORTS, MAX_HOST_WORKLOADS};
pub use ports::{Mode, OutboundKey, PortKey};
pub use short::{End, LINK_WANTED, Place, QUEUE, SIDE_CLIENT, SIDE_SERVER, Short, Shortcut};

/// Version of everything in this file.
pub const ABI_VERSION: u32 = 15;

/// Addresses of its own that a workload can have; further ones are treated as foreign (its connections to them go
/// through the agent, which reaches them all the same).
pub const MAX_ADDRESSES: usize = 8;
/// Words of [`Workload::mode_ports`]; a power of two.
pub const MODE_PORT_WORDS: usize = 4;
/// Workloads on one node.
pub const MAX_WORKLOADS: u32 = 10_000;
/// Places in UNGUARDED; a power of two, and more than [`MAX_WORKLOADS`], so that those of one time rarely meet.
pub const MAX_UNGUARDED: u32 = 16_384;
/// Outbound listeners: of two families for each workload, and as many more while listeners of an agent before this one
/// are not closed yet.
pub const MAX_OUTBOUND: u32 = 4 * MAX_WORKLOADS;
/// Connections between `connect()` and their acceptance by the agent, of all workloads together. When the map is full
/// the agent finds no original destination and resets the connection ([`Counter::FlowFull`]).
pub const MAX_FLOWS: u32 = 65_536;
/// Connections of the agent between `connect()` and their acceptance by an application. When the map is full the agent
/// ends the connection ([`Counter::PeerFull`]).
pub const MAX_PEERS: u32 = 65_536;
/// Places for open connections that were redirected or go directly, of all workloads together; a power of two. The socket
/// whose place another has keeps its destination in a storage of its own, which takes longer.
pub const MAX_ASKED: u32 = 65_536;
/// Most of [`MAX_FLOWS`], and of [`MAX_PEERS`], that are of one workload: so none takes the places of all others.
pub const MAX_SHARE: i64 = 8192;
/// Ports of all workloads together whose inbound mode is not their workload's. What does not fit is STRICT.
pub const MAX_PORT_MODES: u32 = 65_536;
/// Ports of all workloads together to which the orchestrator sends TCP probes.
pub const MAX_PROBED: u32 = 65_536;
/// Addresses of the node from which probes come.
pub const MAX_NODE_ADDRESSES: u32 = 256;
/// Connections of all workloads together that are older than their enrolment and may go on.
pub const MAX_KEPT: u32 = 65_536;
/// DNS servers that have been asked, of all workloads together; one workload can have [`dns::PLACES4`] and
/// [`dns::PLACES6`]. Where there is no place for a server, its questions do as without the agent
/// ([`Counter::DnsFull`]).
///
/// [`dns::PLACES4`]: crate::dns::PLACES4
/// [`dns::PLACES6`]: crate::dns::PLACES6
pub const MAX_DNS_PLACES: u32 = 262_144;
/// Ports of workloads that other workloads of the node may connect to by themselves, once for each of those. What does
/// not fit goes through the agent.
pub const MAX_ALLOWED: u32 = 262_144;
/// Direct connections of all workloads together. When the map is full no SYN of a new one leaves
/// ([`Counter::DirectFull`]).
pub const MAX_DIRECT: u32 = 1_048_576;
/// Most of [`MAX_DIRECT`] that are of one client; further ones go through the agent.
pub const MAX_DIRECT_SHARE: i64 = 32_768;
/// Addresses of services whose endpoint the programs choose, once for each workload that knows them.
pub const MAX_SERVICES: u32 = 262_144;
/// Places of endpoints of all services together.
pub const MAX_SLOTS: u32 = 1_048_576;
/// Connections with a shortcut, of all workloads together. When it is full, or one of the maps beside it, a connection goes
/// by TCP ([`Counter::ShortcutFull`]).
pub const MAX_SHORTCUTS: u32 = 32_768;
/// Entries of [`Pair`]s that direct connections are counted for, one for each destination of each client. What does not fit is
/// counted for [`Pair::NOBODY`] ([`Counter::DirectUnnamed`]).
pub const MAX_PAIRS: u32 = 65_536;
/// Agents (cgroups) whose processes are never caught: two during an upgrade.
pub const MAX_AGENTS: usize = 16;
/// Bytes of the ring buffer for [`Event`]s; what does not fit is counted ([`Counter::EventLost`]).
pub const EVENT_BYTES: u32 = 256 * 1024;

/// The wire port of HBONE, which goes to the tunnel listener.
pub const TUNNEL_PORT: u16 = 15008;

/// Names of the maps in the object.
pub mod maps {
    /// netns cookie, or number of a workload of the host (u64) → [`Workload`](super::Workload). Written by the agent only.
    pub const WORKLOADS: &str = "WORKLOADS";
    /// place of a netns cookie ([`unguarded_at`](super::unguarded_at)) → [`Unguarded`](super::Unguarded). Written by the agent
    /// only.
    pub const UNGUARDED: &str = "UNGUARDED";
    /// 0 → cgroup ids of [`MAX_AGENTS`](super::MAX_AGENTS) agents (u64 each); 0 in free places. Written by the agent only.
    pub const AGENTS: &str = "AGENTS";
    /// cgroup id (u64) → number of a workload of the host (u64). Written by the agent only.
    pub const CGROUPS: &str = "CGROUPS";
    /// 0 → the levels at which CGROUPS has cgroups (u32), by [`mark`](crate::host::mark). Written by the agent only.
    pub const LEVELS: &str = "LEVELS";
    /// port of the host (u32) → number of the workload that has it (u64). Written by the agent only.
    pub const HOST_PORTS: &str = "HOST_PORTS";
    /// [`DoorKey`](super::DoorKey) → the agent's inbound listener for it. Written by the agent only.
    pub const HOST_DOORS: &str = "HOST_DOORS";
    /// [`Tuple`](super::Tuple) → [`Far`](super::Far), the original destination.
    pub const FLOW: &str = "FLOW";
    /// [`Tuple`](super::Tuple) → [`Endpoint`](super::Endpoint), the real client.
    pub const PEER: &str = "PEER";
    /// netns cookie (u64) → [`Share`](super::Share). The agent makes and removes entries, the programs count in them.
    pub const SHARES: &str = "SHARES";
    /// place of a cookie ([`asked_at`](super::asked_at)) → [`Asked`](super::Asked), where the application's socket wanted to go.
    pub const ASKED: &str = "ASKED";
    /// socket of an application → [`Far`](super::Far), who is really at the other end.
    pub const FAR: &str = "FAR";
    /// socket of the agent → [`Agent`](super::Agent); inherited by accepted sockets.
    pub const AGENT: &str = "AGENT";
    /// [`PortKey`](super::PortKey) → [`Mode`](super::Mode) as u32. Written by the agent only.
    pub const PORT_MODES: &str = "PORT_MODES";
    /// [`PortKey`](super::PortKey) → u32 (1). Written by the agent only.
    pub const PROBED: &str = "PROBED";
    /// [`Addr`](super::Addr) of the node → u32 (1). Written by the agent only.
    pub const NODE: &str = "NODE";
    /// [`Tuple`](super::Tuple) (the workload's end as client) → a `KEPT_` constant. Written by the agent only.
    pub const KEPT: &str = "KEPT";
    /// socket → [`Verdict`](super::Verdict) as u32.
    pub const VERDICT: &str = "VERDICT";
    /// [`DnsPlace`](super::DnsPlace) → [`Endpoint`](super::Endpoint), the DNS server.
    pub const DNS: &str = "DNS";
    /// [`Way`](super::Way) → [`Allowance`](super::Allowance). Written by the agent; the programs count what is missed.
    pub const ALLOWED: &str = "ALLOWED";
    /// [`Tuple`](super::Tuple) with 0 for its namespace → [`Direct`](super::Direct).
    pub const DIRECT: &str = "DIRECT";
    /// [`Way`](super::Way) to a service → [`Service`](super::Service). Written by the agent only.
    pub const SERVICES: &str = "SERVICES";
    /// [`Slot`](super::Slot) → [`Endpoint`](super::Endpoint). Written by the agent only.
    pub const SLOTS: &str = "SLOTS";
    /// socket → [`Short`](super::Short), the end of a shortcut that it is.
    pub const SHORT: &str = "SHORT";
    /// id of a connection (u64) → [`Shortcut`](super::Shortcut).
    pub const SHORTCUTS: &str = "SHORTCUTS";
    /// [`End`](super::End) → socket.
    pub const SHORT_SOCKETS: &str = "SHORT_SOCKETS";
    /// [`Tuple`](super::Tuple) → id of the connection (u64), on its way to the socket that accepts.
    pub const SHORT_WAY: &str = "SHORT_WAY";
    /// id of a connection (u64) → bytes that the agent has read from it (u64).
    pub const SHORT_READ: &str = "SHORT_READ";
    /// [`Pair`](super::Pair) → [`Carried`](super::Carried), since the entry was made. The agent removes what has rested.
    pub const DIRECT_STATS: &str = "DIRECT_STATS";
    /// [`Pair`](super::Pair) → [`Carried`](super::Carried), what agents have told of it. Read and written by agents only.
    pub const DIRECT_TOLD: &str = "DIRECT_TOLD";
    /// Place of a [`Path`](super::Path) ([`crate::tcp::place`]) → u64, per CPU.
    pub const TCP_STATS: &str = "TCP_STATS";
    /// [`Counter`](super::Counter) → u64, per CPU.
    pub const METRICS: &str = "METRICS";
    /// A `LISTENER_` constant → the agent's listener in this pod. One map per pod, not pinned. Written by the agent only.
    pub const LISTENERS: &str = "LISTENERS";
    /// [`OutboundKey`](super::OutboundKey) → the agent's outbound listener there. Written by the agent only.
    pub const OUTBOUND: &str = "OUTBOUND";
    /// [`Event`](super::Event)s.
    pub const EVENTS: &str = "EVENTS";
    /// Every map that is shared by all instances of the programs, by a pin.
    pub const ALL: [&str; 34] = [
        WORKLOADS,
        UNGUARDED,
        AGENTS,
        CGROUPS,
        LEVELS,
        HOST_PORTS,
        HOST_DOORS,
        OUTBOUND,
        FLOW,
        PEER,
        SHARES,
        PORT_MODES,
        PROBED,
        NODE,
        KEPT,
        ASKED,
        FAR,
        AGENT,
        VERDICT,
        DNS,
        ALLOWED,
        DIRECT,
        SERVICES,
        SLOTS,
        SHORT,
        SHORTCUTS,
        SHORT_SOCKETS,
        SHORT_WAY,
        SHORT_READ,
        DIRECT_STATS,
        DIRECT_TOLD,
        TCP_STATS,
        METRICS,
        EVENTS,
    ];
}

/// Place in LISTENERS of the listener for plain IPv4 connections.
pub const LISTENER_PLAIN4: u32 = 0;
/// Place in LISTENERS of the listener for plain IPv6 connections.
pub const LISTENER_PLAIN6: u32 = 1;
/// Place in LISTENERS of the listener for HBONE over IPv4.
pub const LISTENER_TUNNEL4: u32 = 2;
/// Place in LISTENERS of the listener for HBONE over IPv6.
pub const LISTENER_TUNNEL6: u32 = 3;
/// Places in LISTENERS.
pub const LISTENER_COUNT: u32 = 4;

/// Name of the load-time constant that holds the netns cookie for which one instance of `ingress`, `egress` and `lookup` works.
pub const INGRESS_NETNS: &str = "INGRESS_NETNS";

/// In KEPT: the workload opened the connection.
pub const KEPT_OUTBOUND: u32 = 1;
/// In KEPT: the connection was opened to the workload.
pub const KEPT_INBOUND: u32 = 2;

/// In [`Workload::flags`]: what comes in the open is refused, on every port that PORT_MODES does not name.
pub const STRICT: u32 = 1;
/// In [`Workload::flags`]: some ports of this workload are in PORT_MODES.
pub const HAS_PORT_MODES: u32 = 1 << 1;
/// In [`Workload::flags`]: without an agent, connections pass that no STRICT forbids. Otherwise none does.
pub const LOSS_OPEN: u32 = 1 << 2;
/// In [`Workload::flags`]: of UDP, only questions to name servers may leave.
pub const UDP_DNS_ONLY: u32 = 1 << 3;
/// In [`Workload::flags`]: no UDP may leave.
pub const UDP_DENY: u32 = 1 << 4;
/// In [`Workload::flags`]: some ports of this workload are in PROBED.
pub const HAS_PROBED: u32 = 1 << 5;
/// In [`Workload::flags`]: some destinations of this workload are in ALLOWED, and new connections may go there directly.
pub const HAS_DIRECT: u32 = 1 << 6;
/// In [`Workload::flags`]: there may be connections to this workload in DIRECT.
pub const TAKES_DIRECT: u32 = 1 << 7;

/// In [`Workload::flags`]: its connections with the agent may have shortcuts.
pub const SHORTCUTS: u32 = 1 << 8;

/// An enrolled workload, by its network namespace's cookie; one of the host by [`crate::host::key`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The agent's number for it.
    pub id: u32,
    /// [`STRICT`] and the other flags above.
    pub flags: u32,
    /// Which ports may be in PORT_MODES: [`crate::capture::mark`] sets the bits.
    pub mode_ports: [u32; MODE_PORT_WORDS],
    /// The IPv4 address that the workload shows to others; [`Addr::ZERO`] if it has none.
    pub source4: Addr,
    /// The IPv6 address that the workload shows to others; [`Addr::ZERO`] if it has none.
    pub source6: Addr,
    /// Its own addresses; unused places are [`Addr::ZERO`].
    pub own: [Addr; MAX_ADDRESSES],
    /// Port of the agent's outbound listener in this namespace.
    pub outbound_port: u16,
    /// Port of the agent's inbound listener.
    pub inbound_port: u16,
    /// Port of the agent's tunnel listener.
    pub tunnel_port: u16,
    /// Port of the agent's DNS listener; 0 if there is none.
    pub dns_port: u16,
}

/// How many entries a workload has in FLOW, PEER and DIRECT. Signed: those of an earlier enrolment of the same namespace may still
/// go when nobody counts them any more.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// In FLOW.
    pub flows: i64,
    /// In PEER.
    pub peers: i64,
    /// In DIRECT, as the client.
    pub direct: i64,
}

/// Who is really at the other end of an application's socket. The value of FAR and FLOW.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Far {
    /// Where the application wanted to go; or the client of an accepted connection.
    pub to: Endpoint,
    /// The endpoint that was chosen for it; [`Endpoint::ZERO`] if none was.
    pub chosen: Endpoint,
}

/// Where a socket that was redirected, or goes directly, wanted to go. The value of ASKED.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The socket's cookie. 0: the place is free.
    pub cookie: u64,
    /// The destination, and what was chosen for it.
    pub far: Far,
    /// 1 once its first packet is about to leave: from then on the programs are told of the connection's end.
    pub sent: u32,
    /// 0; in the place of padding.
    pub zero: u32,
}

/// A workload of which [most packets need no look](crate::capture::unguarded).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unguarded {
    /// Its namespace's cookie; 0 in a place that nobody has.
    pub netns: u64,
    /// Ports whose packets need one all the same, as in [`Workload::mode_ports`].
    pub mode_ports: [u32; MODE_PORT_WORDS],
}

/// The place of a workload in UNGUARDED, by its namespace's cookie. The kernel counts cookies up.
#[inline(always)]
pub const fn unguarded_at(cookie: u64) -> u32 {
    cookie as u32 & (MAX_UNGUARDED - 1)
}

/// The place of a socket in ASKED, by its cookie. The kernel counts cookies up, so those of one time stand side by side.
#[inline(always)]
pub const fn asked_at(cookie: u64) -> u32 {
    cookie as u32 & (MAX_ASKED - 1)
}

/// Why a socket of an enrolled workload may send to the wire by itself. The value of its VERDICT storage.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its destination is never captured.
    Exempt = 1,
    /// The agent was gone, or could not take a DNS question, and its workload has [`LOSS_OPEN`].
    NoAgent = 2,
    /// The application accepted it from the wire while the agent was gone. STRICT does not let it go on.
    Accepted = 3,
    /// It connects to a workload of the same node, as ALLOWED lets it.
    Direct = 4,
    /// The application accepted it from such a one.
    DirectAccepted = 5,
}

/// A TCP connection, from its client's side, in one network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// Who connected.
    pub client: Endpoint,
    /// Who accepts.
    pub server: Endpoint,
}

/// Under which loopback address a DNS server is asked through the agent, in one network namespace ([`crate::dns`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DnsPlace {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The agent's listener, at the address that stands for the server.
    pub at: Endpoint,
    /// 0; in the place of padding.
    pub zero: u32,
}

/// What the programs and the agent know of a socket of the agent's. The value of its AGENT storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its [`Role`] as u32.
    pub role: u32,
    /// Of an accepted outbound connection: where the application wanted to go. Of one to an application: the client on
    /// whose behalf it is. Else [`Endpoint::ZERO`].
    pub far: Endpoint,
    /// Of an accepted outbound connection: the endpoint that was chosen for it. Else [`Endpoint::ZERO`].
    pub chosen: Endpoint,
    /// 0; in the place of padding.
    pub zero: u32,
    /// Id of the shortcut that the socket is an end of, [`LINK_WANTED`] before it is one, or 0.
    pub link: u64,
}

/// What a socket of the agent is for.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Connects to somewhere, with its own address.
    Dial = 1,
    /// Connects to an application on behalf of a client.
    DialApp = 2,
    /// Accepts what the application sent elsewhere.
    Outbound = 3,
    /// Accepts what came from the wire for the application.
    Inbound = 4,
    /// Accepts HBONE.
    Tunnel = 5,
    /// Takes questions to DNS servers.
    Dns = 6,
}

/// What the programs count. The key of METRICS.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Connections that were redirected to the agent.
    OutboundCaptured = 0,
    /// Connections of enrolled workloads that are never captured (loopback, own addresses, link-local, multicast).
    OutboundExempt = 1,
    /// Connections to a family in which the workload has no address: failed with ENETUNREACH.
    OutboundUnreachable = 2,
    /// Redirected connections that could not be noted because FLOW was full, or their workload's share of it; the agent
    /// resets them.
    FlowFull = 3,
    /// Connections that could not be taken because the socket's storage could not be made; failed with EPERM.
    StorageFailed = 4,
    /// Connections to an application whose client could not be noted because PEER was full, or their workload's share of
    /// it; the agent ends them.
    PeerFull = 5,
    /// Entries of FLOW and PEER that were removed because their connection was never accepted.
    Abandoned = 6,
    /// Packets that tc gave to the agent's listeners: SYNs, and whatever belongs to no socket.
    InboundAssigned = 7,
    /// Packets for a new connection that passed to the application because the agent's listener is gone.
    InboundNoAgent = 8,
    /// Packets that `bpf_sk_assign` refused; dropped.
    InboundAssignFailed = 9,
    /// SYNs that met a connection in TIME_WAIT where tc looks at connections, under STRICT: left to the kernel, which puts
    /// the old connection away and then asks `lookup` for the listener.
    InboundTimeWait = 10,
    /// Events that did not fit into the ring buffer.
    EventLost = 11,
    /// Packets for a new connection that were dropped because the agent's listener is gone.
    InboundRefused = 12,
    /// Packets dropped under STRICT because the application's own socket, not the agent's, had the connection; or because
    /// they hide whose they are.
    InboundForeign = 13,
    /// Connections that went out uncaught because the agent's listener is gone.
    OutboundNoAgent = 14,
    /// Connections that failed with ECONNREFUSED because the agent's listener is gone.
    OutboundRefused = 15,
    /// Packets dropped on their way out because nothing explains them: TCP that came by no `connect()` that the programs
    /// saw, questions to DNS servers that did not go through the agent, datagrams to loopback.
    EgressUnexplained = 16,
    /// Datagrams, and UDP sockets that connected, whose DNS server the agent's listener stands for.
    DnsCaptured = 17,
    /// DNS servers for which there was no place; told again as bypassed or refused.
    DnsFull = 18,
    /// Questions that went straight to the server, because the agent is gone, there was no place for the server, or the
    /// socket is bound to a device; of workloads with [`LOSS_OPEN`].
    DnsBypassed = 19,
    /// As [`Counter::DnsBypassed`], of workloads without [`LOSS_OPEN`]: failed with EPERM.
    DnsRefused = 20,
    /// Datagrams, and UDP sockets that connected, against the workload's setting: failed with EPERM, or were dropped on
    /// their way out where no hook had seen them.
    UdpDenied = 21,
    /// Socket options refused with EPERM because what the socket sends would not pass tc egress.
    OptionRefused = 22,
    /// Connections from the node to a port with a TCP probe on which the application does not listen: dropped, or the
    /// agent's listener would answer the probe in its place.
    ProbeUnanswered = 23,
    /// Packets for which the kernel looked for a listener and was told the agent's.
    InboundSteered = 24,
    /// Connections to workloads of the same node that went there directly.
    DirectOpened = 25,
    /// Packets of direct connections that were dropped because they are no longer allowed.
    DirectRevoked = 26,
    /// SYNs of direct connections that were dropped because DIRECT is full.
    DirectFull = 27,
    /// Direct connections that ended before their SYN had come to the server as it had left the client, and packets of such
    /// ones that were kept back because somebody else had answered.
    DirectMissed = 28,
    /// Sockets that became an end of a shortcut.
    ShortcutJoined = 29,
    /// Sockets that could not, because a map was full or the kernel did not take them: they send by TCP.
    ShortcutFull = 30,
    /// Sends by shortcut.
    ShortcutSends = 31,
    /// Bytes sent by shortcut.
    ShortcutBytes = 32,
    /// Directions that went over to TCP because the other socket was not there.
    ShortcutNoPeer = 33,
    /// Directions that went over to TCP because the agent had too much to read.
    ShortcutWindow = 34,
    /// Directions that went over to TCP because an application had been sent what it may be sent unseen.
    ShortcutAllowance = 35,
    /// Directions that went over to TCP because of many small sends.
    ShortcutSmall = 36,
    /// Directions that went over to TCP because one side had ended its own.
    ShortcutEnding = 37,
    /// Directions that went over to TCP because their first bytes had gone so, before or with the handshake.
    ShortcutTcpFirst = 38,
    /// Beginnings and ends of direct connections that were counted for [`Pair::NOBODY`], because DIRECT_STATS had no place.
    DirectUnnamed = 39,
    /// Directions of direct connections that went over to TCP because these are no longer allowed.
    ShortcutRevoked = 40,
    /// Directions that went over to TCP because the other one had.
    ShortcutFollows = 41,
    /// Sockets that are no end of a shortcut any more, because all goes by TCP.
    ShortcutLeft = 42,
}

impl Counter {
    /// Every counter with its name in metrics.
    pub const ALL: [(Counter, &'static str); 43] = [
        (Counter::OutboundCaptured, "outbound_captured"),
        (Counter::OutboundExempt, "outbound_exempt"),
        (Counter::OutboundUnreachable, "outbound_unreachable"),
        (Counter::FlowFull, "flow_full"),
        (Counter::StorageFailed, "storage_failed"),
        (Counter::PeerFull, "peer_full"),
        (Counter::Abandoned, "abandoned"),
        (Counter::InboundAssigned, "inbound_assigned"),
        (Counter::InboundNoAgent, "inbound_no_agent"),
        (Counter::InboundAssignFailed, "inbound_assign_failed"),
        (Counter::InboundTimeWait, "inbound_time_wait"),
        (Counter::EventLost, "event_lost"),
        (Counter::InboundRefused, "inbound_refused"),
        (Counter::InboundForeign, "inbound_foreign"),
        (Counter::OutboundNoAgent, "outbound_no_agent"),
        (Counter::OutboundRefused, "outbound_refused"),
        (Counter::EgressUnexplained, "egress_unexplained"),
        (Counter::DnsCaptured, "dns_captured"),
        (Counter::DnsFull, "dns_full"),
        (Counter::DnsBypassed, "dns_bypassed"),
        (Counter::DnsRefused, "dns_refused"),
        (Counter::UdpDenied, "udp_denied"),
        (Counter::OptionRefused, "option_refused"),
        (Counter::ProbeUnanswered, "probe_unanswered"),
        (Counter::InboundSteered, "inbound_steered"),
        (Counter::DirectOpened, "direct_opened"),
        (Counter::DirectRevoked, "direct_revoked"),
        (Counter::DirectFull, "direct_full"),
        (Counter::DirectMissed, "direct_missed"),
        (Counter::ShortcutJoined, "shortcut_joined"),
        (Counter::ShortcutFull, "shortcut_full"),
        (Counter::ShortcutSends, "shortcut_sends"),
        (Counter::ShortcutBytes, "shortcut_bytes"),
        (Counter::ShortcutNoPeer, "shortcut_no_peer"),
        (Counter::ShortcutWindow, "shortcut_window"),
        (Counter::ShortcutAllowance, "shortcut_allowance"),
        (Counter::ShortcutSmall, "shortcut_small"),
        (Counter::ShortcutEnding, "shortcut_ending"),
        (Counter::ShortcutTcpFirst, "shortcut_tcp_first"),
        (Counter::DirectUnnamed, "direct_unnamed"),
        (Counter::ShortcutRevoked, "shortcut_revoked"),
        (Counter::ShortcutFollows, "shortcut_follows"),
        (Counter::ShortcutLeft, "shortcut_left"),
    ];
    /// How many there are.
    pub const COUNT: u32 = Counter::ALL.len() as u32;
}

/// Something that an operator may want to know about one connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub time: u64,
    /// The connection, as far as it is known.
    pub tuple: Tuple,
    /// The workload's id.
    pub workload: u32,
    /// The [`Counter`] that was raised.
    pub reason: u32,
}

const _: () = {
    // No flag is two.
    let flags =
        [STRICT, HAS_PORT_MODES, LOSS_OPEN, UDP_DNS_ONLY, UDP_DENY, HAS_PROBED, HAS_DIRECT, TAKES_DIRECT, SHORTCUTS];
    let (mut i, mut seen) = (0, 0);
    while i < flags.len() {
        assert!(flags[i].count_ones() == 1 && seen & flags[i] == 0);
        seen |= flags[i];
        i += 1;
    }
    assert!(size_of::<Endpoint>() == 20 && align_of::<Endpoint>() == 4);
    assert!(size_of::<Tuple>() == 48 && align_of::<Tuple>() == 8);
    assert!(core::mem::offset_of!(Tuple, client) == 8 && core::mem::offset_of!(Tuple, server) == 28);
    assert!(size_of::<Agent>() == 56 && core::mem::offset_of!(Agent, link) == 48);
    assert!(size_of::<DnsPlace>() == 32 && core::mem::offset_of!(DnsPlace, zero) == 28);
    assert!(
        size_of::<Workload>() == 8 + 4 * MODE_PORT_WORDS + 32 + 16 * MAX_ADDRESSES + 8 && align_of::<Workload>() == 4
    );
    assert!(core::mem::offset_of!(Workload, outbound_port) == 40 + 4 * MODE_PORT_WORDS + 16 * MAX_ADDRESSES);
    assert!(size_of::<Share>() == 24 && align_of::<Share>() == 8);
    assert!(size_of::<Asked>() == 56 && align_of::<Asked>() == 8 && MAX_ASKED.is_power_of_two());
    assert!(size_of::<Unguarded>() == 24 && align_of::<Unguarded>() == 8);
    assert!(MAX_UNGUARDED.is_power_of_two() && MAX_UNGUARDED > MAX_WORKLOADS);
    assert!(size_of::<Far>() == 40 && align_of::<Far>() == 4);
    assert!(size_of::<Event>() == 64 && align_of::<Event>() == 8);
    let mut i = 0;
    while i < Counter::ALL.len() {
        assert!(Counter::ALL[i].0 as usize == i);
        i += 1;
    }
};

#[cfg(feature = "user")]
mod user {
    use super::{
        Addr, Allowance, Asked, Carried, Direct, DnsPlace, DoorKey, Endpoint, Far, OutboundKey, Pair, PortKey, Service,
        Share, Shortcut, Slot, Tuple, Unguarded, Way, Workload,
    };

    // SAFETY: repr(C), made of integers only, without padding (the assertions above), so any bytes are a value and
    // every byte of a value is initialised.
    unsafe impl aya::Pod for Workload {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Unguarded {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Tuple {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Asked {}
    // SAFETY: as above.
    unsafe impl aya::Pod for OutboundKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DoorKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Share {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Shortcut {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Addr {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DnsPlace {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Way {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Far {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Slot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Allowance {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Direct {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Pair {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Carried {}
}
