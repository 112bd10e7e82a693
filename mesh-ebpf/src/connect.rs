//! cgroup/connect4 and connect6. In: the socket and the address that the application asks for. Out: the address that it
//! gets, and in `far` the one it asked for; or that the connection goes directly to a workload of this node. TCP of
//! enrolled namespaces, and in the host's own that of enrolled cgroups; never the agent's sockets. UDP is `sendmsg`'s.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::abi::{Counter, Far, Tuple, Verdict, Workload};
use mesh_common::addr::Endpoint;
use mesh_common::capture::{self, Outbound};

use crate::maps::{AGENT, VERDICT};
use crate::report::{decided, tell};
use crate::socket::{agent_calls, agent_listens, netns, of_sock_addr, set_user4, set_user6, user4, user6};
use crate::{direct, far, host, sendmsg, shortcut};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

const ALLOW: i32 = 1;
/// `connect()` fails: with EPERM, or with what `bpf_set_retval` was given.
const DENY: i32 = 0;

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

/// Where the connection is to go instead, if somewhere else; an error if nowhere.
#[inline(always)]
fn decide(ctx: &SockAddrContext, to: &Endpoint) -> Result<Option<Endpoint>, ()> {
    if sendmsg::is_udp(ctx) {
        return sendmsg::decide(ctx, to);
    }
    // SAFETY: fields of the context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    if kind != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return Ok(None);
    }
    let netns = netns(ctx);
    let Some(workload) = host::workload(netns) else { return Ok(None) };
    let sk = of_sock_addr(ctx);
    if sk.is_null() {
        return Ok(None);
    }
    if AGENT.get(sk).is_some() {
        return Ok(None);
    }
    if agent_calls() {
        return release(sk, workload, netns, to, Verdict::Exempt);
    }
    // SAFETY: sk is a socket and not null.
    let device = unsafe { (*sk).bound_dev_if } != 0;
    let cookie = far::cookie(ctx);
    match capture::outbound(workload, to, device, cookie as u32) {
        Outbound::Pass => {
            // An earlier, failed connect of the same socket may have been redirected.
            far::forget(ctx, sk);
            decided(Counter::OutboundExempt, || toward(netns, to));
            release(sk, workload, netns, to, Verdict::Exempt)
        }
        Outbound::Redirect(listener) => {
            if !agent_listens(netns, &listener) {
                return without_agent(ctx, sk, workload, netns, to);
            }
            let chosen = direct::choose(workload, netns, to);
            let far = Far { to: *to, chosen: chosen.unwrap_or(Endpoint::ZERO) };
            if !device
                && protocol == IPPROTO_TCP
                && direct::goes(workload, netns, chosen.as_ref().unwrap_or(to), chosen.is_some())
            {
                if far::note_direct(cookie, sk, &far) && VERDICT.set(sk, Verdict::Direct as u32) {
                    shortcut::may_begin(sk, workload);
                    decided(Counter::DirectOpened, || toward(netns, to));
                    return Ok(chosen);
                }
                tell(Counter::StorageFailed, workload.id, &toward(netns, to));
                return Err(());
            }
            VERDICT.delete(sk);
            if far::note(cookie, sk, &far) {
                shortcut::may_begin(sk, workload);
                decided(Counter::OutboundCaptured, || toward(netns, to));
                return Ok(Some(listener));
            }
            tell(Counter::StorageFailed, workload.id, &toward(netns, to));
            Err(())
        }
        Outbound::Unreachable => {
            tell(Counter::OutboundUnreachable, workload.id, &toward(netns, to));
            // SAFETY: no precondition in this hook.
            unsafe { bpf_set_retval(-ENETUNREACH) };
            Err(())
        }
    }
}

/// Lets a socket send by itself to where it wants. What stays on this host needs no word for that.
#[inline(always)]
fn release(
    sk: *mut bpf_sock,
    workload: &Workload,
    netns: u64,
    to: &Endpoint,
    verdict: Verdict,
) -> Result<Option<Endpoint>, ()> {
    if to.addr.is_loopback() || VERDICT.set(sk, verdict as u32) {
        return Ok(None);
    }
    tell(Counter::StorageFailed, workload.id, &toward(netns, to));
    Err(())
}

/// The listener is gone, and its agent with it.
#[inline(always)]
fn without_agent(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    workload: &Workload,
    netns: u64,
    to: &Endpoint,
) -> Result<Option<Endpoint>, ()> {
    if capture::passes_without_agent(workload, false) {
        far::forget(ctx, sk);
        tell(Counter::OutboundNoAgent, workload.id, &toward(netns, to));
        return release(sk, workload, netns, to, Verdict::NoAgent);
    }
    tell(Counter::OutboundRefused, workload.id, &toward(netns, to));
    // SAFETY: no precondition in this hook.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    Err(())
}

/// A connection of which only the destination is known.
#[inline(always)]
fn toward(netns: u64, to: &Endpoint) -> Tuple {
    Tuple { netns, client: Endpoint::ZERO, server: *to }
}
