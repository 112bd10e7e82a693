//! tc ingress: what comes from the wire reaches the agent with the address that the client dialled.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};

use mesh_common::abi::Counter;
use socket2::Socket;

use super::support::*;

pub fn assert_inbound(mesh: &Mesh, listener: &TcpListener, client: &TcpStream, to: &str) -> TcpStream {
    let (server, from) = accept(listener);
    assert_eq!(server.local_addr().unwrap(), at(to), "the address that was dialled");
    assert_eq!(from, client.local_addr().unwrap(), "the client's address");
    assert_joined(client, &server);
    let came = mesh.count(Counter::InboundAssigned) + mesh.count(Counter::InboundSteered);
    assert!(came > 0);
    server
}

#[test]
fn every_port_reaches_the_inbound_listener_and_15008_the_tunnels() {
    let mesh = Mesh::new();
    for (i, ip) in [POD4, POD6].into_iter().enumerate() {
        for port in [80, 8080, 15001, 15006] {
            let to = SocketAddr::new(ip_of(ip), port).to_string();
            let client = connect_in(&mesh.net.wire, &to).unwrap();
            assert_inbound(&mesh, &mesh.listeners.inbound[i], &client, &to);
        }
        let to = SocketAddr::new(ip_of(ip), 15008).to_string();
        let client = connect_in(&mesh.net.wire, &to).unwrap();
        assert_inbound(&mesh, &mesh.listeners.tunnel[i], &client, &to);
    }
}

#[test]
fn an_application_on_the_port_does_not_get_it_but_sees_the_client_behind_the_agent() {
    let mesh = Mesh::new();
    for (i, (ip, on)) in [(POD4, "0.0.0.0:8080"), (POD6, "[::]:8081")].into_iter().enumerate() {
        let app = listen_in(&mesh.net.pod, on);
        let to = SocketAddr::new(ip_of(ip), at(on).port());
        let client = connect_in(&mesh.net.wire, &to.to_string()).unwrap();
        let _agent = assert_inbound(&mesh, &mesh.listeners.inbound[i], &client, &to.to_string());
        assert!(!is_waiting(&app));

        let dial = mesh.sockets.socket_to_app(&mesh.net.pod, to, client.local_addr().unwrap()).unwrap();
        dial.set_nonblocking(false).unwrap();
        dial.connect(&to.into()).unwrap();
        let (server, from) = accept(&app);
        assert_eq!(from, client.local_addr().unwrap());
        assert_joined(&TcpStream::from(dial), &server);
    }
}

/// A client that knows the agent's ports: its connection to one must not draw later packets of the same port to itself.
#[test]
fn a_connection_to_the_agents_own_port_draws_nothing_to_itself() {
    let mesh = Mesh::new();
    let port = mesh.listeners.inbound[0].local_addr().unwrap().port();
    let own = format!("10.77.0.2:{port}");
    let first = connect_from(&mesh, "10.77.0.1:40000", &own);
    let first_server = assert_inbound(&mesh, &mesh.listeners.inbound[0], &first, &own);
    let second = connect_from(&mesh, "10.77.0.1:40000", "10.77.0.2:8080");
    assert_inbound(&mesh, &mesh.listeners.inbound[0], &second, "10.77.0.2:8080");
    assert_joined(&first, &first_server);
}

/// More connections than the agent has accepted: SYN cookies come into play, whose last ACK belongs to no socket.
#[test]
fn syn_cookies_end_at_the_agent() {
    let mesh = Mesh::new();
    mesh.net.pod.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")).unwrap().unwrap();
    let app = listen_in(&mesh.net.pod, "10.77.0.2:8080");
    for _ in 0..5 {
        let client = connect_in(&mesh.net.wire, "10.77.0.2:8080").unwrap();
        assert_inbound(&mesh, &mesh.listeners.inbound[0], &client, "10.77.0.2:8080");
        assert!(!is_waiting(&app));
    }
}

#[test]
fn other_protocols_pass() {
    let mesh = Mesh::new();
    let app = mesh.net.pod.run(|| std::net::UdpSocket::bind("10.77.0.2:5353")).unwrap().unwrap();
    let client = mesh.net.wire.run(|| std::net::UdpSocket::bind("10.77.0.1:0")).unwrap().unwrap();
    // Larger than the wire's 1,500 bytes, so that it comes in fragments.
    client.send_to(&[7; 4000], "10.77.0.2:5353").unwrap();
    app.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(app.recv(&mut [0; 5000]).unwrap(), 4000);
}

#[test]
fn a_large_transfer_goes_through() {
    let mesh = Mesh::new();
    let client = connect_in(&mesh.net.wire, "10.77.0.2:8080").unwrap();
    let (mut server, _) = accept(&mesh.listeners.inbound[0]);
    let sent = 32 << 20;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let client = client;
            std::io::copy(&mut std::io::repeat(7).take(sent), &mut &client).unwrap();
        });
        let mut sink = std::io::sink();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(std::io::copy(&mut server, &mut sink).unwrap(), sent);
    });
}

pub fn connect_from(mesh: &Mesh, from: &str, to: &str) -> TcpStream {
    let socket: Socket = socket_in(&mesh.net.wire, from);
    socket.set_reuse_address(true).unwrap();
    socket.bind(&at(from).into()).unwrap();
    socket.connect_timeout(&at(to).into(), PATIENCE).unwrap();
    socket.into()
}

/// Without an application the agent's handshake would be the answer.
#[test]
fn a_tcp_probe_of_the_node_succeeds_only_where_the_application_listens() {
    let mut mesh = Mesh::new();
    mesh.kernel.set_node_addresses(&[ip_of(WIRE4), ip_of(WIRE6)]).unwrap();
    mesh.kernel.set_probed(ID, &[8080]).unwrap();
    let wait = std::time::Duration::from_millis(100);
    let connects = |from: &str, to: SocketAddr| {
        let socket = socket_in(&mesh.net.wire, from);
        socket.bind(&at(from).into()).unwrap();
        socket.connect_timeout(&to.into(), wait).map(|()| TcpStream::from(socket)).map_err(|e| e.kind())
    };
    ip(&mesh.net.wire, "addr add 10.77.0.9/24 dev eth0");
    for (i, (from, pod)) in [("10.77.0.1:0", POD4), ("[fd77::1]:0", POD6)].into_iter().enumerate() {
        let to = SocketAddr::new(ip_of(pod), 8080);
        let before = mesh.count(Counter::ProbeUnanswered);
        assert_eq!(connects(from, to).unwrap_err(), std::io::ErrorKind::TimedOut);
        assert!(mesh.count(Counter::ProbeUnanswered) > before);
        // Other ports, and others, are the agent's to answer.
        let elsewhere = connects(from, SocketAddr::new(ip_of(pod), 8081)).unwrap();
        assert_inbound(&mesh, &mesh.listeners.inbound[i], &elsewhere, &SocketAddr::new(ip_of(pod), 8081).to_string());
        for on in [to.to_string(), "[::]:8080".into()] {
            let app = listen_in(&mesh.net.pod, &on);
            let client = connects(from, to).unwrap();
            let _agent = assert_inbound(&mesh, &mesh.listeners.inbound[i], &client, &to.to_string());
            assert!(!is_waiting(&app), "the agent's, not the application's");
            // A program that another test is starting may hold it for a moment longer.
            socket2::SockRef::from(&app).shutdown(std::net::Shutdown::Both).unwrap();
        }
    }
    let other = connects("10.77.0.9:0", at("10.77.0.2:8080")).unwrap();
    assert_inbound(&mesh, &mesh.listeners.inbound[0], &other, "10.77.0.2:8080");
    mesh.kernel.set_probed(ID, &[]).unwrap();
    let node = connect_in(&mesh.net.wire, "10.77.0.2:8080").unwrap();
    assert_inbound(&mesh, &mesh.listeners.inbound[0], &node, "10.77.0.2:8080");
}
