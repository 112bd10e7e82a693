//! What a lab consists of: nodes, and pods on them. The format is described in `docs/lab.md`.
//!
//! In: YAML text, or a [`Topology`] built in code. Out: a [`Topology`] whose names are unique, whose references hold and
//! in which every pod has addresses. No I/O but for reading the one file in [`Topology::load`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::yaml::{At, documents};

/// Most nodes a lab has; addresses are derived from a node's index.
pub const MAX_NODES: usize = 100;

/// Nodes and the pods on them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Topology {
    /// Name of the lab; letters, digits and `-`.
    pub name: Option<String>,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// The pods, in the order in which their commands are started.
    pub pods: Vec<PodSpec>,
}

/// One pod.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PodSpec {
    /// Name, unique in the lab (also across namespaces, so that commands can name a pod by it alone).
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service account, the last part of the pod's identity.
    pub service_account: String,
    /// Labels that Services select by.
    pub labels: BTreeMap<String, String>,
    /// Name of the node it runs on.
    pub node: String,
    /// Addresses that every node routes to; the first of each family is the pod's main one.
    pub addresses: Vec<IpAddr>,
    /// Addresses that only the pod's own node routes to; another node may have the same.
    pub private_addresses: Vec<IpAddr>,
    /// Program started once the lab stands, empty for a pod that only waits for `exec`.
    pub command: Vec<String>,
    /// Environment of every process in the pod.
    pub env: BTreeMap<String, String>,
    /// Ports the command listens on; `up` waits for them.
    pub ports: Vec<u16>,
    /// Whether the mesh handles this pod's traffic.
    pub enrolled: bool,
    /// The agent's setting `shortcuts` for it, if not the default.
    pub shortcuts: Option<String>,
    /// The agent's setting `sameNode` for it, if not the default.
    pub same_node: Option<String>,
}

impl PodSpec {
    /// A pod of namespace `default` with its name as service account and as label `app`, enrolled.
    pub fn new(name: &str, node: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            service_account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            node: node.to_owned(),
            enrolled: true,
            ..Self::default()
        }
    }

    /// Sets the command, and the ports to wait for.
    #[must_use]
    pub fn command(mut self, command: &[&str], ports: &[u16]) -> Self {
        self.command = command.iter().map(|&s| s.to_owned()).collect();
        self.ports = ports.to_vec();
        self
    }

    /// Sets a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets namespace and service account.
    #[must_use]
    pub fn account(mut self, namespace: &str, service_account: &str) -> Self {
        self.namespace = namespace.to_owned();
        self.service_account = service_account.to_owned();
        self
    }

    /// Leaves the pod out of the mesh.
    #[must_use]
    pub fn unenrolled(mut self) -> Self {
        self.enrolled = false;
        self
    }

    /// Gives the agent's setting `shortcuts` for it.
    #[must_use]
    pub fn shortcuts(mut self, word: &str) -> Self {
        self.shortcuts = Some(word.to_owned());
        self
    }

    /// Gives the agent's setting `sameNode` for it.
    #[must_use]
    pub fn same_node(mut self, word: &str) -> Self {
        self.same_node = Some(word.to_owned());
        self
    }

    /// The pod's main address of a family.
    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| a.is_ipv6() == v6)
    }
}

impl Topology {
    /// Nodes of the given names and no pods yet.
    pub fn of_nodes(nodes: &[&str]) -> Self {
        Self { nodes: nodes.iter().map(|&n| n.to_owned()).collect(), ..Self::default() }
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// Reads a topology file.
    ///
    /// # Errors
    /// The file cannot be read, or what [`Topology::parse`] refuses.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading topology {}", path.display()))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Parses topology YAML; `file` names it in errors.
    ///
    /// # Errors
    /// Malformed YAML, unknown or missing fields, bad values, references to nothing: `file:line: path: why`.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let documents = documents(file, text)?;
        let [document] = documents.as_slice() else { bail!("{file}:1: expected one YAML document") };
        let root = At::root(file, document);
        root.only(&["name", "nodes", "pods"])?;
        let mut topology = Self {
            name: root.get("name").map(|at| name_at(&at)).transpose()?,
            nodes: root.need("nodes")?.items()?.iter().map(node_at).collect::<Result<_>>()?,
            pods: Vec::new(),
        };
        if let Some(pods) = root.get("pods") {
            for at in pods.items()? {
                let pod = pod_at(&at)?;
                if !topology.nodes.contains(&pod.node) {
                    let known = topology.nodes.join(", ");
                    return Err(at.need("node")?.error(format_args!("no node `{}`; nodes are {known}", pod.node)));
                }
                if topology.pods.iter().any(|p| p.name == pod.name) {
                    return Err(at.need("name")?.error(format_args!("a second pod named `{}`", pod.name)));
                }
                topology.pods.push(pod);
            }
        }
        topology.complete().with_context(|| file.to_owned())
    }

    /// Checks references and gives addresses to pods that name none: one IPv4 and one IPv6 address each.
    ///
    /// # Errors
    /// No node, too many, a name twice or unfit, a pod on an unknown node, an address twice.
    pub fn complete(mut self) -> Result<Self> {
        if self.nodes.is_empty() || self.nodes.len() > MAX_NODES {
            bail!("nodes: expected 1 to {MAX_NODES} nodes, found {}", self.nodes.len());
        }
        for (i, node) in self.nodes.iter().enumerate() {
            check_name(node)?;
            if self.nodes[..i].contains(node) {
                bail!("nodes[{i}]: a second node named `{node}`");
            }
        }
        let mut next = vec![2u16; self.nodes.len()];
        let mut names = BTreeSet::new();
        let mut taken: BTreeSet<IpAddr> = self.pods.iter().flat_map(|p| p.addresses.clone()).collect();
        let mut private = BTreeSet::new();
        if taken.len() != self.pods.iter().map(|p| p.addresses.len()).sum::<usize>() {
            bail!("pods: an address is given twice; only privateAddresses on different nodes may be equal");
        }
        for pod in &mut self.pods {
            check_name(&pod.name)?;
            check_name(&pod.namespace)?;
            if !names.insert(pod.name.clone()) {
                bail!("a second pod named `{}`", pod.name);
            }
            let node = self.nodes.iter().position(|n| *n == pod.node);
            let node = node.with_context(|| format!("pod {}: no node `{}`", pod.name, pod.node))?;
            for address in &pod.private_addresses {
                if taken.contains(address) || !private.insert((node, *address)) {
                    bail!("pod {}: private address {address} is given twice on node {}", pod.name, pod.node);
                }
            }
            while pod.addresses.is_empty() {
                let (v4, v6) = pod_addresses(node, next[node]);
                next[node] += 1;
                if taken.insert(v4) && taken.insert(v6) {
                    pod.addresses = vec![v4, v6];
                }
            }
        }
        Ok(self)
    }

    /// The pod of that name.
    ///
    /// # Errors
    /// There is none; the error lists those there are.
    pub fn find(&self, name: &str) -> Result<&PodSpec> {
        self.pods.iter().find(|p| p.name == name).with_context(|| {
            let names: Vec<_> = self.pods.iter().map(|p| p.name.as_str()).collect();
            format!("no pod `{name}`; pods are {}", names.join(", "))
        })
    }
}

/// Default addresses of the `i`-th pod of a node: `10.<10 + node>.x.y` and `fd00:10:<node>::<i>`.
fn pod_addresses(node: usize, i: u16) -> (IpAddr, IpAddr) {
    let [high, low] = i.to_be_bytes();
    let v4 = Ipv4Addr::new(10, 10 + u8::try_from(node).unwrap_or(0), high, low);
    let v6 = Ipv6Addr::new(0xfd00, 0x10, u16::try_from(node).unwrap_or(0), 0, 0, 0, 0, i);
    (v4.into(), v6.into())
}

/// Names end up in paths, namespaces and cgroups.
///
/// # Errors
/// Anything but 1 to 63 of `a-z`, `0-9` and `-`.
pub fn check_name(name: &str) -> Result<()> {
    let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 63 || !name.chars().all(fit) {
        bail!("`{name}` is not a name: expected 1 to 63 of a-z, 0-9 and -");
    }
    Ok(())
}

fn name_at(at: &At<'_>) -> Result<String> {
    let name = at.text()?;
    check_name(&name).map_err(|e| at.error(e))?;
    Ok(name)
}

fn node_at(at: &At<'_>) -> Result<String> {
    if at.text().is_ok() {
        return name_at(at);
    }
    at.only(&["name"])?;
    name_at(&at.need("name")?)
}

fn pod_at(at: &At<'_>) -> Result<PodSpec> {
    at.only(&[
        "name",
        "namespace",
        "serviceAccount",
        "labels",
        "node",
        "addresses",
        "privateAddresses",
        "command",
        "env",
        "ports",
        "enrolled",
        "shortcuts",
        "sameNode",
    ])?;
    let name = name_at(&at.need("name")?)?;
    let table = |key| at.get(key).map(|t| t.table()).transpose().map(Option::unwrap_or_default);
    let addresses = |key| match at.get(key) {
        Some(list) => list.items()?.iter().map(|a| a.parse("an IP address")).collect::<Result<Vec<IpAddr>>>(),
        None => Ok(Vec::new()),
    };
    let mut labels = table("labels")?;
    labels.entry("app".to_owned()).or_insert_with(|| name.clone());
    Ok(PodSpec {
        namespace: at.get("namespace").map_or_else(|| Ok("default".to_owned()), |n| name_at(&n))?,
        service_account: at.get("serviceAccount").map_or_else(|| Ok("default".to_owned()), |n| name_at(&n))?,
        labels,
        node: at.need("node")?.text()?,
        addresses: addresses("addresses")?,
        private_addresses: addresses("privateAddresses")?,
        command: at.get("command").map(|c| c.texts()).transpose()?.unwrap_or_default(),
        env: table("env")?,
        ports: match at.get("ports") {
            Some(list) => list.items()?.iter().map(|p| p.parse("a port")).collect::<Result<_>>()?,
            None => Vec::new(),
        },
        enrolled: at.get("enrolled").map_or(Ok(true), |e| e.boolean())?,
        shortcuts: at.get("shortcuts").map(|s| s.text()).transpose()?,
        same_node: at.get("sameNode").map(|s| s.text()).transpose()?,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "nodes: [a, {name: b}]\npods:\n- {name: x, node: a}\n- name: y\n  node: b\n  addresses: [192.0.2.7]\n  env: {N: 1}\n";

    fn refused(text: &str) -> String {
        format!("{:#}", Topology::parse("t.yaml", text).unwrap_err())
    }

    #[test]
    fn fills_in_what_is_left_out() {
        let topology = Topology::parse("t.yaml", GOOD).unwrap();
        let x = topology.find("x").unwrap();
        assert_eq!((x.namespace.as_str(), x.service_account.as_str(), x.enrolled), ("default", "default", true));
        assert_eq!(x.addresses, ["10.10.0.2".parse::<IpAddr>().unwrap(), "fd00:10::2".parse().unwrap()]);
        assert_eq!(x.labels["app"], "x");
        let y = topology.find("y").unwrap();
        assert_eq!((y.address(false), y.address(true)), (Some("192.0.2.7".parse().unwrap()), None));
        assert_eq!(y.env["N"], "1");
    }

    #[test]
    fn names_file_line_and_path_of_what_is_wrong() {
        assert_eq!(
            refused("nodes: [a]\npods:\n- name: x\n  node: c\n"),
            "t.yaml:4: pods[0].node: no node `c`; nodes are a"
        );
        assert!(
            refused("nodes: [a]\npods:\n- name: x\n  nod: a\n").starts_with("t.yaml:4: pods[0]: unknown field `nod`")
        );
        assert!(
            refused("nodes: [a]\npods:\n- {name: x, node: a}\n- {name: x, node: a}\n")
                .contains("t.yaml:4: pods[1].name")
        );
        assert_eq!(
            refused("nodes: [a]\npods:\n- name: x\n  node: a\n  addresses: [10.0.0]\n"),
            "t.yaml:5: pods[0].addresses[0]: `10.0.0` is not an IP address"
        );
        assert!(refused("nodes: [a\n").starts_with("t.yaml:2:"));
        assert!(refused("pods: []\n").contains("`nodes` is missing"));
    }

    #[test]
    fn private_addresses_repeat_on_other_nodes_only() {
        let pods = |node| {
            format!(
                "nodes: [a, b]\npods:\n- {{name: x, node: a, privateAddresses: [192.168.0.1]}}\n- {{name: y, node: {node}, privateAddresses: [192.168.0.1]}}\n"
            )
        };
        assert!(Topology::parse("t.yaml", &pods("b")).is_ok());
        assert!(refused(&pods("a")).contains("given twice on node a"));
    }
}
