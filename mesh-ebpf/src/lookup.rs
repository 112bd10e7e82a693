//! sk_lookup in every pod's namespace. In: a connection for which the kernel looks for a listener. Out: the agent's, if
//! it comes from the wire. Under STRICT most packets never come here, because `ingress` has given them a socket already;
//! these do: a SYN that meets TIME_WAIT (only the kernel can put the old connection's remains away), and what `ingress`
//! does not look into: reassembled IPv4 fragments and TCP behind IPv6 extension headers.

use core::ptr;

use aya_ebpf::programs::SkLookupContext;
use mesh_common::abi::{Counter, Tuple};
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::capture;

use crate::direct;
use crate::maps::{INGRESS_NETNS, LISTENERS, WORKLOADS};
use crate::packet::is_strict;
use crate::report::{count, decided};
use crate::socket::AF_INET;

/// Go on with what was assigned, or with the kernel's own search.
const PASS: u32 = 1;
/// Nobody: a connection is reset, as where nobody listens.
const DROP: u32 = 0;
const IPPROTO_TCP: u32 = 6;

pub fn run(ctx: &SkLookupContext) -> u32 {
    let c = ctx.lookup;
    // SAFETY: fields of the context, read one by one as the verifier wants it.
    let (v4, remote, remote_port, local, port) = unsafe {
        if ptr::read_volatile(&raw const (*c).protocol) != IPPROTO_TCP {
            return PASS;
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
        let remote = if v4 { Addr::from_v4_wire(remote4) } else { remote6 };
        let local = if v4 { Addr::from_v4_wire(local4) } else { local6 };
        let remote_port = u16::from_be(ptr::read_volatile(&raw const (*c).remote_port));
        (v4, remote, u32::from(remote_port), local, ptr::read_volatile(&raw const (*c).local_port))
    };
    if capture::is_inside(&remote, &local) {
        return PASS;
    }
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    let Some(workload) = (unsafe { WORKLOADS.get(INGRESS_NETNS.load()) }) else { return PASS };
    let client = Endpoint { addr: remote, port: remote_port };
    let server = Endpoint { addr: local, port };
    if direct::is_expected(workload, INGRESS_NETNS.load(), &client, &server) {
        return PASS;
    }
    let Some(listener) = capture::lookup(workload, &remote, &local, port as u16) else { return PASS };
    if LISTENERS.redirect_sk_lookup(ctx, capture::place(listener, v4), 0).is_ok() {
        decided(Counter::InboundSteered, || Tuple { netns: INGRESS_NETNS.load(), client, server });
        return PASS;
    }
    // Not there: the agent is gone, as in `ingress`.
    let strict = is_strict(INGRESS_NETNS.load(), workload, port as u16);
    if capture::passes_without_agent(workload, strict) {
        count(Counter::InboundNoAgent);
        return PASS;
    }
    count(Counter::InboundRefused);
    DROP
}
