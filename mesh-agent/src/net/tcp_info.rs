//! What the TCP sockets of a network namespace count of themselves. In: the namespace. Out: their ends and their counts
//! (`INET_DIAG_INFO`, sock_diag(7)). Never touches a socket.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mesh_common::tcp::{CLOSE_WAIT, CLOSING, Counts, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK};

use super::netlink;
use super::netns::NetNs;

/// A connection of a namespace, and what its socket there counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The end in the namespace; IPv4 in its own form also on an AF_INET6 socket.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Its counts, if it is one that has connected.
    pub counts: Counts,
}

/// The namespace's connections that are open, or being closed. The kernel reads a socket's state first and what it counts
/// later, and a FIN counts for one: so those whose state has changed meanwhile are left out.
pub fn counted(ns: &NetNs) -> io::Result<Vec<Counted>> {
    let ask = |family: i32| {
        let body = request(family);
        netlink::request(libc::NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP as u16, &body)
    };
    let look = || {
        let answers = [ask(libc::AF_INET)?, ask(libc::AF_INET6)?];
        io::Result::Ok(answers.iter().flatten().filter_map(|body| read(body)).collect::<Vec<_>>())
    };
    let (mut found, again) = ns.run(|| io::Result::Ok((look()?, look()?)))??;
    let states: HashMap<_, _> = again.iter().map(|one| ((one.local, one.remote), one.counts.state)).collect();
    found.retain(|one| states.get(&(one.local, one.remote)) == Some(&one.counts.state));
    Ok(found)
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `INET_DIAG_INFO` of linux/inet_diag.h.
const INFO: u16 = 2;
/// Those in which an application's bytes may be counted.
const STATES: u32 = 1 << ESTABLISHED | 1 << FIN_WAIT1 | 1 << FIN_WAIT2 | 1 << CLOSE_WAIT | 1 << LAST_ACK | 1 << CLOSING;

/// `struct inet_diag_req_v2` for a dump.
fn request(family: i32) -> Vec<u8> {
    let mut body = vec![family.to_le_bytes()[0], libc::IPPROTO_TCP.to_le_bytes()[0], 1 << (INFO - 1), 0];
    body.extend(STATES.to_ne_bytes());
    // Of every socket.
    body.resize(56, 0);
    body
}

/// Reads `struct inet_diag_msg` and, behind it, `struct tcp_info` (linux/inet_diag.h, linux/tcp.h). `None` for what has no
/// counts, as TIME_WAIT.
fn read(body: &[u8]) -> Option<Counted> {
    const MESSAGE: usize = 72;
    /// Places in `struct tcp_info`.
    const ACKED: usize = 120;
    const RECEIVED: usize = 128;
    let family = i32::from(*body.first()?);
    let state = u32::from(*body.get(1)?);
    let info = netlink::attribute(body.get(MESSAGE..)?, INFO)?;
    let number = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    let end = |port: usize, address: usize| {
        let port = u16::from_be_bytes(body.get(port..port + 2)?.try_into().ok()?);
        let ip = match family {
            libc::AF_INET => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(body.get(address..address + 4)?).ok()?)),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(body.get(address..address + 16)?).ok()?).to_canonical(),
        };
        Some(SocketAddr::new(ip, port))
    };
    // Whose FIN is taken note of has another state than LAST_ACK and CLOSING; and one whose other end's has come, than FIN_WAIT2.
    let counts = Counts { state, acked: number(ACKED)?, all_acked: false, received: number(RECEIVED)?, ended: false };
    Some(Counted { local: end(4, 8)?, remote: end(6, 24)?, counts })
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn of(stream: &TcpStream) -> Option<Counted> {
        let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        counted(&NetNs::current().unwrap()).unwrap().into_iter().find(|one| one.local == local && one.remote == remote)
    }

    #[test]
    fn bytes_of_open_and_half_closed_connections() {
        for on in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(on).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(&[0; 1234]).unwrap();
            server.read_exact(&mut [0; 1234]).unwrap();
            server.write_all(&[0; 77]).unwrap();
            client.read_exact(&mut [0; 77]).unwrap();
            let counts = of(&client).unwrap().counts;
            assert_eq!((counts.forward(), counts.back()), (1234, 77));
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            server.write_all(&[0; 3]).unwrap();
            client.read_exact(&mut [0; 3]).unwrap();
            let counts = of(&client).unwrap().counts;
            assert_eq!((counts.state, counts.forward(), counts.back()), (FIN_WAIT2, 1234, 80));
            // Whoever is told of the end by the other one.
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            listener.accept().unwrap().0.shutdown(Shutdown::Both).unwrap();
            assert_eq!((&client).read(&mut [0]).unwrap(), 0);
            let counts = of(&client).unwrap().counts;
            assert_eq!((counts.forward(), counts.back()), (0, 0));
        }
    }

    /// Neither end's FIN is ever taken for a byte.
    #[test]
    fn connections_that_are_being_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let end = Instant::now() + Duration::from_secs(1);
        let opening = std::thread::spawn(move || {
            // They stay for a while, so that whoever looks finds them however long it takes, as where many others wait for their end.
            let mut open = VecDeque::new();
            while Instant::now() < end {
                let client = TcpStream::connect(to).unwrap();
                open.push_back((client, listener.accept().unwrap().0));
                std::thread::sleep(Duration::from_micros(50));
                if open.len() > 256
                    && let Some((client, server)) = open.pop_front()
                {
                    client.shutdown(Shutdown::Write).unwrap();
                    server.shutdown(Shutdown::Write).unwrap();
                }
            }
        });
        let mut seen = 0;
        while Instant::now() < end {
            for one in counted(&NetNs::current().unwrap()).unwrap().iter().filter(|one| one.remote == to) {
                assert_eq!((one.counts.forward(), one.counts.back()), (0, 0), "{one:?}");
                seen += 1;
            }
        }
        opening.join().unwrap();
        assert_ne!(seen, 0);
    }

    proptest! {
        #[test]
        fn anything_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes);
        }
    }
}
