//! Direct connections of workloads that both have shortcuts: what TCP would have brought, bounded, and over as soon as it is no
//! longer allowed.

use mesh_common::abi::{self, SHORTCUTS};

use super::super::shortcut::bounds::{push, talk};
use super::super::shortcut::order::{pattern, read_all, send_all};
use super::super::shortcut::tcp_bytes;
use super::*;

const TO: &str = "10.78.2.2:8080";
const TO6: &str = "[fd78:2::2]:8080";

fn node() -> Node {
    let mut node = Node::with([SHORTCUTS; 2]);
    node.allow(&[TO, TO6]);
    node
}

#[test]
fn both_directions_go_by_shortcut_from_the_first_byte() {
    let node = node();
    let app = node.app("[::]:8080");
    for to in [TO, TO6, "[::ffff:10.78.2.2]:8080"] {
        let before = node.count(Counter::ShortcutSends);
        let (client, server) = node.assert_direct(&app, to);
        for _ in 1..10 {
            assert_joined(&client, &server);
        }
        assert_eq!(node.count(Counter::ShortcutSends) - before, 20, "{to}");
        assert_eq!((tcp_bytes(&client), tcp_bytes(&server)), (0, 0), "{to}");
        assert_eq!(node.map::<u64, abi::Shortcut>(maps::SHORTCUTS).keys().count(), 1);
        drop((client, server));
        node.assert_forgotten();
        assert_eq!(node.map::<u64, abi::Shortcut>(maps::SHORTCUTS).keys().count(), 0);
    }
    assert_eq!((node.count(Counter::ShortcutJoined), node.count(Counter::ShortcutTcpFirst)), (6, 0));
}

#[test]
fn both_workloads_must_want_it() {
    for flags in [[SHORTCUTS, 0], [0, SHORTCUTS]] {
        let mut node = Node::with(flags);
        node.allow(&[TO]);
        let app = node.app("0.0.0.0:8080");
        let (client, server) = node.assert_direct(&app, TO);
        assert!(tcp_bytes(&client) > 0 && tcp_bytes(&server) > 0);
        assert_eq!(node.count(Counter::ShortcutJoined) + node.count(Counter::ShortcutNoPeer), 0);
    }
}

#[test]
fn applications_that_read_speak_to_each_other_for_ever() {
    let node = node();
    let app = node.app("0.0.0.0:8080");
    for clients_first in [true, false] {
        let (client, server) = node.assert_direct(&app, TO);
        if clients_first { talk(&client, &server) } else { talk(&server, &client) }
    }
    assert_eq!(node.count(Counter::ShortcutAllowance), 0);
}

/// As over the wire: before anybody has closed a socket, and for ever.
#[test]
fn the_next_byte_is_too_late() {
    let node = node();
    let app = node.app("0.0.0.0:8080");
    let (client, server) = node.assert_direct(&app, TO);
    let mut allowed = node.map::<Way, Allowance>(maps::ALLOWED);
    let way = allowed.keys().filter_map(Result::ok).find(|way| way.to == Endpoint::from(at(TO))).unwrap();
    let before = allowed.get(&way, 0).unwrap();
    allowed.remove(&way).unwrap();
    let sends = node.count(Counter::ShortcutSends);
    for (n, (mut from, mut to)) in [(1, (&client, &server)), (2, (&server, &client))] {
        node.counts(Counter::DirectRevoked, || from.write_all(b"forbidden").unwrap());
        assert_eq!(node.count(Counter::ShortcutRevoked), n);
        to.set_nonblocking(true).unwrap();
        assert_eq!(to.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    // Allowed once more is not as if it had always been.
    allowed.insert(way, Allowance { generation: before.generation + 1, ..before }, 0).unwrap();
    node.counts(Counter::DirectRevoked, || (&client).write_all(b"forbidden").unwrap());
    assert_eq!((&server).read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(node.count(Counter::ShortcutSends), sends);
}

#[test]
fn what_is_no_longer_allowed_ends_at_both_ends() {
    let mut node = node();
    let app = node.app("0.0.0.0:8080");
    let (client, server) = node.assert_direct(&app, TO);
    assert_eq!(tcp_bytes(&client), 0);
    node.allow(&[TO6]);
    assert_reset(&client);
    assert_reset(&server);
    node.assert_forgotten();
}

#[test]
fn a_reader_that_never_reads_blocks_its_sender() {
    let node = node();
    let app = node.app("0.0.0.0:8080");
    for size in [100, 1000, 10_000, 65_536, 300_000] {
        for servers in [false, true] {
            let (client, server) = node.assert_direct(&app, TO);
            for stream in [&client, &server] {
                nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::SndBuf, &65_536).unwrap();
                nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::RcvBuf, &65_536).unwrap();
            }
            let sent = push(if servers { &server } else { &client }, size);
            assert!(sent < 1 << 20, "{size} bytes at once, from the server: {servers}: {sent}");
        }
    }
}

/// Over connections of which each changes to TCP at another place.
#[test]
fn many_messages_are_byte_exact() {
    const CONNECTIONS: u64 = 50;
    const MESSAGES: u64 = 500;
    let (node, table) = (node(), pattern());
    let app = node.app("0.0.0.0:8080");
    for connection in 0..CONNECTIONS {
        let (client, server) = {
            let client = connect_in(&node.client, TO).unwrap();
            (client, accept(&app).0)
        };
        let seed = 1 + connection * 4;
        std::thread::scope(|scope| {
            let (client, server, table) = (&client, &server, &table);
            let there = scope.spawn(move || send_all(client, table, MESSAGES, seed));
            let back = scope.spawn(move || send_all(server, table, MESSAGES, seed + 1));
            let at_server = scope.spawn(move || read_all(server, table, seed + 2));
            assert_eq!(read_all(client, table, seed + 3), back.join().unwrap());
            assert_eq!(at_server.join().unwrap(), there.join().unwrap());
        });
    }
    let sends = node.count(Counter::ShortcutSends);
    assert!(sends > 10 * CONNECTIONS, "{sends} of {} by shortcut", 2 * CONNECTIONS * MESSAGES);
    assert!(node.count(Counter::ShortcutSmall) > 0);
    node.assert_forgotten();
}
