//! UDP sockets that stand for many addresses of loopback at once, inside a namespace. In: the namespace and a preferred
//! port. Out: datagrams with the address at which they came in, answers sent from such an address. Takes nothing from
//! the wire and never insists on a port that the workload uses. No protocol above UDP.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::sockopt::Ipv4PacketInfo;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::netns::NetNs;

/// The largest datagram, and more.
pub const MAX_DATAGRAM: usize = 65_536;

/// Where to look for free ports when the preferred ones are taken. Below the usual ephemeral ports.
const PORTS: std::ops::RangeInclusive<u16> = 15100..=15999;

/// Opens one socket for all of 127.0.0.0/8 on `preferred`, and on `::1` one on each of `ports6` ports from there on; or
/// all of that elsewhere if any of the ports is taken. `prepare` is called with every socket before it is bound. IPv6 is
/// left out where the namespace has none. The IPv4 socket comes first.
pub fn listen(
    ns: &NetNs,
    preferred: u16,
    ports6: u16,
    mut prepare: impl FnMut(&Socket) -> io::Result<()>,
) -> io::Result<Vec<UdpSocket>> {
    ns.run(|| {
        for port in std::iter::once(preferred).chain(PORTS.step_by(ports6.max(1).into())) {
            match listen_from(port, ports6, &mut prepare) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                done => return done,
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!(
                "no {ports6} UDP ports in a row are free at {preferred} or in {} to {}",
                PORTS.start(),
                PORTS.end()
            ),
        ))
    })?
}

fn listen_from(
    port: u16,
    ports6: u16,
    prepare: &mut impl FnMut(&Socket) -> io::Result<()>,
) -> io::Result<Vec<UdpSocket>> {
    let v4 = open(Domain::IPV4)?;
    setsockopt(&v4, Ipv4PacketInfo, &true)?;
    // Bound to all addresses, because 127.0.0.0/8 cannot be bound to; but the wire's datagrams must not fill the queue.
    only_from_loopback(&v4)?;
    prepare(&v4)?;
    v4.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    let mut sockets = vec![v4.into()];
    for port in port..port.saturating_add(ports6) {
        let v6 = match open(Domain::IPV6) {
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => break,
            opened => opened?,
        };
        v6.set_only_v6(true)?;
        prepare(&v6)?;
        match v6.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, port)).into()) {
            Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => break,
            bound => bound?,
        }
        sockets.push(v6.into());
    }
    Ok(sockets)
}

fn open(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))
}

/// Drops, before it is queued, what did not come in by loopback (interface 1 of every namespace). What the host sends
/// to its own addresses comes in by loopback as well.
fn only_from_loopback(socket: &Socket) -> io::Result<()> {
    // linux/filter.h: the interface's index is at SKF_AD_OFF + SKF_AD_IFINDEX.
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let interface = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, interface),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, LOOPBACK),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the program and its statements are live variables, which the kernel copies; their sizes are given.
    let done = unsafe {
        let value = (&raw const program).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, value, size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Index of the loopback interface in every namespace.
const LOOPBACK: u32 = 1;

/// Reads one datagram into the buffer without waiting: its length, who sent it, at which of `socket`'s addresses it came
/// in. `bound` is where the socket is bound. What is larger than the buffer is cut.
pub fn receive(
    socket: &impl AsFd,
    bound: SocketAddr,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, SocketAddr)> {
    let mut space = nix::cmsg_space!(libc::in_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let fd = socket.as_fd().as_raw_fd();
    let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
    let mut at = bound;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::Ipv4PacketInfo(info) = control {
            at.set_ip(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
        }
    }
    let from = message.address.as_ref().and_then(|from| match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
        (Some(v4), _) => Some(SocketAddr::from((v4.ip(), v4.port()))),
        (_, Some(v6)) => Some(SocketAddr::from((v6.ip(), v6.port()))),
        _ => None,
    });
    let from = from.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((message.bytes, from, at))
}

/// Reads one datagram of a connected socket into the buffer without waiting.
pub fn read(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix::sys::socket::recv(socket.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
}

/// Sends one datagram from one of the socket's addresses, without waiting.
pub fn send(socket: &impl AsFd, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let (parts, to) = ([IoSlice::new(bytes)], SockaddrStorage::from(to));
    let info = match from {
        SocketAddr::V4(from) => {
            let source = libc::in_addr { s_addr: u32::from(*from.ip()).to_be() };
            Some(libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: libc::in_addr { s_addr: 0 } })
        }
        // Bound to its one address.
        SocketAddr::V6(_) => None,
    };
    let controls: Vec<_> = info.iter().map(ControlMessage::Ipv4PacketInfo).collect();
    sendmsg(fd, &parts, &controls, MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}

#[cfg(test)]
mod tests;
