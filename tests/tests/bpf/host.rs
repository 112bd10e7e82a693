//! Workloads of the host: a namespace that plays the host, cgroups in it, and processes in these. A process is this test
//! program once more, started inside its cgroup and namespace, that does what it is told.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use mesh_agent::kernel::{Followed, Kernel, Listeners};
use mesh_agent::net::netns::NetNs;
use mesh_agent::settings::host::HostPlace;
use mesh_common::abi::{Counter, LOSS_OPEN};

use super::support::*;

#[path = "host/full.rs"]
mod full;

/// Tells the child that it is one.
const CHILD: &str = "MESH_BPF_TEST_PROCESS";
/// The host's port that is the workload's, and one that is nobody's.
const OWN: &str = "10.77.0.2:8080";
const OTHER: &str = "10.77.0.2:8081";
const WIRE: &str = "10.77.0.1:80";

/// Cgroups of one test, side by side.
struct Slice {
    directory: PathBuf,
    path: PathBuf,
}

impl Slice {
    fn new() -> Slice {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mesh-bpf-host-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = mesh_tests::sys::cgroup_mount().unwrap().join(&name);
        fs::create_dir(&directory).unwrap();
        Slice { directory, path: Path::new("/").join(name) }
    }

    /// A unit's cgroup, made now.
    fn start(&self, unit: &str) -> PathBuf {
        let made = self.directory.join(unit);
        fs::create_dir_all(&made).unwrap();
        made
    }

    /// Nobody is in it any more.
    fn stop(&self, unit: &str) {
        fs::remove_dir(self.directory.join(unit)).unwrap();
    }

    fn place(&self, unit: &str, ports: &[u16]) -> HostPlace {
        HostPlace { cgroup: self.path.join(unit), ports: ports.to_vec() }
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        fn remove(directory: &Path) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
                remove(&entry.path());
            }
            let _ = fs::remove_dir(directory);
        }
        let _ = fs::write(self.directory.join("cgroup.kill"), "1");
        let end = std::time::Instant::now() + PATIENCE;
        while self.directory.exists() && std::time::Instant::now() < end {
            remove(&self.directory);
            std::thread::yield_now();
        }
    }
}

/// A process in a cgroup and a namespace.
struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Process {
    fn start(cgroup: &Path, netns: &NetNs) -> Process {
        let procs = fs::File::options().write(true).open(cgroup.join("cgroup.procs")).unwrap();
        let netns = netns.as_fd().try_clone_to_owned().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "host::a_process_of_a_unit", "--nocapture"]).env(CHILD, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: two system calls between fork and exec, on what was opened above.
        unsafe {
            command.pre_exec(move || {
                (&procs).write_all(b"0")?;
                Ok(nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)?)
            });
        }
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Process { child, to, from }
    }

    /// Does one thing; what it says to that.
    fn ask(&mut self, what: &str) -> String {
        writeln!(self.to, "{what}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "the process ended at {what}");
            if let Some((_, said)) = line.trim_end().split_once("SAID ") {
                return said.to_owned();
            }
        }
    }

    /// Connects; whom it sees at the other end.
    fn connects(&mut self, to: &str) -> SocketAddr {
        let said = self.ask(&format!("connect {to}"));
        said.parse().unwrap_or_else(|_| panic!("connect {to}: {said}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_process_of_a_unit() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    let mut held = Vec::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let said = match words[..] {
            ["connect", to] => keep(&mut held, plain(to), to),
            ["marked", to, mark] => {
                let socket = plain(to);
                socket.set_mark(mark.parse().unwrap()).unwrap();
                keep(&mut held, socket, to)
            }
            // The address that the other end is told to know.
            ["own"] => held.last().unwrap().local_addr().unwrap().ip().to_string(),
            ["move", cgroup] => {
                fs::write(Path::new(cgroup).join("cgroup.procs"), std::process::id().to_string()).unwrap();
                "moved".into()
            }
            _ => panic!("{line}"),
        };
        println!("SAID {said}");
    }
}

fn plain(to: &str) -> socket2::Socket {
    socket2::Socket::new(socket2::Domain::for_address(at(to)), socket2::Type::STREAM, None).unwrap()
}

fn keep(held: &mut Vec<TcpStream>, socket: socket2::Socket, to: &str) -> String {
    if let Err(e) = socket.connect(&at(to).into()) {
        return format!("{:?}", e.kind());
    }
    held.push(socket.into());
    held.last().unwrap().peer_addr().unwrap().to_string()
}

/// A host with one enrolled unit.
struct Host {
    listeners: Listeners,
    kernel: Owned,
    net: Net,
    slice: Slice,
    pins: PathBuf,
}

impl Host {
    fn new(flags: u32) -> Host {
        let slice = Slice::new();
        slice.start("unit");
        let mut host = Host::without(slice, flags);
        assert!(host.kernel.has_processes(ID));
        host.kernel.set_inbound_modes(ID, false, &[]).unwrap();
        host
    }

    fn without(slice: Slice, flags: u32) -> Host {
        let (net, pins) = (Net::new(), pins());
        let mut kernel = Host::load(&net, &pins);
        let listeners = enrol_unit(&mut kernel, &net, &slice, flags);
        Host { listeners, kernel, net, slice, pins }
    }

    /// An agent that runs in the host's namespace.
    fn load(net: &Net, pins: &Path) -> Owned {
        Owned(net.pod.run(|| Kernel::load(&settings(pins), "test")).unwrap().unwrap())
    }

    fn process(&self, unit: &str) -> Process {
        Process::start(&self.slice.directory.join(unit), &self.net.pod)
    }

    /// The next redirected connection, and where it wanted to go.
    fn caught(&self) -> Option<SocketAddr> {
        let (stream, _) = accept(&self.listeners.outbound[0]);
        self.kernel.sockets().original_destination(stream.as_fd()).unwrap()
    }
}

fn enrol_unit(kernel: &mut Kernel, net: &Net, slice: &Slice, flags: u32) -> Listeners {
    let addresses = net.pod.addresses().unwrap();
    let listeners = kernel.enrol_cgroup(ID, &slice.place("unit", &[8080]), &addresses, flags).unwrap();
    for listener in listeners.outbound.iter().chain(&listeners.inbound).chain(&listeners.tunnel) {
        listener.set_nonblocking(false).unwrap();
    }
    listeners
}

/// Whether a listener has got a connection and the other one has not.
fn goes_to(listener: &TcpListener, other: &TcpListener) -> TcpStream {
    let (stream, _) = accept(listener);
    assert!(!is_waiting(other));
    stream
}

#[test]
fn a_unit_is_caught_and_nobody_else() {
    let host = Host::new(0);
    let wire = listen_in(&host.net.wire, WIRE);
    let mut unit = host.process("unit");
    assert_eq!(unit.connects(WIRE), at(WIRE), "getpeername");
    assert_eq!(host.caught(), Some(at(WIRE)));
    assert_eq!(unit.ask("own"), POD4, "getsockname");
    assert!(!is_waiting(&wire));

    // IPv6, and processes further below.
    host.slice.start("unit/inner/most");
    let mut inner = host.process("unit/inner/most");
    assert_eq!(inner.connects("[fd77::1]:80"), at("[fd77::1]:80"));
    let (stream, _) = accept(&host.listeners.outbound[1]);
    assert_eq!(host.kernel.sockets().original_destination(stream.as_fd()).unwrap(), Some(at("[fd77::1]:80")));

    // Another unit of the host, one above, and one whose name only begins like it.
    for other in ["other", "unit-2", ""] {
        host.slice.start(other);
        assert_eq!(host.process(other).connects(WIRE), at(WIRE));
        let stream = goes_to(&wire, &host.listeners.outbound[0]);
        assert_eq!(stream.peer_addr().unwrap().ip(), ip_of(POD4));
    }
    // The cgroup counts on the host only: elsewhere it is the namespace.
    let elsewhere = listen_in(&host.net.wire, "127.0.0.1:80");
    assert_eq!(Process::start(&host.slice.directory.join("unit"), &host.net.wire).connects(WIRE), at(WIRE));
    goes_to(&wire, &host.listeners.outbound[0]);
    drop(elsewhere);
    assert_eq!(host.kernel.in_flight().unwrap(), (0, 0));
}

#[test]
fn what_stays_on_the_host_is_left_alone() {
    let host = Host::new(0);
    let mut unit = host.process("unit");
    for on in ["127.0.0.1:8090", "10.77.0.2:8091", OTHER] {
        let app = listen_in(&host.net.pod, on);
        assert_eq!(unit.connects(on), at(on));
        goes_to(&app, &host.listeners.outbound[0]);
    }
    // Also what others of the host say to the workload.
    let app = listen_in(&host.net.pod, OWN);
    let client = connect_in(&host.net.pod, OWN).unwrap();
    assert_joined(&client, &goes_to(&app, &host.listeners.inbound[0]));
}

#[test]
fn from_one_of_its_addresses_to_another_is_inside() {
    let (net, pins, slice) = (Net::new(), pins(), Slice::new());
    ip(&net.pod, "addr add 10.77.0.3/24 dev eth0");
    let mut kernel = Host::load(&net, &pins);
    let listeners = enrol_unit(&mut kernel, &net, &slice, 0);
    let app = listen_in(&net.pod, "10.77.0.3:8080");
    let client = socket_in(&net.pod, OWN);
    client.bind(&at("10.77.0.2:0").into()).unwrap();
    client.connect(&at("10.77.0.3:8080").into()).unwrap();
    goes_to(&app, &listeners.inbound[0]);
    // From elsewhere that address is the workload's, too.
    connect_in(&net.wire, "10.77.0.3:8080").unwrap();
    goes_to(&listeners.inbound[0], &app);
}

#[test]
fn its_ports_lead_to_the_agent_and_no_others() {
    let host = Host::new(0);
    let (app, other) = (listen_in(&host.net.pod, OWN), listen_in(&host.net.pod, OTHER));
    let client = connect_in(&host.net.wire, OWN).unwrap();
    let accepted = goes_to(&host.listeners.inbound[0], &app);
    assert_eq!(accepted.local_addr().unwrap(), at(OWN), "where the client wanted to go");
    assert_joined(&client, &accepted);
    connect_in(&host.net.wire, OTHER).unwrap();
    goes_to(&other, &host.listeners.inbound[0]);

    // IPv6.
    let app6 = listen_in(&host.net.pod, "[fd77::2]:8080");
    connect_in(&host.net.wire, "[fd77::2]:8080").unwrap();
    goes_to(&host.listeners.inbound[1], &app6);

    // The agent's own connection to the application, which is shown the client.
    let seen = client.local_addr().unwrap();
    let socket = host.kernel.sockets().socket_to_app(&host.net.pod, at(OWN), seen).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.connect(&at(OWN).into()).unwrap();
    assert!(host.kernel.sockets().shows_client(socket.as_fd()).unwrap());
    let (stream, told) = accept(&app);
    assert_eq!((told, stream.peer_addr().unwrap()), (seen, seen));
    // And what it dials elsewhere, from a process that is in no unit.
    let wire = listen_in(&host.net.wire, WIRE);
    let socket = host.kernel.sockets().socket(&host.net.pod, at(WIRE)).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.connect(&at(WIRE).into()).unwrap();
    goes_to(&wire, &host.listeners.outbound[0]);
    assert_eq!(host.kernel.in_flight().unwrap(), (0, 0));
}

#[test]
fn tunnels_come_in_at_their_own_port() {
    let mut host = Host::new(0);
    assert_eq!(host.listeners.tunnel[0].local_addr().unwrap().port(), 15008);
    connect_in(&host.net.wire, "10.77.0.2:15008").unwrap();
    goes_to(&host.listeners.tunnel[0], &host.listeners.inbound[0]);
    // A second workload shares it; when the first goes, its place is taken.
    host.slice.start("second");
    let addresses = host.net.pod.addresses().unwrap();
    let second = host.kernel.enrol_cgroup(ID + 1, &host.slice.place("second", &[8082]), &addresses, 0).unwrap();
    assert_eq!(second.tunnel[0].local_addr().unwrap().port(), 15008);
    host.kernel.withdraw(ID);
    host.lose_listeners();
    connect_in(&host.net.wire, "10.77.0.2:15008").unwrap();
    second.tunnel[0].set_nonblocking(false).unwrap();
    accept(&second.tunnel[0]);
    // What nobody has any more is the application's.
    let app = listen_in(&host.net.pod, OWN);
    connect_in(&host.net.wire, OWN).unwrap();
    goes_to(&app, &second.inbound[0]);
    host.slice.stop("second");
}

impl Host {
    fn lose_listeners(&mut self) {
        let Listeners { outbound, inbound, tunnel, .. } = &mut self.listeners;
        for listener in outbound.drain(..).chain(inbound.drain(..)).chain(tunnel.drain(..)) {
            // As in `Mesh::lose_the_agent`.
            socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both).unwrap();
        }
    }
}

#[test]
fn a_unit_that_is_started_again_is_followed() {
    let mut host = Host::new(0);
    let wire = listen_in(&host.net.wire, WIRE);
    host.process("unit").connects(WIRE);
    assert_eq!(host.caught(), Some(at(WIRE)));
    assert!(host.kernel.follow_host().is_empty(), "nothing has changed");

    host.slice.stop("unit");
    host.slice.start("unit");
    let mut again = host.process("unit");
    // Before the agent has looked, nobody can know; that is said at the enrolment.
    again.connects(WIRE);
    goes_to(&wire, &host.listeners.outbound[0]);
    let told: Vec<_> = host.kernel.follow_host().into_iter().map(|(id, told)| (id, told.unwrap())).collect();
    assert_eq!(told, [(ID, Followed::Replaced)]);
    again.connects(WIRE);
    assert_eq!(host.caught(), Some(at(WIRE)));

    drop(again);
    host.slice.stop("unit");
    let told: Vec<_> = host.kernel.follow_host().into_iter().map(|(id, told)| (id, told.unwrap())).collect();
    assert_eq!(told, [(ID, Followed::Went)]);
    assert!(!host.kernel.has_processes(ID));
}

#[test]
fn a_unit_that_is_not_there_waits() {
    let mut host = Host::without(Slice::new(), 0);
    assert!(!host.kernel.has_processes(ID));
    // What comes in is the agent's already.
    connect_in(&host.net.wire, OWN).unwrap();
    accept(&host.listeners.inbound[0]);
    host.slice.start("unit");
    let told: Vec<_> = host.kernel.follow_host().into_iter().map(|(id, told)| (id, told.unwrap())).collect();
    assert_eq!(told, [(ID, Followed::Came)]);
    host.process("unit").connects(WIRE);
    assert_eq!(host.caught(), Some(at(WIRE)));
}

#[test]
fn ways_around() {
    let host = Host::new(0);
    let wire = listen_in(&host.net.wire, WIRE);
    let mut unit = host.process("unit");
    for mark in [1, 0x4d, u32::MAX] {
        assert_eq!(unit.ask(&format!("marked {WIRE} {mark}")), WIRE, "SO_MARK");
        assert_eq!(host.caught(), Some(at(WIRE)));
    }
    // The agent's listeners, dialled by hand: stand for nobody.
    let port = host.listeners.outbound[0].local_addr().unwrap().port();
    unit.connects(&format!("127.0.0.1:{port}"));
    assert_eq!(host.caught(), None);
    // A cgroup of its own below is still the unit's.
    let below = host.slice.start("unit/own");
    unit.ask(&format!("move {}", below.display()));
    unit.connects(WIRE);
    assert_eq!(host.caught(), Some(at(WIRE)));
    // Another unit's is not: who has the right to move there is out (docs/security.md).
    let other = host.slice.start("other");
    unit.ask(&format!("move {}", other.display()));
    unit.connects(WIRE);
    goes_to(&wire, &host.listeners.outbound[0]);
    // And who is moved in is in.
    unit.ask(&format!("move {}", host.slice.directory.join("unit").display()));
    unit.connects(WIRE);
    assert_eq!(host.caught(), Some(at(WIRE)));
    assert!(!is_waiting(&wire));
}

#[test]
fn without_the_agent() {
    for (flags, strict, passes) in [(0, false, false), (LOSS_OPEN, false, true), (LOSS_OPEN, true, false)] {
        let mut host = Host::new(flags);
        host.kernel.set_inbound_modes(ID, strict, &[]).unwrap();
        host.lose_listeners();
        let (app, wire) = (listen_in(&host.net.pod, OWN), listen_in(&host.net.wire, WIRE));
        let client = socket_in(&host.net.wire, OWN);
        let came = client.connect_timeout(&at(OWN).into(), std::time::Duration::from_secs(3));
        assert_eq!(came.is_ok(), passes, "flags {flags} strict {strict}: {came:?}");
        assert_eq!(is_waiting(&app), passes);
        let said = host.process("unit").ask(&format!("connect {WIRE}"));
        let open = flags & LOSS_OPEN != 0;
        assert_eq!(said == WIRE, open, "{said}");
        assert_eq!(said == format!("{:?}", ErrorKind::ConnectionRefused), !open, "{said}");
        assert_eq!(is_waiting(&wire), open);
        // Nobody else notices.
        host.slice.start("other");
        host.process("other").connects(WIRE);
        let other = listen_in(&host.net.pod, OTHER);
        connect_in(&host.net.wire, OTHER).unwrap();
        accept(&other);
        let counted = host.kernel.counter(if passes { Counter::InboundNoAgent } else { Counter::InboundRefused });
        assert_ne!(counted.unwrap(), 0);
    }
}

#[test]
fn an_agent_that_dies_leaves_it_in_force_and_the_next_one_takes_over() {
    let Host { mut listeners, kernel, net, slice, pins } = Host::new(0);
    let wire = listen_in(&net.wire, WIRE);
    // Gone without a word.
    let mut forgotten = std::mem::ManuallyDrop::new(kernel);
    // SAFETY: never used again, and never dropped a second time.
    unsafe { std::ptr::drop_in_place(&raw mut forgotten.0) };
    for listener in listeners.outbound.drain(..).chain(listeners.inbound.drain(..)).chain(listeners.tunnel.drain(..)) {
        socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both).unwrap();
    }
    let mut unit = Process::start(&slice.directory.join("unit"), &net.pod);
    assert_eq!(unit.ask(&format!("connect {WIRE}")), "ConnectionRefused");
    let app = listen_in(&net.pod, OWN);
    connect_in(&net.wire, OWN).unwrap_err();
    assert!(!is_waiting(&app) && !is_waiting(&wire));

    let mut kernel = Host::load(&net, &pins);
    let left = kernel.left();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].workload.as_deref(), Some(format!("workload/{ID}").as_str()));
    assert!(!kernel.is_gone(&left[0]), "its cgroup may come back");
    let listeners = enrol_unit(&mut kernel, &net, &slice, 0);
    assert!(kernel.left().is_empty());
    let mut host = Host { listeners, kernel, net, slice, pins };
    unit.connects(WIRE);
    assert_eq!(host.caught(), Some(at(WIRE)));
    connect_in(&host.net.wire, OWN).unwrap();
    goes_to(&host.listeners.inbound[0], &app);
    host.kernel.withdraw(ID);
    unit.connects(WIRE);
    goes_to(&wire, &host.listeners.outbound[0]);
}

#[test]
fn what_an_agent_has_left_can_be_let_go() {
    let Host { listeners, kernel, net, slice, pins } = Host::new(0);
    let mut forgotten = std::mem::ManuallyDrop::new(kernel);
    // SAFETY: as above.
    unsafe { std::ptr::drop_in_place(&raw mut forgotten.0) };
    drop(listeners);
    let mut kernel = Host::load(&net, &pins);
    let link = map(&pins, "links").join("mesh_host_lookup");
    assert!(link.exists());
    let left = kernel.left();
    kernel.discard(&left[0]).unwrap();
    assert!(!link.exists() && kernel.left().is_empty());
    let (app, wire) = (listen_in(&net.pod, OWN), listen_in(&net.wire, WIRE));
    Process::start(&slice.directory.join("unit"), &net.pod).connects(WIRE);
    accept(&wire);
    connect_in(&net.wire, OWN).unwrap();
    accept(&app);
    // And its port is free for another workload.
    let addresses = net.pod.addresses().unwrap();
    let listeners = kernel.enrol_cgroup(ID + 1, &slice.place("other", &[8080]), &addresses, 0).unwrap();
    listeners.inbound[0].set_nonblocking(false).unwrap();
    connect_in(&net.wire, OWN).unwrap();
    goes_to(&listeners.inbound[0], &app);
}

#[test]
fn strict_ends_what_is_older_than_the_enrolment() {
    let (net, pins, slice) = (Net::new(), pins(), Slice::new());
    let (app, other) = (listen_in(&net.pod, OWN), listen_in(&net.pod, OTHER));
    let clients = [connect_in(&net.wire, OWN).unwrap(), connect_in(&net.wire, OTHER).unwrap()];
    let servers = [accept(&app).0, accept(&other).0];
    let mut kernel = Host::load(&net, &pins);
    let _listeners = enrol_unit(&mut kernel, &net, &slice, 0);
    kernel.set_inbound_modes(ID, false, &[]).unwrap();
    assert_joined(&clients[0], &servers[0]);
    kernel.set_inbound_modes(ID, true, &[]).unwrap();
    let mut one = [0];
    clients[0].set_read_timeout(Some(PATIENCE)).unwrap();
    let error = std::io::Read::read(&mut &clients[0], &mut one).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    // Another port of the host is nobody's business.
    assert_joined(&clients[1], &servers[1]);
}

#[test]
fn what_cannot_be_a_workload_of_the_host_is_refused() {
    let mut host = Host::new(0);
    let addresses = host.net.pod.addresses().unwrap();
    let mut refused = |cgroup: &str, ports: &[u16]| {
        let place = HostPlace { cgroup: cgroup.into(), ports: ports.to_vec() };
        host.kernel.enrol_cgroup(ID + 1, &place, &addresses, 0).unwrap_err().to_string()
    };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    if own != "/" {
        let error = refused(&own, &[9000]);
        assert!(error.contains("the agent's own") && error.contains("run the agent in another one"), "{error}");
    }
    let error = refused("/", &[9000]);
    assert!(error.contains("0 levels below the root"), "{error}");
    let error = refused(&"/a".repeat(17), &[9000]);
    assert!(error.contains("17 levels below the root"), "{error}");
    let error = refused("/mesh-nowhere", &[8080]);
    assert!(error.contains("port 8080 of the host is another workload's: take it out"), "{error}");
    let taken = listen_in(&host.net.wire, "0.0.0.0:15008");
    drop(taken);
    // All of it left nothing.
    host.process("unit").connects(WIRE);
    assert_eq!(host.caught(), Some(at(WIRE)));
}

#[test]
fn a_host_on_which_somebody_has_the_port_for_tunnels() {
    let (net, pins, slice) = (Net::new(), pins(), Slice::new());
    let _taken = listen_in(&net.pod, "0.0.0.0:15008");
    let mut kernel = Host::load(&net, &pins);
    let addresses = net.pod.addresses().unwrap();
    let error = kernel.enrol_cgroup(ID, &slice.place("unit", &[8080]), &addresses, 0).unwrap_err().to_string();
    assert!(error.contains("port 15008 of the host, where tunnels come in, is another program's"), "{error}");
    // Without ports it takes none.
    kernel.enrol_cgroup(ID, &slice.place("unit", &[]), &addresses, 0).unwrap();
}

#[test]
fn a_pod_beside_the_host_is_a_pod() {
    let mut host = Host::new(0);
    let Net { pod, wire: _wire } = Net::new();
    let listeners = host.kernel.enrol_namespace(ID + 1, &pod, &pod.addresses().unwrap(), 0).unwrap();
    listeners.outbound[0].set_nonblocking(false).unwrap();
    let _client = connect_in(&pod, WIRE).unwrap();
    let (stream, _) = accept(&listeners.outbound[0]);
    assert_eq!(host.kernel.sockets().original_destination(stream.as_fd()).unwrap(), Some(at(WIRE)));
    // Also with a process that is in the unit's cgroup: it is where its socket is.
    let mut inside = Process::start(&host.slice.directory.join("unit"), &pod);
    assert_eq!(inside.connects(WIRE), at(WIRE));
    accept(&listeners.outbound[0]);
    assert!(!is_waiting(&host.listeners.outbound[0]));
}
