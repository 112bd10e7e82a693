//! Hooks tried with real sockets: attach the least program that changes something, connect, and look whether it did. In:
//! a scratch place. Out: yes, or what was seen instead. Programs, links and sockets go away with each check.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::programs::tc::{NlOptions, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType, tc};
use socket2::{Domain, Protocol, Socket, Type};

use super::asm::{Asm, FP, R0, R1, R2, R3, R4, R5, R6, R7, helper};
use super::checks::{Bench, Check, may, must};
use super::scratch::namespace;
use crate::kernel::bpf::{self, Kind, Target};
use crate::kernel::hooks::AttachType;
use crate::net::{netlink, netns::NetNs};

/// Where applications of the trials want to go; nobody is there (RFC 5737).
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// A port on which nobody listens.
const NOBODY: u16 = 9;
/// How long a trial waits for what must come at once; only a failure takes so long. Longer than a lost packet takes to be
/// sent again, since a loaded machine drops some even on loopback.
const PATIENCE: Duration = Duration::from_secs(5);
/// Offsets in `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;
const USER_PORT: i16 = 24;

/// The trials, for the table.
pub fn checks() -> Vec<Check> {
    vec![
        must("cgroup/connect4", "a connection is redirected", "4.17", "outbound capture", connect),
        must("cgroup/getpeername4", "an address is changed", "5.8", "applications see the truth", getpeername),
        must("sockops", "a connection is seen", "4.14", "hands destinations over", sock_ops),
        must("tc ingress", "bpf_sk_assign", "5.7", "inbound capture", ingress),
        must("sk_lookup", "bpf_sk_assign", "5.9", "inbound capture of what tc does not look into", lookup),
        must(
            "cgroup/sendmsg4, recvmsg4",
            "a datagram goes and comes by another",
            "5.2",
            "DNS through the agent",
            datagram,
        ),
        may(
            "sock_diag",
            "SOCK_DESTROY",
            "4.5, CONFIG_INET_DIAG_DESTROY",
            "closes connections that a new policy forbids",
            "they live until they close",
            destroy,
        ),
    ]
}

fn connect(b: &Bench<'_>) -> io::Result<()> {
    let listener = b.listener()?;
    let program = redirecting(AttachType::Connect4, port(&listener)?)?;
    let _link = bpf::link(program.as_fd(), Target::Fd(b.scratch.cgroup()), AttachType::Connect4 as u32)?;
    let [socket] = b.scratch.sockets([TCP])?;
    dial(&socket, ELSEWHERE, 80)?;
    accept(&listener).map(|_| ())
}

fn getpeername(b: &Bench<'_>) -> io::Result<()> {
    let listener = b.listener()?;
    let program = bpf::load(
        Kind::SockAddr,
        AttachType::GetPeerName4 as u32,
        "mesh_probe",
        &Asm::new().set(R2, wire(ELSEWHERE)).store32(R1, USER_IP4, R2).end(1),
    )?;
    let _link = bpf::link(program.as_fd(), Target::Fd(b.scratch.cgroup()), AttachType::GetPeerName4 as u32)?;
    let [socket] = b.scratch.sockets([TCP])?;
    dial(&socket, Ipv4Addr::LOCALHOST, port(&listener)?)?;
    expect("getpeername() answers", TcpStream::from(socket).peer_addr()?.ip(), ELSEWHERE.into())
}

fn sock_ops(b: &Bench<'_>) -> io::Result<()> {
    const TCP_CONNECT_CB: u32 = 3;
    let listener = b.listener()?;
    let seen = bpf::map(bpf::MAP_ARRAY, 1)?;
    let program = Asm::new()
        .load32(R2, R1, 0)
        .leave_unless(R2, TCP_CONNECT_CB)
        .put64(FP, -8, 0)
        .map(R1, seen.as_fd())
        .copy(R2, FP)
        .add(R2, -8)
        .call(helper::MAP_LOOKUP_ELEM)
        .leave_if(R0, 0)
        .set(R1, 1)
        .store32(R0, 0, R1)
        .end(1);
    let program = bpf::load(Kind::SockOps, AttachType::SockOps as u32, "mesh_probe", &program)?;
    let _link = bpf::link(program.as_fd(), Target::Fd(b.scratch.cgroup()), AttachType::SockOps as u32)?;
    let [socket] = b.scratch.sockets([TCP])?;
    dial(&socket, Ipv4Addr::LOCALHOST, port(&listener)?)?;
    expect("connections seen", bpf::get(seen.as_fd(), 0)?, 1)
}

/// Gives a SYN to another port's listener, which then accepts with the port that was dialled. In a namespace of its own:
/// whoever forks at this moment has the link as well for a while, and with it the program would meet the next trial.
fn ingress(b: &Bench<'_>) -> io::Result<()> {
    const SYN: u32 = 2;
    const FLAGS_AT: i32 = 20 + 13;
    const FROM_NETWORK_HEADER: i32 = 1;
    let netns = namespace()?;
    let listener = listen(&netns)?;
    let program = Asm::new()
        .copy(R6, R1)
        .set(R2, FLAGS_AT)
        .copy(R3, FP)
        .add(R3, -24)
        .set(R4, 1)
        .set(R5, FROM_NETWORK_HEADER)
        .call(helper::SKB_LOAD_BYTES_RELATIVE)
        .leave_unless(R0, 0)
        .load8(R1, FP, -24)
        .leave_unless(R1, SYN)
        .put64(FP, -16, 0)
        .put64(FP, -8, 0)
        .set(R1, wire(Ipv4Addr::LOCALHOST))
        .store32(FP, -12, R1)
        .put16(FP, -6, port(&listener)?.to_be())
        .copy(R1, R6)
        .copy(R2, FP)
        .add(R2, -16)
        .set(R3, 12)
        .set(R4, -1)
        .set(R5, 0)
        .call(helper::SKC_LOOKUP_TCP)
        .leave_if(R0, 0)
        .copy(R7, R0)
        .copy(R1, R6)
        .copy(R2, R7)
        .set(R3, 0)
        .call(helper::SK_ASSIGN)
        .copy(R1, R7)
        .call(helper::SK_RELEASE)
        .end(0);
    let loaded = bpf::load(Kind::SchedCls, 0, "mesh_probe", &program)?;
    let tcx = netns.run(|| bpf::link(loaded.as_fd(), Target::Interface(bpf::LOOPBACK), bpf::TCX_INGRESS))?;
    let _attached = match tcx {
        Ok(link) => (Some(link), None),
        Err(_) => (None, Some(clsact(&netns, b.pins, &program)?)),
    };
    dialled_port_is_kept(&netns, &listener)
}

fn lookup(b: &Bench<'_>) -> io::Result<()> {
    const LOCAL_PORT: i16 = 60;
    let listener = b.listener()?;
    let map = bpf::map(bpf::MAP_SOCKMAP, 1)?;
    bpf::put(map.as_fd(), 0, listener.as_fd())?;
    let program = Asm::new()
        .copy(R6, R1)
        .load32(R2, R1, LOCAL_PORT)
        .leave_unless(R2, NOBODY.into())
        .put64(FP, -8, 0)
        .map(R1, map.as_fd())
        .copy(R2, FP)
        .add(R2, -8)
        .call(helper::MAP_LOOKUP_ELEM)
        .leave_if(R0, 0)
        .copy(R7, R0)
        .copy(R1, R6)
        .copy(R2, R7)
        .set(R3, 0)
        .call(helper::SK_ASSIGN)
        .copy(R1, R7)
        .call(helper::SK_RELEASE)
        .end(1);
    let program = bpf::load(Kind::SkLookup, bpf::SK_LOOKUP, "mesh_probe", &program)?;
    let _link = bpf::link(program.as_fd(), Target::Fd(b.scratch.netns.as_fd()), bpf::SK_LOOKUP)?;
    dialled_port_is_kept(&b.scratch.netns, &listener)
}

fn dialled_port_is_kept(netns: &NetNs, listener: &TcpListener) -> io::Result<()> {
    let socket = netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)))??;
    dial(&socket, Ipv4Addr::LOCALHOST, NOBODY)?;
    expect("the accepted socket's port", accept(listener)?.local_addr()?.port(), NOBODY)
}

fn datagram(b: &Bench<'_>) -> io::Result<()> {
    let server = b.scratch.netns.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))??;
    server.set_read_timeout(Some(PATIENCE))?;
    let out = redirecting(AttachType::SendMsg4, server.local_addr()?.port())?;
    let back = bpf::load(
        Kind::SockAddr,
        AttachType::RecvMsg4 as u32,
        "mesh_probe",
        &Asm::new().set(R2, wire(ELSEWHERE)).store32(R1, USER_IP4, R2).end(1),
    )?;
    let cgroup = Target::Fd(b.scratch.cgroup());
    let _links = [
        bpf::link(out.as_fd(), cgroup, AttachType::SendMsg4 as u32)?,
        bpf::link(back.as_fd(), cgroup, AttachType::RecvMsg4 as u32)?,
    ];
    let [socket] = b.scratch.sockets([(libc::SOCK_DGRAM, 0)])?;
    let client = UdpSocket::from(socket);
    client.set_read_timeout(Some(PATIENCE))?;
    client.send_to(b"?", (ELSEWHERE, 53))?;
    let mut byte = [0];
    let (_, from) = server.recv_from(&mut byte)?;
    server.send_to(b"!", from)?;
    expect("the answer's sender", client.recv_from(&mut byte)?.1.ip(), ELSEWHERE.into())
}

fn destroy(b: &Bench<'_>) -> io::Result<()> {
    const SOCK_DESTROY: u16 = 21;
    let listener = b.listener()?;
    let [socket] = b.scratch.sockets([TCP])?;
    dial(&socket, Ipv4Addr::LOCALHOST, port(&listener)?)?;
    let mut client = TcpStream::from(socket);
    // `struct inet_diag_req_v2`; cookies of all ones mean any.
    let mut body = vec![libc::AF_INET as u8, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.extend_from_slice(&client.local_addr()?.port().to_be_bytes());
    body.extend_from_slice(&port(&listener)?.to_be_bytes());
    for _ in ["source", "destination"] {
        body.extend_from_slice(&Ipv4Addr::LOCALHOST.octets());
        body.extend_from_slice(&[0; 12]);
    }
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(&[0xff; 8]);
    let ack = libc::NLM_F_ACK as u16;
    b.scratch.netns.run(|| netlink::request(libc::NETLINK_SOCK_DIAG, SOCK_DESTROY, ack, &body))??;
    client.set_read_timeout(Some(PATIENCE))?;
    let error = client.read(&mut [0]).err().and_then(|e| e.raw_os_error());
    expect("reading afterwards fails with errno", error, Some(libc::ECONNABORTED))
}

/// A filter of the traffic control of loopback in the scratch namespace.
pub struct Filter {
    program: Option<SchedClassifier>,
    netns: NetNs,
}

impl Drop for Filter {
    fn drop(&mut self) {
        // It is found by its interface, so inside the namespace. The namespace ends soon in any case.
        let program = self.program.take();
        let _ = self.netns.run(|| drop(program));
    }
}

/// Attaches a program to the ingress of loopback by clsact. `pins` is on a bpffs.
pub fn clsact(netns: &NetNs, pins: Option<&Path>, instructions: &[u64]) -> io::Result<Filter> {
    let failed = |e: &dyn std::error::Error| io::Error::other(crate::kernel::chain(e));
    let loaded = bpf::load(Kind::SchedCls, 0, "mesh_probe", instructions)?;
    // Only by a pin does a program of ours become one of aya's, which speaks the netlink of traffic control.
    let directory = pins.ok_or_else(|| io::Error::other("no bpffs is mounted"))?;
    let path: PathBuf = directory.join(format!("mesh-probe-tc-{}-{}", std::process::id(), netns.cookie()));
    bpf::pin(loaded.as_fd(), &path)?;
    let program = SchedClassifier::from_pin(&path);
    std::fs::remove_file(&path)?;
    let mut program = program.map_err(|e| failed(&e))?;
    let netns = netns.share();
    netns.run(|| {
        tc::qdisc_add_clsact("lo").map_err(|e| failed(&e))?;
        let options = TcAttachOptions::Netlink(NlOptions::default());
        program.attach_with_options("lo", TcAttachType::Ingress, options).map_err(|e| failed(&e)).map(|_| ())
    })??;
    Ok(Filter { program: Some(program), netns })
}

/// A socket that dials.
const TCP: (libc::c_int, libc::c_int) = (libc::SOCK_STREAM, libc::IPPROTO_TCP);

impl Bench<'_> {
    fn listener(&self) -> io::Result<TcpListener> {
        listen(&self.scratch.netns)
    }
}

fn listen(netns: &NetNs) -> io::Result<TcpListener> {
    let listener = netns.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A program that sends what goes to [`ELSEWHERE`] to a port of loopback.
fn redirecting(at: AttachType, port: u16) -> io::Result<OwnedFd> {
    let program = Asm::new()
        .load32(R2, R1, USER_IP4)
        .leave_unless(R2, wire(ELSEWHERE).cast_unsigned())
        .set(R2, wire(Ipv4Addr::LOCALHOST))
        .store32(R1, USER_IP4, R2)
        .set(R2, port.to_be().into())
        .store32(R1, USER_PORT, R2)
        .end(1);
    bpf::load(Kind::SockAddr, at as u32, "mesh_probe", &program)
}

/// An address as the 32-bit field of a context holds it.
fn wire(address: Ipv4Addr) -> i32 {
    i32::from_ne_bytes(address.octets())
}

fn port(listener: &TcpListener) -> io::Result<u16> {
    Ok(listener.local_addr()?.port())
}

fn dial(socket: &Socket, to: Ipv4Addr, port: u16) -> io::Result<()> {
    socket.connect_timeout(&SocketAddr::new(IpAddr::from(to), port).into(), PATIENCE)
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live entry.
    unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as libc::c_int) };
    match listener.accept() {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(io::Error::other("nobody came to the listener")),
        done => done.map(|(stream, _)| stream),
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, seen: T, wanted: T) -> io::Result<()> {
    if seen == wanted { Ok(()) } else { Err(io::Error::other(format!("{what}: {seen:?}, not {wanted:?}"))) }
}
