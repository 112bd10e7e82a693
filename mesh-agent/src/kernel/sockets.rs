//! Sockets that the programs know. In: descriptors and namespaces. Out: sockets marked as the agent's, what the programs
//! noted on accepted ones, and which DNS server a question is for. One system call each, no lock, so every worker can have a copy.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::Map;
use mesh_common::abi::{Agent, DnsPlace, LINK_WANTED, Role, maps};
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::capture;
use socket2::{Domain, Protocol, Socket, Type};

use super::{KernelError, chain};
use crate::net::netns::{NetNs, socket_cookie};
use crate::settings::Shortcuts;

/// Opens sockets that the programs leave alone, and reads what they noted.
#[derive(Clone)]
pub struct Sockets(Arc<Storages>);

struct Storages {
    agent: OwnedFd,
    dns: OwnedFd,
    read: OwnedFd,
    /// Whether an application cannot tell a shortcut from TCP.
    unseen: bool,
}

/// What became of a connection before the agent accepted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirected {
    /// Where the application wanted to go.
    pub to: SocketAddr,
    /// The endpoint that the programs chose, where `to` is a service's address that they know.
    pub chosen: Option<SocketAddr>,
    /// The shortcut that the connection has, as [`Sockets::shortcut`] says it.
    pub shortcut: Option<u64>,
}

impl Sockets {
    pub(super) fn new(object: &Ebpf, unseen: bool) -> Result<Sockets, KernelError> {
        Ok(Sockets(Arc::new(Storages {
            agent: storage(object, maps::AGENT)?,
            dns: hash(object, maps::DNS)?,
            read: hash(object, maps::SHORT_READ)?,
            unseen,
        })))
    }

    /// Where the application wanted to go, for a socket accepted from an outbound listener. `None`: nobody was
    /// redirected, the application dialled the listener by hand (or the hand-over map was full): reset it.
    pub fn original_destination(&self, fd: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        Ok(self.redirected(fd)?.map(|redirected| redirected.to))
    }

    /// As [`Sockets::original_destination`], with what the programs have chosen for it.
    pub fn redirected(&self, fd: BorrowedFd<'_>) -> io::Result<Option<Redirected>> {
        // Nobody can connect to port 0.
        let there = |end: Endpoint| (end.port != 0).then(|| SocketAddr::from(end));
        let known = self.known(fd)?;
        Ok(known.and_then(|known| {
            Some(Redirected { to: there(known.far)?, chosen: there(known.chosen), shortcut: link(&known) })
        }))
    }

    /// The DNS server for which the agent's listener stands at this address of the namespace. `None`: nobody was sent
    /// here by the programs; drop it.
    pub fn dns_server(&self, ns: &NetNs, at: SocketAddr) -> io::Result<Option<SocketAddr>> {
        let key = DnsPlace { netns: ns.cookie(), at: at.into(), zero: 0 };
        let mut value = Endpoint::ZERO;
        let there = found(element(MAP_LOOKUP_ELEM, &self.0.dns, &key, &mut value))?;
        Ok(there.then(|| value.into()))
    }

    /// Opens a nonblocking UDP socket inside the namespace, of the family of `to`, marked as the agent's.
    pub fn datagrams(&self, ns: &NetNs, to: SocketAddr) -> io::Result<Socket> {
        self.open(ns, to, Type::DGRAM, Protocol::UDP, plain(Role::Dial))
    }

    /// Opens a raw socket for ICMP of the family of `to` inside the namespace, marked as the agent's. Needs CAP_NET_RAW.
    pub fn icmp(&self, ns: &NetNs, to: SocketAddr) -> io::Result<Socket> {
        let protocol = if to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        self.open(ns, to, Type::RAW, protocol, plain(Role::Dial))
    }

    /// Opens a nonblocking TCP socket inside the namespace, of the family of `to`, marked as the agent's: a connection
    /// that it makes goes where it says.
    pub fn socket(&self, ns: &NetNs, to: SocketAddr) -> io::Result<Socket> {
        self.open(ns, to, Type::STREAM, Protocol::TCP, plain(Role::Dial))
    }

    /// As [`Sockets::socket`], to dial an application: its `accept()` and `getpeername()` will tell `client`. Bound to a
    /// loopback address, so that the application's closed connections never use up the ports. A client of the other
    /// family can be shown only where the application listens with an AF_INET6 socket.
    pub fn socket_to_app(&self, ns: &NetNs, to: SocketAddr, client: SocketAddr) -> io::Result<Socket> {
        self.to_app(ns, to, client, 0)
    }

    /// As [`Sockets::socket_to_app`]; the connection may have a shortcut.
    pub fn socket_to_app_by_shortcut(&self, ns: &NetNs, to: SocketAddr, client: SocketAddr) -> io::Result<Socket> {
        self.to_app(ns, to, client, LINK_WANTED)
    }

    fn to_app(&self, ns: &NetNs, to: SocketAddr, client: SocketAddr, link: u64) -> io::Result<Socket> {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let known = Agent { far: client.into(), link, ..plain(Role::DialApp) };
        let socket = self.open(ns, to, Type::STREAM, Protocol::TCP, known)?;
        let from: IpAddr = match to {
            SocketAddr::V4(_) => Addr::from_v4_wire(capture::spread(rand::random())).into(),
            SocketAddr::V6(to) if to.ip().to_ipv4_mapped().is_some() => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        // The port is chosen at connect, where the whole tuple decides what is free.
        bind_without_port(&socket)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        Ok(socket)
    }

    /// Whether the application to which this socket connects will be told its client. False where there was no place to
    /// note it: end the connection, or the application takes the client for somebody on its own host. To be asked once
    /// `connect` was called.
    pub fn shows_client(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(self.known(fd)?.is_some_and(|known| known.far != Endpoint::ZERO))
    }

    /// Whether connections of a workload with this setting may have shortcuts on this kernel.
    pub fn may_shorten(&self, setting: Shortcuts) -> bool {
        match setting {
            Shortcuts::Auto => self.0.unseen,
            Shortcuts::On => true,
            Shortcuts::Off => false,
        }
    }

    /// Which shortcut a connected or accepted socket is an end of, if any. What comes by it is to be counted, and told with
    /// [`Sockets::tell_read`].
    pub fn shortcut(&self, fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
        Ok(self.known(fd)?.and_then(|known| link(&known)))
    }

    /// Says how many bytes the agent has read, in all, of what came by a shortcut. False if nobody asks any more: nothing comes
    /// by it now.
    pub fn tell_read(&self, shortcut: u64, bytes: u64) -> io::Result<bool> {
        let mut bytes = bytes;
        found(element_with(MAP_UPDATE_ELEM, BPF_EXIST, &self.0.read, &shortcut, &mut bytes))
    }

    /// Marks a socket that listens for applications, so that what it accepts may have shortcuts.
    pub(super) fn mark_outbound(&self, socket: BorrowedFd<'_>, shortcuts: bool) -> io::Result<()> {
        let link = if shortcuts { LINK_WANTED } else { 0 };
        element(MAP_UPDATE_ELEM, &self.0.agent, &socket.as_raw_fd(), &mut Agent { link, ..plain(Role::Outbound) })
    }

    /// Marks a socket, before it listens or connects, as the agent's.
    pub(super) fn mark(&self, socket: &Socket, role: Role) -> io::Result<()> {
        self.note(socket, plain(role))
    }

    fn known(&self, fd: BorrowedFd<'_>) -> io::Result<Option<Agent>> {
        let mut known = Agent { role: 0, far: Endpoint::ZERO, chosen: Endpoint::ZERO, zero: 0, link: 0 };
        let there = found(element(MAP_LOOKUP_ELEM, &self.0.agent, &fd.as_raw_fd(), &mut known))?;
        Ok(there.then_some(known))
    }

    fn note(&self, socket: &Socket, mut known: Agent) -> io::Result<()> {
        element(MAP_UPDATE_ELEM, &self.0.agent, &socket.as_raw_fd(), &mut known)
    }

    fn open(&self, ns: &NetNs, to: SocketAddr, kind: Type, protocol: Protocol, known: Agent) -> io::Result<Socket> {
        let socket = ns.run(|| Socket::new(Domain::for_address(to), kind.nonblocking(), Some(protocol)))??;
        if socket_cookie(&socket)? != ns.cookie() {
            return Err(io::Error::other("a socket was opened outside the workload's namespace"));
        }
        self.note(&socket, known)?;
        Ok(socket)
    }
}

fn storage(object: &Ebpf, name: &'static str) -> Result<OwnedFd, KernelError> {
    let wrong = |why: String| KernelError::Map { map: name, why };
    match object.map(name) {
        Some(Map::SkStorage(data)) => data.fd().as_fd().try_clone_to_owned().map_err(|e| wrong(chain(&e))),
        _ => Err(wrong("not in the object, or not a socket storage".into())),
    }
}

fn hash(object: &Ebpf, name: &'static str) -> Result<OwnedFd, KernelError> {
    let wrong = |why: String| KernelError::Map { map: name, why };
    match object.map(name) {
        Some(Map::HashMap(data)) => data.fd().as_fd().try_clone_to_owned().map_err(|e| wrong(chain(&e))),
        _ => Err(wrong("not in the object, or not a hash".into())),
    }
}

/// The shortcut that a socket is an end of.
fn link(known: &Agent) -> Option<u64> {
    (!matches!(known.link, 0 | LINK_WANTED)).then_some(known.link)
}

/// A socket of which only the role is known.
fn plain(role: Role) -> Agent {
    Agent { role: role as u32, far: Endpoint::ZERO, chosen: Endpoint::ZERO, zero: 0, link: 0 }
}

/// Whether a lookup has found something: that there is nothing is no error.
fn found(looked_up: io::Result<()>) -> io::Result<bool> {
    match looked_up {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes `bind` take the address only (ip(7), IP_BIND_ADDRESS_NO_PORT; it holds for AF_INET6 sockets as well).
fn bind_without_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let (level, option) = (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is a live int and its size is given.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
/// Fails if there is no such entry.
const BPF_EXIST: u64 = 2;

/// The part of `union bpf_attr` for the commands on elements, linux/bpf.h.
#[repr(C, align(8))]
struct Attr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// One command on one element. A socket storage's key is the socket's descriptor. A lookup writes `value`, an update
/// reads it.
fn element<K, V>(command: libc::c_long, map: &OwnedFd, key: &K, value: &mut V) -> io::Result<()> {
    element_with(command, 0, map, key, value)
}

/// As [`element`], with flags.
fn element_with<K, V>(command: libc::c_long, flags: u64, map: &OwnedFd, key: &K, value: &mut V) -> io::Result<()> {
    let (key, value) = (&raw const *key as u64, &raw mut *value as u64);
    let mut attr = Attr { map: map.as_raw_fd().cast_unsigned(), pad: 0, key, value, flags };
    // SAFETY: attr has the layout that the kernel expects for this command and its size is given; the callers above give
    // a key and a value of the map's types, which live until the call returns and may hold any bytes; their sizes are
    // asserted with the types and checked against the map's by the kernel tests.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<Attr>()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
