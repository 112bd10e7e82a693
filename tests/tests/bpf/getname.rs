//! getpeername and getsockname: an application sees what it would see without the mesh; the agent sees what is.

use std::net::TcpStream;

use super::support::*;

#[test]
fn the_application_sees_its_destination_and_its_own_address() {
    let mesh = Mesh::new();
    for (to, own, v4) in [
        ("192.0.2.80:80", POD4, true),
        ("[2001:db8::80]:80", POD6, false),
        ("[::ffff:192.0.2.80]:80", "::ffff:10.77.0.2", true),
    ] {
        let client = mesh.connect(to).unwrap();
        let (server, _) = mesh.accept_outbound(v4);
        assert_eq!(client.peer_addr().unwrap(), at(to));
        let seen = client.local_addr().unwrap();
        assert_eq!(seen.ip(), ip_of(own));
        assert_eq!(seen.port(), server.peer_addr().unwrap().port(), "the port is the connection's own");
    }
}

#[test]
fn the_agent_sees_loopback() {
    let mesh = Mesh::new();
    let _client = mesh.connect("192.0.2.80:80").unwrap();
    let (server, _) = mesh.accept_outbound(true);
    let (own, peer) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
    assert!(own.ip().is_loopback() && peer.ip().is_loopback(), "{own} {peer}");
    assert_eq!(own.port(), mesh.listeners.outbound[0].local_addr().unwrap().port());
}

#[test]
fn destinations_are_spread_over_loopback_addresses() {
    let mesh = Mesh::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..16 {
        let _client = mesh.connect("192.0.2.80:80").unwrap();
        seen.insert(mesh.accept_outbound(true).0.local_addr().unwrap().ip());
    }
    assert!(seen.len() > 12, "16 connections met only {} addresses", seen.len());
}

#[test]
fn a_socket_that_is_used_again_tells_its_new_peer() {
    let mut mesh = Mesh::new();
    mesh.lose_the_agent();
    let socket = socket_in(&mesh.net.pod, "192.0.2.80:80");
    assert_eq!(
        socket.connect(&at("192.0.2.80:80").into()).unwrap_err().raw_os_error(),
        Some(libc::ECONNREFUSED),
        "nobody listens"
    );
    let app = listen_in(&mesh.net.pod, "127.0.0.1:8080");
    socket.connect(&at("127.0.0.1:8080").into()).unwrap();
    let client = TcpStream::from(socket);
    let _server = accept(&app);
    assert_eq!(client.peer_addr().unwrap(), at("127.0.0.1:8080"));
    assert_eq!(client.local_addr().unwrap().ip(), ip_of("127.0.0.1"));
}

#[test]
fn an_unconnected_socket_tells_what_the_kernel_tells() {
    let mesh = Mesh::new();
    let app = listen_in(&mesh.net.pod, "127.0.0.1:8080");
    assert_eq!(app.local_addr().unwrap(), at("127.0.0.1:8080"));
    let socket = socket_in(&mesh.net.pod, "127.0.0.1:0");
    assert_eq!(socket.peer_addr().unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
}
