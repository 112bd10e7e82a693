//! Under which loopback address a DNS server is asked through the agent, so that the answer's source tells which server
//! it was. In: a server. Out: the places that may stand for it, to be tried in turn. Reads no map: which place is taken
//! by which server stands in the map `DNS`.
//!
//! IPv4 has all of 127.0.0.0/8: a server's place is an address of 127.53.0.0/20, on the agent's one port. IPv6 has only
//! `::1`: a place is one of a few ports in a row, each a socket of the agent's.

use crate::addr::{Addr, Endpoint};

/// IPv4 servers that one workload can have places for; a power of two.
pub const PLACES4: u32 = 4096;
/// IPv6 servers that one workload can have places for, and the agent's IPv6 sockets in its namespace. The lists in
/// `/etc/resolv.conf` have three.
pub const PLACES6: u32 = 8;
/// Places that are tried for one server before it is given up.
pub const TRIES: u32 = 8;

/// 127.53.0.0.
const FIRST: u32 = 0x7f35_0000;

/// The place to try for a server, the `n`-th time; `port` is the agent's (its first, for IPv6).
#[inline(always)]
pub fn place(server: &Endpoint, n: u32, port: u16) -> Endpoint {
    let (n, port) = (n % TRIES, u32::from(port));
    if server.addr.is_v4() {
        let index = hash(server).wrapping_add(n) % PLACES4;
        Endpoint { addr: Addr::from_v4_wire((FIRST + index).to_be()), port }
    } else {
        Endpoint { addr: Addr([0, 0, 0, 1_u32.to_be()]), port: port + n }
    }
}

/// Spreads servers over places: MurmurHash3's finaliser, over the words. A workload that makes its servers collide only
/// runs out of its own places.
#[inline(always)]
fn hash(server: &Endpoint) -> u32 {
    let mut h = server.port;
    let mut i = 0;
    while i < 4 {
        h = (h ^ server.addr.0[i]).wrapping_mul(0x85eb_ca6b);
        h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
        h ^= h >> 16;
        i += 1;
    }
    h
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::collections::HashSet;

    use super::*;
    use crate::capture::tests::workload;
    use crate::udp::{Verdict, outbound};
    use proptest::prelude::*;

    fn server(ip: IpAddr) -> Endpoint {
        SocketAddr::new(ip, 53).into()
    }

    #[test]
    fn the_places_of_a_server_differ() {
        for ip in ["192.0.2.53", "fd00::53"] {
            let server = server(ip.parse().unwrap());
            let places: HashSet<_> = (0..TRIES).map(|n| place(&server, n, 15053)).collect();
            assert_eq!(places.len(), TRIES as usize, "{ip}");
        }
        assert_eq!(TRIES, PLACES6, "each IPv6 place is tried for each server");
    }

    #[test]
    fn neighbours_are_spread() {
        let first = |i: u8| place(&server(Ipv4Addr::new(192, 0, 2, i).into()), 0, 15053);
        let places: HashSet<_> = (0..=255).map(first).collect();
        assert!(places.len() > 230, "256 servers have only {} first places", places.len());
    }

    proptest! {
        /// A place is on the host itself, so that it is never caught a second time, and of the server's family.
        #[test]
        fn a_place_is_loopback_and_passes(octets: [u8; 16], v4: bool, n: u32, port in 1_u16..65528) {
            let ip: IpAddr = if v4 { Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into() } else { octets.into() };
            let server = server(ip);
            let at = place(&server, n, port);
            prop_assert!(at.addr.is_loopback());
            prop_assert_eq!(at.addr.is_v4(), server.addr.is_v4());
            prop_assert!((u32::from(port)..u32::from(port) + PLACES6).contains(&at.port));
            prop_assert!(at.addr.is_v4() == (ip.to_canonical().is_ipv4()) && (!at.addr.is_v4() || at.port == u32::from(port)));
            let mut w = workload();
            w.flags = crate::abi::UDP_DENY;
            prop_assert_eq!(outbound(&w, &at), Verdict::Pass);
        }
    }
}
