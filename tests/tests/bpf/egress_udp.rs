//! tc egress and UDP: `udp: dns-only` and `deny` hold for what no socket hook sees, and so does the way of DNS questions
//! through the agent.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use mesh_common::abi::{self, Counter};
use socket2::{Domain, Protocol, Socket, Type};

use super::packets::{self, Frames, Wire, packet, udp};
use super::support::*;

const SETTINGS: [u32; 3] = [0, abi::UDP_DNS_ONLY, abi::UDP_DENY];
const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;
const UDPLITE: u8 = 136;

fn mesh(flags: u32) -> Mesh {
    let mut mesh = Mesh::of(Net::new(), flags);
    mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
    mesh
}

fn dropped(mesh: &Mesh) -> [u64; 2] {
    [Counter::UdpDenied, Counter::EgressUnexplained].map(|counter| mesh.count(counter))
}

/// IPv6 extension headers before something: destination options without an option, a fragment's.
fn behind_options(next: u8, content: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0], content].concat()
}

fn in_piece(next: u8, offset: u16, more: bool, content: &[u8]) -> Vec<u8> {
    let word = (offset | u16::from(more)).to_be_bytes();
    [&[next, 0, word[0], word[1], 0, 0, 0, 1], content].concat()
}

#[test]
fn packets_of_ones_own_making_obey_the_setting() {
    for flags in SETTINGS {
        let mesh = mesh(flags);
        let wire = Wire::new(&mesh.net);
        let frames = Frames::new(&mesh.net);
        let (v4, v6) = (ip_of(WIRE4), ip_of(WIRE6));
        let other = |data: &str| udp(4000, 9, data.as_bytes());
        let question = |data: &str| udp(4000, 53, data.as_bytes());
        for packet in [
            // To another port: as the setting says.
            packet(v4, packets::UDP, 0, &other("free 1")),
            packet(v6, packets::UDP, 0, &other("free 2")),
            packet(v4, UDPLITE, 0, &other("free 3")),
            packet(v4, packets::UDP, 0x2000, &other("free 4 first")),
            packet(v4, packets::UDP, 2, b"free 5 later"),
            packet(v6, FRAGMENT, 0, &in_piece(packets::UDP, 0, true, &other("free 6 first"))),
            packet(v6, FRAGMENT, 0, &in_piece(packets::UDP, 16, false, b"free 7 later")),
            packet(v6, DESTINATION_OPTIONS, 0, &behind_options(packets::UDP, &other("free 8"))),
            packet(ip_of("255.255.255.255"), packets::UDP, 0, &other("free 9 to all")),
            // Questions past the agent: never.
            packet(v4, packets::UDP, 0, &question("dns 1")),
            packet(v6, packets::UDP, 0, &question("dns 2")),
            packet(v4, UDPLITE, 0, &question("dns 3")),
            packet(v4, packets::UDP, 0x2000, &question("dns 4 first")),
            packet(v6, FRAGMENT, 0, &in_piece(packets::UDP, 0, true, &question("dns 5 first"))),
            packet(v6, DESTINATION_OPTIONS, 0, &behind_options(packets::UDP, &question("dns 6"))),
            packet(
                v6,
                DESTINATION_OPTIONS,
                0,
                &behind_options(FRAGMENT, &in_piece(packets::UDP, 0, false, &question("dns 7"))),
            ),
            // To the host itself by the wire, and what hides something: never.
            packet(ip_of("127.53.0.1"), packets::UDP, 0, &other("odd 1")),
            packet(v4, packets::UDP, 0, b"odd"),
            packet(v6, FRAGMENT, 0, &in_piece(DESTINATION_OPTIONS, 0, true, b"odd 3")),
        ] {
            frames.ip(&packet);
        }
        let free = [
            "free 1",
            "free 2",
            "free 3",
            "free 4 first",
            "free 5 later",
            "free 6 first",
            "free 7 later",
            "free 8",
            "free 9 to all",
        ];
        let texts: Vec<&str> = free.into_iter().chain(["dns", "odd"]).collect();
        let expected = if flags == 0 { &free[..] } else { &[] };
        assert_eq!(wire.which(&mesh, &texts), expected, "flags {flags}");
        // Nine that are free without a setting, seven questions, one to loopback, two that hide something.
        let counted = match flags {
            0 => [0, 10],
            abi::UDP_DNS_ONLY => [10, 9],
            _ => [17, 2],
        };
        assert_eq!(dropped(&mesh), counted, "flags {flags}");
    }
}

#[test]
fn raw_sockets_obey_the_setting() {
    for flags in SETTINGS {
        let mesh = mesh(flags);
        let wire = Wire::new(&mesh.net);
        let to = [ip_of(WIRE4), ip_of(WIRE6)];
        for to in to {
            let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            let open = || Socket::new(domain, Type::RAW, Some(Protocol::UDP)).unwrap();
            let socket = mesh.net.pod.run(open).unwrap();
            // The mark is nobody's pass.
            socket.set_mark(0x539).unwrap();
            let to = std::net::SocketAddr::new(to, 0);
            // Connected or not: raw sockets have ports only in what they write.
            let _ = socket.send_to(&udp(4000, 53, b"dns"), &to.into());
            let _ = socket.send_to(&udp(4000, 9, if to.is_ipv4() { b"raw 4" } else { b"raw 6" }), &to.into());
            socket.connect(&to.into()).unwrap();
            let _ = socket.send(&udp(4000, 53, b"dns"));
        }
        let expected: &[&str] = if flags == 0 { &["raw 4", "raw 6"] } else { &[] };
        assert_eq!(wire.which(&mesh, &["raw 4", "raw 6", "dns"]), expected, "flags {flags}");
    }
}

#[test]
fn sockets_from_before_the_enrolment_obey_the_setting() {
    for flags in SETTINGS {
        let net = Net::new();
        let old = |to: &str, from: &str| {
            let socket = net.pod.run(|| UdpSocket::bind(at(from))).unwrap().unwrap();
            socket.connect(at(to)).unwrap();
            socket
        };
        let sockets =
            [old("10.77.0.1:9", "0.0.0.0:0"), old("[fd77::1]:9", "[::]:0"), old("[::ffff:10.77.0.1]:9", "[::]:0")];
        let asking = [old("10.77.0.1:53", "0.0.0.0:0"), old("[fd77::1]:53", "[::]:0")];
        let mut mesh = Mesh::of(net, flags);
        mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
        let wire = Wire::new(&mesh.net);
        let texts = ["old 1", "old 2", "old 3", "dns"];
        for (socket, text) in sockets.iter().zip(texts) {
            // The kernel may tell of the drop.
            let _ = socket.send(text.as_bytes());
        }
        for socket in &asking {
            let _ = socket.send(b"dns");
        }
        let expected = if flags == 0 { &texts[..3] } else { &[] };
        assert_eq!(wire.which(&mesh, &texts), expected, "flags {flags}");
    }
}

/// A socket that chooses its interface takes the agent's place on loopback for an address behind that interface.
#[test]
fn a_question_for_loopback_never_leaves() {
    let mesh = mesh(0);
    let wire = Wire::new(&mesh.net);
    let (socket, index) = mesh
        .net
        .pod
        .run(|| (UdpSocket::bind("0.0.0.0:0").unwrap(), nix::net::if_::if_nametoindex("eth0").unwrap()))
        .unwrap();
    let index = index.to_be();
    // SAFETY: the value is a live variable and its size is given.
    let done = unsafe {
        let (value, size) = ((&raw const index).cast(), size_of::<u32>() as u32);
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_UNICAST_IF, value, size)
    };
    assert_eq!(done, 0);
    // The kernel may refuse it by itself, as it knows no such way.
    let _ = socket.send_to(b"by the wire", at("192.0.2.53:53"));
    assert_eq!(wire.which(&mesh, &["by the wire"]), [""; 0]);
    assert_eq!(mesh.count(Counter::DnsCaptured), 1);
}

/// What the agent sends, in pieces as well; and of an application without a setting.
#[test]
fn large_datagrams_pass_whose_sender_may() {
    for flags in SETTINGS {
        let mesh = mesh(flags);
        let large = vec![b'x'; 9000];
        for on in ["10.77.0.1:53", "[fd77::1]:53", "10.77.0.1:9", "[fd77::1]:9"] {
            let server = mesh.net.wire.run(|| UdpSocket::bind(at(on))).unwrap().unwrap();
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            let agents = mesh.sockets.datagrams(&mesh.net.pod, at(on)).unwrap();
            agents.send_to(&large, &at(on).into()).unwrap();
            let mut buffer = vec![0; 10_000];
            assert_eq!(server.recv(&mut buffer).unwrap(), large.len(), "{on}");
            if flags == 0 && at(on).port() == 9 {
                let app = mesh.net.pod.run(|| UdpSocket::bind(if at(on).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }));
                app.unwrap().unwrap().send_to(&large, at(on)).unwrap();
                assert_eq!(server.recv(&mut buffer).unwrap(), large.len(), "{on}");
            }
        }
        assert_eq!(dropped(&mesh), [0, 0], "flags {flags}");
    }
}
