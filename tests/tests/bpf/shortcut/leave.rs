//! A connection of which both directions go by TCP is one of TCP: its sockets leave their shortcut, and take nothing with them
//! that nobody has read yet.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use mesh_agent::upstream::shortcut::Shortcut;
use mesh_common::abi::Counter;
use mesh_common::shortcut::{SMALL_IN_A_ROW, TOLD_EVERY};

use super::*;

/// More than an application is sent by shortcut at first.
const LARGE: usize = 65_536;

/// What one says comes to the other, both ways.
fn talk(leg: &Leg) {
    for _ in 0..10 {
        say(&leg.app, &leg.agent);
        say(&leg.agent, &leg.app);
    }
}

/// A word comes over. As docs/paths.md says, a read by who is still in the map may be woken by the send buffer.
fn say(mut from: &TcpStream, mut to: &TcpStream) {
    from.write_all(b"word").unwrap();
    let mut got = [0; 4];
    while let Err(error) = to.read_exact(&mut got) {
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
    assert_eq!(&got, b"word");
}

/// One sends a large piece, from the thread that sends everything.
fn pour(mut sender: &TcpStream, mut reader: &TcpStream, byte: u8) {
    let got = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut got = vec![0; LARGE];
            reader.read_exact(&mut got).map(|()| got)
        });
        sender.write_all(&[byte; LARGE]).unwrap();
        reading.join().unwrap().unwrap()
    });
    assert!(got.iter().all(|b| *b == byte));
}

#[test]
fn who_begins_with_bulk_is_no_end_of_a_shortcut_any_more() {
    let mesh = mesh(true);
    for (name, leg) in LEGS {
        let before = mesh.count(Counter::ShortcutLeft);
        let leg = leg(&mesh);
        pour(&leg.agent, &leg.app, 1);
        assert_eq!(mesh.count(Counter::ShortcutLeft) - before, 2, "{name}");
        pour(&leg.app, &leg.agent, 2);
        talk(&leg);
        assert_eq!(mesh.count(Counter::ShortcutLeft) - before, 2, "{name}");
    }
    assert_eq!((mesh.count(Counter::ShortcutAllowance), mesh.count(Counter::ShortcutFollows)), (2, 2));
    assert_eq!(mesh.count(Counter::ShortcutSends), 0);
    assert_nothing_left(&mesh);
}

/// A conversation becomes bulk: the other direction goes on by shortcut until its next word, and then both ends leave.
#[test]
fn the_other_direction_follows_with_its_next_word() {
    let mesh = mesh(true);
    for (name, leg) in LEGS {
        let before = mesh.count(Counter::ShortcutLeft);
        let leg = leg(&mesh);
        talk(&leg);
        // Who has just been spoken to and begins with a large piece goes on so.
        say(&leg.app, &leg.agent);
        pour(&leg.agent, &leg.app, 1);
        assert_eq!(mesh.count(Counter::ShortcutLeft), before, "{name}");
        let sends = mesh.count(Counter::ShortcutSends);
        talk(&leg);
        pour(&leg.app, &leg.agent, 2);
        assert_eq!(mesh.count(Counter::ShortcutSends), sends, "{name}");
        assert_eq!(mesh.count(Counter::ShortcutLeft) - before, 2, "{name}");
    }
    assert_eq!(mesh.count(Counter::ShortcutFollows), 2);
}

/// The queue goes with the socket, so it stays while there is something in it.
#[test]
fn nobody_leaves_before_all_is_read() {
    let mesh = mesh(true);
    for (name, leg) in LEGS {
        for from in BOTH {
            let before = mesh.count(Counter::ShortcutLeft);
            let leg = leg(&mesh);
            talk(&leg);
            let (mut sender, mut reader) = leg.ends(from);
            // By shortcut, and then by TCP.
            let sends = 2 * SMALL_IN_A_ROW;
            for _ in 0..sends {
                sender.write_all(b"unread").unwrap();
            }
            // It follows, and its own queue is empty: so one of both leaves, and the other does not.
            reader.write_all(b"answer").unwrap();
            let mut got = [0; 6];
            sender.read_exact(&mut got).unwrap();
            sender.write_all(b"unread").unwrap();
            assert_eq!(mesh.count(Counter::ShortcutLeft) - before, 1, "{name}, from {from:?}");
            for _ in 0..=sends {
                reader.read_exact(&mut got).unwrap();
                assert_eq!(&got, b"unread");
            }
            talk(&leg);
            assert_eq!(mesh.count(Counter::ShortcutLeft) - before, 2, "{name}, from {from:?}");
        }
    }
    assert_nothing_left(&mesh);
}

/// Of two threads that send, nobody can tell when either has put what it sends into the queue.
#[test]
fn what_several_threads_have_sent_is_never_taken_for_all() {
    let mesh = mesh(true);
    let leg = outbound(&mesh);
    let mut got = [0; 4];
    for _ in 0..2 {
        std::thread::scope(|scope| scope.spawn(|| (&leg.app).write_all(b"word").unwrap()).join().unwrap());
        (&leg.agent).read_exact(&mut got).unwrap();
    }
    pour(&leg.agent, &leg.app, 1);
    talk(&leg);
    pour(&leg.app, &leg.agent, 2);
    talk(&leg);
    // The application's socket has heard nothing by shortcut.
    assert_eq!((mesh.count(Counter::ShortcutFollows), mesh.count(Counter::ShortcutLeft)), (1, 1));
}

/// The agent's stream is not asked any more what it has read.
#[tokio::test]
async fn the_agent_tells_nobody_in_vain() {
    let mesh = mesh(true);
    let Leg { app, agent } = outbound(&mesh);
    let id = mesh.sockets.shortcut(agent.as_fd()).unwrap().unwrap();
    assert!(mesh.sockets.tell_read(id, 0).unwrap());
    pour(&agent, &app, 1);
    assert!(!mesh.sockets.tell_read(id, 0).unwrap());
    agent.set_nonblocking(true).unwrap();
    let mut agent = Shortcut::new(tokio::net::TcpStream::from_std(agent).unwrap(), id, mesh.sockets.clone());
    let size = 4 * usize::try_from(TOLD_EVERY).unwrap();
    let sending = std::thread::spawn(move || (&app).write_all(&vec![7; size]).map(|()| app));
    let mut got = vec![0; size];
    let reading = tokio::io::AsyncReadExt::read_exact(&mut agent, &mut got);
    tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap();
    assert!(got.iter().all(|b| *b == 7));
    drop(sending.join().unwrap().unwrap());
}
