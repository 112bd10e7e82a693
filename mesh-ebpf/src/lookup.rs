//! sk_lookup in every pod's namespace. In: a connection for which the kernel looks for a listener. Out: the agent's, if
//! it comes from the wire. Under STRICT most packets never come here, because `ingress` has given them a socket already;
//! these do: a SYN that meets TIME_WAIT (only the kernel can put the old connection's remains away), and what `ingress`
//! does not look into: reassembled IPv4 fragments and TCP behind IPv6 extension headers.
//! In the host's namespace another one does all there is to do for inbound connections.

use core::ptr;

use aya_ebpf::programs::SkLookupContext;
use mesh_common::abi::{Counter, DoorKey, Tuple, Workload};
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::capture;

use crate::direct;
use crate::maps::{HOST_DOORS, HOST_NETNS, HOST_PORTS, INGRESS_NETNS, LISTENERS, WORKLOADS};
use crate::packet::is_strict;
use crate::report::{count, decided};
use crate::socket::AF_INET;

/// Go on with what was assigned, or with the kernel's own search.
const PASS: u32 = 1;
/// Nobody: a connection is reset, as where nobody listens.
const DROP: u32 = 0;
const IPPROTO_TCP: u32 = 6;

/// A connection for which the kernel looks for a listener.
struct Question {
    v4: bool,
    client: Endpoint,
    server: Endpoint,
}

pub fn run(ctx: &SkLookupContext) -> u32 {
    let Some(Question { v4, client, server }) = question(ctx) else { return PASS };
    let port = server.port as u16;
    if capture::is_inside(&client.addr, &server.addr) {
        return PASS;
    }
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let Some(workload) = (unsafe { WORKLOADS.get(INGRESS_NETNS.load()) }) else { return PASS };
    if direct::is_expected(workload, INGRESS_NETNS.load(), &client, &server) {
        return PASS;
    }
    let Some(listener) = capture::lookup(workload, &client.addr, &server.addr, port) else { return PASS };
    if LISTENERS.redirect_sk_lookup(ctx, capture::place(listener, v4), 0).is_ok() {
        decided(Counter::InboundSteered, || Tuple { netns: INGRESS_NETNS.load(), client, server });
        return PASS;
    }
    without_agent(workload, INGRESS_NETNS.load(), port)
}

/// In the host's namespace: its workloads' ports only, and there all that comes from elsewhere. Every other connection costs
/// one look.
pub fn of_host(ctx: &SkLookupContext) -> u32 {
    let Some(Question { v4, client, server }) = question(ctx) else { return PASS };
    // SAFETY: the agent replaces whole entries, and the value is copied at once.
    let Some(key) = (unsafe { HOST_PORTS.get(server.port) }).copied() else { return PASS };
    if capture::is_inside(&client.addr, &server.addr) {
        return PASS;
    }
    // SAFETY: as in run.
    let Some(workload) = (unsafe { WORKLOADS.get(key) }) else { return PASS };
    let port = server.port as u16;
    if capture::lookup(workload, &client.addr, &server.addr, port).is_none() {
        return PASS;
    }
    if HOST_DOORS.redirect_sk_lookup(ctx, DoorKey { port: server.port, v4: v4.into() }, 0).is_ok() {
        decided(Counter::InboundSteered, || Tuple { netns: HOST_NETNS.load(), client, server });
        return PASS;
    }
    without_agent(workload, key, port)
}

/// The listener is not there: the agent is gone, as in `ingress`.
#[inline(always)]
fn without_agent(workload: &Workload, key: u64, port: u16) -> u32 {
    let strict = is_strict(key, workload, port);
    if capture::passes_without_agent(workload, strict) {
        count(Counter::InboundNoAgent);
        return PASS;
    }
    count(Counter::InboundRefused);
    DROP
}

/// `None`: not TCP.
#[inline(always)]
fn question(ctx: &SkLookupContext) -> Option<Question> {
    let c = ctx.lookup;
    // SAFETY: fields of the context, read one by one as the verifier wants it.
    unsafe {
        if ptr::read_volatile(&raw const (*c).protocol) != IPPROTO_TCP {
            return None;
        }
        let v4 = ptr::read_volatile(&raw const (*c).family) == AF_INET;
        let remote4 = ptr::read_volatile(&raw const (*c).remote_ip4);
        let local4 = ptr::read_volatile(&raw const (*c).local_ip4);
        let words = (&raw const (*c).remote_ip6).cast::<u32>();
        let word = |i: usize| ptr::read_volatile(words.add(i));
        let remote6 = Addr([word(0), word(1), word(2), word(3)]);
        let words = (&raw const (*c).local_ip6).cast::<u32>();
        let word = |i: usize| ptr::read_volatile(words.add(i));
        let local6 = Addr([word(0), word(1), word(2), word(3)]);
        let remote_port = u32::from(u16::from_be(ptr::read_volatile(&raw const (*c).remote_port)));
        let port = ptr::read_volatile(&raw const (*c).local_port);
        let client = Endpoint { addr: if v4 { Addr::from_v4_wire(remote4) } else { remote6 }, port: remote_port };
        let server = Endpoint { addr: if v4 { Addr::from_v4_wire(local4) } else { local6 }, port };
        Some(Question { v4, client, server })
    }
}
