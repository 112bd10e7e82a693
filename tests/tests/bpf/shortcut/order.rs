//! What comes by shortcut and what comes by TCP is one stream, wherever the change is.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd as _;

use mesh_common::abi::Counter;
use mesh_common::shortcut::SMALL_IN_A_ROW;
use nix::sys::socket;

use super::*;

/// The other socket does not exist before the first bytes arrive: they go by TCP, and so does all the rest.
#[test]
fn order_holds_with_sends_during_establishment() {
    let mesh = mesh(true);
    let data: Vec<u8> = (0..100_000_u32).map(|i| (i * 31 + i / 251) as u8).collect();
    for deferred in [false, true] {
        socket::setsockopt(&mesh.listeners.outbound[0], DeferAccept, &i32::from(deferred)).unwrap();
        let before = mesh.count(Counter::ShortcutNoPeer);
        for n in [1, 100, 5000, 50_000] {
            let mut app = mesh.connect("192.0.2.80:80").unwrap();
            app.write_all(&data[..n]).unwrap();
            let (mut agent, _) = mesh.accept_outbound(true);
            agent.set_nonblocking(false).unwrap();
            agent.set_read_timeout(Some(PATIENCE)).unwrap();
            app.write_all(&data[n..]).unwrap();
            app.shutdown(Shutdown::Write).unwrap();
            let mut got = Vec::new();
            agent.read_to_end(&mut got).unwrap();
            assert!(got == data, "after {n} bytes, deferred: {deferred}");
        }
        let fallen = mesh.count(Counter::ShortcutNoPeer) - before;
        assert_eq!(fallen, if deferred { 4 } else { 0 });
    }
}

/// What waits in `send()` for the handshake goes by TCP, whatever becomes of the socket meanwhile: so must all the rest. The
/// listener's queue is full, so the handshake waits for a place in it.
#[test]
fn order_holds_with_sends_before_establishment() {
    let mesh = mesh(true);
    let (first, socket) = waiting_for_a_place(&mesh);
    let mut app = TcpStream::from(socket);
    let sending = std::thread::spawn(move || {
        app.write_all(b"before ").unwrap();
        app.write_all(b"after").unwrap();
        app
    });
    drop((mesh.accept_outbound(true), first));
    let (mut agent, _) = mesh.accept_outbound(true);
    agent.set_nonblocking(false).unwrap();
    drop(sending.join().unwrap());
    let mut got = String::new();
    agent.read_to_string(&mut got).unwrap();
    assert_eq!(got, "before after");
}

/// `TCP_DEFER_ACCEPT`: no connection before its first bytes.
#[derive(Clone)]
struct DeferAccept;

impl nix::sys::socket::SetSockOpt for DeferAccept {
    type Val = i32;

    fn set<F: std::os::fd::AsFd>(&self, fd: &F, val: &i32) -> nix::Result<()> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: the value is a live int and its size is given.
        let done =
            unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, (&raw const *val).cast(), 4) };
        nix::errno::Errno::result(done).map(drop)
    }
}

/// Random numbers that are the same in each run (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn size(&mut self) -> usize {
        let most = [16, 200, 1000, 4000][self.next() as usize % 4];
        // Now and then a large one.
        if self.next().is_multiple_of(256) {
            20_000 + self.next() as usize % 60_000
        } else {
            1 + self.next() as usize % most
        }
    }
}

/// Bytes of a stream: any that are lost, doubled or moved do not fit. Periodic, so that slices of a table will do.
const PERIOD: usize = 65_521;

pub fn pattern() -> Vec<u8> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let one: Vec<u8> = (0..PERIOD).map(|_| random.next() as u8).collect();
    one.iter().chain(&one).chain(&one).copied().collect()
}

pub fn send_all(mut to: &TcpStream, table: &[u8], messages: u64, seed: u64) -> u64 {
    let (mut random, mut sent) = (Random(seed), 0_u64);
    for _ in 0..messages {
        let size = random.size();
        let at = (sent % PERIOD as u64) as usize;
        to.write_all(&table[at..at + size]).unwrap();
        sent += size as u64;
    }
    to.shutdown(Shutdown::Write).unwrap();
    sent
}

pub fn read_all(mut from: impl io::Read, table: &[u8], seed: u64) -> u64 {
    let (mut random, mut read, mut buffer) = (Random(seed), 0_u64, vec![0; 65_536]);
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let room = 1 + random.next() as usize % [100, 5000, 65_535][random.next() as usize % 3];
        let n = match from.read(&mut buffer[..room]) {
            // As docs/paths.md says: whoever blocks in a read is woken by what frees the send buffer too.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && std::time::Instant::now() < end => continue,
            done => done.unwrap(),
        };
        if n == 0 {
            return read;
        }
        let at = (read % PERIOD as u64) as usize;
        assert!(buffer[..n] == table[at..at + n], "bytes {read} to {} are not what was sent there", read + n as u64);
        read += n as u64;
    }
}

/// A million messages of random sizes, half of them each way, over connections of which each changes to TCP at another place,
/// and whose sockets leave the map at another moment.
#[test]
fn a_million_messages_are_byte_exact() {
    const CONNECTIONS: u64 = 1000;
    const MESSAGES: u64 = 500;
    let (mesh, table) = (mesh(true), pattern());
    for connection in 0..CONNECTIONS {
        let leg = LEGS[connection as usize % 2].1(&mesh);
        let seed = 1 + connection * 4;
        std::thread::scope(|scope| {
            let (leg, table, mesh) = (&leg, &table, &mesh);
            let app = scope.spawn(move || send_all(&leg.app, table, MESSAGES, seed));
            let agent = scope.spawn(move || send_all(&leg.agent, table, MESSAGES, seed + 1));
            let at_agent = scope.spawn(move || read_all(AgentReader::new(mesh, &leg.agent), table, seed + 2));
            let at_app = read_all(&leg.app, table, seed + 3);
            assert_eq!(at_agent.join().unwrap(), app.join().unwrap());
            assert_eq!(at_app, agent.join().unwrap());
        });
    }
    let sends = mesh.count(Counter::ShortcutSends);
    assert!(sends > 10 * CONNECTIONS, "{sends} of {} by shortcut", 2 * CONNECTIONS * MESSAGES);
    assert!(u64::from(SMALL_IN_A_ROW) < MESSAGES && mesh.count(Counter::ShortcutSmall) > 0);
    let left = mesh.count(Counter::ShortcutLeft);
    assert!(left > CONNECTIONS / 4, "{left} of {} sockets have left", 2 * CONNECTIONS);
    assert_nothing_left(&mesh);
}
