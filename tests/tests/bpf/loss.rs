//! The agent's listeners are gone: what passes then and what does not.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use mesh_common::abi::{Counter, LOSS_OPEN};

use super::support::*;

/// A pod whose agent has died: the programs are there, nobody listens.
fn lost(flags: u32, strict: bool, exceptions: &[(u16, bool)]) -> Mesh {
    let mut mesh = Mesh::of(Net::new(), flags);
    mesh.kernel.set_inbound_modes(ID, strict, exceptions).unwrap();
    mesh.lose_the_agent();
    mesh
}

/// What came in while the agent was gone goes on, but not under STRICT.
#[test]
fn strict_stops_what_passed_without_an_agent() {
    let mut mesh = lost(LOSS_OPEN, false, &[]);
    let app = listen_in(&mesh.net.pod, "10.77.0.2:8080");
    let mut client = connect_in(&mesh.net.wire, "10.77.0.2:8080").unwrap();
    let (mut server, _) = accept(&app);
    assert_joined(&client, &server);
    mesh.kernel.set_inbound_modes(ID, true, &[]).unwrap();
    client.write_all(b"forbidden").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_ne!(mesh.count(Counter::InboundForeign), 0);
}

/// Whether a connection from the wire comes to an application of the pod.
fn reaches(mesh: &Mesh, on: &str) -> bool {
    let app = listen_in(&mesh.net.pod, on);
    let client = socket_in(&mesh.net.wire, on);
    match client.connect_timeout(&at(on).into(), std::time::Duration::from_millis(300)) {
        Ok(()) => {
            assert_joined(&client.into(), &accept(&app).0);
            true
        }
        Err(_) => {
            assert!(!is_waiting(&app));
            false
        }
    }
}

#[test]
fn inbound() {
    for (flags, strict, exceptions, passes) in [
        (LOSS_OPEN, false, &[][..], true),
        (LOSS_OPEN, true, &[][..], false),
        (0, false, &[][..], false),
        (0, true, &[][..], false),
        (LOSS_OPEN, true, &[(8080, false)][..], true),
        (LOSS_OPEN, false, &[(8080, true)][..], false),
    ] {
        let mesh = lost(flags, strict, exceptions);
        for on in ["10.77.0.2:8080", "[fd77::2]:8080"] {
            assert_eq!(reaches(&mesh, on), passes, "{on} flags {flags} strict {strict} {exceptions:?}");
        }
        assert_eq!(mesh.count(Counter::InboundNoAgent) > 0, passes);
        assert_eq!(mesh.count(Counter::InboundRefused) > 0, !passes);
    }
}

#[test]
fn outbound() {
    for (flags, passes) in [(LOSS_OPEN, true), (0, false)] {
        // STRICT says nothing about what goes out.
        let mesh = lost(flags, true, &[]);
        for to in ["10.77.0.1:8080", "[fd77::1]:8080"] {
            let there = listen_in(&mesh.net.wire, to);
            match mesh.connect(to) {
                Ok(client) => {
                    assert!(passes, "{to}");
                    assert_joined(&client, &accept(&there).0);
                    assert_eq!(client.peer_addr().unwrap(), at(to));
                }
                Err(error) => {
                    assert!(!passes, "{to}: {error}");
                    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
                    assert!(!is_waiting(&there));
                }
            }
        }
        assert_eq!(mesh.count(if passes { Counter::OutboundNoAgent } else { Counter::OutboundRefused }), 2);
        assert_eq!(mesh.count(Counter::EgressUnexplained), 0);
    }
}

/// Who takes the agent's port after its death takes nothing else.
#[test]
fn an_application_on_the_agents_ports_is_not_the_agent() {
    let mut mesh = Mesh::of(Net::new(), 0);
    let ports = [&mesh.listeners.outbound, &mesh.listeners.inbound, &mesh.listeners.tunnel]
        .map(|listeners| listeners[0].local_addr().unwrap().port());
    mesh.lose_the_agent();
    let taken: Vec<TcpListener> =
        ports.iter().map(|port| listen_in(&mesh.net.pod, &format!("0.0.0.0:{port}"))).collect();
    assert_eq!(mesh.connect("10.77.0.1:8080").unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    for to in ["10.77.0.2:8080", "10.77.0.2:15008"] {
        let client = socket_in(&mesh.net.wire, to);
        client.connect_timeout(&at(to).into(), std::time::Duration::from_millis(300)).unwrap_err();
    }
    assert!(taken.iter().all(|listener| !is_waiting(listener)));
}

/// A connection of the agent's that was open when it died ends; its packets open nothing.
#[test]
fn open_connections_end() {
    let mut mesh = Mesh::of(Net::new(), LOSS_OPEN);
    let app = listen_in(&mesh.net.pod, "10.77.0.2:8080");
    let mut client = connect_in(&mesh.net.wire, "10.77.0.2:8080").unwrap();
    let (server, _) = accept(&mesh.listeners.inbound[0]);
    assert_joined(&client, &server);
    mesh.lose_the_agent();
    drop(server);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert!(!is_waiting(&app));
}
