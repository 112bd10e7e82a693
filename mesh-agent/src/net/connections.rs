//! The TCP connections that a network namespace has now. In: the namespace. Out: their ends, and which end opened them;
//! and the end of one that must not go on. Reads `/proc/net/tcp` and `tcp6` (proc_net_tcp in the kernel's
//! documentation); never touches a socket's data.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::netlink;
use super::netns::NetNs;

/// A TCP connection between this namespace and somewhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The end in the namespace; IPv4 in its own form also on an AF_INET6 socket.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// It was opened from outside: somebody listens on the local port.
    pub inbound: bool,
}

/// The connections of the namespace to other hosts, open or being opened or closed; none that is all over (TIME_WAIT).
pub fn connections(ns: &NetNs) -> io::Result<Vec<Connection>> {
    let read = |path: &str| match std::fs::read_to_string(path) {
        // Without IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text,
    };
    let (v4, v6) =
        ns.run(|| io::Result::Ok((read("/proc/thread-self/net/tcp")?, read("/proc/thread-self/net/tcp6")?)))??;
    Ok(parse([&v4, &v6]))
}

/// Ends a connection with a reset to both sides (`SOCK_DESTROY`, sock_diag(7)). One that is gone already is no error.
pub fn destroy(ns: &NetNs, connection: &Connection) -> io::Result<()> {
    let ask = |kind: u16, flags: i32, cookie: u64| {
        let body = diag_request(connection.local, connection.remote, cookie);
        match netlink::request(libc::NETLINK_SOCK_DIAG, kind, flags as u16, &body) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            answers => answers,
        }
    };
    ns.run(|| {
        // The kernel looks a socket up as for a packet: where the connection is gone it finds who listens there, the agent
        // among others, and would end that.
        let found = ask(SOCK_DIAG_BY_FAMILY, 0, ANY_COOKIE)?;
        match found.first().and_then(|answer| Some((*answer.get(STATE)?, answer.get(COOKIE)?.try_into().ok()?))) {
            None | Some((LISTEN, _)) => Ok(()),
            Some((_, cookie)) => ask(SOCK_DESTROY, libc::NLM_F_ACK, u64::from_ne_bytes(cookie)).map(drop),
        }
    })?
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const ANY_COOKIE: u64 = u64::MAX;
/// Places in `struct inet_diag_msg`.
const STATE: usize = 1;
const COOKIE: std::ops::Range<usize> = 44..52;

/// `struct inet_diag_req_v2`.
fn diag_request(local: SocketAddr, remote: SocketAddr, cookie: u64) -> Vec<u8> {
    let mut body = Vec::with_capacity(56);
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    body.extend([family.to_le_bytes()[0], libc::IPPROTO_TCP.to_le_bytes()[0], 0, 0]);
    // Every state.
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(remote.port().to_be_bytes());
    for ip in [local.ip(), remote.ip()] {
        match ip {
            IpAddr::V4(ip) => {
                body.extend(ip.octets());
                body.extend([0; 12]);
            }
            IpAddr::V6(ip) => body.extend(ip.octets()),
        }
    }
    body.extend(0_u32.to_ne_bytes());
    body.extend(cookie.to_ne_bytes());
    body
}

/// States of the fourth column, linux/net/tcp_states.h.
const TIME_WAIT: u8 = 0x06;
const CLOSE: u8 = 0x07;
const LISTEN: u8 = 0x0a;

fn parse(tables: [&str; 2]) -> Vec<Connection> {
    let rows: Vec<Row> = tables.into_iter().flat_map(|table| table.lines().skip(1).filter_map(row)).collect();
    let listening: HashSet<u16> = rows.iter().filter(|row| row.state == LISTEN).map(|row| row.local.port()).collect();
    let elsewhere = |row: &&Row| {
        !matches!(row.state, TIME_WAIT | CLOSE | LISTEN)
            && !row.remote.ip().is_loopback()
            && row.remote.ip() != row.local.ip()
    };
    rows.iter()
        .filter(elsewhere)
        .map(|row| Connection { local: row.local, remote: row.remote, inbound: listening.contains(&row.local.port()) })
        .collect()
}

struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
}

/// `sl local_address rem_address st …`; `None` for what has another form.
fn row(line: &str) -> Option<Row> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let local = end(columns.next()?)?;
    let remote = end(columns.next()?)?;
    let state = u8::from_str_radix(columns.next()?, 16).ok()?;
    Some(Row { local, remote, state })
}

/// `0100007F:1F90`: 32-bit words as the host reads them, and the port.
fn end(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |i: usize| {
        let digits = words.get(i * 8..i * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = match words.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (i, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(i)?);
            }
            IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[cfg(target_endian = "little")]
    const V4: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
           0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0 0 1\n\
           1: 0200000A:1F90 0300000A:C350 01 00000000:00000000 00:00000000 00000000     0 0 2\n\
           2: 0200000A:C351 0300000A:0050 08 00000000:00000000 00:00000000 00000000     0 0 3\n\
           3: 0200000A:C352 0300000A:0050 06 00000000:00000000 00:00000000 00000000     0 0 3\n\
           4: 0100007F:C353 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0 0 3\n\
           5: rubbish\n";
    #[cfg(target_endian = "little")]
    const V6: &str = "  sl  local_address remote_address st\n\
           0: 0000000000000000FFFF00000200000A:C354 0000000000000000FFFF00000300000A:0051 01 0\n\
           1: 000000FD000000000000000002000000:C355 000000FD000000000000000003000000:0052 02 0\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn reads_the_kernels_table() {
        let of = |local: &str, remote: &str, inbound| Connection {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            inbound,
        };
        assert_eq!(
            parse([V4, V6]),
            [
                of("10.0.0.2:8080", "10.0.0.3:50000", true),
                of("10.0.0.2:50001", "10.0.0.3:80", false),
                of("10.0.0.2:50004", "10.0.0.3:81", false),
                of("[fd00::2]:50005", "[fd00::3]:82", false),
            ]
        );
    }

    #[test]
    fn destroys_a_connection_and_no_other() {
        let here = NetNs::current().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ends = |stream: &TcpStream| Connection {
            local: stream.local_addr().unwrap(),
            remote: stream.peer_addr().unwrap(),
            inbound: false,
        };
        let first = ends(&client);
        destroy(&here, &first).unwrap();
        // Again: it is gone.
        destroy(&here, &first).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        other.set_nonblocking(true).unwrap();
        assert_eq!((&other).read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    /// Where the connection was, the kernel finds the listener.
    #[test]
    fn what_is_gone_does_not_take_its_listener_along() {
        let here = NetNs::current().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, remote) = listener.accept().unwrap();
        let gone = Connection { local: listener.local_addr().unwrap(), remote, inbound: true };
        // Its remains are the client's, who closes first.
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        drop(server);
        destroy(&here, &gone).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.accept().unwrap();
    }
}
