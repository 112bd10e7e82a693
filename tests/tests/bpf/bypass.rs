//! Ways around capture that belong to no single hook: sockets that are older than the enrolment or come from elsewhere,
//! other system calls, further addresses.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use mesh_common::abi::Counter;
use socket2::Socket;

use super::packets::{self, Frames};
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

/// CAP_NET_RAW is enough for a mark; none means anything.
#[test]
fn a_mark_changes_nothing() {
    let mesh = Mesh::new();
    for (to, v4) in [("192.0.2.80:80", true), ("[2001:db8::80]:80", false)] {
        for mark in [1, 0x539, u32::MAX] {
            let socket = socket_in(&mesh.net.pod, to);
            socket.set_mark(mark).unwrap();
            socket.connect(&at(to).into()).unwrap();
            let (server, origin) = mesh.accept_outbound(v4);
            assert_eq!(origin, Some(at(to)));
            assert_joined(&TcpStream::from(socket), &server);
        }
    }
}

/// What the first connection of a socket left says nothing about its second.
#[test]
fn a_socket_that_is_used_again_is_what_it_is_now() {
    let mesh = Mesh::new();
    let app = listen_in(&mesh.net.pod, "10.77.0.2:8080");
    let socket = socket_in(&mesh.net.pod, "192.0.2.80:80");
    socket.connect(&at("192.0.2.80:80").into()).unwrap();
    assert_eq!(mesh.accept_outbound(true).1, Some(at("192.0.2.80:80")));
    disconnect(&socket);
    socket.connect(&at("10.77.0.2:8080").into()).unwrap();
    let client = TcpStream::from(socket);
    assert_joined(&client, &accept(&app).0);
    assert_eq!(client.peer_addr().unwrap(), at("10.77.0.2:8080"));
    let socket = Socket::from(client);
    disconnect(&socket);
    socket.connect(&at("192.0.2.81:81").into()).unwrap();
    let (server, origin) = mesh.accept_outbound(true);
    assert_eq!(origin, Some(at("192.0.2.81:81")));
    assert_joined(&TcpStream::from(socket), &server);
}

/// Handshakes that nobody ends fill the listener's queue; from then on the kernel answers with cookies and keeps nothing.
#[test]
fn a_flood_of_handshakes_lets_nobody_by() {
    let mut mesh = Mesh::new();
    mesh.kernel.set_inbound_modes(ID, true, &[]).unwrap();
    // Linux takes a second listen() as a new backlog.
    socket2::SockRef::from(&mesh.listeners.inbound[0]).listen(1).unwrap();
    let app = listen_in(&mesh.net.pod, "10.77.0.2:8080");
    let frames = Frames::to_pod(&mesh.net);
    let to = at("10.77.0.2:8080");
    for i in 0..500_u16 {
        let from = SocketAddr::new(std::net::Ipv4Addr::new(10, 77, 1 + (i >> 8) as u8, i as u8).into(), 1000 + i);
        let syn = packets::segment(from, to, packets::SYN, b"");
        frames.ip(&packets::packet_from(from.ip(), to.ip(), packets::TCP, [i, 0], &syn));
    }
    let client = connect_in(&mesh.net.wire, "10.77.0.2:8080").unwrap();
    let (server, from) = accept(&mesh.listeners.inbound[0]);
    assert_eq!((server.local_addr().unwrap(), from), (to, client.local_addr().unwrap()));
    assert_joined(&client, &server);
    assert!(!is_waiting(&app) && !is_waiting(&mesh.listeners.inbound[0]));
    let counted = mesh.net.pod.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat")).unwrap().unwrap();
    let mut lines = counted.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let names = lines.next().unwrap().split(' ');
    let values: Vec<(&str, &str)> = names.zip(lines.next().unwrap().split(' ')).collect();
    for cookies in ["SyncookiesSent", "SyncookiesRecv"] {
        assert!(values.iter().any(|(name, value)| *name == cookies && *value != "0"), "{cookies}");
    }
}
