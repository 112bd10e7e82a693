//! "Port unreachable", as the server's host would have said it, for the socket that asked: a connected one fails with
//! ECONNREFUSED. In: who asked, and at which address of the agent. Out: an ICMP message (RFC 792; RFC 4443, 3.1) that
//! quotes the question's headers. Contains nothing that came from elsewhere.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

use socket2::Socket;

const UDP: u8 = 17;
/// Bytes of a UDP header.
const HEADER: u8 = 8;

/// Sends the message, on a raw socket of the client's family, to a client in the same namespace.
pub(super) fn send(icmp: &Socket, client: SocketAddr, asked: SocketAddr) -> io::Result<()> {
    // To a port: raw sockets have none.
    let to = SocketAddr::new(client.ip(), 0).into();
    match (client, asked) {
        (SocketAddr::V4(client), SocketAddr::V4(asked)) => icmp.send_to(&v4(client, asked), &to),
        (SocketAddr::V6(client), SocketAddr::V6(asked)) => icmp.send_to(&v6(client, asked), &to),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }?;
    Ok(())
}

/// The ICMP message with IPv4 and UDP headers of the question.
fn v4(client: SocketAddrV4, asked: SocketAddrV4) -> [u8; 36] {
    let mut message = [0; 36];
    // Destination unreachable, port unreachable.
    message[0] = 3;
    message[1] = 3;
    let quoted = &mut message[8..];
    quoted[0] = 0x45;
    quoted[3] = 20 + HEADER;
    quoted[8] = 64;
    quoted[9] = UDP;
    quoted[12..16].copy_from_slice(&client.ip().octets());
    quoted[16..20].copy_from_slice(&asked.ip().octets());
    ports(&mut quoted[20..], client.port(), asked.port());
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

/// The ICMPv6 message with IPv6 and UDP headers of the question. The kernel adds the checksum.
fn v6(client: SocketAddrV6, asked: SocketAddrV6) -> [u8; 56] {
    let mut message = [0; 56];
    // Destination unreachable, port unreachable.
    message[0] = 1;
    message[1] = 4;
    let quoted = &mut message[8..];
    quoted[0] = 0x60;
    quoted[5] = HEADER;
    quoted[6] = UDP;
    quoted[7] = 64;
    quoted[8..24].copy_from_slice(&client.ip().octets());
    quoted[24..40].copy_from_slice(&asked.ip().octets());
    ports(&mut quoted[40..], client.port(), asked.port());
    message
}

fn ports(udp: &mut [u8], source: u16, destination: u16) {
    udp[..2].copy_from_slice(&source.to_be_bytes());
    udp[2..4].copy_from_slice(&destination.to_be_bytes());
    udp[5] = HEADER;
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_well_formed() {
        let message = v4("127.0.0.1:40000".parse().unwrap(), "127.53.1.2:15053".parse().unwrap());
        assert_eq!(checksum(&message), 0, "a message with its checksum sums to nothing");
        assert_eq!(message[..2], [3, 3]);
        assert_eq!(message[28..32], [0x9c, 0x40, 0x3a, 0xcd]);
        let message = v6("[::1]:40000".parse().unwrap(), "[::1]:15054".parse().unwrap());
        assert_eq!((message[0], message[1], message[14]), (1, 4, UDP));
        assert_eq!(message[48..52], [0x9c, 0x40, 0x3a, 0xce]);
    }
}
