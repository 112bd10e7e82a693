//! cgroup/getpeername and getsockname. In: the address that the kernel is about to tell. Out: the one that would be true
//! without the mesh. Never for the agent's sockets, which must see what is.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::capture;

use crate::maps::{AGENT, CLIENT, ORIGIN, WORKLOADS};
use crate::sendmsg;
use crate::socket::{netns, of_sock_addr, set_user4, set_user6, user4, user6};

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

/// Who is at the other end, if the kernel would say something else.
#[inline(always)]
fn peer(ctx: &SockAddrContext, told: impl Fn(&SockAddrContext) -> Endpoint) -> Option<Endpoint> {
    let sk = application(ctx)?;
    if sendmsg::is_udp(ctx) {
        return sendmsg::server(ctx, &told(ctx));
    }
    match ORIGIN.get(sk) {
        Some(origin) => Some(origin),
        None => CLIENT.get(sk),
    }
}

/// The socket's own address, if the kernel would say loopback for a connection that was redirected there.
#[inline(always)]
fn own(ctx: &SockAddrContext, told: impl Fn(&SockAddrContext) -> Endpoint) -> Option<Endpoint> {
    let sk = application(ctx)?;
    let told = told(ctx);
    if !told.addr.is_loopback() {
        return None;
    }
    if sendmsg::is_udp(ctx) {
        sendmsg::server(ctx, &sendmsg::connected(sk)?)?;
    } else {
        ORIGIN.get(sk)?;
    }
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let workload = unsafe { WORKLOADS.get(netns(ctx)) }?;
    let addr = *capture::source(workload, told.addr.is_v4());
    if addr.same(&Addr::ZERO) { None } else { Some(Endpoint { addr, port: told.port }) }
}

/// The context's socket, unless it is the agent's.
#[inline(always)]
fn application(ctx: &SockAddrContext) -> Option<*mut bpf_sock> {
    let sk = of_sock_addr(ctx);
    if sk.is_null() {
        return None;
    }
    if AGENT.get(sk).is_some() { None } else { Some(sk) }
}
