//! Ways around capture that belong to no single hook: sockets that are older than the enrolment or come from elsewhere,
//! other system calls, further addresses, packets in pieces.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Instant;

use mesh_common::abi::Counter;
use socket2::{Domain, Protocol, Socket, Type};

use super::packets::{self, ACK, SYN, SYN_ACK, segment_at};
use super::support::*;
use super::uring::{self, Ask};

#[test]
fn a_socket_from_before_the_enrolment_is_caught_when_it_connects() {
    let net = Net::new();
    let tries = ["192.0.2.80:80", "[2001:db8::80]:80", "[::ffff:192.0.2.80]:80"];
    let sockets = tries.map(|to| (to, socket_in(&net.pod, to)));
    let mesh = Mesh::of(net, 0);
    for (to, socket) in sockets {
        socket.connect(&at(to).into()).unwrap();
        let (server, origin) = mesh.accept_outbound(!to.starts_with("[2001"));
        assert_eq!(origin.unwrap(), SocketAddr::new(at(to).ip().to_canonical(), 80));
        assert_joined(&TcpStream::from(socket), &server);
    }
}

/// A socket belongs to the namespace in which it was opened, whoever uses it.
#[test]
fn a_socket_that_was_passed_on_is_caught_as_where_it_was_opened() {
    let mesh = Mesh::new();
    let there = listen_in(&mesh.net.wire, "10.77.0.1:8080");
    let (pods, wires) = (socket_in(&mesh.net.pod, "10.77.0.1:0"), socket_in(&mesh.net.wire, "10.77.0.1:0"));
    mesh.net.wire.run(|| pods.connect(&at("10.77.0.1:8080").into())).unwrap().unwrap();
    assert_eq!(mesh.accept_outbound(true).1, Some(at("10.77.0.1:8080")));
    assert!(!is_waiting(&there), "a pod's socket in other hands");
    // Not the pod's traffic, and it does not leave by the pod's interfaces.
    mesh.net.pod.run(|| wires.connect(&at("10.77.0.1:8080").into())).unwrap().unwrap();
    assert_joined(&TcpStream::from(wires), &accept(&there).0);
    assert_eq!(mesh.count(Counter::OutboundCaptured), 1);
}

#[test]
fn io_uring_connects_to_the_agent() {
    let mesh = Mesh::new();
    for to in ["192.0.2.80:80", "[2001:db8::80]:80"] {
        let (to, socket) = (at(to), socket_in(&mesh.net.pod, to));
        let address = socket2::SockAddr::from(to);
        let (pointer, offset) = (address.as_ptr() as u64, address.len().into());
        let ask = Ask { operation: uring::CONNECT, fd: socket.as_raw_fd(), address: pointer, length: 0, offset };
        // SAFETY: the address lives until the call has returned.
        match unsafe { uring::ask(&ask) } {
            Some(done) => done.unwrap(),
            None => socket.connect(&address).unwrap(),
        }
        let (server, origin) = mesh.accept_outbound(to.is_ipv4());
        assert_eq!(origin, Some(to));
        assert_joined(&TcpStream::from(socket), &server);
    }
}

/// Those that the pod had at its enrolment, one that it got later, and the link's own.
#[test]
fn every_address_of_the_pod_leads_to_the_agent() {
    let net = Net::new();
    ip(&net.pod, "addr add 10.77.0.22/24 dev eth0");
    ip(&net.pod, "addr add fd77::22/64 dev eth0 nodad");
    ip(&net.pod, "addr add fe80::77/64 dev eth0 nodad");
    let mut mesh = Mesh::of_any(net, 0);
    mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
    ip(&mesh.net.pod, "addr add 10.77.0.33/24 dev eth0");
    let apps = ["0.0.0.0:8080", "[::]:8081"].map(|on| listen_in(&mesh.net.pod, on));
    let scope = mesh.net.wire.run(|| nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
    for to in ["10.77.0.22:8080", "10.77.0.33:8080", "10.77.0.33:8081", "[fd77::22]:8081", "[fe80::77]:8081"] {
        let mut to = at(to);
        if let SocketAddr::V6(to) = &mut to {
            to.set_scope_id(if to.ip().is_unicast_link_local() { scope } else { 0 });
        }
        let client = socket_in(&mesh.net.wire, &to.to_string());
        client.connect_timeout(&to.into(), PATIENCE).unwrap();
        let (server, _) = accept(&mesh.listeners.inbound[usize::from(to.is_ipv6())]);
        assert_eq!(server.local_addr().unwrap().ip(), to.ip());
        assert_joined(&TcpStream::from(client), &server);
    }
    assert!(apps.iter().all(|app| !is_waiting(app)));
    // What leaves by them is caught as well; from the address that nobody knew of at the enrolment it comes to the
    // wrong door, with a destination that is not the pod's, and the agent refuses it.
    for (from, door) in [("10.77.0.22:0", &mesh.listeners.outbound[0]), ("10.77.0.33:0", &mesh.listeners.inbound[0])] {
        let socket = socket_in(&mesh.net.pod, from);
        socket.bind(&at(from).into()).unwrap();
        socket.connect(&at("192.0.2.80:80").into()).unwrap();
        let (server, client) = accept(door);
        assert_eq!(client.ip(), at(from).ip());
        assert!(server.local_addr().unwrap().ip().is_loopback());
    }
    assert_eq!(mesh.count(Counter::OutboundCaptured), 2);
}

/// A handshake of which each packet comes in two pieces, of which the first does not even hold the flags.
#[test]
fn tcp_in_fragments_reaches_the_agent() {
    let mesh = Mesh::new();
    let app = listen_in(&mesh.net.pod, "10.77.0.2:8080");
    // Nobody's address, so that the wire's kernel does not interfere.
    let (from, to) = (at("10.77.0.77:4000"), at("10.77.0.2:8080"));
    let mac: Vec<String> = packets::mac(&mesh.net.wire).iter().map(|byte| format!("{byte:02x}")).collect();
    ip(&mesh.net.pod, &format!("neigh replace 10.77.0.77 lladdr {} dev eth0", mac.join(":")));
    let arrives = packets::Wire::new(&mesh.net);
    let raw = mesh.net.wire.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))));
    let raw = raw.unwrap().unwrap();
    let mut identification = 0_u16;
    let mut send = |numbers: [u32; 2], flags: u8, data: &[u8]| {
        let tcp = segment_at(from, to, numbers, flags, data);
        identification += 1;
        // More fragments; then the rest, from the eighth byte on.
        for (word, piece) in [(0x2000_u16, &tcp[..8]), (1, &tcp[8..])] {
            let total = u16::try_from(20 + piece.len()).unwrap().to_be_bytes();
            let (id, word) = (identification.to_be_bytes(), word.to_be_bytes());
            // The kernel fills the checksum in.
            let mut ip = vec![0x45, 0, total[0], total[1], id[0], id[1], word[0], word[1], 64, packets::TCP, 0, 0];
            ip.extend([10, 77, 0, 77, 10, 77, 0, 2]);
            ip.extend(piece);
            raw.send_to(&ip, &SocketAddr::new(to.ip(), 0).into()).unwrap();
        }
    };
    send([1, 0], SYN, b"");
    let is_answer = |packet: &Vec<u8>| {
        packet.len() >= 40
            && packet[9] == packets::TCP
            && packet[22..24] == 4000_u16.to_be_bytes()
            && packet[33] == SYN_ACK
    };
    let end = Instant::now() + PATIENCE;
    let answer = loop {
        if let Some(found) = arrives.seen(&mesh).into_iter().find(is_answer) {
            break found;
        }
        assert!(Instant::now() < end, "nobody answers");
    };
    let number = u32::from_be_bytes(answer[24..28].try_into().unwrap()).wrapping_add(1);
    send([2, number], ACK, b"");
    send([2, number], ACK, b"in pieces");
    let (mut server, client) = accept(&mesh.listeners.inbound[0]);
    assert_eq!((server.local_addr().unwrap(), client), (to, from));
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = [0; 9];
    std::io::Read::read_exact(&mut server, &mut text).unwrap();
    assert_eq!(&text, b"in pieces");
    assert!(!is_waiting(&app));
}
