//! Listeners inside a namespace. In: the namespace and a preferred port. Out: one nonblocking listener per family, all
//! on one port. Never listens in the agent's own namespace and never insists on a port that the workload uses.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;

use socket2::{Domain, Protocol, Socket, Type};

use super::netns::NetNs;

/// Connections that the kernel keeps for us between two calls of `accept`; capped by `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// Where to look for a free port when the preferred one is taken. Below the usual ephemeral ports.
const PORTS: RangeInclusive<u16> = 15100..=15999;

/// Opens listeners on all addresses of the namespace, on `preferred` or else on another free port, called with every
/// socket before it is bound. IPv6 is left out where the namespace has none.
pub fn listen(
    ns: &NetNs,
    preferred: u16,
    mut prepare: impl FnMut(&Socket) -> io::Result<()>,
) -> io::Result<Vec<TcpListener>> {
    ns.run(|| {
        for port in std::iter::once(preferred).chain(PORTS) {
            match listen_on(port, &mut prepare) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                done => return done,
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("ports {preferred} and {} to {} are all in use", PORTS.start(), PORTS.end()),
        ))
    })?
}

/// As [`listen`], on this port alone, which several listeners of this process may share: each takes a part of what comes.
pub fn listen_shared(
    ns: &NetNs,
    port: u16,
    mut prepare: impl FnMut(&Socket) -> io::Result<()>,
) -> io::Result<Vec<TcpListener>> {
    let mut prepare = |socket: &Socket| {
        socket.set_reuse_port(true)?;
        prepare(socket)
    };
    ns.run(|| listen_on(port, &mut prepare))?
}

fn listen_on(port: u16, prepare: &mut impl FnMut(&Socket) -> io::Result<()>) -> io::Result<Vec<TcpListener>> {
    let mut listeners = vec![listen_at((Ipv4Addr::UNSPECIFIED, port).into(), prepare)?];
    match listen_at((Ipv6Addr::UNSPECIFIED, port).into(), prepare) {
        Ok(listener) => listeners.push(listener),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {}
        Err(e) => return Err(e),
    }
    Ok(listeners)
}

fn listen_at(at: SocketAddr, prepare: &mut impl FnMut(&Socket) -> io::Result<()>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    // What the listener accepts holds the application's port: without this the application could not bind it again.
    socket.set_reuse_address(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    prepare(&socket)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
