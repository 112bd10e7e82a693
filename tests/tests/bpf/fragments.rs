//! TCP that tc ingress leaves to the kernel: in pieces, behind IPv6 extension headers, in frames with tags. New
//! connections meet sk_lookup instead; what STRICT forbids to connections of the application's own must not pass so.

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mesh_common::abi::{Counter, LOSS_OPEN};

use super::packets::{self, ACK, Frames, SYN, SYN_ACK, TCP, Wire, packet_from, segment_with};
use super::support::*;

const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;
const VLAN: u16 = 0x8100;

/// How a segment is packed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// As it is.
    Plain,
    /// In two pieces.
    Pieces,
    /// In pieces of which the first says another port, and is followed by one in its place.
    Decoy,
    /// In one piece that says that it is one.
    Atomic,
    /// Behind an extension header.
    Options,
    /// Behind an extension header, and both in pieces.
    OptionsInPieces,
    /// Behind more extension headers than anybody needs.
    ManyOptions,
    /// In a frame with two tags of VLAN 0, which Linux takes off both.
    Tags,
}

const V4: [Way; 3] = [Way::Plain, Way::Pieces, Way::Tags];
const V6: [Way; 7] =
    [Way::Plain, Way::Pieces, Way::Atomic, Way::Options, Way::OptionsInPieces, Way::ManyOptions, Way::Tags];

/// A client that no kernel plays, at an address of the wire that nobody has.
struct Client<'a> {
    mesh: &'a Mesh,
    frames: Frames,
    wire: Wire,
    from: SocketAddr,
    to: SocketAddr,
    /// What it says next, and what it has heard.
    numbers: [u32; 2],
    identification: u16,
}

impl<'a> Client<'a> {
    fn new(mesh: &'a Mesh, to: &str, port: u16) -> Client<'a> {
        let to = at(to);
        let ip_address = ip_of(if to.is_ipv4() { "10.77.0.77" } else { "fd77::77" });
        let mac: Vec<String> = packets::mac(&mesh.net.wire).iter().map(|byte| format!("{byte:02x}")).collect();
        ip(&mesh.net.pod, &format!("neigh replace {ip_address} lladdr {} dev eth0", mac.join(":")));
        let (frames, wire) = (Frames::to_pod(&mesh.net), Wire::new(&mesh.net));
        Client { mesh, frames, wire, from: SocketAddr::new(ip_address, port), to, numbers: [1, 0], identification: 0 }
    }

    /// A handshake.
    fn connect(&mut self, way: Way) {
        self.say(way, SYN, b"");
        let is_answer = |packet: &Vec<u8>| {
            let (tcp, protocol) = if self.to.is_ipv4() { (20, 9) } else { (40, 6) };
            packet.len() >= tcp + 20
                && packet[protocol] == TCP
                && packet[tcp + 2..tcp + 4] == self.from.port().to_be_bytes()
                && packet[tcp + 13] == SYN_ACK
        };
        let end = Instant::now() + PATIENCE;
        let answer = loop {
            if let Some(found) = self.wire.seen(self.mesh).into_iter().find(is_answer) {
                break found;
            }
            assert!(Instant::now() < end, "{way:?}: nobody answers {}", self.from);
        };
        let number = if self.to.is_ipv4() { 24 } else { 44 };
        let heard = u32::from_be_bytes(answer[number..number + 4].try_into().unwrap());
        self.numbers = [2, heard.wrapping_add(1)];
        self.say(way, ACK, b"");
    }

    /// Says something, which does not count as said yet.
    fn say(&mut self, way: Way, flags: u8, data: &[u8]) {
        // Options that say nothing, so that there is something for a second piece.
        let tcp = segment_with(self.from, self.to, self.numbers, flags, &[1; 12], data);
        self.identification += 1;
        let (from, to) = (self.from.ip(), self.to.ip());
        let whole = |next: u8, content: &[u8]| packet_from(from, to, next, [self.identification, 0], content);
        // Linux wants all of TCP's header in IPv6's first piece; of IPv4's it may be eight bytes.
        let cut = if to.is_ipv4() { 8 } else { 24 };
        match way {
            Way::Plain => self.frames.ip(&whole(TCP, &tcp)),
            Way::Pieces => self.pieces(TCP, &[(0, true, &tcp[..cut]), (cut, false, &tcp[cut..])]),
            Way::Decoy => {
                let mut decoy = tcp[..cut].to_vec();
                decoy[1] ^= 1;
                self.pieces(TCP, &[(0, true, &decoy), (0, true, &tcp[..cut]), (cut, false, &tcp[cut..])]);
            }
            Way::Atomic => self.pieces(TCP, &[(0, false, &tcp)]),
            Way::Options => self.frames.ip(&whole(DESTINATION_OPTIONS, &behind_options(TCP, &tcp))),
            Way::OptionsInPieces => {
                let all = behind_options(TCP, &tcp);
                self.pieces(DESTINATION_OPTIONS, &[(0, true, &all[..cut + 8]), (cut + 8, false, &all[cut + 8..])]);
            }
            Way::ManyOptions => {
                let all = (0..7).fold((TCP, tcp), |(next, all), _| (DESTINATION_OPTIONS, behind_options(next, &all)));
                self.frames.ip(&whole(all.0, &all.1));
            }
            Way::Tags => {
                let kind = if to.is_ipv4() { packets::IPV4 } else { packets::IPV6 };
                let inner = [&[0, 0][..], &VLAN.to_be_bytes(), &[0, 0], &kind.to_be_bytes(), &whole(TCP, &tcp)];
                self.frames.send(VLAN, VLAN, &inner.concat());
            }
        }
    }

    /// Sends pieces: where each begins, whether there are more, and what is in it.
    fn pieces(&self, next: u8, pieces: &[(usize, bool, &[u8])]) {
        for (offset, more, content) in pieces {
            let packet = match self.to.ip() {
                IpAddr::V4(_) => {
                    let word = u16::try_from(offset / 8).unwrap() | if *more { 0x2000 } else { 0 };
                    packet_from(self.from.ip(), self.to.ip(), next, [self.identification, word], content)
                }
                IpAddr::V6(_) => {
                    let content = in_piece(next, self.identification.into(), *offset, *more, content);
                    packet_from(self.from.ip(), self.to.ip(), FRAGMENT, [0; 2], &content)
                }
            };
            self.frames.ip(&packet);
        }
    }
}

/// Eight bytes of destination options (RFC 8200, 4.6) with nothing but padding.
fn behind_options(next: u8, content: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0], content].concat()
}

/// RFC 8200, 4.5.
fn in_piece(next: u8, identification: u32, offset: usize, more: bool, content: &[u8]) -> Vec<u8> {
    let word = u16::try_from(offset).unwrap() | u16::from(more);
    [&[next, 0][..], &word.to_be_bytes(), &identification.to_be_bytes(), content].concat()
}

#[test]
fn a_handshake_in_any_packing_reaches_the_agent() {
    for strict in [false, true] {
        let mut mesh = Mesh::new();
        mesh.kernel.set_inbound_modes(ID, strict, &[]).unwrap();
        for (i, (to, ways)) in [("10.77.0.2:8080", &V4[..]), ("[fd77::2]:8080", &V6)].into_iter().enumerate() {
            let app = listen_in(&mesh.net.pod, to);
            for (port, way) in (4000..).zip(ways) {
                // Under STRICT nobody hides anything and is taken in.
                if strict && matches!(way, Way::OptionsInPieces | Way::ManyOptions | Way::Tags) {
                    continue;
                }
                let mut client = Client::new(&mesh, to, port);
                client.connect(*way);
                client.say(*way, ACK, b"hello");
                let (mut server, from) = accept(&mesh.listeners.inbound[i]);
                assert_eq!((server.local_addr().unwrap(), from), (at(to), client.from), "{way:?}");
                server.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut text = [0; 5];
                server.read_exact(&mut text).unwrap_or_else(|e| panic!("{to} {way:?}: {e}"));
                assert_eq!(&text, b"hello", "{way:?}");
                assert!(!is_waiting(&app), "{way:?}");
            }
        }
    }
}

/// A connection that passed by the agent while that was gone, until the port became STRICT.
#[test]
fn strict_holds_for_an_applications_own_connection_in_any_packing() {
    let mut mesh = Mesh::of(Net::new(), LOSS_OPEN);
    mesh.lose_the_agent();
    for (to, ways) in [("10.77.0.2:8080", &V4[..]), ("[fd77::2]:8080", &V6)] {
        let app = listen_in(&mesh.net.pod, to);
        for (port, way) in (4000..).zip(ways.iter().copied().chain([Way::Decoy])) {
            mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
            let mut client = Client::new(&mesh, to, port);
            client.connect(Way::Plain);
            let (mut server, _) = accept(&app);
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            if way != Way::Decoy {
                client.say(way, ACK, b"allowed");
                let mut text = [0; 7];
                server.read_exact(&mut text).unwrap_or_else(|e| panic!("{to} {way:?}: {e}"));
                assert_eq!(&text, b"allowed");
                client.numbers[0] += 7;
            }
            let Client { from, numbers, .. } = client;
            mesh.kernel.set_inbound_modes(ID, true, &[]).unwrap();
            let before = mesh.count(Counter::InboundForeign);
            let mut client = Client { from, numbers, ..Client::new(&mesh, to, port) };
            client.identification = 100;
            client.say(way, ACK, b"forbidden");
            server.set_nonblocking(true).unwrap();
            let end = Instant::now() + PATIENCE;
            while mesh.count(Counter::InboundForeign) == before {
                let read = server.read(&mut [0; 9]);
                assert!(read.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "{to} {way:?}: {read:?}");
                assert!(Instant::now() < end, "{to} {way:?}: where is it?");
                std::thread::yield_now();
            }
            assert_eq!(server.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock, "{to} {way:?}");
        }
    }
}
