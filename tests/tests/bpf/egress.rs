//! tc egress: what leaves the pod by no connection that the programs know is dropped; what does, passes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use mesh_agent::net::netns::NetNs;
use mesh_common::abi::Counter;
use socket2::{Domain, Protocol, Socket, Type};

use super::packets::{self, ACK, Frames, RST, SYN, SYN_ACK, packet, segment};
use super::support::*;

/// How long a test waits for what must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// A raw socket in the pod, as CAP_NET_RAW allows.
fn raw(mesh: &Mesh, family: &str) -> Socket {
    let domain = Domain::for_address(at(family));
    mesh.net.pod.run(|| Socket::new(domain, Type::RAW, Some(Protocol::TCP))).unwrap().unwrap()
}

/// Sees every TCP packet that reaches the wire's end.
fn watch(mesh: &Mesh, family: &str) -> Socket {
    let domain = Domain::for_address(at(family));
    let socket = mesh.net.wire.run(|| Socket::new(domain, Type::RAW, Some(Protocol::TCP))).unwrap().unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket
}

/// Whether a TCP packet to this port came, in what there is to read.
fn came(watch: &Socket, v4: bool, port: u16) -> bool {
    let mut packet = [0; 2048];
    let mut stream = watch;
    while let Ok(n) = stream.read(&mut packet) {
        // A raw IPv4 socket shows the IP header, a raw IPv6 socket does not.
        let tcp = if v4 { usize::from(packet[0] & 0x0f) * 4 } else { 0 };
        if n >= tcp + 4 && packet[tcp + 2..tcp + 4] == port.to_be_bytes() {
            return true;
        }
    }
    false
}

#[test]
fn a_raw_socket_opens_nothing_and_sends_nothing() {
    let mesh = Mesh::new();
    for (from, to) in [("10.77.0.2:4000", "10.77.0.1:9000"), ("[fd77::2]:4000", "[fd77::1]:9000")] {
        let (from, v4) = (at(from), at(from).is_ipv4());
        let sees = watch(&mesh, to);
        let raw = raw(&mesh, to);
        // The mark is nobody's pass.
        raw.set_mark(0x539).unwrap();
        let cases: [(u8, &[u8]); 5] = [(SYN, b""), (SYN, b"fast"), (SYN_ACK, b""), (ACK, b"data"), (RST, b"data")];
        for (i, (flags, data)) in (9000..).zip(cases) {
            let to = SocketAddr::new(at(to).ip(), i);
            let kernel = SocketAddr::new(to.ip(), 0);
            // The kernel may tell of the drop.
            let _ = raw.send_to(&segment(from, to, flags, data), &kernel.into());
            assert!(!came(&sees, v4, i), "{to} flags {flags:#x} data {data:?}");
        }
        // The kernel speaks so for itself; a reset tells nobody anything.
        let to = SocketAddr::new(at(to).ip(), 9100);
        raw.send_to(&segment(from, to, RST, b""), &SocketAddr::new(to.ip(), 0).into()).unwrap();
        assert!(came(&sees, v4, 9100), "the watcher sees nothing at all");
    }
    assert_eq!(mesh.count(Counter::EgressUnexplained), 10);
}

#[test]
fn a_packet_socket_opens_nothing() {
    let mesh = Mesh::new();
    let sees = watch(&mesh, "10.77.0.1:0");
    let tcp = segment(at("10.77.0.2:4000"), at("10.77.0.1:9000"), SYN, b"");
    let ip = packet(ip_of(WIRE4), packets::TCP, 0x4000, &tcp);
    let frames = Frames::new(&mesh.net);
    let before = mesh.count(Counter::EgressUnexplained);
    frames.ip(&ip);
    assert!(!came(&sees, true, 9000));
    assert_eq!(mesh.count(Counter::EgressUnexplained), before + 1);
    // The packet is a good one: the same from a pod that is not enrolled arrives.
    let mut mesh = mesh;
    mesh.kernel.withdraw(ID);
    frames.ip(&ip);
    assert!(came(&sees, true, 9000));
}

/// What docs/security.md says does leave. If this fails, the document is to be mended.
#[test]
fn protocols_of_other_numbers_leave_untold() {
    const ANY_EXPERIMENT: i32 = 253;
    let mesh = Mesh::new();
    let before = mesh.count(Counter::EgressUnexplained);
    let open = |ns: &NetNs| {
        ns.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(ANY_EXPERIMENT)))).unwrap().unwrap()
    };
    let (from, to) = (open(&mesh.net.pod), open(&mesh.net.wire));
    to.set_read_timeout(Some(PATIENCE)).unwrap();
    from.send_to(b"anything", &at("10.77.0.1:0").into()).unwrap();
    let mut packet = [0; 64];
    let read = (&to).read(&mut packet).unwrap();
    assert!(packet[..read].ends_with(b"anything"), "the backstop holds for such a protocol too");
    assert_eq!(mesh.count(Counter::EgressUnexplained), before);
}

#[test]
fn what_the_agent_and_the_kernel_send_passes() {
    let mesh = Mesh::new();
    for to in ["10.77.0.1:8080", "[fd77::1]:8080"] {
        let there = listen_in(&mesh.net.wire, to);
        let dial = mesh.sockets.socket(&mesh.net.pod, at(to)).unwrap();
        dial.set_nonblocking(false).unwrap();
        dial.connect(&at(to).into()).unwrap();
        let dial = TcpStream::from(dial);
        let (server, _) = accept(&there);
        assert_joined(&dial, &server);
        // The kernel answers for connections that are over, and for those that never were.
        drop(dial);
        let mut server = server;
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        drop(server);
    }
    mesh.net.pod.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")).unwrap().unwrap();
    for (i, to) in ["10.77.0.2:8080", "[fd77::2]:8080"].into_iter().enumerate() {
        let client = connect_in(&mesh.net.wire, to).unwrap();
        assert_joined(&client, &accept(&mesh.listeners.inbound[i]).0);
    }
    assert_eq!(mesh.count(Counter::EgressUnexplained), 0);
}

#[test]
fn what_is_never_captured_passes_and_a_socket_keeps_no_word_of_it() {
    let mesh = Mesh::new();
    ip(&mesh.net.wire, "addr add 169.254.7.1/16 dev eth0");
    ip(&mesh.net.pod, "route add 169.254.0.0/16 dev eth0");
    let there = listen_in(&mesh.net.wire, "169.254.7.1:8080");
    let socket = socket_in(&mesh.net.pod, "169.254.7.1:8080");
    socket.connect(&at("169.254.7.1:8080").into()).unwrap();
    let (server, _) = accept(&there);
    assert_eq!(mesh.count(Counter::OutboundExempt), 1);
    drop(server);
    // connect() to AF_UNSPEC: the socket is as new, and what it asks for next is caught.
    disconnect(&socket);
    socket.connect(&at("10.77.0.1:8080").into()).unwrap();
    assert_eq!(mesh.accept_outbound(true).1, Some(at("10.77.0.1:8080")));
    assert_eq!(mesh.count(Counter::EgressUnexplained), 0);
}

/// Two connections from before the enrolment, one in each direction.
struct Old {
    net: Net,
    opened: (TcpStream, TcpStream),
    accepted: (TcpStream, TcpStream),
    _listeners: [TcpListener; 2],
}

fn old(pod: &str, wire: &str) -> Old {
    let net = Net::new();
    let there = listen_in(&net.wire, &format!("{wire}:8080"));
    let here = listen_in(&net.pod, &format!("{pod}:8081"));
    let client = connect_in(&net.pod, &format!("{wire}:8080")).unwrap();
    let opened = (client, accept(&there).0);
    let client = connect_in(&net.wire, &format!("{pod}:8081")).unwrap();
    let accepted = (client, accept(&here).0);
    Old { net, opened, accepted, _listeners: [there, here] }
}

#[test]
fn connections_from_before_the_enrolment_go_on_and_are_forgotten_at_their_end() {
    for (pod, wire) in [("10.77.0.2", "10.77.0.1"), ("[fd77::2]", "[fd77::1]")] {
        let Old { net, opened, accepted, _listeners } = old(pod, wire);
        let mut mesh = Mesh::of(net, 0);
        assert_joined(&opened.0, &opened.1);
        mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
        assert_joined(&accepted.0, &accepted.1);
        assert_eq!(mesh.count(Counter::InboundAssigned), 0);
        assert_eq!(kept(&mesh), 2);
        drop((opened, accepted));
        // The side that closed first is in TIME_WAIT, the other gone.
        let begun = std::time::Instant::now();
        while kept(&mesh) != 0 && begun.elapsed() < PATIENCE {
            mesh.kernel.sweep();
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(kept(&mesh), 0);
    }
}

/// By the setting `existingConnections: close`.
#[test]
fn connections_from_before_the_enrolment_are_closed_where_that_is_asked() {
    for (pod, wire) in [("10.77.0.2", "10.77.0.1"), ("[fd77::2]", "[fd77::1]")] {
        let Old { net, opened, accepted, _listeners } = old(pod, wire);
        let inside = (listen_in(&net.pod, "127.0.0.1:8080"), connect_in(&net.pod, "127.0.0.1:8080").unwrap());
        let (mut kernel, _) = kernel();
        let listeners = kernel.enrol(&super::sendmsg::workload(&net, "existingConnections: close")).unwrap();
        for mut end in [&opened.0, &opened.1, &accepted.0, &accepted.1] {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
            let error = end.read(&mut [0]).unwrap_err().raw_os_error();
            assert!(matches!(error, Some(libc::ECONNABORTED | libc::ECONNRESET)), "{pod}: {error:?}");
        }
        // What stays in the pod is not the mesh's.
        assert_joined(&inside.1, &accept(&inside.0).0);
        let _client = connect_in(&net.pod, "192.0.2.80:80").unwrap();
        accept(&listeners.outbound[0]);
    }
}

fn kept(mesh: &Mesh) -> usize {
    let pinned = aya::maps::MapData::from_pin(map(&mesh.pins, mesh_common::abi::maps::KEPT)).unwrap();
    let map: aya::maps::HashMap<_, mesh_common::abi::Tuple, u32> =
        aya::maps::HashMap::try_from(aya::maps::Map::HashMap(pinned)).unwrap();
    map.keys().count()
}

#[test]
fn strict_ends_what_was_opened_from_outside_before_the_enrolment() {
    for (pod, wire) in [("10.77.0.2", "10.77.0.1"), ("[fd77::2]", "[fd77::1]")] {
        let Old { net, opened, mut accepted, _listeners } = old(pod, wire);
        let mut mesh = Mesh::of(net, 0);
        // Nobody has said the modes yet: nothing passes, nothing is cut.
        accepted.0.write_all(b"forbidden").unwrap();
        std::thread::sleep(SILENCE);
        accepted.1.set_nonblocking(true).unwrap();
        let error = accepted.1.read(&mut [0; 9]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{pod}");
        accepted.1.set_nonblocking(false).unwrap();
        assert_ne!(mesh.count(Counter::InboundForeign), 0);
        mesh.kernel.set_inbound_modes(ID, true, &[(9999, false)]).unwrap();
        let error = accepted.1.read(&mut [0; 9]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{pod}: the application's end");
        assert_joined(&opened.0, &opened.1);
    }
}

#[test]
fn modes_of_single_ports_hold() {
    for (strict, exceptions, goes_on) in [
        (true, &[(8081, false)][..], true),
        (true, &[(8082, false)][..], false),
        (false, &[(8081, true)][..], false),
        (false, &[(8082, true)][..], true),
    ] {
        let Old { net, accepted, _listeners, .. } = old("10.77.0.2", "10.77.0.1");
        let mut mesh = Mesh::of(net, 0);
        // Through other modes, so that what is left of them would show.
        mesh.kernel.set_inbound_modes(ID, false, &[(8083, true)]).unwrap();
        mesh.kernel.set_inbound_modes(ID, strict, exceptions).unwrap();
        if goes_on {
            assert_joined(&accepted.0, &accepted.1);
        } else {
            let mut app = &accepted.1;
            app.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(
                app.read(&mut [0]).unwrap_err().raw_os_error(),
                Some(libc::ECONNABORTED),
                "{strict} {exceptions:?}"
            );
        }
    }
}
