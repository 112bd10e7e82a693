//! Netlink requests of the calling thread's network namespace. In: a message. Out: what the kernel answers, or its
//! errno. One socket a request; bounded by `MAX_ANSWERS`. Knows of messages only what netlink(7) says, and the kind of
//! an interface.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Messages of one answer that are read; an answer of more is an error.
const MAX_ANSWERS: usize = 65_536;
/// The kernel's own buffer for dumps.
const BUFFER: usize = 32 * 1024;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct ifinfomsg`.
const LINK: usize = 16;

/// An interface, as far as we care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index in its namespace.
    pub index: u32,
    /// What made it: `veth`, `netkit`; empty for loopback and hardware.
    pub kind: String,
}

/// The interfaces of the calling thread's namespace.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let dump = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let answers = request(libc::NETLINK_ROUTE, libc::RTM_GETLINK, dump, &[0; LINK])?;
    Ok(answers.iter().filter_map(|body| interface(body)).collect())
}

/// Sends one message and collects the bodies of what comes back until the kernel says that this was all.
pub fn request(protocol: i32, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    // SAFETY: no pointers; the result is checked before it is taken for a descriptor.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    // SAFETY: the buffer is live and as long as said.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answers = Vec::new();
    let mut buffer = vec![0_u8; BUFFER];
    loop {
        // SAFETY: as above.
        let got = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        if collect(&buffer[..got], &mut answers)? {
            return Ok(answers);
        }
    }
}

/// Takes the messages of one datagram; true after the last.
fn collect(mut datagram: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a netlink answer that is cut off");
    while !datagram.is_empty() {
        let length = u32_at(datagram, 0).ok_or_else(malformed)? as usize;
        let kind = u16_at(datagram, 4).ok_or_else(malformed)?;
        let flags = u16_at(datagram, 6).ok_or_else(malformed)?;
        let body = datagram.get(HEADER..length).ok_or_else(malformed)?;
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let errno = u32_at(body, 0).ok_or_else(malformed)?.cast_signed().wrapping_neg();
                return if errno == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(errno)) };
            }
            _ if answers.len() == MAX_ANSWERS => return Err(io::Error::other("a netlink answer without end")),
            _ => answers.push(body.to_vec()),
        }
        if i32::from(flags) & libc::NLM_F_MULTI == 0 && datagram.len() <= length.next_multiple_of(4) {
            return Ok(true);
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Reads a link's message: `struct ifinfomsg` and attributes (rtnetlink(7)).
fn interface(body: &[u8]) -> Option<Interface> {
    let index = u32_at(body, 4)?;
    let attributes = body.get(LINK..)?;
    let name = text(attribute(attributes, libc::IFLA_IFNAME)?);
    let info = attribute(attributes, libc::IFLA_LINKINFO);
    let kind = info.and_then(|info| attribute(info, libc::IFLA_INFO_KIND)).map(text).unwrap_or_default();
    Some(Interface { name, index, kind })
}

/// The value of the first attribute of a kind.
pub fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const TYPE_MASK: u16 = 0x3fff;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)? & TYPE_MASK;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn reads_name_index_and_kind() {
        let mut body = vec![0; LINK];
        body[4] = 7;
        body.extend(attr(libc::IFLA_MTU, &[0; 4]));
        body.extend(attr(libc::IFLA_IFNAME, b"eth0\0"));
        body.extend(attr(libc::IFLA_LINKINFO, &attr(libc::IFLA_INFO_KIND, b"netkit\0")));
        assert_eq!(interface(&body), Some(Interface { name: "eth0".into(), index: 7, kind: "netkit".into() }));
        assert_eq!(interface(&body[..LINK + 3]), None);
    }

    #[test]
    fn this_namespace_has_loopback() {
        let all = interfaces().unwrap();
        assert!(all.contains(&Interface { name: "lo".into(), index: 1, kind: String::new() }), "{all:?}");
    }

    #[test]
    fn an_errno_is_an_error() {
        let error = request(libc::NETLINK_ROUTE, libc::RTM_GETLINK, 0, &[0; 2]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    proptest! {
        #[test]
        fn anything_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = collect(&bytes, &mut Vec::new());
            let _ = interface(&bytes);
        }
    }
}
