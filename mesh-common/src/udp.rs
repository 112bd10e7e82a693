//! Which datagrams go where. In: the workload's entry and a destination, from a system call ([`outbound`]) or from a
//! packet on its way out ([`leaving`]). Out: pass, refuse, or DNS. Reads no map, touches no socket.

use crate::abi::{UDP_DENY, UDP_DNS_ONLY, Workload};
use crate::addr::Endpoint;
use crate::capture;
use crate::egress::Sender;

/// UDP's number (IANA, Assigned Internet Protocol Numbers).
pub const UDP: u32 = 17;
/// UDP-Lite's number.
pub const UDP_LITE: u32 = 136;
/// The port of DNS servers (RFC 1035, 4.2.1).
pub const DNS_PORT: u32 = 53;

/// What to do with a datagram, or with a UDP socket that connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it alone.
    Pass,
    /// The workload's setting forbids it.
    Deny,
    /// A question to a DNS server: the agent's listener takes it. Allowed as such, when the listener cannot.
    Dns,
}

/// What to do with a datagram on its way out by an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It may go.
    Pass,
    /// The workload's setting forbids it: it came by a way that the hooks do not see, or from before the setting.
    Denied,
    /// A question to a DNS server that did not go through the agent though it could, or a datagram to the host itself,
    /// which has no business out there.
    Unexplained,
}

/// Decides on a datagram of `workload` to `to`. The host itself and the workload's own addresses always pass.
#[inline(always)]
pub fn outbound(workload: &Workload, to: &Endpoint) -> Verdict {
    let a = &to.addr;
    if a.is_unspecified() || a.is_loopback() || capture::is_own(workload, a) {
        return Verdict::Pass;
    }
    elsewhere(workload, to)
}

/// Whether a question to a DNS server can go through the agent: from a socket of UDP (`protocol`), which is all that the
/// agent listens for, and not one that is bound to a device (`device`), from which there is no way to loopback.
/// `answers` finds out whether the agent listens; asked only where it matters.
#[inline(always)]
pub fn can_ask_agent(workload: &Workload, protocol: u32, device: bool, answers: impl FnOnce() -> bool) -> bool {
    protocol == UDP && !device && workload.dns_port != 0 && answers()
}

/// Decides on a datagram that leaves by an interface other than loopback. `to` is `None` for a later piece of one, which
/// does not tell its ports: who may send anywhere may send it. [`Sender::Released`]: a hook let the socket ask DNS
/// servers by itself, because the agent could not.
#[inline(always)]
pub fn leaving(workload: &Workload, sender: Sender, to: Option<&Endpoint>) -> Leaving {
    if matches!(sender, Sender::Agent) {
        return Leaving::Pass;
    }
    let released = matches!(sender, Sender::Released);
    let Some(to) = to else {
        let free = workload.flags & (UDP_DENY | UDP_DNS_ONLY) == 0;
        let question = released && workload.flags & UDP_DENY == 0;
        return if free || question { Leaving::Pass } else { Leaving::Denied };
    };
    match elsewhere(workload, to) {
        Verdict::Deny => Leaving::Denied,
        // A place of the agent's, for one: from a socket that chose its interface by hand.
        _ if to.addr.is_unspecified() || to.addr.is_loopback() => Leaving::Unexplained,
        Verdict::Dns if !released => Leaving::Unexplained,
        Verdict::Dns | Verdict::Pass => Leaving::Pass,
    }
}

/// Decides on a datagram to another host.
#[inline(always)]
fn elsewhere(workload: &Workload, to: &Endpoint) -> Verdict {
    let a = &to.addr;
    if workload.flags & UDP_DENY != 0 {
        return Verdict::Deny;
    }
    let dns = to.port == DNS_PORT && !a.is_multicast_or_broadcast();
    if workload.flags & UDP_DNS_ONLY != 0 && !dns {
        return Verdict::Deny;
    }
    // Link-local servers, such as a cache on the node, are never captured, as with TCP.
    if dns && !a.is_link_local() { Verdict::Dns } else { Verdict::Pass }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, SocketAddr};

    use super::*;
    use crate::abi::MAX_ADDRESSES;
    use crate::addr::Addr;
    use crate::capture::tests::workload;
    use proptest::prelude::*;

    fn decide(flags: u32, to: &str) -> Verdict {
        let mut w = workload();
        w.flags = flags;
        outbound(&w, &to.parse::<SocketAddr>().unwrap().into())
    }

    #[test]
    fn table() {
        use Verdict::{Deny, Dns, Pass};
        for (to, allow, dns_only) in [
            ("10.0.0.3:53", Dns, Dns),
            ("[::ffff:10.0.0.3]:53", Dns, Dns),
            ("[fd00::3]:53", Dns, Dns),
            ("10.0.0.3:123", Pass, Deny),
            ("[fd00::3]:443", Pass, Deny),
            ("10.0.0.3:0", Pass, Deny),
            ("169.254.20.10:53", Pass, Pass),
            ("[fe80::3]:53", Pass, Pass),
            ("169.254.20.10:123", Pass, Deny),
            ("224.0.0.251:5353", Pass, Deny),
            ("224.0.0.251:53", Pass, Deny),
            ("255.255.255.255:53", Pass, Deny),
            ("[ff02::fb]:53", Pass, Deny),
        ] {
            assert_eq!(decide(0, to), allow, "{to}");
            assert_eq!(decide(UDP_DNS_ONLY, to), dns_only, "{to}");
            assert_eq!(decide(UDP_DENY, to), Deny, "{to}");
            assert_eq!(decide(UDP_DENY | UDP_DNS_ONLY, to), Deny, "{to}");
        }
        for to in [
            "127.0.0.53:53",
            "[::1]:53",
            "[::ffff:127.0.0.53]:53",
            "0.0.0.0:53",
            "[::]:0",
            "10.0.0.2:53",
            "[fd00::2]:9",
        ] {
            for flags in [0, UDP_DNS_ONLY, UDP_DENY] {
                assert_eq!(decide(flags, to), Pass, "{to}");
            }
        }
    }

    #[test]
    fn what_leaves() {
        use Leaving::{Denied, Pass, Unexplained};
        use Sender::{Agent, Nobody, Released, Unknown};
        let leaves = |flags: u32, sender, to: &str| {
            let mut w = workload();
            w.flags = flags;
            leaving(&w, sender, to.parse::<SocketAddr>().ok().map(Endpoint::from).as_ref())
        };
        for (sender, to, allow, dns_only) in [
            (Unknown, "10.0.0.3:123", Pass, Denied),
            (Nobody, "[fd00::3]:443", Pass, Denied),
            (Released, "10.0.0.3:123", Pass, Denied),
            (Unknown, "10.0.0.3:53", Unexplained, Unexplained),
            (Nobody, "[fd00::3]:53", Unexplained, Unexplained),
            (Released, "10.0.0.3:53", Pass, Pass),
            (Unknown, "169.254.20.10:53", Pass, Pass),
            (Unknown, "224.0.0.251:5353", Pass, Denied),
            // The hooks let these pass because they stay on the host.
            (Unknown, "127.53.0.1:15053", Unexplained, Denied),
            (Unknown, "[::1]:53", Unexplained, Unexplained),
            (Released, "0.0.0.0:53", Unexplained, Unexplained),
            (Unknown, "10.0.0.2:9", Pass, Denied),
            (Unknown, "a later piece", Pass, Denied),
            (Released, "a later piece", Pass, Pass),
        ] {
            assert_eq!(leaves(0, sender, to), allow, "{sender:?} {to}");
            assert_eq!(leaves(UDP_DNS_ONLY, sender, to), dns_only, "{sender:?} {to}");
            for flags in [UDP_DENY, UDP_DENY | UDP_DNS_ONLY] {
                assert_eq!(leaves(flags, sender, to), Denied, "{sender:?} {to}");
                assert_eq!(leaves(flags, Agent, to), Pass, "{to}");
            }
        }
    }

    proptest! {
        /// Nothing leaves by another way that the hooks would not let go: only the agent asks servers, and whom a hook
        /// released.
        #[test]
        fn no_way_around_the_hooks(octets: [u8; 16], v4: bool, port: u16, dns: bool, flags in 0_u32..64, sender in 0..4) {
            let port = if dns { 53 } else { port };
            let v4addr = Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]);
            let ip: IpAddr = if v4 { v4addr.into() } else { octets.into() };
            let to = Endpoint::from(SocketAddr::new(ip, port));
            let mut w = workload();
            w.flags = flags;
            let sender = [Sender::Released, Sender::Kernel, Sender::Nobody, Sender::Unknown][sender as usize];
            let left = leaving(&w, sender, Some(&to));
            let stays = to.addr.is_unspecified() || to.addr.is_loopback();
            if left == Leaving::Pass {
                prop_assert!(!stays && flags & UDP_DENY == 0);
                match outbound(&w, &to) {
                    Verdict::Pass => {}
                    Verdict::Dns => prop_assert_eq!(sender, Sender::Released),
                    Verdict::Deny => prop_assert!(false, "a hook would have refused it"),
                }
            }
            prop_assert_eq!(leaving(&w, Sender::Agent, Some(&to)), Leaving::Pass);
        }

        /// Whatever the destination: what is refused under a milder setting is refused under a stricter one, DNS is
        /// port 53 only, and nothing is DNS that is never captured.
        #[test]
        fn stricter_settings_never_allow_more(octets: [u8; 16], v4: bool, port: u16, dns: bool) {
            let port = if dns { 53 } else { port };
            let v4addr = Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]);
            let ip: IpAddr = if v4 { v4addr.into() } else { octets.into() };
            let to = Endpoint::from(SocketAddr::new(ip, port));
            let mut w = workload();
            let verdicts = [0, UDP_DNS_ONLY, UDP_DENY].map(|flags| {
                w.flags = flags;
                outbound(&w, &to)
            });
            let rank = |v: Verdict| u32::from(v == Verdict::Deny);
            prop_assert!(rank(verdicts[0]) <= rank(verdicts[1]) && rank(verdicts[1]) <= rank(verdicts[2]));
            prop_assert_eq!(rank(verdicts[0]), 0, "without a setting nothing is refused");
            prop_assert!(!verdicts.contains(&Verdict::Dns) || to.port == DNS_PORT);
            prop_assert_ne!(verdicts[2], Verdict::Dns);
            if verdicts[0] == Verdict::Dns {
                prop_assert!(!capture::is_never_captured(&w, &to));
            }
        }

        /// The agent takes no question that it could not answer.
        #[test]
        fn the_agent_is_asked_by_ordinary_sockets_only(known: bool, other: u32, device: bool, listens: bool, answers: bool) {
            let mut w = workload();
            w.dns_port = if listens { 15053 } else { 0 };
            let protocol = if known { UDP } else { other };
            let mut looked = false;
            let asked = can_ask_agent(&w, protocol, device, || { looked = true; answers });
            prop_assert_eq!(looked, protocol == 17 && !device && listens);
            prop_assert_eq!(asked, looked && answers);
            prop_assert!(!can_ask_agent(&w, UDP_LITE, device, || true));
        }

        #[test]
        fn own_addresses_always_pass(octets: [u8; 16], place in 0..MAX_ADDRESSES, port: u16, flags in 0_u32..64) {
            let mut w = workload();
            w.flags = flags;
            w.own[place] = Addr::from(IpAddr::from(octets));
            let to = Endpoint { addr: w.own[place], port: port.into() };
            prop_assert_eq!(outbound(&w, &to), Verdict::Pass);
        }
    }
}
