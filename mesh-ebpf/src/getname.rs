//! cgroup/getpeername and getsockname. In: the address that the kernel is about to tell. Out: the one that would be true
//! without the mesh. Never for the agent's sockets, which must see what is.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::Workload;
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::capture;

use crate::far;
use crate::host;
use crate::maps::{AGENT, FAR};
use crate::sendmsg;
use crate::socket::{local, netns, of_sock_addr, remote, set_user4, set_user6, user4, user6};

/// These hooks cannot refuse.
const OK: i32 = 1;

pub fn peer4(ctx: &SockAddrContext) -> i32 {
    if let Some(peer) = peer(ctx, user4) {
        set_user4(ctx, &peer);
    }
    OK
}

pub fn peer6(ctx: &SockAddrContext) -> i32 {
    if let Some(peer) = peer(ctx, user6) {
        set_user6(ctx, &peer);
    }
    OK
}

pub fn own4(ctx: &SockAddrContext) -> i32 {
    if let Some(own) = own(ctx, user4) {
        set_user4(ctx, &own);
    }
    OK
}

pub fn own6(ctx: &SockAddrContext) -> i32 {
    if let Some(own) = own(ctx, user6) {
        set_user6(ctx, &own);
    }
    OK
}

/// Who is at the other end, if the kernel would say something else. The agent's sockets have nothing in `far`.
#[inline(always)]
fn peer(ctx: &SockAddrContext, told: impl Fn(&SockAddrContext) -> Endpoint) -> Option<Endpoint> {
    let sk = of_sock_addr(ctx);
    if sk.is_null() {
        return None;
    }
    let told = told(ctx);
    if sendmsg::is_udp(ctx) {
        return asked(ctx, sk, &told);
    }
    let local = local(sk);
    // One that was accepted from the agent, or is bound to an address.
    if capture::is_to_app(&told.addr, &local) {
        return FAR.find(sk).map(|far| far.to);
    }
    // On the host, too, a socket that was redirected is asked by its own workload, or by who has got it from there.
    host::flags(netns(ctx))?;
    // It may have been redirected, or have gone directly.
    far::of(ctx, sk).map(|far| far.far.to)
}

/// The socket's own address, if the kernel would say loopback for a connection that was redirected there.
#[inline(always)]
fn own(ctx: &SockAddrContext, told: impl Fn(&SockAddrContext) -> Endpoint) -> Option<Endpoint> {
    let sk = of_sock_addr(ctx);
    if sk.is_null() {
        return None;
    }
    let told = told(ctx);
    if !told.addr.is_loopback() {
        return None;
    }
    let workload = host::workload(netns(ctx))?;
    if sendmsg::is_udp(ctx) {
        asked(ctx, sk, &sendmsg::connected(sk)?)?;
    } else if !to_agent(workload, &remote(sk)) {
        far::of(ctx, sk)?;
    }
    let addr = *capture::source(workload, told.addr.is_v4());
    if addr.same(&Addr::ZERO) { None } else { Some(Endpoint { addr, port: told.port }) }
}

/// Whether this is the agent's outbound listener: who is connected there was redirected. That can be told also once the
/// connection is over.
#[inline(always)]
fn to_agent(workload: &Workload, at: &Endpoint) -> bool {
    at.addr.is_loopback() && at.port == u32::from(workload.outbound_port)
}

/// The DNS server that a UDP socket is connected to, if the agent's listener stands for it; unless it is the agent's.
#[inline(always)]
fn asked(ctx: &SockAddrContext, sk: *mut bpf_sock, at: &Endpoint) -> Option<Endpoint> {
    let server = sendmsg::server(ctx, at)?;
    if AGENT.get(sk).is_some() { None } else { Some(server) }
}
