//! When the agent is gone: what stays in force, what the next agent takes over, and what it refuses to touch. The agent
//! that goes is this test program once more, killed while it holds a pod.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use aya::programs::links::{FdLink, PinnedLink};
use mesh_agent::kernel::{Kernel, Left, hooks};
use mesh_agent::net::netns::NetNs;
use mesh_common::abi::{self, Counter};

use super::support::*;

/// Tells the child where the pins and the pod are.
const CHILD: &str = "MESH_BPF_TEST_HOLDER";
/// What it says when the pod is enrolled.
const READY: &str = "the pod is enrolled";

/// A pod whose agent was killed.
struct Orphan {
    net: Net,
    pins: PathBuf,
}

impl Orphan {
    fn new() -> Orphan {
        let (net, pins) = (Net::new(), pins());
        let mut holder = Holder::start(&pins, &net.pod);
        holder.kill();
        Orphan { net, pins }
    }

    fn own(&self) -> PathBuf {
        self.pins.join(format!("v{}", abi::ABI_VERSION))
    }

    fn pod_pins(&self) -> PathBuf {
        self.own().join("pods").join(self.net.pod.cookie().to_string())
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        // Where the test has not done so.
        let _ = Kernel::detach_left(&settings(&self.pins), "test");
    }
}

/// The process that is killed.
struct Holder(Child);

impl Holder {
    fn start(pins: &Path, pod: &NetNs) -> Holder {
        require();
        let place = format!("{} /proc/{}/fd/{}", pins.display(), std::process::id(), pod.as_fd().as_raw());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "survival::an_agent_that_is_about_to_be_killed", "--nocapture"]);
        let mut child = command.env(CHILD, place).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.map_while(Result::ok).any(|line| line.contains(READY));
        assert!(ready, "the child ended: {:?}", child.wait());
        Holder(child)
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn an_agent_that_is_about_to_be_killed() {
    let Ok(place) = std::env::var(CHILD) else { return };
    let (pins, pod) = place.split_once(' ').unwrap();
    let pod = Arc::new(NetNs::open(pod).unwrap());
    let mut kernel = Kernel::load(&settings(Path::new(pins)), "test").unwrap();
    let _listeners = kernel.enrol_namespace(ID, &pod, &pod.addresses().unwrap(), 0).unwrap();
    println!("{READY}");
    std::thread::sleep(PATIENCE * 10);
}

/// Where a link is, whatever program it has.
fn link_id(path: &Path) -> (u32, u32) {
    let link = FdLink::from(PinnedLink::from_pin(path).unwrap());
    let info = link.info().unwrap();
    (info.id(), info.program_id())
}

/// As [`Kernel::detach_left`], once nobody holds the lock: a program that another test is starting has a copy of it for
/// a moment.
fn detach_left(pins: &Path) -> Option<PathBuf> {
    let end = Instant::now() + PATIENCE;
    loop {
        match Kernel::detach_left(&settings(pins), "test") {
            Err(e) if e.to_string().contains("another agent") && Instant::now() < end => std::thread::yield_now(),
            done => return done.unwrap(),
        }
    }
}

#[test]
fn what_a_killed_agent_had_in_force_stays_in_force() {
    let orphan = Orphan::new();
    let _there = listen_in(&orphan.net.wire, "10.77.0.1:8080");
    let here = listen_in(&orphan.net.pod, "10.77.0.2:8080");
    assert!(programs_at(&orphan.net).contains("mesh_ingress"));
    let error = connect_in(&orphan.net.pod, "10.77.0.1:8080").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "nobody listens where it was sent");
    let client = socket_in(&orphan.net.wire, "10.77.0.2:8080");
    client.connect_timeout(&at("10.77.0.2:8080").into(), std::time::Duration::from_millis(300)).unwrap_err();
    assert!(!is_waiting(&here), "and nothing comes in");
    // What was never caught is not now.
    let own = listen_in(&orphan.net.pod, "127.0.0.1:8081");
    let client = connect_in(&orphan.net.pod, "127.0.0.1:8081").unwrap();
    assert_joined(&client, &accept(&own).0);
}

#[test]
fn the_next_agent_takes_over_what_is_there_in_one_step_each() {
    let orphan = Orphan::new();
    let net = &orphan.net;
    let cookie = net.pod.cookie();
    let links: Vec<PathBuf> = hooks::cgroup().map(|hook| orphan.own().join("links").join(hook.program)).collect();
    let pod_links: Vec<PathBuf> =
        fs::read_dir(orphan.pod_pins()).unwrap().map(|e| e.unwrap().path()).filter(|p| !p.is_symlink()).collect();
    // Without tcx only sk_lookup is a link.
    assert_eq!(pod_links.len(), if has_tcx() { hooks::pod().count() } else { 1 }, "one interface");
    let all: Vec<&PathBuf> = links.iter().chain(&pod_links).collect();
    let before: Vec<_> = all.iter().map(|path| link_id(path)).collect();

    let mut kernel = load(&orphan.pins);
    assert_eq!(kernel.left(), [Left { cookie, workload: Some(format!("workload/{ID}")), process: None }]);
    assert!(!kernel.is_gone(&kernel.left()[0]));
    let error = connect_in(&net.pod, "10.77.0.1:8080").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "and stays in force while the next one starts");

    let start = Instant::now();
    let listeners = kernel.enrol_namespace(ID + 1, &net.pod, &net.pod.addresses().unwrap(), 0).unwrap();
    println!("taking a pod over took {:?}", start.elapsed());
    assert_eq!(kernel.left(), []);
    let after: Vec<_> = all.iter().map(|path| link_id(path)).collect();
    for ((path, before), after) in all.iter().zip(before).zip(after) {
        assert_eq!(before.0, after.0, "{}: the same link", path.display());
        assert_ne!(before.1, after.1, "{}: another program", path.display());
    }

    let client = connect_in(&net.pod, "10.77.0.1:8080").unwrap();
    let (server, _) = accept(&listeners.outbound[0]);
    let origin = kernel.sockets().original_destination(server.as_fd()).unwrap();
    assert_eq!(origin, Some(at("10.77.0.1:8080")));
    server.set_nonblocking(false).unwrap();
    assert_joined(&client, &server);
    let client = connect_in(&net.wire, "10.77.0.2:8080").unwrap();
    let (server, _) = accept(&listeners.inbound[0]);
    server.set_nonblocking(false).unwrap();
    assert_joined(&client, &server);
    assert_eq!(kernel.counter(Counter::OutboundRefused).unwrap(), 1, "counters go on");
}

#[test]
fn a_pod_that_is_not_wanted_any_more_is_let_go() {
    let orphan = Orphan::new();
    let mut kernel = load(&orphan.pins);
    let left = kernel.left();
    kernel.discard(&left[0]).unwrap();
    assert_eq!(kernel.left(), []);
    assert_released(&orphan.net);
}

#[test]
fn a_namespace_that_is_gone_is_recognised() {
    let (pins, net) = (pins(), Net::new());
    Holder::start(&pins, &net.pod).kill();
    let kernel = load(&pins);
    let left = kernel.left();
    assert!(!kernel.is_gone(&left[0]));
    drop(net);
    // The kernel takes namespaces down in the background.
    let end = Instant::now() + PATIENCE;
    while !kernel.is_gone(&left[0]) {
        assert!(Instant::now() < end, "the namespace's last links: {left:?}");
        std::thread::yield_now();
    }
}

#[test]
fn an_agent_that_lives_keeps_its_pins() {
    let (pins, net) = (pins(), Net::new());
    let mut holder = Holder::start(&pins, &net.pod);
    let error = Kernel::load(&settings(&pins), "test").err().unwrap().to_string();
    assert!(error.contains("another agent of this node is running") && error.contains("--take-over"), "{error}");
    let error = Kernel::detach_left(&settings(&pins), "test").unwrap_err().to_string();
    assert!(error.contains("another agent"), "{error}");
    holder.kill();
    assert_eq!(detach_left(&pins), Some(pins.clone()));
    assert!(!pins.exists());
    assert_released(&net);
    assert_eq!(detach_left(&pins), None);
}

#[test]
fn a_map_of_another_shape_is_refused_and_left_alone() {
    let pins = pins();
    let path = map(&pins, abi::maps::FLOW);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let old = aya::maps::HashMap::<_, u32, u32>::create(1, 0).unwrap();
    old.pin(&path).unwrap();
    let error = Kernel::load(&settings(&pins), "test").err().unwrap().to_string();
    for word in ["FLOW", "bytes of a key: 4 instead of 48", "entries: 1 instead of 65536", "mesh-agent detach"] {
        assert!(error.contains(word), "{error}");
    }
    assert!(path.exists());
    detach_left(&pins);
    drop(load(&pins));
    assert!(!pins.exists());
}

/// Another version's maps may have any shape: they are not even opened. Its links go once ours are in force.
#[test]
fn what_another_version_left_is_removed_once_ours_is_in_force() {
    let orphan = Orphan::new();
    // As an agent of another version would have left it.
    let other = orphan.pins.join(format!("v{}", abi::ABI_VERSION + 1));
    fs::rename(orphan.own(), &other).unwrap();
    fs::remove_file(other.join(abi::maps::FLOW)).unwrap();
    let mut kernel = load(&orphan.pins);
    assert_eq!(kernel.left(), []);
    let net = &orphan.net;
    let listeners = kernel.enrol_namespace(ID, &net.pod, &net.pod.addresses().unwrap(), 0).unwrap();
    // Both are there, and the other one's agent is not: it refuses.
    let error = connect_in(&net.pod, "10.77.0.1:8080").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(kernel.discard_other_versions().unwrap(), std::slice::from_ref(&other));
    assert!(!other.exists());
    let _client = connect_in(&net.pod, "10.77.0.1:8080").unwrap();
    let (server, _) = accept(&listeners.outbound[0]);
    assert_eq!(kernel.sockets().original_destination(server.as_fd()).unwrap(), Some(at("10.77.0.1:8080")));
}
