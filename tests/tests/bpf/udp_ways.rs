//! Every way to send a datagram meets the hooks, and nobody takes the agent's place: what a program tries without any
//! privilege.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use mesh_agent::net::datagram;
use mesh_common::abi::{self, Counter};
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

use super::packets::Wire;
use super::support::*;
use super::uring::{self, Ask};

/// How a program sends; the text is what it sends.
type Way = fn(&UdpSocket, SocketAddr, &str) -> io::Result<()>;

const WAYS: [(&str, Way); 9] = [
    ("sendto", |socket, to, text| socket.send_to(text.as_bytes(), to).map(|_| ())),
    ("connect and send", |socket, to, text| {
        socket.connect(to)?;
        socket.send(text.as_bytes()).map(|_| ())
    }),
    ("connected to loopback, but sent elsewhere", |socket, to, text| {
        socket.connect(loopback(to))?;
        socket.send_to(text.as_bytes(), to).map(|_| ())
    }),
    ("sendmsg", |socket, to, text| message(socket, to, text, &[], MsgFlags::empty())),
    ("sendmsg, cut into several by the kernel", |socket, to, text| {
        message(socket, to, text, &[ControlMessage::UdpGsoSegments(&200)], MsgFlags::empty())
    }),
    ("sendmsg without a copy", |socket, to, text| {
        let on: i32 = 1;
        // SAFETY: the value is live and its size is given.
        let done = unsafe {
            let (value, size) = ((&raw const on).cast(), size_of::<i32>() as u32);
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, value, size)
        };
        assert_eq!(done, 0);
        message(socket, to, text, &[], MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY))
    }),
    ("sendmmsg, the first to loopback", |socket, to, text| {
        let parts = [[io::IoSlice::new(b"neighbour")], [io::IoSlice::new(text.as_bytes())]];
        let to = [Some(SockaddrStorage::from(loopback(to))), Some(SockaddrStorage::from(to))];
        let mut headers = MultiHeaders::preallocate(2, None);
        let sent = sendmmsg(socket.as_raw_fd(), &mut headers, &parts, to, [], MsgFlags::empty())?.count();
        // The error is told by the next call.
        if sent == 2 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
    }),
    ("begun toward loopback, ended elsewhere", |socket, to, text| {
        message(socket, loopback(to), "neighbour", &[], MsgFlags::from_bits_retain(libc::MSG_MORE))?;
        // The kernel keeps the first destination.
        socket.send_to(text.as_bytes(), to).map(|_| ())
    }),
    ("io_uring", |socket, to, text| uring(socket, to, text)),
];
/// The way whose datagram goes to loopback in any case.
const STAYS: &str = "begun toward loopback, ended elsewhere";

fn loopback(like: SocketAddr) -> SocketAddr {
    let mapped = "::ffff:127.0.0.1";
    match like {
        SocketAddr::V4(_) => at("127.0.0.1:9"),
        SocketAddr::V6(to) if to.ip().to_ipv4_mapped().is_some() => at(&format!("[{mapped}]:9")),
        SocketAddr::V6(_) => at("[::1]:9"),
    }
}

fn message(
    socket: &UdpSocket,
    to: SocketAddr,
    text: &str,
    control: &[ControlMessage<'_>],
    flags: MsgFlags,
) -> io::Result<()> {
    let to = SockaddrStorage::from(to);
    sendmsg(socket.as_raw_fd(), &[io::IoSlice::new(text.as_bytes())], control, flags, Some(&to))?;
    Ok(())
}

const SERVERS: [(&str, &str); 3] =
    [("10.77.0.1", "0.0.0.0:0"), ("[fd77::1]", "[::]:0"), ("[::ffff:10.77.0.1]", "[::]:0")];

fn client(mesh: &Mesh, from: &str) -> UdpSocket {
    mesh.net.pod.run(|| UdpSocket::bind(at(from))).unwrap().unwrap()
}

#[test]
fn every_way_to_ask_leads_to_the_agent() {
    let mesh = Mesh::new();
    let wire = Wire::new(&mesh.net);
    for (server, from) in SERVERS {
        let server = at(&format!("{server}:53"));
        for (name, way) in WAYS.iter().filter(|(name, _)| *name != STAYS) {
            way(&client(&mesh, from), server, "a question").unwrap_or_else(|e| panic!("{name} to {server}: {e}"));
            let all: Vec<_> = mesh.listeners.dns.iter().collect();
            let which = readable(&all).unwrap_or_else(|| panic!("{name} to {server}: nothing came"));
            let mut buffer = [0; 64];
            let bound = all[which].local_addr().unwrap();
            let (n, _, place) = datagram::receive(all[which], bound, &mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"a question", "{name}");
            let asked = mesh.sockets.dns_server(&mesh.net.pod, place).unwrap().unwrap();
            assert_eq!(asked, SocketAddr::new(server.ip().to_canonical(), 53), "{name}");
        }
    }
    assert_eq!(wire.which(&mesh, &["question"]), [""; 0]);
    assert_eq!(mesh.count(Counter::EgressUnexplained), 0, "nothing had to be stopped at the end");
}

#[test]
fn every_way_to_send_is_refused_where_the_setting_says_so() {
    for flags in [abi::UDP_DENY, abi::UDP_DNS_ONLY] {
        let mut mesh = Mesh::of(Net::new(), flags);
        mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
        let wire = Wire::new(&mesh.net);
        for (server, from) in SERVERS {
            for (name, way) in WAYS {
                let sent = way(&client(&mesh, from), at(&format!("{server}:9")), "a secret");
                if name == STAYS {
                    sent.unwrap();
                } else {
                    assert_eq!(sent.unwrap_err().raw_os_error(), Some(libc::EPERM), "{name} to {server}");
                }
            }
        }
        assert_eq!(wire.which(&mesh, &["secret"]), [""; 0]);
    }
}

#[test]
fn nobody_shares_the_agents_ports() {
    let mesh = Mesh::new();
    let v4 = mesh.listeners.dns[0].local_addr().unwrap().port();
    let v6 = mesh.listeners.dns[1].local_addr().unwrap().port();
    for (ip, port) in [
        ("0.0.0.0", v4),
        ("127.53.0.1", v4),
        ("10.77.0.2", v4),
        // Not the pod's: by IP_TRANSPARENT.
        ("192.0.2.53", v4),
        ("::ffff:127.53.0.1", v4),
        ("::1", v6),
        ("::1", v6 + 7),
        ("::", v6),
        ("2001:db8::53", v6),
    ] {
        let to = SocketAddr::new(ip_of(ip), port);
        let open = || Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP)).unwrap();
        let socket = mesh.net.pod.run(open).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        match to {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true).unwrap(),
            SocketAddr::V6(_) => transparent6(&socket),
        }
        let bound = socket.bind(&to.into());
        // An IPv6 address elsewhere is nobody's place.
        if ip == "2001:db8::53" {
            bound.unwrap();
        } else {
            assert_eq!(bound.unwrap_err().kind(), io::ErrorKind::AddrInUse, "{to}");
        }
    }
}

fn transparent6(socket: &Socket) {
    let on: i32 = 1;
    // SAFETY: the value is live and its size is given.
    let done = unsafe {
        let (value, size) = ((&raw const on).cast(), size_of::<i32>() as u32);
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, value, size)
    };
    assert_eq!(done, 0);
}

/// An application may use the agent's usual port; questions still find the agent, and the application its own.
#[test]
fn an_application_on_the_usual_port_stays_what_it_is() {
    let net = Net::new();
    let app = net.pod.run(|| UdpSocket::bind("0.0.0.0:15053")).unwrap().unwrap();
    app.set_read_timeout(Some(PATIENCE)).unwrap();
    let mesh = Mesh::of(net, 0);
    assert_ne!(mesh.listeners.dns[0].local_addr().unwrap().port(), 15053);
    let other = client(&mesh, "0.0.0.0:0");
    other.send_to(b"a question", at("192.0.2.53:53")).unwrap();
    assert_eq!(readable(&[&mesh.listeners.dns[0]]), Some(0));
    other.send_to(b"hello", at("127.53.0.1:15053")).unwrap();
    let mut buffer = [0; 64];
    let (n, from) = app.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..n], from.port()), (&b"hello"[..], other.local_addr().unwrap().port()));
}

fn uring(socket: &UdpSocket, to: SocketAddr, text: &str) -> io::Result<()> {
    let address = socket2::SockAddr::from(to);
    let mut part = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() };
    // SAFETY: all zeroes is a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_ptr().cast_mut().cast();
    message.msg_namelen = address.len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let ask = Ask {
        operation: uring::SENDMSG,
        fd: socket.as_raw_fd(),
        address: &raw const message as u64,
        length: 1,
        offset: 0,
    };
    // SAFETY: message, parts and address live until the call has returned.
    match unsafe { uring::ask(&ask) } {
        Some(done) => done,
        None => socket.send_to(text.as_bytes(), to).map(|_| ()),
    }
}
