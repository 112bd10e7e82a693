//! cgroup/sendmsg4 and sendmsg6, and UDP in connect4 and connect6. In: the socket and where it wants to send. Out: the
//! place under which the agent's DNS listener stands for that server, or EPERM where the workload's setting forbids the
//! datagram. Keeps nothing on the socket that names a server, so a socket that is used again has nothing stale; never the
//! agent's sockets.
//! An IPv4-mapped destination arrives in sendmsg4, on an AF_INET6 socket; sends of a connected socket do not arrive.

use core::ptr;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{self, Counter, DnsPlace, Tuple, Workload};
use mesh_common::addr::Endpoint;
use mesh_common::capture;
use mesh_common::dns;
use mesh_common::udp::{self, Verdict};

use crate::maps::{DNS, VERDICT, WORKLOADS};
use crate::report::{count, decided, tell};
use crate::socket::{agent_answers, is_agents, netns, of_sock_addr, remote, set_user4, set_user6, user4, user6};

const SOCK_DGRAM: u32 = 2;
const BPF_NOEXIST: u64 = 1;

const ALLOW: i32 = 1;
/// The system call fails with EPERM.
const DENY: i32 = 0;

/// Whether the system call is about a UDP socket.
#[inline(always)]
pub fn is_udp(ctx: &SockAddrContext) -> bool {
    // SAFETY: fields of the context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    kind == SOCK_DGRAM && (protocol == udp::UDP || protocol == udp::UDP_LITE)
}

pub fn v4(ctx: &SockAddrContext) -> i32 {
    match decide(ctx, &user4(ctx)) {
        Ok(Some(to)) => {
            set_user4(ctx, &to);
            ALLOW
        }
        Ok(None) => ALLOW,
        Err(()) => DENY,
    }
}

pub fn v6(ctx: &SockAddrContext) -> i32 {
    match decide(ctx, &user6(ctx)) {
        Ok(Some(to)) => {
            set_user6(ctx, &to);
            ALLOW
        }
        Ok(None) => ALLOW,
        Err(()) => DENY,
    }
}

/// Where the datagram is to go instead, if somewhere else; an error if nowhere.
#[inline(always)]
pub fn decide(ctx: &SockAddrContext, to: &Endpoint) -> Result<Option<Endpoint>, ()> {
    let netns = netns(ctx);
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let Some(workload) = (unsafe { WORKLOADS.get(netns) }) else { return Ok(None) };
    let sk = of_sock_addr(ctx);
    if sk.is_null() || is_agents(sk) {
        return Ok(None);
    }
    match udp::outbound(workload, to) {
        Verdict::Pass => Ok(None),
        Verdict::Deny => {
            tell(Counter::UdpDenied, workload.id, &toward(netns, to));
            Err(())
        }
        Verdict::Dns => dns(ctx, sk, netns, workload, to),
    }
}

#[inline(always)]
fn dns(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    netns: u64,
    workload: &Workload,
    server: &Endpoint,
) -> Result<Option<Endpoint>, ()> {
    // SAFETY: a field of the context, and sk is a socket and not null.
    let (protocol, device) = unsafe { ((*ctx.sock_addr).protocol, (*sk).bound_dev_if) };
    let answers = || agent_answers(ctx, &dns::place(server, 0, workload.dns_port));
    if udp::can_ask_agent(workload, protocol, device != 0, answers) {
        if let Some(at) = place(netns, server, workload.dns_port) {
            decided(Counter::DnsCaptured, || toward(netns, server));
            return Ok(Some(at));
        }
        count(Counter::DnsFull);
    }
    if capture::passes_without_agent(workload, false) {
        // So that egress lets it go.
        if !VERDICT.set(sk, abi::Verdict::NoAgent as u32) {
            tell(Counter::StorageFailed, workload.id, &toward(netns, server));
            return Err(());
        }
        tell(Counter::DnsBypassed, workload.id, &toward(netns, server));
        return Ok(None);
    }
    tell(Counter::DnsRefused, workload.id, &toward(netns, server));
    Err(())
}

/// The server's place, which it has or now gets.
#[inline(always)]
fn place(netns: u64, server: &Endpoint, port: u16) -> Option<Endpoint> {
    let mut n = 0;
    while n < dns::TRIES {
        let at = dns::place(server, n, port);
        n += 1;
        let key = DnsPlace { netns, at, zero: 0 };
        match holder(&key) {
            Some(holder) if same(&holder, server) => return Some(at),
            Some(_) => continue,
            None => {}
        }
        if DNS.insert(key, server, BPF_NOEXIST).is_ok() {
            return Some(at);
        }
        // Somebody else was faster, for this server or for another, or the map is full.
        if holder(&key).is_some_and(|holder| same(&holder, server)) {
            return Some(at);
        }
    }
    None
}

#[inline(always)]
fn holder(key: &DnsPlace) -> Option<Endpoint> {
    // SAFETY: an entry never changes its value: it is made once and removed with its workload.
    unsafe { DNS.get(key) }.copied()
}

#[inline(always)]
fn same(a: &Endpoint, b: &Endpoint) -> bool {
    a.addr.same(&b.addr) && a.port == b.port
}

/// Who really sent what comes from `at`, or is really connected there, if that is a place of the agent's.
#[inline(always)]
pub fn server(ctx: &SockAddrContext, at: &Endpoint) -> Option<Endpoint> {
    if !at.addr.is_loopback() {
        return None;
    }
    holder(&DnsPlace { netns: netns(ctx), at: *at, zero: 0 })
}

/// Where a UDP socket is connected to, if it is.
#[inline(always)]
pub fn connected(sk: *mut bpf_sock) -> Option<Endpoint> {
    const ESTABLISHED: u32 = 1;
    // SAFETY: sk is a socket and not null.
    let state = unsafe { ptr::read_volatile(&raw const (*sk).state) };
    if state == ESTABLISHED { Some(remote(sk)) } else { None }
}

/// A datagram of which only the destination is known.
#[inline(always)]
fn toward(netns: u64, to: &Endpoint) -> Tuple {
    Tuple { netns, client: Endpoint::ZERO, server: *to }
}
