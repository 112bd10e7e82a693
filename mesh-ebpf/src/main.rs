//! The kernel programs' entry points, nothing else: each calls the function of the same name in its hook's file.
//! Never a decision: those are in mesh-common.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod direct;
mod egress;
mod far;
mod getname;
mod host;
mod ingress;
mod lookup;
mod maps;
mod packet;
mod recvmsg;
mod report;
mod sendmsg;
mod setsockopt;
mod shortcut;
mod sock_ops;
mod socket;
mod stats;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, cgroup_sockopt, classifier, sk_lookup, sk_msg, sock_ops};
use aya_ebpf::programs::{
    SkLookupContext, SkMsgContext, SockAddrContext, SockContext, SockOpsContext, SockoptContext, TcContext,
};

/// cgroup/connect4: `connect()` of an AF_INET socket, TCP or UDP, before the kernel looks for a route.
#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    connect::v4(&ctx)
}

/// cgroup/connect6: `connect()` of an AF_INET6 socket, also to an IPv4-mapped address.
#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    connect::v6(&ctx)
}

/// cgroup/sendmsg4: a datagram with a destination leaves over IPv4, also from an AF_INET6 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn mesh_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg::v4(&ctx)
}

/// cgroup/sendmsg6: a datagram with a destination leaves over IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn mesh_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg::v6(&ctx)
}

/// cgroup/recvmsg4: an AF_INET socket is told where a datagram came from.
#[cgroup_sock_addr(recvmsg4)]
pub fn mesh_recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg::v4(&ctx)
}

/// cgroup/recvmsg6: an AF_INET6 socket is told where a datagram came from, also one over IPv4.
#[cgroup_sock_addr(recvmsg6)]
pub fn mesh_recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg::v6(&ctx)
}

/// cgroup/setsockopt: an option of a socket of any kind is about to be set.
#[cgroup_sockopt(setsockopt)]
pub fn mesh_setsockopt(ctx: SockoptContext) -> i32 {
    setsockopt::run(&ctx)
}

/// cgroup/getpeername4: `getpeername()` and `accept()` of an AF_INET socket.
#[cgroup_sock_addr(getpeername4)]
pub fn mesh_getpeername4(ctx: SockAddrContext) -> i32 {
    getname::peer4(&ctx)
}

/// cgroup/getpeername6: `getpeername()` and `accept()` of an AF_INET6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn mesh_getpeername6(ctx: SockAddrContext) -> i32 {
    getname::peer6(&ctx)
}

/// cgroup/getsockname4: `getsockname()` of an AF_INET socket.
#[cgroup_sock_addr(getsockname4)]
pub fn mesh_getsockname4(ctx: SockAddrContext) -> i32 {
    getname::own4(&ctx)
}

/// cgroup/getsockname6: `getsockname()` of an AF_INET6 socket.
#[cgroup_sock_addr(getsockname6)]
pub fn mesh_getsockname6(ctx: SockAddrContext) -> i32 {
    getname::own6(&ctx)
}

/// cgroup/sock_ops: a TCP socket connects, was accepted, or closes.
#[sock_ops]
pub fn mesh_sock_ops(ctx: SockOpsContext) -> u32 {
    sock_ops::run(&ctx)
}

/// cgroup/sock_release: the last descriptor of a socket of any kind is closed.
#[cgroup_sock(sock_release)]
pub fn mesh_sock_release(ctx: SockContext) -> i32 {
    far::released(&ctx)
}

/// tc ingress: a packet comes into the pod. One instance per pod.
#[classifier]
pub fn mesh_ingress(ctx: TcContext) -> i32 {
    ingress::run(&ctx)
}

/// tc egress: a packet leaves the pod. One instance per pod.
#[classifier]
pub fn mesh_egress(ctx: TcContext) -> i32 {
    egress::run(&ctx)
}

/// sk_lookup: the kernel looks for a listener. One instance per pod.
#[sk_lookup]
pub fn mesh_lookup(ctx: SkLookupContext) -> u32 {
    lookup::run(&ctx)
}

/// sk_lookup in the host's namespace: the kernel looks for a listener.
#[sk_lookup]
pub fn mesh_host_lookup(ctx: SkLookupContext) -> u32 {
    lookup::of_host(&ctx)
}

/// sk_msg: one of the sockets of SHORT_SOCKETS sends.
#[sk_msg]
pub fn mesh_shortcut(ctx: SkMsgContext) -> u32 {
    shortcut::run(&ctx)
}

/// The kernel offers helpers such as `bpf_sk_assign` to programs under a GPL-compatible licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses a program in which this can be reached, so it never is.
    unsafe { core::hint::unreachable_unchecked() }
}
