//! Where redirected sockets wanted to go: known as long as anybody can ask for it, and gone afterwards.

use std::io::Read as _;
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use aya::maps::{HashMap, Map, MapData};
use mesh_common::abi::{Asked, maps};

use super::support::*;

/// How many sockets are noted.
fn noted(pins: &Path) -> usize {
    let data = Map::from_map_data(MapData::from_pin(map(pins, maps::ASKED)).unwrap()).unwrap();
    HashMap::<MapData, u64, Asked>::try_from(data).unwrap().keys().count()
}

/// Waits for the end of a connection, which takes packets, and whatever holds its sockets for a moment longer.
fn wait_for_nothing(mesh: &Mesh, what: &str) {
    let end = Instant::now() + PATIENCE;
    while noted(&mesh.pins) != 0 {
        assert!(Instant::now() < end, "{what}: {} left", noted(&mesh.pins));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
}

#[test]
fn a_destination_is_known_until_its_connection_is_over() {
    let mesh = Mesh::new();
    for to in ["10.77.0.1:8080", "[fd77::1]:8080"] {
        let open = || {
            let client = mesh.connect(to).unwrap();
            let (server, origin) = mesh.accept_outbound(at(to).is_ipv4());
            assert_eq!(origin, Some(at(to)));
            assert_eq!(noted(&mesh.pins), 1);
            assert_eq!(client.peer_addr().unwrap(), at(to));
            (client, server)
        };
        // Whoever ends it, and however.
        let (client, server) = open();
        drop(client);
        drop(server);
        wait_for_nothing(&mesh, "the client first");
        let (client, server) = open();
        drop(server);
        assert_eq!((&client).read(&mut [0]).unwrap(), 0);
        assert_eq!(client.peer_addr().unwrap(), at(to), "half of it is still open");
        drop(client);
        wait_for_nothing(&mesh, "the agent first");
        let (client, server) = open();
        reset(client);
        wait_for_nothing(&mesh, "the client resets");
        drop(server);
        let (client, server) = open();
        let own = client.local_addr().unwrap();
        assert!(!own.ip().is_loopback());
        reset(server);
        wait_for_nothing(&mesh, "the agent resets");
        assert_eq!(client.peer_addr().unwrap_err().kind(), std::io::ErrorKind::NotConnected);
        assert_eq!(client.local_addr().unwrap(), own, "as without the mesh");
    }
}

#[test]
fn nothing_is_left_of_a_connect_that_fails() {
    let mesh = Mesh::new();
    // No port is free.
    let write = |name: &str, value: &str| {
        let path = format!("/proc/sys/net/ipv4/{name}");
        mesh.net.pod.run(|| std::fs::write(path, value)).unwrap().unwrap();
    };
    write("ip_local_port_range", "40000 40001");
    write("ip_local_reserved_ports", "40000-40001");
    for to in ["10.77.0.1:8080", "[fd77::1]:8080"] {
        let socket = socket_in(&mesh.net.pod, to);
        for _ in 0..2 {
            let error = socket.connect(&at(to).into()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{to}");
        }
        assert_eq!(noted(&mesh.pins), 1, "{to}: by its one cookie");
        drop(socket);
        wait_for_nothing(&mesh, "released");
    }
    write("ip_local_reserved_ports", "\n");
    // Redirected first, and then to where it says.
    let socket = socket_in(&mesh.net.pod, "10.77.0.1:8080");
    socket.connect(&at("10.77.0.1:8080").into()).unwrap();
    mesh.accept_outbound(true);
    disconnect(&socket);
    assert_eq!(noted(&mesh.pins), 0);
    let own = listen_in(&mesh.net.pod, "10.77.0.2:8081");
    socket.connect(&at("10.77.0.2:8081").into()).unwrap();
    accept(&own);
    assert_eq!(noted(&mesh.pins), 0);
    assert_eq!(socket.peer_addr().unwrap().as_socket().unwrap(), at("10.77.0.2:8081"));
}
