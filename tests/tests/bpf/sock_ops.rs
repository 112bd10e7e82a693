//! sock_ops: destinations reach the agent and clients reach the application, and nothing stays in the maps.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use mesh_common::abi::{self, Counter};
use mesh_common::addr::{Addr, Endpoint};

use super::support::*;

/// Dials an application like the proxy does for a client.
fn dial_app(mesh: &Mesh, to: &str, client: &str) -> TcpStream {
    let socket = mesh.sockets.socket_to_app(&mesh.net.pod, at(to), at(client)).unwrap();
    let error = socket.connect(&at(to).into()).err().and_then(|e| e.raw_os_error());
    assert!(matches!(error, None | Some(libc::EINPROGRESS)), "{error:?}");
    socket.set_nonblocking(false).unwrap();
    socket.into()
}

#[test]
fn the_application_accepts_the_real_client() {
    let mesh = Mesh::new();
    for (on, to, client, seen) in [
        ("0.0.0.0:8001", "10.77.0.2:8001", "203.0.113.9:4711", "203.0.113.9:4711"),
        ("10.77.0.2:8002", "10.77.0.2:8002", "203.0.113.9:4711", "203.0.113.9:4711"),
        ("[fd77::2]:8003", "[fd77::2]:8003", "[2001:db8::9]:4711", "[2001:db8::9]:4711"),
        ("[::]:8004", "[fd77::2]:8004", "[2001:db8::9]:4711", "[2001:db8::9]:4711"),
        // One AF_INET6 socket for both families.
        ("[::]:8005", "10.77.0.2:8005", "203.0.113.9:4711", "[::ffff:203.0.113.9]:4711"),
        // A client of the other family.
        ("[fd77::2]:8006", "[fd77::2]:8006", "203.0.113.9:4711", "[::ffff:203.0.113.9]:4711"),
    ] {
        let app = listen_in(&mesh.net.pod, on);
        let agent = dial_app(&mesh, to, client);
        let (server, accepted) = accept(&app);
        assert_eq!(accepted, at(seen), "what accept() says for a listener at {on}");
        assert_eq!(server.peer_addr().unwrap(), at(seen), "what getpeername() says");
        let local = server.local_addr().unwrap();
        assert_eq!((local.ip().to_canonical(), local.port()), (at(to).ip(), at(to).port()));
        assert_joined(&agent, &server);
        assert_eq!(mesh.kernel.in_flight().unwrap(), (0, 0), "the entry was handed over");
    }
}

#[test]
fn an_ipv6_client_cannot_be_shown_on_an_ipv4_socket() {
    let mesh = Mesh::new();
    let app = listen_in(&mesh.net.pod, "10.77.0.2:8001");
    let agent = dial_app(&mesh, "10.77.0.2:8001", "[2001:db8::9]:4711");
    let (server, accepted) = accept(&app);
    assert!(accepted.ip().is_loopback(), "{accepted}");
    assert_joined(&agent, &server);
}

#[test]
fn an_application_on_localhost_only_stays_unreachable() {
    let mesh = Mesh::new();
    let _app = listen_in(&mesh.net.pod, "127.0.0.1:8001");
    let socket = mesh.sockets.socket_to_app(&mesh.net.pod, at("10.77.0.2:8001"), at("203.0.113.9:1")).unwrap();
    socket.set_nonblocking(false).unwrap();
    let error = socket.connect(&at("10.77.0.2:8001").into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    mesh.assert_nothing_in_flight();
    assert_eq!(mesh.count(Counter::Abandoned), 1);
}

/// The agent's queue has no place, so that no handshake comes about, and the client gives up.
#[test]
fn a_failed_connection_leaves_nothing() {
    let mesh = Mesh::new();
    for listener in &mesh.listeners.outbound {
        socket2::SockRef::from(listener).listen(0).unwrap();
    }
    for to in ["192.0.2.80:80", "[2001:db8::80]:80", "[::ffff:192.0.2.80]:80"] {
        let sockets: Vec<_> = (0..4)
            .map(|_| {
                let socket = socket_in(&mesh.net.pod, to);
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&at(to).into());
                socket
            })
            .collect();
        assert_ne!(mesh.kernel.in_flight().unwrap().0, 0, "{to}: every connection was accepted");
        drop(sockets);
    }
    mesh.assert_nothing_in_flight();
    assert_ne!(mesh.count(Counter::Abandoned), 0);
}

/// The accept queue is full, so the connection is made but never accepted; then the client gives up.
#[test]
fn a_connection_that_is_given_up_leaves_nothing() {
    let mesh = Mesh::new();
    let listener = &mesh.listeners.outbound[0];
    // Linux takes a second listen() as a new backlog.
    socket2::SockRef::from(listener).listen(1).unwrap();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let socket = socket_in(&mesh.net.pod, "192.0.2.80:80");
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&at("192.0.2.80:80").into());
        clients.push(socket);
    }
    assert_ne!(mesh.kernel.in_flight().unwrap().0, 0, "the queue did not fill");
    for client in &clients {
        client.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
    drop(clients);
    mesh.assert_nothing_in_flight();
}

/// What cannot be noted is not passed by: it reaches the agent, which finds no destination and resets it.
#[test]
fn a_full_map_is_counted_and_the_agent_finds_no_destination() {
    let mesh = Mesh::new();
    let pinned = aya::maps::MapData::from_pin(map(&mesh.pins, abi::maps::FLOW)).unwrap();
    let mut flow: aya::maps::HashMap<_, abi::Tuple, abi::Far> =
        aya::maps::Map::from_map_data(pinned).unwrap().try_into().unwrap();
    let end = |port| Endpoint { addr: Addr::ZERO, port };
    let nowhere = abi::Far { to: end(0), chosen: end(0) };
    for port in 0..abi::MAX_FLOWS {
        flow.insert(abi::Tuple { netns: 0, client: end(port), server: end(0) }, nowhere, 0).unwrap();
    }
    let _client = mesh.connect("192.0.2.80:80").unwrap();
    assert_eq!(mesh.accept_outbound(true).1, None);
    assert_eq!(mesh.count(Counter::FlowFull), 1);
}

/// The client closes first, so its side keeps every port for a minute; there are 28,000 ports.
#[test]
fn a_hundred_thousand_short_connections() {
    const THREADS: usize = 2;
    const EACH: usize = 50_000;
    let mesh = Mesh::new();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for i in 0..EACH {
                    let stream = mesh.connect("192.0.2.80:80").unwrap_or_else(|e| panic!("connection {i}: {e}"));
                    drop(stream);
                }
            });
            scope.spawn(|| {
                for _ in 0..EACH {
                    let (stream, origin) = mesh.accept_outbound(true);
                    assert_eq!(origin, Some(at("192.0.2.80:80")));
                    read_to_end(stream);
                }
            });
        }
    });
    mesh.assert_nothing_in_flight();
    assert_eq!(mesh.count(Counter::OutboundCaptured), (THREADS * EACH) as u64);
    eprintln!("{} connections in {:?}", THREADS * EACH, started.elapsed());
}

/// As above for the agent's connections to one application, which the agent closes first; IPv6 has only one loopback
/// address.
#[test]
fn more_dials_of_an_application_than_there_are_ports() {
    const EACH: usize = 35_000;
    let mesh = Mesh::new();
    let run = |on: &'static str, client: &'static str| {
        let app: TcpListener = listen_in(&mesh.net.pod, on);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..EACH {
                    let socket = mesh.sockets.socket_to_app(&mesh.net.pod, at(on), at(client)).unwrap();
                    socket.set_nonblocking(false).unwrap();
                    socket.connect(&at(on).into()).unwrap_or_else(|e| panic!("dial {i}: {e}"));
                }
            });
            scope.spawn(|| {
                for _ in 0..EACH {
                    let (stream, accepted) = app.accept().unwrap();
                    assert_eq!(accepted, at(client));
                    read_to_end(stream);
                }
            });
        });
    };
    run("10.77.0.2:8001", "203.0.113.9:4711");
    run("[fd77::2]:8001", "[2001:db8::9]:4711");
    mesh.assert_nothing_in_flight();
}

fn read_to_end(mut stream: TcpStream) {
    let mut rest = Vec::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

#[test]
fn a_destination_is_told_once_per_socket_only() {
    let mesh = Mesh::new();
    let clients: Vec<TcpStream> =
        (1..=20).map(|i| mesh.connect(&format!("192.0.2.{i}:{}", 8000 + i)).unwrap()).collect();
    let seen: Vec<_> = (1..=20).map(|_| mesh.accept_outbound(true)).collect();
    // Two clients can have the same port, toward different addresses of loopback.
    let mut told: Vec<_> = seen.iter().map(|(s, origin)| (s.peer_addr().unwrap().port(), origin.unwrap())).collect();
    let own_port = |client: &TcpStream| client.local_addr().unwrap().port();
    let mut wanted: Vec<_> = clients.iter().map(|c| (own_port(c), c.peer_addr().unwrap())).collect();
    told.sort();
    wanted.sort();
    assert_eq!(told, wanted);
    for (server, origin) in &seen {
        assert_eq!(mesh.sockets.original_destination(server.as_fd()).unwrap(), *origin, "and it can be read again");
    }
}

/// How long the socket's SYN waits before it is sent again, in microseconds.
fn syn_timeout(socket: &socket2::Socket) -> u32 {
    socket.set_nonblocking(true).unwrap();
    // Nobody has this address, so the SYN waits for its neighbour's.
    let error = socket.connect(&at("10.77.0.250:80").into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
    let (mut info, mut size) = (std::mem::MaybeUninit::<libc::tcp_info>::zeroed(), size_of::<libc::tcp_info>() as u32);
    // SAFETY: the kernel writes at most `size` bytes, and zeros are a value of each field that it leaves out.
    let info = unsafe {
        let place = info.as_mut_ptr().cast();
        let done = libc::getsockopt(socket.as_fd().as_raw(), libc::SOL_TCP, libc::TCP_INFO, place, &raw mut size);
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        info.assume_init()
    };
    info.tcpi_rto
}

#[test]
fn only_the_agent_repeats_its_syn_sooner() {
    let mesh = Mesh::new();
    let second = 1_000_000;
    assert!(syn_timeout(&mesh.sockets.socket(&mesh.net.pod, at("10.77.0.250:80")).unwrap()) < second);
    assert_eq!(syn_timeout(&socket_in(&mesh.net.wire, "10.77.0.250:80")), second);
}
