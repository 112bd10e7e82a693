//! What an application would see of a shortcut past TCP on this kernel: two real sockets, of which one sends into the other's
//! queue, in the scratch namespace. In: a scratch place. Out: for every trait of TCP, whether it holds, or what is otherwise.
//! Only where all hold does `shortcuts: auto` use any.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::SockRef;

use super::asm::{Asm, R2, R3, R4, helper};
use super::checks::{Bench, Check, Need};
use crate::kernel::bpf::{self, Kind};

/// How long something is waited for that comes at once.
const PATIENCE: Duration = Duration::from_secs(1);
const BPF_F_INGRESS: i32 = 1;
const WITHOUT: &str = "shortcuts: auto uses none";

/// Every trait, in the order of the table. First what differs on every kernel that was tried, and takes no waiting: an agent
/// that starts tries no more than it has to.
pub fn checks() -> Vec<Check> {
    vec![
        held("FIONREAD", "tells what can be read", fionread),
        held("order", "bytes stay in order when a direction goes over to TCP", order),
        held("slow reader", "what is not read yet is not lost", slow_reader),
        held("EOF", "the end comes after the last byte", eof),
        held("half-close", "one side can go on after the other's end", half_close),
        held("RST", "a reset comes after the last byte", reset),
        held("RST of unread data", "who leaves without reading resets the sender", unread),
        held("EPIPE", "is what each send after the first says that follows a reset", broken_pipe),
        held("PEEK", "MSG_PEEK leaves what it shows", peek),
        held("blocking read", "waits for something to read", blocking_read),
        held("WAITALL", "MSG_WAITALL waits for all", wait_all),
        held("OOB", "urgent data stays out of the stream", urgent),
        held("RCVLOWAT", "SO_RCVLOWAT holds poll back", low_water),
        held("epoll, level", "readable while there is something", level),
        held("epoll, edge", "an event for each arrival", edge),
        held("epoll, short read", "a short read means that nothing is left", short_read),
        held("splice", "moves what can be read", splice),
    ]
}

fn held(feature: &'static str, used: &'static str, by: fn(&Pair) -> io::Result<()>) -> Check {
    let by = move |b: &Bench<'_>| by(&Pair::new(b)?);
    Check { hook: "shortcut", feature, since: "-", need: Need::May, used, without: WITHOUT, by: Box::new(by) }
}

/// Two ends of a connection; what one sends goes by shortcut to the other.
struct Pair {
    from: TcpStream,
    to: TcpStream,
    /// Where `to` is looked for.
    target: OwnedFd,
    _others: [OwnedFd; 3],
}

impl Pair {
    fn new(b: &Bench<'_>) -> io::Result<Pair> {
        let (from, to) = b.scratch.netns.run(|| -> io::Result<_> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let from = TcpStream::connect(listener.local_addr()?)?;
            Ok((from, listener.accept()?.0))
        })??;
        for stream in [&from, &to] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        let [senders, target, kept] = [(); 3].map(|()| bpf::map(bpf::MAP_SOCKMAP, 1));
        let (senders, target, kept) = (senders?, target?, kept?);
        let redirect = Asm::new().map(R2, target.as_fd()).set(R3, 0).set(R4, BPF_F_INGRESS);
        let program = bpf::load(Kind::SkMsg, 0, "mesh_probe", &redirect.call(helper::MSG_REDIRECT_MAP).end(1))?;
        bpf::attach_to_map(program.as_fd(), senders.as_fd())?;
        bpf::put(target.as_fd(), 0, to.as_fd())?;
        // So that the queue stays when `to` is not to be found any more.
        bpf::put(kept.as_fd(), 0, to.as_fd())?;
        bpf::put(senders.as_fd(), 0, from.as_fd())?;
        Ok(Pair { from, to, target, _others: [senders, kept, program] })
    }

    /// From here on by TCP.
    fn fall(&self) -> io::Result<()> {
        bpf::remove(self.target.as_fd(), 0)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.from).write_all(bytes)
    }

    fn rest(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        (&self.to).read_to_end(&mut all)?;
        Ok(all)
    }

    fn receive(&self, most: usize, flags: libc::c_int) -> io::Result<usize> {
        SockRef::from(&self.to).recv_with_flags(&mut vec![MaybeUninit::uninit(); most], flags)
    }
}

fn order(pair: &Pair) -> io::Result<()> {
    pair.send(b"one ")?;
    pair.fall()?;
    pair.send(b"two")?;
    pair.from.shutdown(Shutdown::Write)?;
    expect("bytes", pair.rest()?, b"one two".to_vec())
}

fn slow_reader(pair: &Pair) -> io::Result<()> {
    const PIECE: usize = 16 * 1024;
    for i in 0..8_u8 {
        pair.send(&[i; PIECE])?;
    }
    pair.from.shutdown(Shutdown::Write)?;
    let wanted: Vec<u8> = (0..8_u8).flat_map(|i| [i; PIECE]).collect();
    if pair.rest()? == wanted { Ok(()) } else { Err(io::Error::other("not the bytes that were sent")) }
}

fn eof(pair: &Pair) -> io::Result<()> {
    pair.send(b"last")?;
    pair.from.shutdown(Shutdown::Write)?;
    expect("bytes before the end", pair.rest()?, b"last".to_vec())
}

fn half_close(pair: &Pair) -> io::Result<()> {
    pair.to.shutdown(Shutdown::Write)?;
    expect("bytes from who has ended", (&pair.from).read(&mut [0])?, 0)?;
    pair.send(b"answer")?;
    pair.from.shutdown(Shutdown::Both)?;
    expect("bytes after the end of the other direction", pair.rest()?, b"answer".to_vec())
}

fn reset(pair: &Pair) -> io::Result<()> {
    pair.send(b"last")?;
    // Closes as a crashed program would: the one descriptor, with a reset.
    SockRef::from(&pair.from).set_linger(Some(Duration::ZERO))?;
    disconnect(&pair.from)?;
    expect("bytes before the reset", pair.receive(64, 0)?, 4)?;
    expect("error of reading", pair.receive(64, 0).err().and_then(|e| e.raw_os_error()), Some(libc::ECONNRESET))
}

fn broken_pipe(pair: &Pair) -> io::Result<()> {
    SockRef::from(&pair.to).set_linger(Some(Duration::ZERO))?;
    disconnect(&pair.to)?;
    let send = || pair.send(b"more").err().map(|e| e.kind());
    expect("error of a send", send(), Some(io::ErrorKind::ConnectionReset))?;
    expect("error of the next", send(), Some(io::ErrorKind::BrokenPipe))
}

fn unread(pair: &Pair) -> io::Result<()> {
    pair.send(b"unread")?;
    // The last descriptor of the socket is the pair's: put another in its place.
    let nothing = std::fs::File::open("/dev/null")?;
    // SAFETY: both descriptors are open; the one that is replaced stays owned by the pair.
    if unsafe { libc::dup2(nothing.as_raw_fd(), pair.to.as_raw_fd()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let seen = (&pair.from).read(&mut [0]);
    expect("what the sender reads", seen.map_err(|e| e.raw_os_error()), Err(Some(libc::ECONNRESET)))
}

fn peek(pair: &Pair) -> io::Result<()> {
    pair.send(b"twice")?;
    expect("bytes shown", pair.receive(64, libc::MSG_PEEK)?, 5)?;
    expect("bytes read", pair.receive(64, 0)?, 5)
}

/// One thread waits for something to read while the socket's send buffer, which was full, becomes free.
fn blocking_read(pair: &Pair) -> io::Result<()> {
    while SockRef::from(&pair.to).send_with_flags(&[0; 64 * 1024], libc::MSG_DONTWAIT).is_ok() {}
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let _ = tell.send(nix::unistd::gettid());
            pair.receive(64, 0)
        });
        let stat = match told.recv() {
            Ok(thread) => format!("/proc/self/task/{thread}/stat"),
            Err(_) => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        let until = Instant::now() + PATIENCE;
        while !std::fs::read_to_string(&stat)?.contains(") S ") && Instant::now() < until {
            std::thread::yield_now();
        }
        pair.from.set_nonblocking(true)?;
        let mut waste = vec![0; 1 << 20];
        while matches!((&pair.from).read(&mut waste), Ok(n) if n > 0) {}
        pair.from.set_nonblocking(false)?;
        pair.send(b"12345")?;
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        expect("bytes read", read.map_err(|e| e.kind()), Ok(5))
    })
}

fn wait_all(pair: &Pair) -> io::Result<()> {
    pair.send(b"12345")?;
    pair.fall()?;
    pair.send(b"67890")?;
    expect("bytes of 10", pair.receive(10, libc::MSG_WAITALL)?, 10)
}

fn urgent(pair: &Pair) -> io::Result<()> {
    SockRef::from(&pair.from).send_with_flags(b"!", libc::MSG_OOB)?;
    expect("bytes in the stream", pair.receive(64, libc::MSG_DONTWAIT).unwrap_or(0), 0)
}

fn low_water(pair: &Pair) -> io::Result<()> {
    let least: libc::c_int = 10;
    // SAFETY: the value is a live int and its size is given.
    let done = unsafe {
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(pair.to.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, (&raw const least).cast(), size)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    pair.send(b"12345")?;
    expect("events", watch(pair, false)?.events()?, 0)
}

fn level(pair: &Pair) -> io::Result<()> {
    let watch = watch(pair, false)?;
    expect("events before", watch.events()?, 0)?;
    pair.send(b"12")?;
    expect("bytes read", pair.receive(1, 0)?, 1)?;
    expect("events with a byte left", watch.events()?, 1)?;
    expect("bytes read", pair.receive(1, 0)?, 1)?;
    expect("events with nothing left", watch.events()?, 0)
}

fn edge(pair: &Pair) -> io::Result<()> {
    let watch = watch(pair, true)?;
    // That it can be written.
    watch.events()?;
    for _ in 0..2 {
        pair.send(b"1")?;
        expect("events after an arrival", watch.events()?, 1)?;
        expect("events without one", watch.events()?, 0)?;
    }
    Ok(())
}

fn short_read(pair: &Pair) -> io::Result<()> {
    pair.send(b"12345")?;
    pair.fall()?;
    pair.send(b"67890")?;
    expect("bytes of a read that has room for more", pair.receive(64, 0)?, 10)
}

fn fionread(pair: &Pair) -> io::Result<()> {
    let told = || {
        let mut bytes: libc::c_int = 0;
        // SAFETY: this request writes an int, which is live.
        let done = unsafe { libc::ioctl(pair.to.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        if done == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
    };
    pair.send(b"12345")?;
    expect("told of 5 bytes by shortcut", told()?, 5)?;
    pair.fall()?;
    pair.receive(5, 0)?;
    pair.send(b"67890")?;
    expect("told of 5 bytes by TCP", told()?, 5)
}

fn splice(pair: &Pair) -> io::Result<()> {
    let (_reader, writer) = nix::unistd::pipe()?;
    pair.send(b"12345")?;
    pair.to.set_nonblocking(true)?;
    let (from, to) = (pair.to.as_raw_fd(), writer.as_raw_fd());
    let nowhere = std::ptr::null_mut();
    // SAFETY: both descriptors are open, and neither has an offset.
    let moved = unsafe { libc::splice(from, nowhere, to, nowhere, 64, libc::SPLICE_F_NONBLOCK) };
    expect("bytes moved", moved, 5)
}

/// `connect()` to AF_UNSPEC: ends the connection at once.
fn disconnect(stream: &TcpStream) -> io::Result<()> {
    // SAFETY: all zeroes is a sockaddr of AF_UNSPEC.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address is live and its size is given.
    let done = unsafe { libc::connect(stream.as_raw_fd(), &raw const nowhere, size_of_val(&nowhere) as u32) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

struct Watch(Epoll);

fn watch(pair: &Pair, edge: bool) -> io::Result<Watch> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let flags = if edge { EpollFlags::EPOLLIN | EpollFlags::EPOLLET } else { EpollFlags::EPOLLIN };
    epoll.add(&pair.to, EpollEvent::new(flags, 0))?;
    Ok(Watch(epoll))
}

impl Watch {
    fn events(&self) -> io::Result<usize> {
        Ok(self.0.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO)?)
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, seen: T, wanted: T) -> io::Result<()> {
    if seen == wanted { Ok(()) } else { Err(io::Error::other(format!("{what}: {seen:?}, not {wanted:?}"))) }
}
