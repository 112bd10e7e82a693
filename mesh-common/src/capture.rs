//! Which connections the agent takes. In: the workload's entry and what a hook knows of the connection. Out: what the
//! hook is to do. Reads no map, touches no socket; randomness is an argument.

use crate::abi::{
    HAS_PORT_MODES, HAS_PROBED, KEPT_OUTBOUND, LISTENER_PLAIN4, LISTENER_PLAIN6, LISTENER_TUNNEL4, LISTENER_TUNNEL6,
    LOSS_OPEN, MAX_ADDRESSES, MAX_SHARE, MODE_PORT_WORDS, Mode, STRICT, TAKES_DIRECT, TUNNEL_PORT, Verdict, Workload,
};
use crate::addr::{Addr, Endpoint};

/// What to do with an outbound connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// Leave it alone.
    Pass,
    /// Send it to this address, the agent's outbound listener, instead.
    Redirect(Endpoint),
    /// The workload has no address of this family: without the mesh there would be no route either.
    Unreachable,
}

/// Which of the agent's listeners takes an inbound connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// The listener for plain connections, on this port.
    Plain(u16),
    /// The listener for HBONE, on this port.
    Tunnel(u16),
}

/// What to do with an inbound packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arriving {
    /// Leave it to the kernel.
    Pass,
    /// Throw it away.
    Drop,
    /// Give it to a listener of the agent.
    Steer(Inbound),
}

/// What a packet's socket lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No socket, or only a listener.
    Nobody,
    /// The remains of a closed connection.
    TimeWait,
    /// A connection of the agent, or one that is being made.
    Live,
    /// A connection that the application's own socket has, without a word of the programs or the agent for it.
    Foreign,
}

/// Decides on a new outbound connection of `workload` to `to`. `device` tells whether the socket is bound to a device:
/// then loopback is out of its reach and the workload's own address serves. `number` spreads redirected connections
/// over 127.0.0.0/8, so that no pair of addresses runs out of ports.
#[inline(always)]
pub fn outbound(workload: &Workload, to: &Endpoint, device: bool, number: u32) -> Outbound {
    if is_never_captured(workload, to) {
        return Outbound::Pass;
    }
    let own = *source(workload, to.addr.is_v4());
    if own.same(&Addr::ZERO) {
        return Outbound::Unreachable;
    }
    let addr = if device {
        own
    } else if to.addr.is_v4() {
        Addr::from_v4_wire(spread(number))
    } else {
        Addr([0, 0, 0, 1_u32.to_be()])
    };
    Outbound::Redirect(Endpoint { addr, port: workload.outbound_port.into() })
}

/// Whether a destination is left alone: the host itself, the workload's own addresses, multicast and broadcast,
/// link-local, and port 0, which cannot be connected to.
#[inline(always)]
pub fn is_never_captured(workload: &Workload, to: &Endpoint) -> bool {
    let a = &to.addr;
    if a.is_unspecified() || a.is_loopback() || a.is_multicast_or_broadcast() || a.is_link_local() || to.port == 0 {
        return true;
    }
    is_own(workload, a)
}

/// Whether this is one of the workload's own addresses.
#[inline(always)]
pub fn is_own(workload: &Workload, a: &Addr) -> bool {
    let mut i = 0;
    while i < MAX_ADDRESSES {
        if workload.own[i].same(a) {
            return true;
        }
        i += 1;
    }
    false
}

/// The address of one family that the workload shows to others.
#[inline(always)]
pub fn source(workload: &Workload, v4: bool) -> &Addr {
    if v4 { &workload.source4 } else { &workload.source6 }
}

/// An address of 127.0.0.0/8, as on the wire: never the network's first or last address.
#[inline(always)]
pub fn spread(number: u32) -> u32 {
    let host = match number & 0x00ff_ffff {
        0 => 1,
        0x00ff_ffff => 0x00ff_fffe,
        host => host,
    };
    (0x7f00_0000 | host).to_be()
}

/// Decides on a packet from the wire to `port`. A SYN that meets the remains of an old connection is the kernel's to
/// judge; when it opens a new connection, [`lookup`] is asked. `strict`: the port takes nothing in the open.
#[inline(always)]
pub fn inbound(workload: &Workload, port: u16, found: Found, strict: bool) -> Arriving {
    match found {
        Found::Live | Found::TimeWait => Arriving::Pass,
        Found::Foreign if strict => Arriving::Drop,
        Found::Foreign => Arriving::Pass,
        Found::Nobody => Arriving::Steer(listener(workload, port)),
    }
}

/// Whether a packet from the wire is left to the kernel without a look at its connection. Where nothing that is open is
/// forbidden (`strict`), one that has a connection goes there anyway, and for one that has none the kernel asks [`lookup`].
/// What opens a connection (`syn`) is left only where that is sure to answer (`answered`, asked for nothing else).
#[inline(always)]
pub fn left_to_kernel(strict: bool, syn: bool, answered: impl FnOnce() -> bool) -> bool {
    !strict && (!syn || answered())
}

/// Whether of the TCP that comes from the wire for a workload only what opens a connection needs a look, but for the ports
/// that are told: nothing that is open is forbidden on others, and no connection goes directly, each of whose segments would
/// be judged.
pub fn unguarded(workload: &Workload) -> Option<[u32; MODE_PORT_WORDS]> {
    if workload.flags & (STRICT | TAKES_DIRECT) != 0 {
        return None;
    }
    Some(if workload.flags & HAS_PORT_MODES != 0 { workload.mode_ports } else { [0; MODE_PORT_WORDS] })
}

/// Whether a port may have a mode of its own.
#[inline(always)]
pub fn is_marked(mode_ports: &[u32; MODE_PORT_WORDS], port: u16) -> bool {
    let (word, bit) = mark_of(port);
    mode_ports[word] & bit != 0
}

/// The place in LISTENERS of a listener, by the family of what it takes.
#[inline(always)]
pub fn place(listener: Inbound, v4: bool) -> u32 {
    match (listener, v4) {
        (Inbound::Plain(_), true) => LISTENER_PLAIN4,
        (Inbound::Plain(_), false) => LISTENER_PLAIN6,
        (Inbound::Tunnel(_), true) => LISTENER_TUNNEL4,
        (Inbound::Tunnel(_), false) => LISTENER_TUNNEL6,
    }
}

/// Whether a packet may open a connection of a TCP probe: a SYN (`syn`) from the node to a port for which one is
/// declared. `declared` and `from_node` look these up; asked only where they matter.
#[inline(always)]
pub fn is_probe(
    workload: &Workload,
    syn: bool,
    declared: impl FnOnce() -> bool,
    from_node: impl FnOnce() -> bool,
) -> bool {
    syn && workload.flags & HAS_PROBED != 0 && declared() && from_node()
}

/// Whether these are the addresses of a connection of the agent's to an application: from loopback to an address that is
/// not. Nobody is redirected that way.
#[inline(always)]
pub fn is_to_app(connecting: &Addr, accepting: &Addr) -> bool {
    connecting.is_loopback() && !accepting.is_loopback()
}

/// Whether these may be the addresses of a connection that was redirected: to loopback, or by a socket that is bound to a
/// device to its own address.
#[inline(always)]
pub fn may_be_redirected(connecting: &Addr, accepting: &Addr) -> bool {
    accepting.is_loopback() || accepting.same(connecting)
}

/// Whether a connection that a socket of this pod has is the application's own, without a word of anybody for it.
/// `agents`: the socket is the agent's. `verdict`: what a hook noted on it. `kept` finds what the agent has noted of an
/// older connection.
#[inline(always)]
pub fn is_foreign(agents: bool, verdict: Option<u32>, kept: impl FnOnce() -> Option<u32>) -> bool {
    // No verdict is 0: a compiler that knows only of "some and other than" compares what the verifier finds unread.
    let verdict = verdict.unwrap_or(0);
    if agents || (verdict != 0 && verdict != Verdict::Accepted as u32) {
        return false;
    }
    // What was opened to the application has no identity, however old it is.
    kept() != Some(KEPT_OUTBOUND)
}

/// Decides on a packet from the wire of which nobody can tell whether it is TCP, and of which connection: it may be of
/// one that STRICT forbids.
#[inline(always)]
pub fn hidden(workload: &Workload) -> Arriving {
    if workload.flags & (STRICT | HAS_PORT_MODES) != 0 { Arriving::Drop } else { Arriving::Pass }
}

/// Notes that a port may have a mode of its own. Ports share bits, so there is no taking back: begin anew.
pub fn mark(mode_ports: &mut [u32; MODE_PORT_WORDS], port: u16) {
    let (word, bit) = mark_of(port);
    mode_ports[word] |= bit;
}

/// Word and bit of a port in [`Workload::mode_ports`].
#[inline(always)]
fn mark_of(port: u16) -> (usize, u32) {
    (usize::from(port >> 5) & (MODE_PORT_WORDS - 1), 1 << (port & 31))
}

/// Whether `port` takes nothing in the open. `exception` finds the mode that the port has by itself, if any; asked only
/// where the port may have one. HBONE's port is never open: its listener is the agent's tunnel.
#[inline(always)]
pub fn is_strict(workload: &Workload, port: u16, exception: impl FnOnce() -> Option<u32>) -> bool {
    let may_have = workload.flags & HAS_PORT_MODES != 0 && is_marked(&workload.mode_ports, port);
    let own = if may_have { exception() } else { None };
    match own {
        Some(mode) => mode != Mode::Permissive as u32,
        None => workload.flags & STRICT != 0,
    }
}

/// Whether a connection passes although the agent's listener is gone. `strict`: it is one that STRICT forbids.
#[inline(always)]
pub fn passes_without_agent(workload: &Workload, strict: bool) -> bool {
    !strict && workload.flags & LOSS_OPEN != 0
}

/// Whether a workload that has so many connections on their way may have one more. Each CPU asks and counts by itself, so
/// a few more than [`MAX_SHARE`] can come about.
#[inline(always)]
pub fn may_have_more(on_their_way: i64) -> bool {
    on_their_way < MAX_SHARE
}

/// The listener for a connection to `port` of `local`, if `remote` is on the wire. What starts in the workload's own
/// namespace, the agent's connections to the application among it, comes from loopback or from one of its own
/// addresses (the kernel drops packets from the wire that claim so, or answers them on the host). `ingress` asks for the
/// agent's listener in the name of the unspecified address.
#[inline(always)]
pub fn lookup(workload: &Workload, remote: &Addr, local: &Addr, port: u16) -> Option<Inbound> {
    if is_inside(remote, local) || is_own(workload, remote) {
        return None;
    }
    Some(listener(workload, port))
}

/// Whether addresses alone tell that a connection is none from the wire: the part of [`lookup`] that needs no workload.
#[inline(always)]
pub fn is_inside(remote: &Addr, local: &Addr) -> bool {
    remote.is_unspecified() || remote.is_loopback() || remote.same(local)
}

#[inline(always)]
fn listener(workload: &Workload, port: u16) -> Inbound {
    if port == TUNNEL_PORT { Inbound::Tunnel(workload.tunnel_port) } else { Inbound::Plain(workload.inbound_port) }
}

#[cfg(test)]
pub(crate) mod tests {
    use core::net::{IpAddr, Ipv4Addr, SocketAddr};

    use super::*;
    use proptest::prelude::*;

    pub(crate) fn workload() -> Workload {
        let own = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let mut w = Workload {
            id: 7,
            flags: 0,
            mode_ports: [u32::MAX; MODE_PORT_WORDS],
            source4: own("10.0.0.2"),
            source6: own("fd00::2"),
            own: [Addr::ZERO; MAX_ADDRESSES],
            outbound_port: 15001,
            inbound_port: 15006,
            tunnel_port: 15108,
            dns_port: 0,
        };
        w.own[0] = w.source4;
        w.own[MAX_ADDRESSES - 1] = w.source6;
        w
    }

    fn decide(w: &Workload, to: &str, device: bool) -> Outbound {
        outbound(w, &to.parse::<SocketAddr>().unwrap().into(), device, 0x0001_0203)
    }

    fn redirect(to: &str) -> Outbound {
        Outbound::Redirect(to.parse::<SocketAddr>().unwrap().into())
    }

    #[test]
    fn captures_what_leaves_the_pod() {
        let w = workload();
        assert_eq!(decide(&w, "10.0.0.3:80", false), redirect("127.1.2.3:15001"));
        assert_eq!(decide(&w, "[::ffff:10.0.0.3]:80", false), redirect("127.1.2.3:15001"));
        assert_eq!(decide(&w, "[fd00::3]:80", false), redirect("[::1]:15001"));
        assert_eq!(decide(&w, "10.0.0.3:80", true), redirect("10.0.0.2:15001"));
        assert_eq!(decide(&w, "[fd00::3]:80", true), redirect("[fd00::2]:15001"));
        // The agent's own ports are nothing special on other hosts.
        assert_eq!(decide(&w, "10.0.0.3:15008", false), redirect("127.1.2.3:15001"));
    }

    #[test]
    fn never_captures_the_exempt() {
        for to in [
            "127.0.0.1:80",
            "127.9.9.9:15001",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "0.0.0.0:80",
            "[::]:80",
            "10.0.0.2:80",
            "[::ffff:10.0.0.2]:80",
            "[fd00::2]:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[ff02::1]:80",
            "169.254.169.254:80",
            "[fe80::1]:80",
            "10.0.0.3:0",
        ] {
            assert_eq!(decide(&workload(), to, false), Outbound::Pass, "{to}");
        }
    }

    #[test]
    fn a_family_without_an_address_is_unreachable() {
        let mut w = workload();
        w.own[MAX_ADDRESSES - 1] = Addr::ZERO;
        w.source6 = Addr::ZERO;
        assert_eq!(decide(&w, "[fd00::3]:80", false), Outbound::Unreachable);
        assert_eq!(decide(&w, "[::1]:80", false), Outbound::Pass);
        assert_eq!(decide(&w, "[::ffff:10.0.0.3]:80", false), redirect("127.1.2.3:15001"));
    }

    #[test]
    fn inbound_table() {
        let w = workload();
        for strict in [false, true] {
            assert_eq!(inbound(&w, 80, Found::Live, strict), Arriving::Pass);
            assert_eq!(inbound(&w, 80, Found::TimeWait, strict), Arriving::Pass);
            assert_eq!(inbound(&w, 80, Found::Nobody, strict), Arriving::Steer(Inbound::Plain(15006)));
            assert_eq!(inbound(&w, 15008, Found::Nobody, strict), Arriving::Steer(Inbound::Tunnel(15108)));
            // The port on which the tunnel listener happens to be is an ordinary port on the wire.
            assert_eq!(inbound(&w, 15108, Found::Nobody, strict), Arriving::Steer(Inbound::Plain(15006)));
        }
        assert_eq!(inbound(&w, 80, Found::Foreign, false), Arriving::Pass);
        assert_eq!(inbound(&w, 80, Found::Foreign, true), Arriving::Drop);
    }

    #[test]
    fn modes_of_ports_and_what_passes_without_an_agent() {
        let mut w = workload();
        let (permissive, strict) = (Some(Mode::Permissive as u32), Some(Mode::Strict as u32));
        // Without the flag nobody looks.
        assert!(!is_strict(&w, 80, || strict));
        w.flags = STRICT;
        assert!(is_strict(&w, 80, || permissive));
        w.flags = STRICT | HAS_PORT_MODES;
        assert!(is_strict(&w, 80, || None));
        assert!(!is_strict(&w, 80, || permissive));
        w.flags = HAS_PORT_MODES;
        assert!(!is_strict(&w, 80, || None));
        assert!(is_strict(&w, 80, || strict));
        // A mode that this version does not know is the stricter one.
        assert!(is_strict(&w, 80, || Some(7)));

        assert!(!passes_without_agent(&w, false));
        w.flags = LOSS_OPEN;
        assert!(passes_without_agent(&w, false));
        assert!(!passes_without_agent(&w, true));
    }

    #[test]
    fn lookup_steers_what_comes_from_the_wire_only() {
        let mut w = workload();
        w.own[3] = "10.9.0.2".parse::<IpAddr>().unwrap().into();
        w.own[4] = "fd09::2".parse::<IpAddr>().unwrap().into();
        let ask = |remote: &str, local: &str, port| {
            lookup(&w, &remote.parse::<IpAddr>().unwrap().into(), &local.parse::<IpAddr>().unwrap().into(), port)
        };
        for (remote, local) in [("10.0.0.3", "10.0.0.2"), ("fd00::3", "fd00::2"), ("fe80::3", "fe80::2")] {
            assert_eq!(ask(remote, local, 80), Some(Inbound::Plain(15006)), "{remote}");
            assert_eq!(ask(remote, local, 15008), Some(Inbound::Tunnel(15108)), "{remote}");
        }
        for (remote, local) in [
            ("127.3.2.1", "10.0.0.2"),
            ("::1", "fd00::2"),
            ("10.0.0.2", "10.0.0.2"),
            ("fd00::2", "fd00::2"),
            ("fe80::2", "fe80::2"),
            // Another address of its own.
            ("10.9.0.2", "10.0.0.2"),
            ("fd00::2", "fd09::2"),
            ("0.0.0.0", "0.0.0.0"),
            ("::", "::"),
        ] {
            assert_eq!(ask(remote, local, 80), None, "{remote}");
        }
    }

    proptest! {
        #[test]
        fn spread_stays_inside_loopback(random: u32) {
            let ip = Ipv4Addr::from(spread(random).to_ne_bytes());
            prop_assert!(ip.is_loopback());
            prop_assert_ne!(ip, Ipv4Addr::new(127, 0, 0, 0));
            prop_assert_ne!(ip, Ipv4Addr::new(127, 255, 255, 255));
        }

        /// A port that was noted is asked for its mode, whatever else was; of the others, few are.
        #[test]
        fn no_mode_of_a_port_is_overlooked(ports: [u16; 4], other: u16) {
            let mut w = workload();
            w.flags = HAS_PORT_MODES;
            w.mode_ports = [0; MODE_PORT_WORDS];
            prop_assert!(!is_strict(&w, other, || Some(Mode::Strict as u32)));
            for port in ports {
                mark(&mut w.mode_ports, port);
            }
            for port in ports {
                prop_assert!(is_strict(&w, port, || Some(Mode::Strict as u32)));
            }
            let shares = ports.iter().any(|port| port % 128 == other % 128);
            prop_assert_eq!(is_strict(&w, other, || Some(Mode::Strict as u32)), shares);
        }

        /// What is not looked at would be left to the kernel by a look: no flag that is added later may change that.
        #[test]
        fn nothing_is_missed_by_not_looking(flags: u32, marks: [u32; MODE_PORT_WORDS], mode: u32, port: u16) {
            let mut w = workload();
            (w.flags, w.mode_ports) = (flags, marks);
            if unguarded(&w).is_some_and(|ports| !is_marked(&ports, port)) {
                let strict = is_strict(&w, port, || Some(mode));
                prop_assert!(!strict && left_to_kernel(strict, false, || false));
                prop_assert_eq!(w.flags & TAKES_DIRECT, 0);
                prop_assert!(!is_probe(&w, false, || true, || true));
            }
        }

        /// Where a port is STRICT, no packet passes for a connection of the application's own, in whatever packing, and no
        /// connection without the agent.
        #[test]
        fn strict_is_never_got_around(flags in 0_u32..64, exception in proptest::option::of(0_u32..4), port: u16) {
            let mut w = workload();
            w.flags = flags;
            let strict = is_strict(&w, 80, || exception);
            prop_assert_eq!(inbound(&w, port, Found::Foreign, strict) == Arriving::Drop, strict);
            if strict {
                prop_assert_eq!(hidden(&w), Arriving::Drop);
                prop_assert!(!passes_without_agent(&w, strict));
            }
            if flags & LOSS_OPEN == 0 {
                prop_assert!(!passes_without_agent(&w, strict));
            }
        }

        /// A new connection is the agent's, by whichever of the two hooks it comes; what is open stays where it is.
        #[test]
        fn both_hooks_lead_to_the_same_listener(octets: [u8; 16], v4: bool, port: u16, strict: bool, flags in 0_u32..64) {
            let mut w = workload();
            w.flags = flags;
            let ip: IpAddr = if v4 { Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into() } else { octets.into() };
            let (remote, local) = (Addr::from(ip), if v4 { w.source4 } else { w.source6 });
            let steered = inbound(&w, port, Found::Nobody, strict);
            match lookup(&w, &remote, &local, port) {
                Some(listener) => prop_assert_eq!(steered, Arriving::Steer(listener)),
                None => prop_assert!(remote.is_unspecified() || remote.is_loopback() || is_own(&w, &remote)),
            }
            for found in [Found::Live, Found::TimeWait] {
                prop_assert_eq!(inbound(&w, port, found, strict), Arriving::Pass);
            }
        }

        /// What is left to the kernel is forbidden nowhere, and comes to the agent if nobody has a connection for it.
        #[test]
        fn the_kernel_gets_what_lookup_steers(octets: [u8; 16], v4: bool, own: bool, strict: bool, syn: bool, port: u16) {
            let w = workload();
            let local = if v4 { w.source4 } else { w.source6 };
            let ip: IpAddr = if v4 { Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into() } else { octets.into() };
            let remote = if own { local } else { Addr::from(ip) };
            let steered = lookup(&w, &remote, &local, port);
            let mut asked = false;
            let left = left_to_kernel(strict, syn, || { asked = true; steered.is_some() });
            prop_assert_eq!(asked, syn && !strict);
            prop_assert_eq!(left, !strict && (!syn || steered.is_some()));
            if let Some(listener) = steered {
                for found in [Found::Live, Found::Foreign, Found::TimeWait] {
                    prop_assert_eq!(inbound(&w, port, found, false), Arriving::Pass);
                }
                prop_assert_eq!(inbound(&w, port, Found::Nobody, false), Arriving::Steer(listener));
            }
        }

        /// The agent answers for the application unless all of it speaks for a probe, and nobody looks for what a packet
        /// cannot be.
        #[test]
        fn only_a_declared_syn_from_the_node_is_a_probe(flags in 0_u32..64, syn: bool, declared: bool, from_node: bool) {
            let mut w = workload();
            w.flags = flags;
            let (mut looked, mut looked_twice) = (false, false);
            let probe = is_probe(&w, syn, || { looked = true; declared }, || { looked_twice = true; from_node });
            let may = syn && flags & HAS_PROBED != 0;
            prop_assert_eq!((looked, looked_twice), (may, may && declared));
            prop_assert_eq!(probe, may && declared && from_node);
        }

        /// Somebody has spoken for what is not foreign: the agent, a hook that let it go out, or the list of old ones.
        #[test]
        fn foreign_is_what_nobody_spoke_for(agents: bool, verdict in proptest::option::of(1_u32..6), kept in proptest::option::of(0_u32..4)) {
            let spoken = agents
                || verdict.is_some_and(|verdict| verdict != Verdict::Accepted as u32)
                || kept == Some(KEPT_OUTBOUND);
            prop_assert_eq!(is_foreign(agents, verdict, || kept), !spoken);
        }

        /// Whatever the destination, a redirected connection goes to the agent on this host and can never be caught
        /// a second time.
        #[test]
        fn a_redirect_is_never_captured_again(octets: [u8; 16], v4: bool, port: u16, device: bool, random: u32) {
            let ip: IpAddr = if v4 { Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into() } else { octets.into() };
            let w = workload();
            match outbound(&w, &SocketAddr::new(ip, port).into(), device, random) {
                Outbound::Redirect(to) => {
                    prop_assert!(is_never_captured(&w, &to));
                    // The kernel gives a socket a loopback address toward loopback, and its own toward its own.
                    let own = if device { to.addr } else { Addr::from(IpAddr::from([127, 0, 0, 1])) };
                    prop_assert!(may_be_redirected(&own, &to.addr) && !is_to_app(&own, &to.addr));
                    prop_assert_eq!(to.port, 15001);
                    prop_assert_eq!(to.addr.is_v4(), ip.to_canonical().is_ipv4());
                }
                Outbound::Pass => prop_assert!(is_never_captured(&w, &SocketAddr::new(ip, port).into())),
                Outbound::Unreachable => prop_assert!(false, "the workload has both families"),
            }
        }
    }
}
