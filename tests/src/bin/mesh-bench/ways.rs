//! The ways from a client to a server that are measured: two nodes, pods with and without the mesh, servers, the peers.
//!
//! In: a lab. Out: its running servers, and the ways. Measures nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, Process, Topology, sys};

use crate::measure::family;
use crate::{pairs, peers};

/// HTTP/1.1 with a small reply.
pub const HTTP: u16 = 8080;
/// Gives back what it gets.
pub const ECHO: u16 = 7001;
/// Reads everything.
pub const SINK: u16 = 7002;
/// Gives back one byte and closes.
pub const ONCE: u16 = 7003;
/// A port to which nobody listens: iptables redirects it.
const REDIRECTED: u16 = 7013;
/// UDP: an answer to every question.
pub const DNS: u16 = 53;
/// Address of the Service in front of the enrolled server.
const MESHED: &str = "10.96.77.1";
/// Address of the Service in front of the pod without shortcuts, which calls itself.
const UNSHORTENED: &str = "10.96.77.5";
/// Address of the Service in front of the pod with shortcuts, which calls itself.
const SHORTENED: &str = "10.96.77.4";
/// Address of the Service in front of the server with shortcuts on the client's node.
const NEAR_SHORTENED: &str = "10.96.77.6";
/// Address of the Service in front of the server that is not enrolled.
const PLAIN: &str = "10.96.77.2";

/// Address of the Service in front of the enrolled server on the client's node.
const NEAR: &str = "10.96.77.3";

/// A way from a client to a server.
pub struct Way {
    /// What the tables call it.
    pub name: &'static str,
    /// The pod that the load comes from.
    pub pod: &'static str,
    /// What it connects to, by the port of the server behind.
    pub to: BTreeMap<u16, SocketAddr>,
    /// The proxies on the way, for their CPU time.
    pub proxies: Vec<u32>,
    /// The tables in which it stands beside others.
    pub table: Option<Table>,
}

/// Ways that are compared with each other, each with the first of its table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Between two nodes.
    Nodes,
    /// Between two pods of one node.
    SameNode,
    /// From a pod to itself.
    Itself,
}

/// Every table.
pub const TABLES: [Table; 3] = [Table::Nodes, Table::SameNode, Table::Itself];

/// Two nodes, each with an enrolled pod, one that is not, and one with rules of iptables.
pub fn topology() -> Topology {
    Topology::of_nodes(&["near", "far"])
        .pod(PodSpec::new("client", "near"))
        .pod(PodSpec::new("plain-client", "near").unenrolled())
        .pod(PodSpec::new("server", "far"))
        .pod(PodSpec::new("plain-server", "far").unenrolled())
        .pod(PodSpec::new("within", "near").same_node("agent"))
        .pod(PodSpec::new("unshortened", "near").shortcuts("off"))
        .pod(PodSpec::new("shortened", "near").shortcuts("on"))
        .pod(PodSpec::new("near-shortened", "near").shortcuts("on"))
        // What iptables does costs every connection of a namespace something.
        .pod(PodSpec::new("redirect-client", "near").unenrolled())
        .pod(PodSpec::new("near-server", "near"))
        .pod(PodSpec::new("plain-near-server", "near").unenrolled())
        .pod(PodSpec::new("redirect-server", "far").unenrolled())
}

/// Services in front of the servers.
pub fn services() -> String {
    [
        ("server", MESHED),
        ("plain-server", PLAIN),
        ("near-server", NEAR),
        ("unshortened", UNSHORTENED),
        ("shortened", SHORTENED),
        ("near-shortened", NEAR_SHORTENED),
    ]
    .map(|(name, address)| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: default }}
spec:
  clusterIP: {address}
  selector: {{ app: {name} }}
  ports:
  - {{ name: http, port: {HTTP} }}
  - {{ name: tcp-echo, port: {ECHO} }}
  - {{ name: tcp-sink, port: {SINK} }}
  - {{ name: tcp-once, port: {ONCE} }}
"
        )
    })
    .join("---\n")
}

/// Starts servers and peers, and lists the ways between the pods.
pub fn start(lab: &Lab) -> Result<(Vec<Way>, Vec<Process>)> {
    let mut processes = Vec::new();
    let load = sys::binary("mesh-load")?.display().to_string();
    for name in ["server", "plain-server", "redirect-server", "near-server", "plain-near-server"] {
        let pod = lab.pod(name)?;
        processes.push(pod.serve(&servers(&load), ONCE)?);
        let dir = pod.scratch()?;
        let file = dir.join("nginx.conf");
        std::fs::write(&file, peers::origin(&dir, HTTP))?;
        processes.push(pod.serve(&["nginx", "-c", &file.display().to_string()], HTTP)?);
    }
    let plain = lab.pod("plain-server")?.address();
    let plain_to = |port| SocketAddr::new(plain, port);
    let pod = lab.pod("plain-client")?;
    let dir = pod.scratch()?;
    let (nginx, haproxy) = (dir.join("nginx.conf"), dir.join("haproxy.cfg"));
    std::fs::write(&nginx, peers::nginx(&dir, plain_to(HTTP)))?;
    std::fs::write(&haproxy, peers::haproxy(plain_to(HTTP), plain_to(ECHO), plain_to(SINK), plain_to(ONCE)))?;
    let redirecting = redirect(lab, &mut processes, plain_to(HTTP), [ECHO, SINK, ONCE].map(plain_to))?;
    let redirect_to = |address| [(ONCE, SocketAddr::new(address, REDIRECTED))].into();
    let nginx = pod.serve(&["nginx", "-c", &nginx.display().to_string()], peers::NGINX_HTTP)?;
    let haproxy = pod.serve(&["haproxy", "-f", &haproxy.display().to_string()], peers::HAPROXY_HTTP)?;
    let all = |address: &str| -> Result<BTreeMap<u16, SocketAddr>> {
        let address = address.parse()?;
        Ok([HTTP, ECHO, SINK, ONCE].map(|port| (port, SocketAddr::new(address, port))).into())
    };
    let with_dns = |mut to: BTreeMap<u16, SocketAddr>| {
        to.insert(DNS, plain_to(DNS));
        to
    };
    let loopback =
        |pairs: &[(u16, u16)]| pairs.iter().map(|(of, at)| (*of, SocketAddr::from(([127, 0, 0, 1], *at)))).collect();
    let (near, far) = (agent(lab, "near")?, agent(lab, "far")?);
    let both = near.clone();
    // HTTP never goes without an agent.
    let mut directly = all(NEAR)?;
    directly.remove(&HTTP);
    let mut ways = vec![
        Way {
            name: "direct",
            pod: "plain-client",
            to: with_dns(all(&plain.to_string())?),
            proxies: Vec::new(),
            table: Some(Table::Nodes),
        },
        Way {
            name: "mesh, pair, mTLS",
            pod: "client",
            to: all(MESHED)?,
            proxies: [near.clone(), far.clone()].concat(),
            table: Some(Table::Nodes),
        },
        Way {
            name: "mesh, one hop, plain",
            pod: "client",
            to: with_dns(all(PLAIN)?),
            proxies: near,
            table: Some(Table::Nodes),
        },
        Way {
            name: "to an enrolled pod",
            pod: "plain-client",
            to: all(&lab.pod("server")?.address().to_string())?,
            proxies: far,
            table: None,
        },
        Way {
            name: "nginx, one hop, plain",
            pod: "plain-client",
            to: loopback(&[(HTTP, peers::NGINX_HTTP)]),
            proxies: nginx.id().map(family).unwrap_or_default(),
            table: Some(Table::Nodes),
        },
        Way {
            name: "HAProxy, one hop, plain",
            pod: "plain-client",
            to: loopback(&[
                (HTTP, peers::HAPROXY_HTTP),
                (ECHO, peers::HAPROXY_ECHO),
                (SINK, peers::HAPROXY_SINK),
                (ONCE, peers::HAPROXY_ONCE),
            ]),
            proxies: haproxy.id().map(family).unwrap_or_default(),
            table: Some(Table::Nodes),
        },
        Way {
            name: "iptables REDIRECT, no proxy",
            pod: "plain-client",
            to: redirect_to(lab.pod("redirect-server")?.address()),
            proxies: Vec::new(),
            table: Some(Table::Nodes),
        },
        Way {
            name: "iptables REDIRECT to HAProxy, TCP",
            pod: "redirect-client",
            to: redirect_to(plain),
            proxies: redirecting,
            table: Some(Table::Nodes),
        },
        Way {
            name: "no mesh",
            pod: "plain-client",
            to: all(&lab.pod("plain-near-server")?.address().to_string())?,
            proxies: Vec::new(),
            table: Some(Table::SameNode),
        },
        Way {
            name: "mesh, directly",
            pod: "client",
            to: directly,
            proxies: both.clone(),
            table: Some(Table::SameNode),
        },
        Way {
            name: "mesh, within the agent",
            pod: "within",
            to: all(NEAR)?,
            proxies: both,
            table: Some(Table::SameNode),
        },
    ];
    ways.extend(pairs::start(lab, &mut processes)?);
    processes.extend([nginx, haproxy]);
    Ok((ways, processes))
}

/// The command line of a pod's servers.
fn servers(load: &str) -> [&str; 10] {
    [load, "serve", "--echo", "0.0.0.0:7001", "--sink", "0.0.0.0:7002", "--once", "0.0.0.0:7003", "--dns", "0.0.0.0:53"]
}

/// Starts the servers, and lists the ways from a pod to itself and to another one of its node, each without shortcuts and
/// with them.
pub fn shortcuts(lab: &Lab) -> Result<(Vec<Way>, Vec<Process>)> {
    let load = sys::binary("mesh-load")?.display().to_string();
    let (mut ways, mut processes) = (Vec::new(), Vec::new());
    for pod in ["unshortened", "shortened", "near-shortened"] {
        processes.push(lab.pod(pod)?.serve(&servers(&load), ONCE)?);
    }
    for (name, pod, service, table) in [
        ("shortcuts off", "unshortened", UNSHORTENED, Table::Itself),
        ("shortcuts on", "shortened", SHORTENED, Table::Itself),
        ("directly, shortcuts off", "unshortened", NEAR, Table::SameNode),
        ("directly, shortcuts on", "shortened", NEAR_SHORTENED, Table::SameNode),
    ] {
        let service = service.parse()?;
        let to = [ECHO, SINK].map(|port| (port, SocketAddr::new(service, port))).into();
        ways.push(Way { name, pod, to, proxies: agent(lab, "near")?, table: Some(table) });
    }
    Ok((ways, processes))
}

/// Redirects connections with iptables, inside two pods: those that arrive at a server's, without anything else; and those
/// that leave a client's, to HAProxy, as meshes with sidecars do. Returns that HAProxy's processes.
fn redirect(
    lab: &Lab,
    processes: &mut Vec<Process>,
    http: SocketAddr,
    [echo, sink, once]: [SocketAddr; 3],
) -> Result<Vec<u32>> {
    let (port, server, client) = (REDIRECTED.to_string(), lab.pod("redirect-server")?, lab.pod("redirect-client")?);
    for (pod, chain, to) in [(server, "PREROUTING", ONCE), (client, "OUTPUT", peers::HAPROXY_ONCE)] {
        let to = to.to_string();
        let matching = ["iptables", "-t", "nat", "-A", chain, "-p", "tcp", "--dport", &port];
        pod.run(&[&matching[..], &["-j", "REDIRECT", "--to-ports", &to]].concat())?;
    }
    let file = client.scratch()?.join("haproxy.cfg");
    std::fs::write(&file, peers::haproxy(http, echo, sink, once))?;
    let haproxy = client.serve(&["haproxy", "-f", &file.display().to_string()], peers::HAPROXY_ONCE)?;
    let all = haproxy.id().map(family).unwrap_or_default();
    processes.push(haproxy);
    Ok(all)
}

/// The processes of a node's agent, by its cgroup.
fn agent(lab: &Lab, node: &str) -> Result<Vec<u32>> {
    let cgroup = lab.state().agent_place(node).cgroup.context("an agent without a cgroup")?;
    let text = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}
