//! Two workloads of one node that connect to each other without the agent: who may, what nobody can pretend to, and how it
//! ends. The pods stand on a router of their own, as on a node; it also plays the attacker from elsewhere.

use std::collections::HashSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use aya::Pod as Plain;
use aya::maps::{HashMap, Map, MapData};
use mesh_agent::kernel::{Choices, DirectPlan, DirectWay, Listeners};
use mesh_agent::net::netns::NetNs;
use mesh_common::abi::{Allowance, Counter, Direct, MAX_DIRECT_SHARE, Service, Share, Slot, Stage, Tuple, Way, maps};
use mesh_common::addr::Endpoint;
use mesh_common::direct::{MAX_MISSED, key};
use socket2::{Domain, Protocol, Socket, Type};

use super::far::noted;
use super::packets::{ACK, SYN, TCP, packet_from, segment_at};
use super::support::*;

#[path = "direct/again.rs"]
mod again;
#[path = "direct/full.rs"]
mod full;
#[path = "direct/nat.rs"]
mod nat;
#[path = "direct/shortcut.rs"]
mod shortcut;

const CLIENT: u32 = 1;
const SERVER: u32 = 2;
/// Neither pod: the router.
const ELSEWHERE: &str = "10.78.2.1";

/// Between two looks at something that comes.
const MOMENT: Duration = Duration::from_millis(1);

/// Two enrolled pods, both STRICT, as nobody has said anything else of them.
pub struct Node {
    pub router: Arc<NetNs>,
    pub client: Arc<NetNs>,
    pub server: Arc<NetNs>,
    client_listeners: Listeners,
    server_listeners: Listeners,
    pub kernel: Owned,
    pins: PathBuf,
}

impl Node {
    fn new() -> Node {
        Node::with([0; 2])
    }

    /// With flags of the client's entry and of the server's.
    pub fn with([clients, servers]: [u32; 2]) -> Node {
        require();
        let (router, client, server) = (scratch(), scratch(), scratch());
        ip(&router, "link set lo up");
        let peer = format!("/proc/{}/fd/{}", std::process::id(), router.as_fd().as_raw());
        for (i, pod) in [(1, &client), (2, &server)] {
            ip(pod, &format!("link add eth0 type veth peer name pod{i} netns {peer}"));
            for (ns, interface, own) in [(pod, "eth0", 2), (&router, &*format!("pod{i}"), 1)] {
                ip(ns, "link set lo up");
                ip(ns, &format!("link set {interface} up"));
                ip(ns, &format!("addr add 10.78.{i}.{own}/24 dev {interface}"));
                ip(ns, &format!("addr add fd78:{i}::{own}/64 dev {interface} nodad"));
            }
            ip(pod, &format!("route add default via 10.78.{i}.1"));
            ip(pod, &format!("route add default via fd78:{i}::1"));
        }
        let forward = || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        };
        router.run(forward).unwrap().unwrap();
        let (mut kernel, pins) = kernel();
        let mut enrol = |id, ns: &Arc<NetNs>, flags| {
            let listeners = kernel.enrol_namespace(id, ns, &ns.addresses().unwrap(), flags).unwrap();
            listeners.outbound.iter().for_each(|listener| listener.set_nonblocking(false).unwrap());
            listeners
        };
        let (client_listeners, server_listeners) = (enrol(CLIENT, &client, clients), enrol(SERVER, &server, servers));
        Node { router, client, server, client_listeners, server_listeners, kernel, pins }
    }

    /// One that lets the client connect to these ports of the server.
    pub fn allowing(to: &[&str]) -> Node {
        let mut node = Node::new();
        node.allow(to);
        node
    }

    pub fn allow(&mut self, to: &[&str]) {
        self.set(to, &HashSet::new());
    }

    fn set(&mut self, to: &[&str], undecided: &HashSet<u32>) {
        let ways = to.iter().map(|to| way(to, false)).collect();
        self.kernel.set_direct(&DirectPlan { ways, ..DirectPlan::default() }, undecided).unwrap();
    }

    pub fn map<K: Plain, V: Plain>(&self, name: &str) -> HashMap<MapData, K, V> {
        Map::from_map_data(MapData::from_pin(map(&self.pins, name)).unwrap()).unwrap().try_into().unwrap()
    }

    fn records(&self) -> usize {
        self.map::<Tuple, Direct>(maps::DIRECT).keys().count()
    }

    /// There is one.
    fn the_record(&self) -> Direct {
        let all: Vec<_> = self.map::<Tuple, Direct>(maps::DIRECT).iter().map(|one| one.unwrap().1).collect();
        let [one] = all[..] else { panic!("{all:?}") };
        one
    }

    fn held(&self) -> i64 {
        self.map::<u64, Share>(maps::SHARES).get(&self.client.cookie(), 0).unwrap().direct
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.kernel.counter(counter).unwrap()
    }

    /// What is done is counted as this.
    fn counts(&self, counter: Counter, done: impl FnOnce()) {
        let before = self.count(counter);
        done();
        let end = Instant::now() + PATIENCE;
        while self.count(counter) == before && Instant::now() < end {
            std::thread::sleep(MOMENT);
        }
        assert!(self.count(counter) > before, "{counter:?}");
    }

    /// Connects, and sees that the application itself is at the other end.
    pub fn assert_direct(&self, app: &TcpListener, to: &str) -> (TcpStream, TcpStream) {
        let client = connect_in(&self.client, to).unwrap();
        self.assert_accepted(app, client)
    }

    fn assert_accepted(&self, app: &TcpListener, client: TcpStream) -> (TcpStream, TcpStream) {
        let (server, from) = accept(app);
        let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        assert_eq!(canonical(from), canonical(client.local_addr().unwrap()));
        assert_eq!(canonical(server.local_addr().unwrap()), canonical(client.peer_addr().unwrap()));
        assert_joined(&client, &server);
        self.assert_agent_knows_nothing();
        (client, server)
    }

    fn assert_agent_knows_nothing(&self) {
        let Listeners { outbound, .. } = &self.client_listeners;
        let Listeners { inbound, tunnel, .. } = &self.server_listeners;
        assert!(!outbound.iter().chain(inbound).chain(tunnel).any(is_waiting));
    }

    /// Connects, and sees that the client's agent is at the other end.
    fn assert_by_the_agent(&self, to: &str) {
        let _client = connect_in(&self.client, to).unwrap();
        accept(&self.client_listeners.outbound[usize::from(!at(to).is_ipv4())]);
    }

    pub fn app(&self, on: &str) -> TcpListener {
        listen_in(&self.server, on)
    }

    /// Until nothing of any connection is left.
    fn assert_forgotten(&self) {
        let end = Instant::now() + PATIENCE;
        let left = || (self.records(), self.held(), noted(&self.pins));
        while left() != (0, 0, 0) && Instant::now() < end {
            std::thread::sleep(MOMENT);
        }
        assert_eq!(left(), (0, 0, 0));
    }
}

fn way(to: &str, by_service: bool) -> DirectWay {
    DirectWay { client: CLIENT, to: at(to), server: SERVER, by_service }
}

/// The client knows this service, and may connect by itself to what it has in the server's pod.
pub fn service(to: &str, endpoints: &[&str]) -> DirectPlan {
    let here = endpoints.iter().filter(|one| one.contains("8080"));
    let ways = here.map(|to| way(to, true)).collect();
    let endpoints = endpoints.iter().map(|to| at(to)).collect();
    let mut services = Choices::default();
    services.insert(at(to), endpoints);
    DirectPlan { ways, services: [(CLIENT, services)].into() }
}

pub fn assert_reset(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let end = Instant::now() + PATIENCE;
    let error = loop {
        let error = stream.read(&mut [0]).unwrap_err();
        // Where there is a shortcut, a read that the reset wakes says so, and the next one what it was (docs/paths.md).
        if error.kind() != ErrorKind::WouldBlock || Instant::now() >= end {
            break error;
        }
    };
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted), "{error}");
}

#[test]
fn what_is_allowed_is_the_applications_own_connection_and_nothing_else_is() {
    let node = Node::allowing(&["10.78.2.2:8080", "[fd78:2::2]:8080"]);
    let app = node.app("[::]:8080");
    for to in ["10.78.2.2:8080", "[fd78:2::2]:8080", "[::ffff:10.78.2.2]:8080"] {
        let (client, server) = node.assert_direct(&app, to);
        assert_eq!((node.records(), node.held()), (1, 1), "{to}");
        drop((client, server));
        node.assert_forgotten();
    }
    assert_eq!(node.count(Counter::DirectOpened), 3);
    // Another port, another host, and the other way round.
    node.assert_by_the_agent("10.78.2.2:8081");
    node.assert_by_the_agent("10.78.2.1:8080");
    let _client = connect_in(&node.server, "10.78.1.2:8080").unwrap();
    accept(&node.server_listeners.outbound[0]);
    for counter in [Counter::DirectRevoked, Counter::DirectMissed, Counter::DirectFull, Counter::InboundForeign] {
        assert_eq!(node.count(counter), 0, "{counter:?}");
    }
}

/// Closed by either end first, closed without a word, refused, half closed: the record goes, and not before.
#[test]
fn a_record_lives_as_long_as_its_connection() {
    let node = Node::allowing(&["10.78.2.2:8080", "10.78.2.2:8081"]);
    let app = node.app("0.0.0.0:8080");
    for servers_first in [false, true] {
        let (client, server) = node.assert_direct(&app, "10.78.2.2:8080");
        let (mut first, mut second) = if servers_first { (server, client) } else { (client, server) };
        first.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
        second.write_all(b"still").unwrap();
        first.set_read_timeout(Some(PATIENCE)).unwrap();
        first.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(node.records(), 1);
        drop(second);
        assert_eq!(first.read(&mut [0]).unwrap(), 0);
        drop(first);
        node.assert_forgotten();
    }
    let (client, server) = node.assert_direct(&app, "10.78.2.2:8080");
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_reset(&server);
    node.assert_forgotten();
    let refused = connect_in(&node.client, "10.78.2.2:8081").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    node.assert_forgotten();
    node.assert_agent_knows_nothing();
    assert_eq!(node.count(Counter::DirectMissed), 0);
}

#[test]
fn a_tuple_that_is_used_again_makes_a_new_connection() {
    let node = Node::allowing(&["10.78.2.2:8080"]);
    let app = node.app("0.0.0.0:8080");
    let mut from = None;
    // The client closes first and keeps TIME_WAIT, then the server.
    for clients_first in [true, true, false, false, true] {
        let socket = socket_in(&node.client, "0.0.0.0:0");
        socket.set_reuse_address(true).unwrap();
        socket.bind(&from.unwrap_or(at("10.78.1.2:0")).into()).unwrap();
        from = socket.local_addr().unwrap().as_socket();
        let connected = socket.connect(&at("10.78.2.2:8080").into());
        if let Err(error) = connected {
            // Only this end keeps it that long.
            assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
            from = None;
            continue;
        }
        let (client, server) = node.assert_accepted(&app, socket.into());
        let (first, mut second) = if clients_first { (client, server) } else { (server, client) };
        drop(first);
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
        drop(second);
        node.assert_forgotten();
    }
}

#[test]
fn cookies_of_a_full_backlog_are_the_applications() {
    let node = Node::allowing(&["10.78.2.2:8080"]);
    node.server.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")).unwrap().unwrap();
    let app = node.app("0.0.0.0:8080");
    for _ in 0..3 {
        node.assert_direct(&app, "10.78.2.2:8080");
    }
    node.assert_forgotten();
}

#[test]
fn what_is_no_longer_allowed_ends_at_both_ends_and_comes_back_as_something_new() {
    let mut node = Node::allowing(&["10.78.2.2:8080", "10.78.2.2:8081"]);
    let (app, other) = (node.app("0.0.0.0:8080"), node.app("0.0.0.0:8081"));
    let (client, server) = node.assert_direct(&app, "10.78.2.2:8080");
    let (kept_client, kept_server) = node.assert_direct(&other, "10.78.2.2:8081");
    node.allow(&["10.78.2.2:8081"]);
    assert_reset(&client);
    assert_reset(&server);
    assert_joined(&kept_client, &kept_server);
    node.assert_by_the_agent("10.78.2.2:8080");
    node.allow(&["10.78.2.2:8080", "10.78.2.2:8081"]);
    node.assert_direct(&app, "10.78.2.2:8080");
    assert_joined(&kept_client, &kept_server);
}

/// Nothing passes any more, in either direction, before anybody has closed a socket; whatever is forbidden to others.
#[test]
fn the_next_packet_is_too_late() {
    for strict in [true, false] {
        let mut node = Node::allowing(&["10.78.2.2:8080"]);
        node.kernel.set_inbound_modes(SERVER, strict, &[]).unwrap();
        let app = node.app("0.0.0.0:8080");
        let (client, server) = node.assert_direct(&app, "10.78.2.2:8080");
        let mut allowed = node.map::<Way, Allowance>(maps::ALLOWED);
        let way = allowed.keys().next().unwrap().unwrap();
        let before = allowed.get(&way, 0).unwrap();
        allowed.remove(&way).unwrap();
        for (mut from, mut to) in [(&client, &server), (&server, &client)] {
            node.counts(Counter::DirectRevoked, || from.write_all(b"forbidden").unwrap());
            to.set_nonblocking(true).unwrap();
            assert_eq!(to.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
        }
        // What had left the client before is judged at the server once more.
        let ends = [client.local_addr().unwrap(), server.local_addr().unwrap()];
        node.counts(Counter::DirectRevoked, || raw_segment(&node.router, ends, [1, 1], ACK));
        // Allowed once more is not as if it had always been.
        allowed.insert(way, Allowance { generation: before.generation + 1, ..before }, 0).unwrap();
        node.counts(Counter::DirectRevoked, || {});
        assert_eq!((&server).read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!((&client).read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// Sends a segment past every socket.
fn raw_segment(ns: &NetNs, [from, to]: [SocketAddr; 2], numbers: [u32; 2], flags: u8) {
    let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
    let raw = ns.run(raw).unwrap().unwrap();
    let segment = segment_at(from, to, numbers, flags, b"");
    raw.send_to(&packet_from(from.ip(), to.ip(), TCP, [1, 0], &segment), &to.into()).unwrap();
}

/// Behind extension headers nobody would ask whether the connection is still allowed.
#[test]
fn what_cannot_be_judged_does_not_leave() {
    let node = Node::allowing(&["[fd78:2::2]:8080"]);
    let app = node.app("[::]:8080");
    let (client, server) = node.assert_direct(&app, "[fd78:2::2]:8080");
    // A header of destination options with nothing but padding (RFC 8200, 4.6).
    let options = |some: &[u8]| {
        const IPV6_DSTOPTS: libc::c_int = 59;
        let (fd, value) = (std::os::fd::AsRawFd::as_raw_fd(&client), some.as_ptr().cast());
        let size = libc::socklen_t::try_from(some.len()).unwrap();
        // SAFETY: the value is live and its size is given.
        let done = unsafe { libc::setsockopt(fd, libc::IPPROTO_IPV6, IPV6_DSTOPTS, value, size) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    };
    options(&[0, 0, 1, 4, 0, 0, 0, 0]);
    node.counts(Counter::EgressUnexplained, || (&client).write_all(b"hidden").unwrap());
    server.set_nonblocking(true).unwrap();
    assert_eq!((&server).read(&mut [0; 6]).unwrap_err().kind(), ErrorKind::WouldBlock);
    server.set_nonblocking(false).unwrap();
    options(&[]);
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut got = [0; 6];
    (&server).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hidden");
}

/// While it is not known what is allowed, what is open goes on and nothing new begins.
#[test]
fn what_is_not_known_ends_nothing_and_begins_nothing() {
    let mut node = Node::allowing(&["10.78.2.2:8080"]);
    let app = node.app("0.0.0.0:8080");
    let (client, server) = node.assert_direct(&app, "10.78.2.2:8080");
    for undecided in [CLIENT, SERVER] {
        node.set(&[], &HashSet::from([undecided]));
        assert_joined(&client, &server);
        node.assert_by_the_agent("10.78.2.2:8080");
    }
    node.allow(&["10.78.2.2:8080"]);
    assert_joined(&client, &server);
    node.assert_direct(&app, "10.78.2.2:8080");
    node.allow(&[]);
    assert_reset(&client);
}

#[test]
fn without_the_agent_nothing_new_goes_directly() {
    let mut node = Node::allowing(&["10.78.2.2:8080"]);
    let app = node.app("0.0.0.0:8080");
    let (client, server) = node.assert_direct(&app, "10.78.2.2:8080");
    for listener in node.client_listeners.outbound.drain(..) {
        socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both).unwrap();
    }
    assert_eq!(connect_in(&node.client, "10.78.2.2:8080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_joined(&client, &server);
}

#[test]
fn a_client_with_too_many_goes_by_the_agent() {
    let node = Node::allowing(&["10.78.2.2:8080"]);
    let app = node.app("0.0.0.0:8080");
    let mut shares = node.map::<u64, Share>(maps::SHARES);
    let cookie = node.client.cookie();
    shares.insert(cookie, Share { direct: MAX_DIRECT_SHARE, ..Share::default() }, 0).unwrap();
    node.assert_by_the_agent("10.78.2.2:8080");
    shares.insert(cookie, Share { direct: MAX_DIRECT_SHARE - 1, ..Share::default() }, 0).unwrap();
    node.assert_direct(&app, "10.78.2.2:8080");
}

/// Whoever else has the address: the handshake is all that he gets, and soon not even that.
#[test]
fn nothing_is_said_to_who_is_not_the_server() {
    let to = format!("{ELSEWHERE}:8080");
    let node = Node::allowing(&[&to]);
    let stranger = listen_in(&node.router, &to);
    while node.count(Counter::DirectMissed) < u64::from(MAX_MISSED) {
        let mut client = connect_in(&node.client, &to).unwrap();
        node.counts(Counter::DirectMissed, || client.write_all(b"secret").unwrap());
        assert!(!is_waiting(&stranger));
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
    }
    node.assert_by_the_agent(&to);
    node.assert_forgotten();
}

/// From another host, by a raw socket, with another number, onto a connection that is there: none opens one.
#[test]
fn nobody_else_opens_one() {
    let node = Node::allowing(&["10.78.2.2:8080"]);
    let app = node.app("0.0.0.0:8080");
    let to = at("10.78.2.2:8080");
    let syn = |ns: &NetNs, port: u16, number: u32| {
        let from = SocketAddr::new(ip_of("10.78.1.2"), port);
        raw_segment(ns, [from, to], [number, 0], SYN);
    };
    node.counts(Counter::InboundAssigned, || syn(&node.router, 40_000, 1));
    node.counts(Counter::EgressUnexplained, || syn(&node.client, 40_000, 1));
    assert_eq!(node.records(), 0);

    let (client, server) = node.assert_direct(&app, "10.78.2.2:8080");
    syn(&node.router, client.local_addr().unwrap().port(), 1);
    assert_joined(&client, &server);

    // As if the client's own SYN were on its way.
    let allowance = node.map::<Way, Allowance>(maps::ALLOWED).iter().next().unwrap().unwrap().1;
    let Allowance { server: cookie, generation, .. } = allowance;
    let (client, to_nowhere) = (node.client.cookie(), Endpoint::ZERO);
    let sent =
        Direct { client, server: cookie, generation, sequence: 5000, stage: 0, to: to_nowhere, received: 0, link: 0 };
    let tuple = key(&at("10.78.1.2:40001").into(), &to.into());
    let mut records = node.map::<Tuple, Direct>(maps::DIRECT);
    records.insert(tuple, sent, 0).unwrap();
    node.counts(Counter::InboundAssigned, || syn(&node.router, 40_001, 4999));
    assert_eq!(records.get(&tuple, 0).unwrap().stage, Stage::Sent as u32, "another number came in by the record");
    records.insert(tuple, Direct { server: cookie + 1, ..sent }, 0).unwrap();
    node.counts(Counter::InboundAssigned, || syn(&node.router, 40_001, 5000));
    records.insert(tuple, Direct { generation: generation + 1, ..sent }, 0).unwrap();
    node.counts(Counter::DirectRevoked, || syn(&node.router, 40_001, 5000));
    assert_eq!(records.get(&tuple, 0).unwrap().stage, Stage::Sent as u32);
    // And now it is.
    records.insert(tuple, sent, 0).unwrap();
    syn(&node.router, 40_001, 5000);
    let end = Instant::now() + PATIENCE;
    while records.get(&tuple, 0).unwrap().stage == Stage::Sent as u32 && Instant::now() < end {
        std::thread::sleep(MOMENT);
    }
    assert_eq!(records.get(&tuple, 0).unwrap().stage, Stage::Arrived as u32);
    node.assert_agent_knows_nothing();
    assert!(!is_waiting(&app));
}

/// The service's address is what the application sees; the endpoint is drawn once, by whoever goes there.
#[test]
fn a_service_leads_to_the_endpoint_that_was_drawn() {
    let mut node = Node::new();
    let app = node.app("[::]:8080");
    for (to, own, elsewhere, place) in [
        ("10.96.0.10:80", "10.78.2.2:8080", "192.0.2.1:80", 0),
        ("[fd96::10]:80", "[fd78:2::2]:8080", "[fd00::1]:80", 1),
    ] {
        let endpoints = [own, elsewhere, elsewhere];
        node.kernel.set_direct(&service(to, &endpoints), &HashSet::new()).unwrap();
        let (mut directly, mut by_the_agent) = (0, 0);
        for _ in 0..120 {
            let client = connect_in(&node.client, to).unwrap();
            assert_eq!(client.peer_addr().unwrap(), at(to), "what the application asked for");
            let listeners = [&app, &node.client_listeners.outbound[place]];
            if first_waiting(listeners) == 0 {
                let (server, from) = accept(&app);
                assert_eq!(from.port(), client.local_addr().unwrap().port());
                assert_joined(&client, &server);
                directly += 1;
            } else {
                let (agent, _) = accept(listeners[1]);
                let redirected = node.kernel.sockets().redirected(agent.as_fd()).unwrap().unwrap();
                assert_eq!((redirected.to, redirected.chosen), (at(to), Some(at(elsewhere))));
                by_the_agent += 1;
            }
        }
        // A third and two thirds: far outside of what chance does to 120 draws.
        assert!((15..=70).contains(&directly), "{directly} of 120 directly, {by_the_agent} by the agent");
        // The endpoint itself is nothing that the client may dial.
        node.assert_by_the_agent(own);
    }
    node.assert_forgotten();
}

/// Somebody connects and connects; whoever begins after a list has changed is led to nothing that has left it.
#[test]
fn a_changing_service_leads_to_nothing_that_has_left_it() {
    const AGENT: u8 = 2;
    let mut node = Node::new();
    let to = "10.96.0.10:80";
    let apps = [node.app("10.78.2.2:8080"), node.app("10.78.2.2:18080")];
    // Both may be gone to all the time; open connections are not what changes.
    let both = ["10.78.2.2:8080", "10.78.2.2:18080"];
    let ways = service(to, &both).ways;
    let plans = both.map(|one| DirectPlan { ways: ways.clone(), ..service(to, &[one]) });
    node.kernel.set_direct(&plans[0], &HashSet::new()).unwrap();
    let (epoch, judged) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (stop, gone) = (AtomicBool::new(false), AtomicBool::new(false));
    let client = node.client.clone();
    let connects = || {
        while !stop.load(Relaxed) {
            let before = epoch.load(SeqCst);
            let mut stream = connect_in(&client, to).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut said = [0];
            stream.read_exact(&mut said).unwrap();
            // Who comes just when the list changes may be left to the agent.
            if before.is_multiple_of(2) && epoch.load(SeqCst) == before && said != [AGENT] {
                assert_eq!(usize::from(said[0]), before / 2 % 2, "round {}", before / 2);
                judged.fetch_add(1, Relaxed);
            }
        }
    };
    let serve = |app: &TcpListener, name: u8| {
        app.set_nonblocking(true).unwrap();
        while !gone.load(Relaxed) {
            match app.accept() {
                Ok((mut stream, _)) => stream.write_all(&[name]).unwrap(),
                Err(_) => std::thread::sleep(MOMENT / 10),
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&apps[0], 0));
        scope.spawn(|| serve(&apps[1], 1));
        scope.spawn(|| serve(&node.client_listeners.outbound[0], AGENT));
        let connecting = scope.spawn(connects);
        let kernel = &mut node.kernel;
        // A machine that is emulated, and has other work, does a hundred rounds in a tenth of that.
        let end = Instant::now() + 10 * PATIENCE;
        for round in 1.. {
            // Odd while it changes.
            epoch.fetch_add(1, SeqCst);
            kernel.set_direct(&plans[round % 2], &HashSet::new()).unwrap();
            epoch.fetch_add(1, SeqCst);
            std::thread::sleep(MOMENT * 5);
            let enough = round >= 200 && judged.load(Relaxed) >= 200;
            if enough || connecting.is_finished() || Instant::now() > end {
                break;
            }
        }
        stop.store(true, Relaxed);
        let connected = connecting.join();
        gone.store(true, Relaxed);
        connected.unwrap();
        assert!(judged.load(Relaxed) >= 200, "{judged:?}");
    });
    node.client_listeners.outbound[0].set_nonblocking(false).unwrap();
    let (directly, all) = (node.count(Counter::DirectOpened), node.count(Counter::OutboundCaptured));
    assert!(directly > all, "{directly} directly, {all} by the agent");
    assert_eq!(node.map::<Slot, Endpoint>(maps::SLOTS).keys().count(), 1, "lists that nobody names are gone");
    node.allow(&[]);
    assert_eq!(node.map::<Slot, Endpoint>(maps::SLOTS).keys().count(), 0);
    assert_eq!(node.map::<Way, Service>(maps::SERVICES).keys().count(), 0);
    node.assert_by_the_agent(to);
}

/// When the mesh ends, what is open goes on by itself; when one of the two workloads does, it ends.
#[test]
fn the_end_of_the_mesh_is_not_the_connections() {
    let mut node = Node::allowing(&["10.78.2.2:8080"]);
    let app = node.app("0.0.0.0:8080");
    let (client, server) = node.assert_direct(&app, "10.78.2.2:8080");
    node.kernel.release_direct();
    assert_joined(&client, &server);
    node.kernel.withdraw(CLIENT);
    node.kernel.withdraw(SERVER);
    assert_joined(&client, &server);

    for gone in [CLIENT, SERVER] {
        let mut node = Node::allowing(&["10.78.2.2:8080"]);
        let app = node.app("0.0.0.0:8080");
        let (client, server) = node.assert_direct(&app, "10.78.2.2:8080");
        node.kernel.withdraw(gone);
        assert_reset(&client);
        assert_reset(&server);
        assert_eq!(node.records(), 0);
        assert_eq!(node.map::<Way, Allowance>(maps::ALLOWED).keys().count(), 0);
    }
}
