//! What direct connections carry: to the last byte, however they end, and whoever asks when.

use std::collections::HashSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use aya::maps::HashMap;
use mesh_agent::kernel::{DirectStats, TcpStats};
use mesh_common::abi::{Allowance, Carried, Counter, MAX_PAIRS, Pair, Path, SHORTCUTS, Way, maps};
use mesh_common::addr::Endpoint;
use mesh_common::tcp::{Figure, RTT_BUCKETS};
use socket2::SockRef;

use super::direct::{Node, assert_reset, service};
use super::support::*;

const TO: &str = "10.78.2.2:8080";
const MOMENT: Duration = Duration::from_millis(1);

/// An agent's part: asks, and adds up.
struct Asker {
    client: std::sync::Arc<mesh_agent::net::netns::NetNs>,
    server: u64,
    stats: DirectStats,
    told: std::collections::HashMap<Pair, Carried>,
}

impl Asker {
    fn new(node: &Node) -> Self {
        let (client, server) = (node.client.clone(), node.server.cookie());
        Asker { client, server, stats: node.kernel.direct_stats().unwrap(), told: Default::default() }
    }

    fn ask(&mut self) -> &mut Self {
        let client = &self.client;
        let news = self.stats.news(|cookie| (cookie == client.cookie()).then_some(&**client), |_, _| true);
        assert!(news.failure.is_none(), "{:?}", news.failure);
        for (pair, new) in news.told {
            let all = self.told.entry(pair).or_default();
            all.server = new.server;
            all.opened += new.opened;
            all.closed += new.closed;
            all.forward += new.forward;
            all.back += new.back;
        }
        self
    }

    /// What was told of connections to `to`, asked once more.
    fn told(&mut self, to: &str, endpoint: &str) -> (u64, u64, u64, u64) {
        let client = self.client.cookie();
        let server = self.server;
        let told = self.ask().told.get(&Pair { client, to: at(to).into(), endpoint: at(endpoint).into() });
        told.map_or_else(Default::default, |one| {
            assert_eq!(one.server, server);
            (one.opened, one.closed, one.forward, one.back)
        })
    }

    /// Asks until this was told.
    fn assert_told(&mut self, to: &str, endpoint: &str, wanted: (u64, u64, u64, u64), what: &str) {
        let end = Instant::now() + PATIENCE;
        while self.told(to, endpoint) != wanted && Instant::now() < end {
            std::thread::sleep(MOMENT);
        }
        assert_eq!(self.told(to, endpoint), wanted, "{what}");
    }
}

/// So many bytes there, and so many back.
fn carry(client: &TcpStream, server: &TcpStream, forward: usize, back: usize) {
    for (mut from, mut to, n) in [(client, server, forward), (server, client, back)] {
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || from.write_all(&vec![7; n]).unwrap());
            let (mut left, end) = (vec![0; n], Instant::now() + PATIENCE);
            while !left.is_empty() {
                match to.read(&mut left) {
                    Ok(0) => panic!("an end with {} bytes to come", left.len()),
                    Ok(read) => left.truncate(left.len() - read),
                    // By shortcut a read that waits may end with this before there is anything.
                    Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < end => {}
                    Err(e) => panic!("{e}"),
                }
            }
        });
    }
}

fn assert_ended(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

fn abort(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// How a connection ends, and how many bytes more it carries meanwhile.
type Ending = (&'static str, fn(TcpStream, TcpStream) -> (u64, u64));

const ENDINGS: [Ending; 9] = [
    ("the client first", |client, server| {
        drop(client);
        assert_ended(&server);
        (0, 0)
    }),
    ("the server first", |client, server| {
        drop(server);
        assert_ended(&client);
        (0, 0)
    }),
    ("half by the client, and an answer", |client, server| {
        client.shutdown(Shutdown::Write).unwrap();
        assert_ended(&server);
        carry(&client, &server, 0, 5);
        drop(server);
        assert_ended(&client);
        (0, 5)
    }),
    ("half by the client, who does not wait for the server's end", |client, server| {
        client.shutdown(Shutdown::Write).unwrap();
        assert_ended(&server);
        carry(&client, &server, 0, 5);
        drop(client);
        (0, 5)
    }),
    ("half by the client, and nothing more", |client, server| {
        client.shutdown(Shutdown::Write).unwrap();
        assert_ended(&server);
        drop(server);
        assert_ended(&client);
        (0, 0)
    }),
    ("half by the server, and more", |client, server| {
        server.shutdown(Shutdown::Write).unwrap();
        assert_ended(&client);
        carry(&client, &server, 9, 0);
        drop(client);
        assert_ended(&server);
        (9, 0)
    }),
    ("a reset by the client", |client, server| {
        abort(client);
        assert_reset(&server);
        (0, 0)
    }),
    ("a reset by the server", |client, server| {
        abort(server);
        assert_reset(&client);
        (0, 0)
    }),
    ("a reset after the server's end", |client, server| {
        server.shutdown(Shutdown::Write).unwrap();
        assert_ended(&client);
        abort(client);
        (0, 0)
    }),
];

#[test]
fn every_byte_is_counted_however_it_ends() {
    every_byte_is_counted(0);
}

/// Some connections change to TCP on the way, others never.
#[test]
fn every_byte_is_counted_by_shortcut_too() {
    every_byte_is_counted(SHORTCUTS);
}

fn every_byte_is_counted(flags: u32) {
    let mut node = Node::with([flags; 2]);
    node.allow(&[TO, "[fd78:2::2]:8080"]);
    let app = node.app("[::]:8080");
    let mut asker = Asker::new(&node);
    for to in [TO, "[fd78:2::2]:8080"] {
        let mut all = (0, 0, 0, 0);
        for (size, (what, end)) in (1..).zip(ENDINGS) {
            // More than one window, and nothing at all.
            for (forward, back) in [(1000 * size, 300_000 + size), (0, 0)] {
                let (client, server) = node.assert_direct(&app, to);
                carry(&client, &server, forward, back);
                let more = end(client, server);
                // `assert_direct` says ping and pong.
                all = (all.0 + 1, all.1 + 1, all.2 + forward as u64 + 4 + more.0, all.3 + back as u64 + 4 + more.1);
                asker.assert_told(to, to, all, what);
            }
        }
    }
    assert_eq!(asker.told.len(), 2, "{:?}", asker.told);
    assert_eq!(node.count(Counter::ShortcutSends) > 0, flags != 0);
}

/// The server has ended, but not for the client: its FIN is lost.
#[test]
fn an_end_that_does_not_arrive_is_no_byte() {
    let node = Node::allowing(&[TO]);
    let app = node.app("0.0.0.0:8080");
    let mut asker = Asker::new(&node);
    let (client, server) = node.assert_direct(&app, TO);
    client.shutdown(Shutdown::Write).unwrap();
    assert_ended(&server);
    carry(&client, &server, 0, 5);
    ip(&node.router, "route add blackhole 10.78.1.2/32");
    drop(server);
    drop(client);
    asker.assert_told(TO, TO, (1, 1, 4, 9), "a lost end");
}

#[test]
fn what_is_no_longer_allowed_was_carried_all_the_same() {
    let mut node = Node::allowing(&[TO]);
    let app = node.app("0.0.0.0:8080");
    let (client, server) = node.assert_direct(&app, TO);
    carry(&client, &server, 100_000, 70_000);
    node.allow(&[]);
    assert_reset(&client);
    Asker::new(&node).assert_told(TO, TO, (1, 1, 100_004, 70_004), "revoked");
}

/// What is open is told as it is, and once; by one agent after the other, and what happened between them too.
#[test]
fn open_connections_and_agents_that_come_and_go() {
    come_and_go(0);
    come_and_go(SHORTCUTS);
}

fn come_and_go(flags: u32) {
    let mut node = Node::with([flags; 2]);
    let to = "10.96.0.10:80";
    node.kernel.set_direct(&service(to, &[TO]), &HashSet::new()).unwrap();
    let app = node.app("0.0.0.0:8080");
    let connect = || accept_of(&app, connect_in(&node.client, to).unwrap());
    let (client, server) = connect();
    let mut first = Asker::new(&node);
    assert_eq!(first.told(to, TO), (1, 0, 0, 0));
    carry(&client, &server, 1000, 10);
    assert_eq!(first.told(to, TO), (1, 0, 1000, 10));
    assert_eq!(first.told(to, TO), (1, 0, 1000, 10));
    // One that comes and goes does not disturb it.
    let (other, its) = connect();
    carry(&other, &its, 5, 0);
    drop((other, its));
    first.assert_told(to, TO, (2, 1, 1005, 10), "another one");
    carry(&client, &server, 1, 0);
    first.assert_told(to, TO, (2, 1, 1006, 10), "one byte more");
    drop(first);

    carry(&client, &server, 200, 0);
    let (other, its) = connect();
    carry(&other, &its, 0, 30);
    drop((other, its));
    let mut second = Asker::new(&node);
    second.assert_told(to, TO, (1, 1, 200, 30), "what happened while nobody was there");
    carry(&client, &server, 7, 7);
    drop((client, server));
    second.assert_told(to, TO, (1, 2, 207, 37), "the end of the old one");
    let mut third = Asker::new(&node);
    assert_eq!(third.told(to, TO), (0, 0, 0, 0));
}

fn accept_of(app: &TcpListener, client: TcpStream) -> (TcpStream, TcpStream) {
    let (server, from) = accept(app);
    assert_eq!(from.port(), client.local_addr().unwrap().port());
    (client, server)
}

#[test]
fn what_was_never_a_connection_is_not_counted() {
    let node = Node::allowing(&[TO]);
    let refused = connect_in(&node.client, TO).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let mut asker = Asker::new(&node);
    assert_eq!(asker.told(TO, TO), (0, 0, 0, 0));
    assert!(asker.told.is_empty(), "{:?}", asker.told);
}

/// An entry of which nothing is new any more makes room, and what was told of it goes with it; not nobody's, nor one with a
/// connection that is open.
#[test]
fn what_rests_makes_room() {
    let node = Node::allowing(&[TO, "[fd78:2::2]:8080"]);
    let app = node.app("[::]:8080");
    let _open = node.assert_direct(&app, "[fd78:2::2]:8080");
    let mut asker = Asker::new(&node);
    for round in 1..=2 {
        drop(node.assert_direct(&app, TO));
        asker.assert_told(TO, TO, (round, round, 4 * round, 4 * round), "told");
        for _ in 0..20 {
            asker.ask();
        }
        let there = |name: &str| node.map::<Pair, Carried>(name).keys().map(Result::unwrap).collect::<HashSet<_>>();
        assert_eq!(there(maps::DIRECT_STATS).len(), 2, "nobody's, and that of the open one");
        assert!(there(maps::DIRECT_STATS).contains(&Pair::NOBODY));
        assert_eq!(there(maps::DIRECT_TOLD).len(), 1);
    }
}

#[test]
fn no_place_for_a_name() {
    let node = Node::allowing(&[TO]);
    let app = node.app("0.0.0.0:8080");
    let mut asker = Asker::new(&node);
    let mut stats: HashMap<_, Pair, Carried> = node.map(maps::DIRECT_STATS);
    for i in 1..MAX_PAIRS {
        let other = Pair { client: u64::MAX, to: Endpoint { port: i, ..Endpoint::ZERO }, endpoint: Endpoint::ZERO };
        stats.insert(other, Carried::default(), 0).unwrap();
    }
    let (client, server) = node.assert_direct(&app, TO);
    carry(&client, &server, 10, 20);
    let told = |asker: &mut Asker| asker.ask().told.get(&Pair::NOBODY).copied().unwrap_or_default();
    let opened = told(&mut asker);
    assert_eq!((opened.opened, opened.closed, opened.forward), (1, 0, 0), "bytes of nobody's are told at the end");
    drop(client);
    assert_ended(&server);
    let end = Instant::now() + PATIENCE;
    while told(&mut asker).closed == 0 && Instant::now() < end {
        std::thread::sleep(MOMENT);
    }
    let Carried { opened, closed, forward, back, .. } = told(&mut asker);
    assert_eq!((opened, closed, forward, back), (1, 1, 14, 24));
    assert_eq!(node.count(Counter::DirectUnnamed), 2);
}

/// Sockets of a path that have told their round-trip time.
fn measured(tcp: &TcpStats, path: Path) -> u64 {
    (0..RTT_BUCKETS).map(|bucket| tcp.figure(path, Figure::Rtt(bucket)).unwrap()).sum()
}

fn assert_measured(tcp: &TcpStats, path: Path, wanted: u64) {
    let end = Instant::now() + PATIENCE;
    while measured(tcp, path) != wanted && Instant::now() < end {
        std::thread::sleep(MOMENT);
    }
    assert_eq!(measured(tcp, path), wanted, "{path:?}");
}

#[test]
fn round_trips_and_what_was_sent_again() {
    let mut node = Node::allowing(&[TO]);
    let tcp = node.kernel.take_tcp_stats().unwrap();
    let app = node.app("0.0.0.0:8080");
    drop(node.assert_direct(&app, TO));
    // Both ends are this node's.
    assert_measured(&tcp, Path::Direct, 2);
    assert!(tcp.figure(Path::Direct, Figure::RttSum).unwrap() > 0);
    assert_eq!(tcp.figure(Path::Direct, Figure::Retransmitted).unwrap(), 0);

    let (mut client, mut server) = node.assert_direct(&app, TO);
    let mut allowed = node.map::<Way, Allowance>(maps::ALLOWED);
    let (way, allowance) = allowed.iter().next().unwrap().unwrap();
    allowed.remove(&way).unwrap();
    let before = node.count(Counter::DirectRevoked);
    client.write_all(b"again").unwrap();
    let end = Instant::now() + PATIENCE;
    while node.count(Counter::DirectRevoked) < before + 2 && Instant::now() < end {
        std::thread::sleep(MOMENT);
    }
    allowed.insert(way, allowance, 0).unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    drop((client, server));
    assert_measured(&tcp, Path::Direct, 4);
    let again = tcp.figure(Path::Direct, Figure::Retransmitted).unwrap();
    assert!((2..10).contains(&again), "{again}");
    Asker::new(&node).assert_told(TO, TO, (2, 2, 13, 8), "each byte once");
    for path in [Path::Tunnel, Path::Plain] {
        assert_eq!(measured(&tcp, path), 0);
    }
}

/// The agent's own sockets on the wire, by the ports at which they meet.
#[test]
fn the_agents_sockets_on_the_wire_are_measured() {
    let mut mesh = Mesh::new();
    let tcp = mesh.kernel.take_tcp_stats().unwrap();
    for (port, path) in [(15008, Path::Tunnel), (8080, Path::Plain)] {
        let to = format!("10.77.0.1:{port}");
        let there = listen_in(&mesh.net.wire, &to);
        let socket = mesh.sockets.socket(&mesh.net.pod, at(&to)).unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.connect(&at(&to).into()).unwrap();
        let client: TcpStream = socket.into();
        let (server, _) = accept(&there);
        assert_joined(&client, &server);
        drop(client);
        assert_measured(&tcp, path, 1);
    }
    // Those that it accepts.
    for (port, path, listener) in
        [(15008, Path::Tunnel, &mesh.listeners.tunnel[0]), (8080, Path::Plain, &mesh.listeners.inbound[0])]
    {
        let client = connect_in(&mesh.net.wire, &format!("10.77.0.2:{port}")).unwrap();
        let (server, _) = accept(listener);
        assert_joined(&client, &server);
        drop(server);
        assert_measured(&tcp, path, 2);
    }
    // Not those between it and its workload.
    let client = mesh.connect("192.0.2.80:80").unwrap();
    let (agent, _) = mesh.accept_outbound(true);
    assert_joined(&client, &agent);
    drop((client, agent));
    for path in [Path::Direct, Path::Tunnel, Path::Plain] {
        assert_eq!(measured(&tcp, path), if path == Path::Direct { 0 } else { 2 });
    }
}
