//! Sockets that the programs know. In: descriptors and namespaces. Out: sockets marked as the agent's, and what the
//! programs noted on accepted ones. One system call each, no lock, so every worker can have a copy.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::Map;
use mesh_common::abi::{Role, maps};
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::capture;
use socket2::{Domain, Protocol, Socket, Type};

use super::{KernelError, chain};
use crate::net::netns::{NetNs, socket_cookie};

/// Opens sockets that the programs leave alone, and reads what they noted.
#[derive(Clone)]
pub struct Sockets(Arc<Storages>);

struct Storages {
    agent: OwnedFd,
    client: OwnedFd,
    origin: OwnedFd,
}

impl Sockets {
    pub(super) fn new(object: &Ebpf) -> Result<Sockets, KernelError> {
        Ok(Sockets(Arc::new(Storages {
            agent: storage(object, maps::AGENT)?,
            client: storage(object, maps::CLIENT)?,
            origin: storage(object, maps::ORIGIN)?,
        })))
    }

    /// Where the application wanted to go, for a socket accepted from an outbound listener. `None`: nobody was
    /// redirected, the application dialled the listener by hand (or the hand-over map was full): reset it.
    pub fn original_destination(&self, fd: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        let mut value = Endpoint::ZERO;
        match element(MAP_LOOKUP_ELEM, &self.0.origin, fd, &raw mut value as u64) {
            Ok(()) => Ok(Some(value.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Opens a nonblocking TCP socket inside the namespace, of the family of `to`, marked as the agent's: a connection
    /// that it makes goes where it says.
    pub fn socket(&self, ns: &NetNs, to: SocketAddr) -> io::Result<Socket> {
        self.open(ns, to, Role::Dial)
    }

    /// As [`Sockets::socket`], to dial an application: its `accept()` and `getpeername()` will tell `client`. Bound to a
    /// loopback address, so that the application's closed connections never use up the ports. A client of the other
    /// family can be shown only where the application listens with an AF_INET6 socket.
    pub fn socket_to_app(&self, ns: &NetNs, to: SocketAddr, client: SocketAddr) -> io::Result<Socket> {
        let socket = self.open(ns, to, Role::DialApp)?;
        let mut value = Endpoint::from(SocketAddr::new(client.ip().to_canonical(), client.port()));
        element(MAP_UPDATE_ELEM, &self.0.client, socket.as_fd(), &raw mut value as u64)?;
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

    /// Marks a socket, before it listens or connects, as the agent's.
    pub(super) fn mark(&self, socket: &Socket, role: Role) -> io::Result<()> {
        let mut value = role as u32;
        element(MAP_UPDATE_ELEM, &self.0.agent, socket.as_fd(), &raw mut value as u64)
    }

    fn open(&self, ns: &NetNs, to: SocketAddr, role: Role) -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking();
        let socket = ns.run(|| Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP)))??;
        if socket_cookie(&socket)? != ns.cookie() {
            return Err(io::Error::other("a socket was opened outside the workload's namespace"));
        }
        self.mark(&socket, role)?;
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

/// The part of `union bpf_attr` for the commands on elements, linux/bpf.h.
#[repr(C, align(8))]
struct Attr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// One command on the element of a socket storage that belongs to `socket`. `value` is the address of a live variable
/// of the map's value type, written by a lookup and read by an update.
fn element(command: libc::c_long, map: &OwnedFd, socket: BorrowedFd<'_>, value: u64) -> io::Result<()> {
    let key = socket.as_raw_fd();
    let mut attr = Attr { map: map.as_raw_fd().cast_unsigned(), pad: 0, key: &raw const key as u64, value, flags: 0 };
    // SAFETY: attr has the layout that the kernel expects for this command and its size is given; key is a live i32, as
    // every socket storage has it; the callers above give a live value of the map's type, whose size is asserted with
    // the type and checked against the map's by the kernel tests.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<Attr>()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
