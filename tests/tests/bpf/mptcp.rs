//! Multipath TCP (RFC 8684): one connection over several paths, of which the kernel opens further ones by itself, without
//! any `connect()` of the application's. The agent speaks plain TCP, so what it accepts and dials has one path; further
//! paths can come about only for connections that are older than the enrolment.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use mesh_agent::net::connections::connections;
use mesh_agent::net::netns::NetNs;
use mesh_common::abi::{Counter, LOSS_OPEN};
use socket2::{Domain, Protocol, Socket, Type};

use super::support::*;

/// Further addresses of the wire's end and of the pod, for further paths.
const WIRE_SECOND: &str = "10.77.0.9";
const POD_SECOND: &str = "10.77.0.22";

/// A multipath socket. A kernel without them fails the test: what these tests say would not have been tried on it.
pub fn multipath(ns: &NetNs) -> Socket {
    let made = ns.run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP))).unwrap();
    made.unwrap_or_else(|e| {
        panic!("this kernel has no MPTCP (CONFIG_MPTCP, net.mptcp.enabled), so nothing is tried: {e}")
    })
}

fn multipath_listener(ns: &NetNs, on: &str) -> TcpListener {
    let socket = multipath(ns);
    socket.set_reuse_address(true).unwrap();
    socket.bind(&at(on).into()).unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

fn multipath_client(ns: &NetNs, to: &str) -> TcpStream {
    let socket = multipath(ns);
    socket.connect_timeout(&at(to).into(), PATIENCE).unwrap();
    socket.into()
}

/// A namespace's counter of MPTCP (`/proc/net/netstat`, the lines `MPTcpExt`).
fn counted(ns: &NetNs, name: &str) -> u64 {
    counted_here(ns, name).unwrap_or_else(|| panic!("no counter {name}"))
}

/// As [`counted`]; `None` on a kernel that does not count this.
fn counted_here(ns: &NetNs, name: &str) -> Option<u64> {
    let text = ns.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat")).unwrap().unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("MPTcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|one| one == name)?;
    Some(values.split(' ').nth(at).unwrap().parse().unwrap())
}

/// How many first packets of further paths a namespace has sent, as far as it counts them (Linux 6.12 does).
fn assert_paths_begun(ns: &NetNs, wanted: u64) {
    // It is counted once the kernel's own connect() has returned, and its end may be there sooner.
    let begun = || counted_here(ns, "MPJoinSynTx");
    wait_for("a path that has ended was never begun", || begun().is_none_or(|begun| begun >= wanted));
    assert!(begun().is_none_or(|begun| begun == wanted), "{:?} instead of {wanted}", begun());
}

fn wait_for(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Lets both ends have as many paths as the kernel can.
fn allow_paths(net: &Net) {
    for ns in [&net.pod, &net.wire] {
        ip(ns, "mptcp limits set subflows 8 add_addr_accepted 8");
    }
    ip(&net.wire, &format!("addr add {WIRE_SECOND}/24 dev eth0"));
    ip(&net.pod, &format!("addr add {POD_SECOND}/24 dev eth0"));
}

/// A second path for what there is in a namespace and what comes; `kind` is who opens it.
fn offer(ns: &NetNs, address: &str, kind: &str) {
    ip(ns, &format!("mptcp endpoint add {address} dev eth0 {kind}"));
}

#[test]
fn a_multipath_client_has_one_path_to_the_agent() {
    for strict in [false, true] {
        let net = Net::new();
        allow_paths(&net);
        offer(&net.wire, WIRE_SECOND, "subflow");
        let mut mesh = Mesh::of_any(net, 0);
        mesh.kernel.set_inbound_modes(ID, strict, &[]).unwrap();
        let pod = &mesh.net.pod;
        let apps = [multipath_listener(pod, "10.77.0.2:8080"), listen_in(pod, "10.77.0.2:8081")];
        for to in ["10.77.0.2:8080", "10.77.0.2:8081", "10.77.0.2:15008"] {
            let client = multipath_client(&mesh.net.wire, to);
            let door = if to.ends_with("15008") { &mesh.listeners.tunnel[0] } else { &mesh.listeners.inbound[0] };
            let (server, _) = accept(door);
            assert_eq!(server.local_addr().unwrap(), at(to));
            assert_joined(&client, &server);
        }
        assert!(apps.iter().all(|app| !is_waiting(app)));
        // The clients did ask for several paths, and have one.
        assert_eq!(counted(&mesh.net.wire, "MPCapableSYNTX"), 3);
        assert_paths_begun(&mesh.net.wire, 0);
        assert_eq!(counted(pod, "MPCapableSYNRX"), 0);
    }
}

/// A multipath connection from before the enrolment: client, server, and the listener, without which the kernel would
/// refuse further paths by itself.
fn old(inbound: bool) -> (Net, TcpStream, TcpStream, TcpListener) {
    let net = Net::new();
    allow_paths(&net);
    let (from, to, on) =
        if inbound { (&net.wire, &net.pod, "10.77.0.2:8080") } else { (&net.pod, &net.wire, "10.77.0.1:8080") };
    let listener = multipath_listener(to, on);
    let client = multipath_client(from, on);
    let (server, _) = accept(&listener);
    assert_joined(&client, &server);
    assert_joined(&server, &client);
    assert_eq!(counted(to, "MPCapableACKRX"), 1, "it is a multipath connection");
    (net, client, server, listener)
}

/// The first path is an old connection like others; whoever comes by another address is new, whatever token he knows.
#[test]
fn a_second_path_into_an_old_connection_ends_at_the_agent() {
    for strict in [false, true] {
        let (net, mut client, mut app, _listener) = old(true);
        let mut mesh = Mesh::of_any(net, 0);
        offer(&mesh.net.wire, WIRE_SECOND, "subflow");
        // The agent knows nothing of paths, so the client's kernel gives this one up before anybody could accept it.
        wait_for("the client opens no second path", || mesh.count(Counter::InboundAssigned) != 0);
        wait_for("the second path does not end", || counted(&mesh.net.wire, "MPRstTx") != 0);
        assert_paths_begun(&mesh.net.wire, 1);
        assert_eq!(counted(&mesh.net.pod, "MPJoinSynRx"), 0, "strict {strict}");
        mesh.kernel.set_inbound_modes(ID, strict, &[]).unwrap();
        if !strict {
            assert_joined(&client, &app);
            continue;
        }
        // The one path is ended. (The application is told so a minute later, net.mptcp.close_timeout.)
        assert_eq!(connections(&mesh.net.pod).unwrap(), []);
        let _ = client.write_all(b"forbidden");
        wait_for("the client has a path left", || connections(&mesh.net.wire).unwrap().is_empty());
        app.set_nonblocking(true).unwrap();
        assert_eq!(app.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// The kernel opens the second path by itself, from another address of the pod or to another one of the server.
#[test]
fn a_second_path_out_of_the_pod_is_caught() {
    for by_server in [false, true] {
        let (net, client, server, _listener) = old(false);
        let mut mesh = Mesh::of_any(net, 0);
        mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
        if by_server {
            offer(&mesh.net.wire, WIRE_SECOND, "signal");
        } else {
            offer(&mesh.net.pod, POD_SECOND, "subflow");
        }
        // As above.
        wait_for("the kernel opens no second path", || mesh.count(Counter::OutboundCaptured) != 0);
        wait_for("the second path does not end", || counted(&mesh.net.pod, "MPRstTx") != 0);
        assert_paths_begun(&mesh.net.pod, 1);
        assert_eq!(counted(&mesh.net.wire, "MPJoinSynRx"), 0);
        assert_eq!(mesh.count(Counter::EgressUnexplained), 0);
        assert_joined(&client, &server);
    }
}

/// Without an agent the second path does as other new connections: as the workload's setting says.
#[test]
fn without_the_agent_a_second_path_leaves_where_that_is_allowed() {
    for (flags, passes) in [(0, false), (LOSS_OPEN, true)] {
        let (net, client, server, _listener) = old(false);
        let mut mesh = Mesh::of_any(net, flags);
        mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
        mesh.lose_the_agent();
        offer(&mesh.net.pod, POD_SECOND, "subflow");
        let counter = if passes { Counter::OutboundNoAgent } else { Counter::OutboundRefused };
        wait_for("the kernel opens no second path", || mesh.count(counter) != 0);
        if passes {
            wait_for("the second path does not leave", || counted(&mesh.net.wire, "MPJoinAckRx") != 0);
        } else {
            assert_eq!(counted(&mesh.net.wire, "MPJoinSynRx"), 0);
        }
        assert_joined(&client, &server);
    }
}

/// A first packet of a path that somebody makes up who knows of a connection of the agent's.
#[test]
fn a_made_up_path_opens_nothing_of_the_applications() {
    let mesh = Mesh::new();
    let app = multipath_listener(&mesh.net.pod, "10.77.0.2:8080");
    let client = multipath_client(&mesh.net.wire, "10.77.0.2:8080");
    let (server, _) = accept(&mesh.listeners.inbound[0]);
    assert_joined(&client, &server);
    let raw = mesh.net.wire.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))).unwrap().unwrap();
    let to = SocketAddr::new(ip_of(POD4), 8080);
    // MP_JOIN: kind 30, length 12, subtype 1, address id 1, a token and a random number.
    let join = [30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8];
    let before = mesh.count(Counter::InboundSteered);
    let syn = super::packets::segment_with(at("10.77.0.1:4000"), to, [1, 0], super::packets::SYN, &join, b"");
    raw.send_to(&syn, &SocketAddr::new(to.ip(), 0).into()).unwrap();
    wait_for("the packet does not arrive", || mesh.count(Counter::InboundSteered) > before);
    assert!(!is_waiting(&app));
    assert_eq!(counted(&mesh.net.pod, "MPJoinSynRx"), 0);
}
