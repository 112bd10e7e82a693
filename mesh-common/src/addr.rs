//! Addresses as the maps hold them. In: what a socket or a packet carries. Out: one canonical form, in which an IPv4
//! address is its IPv4-mapped IPv6 address. So a socket of either family that talks to the same peer yields the same
//! key. Never looks at an interface or a route.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The third word of an IPv4-mapped address, `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2), as it lies in memory.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An IP address: four words as they lie on the wire; IPv4 is mapped into IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr(pub [u32; 4]);

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub addr: Addr,
    /// The port in host byte order, widened so that the struct has no padding.
    pub port: u32,
}

impl Addr {
    /// `::`. Not IPv4's 0.0.0.0.
    pub const ZERO: Addr = Addr([0; 4]);

    /// From an IPv4 address as it lies on the wire.
    #[inline(always)]
    pub const fn from_v4_wire(word: u32) -> Addr {
        Addr([0, 0, MAPPED, word])
    }

    /// The IPv4 address as it lies on the wire, if this is one.
    #[inline(always)]
    pub const fn v4_wire(&self) -> Option<u32> {
        if self.is_v4() { Some(self.0[3]) } else { None }
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// Word by word, because a comparison of the arrays becomes a call to memcmp, which the kernel side does not have.
    #[inline(always)]
    pub const fn same(&self, other: &Addr) -> bool {
        (self.0[0] ^ other.0[0]) | (self.0[1] ^ other.0[1]) | (self.0[2] ^ other.0[2]) | (self.0[3] ^ other.0[3]) == 0
    }

    /// 0.0.0.0 or `::`; Linux connects both to the host itself.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && (self.0[2] == 0 || self.0[2] == MAPPED) && self.0[3] == 0
    }

    /// 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        match self.v4_wire() {
            Some(word) => u32::from_be(word) >> 24 == 127,
            None => self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be(),
        }
    }

    /// As on the wire, IPv4 as an IPv4-mapped address.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        let mut i = 0;
        while i < 4 {
            let word = self.0[i].to_ne_bytes();
            octets[4 * i] = word[0];
            octets[4 * i + 1] = word[1];
            octets[4 * i + 2] = word[2];
            octets[4 * i + 3] = word[3];
            i += 1;
        }
        octets
    }

    /// 224.0.0.0/4, the broadcast address 255.255.255.255, or ff00::/8.
    #[inline(always)]
    pub const fn is_multicast_or_broadcast(&self) -> bool {
        match self.v4_wire() {
            Some(word) => u32::from_be(word) >> 28 == 0xe || word == u32::MAX,
            None => u32::from_be(self.0[0]) >> 24 == 0xff,
        }
    }

    /// 169.254.0.0/16 or fe80::/10.
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        match self.v4_wire() {
            Some(word) => u32::from_be(word) >> 16 == 0xa9fe,
            None => u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6,
        }
    }
}

impl Endpoint {
    /// An endpoint of all zeroes.
    pub const ZERO: Endpoint = Endpoint { addr: Addr::ZERO, port: 0 };
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Addr {
        Addr::from_v4_wire(u32::from_ne_bytes(ip.octets()))
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Addr {
        let o = ip.octets();
        let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
        Addr([word(0), word(4), word(8), word(12)])
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Addr {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> IpAddr {
        if let Some(word) = addr.v4_wire() {
            return Ipv4Addr::from(word.to_ne_bytes()).into();
        }
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(addr.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).into()
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(at: SocketAddr) -> Endpoint {
        Endpoint { addr: at.ip().into(), port: at.port().into() }
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(at: Endpoint) -> SocketAddr {
        SocketAddr::new(at.addr.into(), at.port as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        assert_eq!(addr("::ffff:192.0.2.7"), addr("192.0.2.7"));
        assert_eq!(IpAddr::from(addr("::ffff:192.0.2.7")), "192.0.2.7".parse::<IpAddr>().unwrap());
        // The deprecated "IPv4-compatible" form is not IPv4.
        assert_ne!(addr("::192.0.2.7"), addr("192.0.2.7"));
    }

    #[test]
    fn edges_of_the_ranges() {
        for (text, loopback, link_local, multicast) in [
            ("126.255.255.255", false, false, false),
            ("127.0.0.0", true, false, false),
            ("127.255.255.255", true, false, false),
            ("128.0.0.0", false, false, false),
            ("169.253.255.255", false, false, false),
            ("169.254.0.0", false, true, false),
            ("169.255.0.0", false, false, false),
            ("223.255.255.255", false, false, false),
            ("224.0.0.0", false, false, true),
            ("239.255.255.255", false, false, true),
            ("240.0.0.0", false, false, false),
            ("255.255.255.254", false, false, false),
            ("255.255.255.255", false, false, true),
            ("::1", true, false, false),
            ("::2", false, false, false),
            ("::127.0.0.1", false, false, false),
            ("fe7f::1", false, false, false),
            ("fe80::1", false, true, false),
            ("febf::1", false, true, false),
            ("fec0::1", false, false, false),
            ("feff::1", false, false, false),
            ("ff00::", false, false, true),
        ] {
            let a = addr(text);
            assert_eq!(
                (a.is_loopback(), a.is_link_local(), a.is_multicast_or_broadcast()),
                (loopback, link_local, multicast),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard_library(octets: [u8; 16], v4: bool) {
            let ip: IpAddr = if v4 { Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into() } else { Ipv6Addr::from(octets).into() };
            let a = Addr::from(ip);
            let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
            prop_assert_eq!(IpAddr::from(a), ip.to_canonical());
            prop_assert_eq!(a.is_loopback(), ip.to_canonical().is_loopback());
            prop_assert_eq!(a.is_unspecified(), ip.to_canonical().is_unspecified());
            prop_assert_eq!(a.is_multicast_or_broadcast(), ip.to_canonical().is_multicast() || broadcast);
            let link_local = match ip.to_canonical() {
                IpAddr::V4(ip) => ip.is_link_local(),
                IpAddr::V6(ip) => ip.is_unicast_link_local(),
            };
            prop_assert_eq!(a.is_link_local(), link_local);
        }

        #[test]
        fn an_endpoint_survives_the_way_there_and_back(octets: [u8; 16], port: u16) {
            let at = SocketAddr::new(Ipv6Addr::from(octets).to_canonical(), port);
            prop_assert_eq!(SocketAddr::from(Endpoint::from(at)), at);
        }
    }
}
