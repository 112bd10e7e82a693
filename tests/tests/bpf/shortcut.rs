//! shortcut: what goes between an application and its agent past TCP is what TCP would have brought, and ends where it would
//! have ended; and it has bounds. Each comparison runs twice, with shortcuts and without.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{HashMap, Map, MapData};
use mesh_agent::kernel::probe;
use mesh_agent::net::connections::{Connection, destroy};
use mesh_agent::settings::Shortcuts;
use mesh_common::abi::{self, Counter, SHORTCUTS, maps};
use mesh_common::shortcut::TOLD_EVERY;
use socket2::Socket;

use super::support::*;

#[path = "shortcut/bounds.rs"]
pub mod bounds;
#[path = "shortcut/leave.rs"]
mod leave;
#[path = "shortcut/order.rs"]
pub mod order;
#[path = "shortcut/seen.rs"]
mod seen;

/// A connection between an application and the agent.
struct Leg {
    app: TcpStream,
    agent: TcpStream,
}

/// Who sends in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    App,
    Agent,
}

const BOTH: [From; 2] = [From::App, From::Agent];

impl Leg {
    /// Sender and receiver.
    fn ends(&self, from: From) -> (&TcpStream, &TcpStream) {
        match from {
            From::App => (&self.app, &self.agent),
            From::Agent => (&self.agent, &self.app),
        }
    }

    fn split(self, from: From) -> (TcpStream, TcpStream) {
        match from {
            From::App => (self.app, self.agent),
            From::Agent => (self.agent, self.app),
        }
    }
}

fn mesh(on: bool) -> Mesh {
    let mut mesh = Mesh::of(Net::new(), if on { SHORTCUTS } else { 0 });
    mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
    mesh
}

/// The application connects, is redirected, and the agent accepts.
fn outbound(mesh: &Mesh) -> Leg {
    let app = mesh.connect("192.0.2.80:80").unwrap();
    let (agent, origin) = mesh.accept_outbound(true);
    assert_eq!(origin, Some(at("192.0.2.80:80")));
    agent.set_nonblocking(false).unwrap();
    ready(Leg { app, agent })
}

/// The agent dials the application for a client.
fn inbound(mesh: &Mesh) -> Leg {
    let listener = listen_in(&mesh.net.pod, "10.77.0.2:0");
    let to = listener.local_addr().unwrap();
    let (ns, client) = (&mesh.net.pod, at("203.0.113.9:4711"));
    let socket = match mesh.flags & SHORTCUTS {
        0 => mesh.sockets.socket_to_app(ns, to, client),
        _ => mesh.sockets.socket_to_app_by_shortcut(ns, to, client),
    };
    let socket = socket.unwrap();
    let error = socket.connect(&to.into()).err().and_then(|e| e.raw_os_error());
    assert!(matches!(error, None | Some(libc::EINPROGRESS)), "{error:?}");
    let (app, seen) = accept(&listener);
    assert_eq!(seen, client, "the application sees its client");
    socket.set_nonblocking(false).unwrap();
    ready(Leg { app, agent: socket.into() })
}

fn ready(leg: Leg) -> Leg {
    for stream in [&leg.app, &leg.agent] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    leg
}

type NewLeg = fn(&Mesh) -> Leg;

const LEGS: [(&str, NewLeg); 2] = [("outbound", outbound), ("inbound", inbound)];

/// Reads like the agent: tells what it has read.
struct AgentReader<'a> {
    stream: &'a TcpStream,
    mesh: &'a Mesh,
    id: Option<u64>,
    read: u64,
    told: u64,
}

impl<'a> AgentReader<'a> {
    fn new(mesh: &'a Mesh, stream: &'a TcpStream) -> Self {
        AgentReader { stream, mesh, id: mesh.sockets.shortcut(stream.as_fd()).unwrap(), read: 0, told: 0 }
    }
}

impl io::Read for AgentReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = (&mut self.stream).read(buf)?;
        self.read += n as u64;
        if let Some(id) = self.id
            && self.read - self.told >= TOLD_EVERY
        {
            self.mesh.sockets.tell_read(id, self.read)?;
            self.told = self.read;
        }
        Ok(n)
    }
}

/// Keys in one of the maps.
fn entries<K: aya::Pod, V: aya::Pod>(mesh: &Mesh, name: &str) -> usize {
    let map = Map::from_map_data(MapData::from_pin(map(&mesh.pins, name)).unwrap()).unwrap();
    HashMap::<_, K, V>::try_from(map).unwrap().keys().filter(Result::is_ok).count()
}

fn assert_nothing_left(mesh: &Mesh) {
    let count = || {
        entries::<u64, abi::Shortcut>(mesh, maps::SHORTCUTS)
            + entries::<u64, u64>(mesh, maps::SHORT_READ)
            + entries::<abi::Tuple, u64>(mesh, maps::SHORT_WAY)
    };
    // A program that another test is starting may hold a socket for a moment longer.
    let end = std::time::Instant::now() + PATIENCE;
    while count() != 0 && std::time::Instant::now() < end {
        std::thread::yield_now();
    }
    assert_eq!(count(), 0);
}

#[test]
fn both_directions_of_both_legs_go_by_shortcut_from_the_first_byte() {
    let mesh = mesh(true);
    for (name, leg) in LEGS {
        let before = mesh.count(Counter::ShortcutSends);
        let leg = leg(&mesh);
        for _ in 0..10 {
            assert_joined(&leg.app, &leg.agent);
        }
        assert_eq!(mesh.count(Counter::ShortcutSends) - before, 20, "{name}");
        // What TCP has carried: nothing.
        for stream in [&leg.app, &leg.agent] {
            assert_eq!(tcp_bytes(stream), 0, "{name}");
        }
    }
    assert_eq!(mesh.count(Counter::ShortcutBytes), 2 * 20 * 4);
    assert_eq!(mesh.count(Counter::ShortcutJoined), 4);
    assert_nothing_left(&mesh);
    // Their ends, which TCP carries, are no bytes that went by it.
    assert_eq!(mesh.count(Counter::ShortcutTcpFirst), 0);
}

/// `tcpi_bytes_sent`, linux/tcp.h.
pub fn tcp_bytes(stream: &TcpStream) -> u64 {
    const AT: usize = 200;
    let mut info = [0_u8; 256];
    let mut size = info.len() as libc::socklen_t;
    // SAFETY: the buffer is live and its size is given.
    let done = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut size)
    };
    assert!(done == 0 && size as usize >= AT + 8);
    u64::from_ne_bytes(info[AT..AT + 8].try_into().unwrap())
}

/// Off, a workload's sockets never come near; on, the agent's own connections on the wire do not.
#[test]
fn only_plain_legs_of_workloads_that_want_it() {
    let without = mesh(false);
    for (_, leg) in LEGS {
        let leg = leg(&without);
        assert_joined(&leg.app, &leg.agent);
    }
    let with = mesh(true);
    let there = listen_in(&with.net.wire, "10.77.0.1:15008");
    let socket = with.sockets.socket(&with.net.pod, at("10.77.0.1:15008")).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.connect(&at("10.77.0.1:15008").into()).unwrap();
    let dialled = TcpStream::from(socket);
    assert_joined(&dialled, &accept(&there).0);
    let tunnel = connect_in(&with.net.wire, "10.77.0.2:15008").unwrap();
    assert_joined(&tunnel, &accept(&with.listeners.tunnel[0]).0);
    let plain = connect_in(&with.net.wire, "10.77.0.2:8080").unwrap();
    assert_joined(&plain, &accept(&with.listeners.inbound[0]).0);
    let own = listen_in(&with.net.pod, "127.0.0.1:8081");
    assert_joined(&connect_in(&with.net.pod, "127.0.0.1:8081").unwrap(), &accept(&own).0);
    for mesh in [without, with] {
        assert_eq!(mesh.count(Counter::ShortcutJoined) + mesh.count(Counter::ShortcutFull), 0);
        assert_eq!(entries::<u64, abi::Shortcut>(&mesh, maps::SHORTCUTS), 0);
    }
}

/// As when a policy is revoked.
#[test]
fn a_destroyed_connection_ends_at_once() {
    let mesh = mesh(true);
    for from in BOTH {
        let leg = outbound(&mesh);
        assert_joined(&leg.app, &leg.agent);
        let (mut kept, gone) = leg.ends(from);
        // The application's own names for its ends are not the kernel's.
        let (agent, app) = (leg.agent.local_addr().unwrap(), leg.agent.peer_addr().unwrap());
        let (local, remote) = if from == From::Agent { (app, agent) } else { (agent, app) };
        destroy(&mesh.net.pod, &Connection { local, remote, inbound: false }).unwrap();
        for end in [kept, gone] {
            assert!((&mut &*end).write(b"more").is_err(), "from {from:?}");
        }
        kept.read(&mut [0]).map(|n| assert_eq!(n, 0)).ok();
    }
    assert_nothing_left(&mesh);
}

#[test]
fn no_place_for_a_shortcut() {
    let mesh = mesh(true);
    let map = Map::from_map_data(MapData::from_pin(map(&mesh.pins, maps::SHORTCUTS)).unwrap()).unwrap();
    let mut map = HashMap::<_, u64, abi::Shortcut>::try_from(map).unwrap();
    for i in 0..u64::from(abi::MAX_SHORTCUTS) {
        map.insert(u64::MAX - i, abi::Shortcut::NEW, 0).unwrap();
    }
    for (name, leg) in LEGS {
        let leg = leg(&mesh);
        assert_joined(&leg.app, &leg.agent);
        assert_eq!(mesh.sockets.shortcut(leg.agent.as_fd()).unwrap(), None, "{name}");
    }
    assert_eq!((mesh.count(Counter::ShortcutJoined), mesh.count(Counter::ShortcutFull)), (0, 2));
    // And as soon as there is one again.
    map.remove(&u64::MAX).unwrap();
    let leg = outbound(&mesh);
    assert_joined(&leg.app, &leg.agent);
    assert_eq!(mesh.count(Counter::ShortcutJoined), 2);
}

/// An application's socket whose redirected `connect()` came to nothing, and that goes elsewhere.
#[test]
fn who_goes_elsewhere_has_none() {
    let mesh = mesh(true);
    let own = listen_in(&mesh.net.pod, "127.0.0.1:8081");
    let (_first, waiting) = waiting_for_a_place(&mesh);
    let joined = mesh.count(Counter::ShortcutJoined);
    disconnect(&waiting);
    waiting.connect(&at("127.0.0.1:8081").into()).unwrap();
    assert_joined(&TcpStream::from(waiting), &accept(&own).0);
    assert_eq!((mesh.count(Counter::ShortcutJoined), mesh.count(Counter::ShortcutFull)), (joined, 0));
}

/// Fills the queue of the agent's listener; the handshake of the second connection waits until there is a place in it.
fn waiting_for_a_place(mesh: &Mesh) -> (TcpStream, Socket) {
    // SAFETY: only sets the length of the queue.
    assert_eq!(unsafe { libc::listen(mesh.listeners.outbound[0].as_raw_fd(), 0) }, 0);
    let first = mesh.connect("192.0.2.80:80").unwrap();
    let socket = socket_in(&mesh.net.pod, "192.0.2.80:80");
    socket.set_nonblocking(true).unwrap();
    let refused = socket.connect(&at("192.0.2.80:80").into()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINPROGRESS));
    socket.set_nonblocking(false).unwrap();
    (first, socket)
}

/// TLS in the kernel, and zero copies.
#[test]
fn options_that_do_not_go_with_a_shortcut_are_refused() {
    let set = |stream: &TcpStream, level, name, value: &[u8]| {
        // SAFETY: the value is live and its size is given.
        let done = unsafe {
            libc::setsockopt(stream.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap()) }
    };
    let on = 1_i32.to_ne_bytes();
    for shortcuts in [false, true] {
        let mesh = mesh(shortcuts);
        let leg = outbound(&mesh);
        let refused = Err(libc::EPERM);
        assert_eq!(set(&leg.app, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &on) == refused, shortcuts);
        assert_eq!(set(&leg.app, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls") == refused, shortcuts);
        assert_eq!(set(&leg.app, libc::IPPROTO_TCP, libc::TCP_NODELAY, &on), Ok(()));
        assert_joined(&leg.app, &leg.agent);
    }
}

/// The next agent's programs go on with what the one before has begun.
#[test]
fn an_open_shortcut_outlives_an_upgrade() {
    let mesh = mesh(true);
    let before = outbound(&mesh);
    assert_joined(&before.app, &before.agent);
    let mut next =
        mesh_agent::kernel::Kernel::take_over(&settings(&mesh.pins), "test", mesh.kernel.lock().unwrap()).unwrap();
    next.attach().unwrap();
    let sends = mesh.count(Counter::ShortcutSends);
    assert_joined(&before.app, &before.agent);
    let after = outbound(&mesh);
    assert_joined(&after.app, &after.agent);
    assert_eq!(mesh.count(Counter::ShortcutSends) - sends, 4);
}

/// `auto` follows what the test at the start has found; `probe` says all that differs.
#[test]
fn auto_is_what_the_test_of_the_kernel_allows() {
    let (kernel, _pins) = kernel();
    let lack = kernel.shortcut_lack();
    let may = |setting| kernel.sockets().may_shorten(setting);
    assert_eq!((may(Shortcuts::Auto), may(Shortcuts::On), may(Shortcuts::Off)), (lack.is_none(), true, false));
    let report = probe::survey(&settings(std::path::Path::new("/sys/fs/bpf")), &[]).unwrap().to_string();
    let lines = report.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let traits: Vec<_> = lines.filter(|cells| cells.len() > 3 && cells[1] == "shortcut").collect();
    let differing: Vec<&str> = traits.iter().filter(|cells| cells[3].starts_with("no")).map(|cells| cells[2]).collect();
    assert_eq!(lack, differing.first().copied());
    for known in ["splice", "WAITALL", "epoll, short read"] {
        assert!(differing.contains(&known), "{known}: {report}");
    }
    for promised in ["order", "slow reader", "EOF", "half-close", "RST", "PEEK", "epoll, level", "epoll, edge"] {
        let there = traits.iter().any(|cells| cells[2] == promised);
        assert!(there && !differing.contains(&promised), "{promised}: {report}");
    }
}
