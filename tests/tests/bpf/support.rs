//! A pod and the wire: two network namespaces joined by a veth pair, and the kernel layer with the pod enrolled. Nothing
//! here has a name outside the process but the pin directory, so nothing can stay behind: a namespace dies with its
//! descriptor.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use mesh_agent::kernel::{Kernel, Listeners, Sockets};
use mesh_agent::net::netlink;
use mesh_agent::net::netns::NetNs;
use mesh_agent::settings::KernelSettings;
use mesh_common::abi::{Asked, maps};
use socket2::{Domain, Protocol, Socket, Type};

/// The pod's addresses.
pub const POD4: &str = "10.77.0.2";
pub const POD6: &str = "fd77::2";
/// The addresses at the other end of the wire.
pub const WIRE4: &str = "10.77.0.1";
pub const WIRE6: &str = "fd77::1";

/// How long a test waits for what must come; only a failure takes so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Two namespaces with a wire between them.
pub struct Net {
    pub pod: Arc<NetNs>,
    pub wire: Arc<NetNs>,
}

impl Net {
    pub fn new() -> Net {
        require();
        let net = Net { pod: scratch(), wire: scratch() };
        let peer = format!("/proc/{}/fd/{}", std::process::id(), net.wire.as_fd().as_raw());
        ip(&net.pod, &format!("link add eth0 type veth peer name eth0 netns {peer}"));
        for (ns, v4, v6) in [(&net.pod, POD4, POD6), (&net.wire, WIRE4, WIRE6)] {
            ip(ns, "link set lo up");
            ip(ns, "link set eth0 up");
            ip(ns, &format!("addr add {v4}/24 dev eth0"));
            ip(ns, &format!("addr add {v6}/64 dev eth0 nodad"));
        }
        // Whatever is not on the wire is somewhere behind it.
        ip(&net.pod, &format!("route add default via {WIRE4}"));
        ip(&net.pod, &format!("route add default via {WIRE6}"));
        net
    }
}

/// A [`Net`] with the programs loaded and the pod enrolled.
pub struct Mesh {
    pub listeners: Listeners,
    pub sockets: Sockets,
    pub kernel: Owned,
    pub net: Net,
    pub pins: PathBuf,
    /// With which it was enrolled.
    pub flags: u32,
}

/// The pod's id.
pub const ID: u32 = 42;

impl Mesh {
    /// PERMISSIVE.
    pub fn new() -> Mesh {
        let mut mesh = Mesh::of(Net::new(), 0);
        mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
        mesh
    }

    /// As enrolled with these flags, before anybody has said its modes: STRICT.
    pub fn of(net: Net, flags: u32) -> Mesh {
        let addresses = net.pod.addresses().unwrap();
        assert_eq!(addresses, [ip_of(POD4), ip_of(POD6)], "what the agent finds in the pod");
        Mesh::of_any(net, flags)
    }

    /// As [`Mesh::of`], with whatever addresses the pod has.
    pub fn of_any(net: Net, flags: u32) -> Mesh {
        let (mut kernel, pins) = kernel();
        let addresses = net.pod.addresses().unwrap();
        let listeners = kernel.enrol_namespace(ID, &net.pod, &addresses, flags).unwrap();
        for listener in listeners.outbound.iter().chain(&listeners.inbound).chain(&listeners.tunnel) {
            listener.set_nonblocking(false).unwrap();
        }
        Mesh { listeners, sockets: kernel.sockets(), kernel, net, pins, flags }
    }

    /// Connects from the pod like an application, without waiting for anything but the handshake.
    pub fn connect(&self, to: &str) -> io::Result<TcpStream> {
        connect_in(&self.net.pod, to)
    }

    /// Accepts what was redirected, and tells where it wanted to go.
    pub fn accept_outbound(&self, v4: bool) -> (TcpStream, Option<SocketAddr>) {
        let (stream, _) = accept(&self.listeners.outbound[usize::from(!v4)]);
        let origin = self.sockets.original_destination(stream.as_fd()).unwrap();
        (stream, origin)
    }

    /// The agent dies, as far as the programs can see: nobody listens any more.
    pub fn lose_the_agent(&mut self) {
        let Listeners { outbound, inbound, tunnel, dns } = &mut self.listeners;
        dns.clear();
        for listener in outbound.drain(..).chain(inbound.drain(..)).chain(tunnel.drain(..)) {
            // A program that another test is starting may hold it for a moment longer.
            socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both).unwrap();
        }
    }

    /// Every connection was handed over or has left nothing, once the programs that other tests are starting have let
    /// go of its socket.
    pub fn assert_nothing_in_flight(&self) {
        let end = std::time::Instant::now() + PATIENCE;
        while self.kernel.in_flight().unwrap() != (0, 0) && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(self.kernel.in_flight().unwrap(), (0, 0));
    }

    pub fn count(&self, counter: mesh_common::abi::Counter) -> u64 {
        self.kernel.counter(counter).unwrap()
    }
}

/// A kernel layer that takes everything away when the test is over, however it ends.
pub struct Owned(pub Kernel);

impl std::ops::Deref for Owned {
    type Target = Kernel;
    fn deref(&self) -> &Kernel {
        &self.0
    }
}

impl std::ops::DerefMut for Owned {
    fn deref_mut(&mut self) -> &mut Kernel {
        &mut self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Err(e) = self.0.detach()
            && !std::thread::panicking()
        {
            panic!("{e}");
        }
    }
}

/// The programs, loaded with a pin directory of their own.
pub fn kernel() -> (Owned, PathBuf) {
    let pins = pins();
    (load(&pins), pins)
}

/// The programs, loaded with this pin directory.
pub fn load(pins: &Path) -> Owned {
    Owned(Kernel::load(&settings(pins), "test").unwrap())
}

/// A pin directory that nobody has used yet.
pub fn pins() -> PathBuf {
    require();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{PINS}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    Path::new("/sys/fs/bpf").join(name)
}

/// The destinations of sockets, beside the agent's own handle of the map.
pub fn asked(pins: &Path) -> Array<MapData, Asked> {
    array(pins, maps::ASKED)
}

/// An array, beside the agent's own handle of the map.
pub fn array<V: aya::Pod>(pins: &Path, name: &str) -> Array<MapData, V> {
    Map::from_map_data(MapData::from_pin(map(pins, name)).unwrap()).unwrap().try_into().unwrap()
}

/// Where a map of this ABI is pinned.
pub fn map(pins: &Path, name: &str) -> PathBuf {
    pins.join(format!("v{}", mesh_common::abi::ABI_VERSION)).join(name)
}

const PINS: &str = "mesh-bpf-test-";

/// Takes away what a test run left that was killed: it would catch connections of the whole machine for ever.
fn sweep() {
    for entry in std::fs::read_dir("/sys/fs/bpf").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PINS).and_then(|rest| rest.split('-').find_map(|part| part.parse::<u32>().ok()));
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

pub fn settings(pins: &Path) -> KernelSettings {
    KernelSettings { object: Some(object()), pin_path: Some(pins.to_owned()), cgroup: None }
}

/// The object under test.
pub fn object() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/mesh-ebpf.o")
}

/// Fails where these tests cannot mean anything.
pub fn require() {
    assert!(nix::unistd::geteuid().is_root(), "the kernel tests need root: run them with sudo");
    assert!(object().exists(), "target/bpf/mesh-ebpf.o is missing: run `cargo xtask build-ebpf` first");
    static MOUNT: std::sync::Once = std::sync::Once::new();
    MOUNT.call_once(|| {
        let mounted = std::fs::read_to_string("/proc/mounts").unwrap().lines().any(|l| l.contains(" /sys/fs/bpf bpf "));
        if !mounted {
            let done = Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]).status().unwrap();
            assert!(done.success(), "cannot mount a bpffs at /sys/fs/bpf");
        }
        sweep();
    });
}

/// A new network namespace that only this process knows.
pub fn scratch() -> Arc<NetNs> {
    let made = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("the kernel tests need root");
        NetNs::current().unwrap()
    });
    Arc::new(made.join().unwrap())
}

/// Runs `ip` inside a namespace.
pub fn ip(ns: &NetNs, arguments: &str) {
    let output = ns.run(|| Command::new("ip").args(arguments.split(' ')).output()).unwrap().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether this kernel has tcx.
pub fn has_tcx() -> bool {
    aya::programs::SchedClassifier::query_tcx("lo", aya::programs::TcAttachType::Ingress).is_ok()
}

/// The names of the programs on the pod's interface.
pub fn programs_at(net: &Net) -> String {
    let look = || {
        if !has_tcx() {
            return filters_at("eth0");
        }
        let (_, found) =
            aya::programs::SchedClassifier::query_tcx("eth0", aya::programs::TcAttachType::Ingress).unwrap();
        found.iter().filter_map(|p| p.name_as_str().map(str::to_owned)).collect()
    };
    net.pod.run(look).unwrap().join(" ")
}

/// Nothing of the mesh is in the pod's way. Without tcx the programs of an agent that is gone are no links, and stay
/// until the pod does; they let everything pass.
pub fn assert_released(net: &Net) {
    if has_tcx() {
        assert!(!programs_at(net).contains("mesh_"));
    }
    for (here, there, address) in [(&net.pod, &net.wire, "10.77.0.1:8099"), (&net.wire, &net.pod, "10.77.0.2:8099")] {
        let listener = listen_in(there, address);
        let client = connect_in(here, address).unwrap();
        assert_joined(&client, &accept(&listener).0);
    }
}

/// The names in the filters that clsact has at an interface's ingress (rtnetlink(7): `struct tcmsg`, attributes).
fn filters_at(interface: &str) -> Vec<String> {
    const TC_H_CLSACT_INGRESS: u32 = 0xffff_fff2;
    let index = nix::net::if_::if_nametoindex(interface).unwrap();
    let message = [0, index, 0, TC_H_CLSACT_INGRESS, 0].map(u32::to_ne_bytes).concat();
    let filters = netlink::request(libc::NETLINK_ROUTE, libc::RTM_GETTFILTER, libc::NLM_F_DUMP as u16, &message);
    filters.unwrap().iter().map(|filter| String::from_utf8_lossy(filter).into_owned()).collect()
}

pub fn ip_of(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A socket inside a namespace; `family` is that of the address.
pub fn socket_in(ns: &NetNs, family: &str) -> Socket {
    let domain = Domain::for_address(at(family));
    ns.run(|| Socket::new(domain, Type::STREAM, Some(Protocol::TCP))).unwrap().unwrap()
}

/// `connect()` to AF_UNSPEC: the socket is as new.
pub fn disconnect(socket: &Socket) {
    // SAFETY: all zeroes is a sockaddr of AF_UNSPEC.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address is live and its size is given.
    let done = unsafe {
        libc::connect(std::os::fd::AsRawFd::as_raw_fd(socket), &raw const nowhere, size_of_val(&nowhere) as u32)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

pub fn connect_in(ns: &NetNs, to: &str) -> io::Result<TcpStream> {
    let socket = socket_in(ns, to);
    socket.connect(&at(to).into())?;
    Ok(socket.into())
}

/// Listens. A program that another test is starting may hold a listener that was closed for a moment longer: between its
/// fork and its exec it has every descriptor.
pub fn listen_in(ns: &NetNs, on: &str) -> TcpListener {
    let end = Instant::now() + PATIENCE;
    loop {
        match ns.run(|| TcpListener::bind(at(on))).unwrap() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => std::thread::yield_now(),
            bound => return bound.unwrap(),
        }
    }
}

/// Enrols the pod of a [`Net`] with flags of its entry.
pub fn enrol(kernel: &mut Kernel, id: u32, net: &Net, flags: u32) -> Listeners {
    kernel.enrol_namespace(id, &net.pod, &net.pod.addresses().unwrap(), flags).unwrap()
}

/// The first socket that has something to read, with patience instead of for ever.
pub fn readable(sockets: &[&std::net::UdpSocket]) -> Option<usize> {
    let poll_in = nix::poll::PollFlags::POLLIN;
    let mut polled: Vec<_> = sockets.iter().map(|s| nix::poll::PollFd::new(s.as_fd(), poll_in)).collect();
    nix::poll::poll(&mut polled, u16::try_from(PATIENCE.as_millis()).unwrap()).unwrap();
    polled.iter().position(|p| p.revents().is_some_and(|got| got.contains(poll_in)))
}

/// `accept()` with patience instead of for ever.
pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut poll = [nix::poll::PollFd::new(listener.as_fd(), nix::poll::PollFlags::POLLIN)];
    let ready = nix::poll::poll(&mut poll, u16::try_from(PATIENCE.as_millis()).unwrap()).unwrap();
    assert_eq!(ready, 1, "nobody connected to {}", listener.local_addr().unwrap());
    listener.accept().unwrap()
}

/// Whether a connection waits to be accepted.
pub fn is_waiting(listener: &TcpListener) -> bool {
    let mut poll = [nix::poll::PollFd::new(listener.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO).unwrap() == 1
}

/// Which of two listeners has a connection first.
pub fn first_waiting(listeners: [&TcpListener; 2]) -> usize {
    let poll_in = nix::poll::PollFlags::POLLIN;
    let mut polled = listeners.map(|listener| nix::poll::PollFd::new(listener.as_fd(), poll_in));
    nix::poll::poll(&mut polled, u16::try_from(PATIENCE.as_millis()).unwrap()).unwrap();
    let waits = |p: &nix::poll::PollFd<'_>| p.revents().is_some_and(|got| got.contains(poll_in));
    polled.iter().position(waits).expect("nobody connected")
}

/// Both ends can talk to each other.
pub fn assert_joined(mut a: &TcpStream, mut b: &TcpStream) {
    for stream in [a, b] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut got = [0; 4];
    a.write_all(b"ping").unwrap();
    b.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ping");
    b.write_all(b"pong").unwrap();
    a.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"pong");
}

/// The number of a descriptor.
pub trait Raw {
    fn as_raw(&self) -> i32;
}

impl Raw for std::os::fd::BorrowedFd<'_> {
    fn as_raw(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(self)
    }
}
