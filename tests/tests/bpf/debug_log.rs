//! The debugging build of the programs: it loads, and tells of decisions; the ordinary build has nothing of it.

use std::path::Path;

use mesh_agent::kernel::Kernel;
use mesh_agent::settings::KernelSettings;

use super::support::*;

#[test]
fn a_debugging_build_tells_of_a_captured_connect() {
    let net = Net::new();
    let pins = pins();
    let log = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/mesh-ebpf-log.o");
    assert!(log.exists(), "{} is missing: run `cargo xtask build-ebpf --debug-log` first", log.display());
    let settings = KernelSettings { object: Some(log), ..settings(&pins) };
    let mut kernel = Owned(Kernel::load(&settings, "test").unwrap());
    let mut log = kernel.take_debug_log().unwrap();
    let listeners = enrol(&mut kernel, ID, &net, 0);
    let _client = connect_in(&net.pod, "192.0.2.80:80").unwrap();
    accept(&listeners.outbound[0]);
    let expected = format!("outbound_captured client=[::]:0 server=192.0.2.80:80 netns={}", net.pod.cookie());
    let lines = log.lines();
    assert!(lines.contains(&expected), "{lines:#?}");
    // And of what a pod's own instance of the programs does.
    let _client = connect_in(&net.wire, "10.77.0.2:80").unwrap();
    let lines = log.lines();
    assert!(lines.iter().any(|line| line.starts_with("inbound_assigned ")), "{lines:#?}");
}

#[test]
fn the_ordinary_build_has_no_log() {
    let mut mesh = Mesh::new();
    assert!(mesh.kernel.take_debug_log().is_none());
    assert!(!map(&mesh.pins, "AYA_LOGS").exists());
}
