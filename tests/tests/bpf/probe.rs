//! The probe of the kernel, and what it tells of others at our hooks.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use mesh_agent::kernel::bpf::{self, Kind, Target};
use mesh_agent::kernel::hooks::AttachType;
use mesh_agent::kernel::probe::{self, Need, foreign};
use mesh_agent::net::netlink;
use mesh_common::abi::Counter;

use super::support::*;

/// `return N`.
fn program(kind: Kind, attach: u32, name: &str, result: u64) -> OwnedFd {
    bpf::load(kind, attach, name, &[result << 32 | 0xb7, 0x95]).unwrap()
}

#[test]
fn this_kernel_is_fit_and_the_probe_leaves_nothing() {
    require();
    let left = || {
        let below = |at: &Path| fs::read_dir(at).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
        let own = own_cgroup();
        let prefix = format!("mesh-probe-{}-", std::process::id());
        below(&own).filter(|n| n.starts_with(&prefix)).collect::<Vec<_>>()
    };
    // Of a probe that was killed, and of one that is running.
    let [killed, running] = [u32::MAX, 1].map(|pid| own_cgroup().join(format!("mesh-probe-{pid}-0")));
    fs::create_dir_all(&killed).unwrap();
    fs::create_dir_all(&running).unwrap();
    let report = probe::survey(&settings(Path::new("/sys/fs/bpf")), &[]).unwrap();
    assert_eq!((killed.exists(), fs::remove_dir(&running).is_ok()), (false, true));
    assert!(report.fit(), "{report}");
    let text = report.to_string();
    for needed in ["a connection is redirected", "SOCK_DESTROY", "mesh_connect4: loads"] {
        assert!(text.contains(needed), "{text}");
    }
    // Other tests of this process may be probing at this moment, but not for long.
    let gone = (0..400).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        left().is_empty()
    });
    assert!(gone, "{:?}", left());
    // On each kernel one of the two ways to a pod's interface.
    let ways: Vec<_> = report.findings.iter().filter(|f| f.hook == "tcx" || f.hook == "clsact").collect();
    assert!(ways.len() == 2 && ways.iter().any(|f| f.missing.is_none()) && ways.iter().all(|f| f.need == Need::May));
}

fn own_cgroup() -> std::path::PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap().to_owned();
    super::lifecycle::cgroup2().join(own)
}

#[test]
fn ciliums_socket_hooks_are_named_with_the_remedy() {
    require();
    let cgroup = super::lifecycle::cgroup2().join(format!("mesh-bpf-test-foreign-{}", std::process::id()));
    fs::create_dir(&cgroup).unwrap();
    let directory = File::open(&cgroup).unwrap();
    let at = AttachType::Connect4 as u32;
    let ours = program(Kind::SockAddr, at, "mesh_connect4", 1);
    let theirs = program(Kind::SockAddr, at, "cil_sock4_connect", 1);
    let other = program(Kind::SockAddr, at, "somebody", 1);
    let find = || foreign::on_cgroup(&cgroup).into_iter().filter(|f| !f.program.starts_with("other_test"));
    let before: Vec<_> = find().collect();
    let links = [&ours, &theirs, &other].map(|p| bpf::link(p.as_fd(), Target::Fd(directory.as_fd()), at).unwrap());
    let found: Vec<_> = find().filter(|f| !before.contains(f)).collect();
    drop(links);
    let after: Vec<_> = find().collect();
    fs::remove_dir(&cgroup).unwrap();
    assert_eq!(found.len(), 2, "ours is not foreign: {found:?}");
    let text = found[0].to_string();
    assert!(text.contains("cil_sock4_conne") && text.contains("socketLB.hostNamespaceOnly=true"), "{text}");
    assert!(text.contains("cgroup/connect4"), "{text}");
    assert!(found[1].to_string().contains("somebody"), "{}", found[1]);
    assert_eq!(after, before);
}

/// A foreign program that lets everything pass ends tcx's chain: it must come after ours, and be told.
#[test]
fn a_foreign_program_on_a_pods_interface_does_not_get_before_ours() {
    let net = Net::new();
    let (mut kernel, _pins) = kernel();
    let pass = program(Kind::SchedCls, 0, "somebody", 0);
    let interfaces = net.pod.run(netlink::interfaces).unwrap().unwrap();
    let index = interfaces.iter().find(|i| i.name == "eth0").unwrap().index;
    let link = net.pod.run(|| bpf::link(pass.as_fd(), Target::Interface(index), bpf::TCX_INGRESS)).unwrap();
    let tcx = !probe_says_missing("tcx");
    assert_eq!(link.is_ok(), tcx, "the probe and the kernel agree: {link:?}");
    let addresses = net.pod.addresses().unwrap();
    let listeners = kernel.enrol_namespace(ID, &net.pod, &addresses, 0).unwrap();
    let found = foreign::in_namespace(&net.pod);
    if tcx {
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].to_string().contains("somebody") && found[0].to_string().contains("interface eth0"));
    }
    let _app = listen_in(&net.pod, "10.77.0.2:8080");
    let client = connect_in(&net.wire, "10.77.0.2:8080").unwrap();
    listeners.inbound[0].set_nonblocking(false).unwrap();
    let (server, _) = accept(&listeners.inbound[0]);
    assert_joined(&client, &server);
    assert_ne!(kernel.counter(Counter::InboundAssigned).unwrap(), 0);
}

fn probe_says_missing(hook: &str) -> bool {
    let report = probe::survey(&settings(Path::new("/sys/fs/bpf")), &[]).unwrap();
    report.findings.iter().find(|f| f.hook == hook).unwrap().missing.is_some()
}

/// Where the kernel has netkit devices; elsewhere this shows only that it has none. How the kind is read is a unit test.
#[test]
fn a_pod_behind_netkit_is_refused() {
    let net = Net::new();
    let made = net.pod.run(|| {
        let mut ip = std::process::Command::new("ip");
        ip.args(["link", "add", "eth1", "type", "netkit"]).output()
    });
    let made = made.unwrap().unwrap();
    let (mut kernel, _pins) = kernel();
    let enrolled = kernel.enrol_namespace(ID, &net.pod, &net.pod.addresses().unwrap(), 0);
    if made.status.success() {
        let error = enrolled.unwrap_err().to_string();
        assert!(error.contains("netkit") && error.contains("veth"), "{error}");
        assert!(kernel.enrol_namespace(ID, &net.wire, &[], 0).is_ok(), "others can be enrolled");
    } else {
        let words = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(words.contains("Unknown device type") || words.contains("not supported"), "{words}");
        enrolled.unwrap();
    }
}
