//! What both ends see of a connection with a shortcut, against one without.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use mesh_common::abi::Counter;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{self, MsgFlags};

use super::*;

/// What a reader and a sender see of everything that TCP can do, in words to compare.
fn behaviour(mesh: &Mesh, new: fn(&Mesh) -> Leg, from: From) -> Vec<String> {
    let mut seen = Vec::new();
    let leg = || new(mesh).split(from);
    let mut note = |what: &str, outcome: String| seen.push(format!("{what}: {outcome}"));
    let outcome = |done: io::Result<usize>| match done {
        Ok(n) => n.to_string(),
        Err(e) => format!("{:?}", e.kind()),
    };
    let (mut sender, mut reader) = leg();
    sender.write_all(b"last").unwrap();
    sender.shutdown(Shutdown::Write).unwrap();
    for _ in 0..3 {
        note("until EOF", outcome(reader.read(&mut [0; 64])));
    }
    note("send after the own end", outcome(sender.write(b"more")));
    reader.write_all(b"answer").unwrap();
    note("half-closed, the other way", outcome(sender.read(&mut [0; 64])));
    drop(reader);
    note("until its EOF", outcome(sender.read(&mut [0; 64])));

    // The sender goes on after the reader's end, and leaves before the reader reads.
    let (mut sender, mut reader) = leg();
    sender.write_all(b"before ").unwrap();
    reader.shutdown(Shutdown::Write).unwrap();
    note("the reader's end", outcome(sender.read(&mut [0; 64])));
    sender.write_all(b"after").unwrap();
    drop(sender);
    let mut all = String::new();
    note("all of it", outcome(reader.read_to_string(&mut all)));
    note("is", all);

    let (mut sender, mut reader) = leg();
    sender.write_all(b"last").unwrap();
    socket2::SockRef::from(&sender).set_linger(Some(Duration::ZERO)).unwrap();
    drop(sender);
    for _ in 0..3 {
        note("until RST", outcome(reader.read(&mut [0; 64])));
    }

    let (mut sender, mut reader) = leg();
    socket2::SockRef::from(&reader).set_linger(Some(Duration::ZERO)).unwrap();
    sender.write_all(b"first").unwrap();
    note("", outcome(reader.read(&mut [0; 64])));
    drop(reader);
    note("send to who has reset", outcome(sender.write(b"more")));

    let (mut sender, reader) = leg();
    sender.write_all(b"twice").unwrap();
    for flags in [MsgFlags::MSG_PEEK, MsgFlags::MSG_PEEK, MsgFlags::MSG_DONTWAIT, MsgFlags::MSG_DONTWAIT] {
        let mut got = [0; 64];
        let done = socket::recv(reader.as_raw_fd(), &mut got, flags);
        note("peek", format!("{done:?} {:?}", String::from_utf8_lossy(&got[..done.unwrap_or(0)])));
    }

    for (name, mode) in [("level", EpollFlags::empty()), ("edge", EpollFlags::EPOLLET)] {
        let (mut sender, mut reader) = leg();
        reader.set_nonblocking(true).unwrap();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | mode, 1)).unwrap();
        let events = || {
            let mut got = [EpollEvent::empty()];
            let n = epoll.wait(&mut got, EpollTimeout::ZERO).unwrap();
            format!("{n} {:?}", got[0].events())
        };
        note(name, events());
        for round in 0..3 {
            sender.write_all(b"two bytes").unwrap();
            note(name, events());
            note(name, outcome(reader.read(&mut [0; 4])));
            note(name, events());
            sender.write_all(b"more").unwrap();
            note(name, events());
            while reader.read(&mut [0; 4]).is_ok() {}
            note(name, format!("{round} drained {}", events()));
        }
        sender.shutdown(Shutdown::Write).unwrap();
        note(name, events());
    }
    seen
}

#[test]
fn ends_resets_peeks_and_events_are_as_on_tcp() {
    let (on, off) = (mesh(true), mesh(false));
    for (name, leg) in LEGS {
        for from in BOTH {
            let before = on.count(Counter::ShortcutSends);
            let (by_shortcut, by_tcp) = (behaviour(&on, leg, from), behaviour(&off, leg, from));
            assert!(on.count(Counter::ShortcutSends) - before > 10, "{name}");
            for (short, tcp) in by_shortcut.iter().zip(&by_tcp) {
                assert_eq!(short, tcp, "{name}, from {from:?}");
            }
            assert_eq!(by_shortcut.len(), by_tcp.len());
        }
    }
    assert_eq!(off.count(Counter::ShortcutJoined), 0);
}
