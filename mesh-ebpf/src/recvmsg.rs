//! cgroup/recvmsg4 and recvmsg6. In: the source of a datagram, as the kernel is about to tell it. Out: the DNS server
//! that was asked, where the agent's listener answered in its place. A datagram over IPv4 arrives in recvmsg6 when the
//! socket is AF_INET6. Never for the agent's sockets, which must see what is.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::addr::Endpoint;

use crate::sendmsg::server;
use crate::socket::{is_agents, of_sock_addr, set_user4, set_user6, user4, user6};

/// These hooks cannot refuse.
const OK: i32 = 1;

pub fn v4(ctx: &SockAddrContext) -> i32 {
    if let Some(server) = sender(ctx, &user4(ctx)) {
        set_user4(ctx, &server);
    }
    OK
}

pub fn v6(ctx: &SockAddrContext) -> i32 {
    if let Some(server) = sender(ctx, &user6(ctx)) {
        set_user6(ctx, &server);
    }
    OK
}

#[inline(always)]
fn sender(ctx: &SockAddrContext, told: &Endpoint) -> Option<Endpoint> {
    let server = server(ctx, told)?;
    let sk = of_sock_addr(ctx);
    if sk.is_null() || is_agents(sk) { None } else { Some(server) }
}
