//! sendmsg4 and sendmsg6, and UDP in connect: which datagrams the agent gets, and what the application sees of it. A few
//! lines stand in for the agent's forwarder.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use mesh_agent::net::datagram;
use mesh_agent::settings::Settings;
use mesh_agent::workload::Workload;
use mesh_common::abi::{self, Counter};
use mesh_common::dns::PLACES6;
use socket2::{Domain, Protocol, Socket, Type};

use super::support::*;

/// A server's answer as nobody else would give it.
fn answer(server: SocketAddr, question: &[u8]) -> Vec<u8> {
    format!("{server} answers {}", String::from_utf8_lossy(question)).into_bytes()
}

/// A UDP socket of an application, of the family of the address.
fn client(net: &Net, from: &str) -> UdpSocket {
    let socket = udp(net, Domain::for_address(at(from)));
    socket.bind(&at(from).into()).unwrap();
    socket.into()
}

fn udp(net: &Net, domain: Domain) -> Socket {
    let socket = net.pod.run(|| Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Takes one question as the agent does and answers it as the server would; which server.
fn serve(mesh: &Mesh) -> Option<SocketAddr> {
    let (listener, from, at, question) = take(mesh);
    let server = mesh.sockets.dns_server(&mesh.net.pod, at).unwrap()?;
    datagram::send(&mesh.listeners.dns[listener], at, from, &answer(server, &question)).unwrap();
    Some(server)
}

fn take(mesh: &Mesh) -> (usize, SocketAddr, SocketAddr, Vec<u8>) {
    let all: Vec<_> = mesh.listeners.dns.iter().collect();
    let which = readable(&all).expect("nothing came to the agent");
    let mut buffer = vec![0; datagram::MAX_DATAGRAM];
    let (n, from, at) = datagram::receive(all[which], all[which].local_addr().unwrap(), &mut buffer).unwrap();
    buffer.truncate(n);
    (which, from, at, buffer)
}

fn receive(client: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 1024];
    let (n, from) = client.recv_from(&mut buffer).unwrap();
    (String::from_utf8_lossy(&buffer[..n]).into_owned(), from)
}

fn expect(client: &UdpSocket, server: &str, question: &str) {
    let from = at(server);
    let canonical = SocketAddr::new(from.ip().to_canonical(), from.port());
    assert_eq!(receive(client), (format!("{canonical} answers {question}"), from));
}

const SERVERS: [(&str, &str); 4] = [
    ("192.0.2.53:53", "0.0.0.0:0"),
    ("10.77.0.1:53", "10.77.0.2:0"),
    ("[2001:db8::53]:53", "[::]:0"),
    ("[::ffff:192.0.2.53]:53", "[::]:0"),
];

#[test]
fn an_unconnected_socket_gets_its_answer_from_the_server_it_asked() {
    let mesh = Mesh::new();
    for (server, from) in SERVERS {
        let client = client(&mesh.net, from);
        client.send_to(b"who?", at(server)).unwrap();
        assert_eq!(serve(&mesh).map(|s| s.ip()), Some(ip_of_socket(server).to_canonical()));
        expect(&client, server, "who?");
    }
    assert_eq!(mesh.count(Counter::DnsCaptured), 4);
}

fn ip_of_socket(text: &str) -> std::net::IpAddr {
    at(text).ip()
}

#[test]
fn a_connected_socket_sees_the_server_and_itself_as_without_the_mesh() {
    let mesh = Mesh::new();
    for (server, from) in SERVERS {
        let client = client(&mesh.net, from);
        client.connect(at(server)).unwrap();
        let own = match at(server).ip() {
            std::net::IpAddr::V4(_) => POD4.to_owned(),
            std::net::IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => format!("::ffff:{POD4}"),
            std::net::IpAddr::V6(_) => POD6.to_owned(),
        };
        assert_eq!((client.peer_addr().unwrap(), client.local_addr().unwrap().ip()), (at(server), ip_of(&own)));
        for question in ["one", "two"] {
            client.send(question.as_bytes()).unwrap();
            serve(&mesh).unwrap();
            expect(&client, server, question);
        }
        // With the address said once more, and without asking for the sender's.
        client.send_to(b"three", at(server)).unwrap();
        serve(&mesh).unwrap();
        let n = client.recv(&mut [0; 512]).unwrap();
        assert!(n > 0);
        assert_eq!(client.peer_addr().unwrap(), at(server));
    }
}

#[test]
fn several_servers_on_one_socket_do_not_mix() {
    let mesh = Mesh::new();
    for (servers, from) in [
        (["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"], "0.0.0.0:0"),
        (["[2001:db8::1]:53", "[2001:db8::2]:53", "[::ffff:192.0.2.1]:53"], "[::]:0"),
    ] {
        let client = client(&mesh.net, from);
        for (i, server) in servers.iter().enumerate() {
            client.send_to(format!("q{i}").as_bytes(), at(server)).unwrap();
        }
        let questions: Vec<_> = servers.iter().map(|_| take(&mesh)).collect();
        // Answered in the opposite order, so that no order can help.
        for (listener, from, place, question) in questions.iter().rev() {
            let server = mesh.sockets.dns_server(&mesh.net.pod, *place).unwrap().unwrap();
            datagram::send(&mesh.listeners.dns[*listener], *place, *from, &answer(server, question)).unwrap();
        }
        let mut got: Vec<_> = servers.iter().map(|_| receive(&client)).collect();
        got.sort();
        let mut wanted: Vec<_> = servers
            .iter()
            .enumerate()
            .map(|(i, server)| {
                let canonical = SocketAddr::new(ip_of_socket(server).to_canonical(), 53);
                (format!("{canonical} answers q{i}"), at(server))
            })
            .collect();
        wanted.sort();
        assert_eq!(got, wanted);
    }
}

#[test]
fn a_socket_that_is_used_again_has_nothing_stale() {
    let mesh = Mesh::new();
    for (server, other, local, from) in [
        ("192.0.2.53:53", "192.0.2.54:53", "127.0.0.1", "127.0.0.1:0"),
        ("[2001:db8::53]:53", "[2001:db8::54]:53", "::1", "[::1]:0"),
    ] {
        let app = client(&mesh.net, from);
        let socket = udp(&mesh.net, Domain::for_address(at(from)));
        socket.bind(&at(from).into()).unwrap();
        socket.connect(&at(server).into()).unwrap();
        disconnect(&socket);
        let socket = UdpSocket::from(socket);
        assert_eq!(socket.peer_addr().unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
        assert_eq!(socket.local_addr().unwrap().ip(), ip_of(local), "its own address is what it bound to");
        socket.connect(at(server)).unwrap();
        socket.connect(at(other)).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), at(other));
        socket.send(b"hello").unwrap();
        assert_eq!(serve(&mesh), Some(at(other)));
        expect(&socket, other, "hello");
        // And to a neighbour on loopback, who is told as what it is.
        socket.connect(app.local_addr().unwrap()).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), app.local_addr().unwrap());
        assert_eq!(socket.local_addr().unwrap().ip(), ip_of(local));
        socket.send(b"neighbour").unwrap();
        let (said, from) = receive(&app);
        assert_eq!((said.as_str(), from), ("neighbour", socket.local_addr().unwrap()));
    }
}

#[test]
fn loopback_own_link_local_and_other_ports_are_left_alone() {
    let mesh = Mesh::new();
    for on in ["127.0.0.53:53", "10.77.0.2:53", "[::1]:53", "[fd77::2]:53"] {
        let server = mesh.net.pod.run(|| UdpSocket::bind(at(on))).unwrap().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let app = client(&mesh.net, if at(on).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" });
        app.send_to(b"hi", at(on)).unwrap();
        let (said, from) = receive(&server);
        assert_eq!(said, "hi");
        server.send_to(b"ho", from).unwrap();
        assert_eq!(receive(&app), ("ho".to_owned(), at(on)));
        app.connect(at(on)).unwrap();
        assert_eq!(app.peer_addr().unwrap(), at(on));
    }
    for on in ["10.77.0.1:5353", "[fd77::1]:5353"] {
        let server = mesh.net.wire.run(|| UdpSocket::bind(at(on))).unwrap().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let app = client(&mesh.net, if at(on).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" });
        app.send_to(b"hi", at(on)).unwrap();
        assert_eq!(receive(&server).0, "hi");
    }
    for to in ["169.254.20.10:53", "224.0.0.251:53"] {
        // Whatever the kernel says to it.
        let _ = client(&mesh.net, "0.0.0.0:0").send_to(b"hi", at(to));
    }
    assert_eq!(mesh.count(Counter::DnsCaptured), 0);
}

#[test]
fn a_listener_asked_by_hand_stands_for_nobody() {
    let mesh = Mesh::new();
    for (i, ip) in ["127.0.0.1", "::1"].into_iter().enumerate() {
        let port = mesh.listeners.dns[i].local_addr().unwrap().port();
        let app = client(&mesh.net, if i == 0 { "0.0.0.0:0" } else { "[::]:0" });
        app.send_to(b"hi", SocketAddr::new(ip_of(ip), port)).unwrap();
        assert_eq!(serve(&mesh), None);
    }
}

#[test]
fn two_namespaces_do_not_share_places() {
    let (mut kernel, _) = kernel();
    let nets: Vec<Net> = (0..2).map(|_| Net::new()).collect();
    let sockets = kernel.sockets();
    let listeners: Vec<_> = (1..).zip(&nets).map(|(id, net)| enrol(&mut kernel, id, net, 0)).collect();
    client(&nets[0], "0.0.0.0:0").send_to(b"who?", at("192.0.2.53:53")).unwrap();
    assert_eq!(readable(&[&listeners[1].dns[0], &listeners[0].dns[0]]), Some(1));
    let (_, _, place) = datagram::receive(&listeners[0].dns[0], at("0.0.0.0:15053"), &mut [0; 64]).unwrap();
    assert_eq!(sockets.dns_server(&nets[0].pod, place).unwrap(), Some(at("192.0.2.53:53")));
    assert_eq!(sockets.dns_server(&nets[1].pod, place).unwrap(), None);
    kernel.withdraw(1);
    assert_eq!(sockets.dns_server(&nets[0].pod, place).unwrap(), None, "places go with their workload");
}

#[test]
fn the_agents_sockets_ask_the_server_itself() {
    let mesh = Mesh::new();
    for on in ["10.77.0.1:53", "[fd77::1]:53"] {
        let server = mesh.net.wire.run(|| UdpSocket::bind(at(on))).unwrap().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = mesh.sockets.datagrams(&mesh.net.pod, at(on)).unwrap();
        socket.connect(&at(on).into()).unwrap();
        socket.send(b"hi").unwrap();
        assert_eq!(receive(&server).0, "hi");
    }
    assert_eq!(mesh.count(Counter::DnsCaptured), 0);
}

/// Binds a port that was the agent's. A program that another test is starting may hold it for a moment longer.
fn take_port(net: &Net, port: SocketAddr) -> UdpSocket {
    let begun = std::time::Instant::now();
    loop {
        match net.pod.run(|| UdpSocket::bind(port)).unwrap() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < PATIENCE => std::thread::yield_now(),
            bound => return bound.unwrap(),
        }
    }
}

/// A server on the wire that never answers, and what reaches it.
fn on_the_wire(net: &Net, on: &str) -> UdpSocket {
    let server = net.wire.run(|| UdpSocket::bind(at(on))).unwrap().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server
}

#[test]
fn without_the_agent_questions_go_straight_or_are_refused() {
    for (flags, open) in [(abi::LOSS_OPEN, true), (0, false)] {
        let net = Net::new();
        let (mut kernel, _) = kernel();
        let mut listeners = enrol(&mut kernel, ID, &net, flags);
        let ports: Vec<_> = listeners.dns.iter().map(|l| l.local_addr().unwrap()).collect();
        listeners.dns.clear();
        // Whoever takes the port now is not the agent.
        let _squatters: Vec<_> = ports.iter().map(|port| take_port(&net, *port)).collect();
        for on in ["10.77.0.1:53", "[fd77::1]:53"] {
            let server = on_the_wire(&net, on);
            let app = client(&net, if at(on).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" });
            let sent = app.send_to(b"straight", at(on));
            let connected = app.connect(at(on));
            if open {
                sent.unwrap();
                connected.unwrap();
                assert_eq!(receive(&server).0, "straight");
            } else {
                assert_eq!(sent.unwrap_err().raw_os_error(), Some(libc::EPERM));
                assert_eq!(connected.unwrap_err().raw_os_error(), Some(libc::EPERM));
            }
        }
        let counted =
            [Counter::DnsBypassed, Counter::DnsRefused, Counter::DnsCaptured].map(|c| kernel.counter(c).unwrap());
        assert_eq!(counted, if open { [4, 0, 0] } else { [0, 4, 0] });
    }
}

#[test]
fn a_socket_bound_to_a_device_is_told() {
    for (flags, open) in [(abi::LOSS_OPEN, true), (0, false)] {
        let net = Net::new();
        let (mut kernel, _) = kernel();
        let _listeners = enrol(&mut kernel, ID, &net, flags);
        let server = on_the_wire(&net, "10.77.0.1:53");
        let socket = udp(&net, Domain::IPV4);
        socket.bind_device(Some(b"eth0")).unwrap();
        let sent = socket.send_to(b"straight", &at("10.77.0.1:53").into());
        assert_eq!(sent.is_ok(), open);
        if open {
            assert_eq!(receive(&server).0, "straight");
        }
        let event = kernel.take_events().unwrap().next().unwrap();
        let reason = if open { Counter::DnsBypassed } else { Counter::DnsRefused };
        assert_eq!((event.reason, event.tuple.server), (reason as u32, at("10.77.0.1:53").into()));
    }
}

/// More servers than there are places.
#[test]
fn a_server_without_a_place_is_counted_and_does_as_without_the_agent() {
    for (flags, open) in [(abi::LOSS_OPEN, true), (0, false)] {
        let net = Net::new();
        let (mut kernel, _) = kernel();
        let listeners = enrol(&mut kernel, ID, &net, flags);
        let app = client(&net, "[::]:0");
        for i in 0..PLACES6 {
            app.send_to(b"hi", at(&format!("[2001:db8::{:x}]:53", i + 1))).unwrap();
        }
        assert_eq!(kernel.counter(Counter::DnsFull).unwrap(), 0);
        let server = on_the_wire(&net, "[fd77::1]:53");
        let sent = app.send_to(b"one more", at("[fd77::1]:53"));
        assert_eq!(sent.is_ok(), open);
        if open {
            assert_eq!(receive(&server).0, "one more");
        }
        // Those that have a place keep it.
        app.send_to(b"again", at("[2001:db8::1]:53")).unwrap();
        assert_eq!(kernel.counter(Counter::DnsFull).unwrap(), 1);
        assert_eq!(kernel.counter(Counter::DnsCaptured).unwrap(), u64::from(PLACES6) + 1);
        let mut came = 0;
        for listener in &listeners.dns[1..] {
            let mut buffer = [0; 64];
            while let Ok((_, _, place)) = datagram::receive(listener, listener.local_addr().unwrap(), &mut buffer) {
                assert!(kernel.sockets().dns_server(&net.pod, place).unwrap().is_some());
                came += 1;
            }
        }
        assert_eq!(came, PLACES6 + 1);
    }
}

/// Fills the map from several workloads, since one alone may not.
#[test]
fn a_full_map_is_counted_and_does_as_without_the_agent() {
    let net = Net::new();
    let (mut kernel, pins) = kernel();
    let _listeners = enrol(&mut kernel, ID, &net, abi::LOSS_OPEN);
    fill_places(&pins);
    let server = on_the_wire(&net, "10.77.0.1:53");
    client(&net, "0.0.0.0:0").send_to(b"straight", at("10.77.0.1:53")).unwrap();
    assert_eq!(receive(&server).0, "straight");
    assert_eq!(kernel.counter(Counter::DnsFull).unwrap(), 1);
    assert_eq!(kernel.counter(Counter::DnsBypassed).unwrap(), 1);
}

fn fill_places(pins: &std::path::Path) {
    let data = aya::maps::MapData::from_pin(map(pins, abi::maps::DNS)).unwrap();
    let places = aya::maps::Map::from_map_data(data).unwrap();
    let mut places = aya::maps::HashMap::<_, abi::DnsPlace, mesh_common::addr::Endpoint>::try_from(places).unwrap();
    for netns in 0..abi::MAX_DNS_PLACES {
        let at = at("127.53.0.1:15053").into();
        places.insert(abi::DnsPlace { netns: u64::MAX - u64::from(netns), at, zero: 0 }, at, 0).unwrap();
    }
}

/// A workload as the agent's settings describe it.
pub fn workload(net: &Net, setting: &str) -> Workload {
    let text = format!(
        "node: n\ncontrolPlane: {{address: 'http://10.0.0.1:15010'}}\n\
         workloads: [{{name: a, namespace: default, pid: 1, {setting}}}]\n"
    );
    let settings = Settings::parse(std::path::Path::new("agent.yaml"), &text).unwrap();
    let (cluster, addresses) = ("c".into(), net.pod.addresses().unwrap());
    Workload::new(ID, &settings.workloads[0], &cluster, "cluster.local", net.pod.clone(), addresses).unwrap()
}

#[test]
fn deny_and_dns_only_refuse_what_they_say() {
    for (setting, dns) in [("dns-only", true), ("deny", false)] {
        let net = Net::new();
        let (mut kernel, _) = kernel();
        let listeners = kernel.enrol(&workload(&net, &format!("udp: {setting}"))).unwrap();
        let mut refused = 0;
        for to in [
            "10.77.0.1:123",
            "[fd77::1]:443",
            "[::ffff:10.77.0.1]:123",
            "224.0.0.251:5353",
            "10.77.0.1:53",
            "[fd77::1]:53",
        ] {
            let allowed = dns && at(to).port() == 53;
            let app = client(&net, if at(to).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" });
            for result in [app.send_to(b"hi", at(to)).map(|_| ()), app.connect(at(to))] {
                match result {
                    Ok(()) => assert!(allowed, "{to}"),
                    Err(e) => {
                        assert!(!allowed && e.raw_os_error() == Some(libc::EPERM), "{to}: {e}");
                        refused += 1;
                    }
                }
            }
        }
        assert_eq!(kernel.counter(Counter::UdpDenied).unwrap(), refused);
        assert_eq!(kernel.counter(Counter::DnsCaptured).unwrap(), if dns { 4 } else { 0 });
        let asked = listeners.dns.iter().any(|l| datagram::receive(l, l.local_addr().unwrap(), &mut [0; 8]).is_ok());
        assert_eq!(asked, dns);
        // Loopback and its own addresses.
        for on in ["127.0.0.1:4000", "[::1]:4000", "10.77.0.2:4001", "[fd77::2]:4001"] {
            let neighbour = client(&net, on);
            client(&net, if at(on).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).send_to(b"hi", at(on)).unwrap();
            assert_eq!(receive(&neighbour).0, "hi");
        }
    }
}
