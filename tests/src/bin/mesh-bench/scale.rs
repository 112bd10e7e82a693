//! The part "scale": a node of a large cluster, from files to the maps of the kernel. In: how many services. Out: memory, the
//! time until everything is in the maps, and the time until one change is, printed and as JSON. Fails for no figure.
//!
//! Every service has one endpoint on the node and the others elsewhere, so that the kernel has to know all of them for every
//! workload; nothing is larger for a node. Elsewhere is nowhere: no connection is made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use mesh_common::abi::{self, Allowance, Service, Way, maps};
use mesh_tests::sys::{self, wait_for};
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Topology};
use serde_json::{Value, json};

use crate::measure::median;

const NODE: &str = "near";
/// Workloads of the node, besides one that is only a client.
const SERVERS: usize = 10;
/// Pods of other nodes, which share the other endpoints.
const ELSEWHERE: usize = 2000;
/// Of one service.
const ENDPOINTS: usize = 10;
/// Services for one policy.
const SERVICES_A_POLICY: usize = 10;
/// Services in one file.
const A_FILE: usize = 500;
/// Where the servers would listen.
const PORT: u16 = 9000;
/// Ways to a server for each of its clients: by IPv4 and IPv6.
const FAMILIES: usize = 2;
/// How often one thing is changed.
const CHANGES: usize = 5;
/// For anything.
const LIMIT: Duration = Duration::from_secs(120);

/// Brings the cluster up, and measures.
pub fn measure(services: usize) -> Result<Value> {
    println!(
        "\nScale: {services} services, {} endpoints, {} policies, {} workloads on the node",
        services * ENDPOINTS,
        services / SERVICES_A_POLICY,
        SERVERS + 1
    );
    let mut topology = Topology::of_nodes(&[NODE]).pod(PodSpec::new("client", NODE));
    for index in 0..SERVERS {
        topology = topology.pod(PodSpec::new(&name(index), NODE));
    }
    let lab = LabBuilder::new(&format!("scale-{}", std::process::id()), topology).access_log(false).up()?;
    let report = fill(&lab, services);
    lab.down()?;
    report
}

fn name(server: usize) -> String {
    format!("server-{server}")
}

/// What is measured, in order.
fn fill(lab: &Lab, services: usize) -> Result<Value> {
    let cluster = Cluster { lab, dir: lab.state().effective_dir(), services };
    let maps = Maps::open(lab)?;
    let agent = lab.node(NODE)?.agent();
    let processes = || -> Result<(f64, f64)> {
        let agent = agent.processes().into_iter().map(resident).sum::<Result<f64>>()?;
        Ok((agent, lab.control().processes().into_iter().map(resident).sum::<Result<f64>>()?))
    };
    let before = processes()?;
    // Every workload knows all services but those that it serves itself.
    let entries = services * SERVERS;
    let full = |what: &str| {
        let begin = Instant::now();
        let mut seen = (0, 0);
        wait_for(LIMIT, what, || {
            seen = (maps.services()?, maps.ways()?);
            Ok((seen == (entries, ways(SERVERS))).then_some(()))
        })
        .with_context(|| format!("{} services and {} ways of {entries} and {}", seen.0, seen.1, ways(SERVERS)))?;
        Ok::<_, anyhow::Error>(begin.elapsed())
    };
    cluster.write()?;
    let synced = full("everything to be in the maps")?;
    println!("  from the last file to the last entry in the maps      {:>9.2} s", synced.as_secs_f64());
    let after = processes()?;
    agent.kill()?;
    let to = SocketAddr::new(cluster_ip(0), PORT);
    cluster.file("slice.yaml", &cluster.slice(0, ENDPOINTS - 1)?)?;
    let restarted = timed(|| agent.start(), || maps.leads(to, ENDPOINTS - 1)).context("a change without an agent")?;
    println!("  from the start of another agent to the last change    {restarted:>9.2} s");
    let one = cluster.changes(&maps)?;
    let memory = maps.memory()?;
    let megabytes = |bytes: f64| bytes / f64::from(1 << 20);
    println!("  one endpoint, from the file to the maps (median)      {:>9.0} ms", one.endpoint * 1e3);
    println!("  one policy, from the file to the maps (median)        {:>9.0} ms", one.policy * 1e3);
    println!("  the agent, before and after (MiB resident)  {:>9.0} {:>9.0}", megabytes(before.0), megabytes(after.0));
    println!("  the control plane (MiB resident)            {:>9.0} {:>9.0}", megabytes(before.1), megabytes(after.1));
    for (map, bytes) in &memory {
        println!("  map {map:<40}{:>9.1} MiB", megabytes(*bytes));
    }
    Ok(json!({
        "services": services, "endpoints": services * ENDPOINTS, "policies": services / SERVICES_A_POLICY,
        "workloads": SERVERS + 1, "sync_s": synced.as_secs_f64(), "restart_s": restarted,
        "one_endpoint_s": one.endpoint, "one_policy_s": one.policy,
        "agent_bytes": [before.0, after.0], "control_bytes": [before.1, after.1],
        "maps_bytes": memory.into_iter().collect::<BTreeMap<_, _>>(),
    }))
}

/// Memory of a process that is in RAM, in bytes.
fn resident(pid: i32) -> Result<f64> {
    let file = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")).with_context(|| format!("{file}: no VmRSS"))?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("{file}: {line}"))?;
    Ok(kilobytes * 1024.0)
}

/// Ways to so many servers: for each, every other server and the client are its clients.
fn ways(servers: usize) -> usize {
    servers * SERVERS * FAMILIES
}

/// Seconds that changes took, medians.
struct Changed {
    endpoint: f64,
    policy: f64,
}

/// The objects, as files of the control plane.
struct Cluster<'a> {
    lab: &'a Lab,
    dir: PathBuf,
    services: usize,
}

impl Cluster<'_> {
    fn file(&self, name: &str, text: &str) -> Result<()> {
        sys::write_whole(&self.dir.join(name), text)
    }

    fn write(&self) -> Result<()> {
        self.file("elsewhere.yaml", &(0..ELSEWHERE).map(pod).collect::<Vec<_>>().join("---\n"))?;
        let services: Vec<usize> = (0..self.services).collect();
        for (index, services) in services.chunks(A_FILE).enumerate() {
            let text: Vec<String> = services.iter().map(|of| service(*of)).collect();
            self.file(&format!("services-{index}.yaml"), &text.join("---\n"))?;
            // The first is written by itself: it changes.
            let slices = services.iter().filter(|of| **of > 0).map(|of| self.slice(*of, ENDPOINTS));
            self.file(&format!("slices-{index}.yaml"), &slices.collect::<Result<Vec<_>>>()?.join("---\n"))?;
        }
        let policies: Vec<String> = (0..self.services / SERVICES_A_POLICY).map(policy).collect();
        self.file("policies.yaml", &policies.join("---\n"))?;
        self.file("slice.yaml", &self.slice(0, ENDPOINTS)?)
    }

    /// The endpoints of a service: one here, the others elsewhere.
    fn slice(&self, service: usize, endpoints: usize) -> Result<String> {
        let here = name(service % SERVERS);
        let address = self.lab.pod(&here)?.address();
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: service-{service}, namespace: default, \
             labels: {{kubernetes.io/service-name: service-{service}}}}}\naddressType: IPv4\nports: [{{name: tcp, port: {PORT}, \
             protocol: TCP}}]\nendpoints:\n- {{addresses: [{address}], targetRef: {{kind: Pod, name: {here}, namespace: \
             default}}}}\n"
        );
        for index in 1..endpoints {
            let pod = (service * (ENDPOINTS - 1) + index) % ELSEWHERE;
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "- {{addresses: [{}], targetRef: {{kind: Pod, name: elsewhere-{pod}, namespace: default}}}}",
                elsewhere(pod)
            );
        }
        Ok(text)
    }

    fn changes(&self, maps: &Maps) -> Result<Changed> {
        let (mut endpoint, mut policy) = (Vec::new(), Vec::new());
        let to = SocketAddr::new(cluster_ip(0), PORT);
        for round in 0..CHANGES {
            let endpoints = ENDPOINTS - round % 2;
            let text = self.slice(0, endpoints)?;
            let changed = timed(|| self.file("slice.yaml", &text), || maps.leads(to, endpoints));
            endpoint.push(changed.with_context(|| format!("{endpoints} endpoints"))?);
        }
        // Last: what is forbidden needs no list either.
        for round in 0..CHANGES {
            let (text, ways) = match round % 2 {
                0 => (DENY, ways(SERVERS - 1)),
                _ => ("", ways(SERVERS)),
            };
            let changed = timed(|| self.file("deny.yaml", text), || Ok(maps.ways()? == ways));
            policy.push(changed.with_context(|| format!("{ways} ways"))?);
        }
        let middle = |values| median(values).context("nothing was changed");
        Ok(Changed { endpoint: middle(endpoint)?, policy: middle(policy)? })
    }
}

/// Seconds from a change until it is seen.
fn timed(change: impl FnOnce() -> Result<()>, seen: impl Fn() -> Result<bool>) -> Result<f64> {
    anyhow::ensure!(!seen()?, "what is to be changed is so already");
    let begin = Instant::now();
    change()?;
    wait_for(LIMIT, "the change to be in the maps", || Ok(seen()?.then_some(())))?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Forbids one of the servers to everybody.
const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: default}\n\
                    spec: {selector: {matchLabels: {app: server-0}}, action: DENY, rules: [{}]}\n";

fn cluster_ip(service: usize) -> IpAddr {
    let number = u32::try_from(service).unwrap_or(u32::MAX);
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 112, 0, 1)).wrapping_add(number)).into()
}

fn elsewhere(pod: usize) -> IpAddr {
    let number = u32::try_from(pod).unwrap_or(u32::MAX);
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 144, 0, 1)).wrapping_add(number)).into()
}

fn service(index: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: service-{index}, namespace: default}}\nspec:\n  clusterIP: {}\n  \
         ports: [{{name: tcp, port: {PORT}}}]\n",
        cluster_ip(index)
    )
}

fn pod(index: usize) -> String {
    let address = elsewhere(index);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: elsewhere-{index}, namespace: default, labels: {{app: elsewhere}}, \
         annotations: {{ambient.istio.io/redirection: enabled}}}}\nspec: {{nodeName: elsewhere, serviceAccountName: default, \
         containers: [{{name: app, image: lab}}]}}\nstatus: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}], \
         conditions: [{{type: Ready, status: \"True\"}}]}}\n"
    )
}

/// Lets somebody reach a server; one of them lets everybody in.
fn policy(index: usize) -> String {
    let from = if index < SERVERS { "default".to_owned() } else { format!("others-{index}") };
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: policy-{index}, namespace: default}}\n\
         spec: {{selector: {{matchLabels: {{app: {}}}}}, action: ALLOW, rules: [{{from: [{{source: {{namespaces: [{from}]}}}}]}}]}}\n",
        name(index % SERVERS)
    )
}

/// The agent's maps, as the kernel has them.
struct Maps {
    pins: PathBuf,
    services: HashMap<MapData, Way, Service>,
    allowed: HashMap<MapData, Way, Allowance>,
}

impl Maps {
    fn open(lab: &Lab) -> Result<Maps> {
        let pins = lab.state().pins(NODE).join(format!("v{}", abi::ABI_VERSION));
        let open = |name: &str| -> Result<Map> {
            let pin = pins.join(name);
            let data = MapData::from_pin(&pin).with_context(|| format!("map {}", pin.display()))?;
            Ok(Map::from_map_data(data)?)
        };
        let (services, allowed) = (open(maps::SERVICES)?.try_into()?, open(maps::ALLOWED)?.try_into()?);
        Ok(Maps { pins, services, allowed })
    }

    fn services(&self) -> Result<usize> {
        Ok(self.services.keys().filter_map(Result::ok).count())
    }

    fn ways(&self) -> Result<usize> {
        Ok(self.allowed.keys().filter_map(Result::ok).count())
    }

    /// Whether an address leads to so many endpoints, from everywhere but where one of them is.
    fn leads(&self, to: SocketAddr, endpoints: usize) -> Result<bool> {
        let clients: BTreeSet<u64> = self.allowed.keys().filter_map(Result::ok).map(|way| way.netns).collect();
        let ways = clients.into_iter().map(|netns| Way { netns, to: to.into(), zero: 0 });
        let counts: Vec<u32> = ways.filter_map(|way| self.services.get(&way, 0).ok()).map(|of| of.count).collect();
        Ok(counts.len() == SERVERS && counts.iter().all(|count| *count as usize == endpoints))
    }

    /// What the kernel says that each takes, in bytes; those that take something to speak of.
    fn memory(&self) -> Result<Vec<(&'static str, f64)>> {
        const LITTLE: f64 = 65_536.0;
        let all = maps::ALL.iter().map(|name| Ok((*name, memory_of(&self.pins.join(name))?)));
        Ok(all.collect::<Result<Vec<_>>>()?.into_iter().filter(|(_, bytes)| *bytes > LITTLE).collect())
    }
}

/// bpf(2): `memlock` in the descriptor's fdinfo.
fn memory_of(pin: &Path) -> Result<f64> {
    let map = MapData::from_pin(pin).with_context(|| format!("map {}", pin.display()))?;
    let file = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("memlock:")).with_context(|| format!("{file}: no memlock"))?;
    line.trim().parse().with_context(|| format!("{file}: memlock:{line}"))
}
