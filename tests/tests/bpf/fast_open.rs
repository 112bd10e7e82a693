//! TCP fast open (RFC 7413): data in the SYN, which a listener may hand to its application before the handshake is over.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use mesh_agent::net::netns::NetNs;
use mesh_common::abi::Counter;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use socket2::Socket;

use super::direct::Node;
use super::support::*;

/// Bits of `net.ipv4.tcp_fastopen`.
const CLIENT: u32 = 1;
const SERVER: u32 = 2;
/// The client says data without having a cookie.
const CLIENT_WITHOUT_COOKIE: u32 = 4;
/// The server takes data without a cookie.
const SERVER_WITHOUT_COOKIE: u32 = 0x200;
/// Every listener takes data, not only those that ask for it: the agent's too.
const ALL_LISTENERS: u32 = 0x400;

const SAID: &[u8] = b"said in the SYN";

fn allow(ns: &NetNs, bits: u32) {
    let write = || std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", bits.to_string());
    ns.run(write).unwrap().unwrap();
}

/// An application that asks for data in the SYN.
fn application(ns: &NetNs, on: &str) -> TcpListener {
    let app = listen_in(ns, on);
    let queue: i32 = 16;
    // SAFETY: the value is live and its size is given.
    let done = unsafe {
        let (value, size) = ((&raw const queue).cast(), size_of::<i32>() as u32);
        libc::setsockopt(app.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN, value, size)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    app
}

/// A client that says something in its SYN, if it may, and otherwise as soon as it can. Without waiting in the system call,
/// which a signal would end.
fn client(ns: &NetNs, to: &str) -> Socket {
    let socket = socket_in(ns, to);
    socket.set_nonblocking(true).unwrap();
    let sent = match socket.send_to_with_flags(SAID, &at(to).into(), libc::MSG_FASTOPEN) {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {
            let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            while poll(&mut polled, PATIENCE.as_millis() as u16) == Err(Errno::EINTR) {}
            socket.send(SAID)
        }
        sent => sent,
    };
    assert_eq!(sent.unwrap(), SAID.len());
    socket.set_nonblocking(false).unwrap();
    socket
}

/// Whether what a client said in its SYN was taken from there (`tcpi_options`, linux/tcp.h).
fn was_taken(socket: &Socket) -> bool {
    const TCPI_OPT_SYN_DATA: u8 = 32;
    let mut info = [0_u8; 8];
    let mut size = info.len() as u32;
    // SAFETY: the value is live and its size is given.
    let done = unsafe {
        let value = (&raw mut info).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut size)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    info[5] & TCPI_OPT_SYN_DATA != 0
}

fn heard(mut server: &TcpStream) {
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = [0; SAID.len()];
    server.read_exact(&mut text).unwrap();
    assert_eq!(text, SAID);
}

/// The wire's end has got the application's cookie, or needs none, before the pod is enrolled: its SYN would be enough.
fn ready(on: &str, server: u32, with_cookie: bool) -> (Net, TcpListener) {
    let net = Net::new();
    allow(&net.wire, CLIENT | if with_cookie { 0 } else { CLIENT_WITHOUT_COOKIE });
    allow(&net.pod, SERVER | server | if with_cookie { 0 } else { SERVER_WITHOUT_COOKIE });
    let app = application(&net.pod, on);
    // The first asks for a cookie, the second uses it.
    let mut taken = Vec::new();
    for _ in 0..2 {
        let client = client(&net.wire, on);
        let (server, _) = accept(&app);
        heard(&server);
        taken.push(was_taken(&client));
    }
    assert_eq!(taken, [!with_cookie, true], "fast open is at work");
    (net, app)
}

#[test]
fn what_a_syn_says_reaches_the_agent_and_nobody_else() {
    for (i, on) in ["10.77.0.2:8080", "[fd77::2]:8080"].into_iter().enumerate() {
        for with_cookie in [true, false] {
            for (server, agents_take) in [(0, false), (ALL_LISTENERS, true)] {
                for strict in [false, true] {
                    let (net, app) = ready(on, server, with_cookie);
                    let mut mesh = Mesh::of(net, 0);
                    mesh.kernel.set_inbound_modes(ID, strict, &[]).unwrap();
                    let client = client(&mesh.net.wire, on);
                    let (server, _) = accept(&mesh.listeners.inbound[i]);
                    heard(&server);
                    assert_eq!(server.local_addr().unwrap(), at(on));
                    assert_eq!(was_taken(&client), agents_take, "{on} cookie {with_cookie}");
                    assert_joined(&TcpStream::from(client), &server);
                    assert!(!is_waiting(&app), "{on} cookie {with_cookie} strict {strict}");
                }
            }
        }
    }
}

/// Without the agent such a SYN is dropped like others.
#[test]
fn without_the_agent_a_syn_says_nothing() {
    for on in ["10.77.0.2:8080", "[fd77::2]:8080"] {
        let (net, app) = ready(on, 0, false);
        let mut mesh = Mesh::of(net, 0);
        mesh.lose_the_agent();
        let socket = socket_in(&mesh.net.wire, on);
        socket.set_nonblocking(true).unwrap();
        let sent = socket.send_to_with_flags(SAID, &at(on).into(), libc::MSG_FASTOPEN);
        assert!(sent.is_ok() || sent.is_err_and(|e| e.raw_os_error() == Some(libc::EINPROGRESS)));
        let end = std::time::Instant::now() + PATIENCE;
        while mesh.count(Counter::InboundRefused) == 0 {
            assert!(std::time::Instant::now() < end && !is_waiting(&app), "{on}");
            std::thread::yield_now();
        }
        assert!(!is_waiting(&app), "{on}");
    }
}

/// The agent's listener takes the data from the SYN of a connection that leaves the pod, and knows where it wanted to go.
#[test]
fn the_destination_is_there_before_the_handshake_is_over() {
    let net = Net::new();
    allow(&net.pod, CLIENT | SERVER | CLIENT_WITHOUT_COOKIE | SERVER_WITHOUT_COOKIE | ALL_LISTENERS);
    let mesh = Mesh::of(net, 0);
    for (to, v4) in [("192.0.2.80:80", true), ("[2001:db8::80]:80", false)] {
        let client = client(&mesh.net.pod, to);
        let (server, origin) = mesh.accept_outbound(v4);
        assert_eq!(origin, Some(at(to)));
        heard(&server);
        assert!(was_taken(&client), "{to}");
    }
}

/// Between two pods of a node nothing is said before it is known who hears it: the SYN comes again without.
#[test]
fn a_direct_connection_says_nothing_in_its_syn() {
    for on in ["10.78.2.2:8080", "[fd78:2::2]:8080"] {
        let node = Node::allowing(&[on]);
        allow(&node.client, CLIENT | CLIENT_WITHOUT_COOKIE);
        allow(&node.server, SERVER | SERVER_WITHOUT_COOKIE);
        let app = application(&node.server, on);
        let client = client(&node.client, on);
        let taken = was_taken(&client);
        let (server, _) = accept(&app);
        heard(&server);
        assert!(!taken, "{on}");
    }
}
