//! A forwarder between real sockets on loopback: clients, the agent's socket, servers that do as the test says.

use std::collections::HashMap;
use std::net::Ipv6Addr;

use proptest::prelude::*;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::LocalSet;

use super::*;

/// Which address of the agent stands for which server.
#[derive(Default)]
pub(super) struct Net(RefCell<HashMap<SocketAddr, SocketAddr>>);

impl Net {
    pub(super) fn server(&self, at: SocketAddr) -> Option<SocketAddr> {
        self.0.borrow().get(&at).copied()
    }
}

pub(super) fn socket(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking(), Some(Protocol::UDP))
}

pub(super) fn icmp(client: SocketAddr) -> io::Result<Socket> {
    let protocol = if client.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    Socket::new(Domain::for_address(client), Type::RAW, Some(protocol))
}

struct World {
    forwarder: Rc<Forwarder>,
    v4: u16,
    v6: SocketAddr,
    ended: CancellationToken,
    trigger: shutdown::Trigger,
    own: shutdown::Guard,
}

/// Questions that may wait.
const MOST: usize = 40;

impl World {
    /// A forwarder that listens; must be called on a `LocalSet`.
    fn new() -> World {
        let (trigger, watch, own) = shutdown::channel();
        let ended = CancellationToken::new();
        let forwarder = Rc::new(Forwarder {
            name: "default/test".into(),
            net: super::Net::Test(Net::default()),
            counters: Arc::default(),
            in_flight: Cell::new(0),
            most: MOST,
            shutdown: watch,
            ended: ended.clone(),
        });
        let here = crate::net::netns::NetNs::current().unwrap();
        // Other tests listen at the same time: any port but a fixed one.
        let free = StdSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let sockets = datagram::listen(&here, free, 1, |_| Ok(())).unwrap();
        let (v4, v6) = (sockets[0].local_addr().unwrap().port(), sockets[1].local_addr().unwrap());
        for socket in sockets {
            tokio::task::spawn_local(forwarder.clone().serve(socket));
        }
        World { forwarder, v4, v6, ended, trigger, own }
    }

    /// A server, and the address that stands for it.
    async fn server(&self, number: u8) -> (UdpSocket, SocketAddr) {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = SocketAddr::from(([127, 53, 0, number], self.v4));
        self.stand(at, server.local_addr().unwrap());
        (server, at)
    }

    fn stand(&self, at: SocketAddr, server: SocketAddr) {
        let super::Net::Test(net) = &self.forwarder.net else { unreachable!() };
        net.0.borrow_mut().insert(at, server);
    }

    fn dropped(&self, reason: Reason) -> u64 {
        self.forwarder.counters.dropped(reason)
    }

    fn in_flight(&self) -> usize {
        self.forwarder.in_flight.get()
    }

    /// Waits for what other tasks will have done at some time.
    async fn until(&self, what: &str, done: impl Fn(&World) -> bool) {
        let wait = async {
            while !done(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("{what}: not in time"));
    }
}

async fn client(at: SocketAddr) -> UdpSocket {
    let any = if at.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let client = UdpSocket::bind(any).await.unwrap();
    client.connect(at).await.unwrap();
    client
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; datagram::MAX_DATAGRAM];
    let (n, from) =
        timeout(Duration::from_secs(20), socket.recv_from(&mut buffer)).await.expect("nothing came").unwrap();
    buffer.truncate(n);
    (buffer, from)
}

async fn assert_refused(client: &UdpSocket) {
    let told = async {
        loop {
            client.ready(Interest::ERROR).await.unwrap();
            if let Some(error) = client.take_error().unwrap() {
                return error;
            }
        }
    };
    let error = timeout(Duration::from_secs(20), told).await.expect("nothing came");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

/// Runs a test on a thread like a worker's.
fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { test().await });
}

#[test]
fn every_byte_goes_through_both_ways() {
    run(|| async {
        let world = World::new();
        let (server, at) = world.server(1).await;
        let v6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        world.stand(world.v6, v6.local_addr().unwrap());
        let big: Vec<u8> = (0..65_507_u32).map(|i| (i * 7) as u8).collect();
        for (server, at) in [(&server, at), (&v6, world.v6)] {
            let client = client(at).await;
            for (question, answer) in [
                (&b"\x12\x34 a question"[..], &b"\x12\x34 an answer"[..]),
                // Truncated, with EDNS and not, or whatever: bytes.
                (&big[..], &big[..]),
                (b"\x00\x07", b"\x00\x07\xff"),
                // No message at all; the server may still answer in kind.
                (b"x", b"y"),
                (b"", b""),
            ] {
                client.send(question).await.unwrap();
                let (got, from) = receive(server).await;
                assert!(got == question, "{} bytes became {}", question.len(), got.len());
                server.send_to(answer, from).await.unwrap();
                let (got, _) = receive(&client).await;
                assert!(got == answer, "{} bytes became {}", answer.len(), got.len());
            }
        }
        world.until("the end of all questions", |w| w.in_flight() == 0).await;
    });
}

#[test]
fn equal_ids_of_different_sockets_and_servers_do_not_mix() {
    run(|| async {
        let world = World::new();
        let (one, at_one) = world.server(1).await;
        let (two, at_two) = world.server(2).await;
        let mut clients = Vec::new();
        let mut ports = std::collections::HashSet::new();
        for i in 0..20_u8 {
            let client = client(if i % 2 == 0 { at_one } else { at_two }).await;
            client.send(&[9, 9, i]).await.unwrap();
            clients.push(client);
        }
        let mut asked = Vec::new();
        for i in 0..20 {
            let server = if i % 2 == 0 { &one } else { &two };
            let (question, from) = receive(server).await;
            assert!(ports.insert(from.port()), "two questions share the source port {}", from.port());
            asked.push((server, question, from));
        }
        for (server, question, from) in asked.into_iter().rev() {
            server.send_to(&[&question[..], b"!"].concat(), from).await.unwrap();
        }
        for (i, client) in (0..).zip(&clients) {
            assert_eq!(receive(client).await.0, [9, 9, i, b'!']);
        }
    });
}

#[test]
fn only_the_server_that_was_asked_can_answer_and_only_with_the_right_id() {
    run(|| async {
        let world = World::new();
        let (server, at) = world.server(1).await;
        let client = client(at).await;
        client.send(b"\x00\x01?").await.unwrap();
        let (_, agent) = receive(&server).await;
        let forger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        forger.send_to(b"\x00\x01forged", agent).await.unwrap();
        for wrong in [&b"\x00\x02wrong"[..], b"\x00", b""] {
            server.send_to(wrong, agent).await.unwrap();
        }
        world.until("wrong answers to be dropped", |w| w.dropped(Reason::WrongId) == 3).await;
        assert_eq!(world.in_flight(), 1, "it still waits");
        server.send_to(b"\x00\x01right", agent).await.unwrap();
        assert_eq!(receive(&client).await.0, b"\x00\x01right");
        world.until("the end", |w| w.in_flight() == 0).await;
    });
}

#[test]
fn a_server_that_is_not_there_refuses() {
    run(|| async {
        let world = World::new();
        let gone = StdSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let gone6 = StdSocket::bind("[::1]:0").unwrap().local_addr().unwrap();
        let at = SocketAddr::from(([127, 53, 0, 9], world.v4));
        world.stand(at, gone);
        world.stand(world.v6, gone6);
        for at in [at, world.v6] {
            let client = client(at).await;
            client.send(b"\x00\x01?").await.unwrap();
            assert_refused(&client).await;
        }
        assert_eq!(world.dropped(Reason::Refused), 2);
        world.until("the end", |w| w.in_flight() == 0).await;
    });
}

#[test]
fn what_stands_for_nobody_is_dropped() {
    run(|| async {
        let world = World::new();
        let client = client(SocketAddr::from(([127, 53, 0, 1], world.v4))).await;
        client.send(b"\x00\x01?").await.unwrap();
        world.until("the drop", |w| w.dropped(Reason::Unknown) == 1).await;
    });
}

#[test]
fn questions_are_bounded_and_end_after_a_while() {
    run(|| async {
        let world = World::new();
        let (silent, at) = world.server(1).await;
        let client = client(at).await;
        for i in 0..=MOST as u64 {
            client.send(&[0, 1]).await.unwrap();
            let seen = |w: &World| w.in_flight() as u64 + w.dropped(Reason::Overload);
            world.until("a question", |w| seen(w) == i + 1).await;
        }
        assert_eq!((world.in_flight(), world.dropped(Reason::Overload)), (MOST, 1));
        tokio::time::pause();
        tokio::time::advance(ANSWER_WAIT).await;
        world.until("the end of all", |w| w.in_flight() == 0).await;
        assert_eq!(world.dropped(Reason::Timeout), MOST as u64);
        tokio::time::resume();
        while silent.try_recv(&mut [0; 8]).is_ok() {}
        client.send(b"\x00\x02again").await.unwrap();
        let (_, agent) = loop {
            let got = receive(&silent).await;
            if got.0 == b"\x00\x02again" {
                break got;
            }
        };
        silent.send_to(b"\x00\x02yes", agent).await.unwrap();
        assert_eq!(receive(&client).await.0, b"\x00\x02yes");
    });
}

#[test]
fn a_drain_lets_questions_finish_and_takes_no_more() {
    run(|| async {
        let world = World::new();
        let (server, at) = world.server(1).await;
        let client = client(at).await;
        client.send(b"\x00\x01?").await.unwrap();
        let (_, agent) = receive(&server).await;
        let World { trigger, own, forwarder, ended, .. } = world;
        drop(own);
        let drained = tokio::spawn(trigger.drain(Duration::from_secs(20)));
        let mut watch = forwarder.shutdown.clone();
        watch.draining().await;
        server.send_to(b"\x00\x01yes", agent).await.unwrap();
        assert_eq!(receive(&client).await.0, b"\x00\x01yes");
        assert!(drained.await.unwrap(), "the drain waited for the question and no longer");
        // The socket is closed: a client that stays connected hears so at once.
        client.send(b"\x00\x02?").await.unwrap();
        assert_refused(&client).await;
        assert!(!ended.is_cancelled());
    });
}

#[test]
fn a_withdrawn_workload_leaves_nothing() {
    run(|| async {
        let world = World::new();
        let (server, at) = world.server(1).await;
        let client = client(at).await;
        client.send(b"\x00\x01?").await.unwrap();
        receive(&server).await;
        world.ended.cancel();
        world.until("the end", |w| w.in_flight() == 0 && w.dropped(Reason::Withdrawn) == 1).await;
        world.until("the end of the listeners", |w| Rc::strong_count(&w.forwarder) == 1).await;
    });
}

#[test]
fn metrics_tell_what_happened() {
    let counters = Counters::default();
    counters.query();
    counters.answer();
    for (reason, _) in Reason::ALL {
        counters.drop_for(reason);
        assert_eq!(counters.dropped(reason), 1);
    }
    let mut out = crate::telemetry::Text::default();
    counters.write(&mut out);
    let page = out.finish();
    for line in ["mesh_agent_dns_queries_total 1", "mesh_agent_dns_answers_total 1", "mesh_agent_dns_in_flight 0"] {
        assert!(page.contains(line), "{page}");
    }
    assert_eq!(page.matches("mesh_agent_dns_dropped_total{").count(), Reason::ALL.len());
}

proptest! {
    #[test]
    fn the_id_is_the_first_two_bytes(bytes: Vec<u8>) {
        match id(&bytes) {
            Some(found) => prop_assert_eq!(&found[..], &bytes[..2]),
            None => prop_assert!(bytes.len() < 2),
        }
    }
}
