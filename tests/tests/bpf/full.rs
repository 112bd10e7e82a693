//! Every map filled: what is denied stays denied, what happened is counted or said, and nothing passes in silence. FLOW
//! and DNS have theirs in `sock_ops` and `sendmsg`, AGENTS in `lifecycle`, those of the host's workloads in `host`.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, SockHash};
use mesh_common::abi::{self, Asked, Counter, Far, LOSS_OPEN, OutboundKey, PortKey, Share, Tuple, maps};
use mesh_common::addr::{Addr, Endpoint};

use super::support::*;

/// A pinned map, beside the agent's own handle of it.
pub fn open<K: Pod, V: Pod>(pins: &std::path::Path, name: &str) -> HashMap<MapData, K, V> {
    Map::from_map_data(MapData::from_pin(map(pins, name)).unwrap()).unwrap().try_into().unwrap()
}

/// Puts entries of nobody into a map until it takes no more.
pub fn fill<K: Pod, V: Pod>(mut map: HashMap<MapData, K, V>, key: impl Fn(u32) -> K, value: V) {
    for i in 0.. {
        if let Err(error) = map.insert(key(i), value, 0) {
            assert_ne!(i, 0, "{error}");
            return;
        }
    }
}

/// Cookies that no namespace has.
pub fn nobody(i: u32) -> u64 {
    u64::MAX - u64::from(i)
}

fn tuple(i: u32) -> Tuple {
    let end = |port| Endpoint { addr: Addr::ZERO, port };
    Tuple { netns: nobody(i), client: end(i), server: end(0) }
}

fn port(i: u32) -> PortKey {
    PortKey { netns: nobody(0), port: i, zero: 0 }
}

/// The pod is as if nobody had tried: its connections go where they want, and nothing is attached or noted.
#[test]
fn no_place_for_a_workload() {
    for name in [maps::WORKLOADS, maps::SHARES] {
        let net = Net::new();
        let (mut kernel, pins) = kernel();
        match name {
            maps::WORKLOADS => {
                // SAFETY: made of integers only.
                let workload: abi::Workload = unsafe { std::mem::zeroed() };
                fill(open::<u64, abi::Workload>(&pins, name), nobody, workload);
            }
            _ => fill(open::<u64, Share>(&pins, name), nobody, Share::default()),
        }
        let error = kernel.enrol_namespace(ID, &net.pod, &net.pod.addresses().unwrap(), 0).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("full") && error.contains("fewer"), "{error}");
        assert_released(&net);
        assert!(open::<u64, abi::Workload>(&pins, maps::WORKLOADS).get(&net.pod.cookie(), 0).is_err());
        assert!(open::<u64, Share>(&pins, maps::SHARES).get(&net.pod.cookie(), 0).is_err());
        assert_eq!(std::fs::read_dir(map(&pins, "pods")).unwrap().count(), 0);
        // Once there is a place, it is enrolled like any other.
        match name {
            maps::WORKLOADS => open::<u64, abi::Workload>(&pins, name).remove(&nobody(0)).unwrap(),
            _ => open::<u64, Share>(&pins, name).remove(&nobody(0)).unwrap(),
        }
        let listeners = enrol(&mut kernel, ID, &net, 0);
        let _client = connect_in(&net.pod, "192.0.2.80:80").unwrap();
        accept(&listeners.outbound[0]);
    }
}

/// As above. The map of listeners takes sockets only: what fills it is some, over and over.
#[test]
fn no_place_for_a_listener() {
    let net = Net::new();
    let (mut kernel, pins) = kernel();
    let mut places: SockHash<MapData, OutboundKey> =
        Map::from_map_data(MapData::from_pin(map(&pins, maps::OUTBOUND)).unwrap()).unwrap().try_into().unwrap();
    let place = |i| OutboundKey { netns: nobody(i), port: 0, v4: 1 };
    // A socket that is in the map too often is slow to take out again.
    let somebody: Vec<TcpListener> = (0..256).map(|_| listen_in(&net.wire, "127.0.0.1:0")).collect();
    let full =
        (0..).zip(somebody.iter().cycle()).find(|(i, one)| places.insert(place(*i), one.as_raw_fd(), 0).is_err());
    assert!(full.is_some_and(|(i, _)| i == abi::MAX_OUTBOUND));
    let error = kernel.enrol_namespace(ID, &net.pod, &net.pod.addresses().unwrap(), 0).unwrap_err().to_string();
    assert!(error.contains("OUTBOUND") && error.contains("full") && error.contains("fewer"), "{error}");
    assert_released(&net);
    // With one place for two families it is not enrolled either.
    places.remove(&place(0)).unwrap();
    kernel.enrol_namespace(ID, &net.pod, &net.pod.addresses().unwrap(), 0).unwrap_err();
    assert_released(&net);
    places.remove(&place(1)).unwrap();
    let listeners = enrol(&mut kernel, ID, &net, 0);
    for (to, listener) in ["192.0.2.80:80", "[fd99::80]:80"].iter().zip(&listeners.outbound) {
        let _client = connect_in(&net.pod, to).unwrap();
        accept(listener);
    }
}

/// A port whose mode finds no place is STRICT, and so is its workload.
#[test]
fn no_place_for_a_ports_mode() {
    for (strict, exception) in [(false, (8081, true)), (true, (8080, false))] {
        let mut mesh = Mesh::of(Net::new(), LOSS_OPEN);
        fill(open::<PortKey, u32>(&mesh.pins, maps::PORT_MODES), port, 1);
        let error = mesh.kernel.set_inbound_modes(ID, strict, &[exception]).unwrap_err().to_string();
        assert!(error.contains("PORT_MODES") && error.contains("full"), "{error}");
        // Without the agent the kernel judges by itself: nothing STRICT is open.
        mesh.lose_the_agent();
        for on in ["10.77.0.2:8080", "10.77.0.2:8081"] {
            let app = listen_in(&mesh.net.pod, on);
            let client = socket_in(&mesh.net.wire, on);
            client.connect_timeout(&at(on).into(), std::time::Duration::from_millis(200)).unwrap_err();
            assert!(!is_waiting(&app), "{on} {strict}");
        }
        assert_ne!(mesh.count(Counter::InboundRefused), 0);
    }
}

#[test]
fn no_place_for_probes() {
    let mut mesh = Mesh::new();
    mesh.kernel.set_node_addresses(&[ip_of(WIRE4)]).unwrap();
    mesh.kernel.set_probed(ID, &[8080]).unwrap();
    fill(open::<PortKey, u32>(&mesh.pins, maps::PROBED), port, 1);
    let error = mesh.kernel.set_probed(ID, &[8080, 8081]).unwrap_err().to_string();
    assert!(error.contains("PROBED") && error.contains("full"), "{error}");
    // What had a place keeps it: no application, no answer.
    let to = at("10.77.0.2:8080");
    let client = socket_in(&mesh.net.wire, WIRE4_ANY);
    client.connect_timeout(&to.into(), std::time::Duration::from_millis(200)).unwrap_err();
    assert_ne!(mesh.count(Counter::ProbeUnanswered), 0);
    let many: Vec<IpAddr> = (0..=abi::MAX_NODE_ADDRESSES).map(|i| Ipv4Addr::from(0x0a00_0000 + i).into()).collect();
    let error = mesh.kernel.set_node_addresses(&many).unwrap_err().to_string();
    assert!(error.contains("NODE") && error.contains("full"), "{error}");
}

const WIRE4_ANY: &str = "10.77.0.1:0";

/// Connections from before the enrolment that nobody could note are cut off.
#[test]
fn no_place_for_an_old_connection() {
    let net = Net::new();
    let there = listen_in(&net.wire, "10.77.0.1:8080");
    let mut client = connect_in(&net.pod, "10.77.0.1:8080").unwrap();
    let (mut server, _) = accept(&there);
    assert_joined(&client, &server);
    let (mut kernel, pins) = kernel();
    fill(open::<Tuple, u32>(&pins, maps::KEPT), tuple, abi::KEPT_OUTBOUND);
    let _listeners = enrol(&mut kernel, ID, &net, 0);
    client.write_all(b"unknown").unwrap();
    let end = std::time::Instant::now() + PATIENCE;
    while kernel.counter(Counter::EgressUnexplained).unwrap() == 0 {
        assert!(std::time::Instant::now() < end, "nobody stops it");
        std::thread::yield_now();
    }
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.read(&mut [0; 7]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

fn dial_app(mesh: &Mesh, to: &str) -> TcpStream {
    let socket = mesh.sockets.socket_to_app(&mesh.net.pod, at(to), at("203.0.113.9:4711")).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.connect(&at(to).into()).unwrap();
    socket.into()
}

/// The agent learns that the application would not see its client, and does not let it speak.
#[test]
fn no_place_for_a_client() {
    let mesh = Mesh::new();
    let _app = listen_in(&mesh.net.pod, "10.77.0.2:8080");
    assert!(mesh.sockets.shows_client(dial_app(&mesh, "10.77.0.2:8080").as_fd()).unwrap());
    fill(open::<Tuple, Endpoint>(&mesh.pins, maps::PEER), tuple, Endpoint::ZERO);
    assert!(!mesh.sockets.shows_client(dial_app(&mesh, "10.77.0.2:8080").as_fd()).unwrap());
    assert_eq!(mesh.count(Counter::PeerFull), 1);
}

/// One pod takes as many places as it can get; another one does not notice.
#[test]
fn one_pod_cannot_take_all_places() {
    let nets = [Net::new(), Net::new()];
    let (mut kernel, pins) = kernel();
    let listeners: Vec<_> = (1..).zip(&nets).map(|(id, net)| enrol(&mut kernel, id, net, 0)).collect();
    // The agent accepts nothing of this pod's.
    socket2::SockRef::from(&listeners[0].outbound[0]).listen(0).unwrap();
    let mut greedy = Vec::new();
    while kernel.counter(Counter::FlowFull).unwrap() == 0 {
        let socket = socket_in(&nets[0].pod, "192.0.2.80:80");
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&at("192.0.2.80:80").into());
        greedy.push(socket);
        assert!(greedy.len() < abi::MAX_FLOWS as usize, "nothing stops it");
    }
    let share = |net: &Net| open::<u64, Share>(&pins, maps::SHARES).get(&net.pod.cookie(), 0).unwrap();
    assert_eq!(share(&nets[0]).flows, abi::MAX_SHARE);
    assert_eq!(kernel.in_flight().unwrap().0, usize::try_from(abi::MAX_SHARE).unwrap());
    let sockets = kernel.sockets();
    let connects = |i: usize| {
        let client = connect_in(&nets[i].pod, "192.0.2.80:80").unwrap();
        let server = loop {
            let (server, from) = accept(&listeners[i].outbound[0]);
            if from.port() == client.local_addr().unwrap().port() {
                break server;
            }
        };
        assert_eq!(sockets.original_destination(server.as_fd()).unwrap(), Some(at("192.0.2.80:80")), "pod {i}");
    };
    connects(1);
    // Who gives his places back may have them again.
    drop(greedy);
    let end = std::time::Instant::now() + PATIENCE;
    while share(&nets[0]) != Share::default() {
        assert!(std::time::Instant::now() < end, "{:?} are never given back", share(&nets[0]));
        std::thread::yield_now();
    }
    socket2::SockRef::from(&listeners[0].outbound[0]).listen(64).unwrap();
    connects(0);
    assert_eq!(share(&nets[1]), Share::default());
}

/// Nobody reads the events: they are lost and counted, and nothing else changes.
#[test]
fn no_place_for_events() {
    const TRIES: u64 = 5000;
    let mut mesh = Mesh::of(Net::new(), abi::UDP_DENY);
    let socket = mesh.net.pod.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    for _ in 0..TRIES {
        assert_eq!(socket.send_to(b"no", "10.77.0.1:9").unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
    assert_eq!(mesh.count(Counter::UdpDenied), TRIES);
    let lost = mesh.count(Counter::EventLost);
    let told = mesh.kernel.take_events().unwrap().filter(|e| e.reason == Counter::UdpDenied as u32).count() as u64;
    assert!(lost > 0 && told > 0);
    assert_eq!(lost + told, TRIES, "each is told or counted as lost");
}

/// Gives all places of ASKED to somebody.
fn take_all(pins: &std::path::Path, cookie: u64) {
    let far = Far { to: Endpoint::ZERO, chosen: Endpoint::ZERO };
    let mut asked = asked(pins);
    (0..abi::MAX_ASKED).for_each(|i| asked.set(i, Asked { cookie, far, sent: 0, zero: 0 }, 0).unwrap());
}

/// Sockets keep their destinations themselves, and nobody sees a difference.
#[test]
fn no_place_for_a_destination() {
    let mesh = Mesh::new();
    take_all(&mesh.pins, nobody(0));
    for to in ["10.77.0.1:8080", "[fd77::1]:8080"] {
        let client = mesh.connect(to).unwrap();
        let (server, origin) = mesh.accept_outbound(at(to).is_ipv4());
        assert_eq!(origin, Some(at(to)));
        assert_eq!(client.peer_addr().unwrap(), at(to));
        assert!(!client.local_addr().unwrap().ip().is_loopback());
        assert_joined(&client, &server);
        // One that nobody accepts leaves nothing.
        drop((client, server));
        let client = socket_in(&mesh.net.pod, to);
        client.set_nonblocking(true).unwrap();
        drop(client.connect(&at(to).into()));
        drop(client);
        mesh.assert_nothing_in_flight();
        mesh.accept_outbound(at(to).is_ipv4());
    }
    // A socket that is used again tells only its last destination, wherever that is noted.
    let socket = socket_in(&mesh.net.pod, "10.77.0.1:8080");
    for (to, full) in
        [("10.77.0.1:8080", true), ("10.77.0.1:8081", false), ("10.77.0.1:8082", true), ("10.77.0.1:8083", false)]
    {
        let cookie = if full { nobody(0) } else { 0 };
        take_all(&mesh.pins, cookie);
        socket.connect(&at(to).into()).unwrap();
        assert_eq!(mesh.accept_outbound(true).1, Some(at(to)));
        assert_eq!(socket.peer_addr().unwrap().as_socket().unwrap(), at(to));
        disconnect(&socket);
        assert!(asked(&mesh.pins).iter().all(|place| place.unwrap().cookie == cookie), "{to}: something is left");
    }
}

/// A socket whose storage can hold no word does not go where it wants. Socket storages have no other bound than the
/// memory that a socket may have for its options.
#[test]
fn no_place_on_a_socket() {
    let mesh = Mesh::new();
    take_all(&mesh.pins, nobody(0));
    let there = listen_in(&mesh.net.wire, "10.77.0.1:8080");
    let file = "/proc/sys/net/core/optmem_max";
    let Ok(before) = mesh.net.pod.run(|| std::fs::read_to_string(file)).unwrap() else {
        eprintln!("not tried: before Linux 6.8 one setting rules the whole machine, and it is left alone");
        return;
    };
    let set = |value: &str| mesh.net.pod.run(|| std::fs::write(file, value)).unwrap().unwrap();
    set("0");
    assert_eq!(mesh.connect("10.77.0.1:8080").unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert_eq!(mesh.count(Counter::StorageFailed), 1);
    assert!(!is_waiting(&there));
    set(before.trim());
    let _client = mesh.connect("10.77.0.1:8080").unwrap();
    assert_eq!(mesh.accept_outbound(true).1, Some(at("10.77.0.1:8080")));
}
