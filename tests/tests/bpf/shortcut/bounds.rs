//! A shortcut has bounds both ways, and what the agent reads moves its own.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;

use aya::maps::{HashMap, Map, MapData};
use mesh_agent::upstream::shortcut::Shortcut;
use mesh_common::abi::{Counter, maps};
use mesh_common::shortcut::{SMALL_IN_A_ROW, TOLD_EVERY, WINDOW};
use nix::sys::socket::{self, sockopt};

use super::*;

/// More than any sender may get rid of to a reader that does not read.
const MEBIBYTE: usize = 1 << 20;

/// TCP's own buffers are kept small, or they alone would take more.
fn small_buffers(leg: &Leg) {
    for stream in [&leg.app, &leg.agent] {
        socket::setsockopt(stream, sockopt::SndBuf, &65_536).unwrap();
        socket::setsockopt(stream, sockopt::RcvBuf, &65_536).unwrap();
    }
}

/// Sends until the sender would have to wait.
pub fn push(mut sender: &TcpStream, size: usize) -> usize {
    sender.set_nonblocking(true).unwrap();
    let (piece, mut sent) = (vec![7; size], 0);
    while sent < 8 * MEBIBYTE {
        match sender.write(&piece) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => panic!("{e}"),
        }
    }
    sent
}

#[test]
fn a_reader_that_never_reads_blocks_its_sender() {
    let mesh = mesh(true);
    for (name, leg) in LEGS {
        for from in BOTH {
            for size in [100, 1000, 10_000, 65_536, 300_000] {
                let leg = leg(&mesh);
                small_buffers(&leg);
                let sent = push(leg.ends(from).0, size);
                assert!(sent < MEBIBYTE, "{name}, from {from:?}, {size} bytes at once: {sent}");
            }
            // One that has something to say all the time, and never reads.
            let leg = leg(&mesh);
            small_buffers(&leg);
            let (mut sender, mut reader) = leg.ends(from);
            sender.set_nonblocking(true).unwrap();
            let mut sent = 0;
            while sent < 8 * MEBIBYTE {
                reader.write_all(b"more").unwrap();
                // What it says may not have come yet.
                let _ = sender.read(&mut [0; 64]).unwrap_or(0);
                match sender.write(&[7; 1000]) {
                    Ok(n) => sent += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => panic!("{e}"),
                }
            }
            assert!(sent < MEBIBYTE + MEBIBYTE / 4, "{name}, from {from:?}, in conversation: {sent}");
        }
    }
    let fallen = mesh.count(Counter::ShortcutAllowance);
    assert!(fallen > 0 && mesh.count(Counter::ShortcutWindow) > 0 && mesh.count(Counter::ShortcutSmall) > 0);
}

/// With an agent that reads and tells, much more than a window goes by shortcut.
#[test]
fn what_the_agent_has_read_opens_the_window() {
    let mesh = mesh(true);
    for (name, leg) in LEGS {
        let leg = leg(&mesh);
        let mut reader = AgentReader::new(&mesh, &leg.agent);
        let (mut sender, mut got) = (&leg.app, vec![0; 16_384]);
        for _ in 0..16 * WINDOW / 16_384 {
            sender.write_all(&[1; 16_384]).unwrap();
            reader.read_exact(&mut got).unwrap();
        }
        assert_eq!(tcp_bytes(&leg.app), 0, "{name}");
    }
    assert_eq!(mesh.count(Counter::ShortcutWindow), 0);
}

/// One speaks and the other hears it, with a word now and then or none: far more than an application may leave unread.
pub fn talk(mut from: &TcpStream, mut to: &TcpStream) {
    for (size, answered) in [(1000, true), (16_384, false)] {
        let (piece, mut got) = (vec![3; size], vec![0; size]);
        for _ in 0..8 * MEBIBYTE / size {
            from.write_all(&piece).unwrap();
            to.read_exact(&mut got).unwrap();
            if answered {
                to.write_all(b".").unwrap();
                from.read_exact(&mut got[..1]).unwrap();
            }
        }
        assert_eq!(tcp_bytes(from), 0, "{size} bytes at once, answered: {answered}");
    }
}

/// The kernel is seen to have nothing left for an application, so there is no total of what it is sent.
#[test]
fn an_application_that_reads_is_spoken_to_for_ever() {
    let mesh = mesh(true);
    for (_, leg) in LEGS {
        let leg = leg(&mesh);
        talk(&leg.agent, &leg.app);
    }
    assert_eq!(mesh.count(Counter::ShortcutAllowance), 0);
}

/// As the agent has it.
fn agents(mesh: &Mesh, stream: TcpStream) -> (Shortcut, u64) {
    let id = mesh.sockets.shortcut(stream.as_fd()).unwrap().unwrap();
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    (Shortcut::new(stream, id, mesh.sockets.clone()), id)
}

async fn read(agent: &mut Shortcut, bytes: usize) -> Vec<u8> {
    let mut got = vec![0; bytes];
    let reading = tokio::io::AsyncReadExt::read_exact(agent, &mut got);
    tokio::time::timeout(PATIENCE, reading).await.expect("the rest is not seen").unwrap();
    got
}

/// The agent's own stream, when everything has arrived before it reads for the first time: behind what came by shortcut is
/// something that came by TCP, of which no event tells.
#[tokio::test]
async fn the_agent_reads_on_where_a_direction_has_changed() {
    let mesh = mesh(true);
    for (name, leg) in LEGS {
        let Leg { mut app, agent } = leg(&mesh);
        let (mut agent, _) = agents(&mesh, agent);
        let large = usize::try_from(TOLD_EVERY).unwrap();
        app.write_all(&vec![1; large]).unwrap();
        for _ in 0..2 * SMALL_IN_A_ROW {
            app.write_all(&[2; 100]).unwrap();
        }
        assert_eq!(tcp_bytes(&app), 100 * u64::from(SMALL_IN_A_ROW), "{name}");
        let got = read(&mut agent, large + 200 * SMALL_IN_A_ROW as usize).await;
        assert!(got[..large].iter().all(|b| *b == 1) && got[large..].iter().all(|b| *b == 2));
    }
}

#[tokio::test]
async fn the_agent_tells_all_that_it_has_read() {
    let mesh = mesh(true);
    for (name, leg) in LEGS {
        let Leg { mut app, agent } = leg(&mesh);
        let (mut agent, id) = agents(&mesh, agent);
        let map = Map::from_map_data(MapData::from_pin(map(&mesh.pins, maps::SHORT_READ)).unwrap()).unwrap();
        let told = HashMap::<_, u64, u64>::try_from(map).unwrap();
        for round in 1..4 {
            let piece = vec![round; usize::try_from(TOLD_EVERY).unwrap()];
            app.write_all(&piece).unwrap();
            assert!(read(&mut agent, piece.len()).await == piece, "{name}");
            assert_eq!(told.get(&id, 0).unwrap(), u64::from(round) * TOLD_EVERY, "{name}");
        }
    }
}
