//! The lab's network: a bridge ("the wire") in a namespace of its own, nodes and the control plane on it, pods behind
//! their nodes.
//!
//! In: a topology. Out: network namespaces named `ml.<lab>.…`, whose addresses and routes are set. Nothing is created
//! in the machine's own namespace, so labs never meet and their addresses may be equal.
//!
//! A pod's packets go to 169.254.1.1 (or fe80::1), which its node answers on every pod's veth; the node routes each
//! pod address to its veth and the others' to their nodes. Private addresses are routed on the pod's own node only.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::place::Place;
use crate::sys;
use crate::topology::{PodSpec, Topology};

/// Where iproute2 keeps named namespaces.
pub const NETNS_DIR: &str = "/run/netns";
/// Interface of a node on the wire, and of a pod towards its node.
pub const UPLINK: &str = "eth0";
/// Address of the control plane on the wire.
pub const CONTROL: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(172, 31, 0, 2), Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, 2));

/// Start of the names of all namespaces of a lab. `.` is no part of a name, so no lab's start is another's.
pub fn prefix(lab: &str) -> String {
    format!("ml.{lab}.")
}

/// Namespace of the wire.
pub fn wire(lab: &str) -> String {
    format!("ml.{lab}.wire")
}

/// Namespace of the control plane.
pub fn control(lab: &str) -> String {
    format!("ml.{lab}.control")
}

/// Namespace of a node.
pub fn node(lab: &str, node: &str) -> String {
    format!("ml.{lab}.node.{node}")
}

/// Namespace of a pod.
pub fn pod(lab: &str, pod: &str) -> String {
    format!("ml.{lab}.pod.{pod}")
}

/// File of a named namespace.
pub fn file(netns: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(netns)
}

/// Addresses of the `index`-th node on the wire.
pub fn node_addresses(index: usize) -> (Ipv4Addr, Ipv6Addr) {
    let last = u8::try_from(10 + index).unwrap_or(u8::MAX);
    (Ipv4Addr::new(172, 31, 0, last), Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, last.into()))
}

/// Creates every namespace, link, address and route of the topology.
///
/// # Errors
/// `ip` or a sysctl refuses. What was made by then is left to [`remove`].
pub fn build(lab: &str, topology: &Topology) -> Result<()> {
    let pods = || topology.pods.iter().enumerate();
    let mut names = vec![wire(lab), control(lab)];
    names.extend(topology.nodes.iter().map(|n| node(lab, n)));
    names.extend(pods().map(|(_, p)| pod(lab, &p.name)));
    let adds: String = names.iter().fold(String::new(), |all, name| all + "netns add " + name + "\n");
    sys::ip(None, &adds)?;
    for name in &names {
        sysctls(name)?;
    }

    let wire = wire(lab);
    let mut links = format!("link add {UPLINK} netns {} type veth peer name control netns {wire}\n", control(lab));
    for (i, name) in topology.nodes.iter().enumerate() {
        writeln!(links, "link add {UPLINK} netns {} type veth peer name n{i} netns {wire}", node(lab, name))?;
    }
    for (i, spec) in pods() {
        let (inside, outside) = (pod(lab, &spec.name), node(lab, &spec.node));
        writeln!(links, "link add {UPLINK} netns {inside} type veth peer name p{i} netns {outside}")?;
    }
    sys::ip(None, &links)?;

    let mut bridge = "link add wire0 type bridge\nlink set lo up\nlink set wire0 up\n".to_owned();
    for port in ["control".to_owned()].into_iter().chain((0..topology.nodes.len()).map(|i| format!("n{i}"))) {
        writeln!(bridge, "link set {port} master wire0\nlink set {port} up")?;
    }
    sys::ip(Some(&wire), &bridge)?;
    sys::ip(Some(&control(lab)), &(uplink(CONTROL) + &routes_to_pods(topology, None)))?;
    for (i, name) in topology.nodes.iter().enumerate() {
        let mut lines = uplink(node_addresses(i)) + &routes_to_pods(topology, Some(name));
        for (j, spec) in pods().filter(|(_, p)| p.node == *name) {
            lines += &pod_port(j, spec, node_addresses(i));
        }
        sys::ip(Some(&node(lab, name)), &lines)?;
    }
    for (_, spec) in pods() {
        sys::ip(Some(&pod(lab, &spec.name)), &inside_pod(spec))?;
    }
    Ok(())
}

/// Deletes every namespace of a lab that is still there.
///
/// # Errors
/// `ip` refuses to delete one.
pub fn remove(lab: &str) -> Result<()> {
    let prefix = prefix(lab);
    let Ok(entries) = std::fs::read_dir(NETNS_DIR) else { return Ok(()) };
    let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let lines = names.filter(|n| n.starts_with(&prefix)).fold(String::new(), |all, n| all + "netns del " + &n + "\n");
    if lines.is_empty() { Ok(()) } else { sys::ip(None, &lines) }
}

fn sysctls(netns: &str) -> Result<()> {
    let place = Place {
        name: netns.to_owned(),
        netns: file(netns),
        cgroup: None,
        hosts: None,
        resolv: None,
        env: Default::default(),
        confinement: None,
    };
    place.within(|| {
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            // An address is usable at once: no duplicate detection on links where nobody else can be.
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ] {
            let path = format!("/proc/sys/net/{key}");
            std::fs::write(&path, value).with_context(|| format!("{netns}: writing {value} to {path}"))?;
        }
        Ok(())
    })?
}

fn uplink((v4, v6): (Ipv4Addr, Ipv6Addr)) -> String {
    format!(
        "link set lo up\naddr add {v4}/24 dev {UPLINK}\naddr add {v6}/64 dev {UPLINK} nodad\nlink set {UPLINK} up\n"
    )
}

/// Routes to the pods of all nodes but `except`.
fn routes_to_pods(topology: &Topology, except: Option<&str>) -> String {
    let mut lines = String::new();
    for spec in topology.pods.iter().filter(|p| Some(p.node.as_str()) != except) {
        let Some(index) = topology.nodes.iter().position(|n| *n == spec.node) else { continue };
        let (v4, v6) = node_addresses(index);
        for address in &spec.addresses {
            lines += &match address {
                IpAddr::V4(a) => format!("route add {a}/32 via {v4} dev {UPLINK}\n"),
                IpAddr::V6(a) => format!("route add {a}/128 via {v6} dev {UPLINK}\n"),
            };
        }
    }
    lines
}

/// The node's end of a pod's link.
fn pod_port(index: usize, spec: &PodSpec, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> String {
    let dev = format!("p{index}");
    let mut lines =
        format!("addr add 169.254.1.1/32 dev {dev}\naddr add fe80::1/64 dev {dev} nodad\nlink set {dev} up\n");
    for address in spec.addresses.iter().chain(&spec.private_addresses) {
        lines += &match address {
            IpAddr::V4(a) => format!("route add {a}/32 dev {dev} src {v4}\n"),
            IpAddr::V6(a) => format!("route add {a}/128 dev {dev} src {v6}\n"),
        };
    }
    lines
}

fn inside_pod(spec: &PodSpec) -> String {
    let mut lines = "link set lo up\n".to_owned();
    for address in spec.addresses.iter().chain(&spec.private_addresses) {
        lines += &match address {
            IpAddr::V4(a) => format!("addr add {a}/32 dev {UPLINK}\n"),
            IpAddr::V6(a) => format!("addr add {a}/128 dev {UPLINK} nodad\n"),
        };
    }
    lines += &format!("link set {UPLINK} up\n");
    for (v6, gateway) in [(false, "169.254.1.1"), (true, "fe80::1")] {
        // Named, or the kernel might take the pod's private address to speak to the world.
        let source = spec.address(v6).map(|a| format!(" src {a}")).unwrap_or_default();
        if spec.addresses.iter().chain(&spec.private_addresses).any(|a| a.is_ipv6() == v6) {
            lines += &format!("route add default via {gateway} dev {UPLINK} onlink{source}\n");
        }
    }
    lines
}
