//! connect4 and connect6: who is redirected, and that the agent learns where they wanted to go.

use std::io::{self, Read};
use std::net::TcpStream;

use mesh_common::abi::Counter;

use super::support::*;

#[test]
fn a_connection_to_anywhere_reaches_the_agent_with_its_destination() {
    let mesh = Mesh::new();
    for (to, v4) in
        [("192.0.2.80:80", true), ("10.77.0.1:443", true), ("[2001:db8::80]:8080", false), ("[fd77::1]:15008", false)]
    {
        let client = mesh.connect(to).unwrap();
        let (server, origin) = mesh.accept_outbound(v4);
        assert_eq!(origin, Some(at(to)));
        assert_joined(&client, &server);
        assert_eq!(mesh.kernel.in_flight().unwrap(), (0, 0), "the entry was handed over");
    }
    assert_eq!((mesh.count(Counter::OutboundCaptured), mesh.count(Counter::Abandoned)), (4, 0));
}

#[test]
fn an_ipv4_mapped_destination_reaches_the_ipv4_listener() {
    let mesh = Mesh::new();
    let client = mesh.connect("[::ffff:192.0.2.80]:80").unwrap();
    let (server, origin) = mesh.accept_outbound(true);
    assert_eq!(origin, Some(at("192.0.2.80:80")));
    assert_joined(&client, &server);
}

#[test]
fn a_nonblocking_connect_is_redirected_too() {
    let mesh = Mesh::new();
    for (to, v4) in [("192.0.2.80:80", true), ("[2001:db8::80]:80", false)] {
        let socket = socket_in(&mesh.net.pod, to);
        socket.set_nonblocking(true).unwrap();
        if let Err(e) = socket.connect(&at(to).into()) {
            assert_eq!(e.raw_os_error(), Some(libc::EINPROGRESS));
        }
        let (server, origin) = mesh.accept_outbound(v4);
        assert_eq!(origin, Some(at(to)));
        socket.set_nonblocking(false).unwrap();
        assert_joined(&TcpStream::from(socket), &server);
    }
}

#[test]
fn a_socket_bound_to_an_address_or_a_device_is_redirected_too() {
    let mesh = Mesh::new();
    for (to, from, v4) in [("192.0.2.80:80", POD4, true), ("[2001:db8::80]:80", POD6, false)] {
        let bound = socket_in(&mesh.net.pod, to);
        bound.bind(&std::net::SocketAddr::new(ip_of(from), 0).into()).unwrap();
        let device = socket_in(&mesh.net.pod, to);
        device.bind_device(Some(b"eth0")).unwrap();
        for socket in [bound, device] {
            socket.connect(&at(to).into()).unwrap();
            let client = TcpStream::from(socket);
            let (server, origin) = mesh.accept_outbound(v4);
            assert_eq!(origin, Some(at(to)));
            assert_eq!((client.local_addr().unwrap().ip(), client.peer_addr().unwrap()), (ip_of(from), at(to)));
            assert_joined(&client, &server);
        }
    }
}

#[test]
fn the_host_itself_and_its_own_addresses_are_left_alone() {
    let mesh = Mesh::new();
    let pod = &mesh.net.pod;
    for on in ["127.0.0.1:8080", "[::1]:8080", "10.77.0.2:8080", "[fd77::2]:8080"] {
        let app = listen_in(pod, on);
        let client = mesh.connect(on).unwrap();
        let (server, _) = accept(&app);
        assert_eq!(client.peer_addr().unwrap(), at(on));
        assert_joined(&client, &server);
    }
    assert_eq!(mesh.count(Counter::OutboundExempt), 4);
    assert_eq!(mesh.count(Counter::OutboundCaptured), 0);
}

#[test]
fn link_local_multicast_and_nowhere_are_left_alone() {
    let mesh = Mesh::new();
    let tries = ["169.254.9.9:80", "[fe80::9]:80", "224.0.0.5:80", "255.255.255.255:80", "0.0.0.0:9", "[::]:9"];
    for to in tries {
        let socket = socket_in(&mesh.net.pod, to);
        socket.set_nonblocking(true).unwrap();
        // Whatever the kernel says to it.
        let _ = socket.connect(&at(to).into());
    }
    assert_eq!(mesh.count(Counter::OutboundExempt), tries.len() as u64);
    for listener in &mesh.listeners.outbound {
        assert!(!is_waiting(listener));
    }
}

#[test]
fn a_listener_dialled_by_hand_has_no_destination() {
    let mesh = Mesh::new();
    for (i, ip) in ["127.0.0.1", "::1"].into_iter().enumerate() {
        let port = mesh.listeners.outbound[i].local_addr().unwrap().port();
        let _client = mesh.connect(&std::net::SocketAddr::new(ip_of(ip), port).to_string()).unwrap();
        assert_eq!(mesh.accept_outbound(i == 0).1, None);
    }
}

#[test]
fn other_namespaces_are_left_alone() {
    let mesh = Mesh::new();
    let other = Net::new();
    for on in ["10.77.0.1:8080", "[fd77::1]:8080"] {
        let app = listen_in(&other.wire, on);
        let client = connect_in(&other.pod, on).unwrap();
        let (server, _) = accept(&app);
        assert_eq!(client.peer_addr().unwrap(), at(on));
        assert_joined(&client, &server);
    }
    assert_eq!(mesh.count(Counter::OutboundCaptured) + mesh.count(Counter::OutboundExempt), 0);
}

#[test]
fn the_agents_sockets_go_where_they_say() {
    let mesh = Mesh::new();
    for (on, from) in [("10.77.0.1:8080", POD4), ("[fd77::1]:8080", POD6)] {
        let app = listen_in(&mesh.net.wire, on);
        let socket = mesh.sockets.socket(&mesh.net.pod, at(on)).unwrap();
        assert_eq!(socket.connect(&at(on).into()).unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
        let (server, client) = accept(&app);
        assert_eq!(client.ip(), ip_of(from), "the wire shows the pod's address");
        socket.set_nonblocking(false).unwrap();
        assert_joined(&TcpStream::from(socket), &server);
    }
}

#[test]
fn a_family_without_an_address_is_unreachable_and_told() {
    let net = Net::new();
    let (mut kernel, _) = kernel();
    let _listeners = kernel.enrol_namespace(7, &net.pod, &[ip_of(POD4)], 0).unwrap();
    let error = connect_in(&net.pod, "[2001:db8::80]:80").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
    assert_eq!(kernel.counter(Counter::OutboundUnreachable).unwrap(), 1);
    let event = kernel.take_events().unwrap().next().unwrap();
    assert_eq!((event.workload, event.reason), (7, Counter::OutboundUnreachable as u32));
    assert_eq!(event.tuple.netns, net.pod.cookie());
    assert_eq!(event.tuple.server, at("[2001:db8::80]:80").into());
    assert!(connect_in(&net.pod, "192.0.2.80:80").is_ok(), "the other family works");
}

#[test]
fn datagrams_are_left_alone() -> io::Result<()> {
    let mesh = Mesh::new();
    let app = mesh.net.wire.run(|| std::net::UdpSocket::bind("10.77.0.1:5353"))??;
    let client = mesh.net.pod.run(|| std::net::UdpSocket::bind("0.0.0.0:0"))??;
    client.connect("10.77.0.1:5353")?;
    assert_eq!(client.peer_addr()?, at("10.77.0.1:5353"));
    client.send(b"hello")?;
    app.set_read_timeout(Some(PATIENCE))?;
    let mut got = [0; 16];
    let (n, from) = app.recv_from(&mut got)?;
    assert_eq!((&got[..n], from.ip()), (&b"hello"[..], ip_of(POD4)));
    Ok(())
}

#[test]
fn tcp_fast_open_is_redirected_too() {
    let mesh = Mesh::new();
    for (to, v4) in [("192.0.2.80:80", true), ("[2001:db8::80]:80", false)] {
        let socket = socket_in(&mesh.net.pod, to);
        // sendto() that connects: connect() is never called.
        assert_eq!(socket.send_to_with_flags(b"hello", &at(to).into(), libc::MSG_FASTOPEN).unwrap(), 5);
        let (mut server, origin) = mesh.accept_outbound(v4);
        assert_eq!(origin, Some(at(to)));
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut got = [0; 5];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }
}

#[test]
fn a_multipath_socket_is_redirected_too() {
    let mesh = Mesh::new();
    let socket = super::mptcp::multipath(&mesh.net.pod);
    socket.connect(&at("192.0.2.80:80").into()).unwrap();
    let (server, origin) = mesh.accept_outbound(true);
    assert_eq!(origin, Some(at("192.0.2.80:80")));
    assert_joined(&TcpStream::from(socket), &server);
}
