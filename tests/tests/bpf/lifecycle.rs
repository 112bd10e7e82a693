//! Loading, enrolling, withdrawing: what is refused and how, and that nothing is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use aya::maps::{Array, Map, MapData};
use mesh_agent::kernel::{Kernel, hooks};
use mesh_common::abi::{self, Counter, MAX_AGENTS, maps};

use super::support::*;

#[test]
fn a_withdrawn_workload_is_as_if_it_never_was() {
    let mut mesh = Mesh::new();
    let there = listen_in(&mesh.net.wire, "10.77.0.1:8080");
    let here = listen_in(&mesh.net.pod, "10.77.0.2:8080");
    let _captured = mesh.connect("10.77.0.1:8080").unwrap();
    mesh.accept_outbound(true);
    mesh.kernel.withdraw(ID);
    mesh.kernel.withdraw(ID);
    assert!(!programs_at(&mesh.net).contains("mesh_"));
    let client = mesh.connect("10.77.0.1:8080").unwrap();
    assert_joined(&client, &accept(&there).0);
    let client = connect_in(&mesh.net.wire, "10.77.0.2:8080").unwrap();
    assert_joined(&client, &accept(&here).0);
    // And again.
    let addresses = mesh.net.pod.addresses().unwrap();
    mesh.listeners = mesh.kernel.enrol_namespace(ID, &mesh.net.pod, &addresses, 0).unwrap();
    let _captured = mesh.connect("10.77.0.1:8080").unwrap();
    assert_eq!(mesh.accept_outbound(true).1, Some(at("10.77.0.1:8080")));
    assert!(programs_at(&mesh.net).contains("mesh_ingress"));
}

#[test]
fn a_detached_kernel_leaves_nothing() {
    let mesh = Mesh::new();
    let Mesh { mut kernel, net, pins, listeners, .. } = mesh;
    let own = pins.join(format!("v{}", abi::ABI_VERSION));
    for directory in [&pins, &own, &own.join("links"), &own.join("pods")] {
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o777, 0o700, "{}", directory.display());
    }
    assert!(abi::maps::ALL.iter().all(|name| own.join(name).exists()));
    assert_eq!(fs::read_dir(own.join("links")).unwrap().count(), hooks::cgroup().count());
    kernel.detach().unwrap();
    assert!(!pins.exists());
    assert!(!programs_at(&net).contains("mesh_"));
    let there = listen_in(&net.wire, "10.77.0.1:8080");
    let client = connect_in(&net.pod, "10.77.0.1:8080").unwrap();
    assert_joined(&client, &accept(&there).0);
    drop(listeners);
}

#[test]
fn the_list_of_hooks_is_the_object() {
    require();
    let bytes = fs::read(object()).unwrap();
    let object = aya::Ebpf::load(&bytes).unwrap();
    let mut there: Vec<_> = object.programs().map(|(name, _)| name.to_owned()).collect();
    let mut listed: Vec<_> = hooks::HOOKS.iter().map(|hook| hook.program.to_owned()).collect();
    there.sort();
    listed.sort();
    assert_eq!(there, listed);
}

#[test]
fn a_namespace_belongs_to_one_workload() {
    let mut mesh = Mesh::new();
    let addresses = mesh.net.pod.addresses().unwrap();
    let error = mesh.kernel.enrol_namespace(ID + 1, &mesh.net.pod, &addresses, 0).unwrap_err().to_string();
    assert!(error.contains(&format!("already enrolled as workload {ID}")), "{error}");
    let _client = mesh.connect("192.0.2.80:80").unwrap();
    assert_eq!(mesh.accept_outbound(true).1, Some(at("192.0.2.80:80")), "the first one still works");
}

#[test]
fn equal_addresses_in_two_namespaces_do_not_mix() {
    let (mut kernel, _) = kernel();
    let nets: Vec<Net> = (0..2).map(|_| Net::new()).collect();
    let sockets = kernel.sockets();
    let mut listeners = Vec::new();
    for (id, net) in (1..).zip(&nets) {
        listeners.push(kernel.enrol_namespace(id, &net.pod, &net.pod.addresses().unwrap(), 0).unwrap());
    }
    let mut open = Vec::new();
    for (net, own) in nets.iter().zip(&listeners) {
        let connect = |ns, from: &str, to: &str| {
            let socket = socket_in(ns, from);
            socket.bind(&at(from).into()).unwrap();
            socket.connect(&at(to).into()).unwrap();
            std::net::TcpStream::from(socket)
        };
        // The ports are equal too.
        let client = connect(&net.pod, "10.77.0.2:40000", "192.0.2.80:80");
        let (server, _) = accept(&own.outbound[0]);
        let origin = sockets.original_destination(std::os::fd::AsFd::as_fd(&server)).unwrap();
        assert_eq!(origin, Some(at("192.0.2.80:80")));
        server.set_nonblocking(false).unwrap();
        assert_joined(&client, &server);
        open.push((client, server));
        let client = connect(&net.wire, "10.77.0.1:40000", "10.77.0.2:80");
        let (server, _) = accept(&own.inbound[0]);
        server.set_nonblocking(false).unwrap();
        assert_joined(&client, &server);
        open.push((client, server));
        for listeners in &listeners {
            assert!(!is_waiting(&listeners.outbound[0]) && !is_waiting(&listeners.inbound[0]));
        }
    }
    open.iter().for_each(|(client, server)| assert_joined(client, server));
}

/// Its last process ends, and its interface goes, when everything is ready but nothing in force yet.
#[test]
fn a_namespace_whose_interface_vanishes_during_the_enrolment() {
    let net = Net::new();
    let (mut kernel, pins) = kernel();
    let workload = super::sendmsg::workload(&net, "udp: allow");
    let prepared = kernel.prepare(&workload, None).unwrap();
    ip(&net.pod, "link del eth0");
    let error = kernel.commit(prepared).unwrap_err().to_string();
    assert!(error.contains("cannot attach mesh_") && error.contains("eth0"), "{error}");
    // Nothing is left of it, and nobody is in the way of a second try.
    assert_eq!(fs::read_dir(map(&pins, "pods")).unwrap().count(), 0);
    assert_eq!(kernel.left(), []);
    ip(&net.pod, "link add eth0 type veth peer name eth1");
    ip(&net.pod, "link set eth0 up");
    ip(&net.pod, "addr add 10.77.0.2/24 dev eth0");
    let listeners = kernel.enrol(&workload).unwrap();
    ip(&net.pod, "route add default dev eth0");
    let _client = connect_in(&net.pod, "192.0.2.80:80").unwrap();
    accept(&listeners.outbound[0]);
}

/// The agent's handle of a namespace keeps it, whatever becomes of its path and its processes.
#[test]
fn a_namespace_whose_last_process_ends_during_the_enrolment() {
    let (mut kernel, pins) = kernel();
    let pod = scratch();
    for step in ["link add eth0 type veth peer name eth1", "addr add 10.77.0.2/24 dev eth0", "link set eth0 up"] {
        ip(&pod, step);
    }
    // A program that runs until it is ended.
    let mut sleeper = pod.run(|| Command::new("ip").arg("monitor").stdout(Stdio::null()).spawn()).unwrap().unwrap();
    let pid = sleeper.id();
    let netns = std::sync::Arc::new(mesh_agent::net::netns::NetNs::of_pid(pid).unwrap());
    assert_eq!(netns.addresses().unwrap(), [ip_of(POD4)]);
    drop(pod);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let _listeners = kernel.enrol_namespace(ID, &netns, &[ip_of(POD4)], 0).unwrap();
    let left = fs::read_link(map(&pins, "pods").join(netns.cookie().to_string()).join("process")).unwrap();
    assert_eq!(left.to_string_lossy(), netns.process().unwrap().to_string());
    // The pid is nobody's now.
    mesh_agent::net::netns::NetNs::of_pid(pid).unwrap_err();
    kernel.withdraw(ID);
    assert_eq!(fs::read_dir(map(&pins, "pods")).unwrap().count(), 0);
}

#[test]
fn ports_that_the_application_uses_are_left_to_it() {
    let net = Net::new();
    let _taken: Vec<_> = ["0.0.0.0:15001", "[::]:15006", "10.77.0.2:15008"].map(|on| listen_in(&net.pod, on)).into();
    let (mut kernel, _) = kernel();
    let listeners = kernel.enrol_namespace(ID, &net.pod, &net.pod.addresses().unwrap(), 0).unwrap();
    let tunnel = &listeners.tunnel[0];
    assert_ne!(tunnel.local_addr().unwrap().port(), 15008);
    let client = connect_in(&net.wire, "10.77.0.2:15008").unwrap();
    let (server, _) = accept(tunnel);
    assert_eq!(server.local_addr().unwrap(), at("10.77.0.2:15008"));
    server.set_nonblocking(false).unwrap();
    assert_joined(&client, &server);
    let _client = connect_in(&net.pod, "192.0.2.80:80").unwrap();
    accept(&listeners.outbound[0]);
}

#[test]
fn one_directory_of_pins_has_one_owner() {
    let (_kernel, pins) = kernel();
    let error = Kernel::load(&settings(&pins), "test").err().unwrap().to_string();
    assert!(error.contains("another agent"), "{error}");
}

#[test]
fn what_is_missing_is_named() {
    require();
    let pins = &pins();
    let load = |change: &dyn Fn(&mut mesh_agent::settings::KernelSettings)| {
        let mut settings = settings(pins);
        change(&mut settings);
        Kernel::load(&settings, "test").err().unwrap().to_string()
    };
    let error = load(&|s| s.object = Some("/nowhere/mesh-ebpf.o".into()));
    assert!(error.contains("/nowhere/mesh-ebpf.o") && error.contains("cargo xtask build-ebpf"), "{error}");
    let error = load(&|s| s.pin_path = Some("/tmp/mesh-no-bpffs".into()));
    assert!(error.contains("/tmp/mesh-no-bpffs") && error.contains("mount -t bpf"), "{error}");
    let error = load(&|s| s.cgroup = Some("/nowhere".into()));
    assert!(error.contains("/nowhere") && error.contains("kernel.cgroup"), "{error}");
    let error = load(&|s| s.cgroup = Some("/tmp".into()));
    assert!(error.contains("/tmp is not a cgroup v2 directory"), "{error}");
    let file = std::env::temp_dir().join(format!("mesh-bpf-test-{}.o", std::process::id()));
    fs::write(&file, b"\x7fELF nonsense").unwrap();
    let error = load(&|s| s.object = Some(file.clone()));
    fs::remove_file(&file).unwrap();
    assert!(error.contains("mesh-bpf-test-"), "{error}");
    assert!(!pins.exists(), "a failed load leaves nothing");
}

/// A process that is alone in its cgroup is the agent, all of it: runs this test again as such a process.
#[test]
fn an_agent_alone_in_its_cgroup_is_never_caught() {
    const CHILD: &str = "MESH_BPF_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let mesh = Mesh::new();
        let there = listen_in(&mesh.net.wire, "10.77.0.1:8080");
        let client = mesh.connect("10.77.0.1:8080").unwrap();
        assert_joined(&client, &accept(&there).0);
        assert_eq!(mesh.count(Counter::OutboundCaptured), 0);
        only_one_agent_is_left_alone(mesh);
        return;
    }
    require();
    let cgroup = cgroup2().join(format!("mesh-bpf-test-{}", std::process::id()));
    fs::create_dir(&cgroup).unwrap();
    let procs = cgroup.join("cgroup.procs");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "lifecycle::an_agent_alone_in_its_cgroup_is_never_caught"]).env(CHILD, "1");
    // SAFETY: between fork and exec only this write, of a path made before.
    unsafe { child.pre_exec(move || fs::write(&procs, "0")) };
    let output = child.output();
    fs::remove_dir(&cgroup).unwrap();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Another agent is left alone until this one is the only one; and a further one finds a place as long as there is one.
fn only_one_agent_is_left_alone(mut mesh: Mesh) {
    let path = map(&mesh.pins, maps::AGENTS);
    let data = Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap();
    let mut agents = Array::<MapData, [u64; MAX_AGENTS]>::try_from(data).unwrap();
    let alone = agents.get(&0, 0).unwrap();
    assert_eq!(alone.iter().filter(|id| **id != 0).count(), 1, "{alone:?}");
    let full = alone.map(|id| if id == 0 { u64::MAX } else { id });
    agents.set(0, full, 0).unwrap();
    mesh.kernel.attach().unwrap();
    assert_eq!(agents.get(&0, 0).unwrap(), full, "it is there already");
    mesh.kernel.claim().unwrap();
    assert_eq!(agents.get(&0, 0).unwrap(), alone);
    agents.set(0, [u64::MAX; MAX_AGENTS], 0).unwrap();
    let error = mesh.kernel.attach().unwrap_err().to_string();
    assert!(error.contains("AGENTS") && error.contains("all 16 places are taken"), "{error}");
    mesh.kernel.claim().unwrap();
    assert_eq!(agents.get(&0, 0).unwrap().iter().filter(|id| **id != 0).count(), 1);
}

pub fn cgroup2() -> std::path::PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2")).expect("no cgroup v2 is mounted");
    line.split(' ').nth(1).unwrap().into()
}
