//! Packets as a program with CAP_NET_RAW makes them, and everything that arrives at the other end of the wire.

use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use mesh_agent::net::netns::NetNs;
use socket2::{Domain, Protocol, Socket, Type};

use super::support::*;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;

/// Flags of TCP.
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const SYN_ACK: u8 = 0x12;
pub const ACK: u8 = 0x10;

/// A TCP header and data, with the sequence and acknowledgement numbers 1.
pub fn segment(from: SocketAddr, to: SocketAddr, flags: u8, data: &[u8]) -> Vec<u8> {
    segment_at(from, to, [1, 1], flags, data)
}

/// As [`segment`], with those two numbers.
pub fn segment_at(from: SocketAddr, to: SocketAddr, numbers: [u32; 2], flags: u8, data: &[u8]) -> Vec<u8> {
    segment_with(from, to, numbers, flags, b"", data)
}

/// As [`segment_at`], with options, in a multiple of four bytes.
pub fn segment_with(
    from: SocketAddr,
    to: SocketAddr,
    numbers: [u32; 2],
    flags: u8,
    options: &[u8],
    data: &[u8],
) -> Vec<u8> {
    let words = u8::try_from((20 + options.len()) / 4).unwrap();
    let mut tcp = Vec::new();
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(numbers.map(u32::to_be_bytes).concat());
    tcp.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(options);
    tcp.extend(data);
    let mut pseudo = Vec::new();
    match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            pseudo.extend(from.ip().octets());
            pseudo.extend(to.ip().octets());
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            pseudo.extend(from.ip().octets());
            pseudo.extend(to.ip().octets());
        }
        _ => panic!("two families"),
    }
    pseudo.extend([0, 6]);
    pseudo.extend(u16::try_from(tcp.len()).unwrap().to_be_bytes());
    let sum = pseudo.chunks(2).chain(tcp.chunks(2)).fold(0_u32, |sum, pair| {
        let word = u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    });
    let checksum = !u16::try_from(sum).unwrap();
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    tcp
}

/// A UDP header without a checksum, and data.
pub fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap();
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], data].concat()
}

/// An IP packet from the pod; `fragment` is IPv4's word of flags and offset.
pub fn packet(to: IpAddr, protocol: u8, fragment: u16, content: &[u8]) -> Vec<u8> {
    packet_from(ip_of(if to.is_ipv4() { POD4 } else { POD6 }), to, protocol, [1, fragment], content)
}

/// As [`packet`], from anywhere; `words` are IPv4's identification, and its flags and offset.
pub fn packet_from(from: IpAddr, to: IpAddr, protocol: u8, words: [u16; 2], content: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(20 + content.len()).unwrap().to_be_bytes();
            let [id, fragment] = words.map(u16::to_be_bytes);
            let mut ip = vec![0x45, 0, total[0], total[1], id[0], id[1], fragment[0], fragment[1], 64, protocol, 0, 0];
            ip.extend(from.octets());
            ip.extend(to.octets());
            let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            ip.extend(content);
            ip
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            let mut ip = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
            ip.extend(from.octets());
            ip.extend(to.octets());
            ip.extend(content);
            ip
        }
        _ => panic!("two families"),
    }
}

/// The address of a namespace's end of the wire.
pub fn mac(ns: &NetNs) -> Vec<u8> {
    let show = || std::process::Command::new("ip").args(["-o", "link", "show", "eth0"]).output().unwrap();
    let link = String::from_utf8(ns.run(show).unwrap().stdout).unwrap();
    let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned();
    mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// A packet socket. What it is told to send goes out by eth0 as it is.
pub struct Frames {
    pub socket: Socket,
    index: i32,
    head: Vec<u8>,
}

impl Frames {
    /// In the pod.
    pub fn new(net: &Net) -> Frames {
        Frames::between(&net.pod, &net.wire)
    }

    /// At the other end of the wire.
    pub fn to_pod(net: &Net) -> Frames {
        Frames::between(&net.wire, &net.pod)
    }

    fn between(from: &NetNs, to: &NetNs) -> Frames {
        let head = [mac(to), mac(from)].concat();
        let (socket, index) = from
            .run(|| {
                (Socket::new(Domain::PACKET, Type::RAW, None).unwrap(), nix::net::if_::if_nametoindex("eth0").unwrap())
            })
            .unwrap();
        Frames { socket, index: index as i32, head }
    }

    /// Sends a frame with this type and content; the kernel is told that it is of type `said`. That it was dropped is no
    /// error.
    pub fn send(&self, said: u16, ethertype: u16, content: &[u8]) {
        let frame = [&self.head, &ethertype.to_be_bytes()[..], content].concat();
        // SAFETY: all zeroes is a sockaddr_ll.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = said.to_be();
        to.sll_ifindex = self.index;
        // SAFETY: frame and address are live and their sizes are given.
        let sent = unsafe {
            let (fd, size) = (self.socket.as_raw_fd(), size_of_val(&to) as u32);
            libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), size)
        };
        let error = std::io::Error::last_os_error();
        assert!(sent == frame.len() as isize || error.raw_os_error() == Some(libc::ENOBUFS), "{error}");
    }

    /// Sends an IP packet.
    pub fn ip(&self, packet: &[u8]) {
        let ethertype = if packet[0] >> 4 == 4 { IPV4 } else { IPV6 };
        self.send(ethertype, ethertype, packet);
    }
}

/// Sees every packet that arrives at the wire's end.
pub struct Wire(Socket);

impl Wire {
    pub fn new(net: &Net) -> Wire {
        let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let socket = net.wire.run(|| Socket::new(Domain::PACKET, Type::DGRAM, Some(all))).unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Wire(socket)
    }

    /// Everything that has arrived until now: what the agent itself sends comes last.
    pub fn seen(&self, mesh: &Mesh) -> Vec<Vec<u8>> {
        // What is refused there comes back in an error, so each has its own.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let last = format!("the agent's last word {:08}", NEXT.fetch_add(1, Ordering::Relaxed));
        let to = SocketAddr::new(ip_of(WIRE4), 999);
        let agents = mesh.sockets.datagrams(&mesh.net.pod, to).unwrap();
        agents.send_to(last.as_bytes(), &to.into()).unwrap();
        let mut all = Vec::new();
        loop {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let n = self.0.recv(&mut buffer).expect("not even the agent's packet arrives");
            // SAFETY: received.
            let packet: Vec<u8> = buffer[..n].iter().map(|byte| unsafe { byte.assume_init() }).collect();
            if has(&packet, last.as_bytes()) {
                return all;
            }
            all.push(packet);
        }
    }

    /// Which of the texts have arrived, in a packet each.
    pub fn which<'a>(&self, mesh: &Mesh, texts: &[&'a str]) -> Vec<&'a str> {
        let seen = self.seen(mesh);
        texts.iter().copied().filter(|text| seen.iter().any(|packet| has(packet, text.as_bytes()))).collect()
    }
}

fn has(packet: &[u8], text: &[u8]) -> bool {
    packet.windows(text.len()).any(|window| window == text)
}
