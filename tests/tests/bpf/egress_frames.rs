//! tc egress and frames that are one thing to this kernel and another to who gets them.

use std::os::fd::AsRawFd;

use mesh_common::abi::Counter;
use socket2::{Domain, Socket, Type};

use super::packets::{Frames, IPV4, IPV6, UDP, Wire, packet, udp};
use super::support::*;

const VLAN: u16 = 0x8100;
const ARP: u16 = 0x0806;
const UNHEARD_OF: u16 = 0x1234;

/// A tag of VLAN 0 with this priority, and what is tagged.
fn tagged(priority: u8, ethertype: u16, content: &[u8]) -> Vec<u8> {
    [&[priority << 5, 0], &ethertype.to_be_bytes()[..], content].concat()
}

#[test]
fn a_frame_that_hides_its_kind_does_not_leave() {
    let mesh = Mesh::new();
    let wire = Wire::new(&mesh.net);
    let frames = Frames::new(&mesh.net);
    let question = |to, text: &str| packet(ip_of(to), UDP, 0, &udp(4000, 53, text.as_bytes()));
    frames.send(UNHEARD_OF, IPV4, &question(WIRE4, "hides 1"));
    frames.send(UNHEARD_OF, IPV6, &question(WIRE6, "hides 2"));
    frames.send(ARP, IPV4, &question(WIRE4, "hides 3"));
    frames.send(VLAN, VLAN, &tagged(0, IPV4, &question(WIRE4, "hides 4")));
    // The tag is read as the beginning of an IPv4 header, whose protocol is then a byte of no meaning.
    frames.send(IPV4, VLAN, &tagged(2, IPV4, &question(WIRE4, "hides 5")));
    frames.send(IPV6, VLAN, &tagged(3, IPV6, &question(WIRE6, "hides 6")));
    frames.send(IPV4, IPV6, &question(WIRE6, "hides 7"));
    frames.send(IPV6, IPV4, &question(WIRE4, "hides 8"));
    // What says that it is neither.
    let text = b"an announcement of 28 bytes.";
    frames.send(ARP, ARP, text);
    frames.send(UNHEARD_OF, UNHEARD_OF, text);
    assert_eq!(wire.which(&mesh, &["hides", "announcement"]), ["announcement"]);
    assert_eq!(mesh.count(Counter::EgressUnexplained), 8);
}

/// `PACKET_QDISC_BYPASS` hands frames to the driver without tc, `XDP_UMEM_REG` is what AF_XDP cannot send without.
#[test]
fn nothing_goes_around_tc() {
    let mut mesh = Mesh::new();
    let wire = Wire::new(&mesh.net);
    let frames = Frames::new(&mesh.net);
    let question = packet(ip_of(WIRE4), UDP, 0, &udp(4000, 53, b"around"));
    let refused = set(&frames.socket, SOL_PACKET, PACKET_QDISC_BYPASS, &1_u32.to_ne_bytes());
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
    frames.ip(&question);
    assert_eq!(wire.which(&mesh, &["around"]), [""; 0]);
    assert_eq!(mesh.count(Counter::OptionRefused), 1);
    let xdp = mesh.net.pod.run(|| Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None)).unwrap();
    // A kernel may have none.
    if let Ok(xdp) = xdp {
        let refused = set(&xdp, libc::SOL_XDP, libc::XDP_UMEM_REG, &[0; 32]);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
    // Other options are as ever, also those that are larger than a page.
    set(&frames.socket, SOL_PACKET, libc::PACKET_VERSION, &1_u32.to_ne_bytes()).unwrap();
    let all = socket2::SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, u32::MAX);
    frames.socket.attach_filter(&[all]).unwrap();
    let here = mesh.net.pod.run(|| Socket::new(Domain::IPV4, Type::DGRAM, None)).unwrap().unwrap();
    let large = set(&here, libc::IPPROTO_IP, libc::MCAST_MSFILTER, &[0; 3 * 4096]);
    assert_ne!(large.unwrap_err().raw_os_error(), Some(libc::EFAULT), "the kernel reads it, and finds nonsense");
    // The way is real: where nobody is enrolled, it is open.
    mesh.kernel.withdraw(ID);
    set(&frames.socket, SOL_PACKET, PACKET_QDISC_BYPASS, &1_u32.to_ne_bytes()).unwrap();
    frames.ip(&question);
    assert_eq!(wire.which(&mesh, &["around"]), ["around"]);
}

const SOL_PACKET: i32 = 263;
const PACKET_QDISC_BYPASS: i32 = 20;

fn set(socket: &Socket, level: i32, option: i32, value: &[u8]) -> std::io::Result<()> {
    // SAFETY: the value is live and its size is given.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), value.len() as libc::socklen_t)
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
