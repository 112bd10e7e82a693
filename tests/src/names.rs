//! What the objects of a configuration directory say about names: Services, ServiceEntries and where they lead.
//!
//! In: YAML files and the lab's pods. Out: cluster addresses for Services that name none, and an `/etc/hosts` for each
//! pod. What it cannot read it leaves out: it is the control plane that refuses and names bad objects.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::topology::{PodSpec, Topology};
use crate::yaml::{At, documents};

/// Suffix of Kubernetes' service names.
const CLUSTER_DOMAIN: &str = "svc.cluster.local";

/// A Service or one host of a ServiceEntry.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of a Service, or the host of a ServiceEntry.
    pub name: String,
    /// Whether `name` is a host rather than a Service's name.
    pub host: bool,
    /// Addresses clients connect to; empty for headless Services and entries without addresses.
    pub addresses: Vec<IpAddr>,
    /// Labels of the pods behind it.
    pub selector: BTreeMap<String, String>,
    /// Addresses behind it that are listed rather than selected.
    pub endpoints: Vec<IpAddr>,
    /// Whether the Service says `clusterIP: None`.
    pub headless: bool,
}

/// Reads the names from one file of objects, and gives the text back with a `clusterIP` in every Service that lacks
/// one. `allocated` remembers which Service has which number, so that addresses stay as objects come and go.
///
/// # Errors
/// The text is not YAML.
pub fn read(file: &str, text: &str, allocated: &mut BTreeMap<String, u16>) -> Result<(Vec<Named>, String)> {
    let mut named = Vec::new();
    let mut inserts = Vec::new();
    for document in &documents(file, text)? {
        let root = At::root(file, document);
        let items = match root.get("items") {
            Some(items) if text_at(&root, "kind") == "List" => items.items()?,
            _ => vec![root],
        };
        for item in items {
            match text_at(&item, "kind").as_str() {
                "Service" => named.push(service(&item, allocated, &mut inserts)),
                "ServiceEntry" => named.extend(service_entry(&item)),
                _ => {}
            }
        }
    }
    Ok((named, insert(text, inserts)))
}

/// Addresses given to the `number`-th Service: from 10.96.0.0/16 and fd00:96::/112.
fn cluster_address(number: u16, v6: bool) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    if v6 { Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number).into() } else { Ipv4Addr::new(10, 96, high, low).into() }
}

fn text_at(at: &At<'_>, path: &str) -> String {
    at.find(path).and_then(|v| v.text().ok()).unwrap_or_default()
}

fn texts_at(at: &At<'_>, path: &str) -> Vec<String> {
    at.find(path).and_then(|v| v.texts().ok()).unwrap_or_default()
}

fn addresses(texts: impl IntoIterator<Item = String>) -> Vec<IpAddr> {
    texts.into_iter().filter_map(|t| t.parse().ok()).collect()
}

fn namespace(at: &At<'_>) -> String {
    Some(text_at(at, "metadata.namespace")).filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned())
}

/// Place and text of an insertion.
struct Insert {
    line: usize,
    column: usize,
    text: String,
    flow: bool,
}

fn service(at: &At<'_>, allocated: &mut BTreeMap<String, u16>, inserts: &mut Vec<Insert>) -> Named {
    let (namespace, name) = (namespace(at), text_at(at, "metadata.name"));
    let one = text_at(at, "spec.clusterIP");
    let headless = one == "None";
    let mut own = addresses(texts_at(at, "spec.clusterIPs"));
    if own.is_empty() {
        own = addresses([one.clone()]);
    }
    if own.is_empty()
        && one.is_empty()
        && text_at(at, "spec.type") != "ExternalName"
        && let (Some(spec), Some(first)) = (at.get("spec"), at.find("spec").and_then(|s| s.first_key()))
    {
        let next = allocated.values().max().map_or(1, |n| n + 1);
        let number = *allocated.entry(format!("{namespace}/{name}")).or_insert(next);
        let families = texts_at(at, "spec.ipFamilies");
        let dual = text_at(at, "spec.ipFamilyPolicy").ends_with("DualStack") || families.len() > 1;
        let v6_first = families.first().is_some_and(|f| f == "IPv6");
        own = vec![cluster_address(number, v6_first)];
        if dual {
            own.push(cluster_address(number, !v6_first));
        }
        let all = own.iter().map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(", ");
        let flow = (spec.line(), spec.column()) != (first.line(), first.column());
        let (comma, feed) =
            if flow { (",", " ".to_owned()) } else { ("", format!("\n{}", " ".repeat(first.column()))) };
        let text = format!("clusterIP: \"{}\"{comma}{feed}clusterIPs: [{all}]{comma}{feed}", own[0]);
        inserts.push(Insert { line: first.line(), column: first.column(), text, flow });
    }
    Named {
        selector: at.find("spec.selector").and_then(|s| s.table().ok()).unwrap_or_default(),
        namespace,
        name,
        host: false,
        addresses: own,
        endpoints: Vec::new(),
        headless,
    }
}

fn service_entry(at: &At<'_>) -> Vec<Named> {
    let endpoints = at.find("spec.endpoints").and_then(|e| e.items().ok()).unwrap_or_default();
    let entry = |host: String| Named {
        namespace: namespace(at),
        name: host,
        host: true,
        addresses: addresses(texts_at(at, "spec.addresses")),
        selector: at.find("spec.workloadSelector.labels").and_then(|s| s.table().ok()).unwrap_or_default(),
        endpoints: addresses(endpoints.iter().map(|e| text_at(e, "address"))),
        headless: false,
    };
    texts_at(at, "spec.hosts").into_iter().filter(|h| !h.starts_with('*')).map(entry).collect()
}

fn insert(text: &str, inserts: Vec<Insert>) -> String {
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    // From the end, so that earlier places stay where they are.
    for Insert { line, column, text, flow } in inserts.into_iter().rev() {
        let Some(target) = line.checked_sub(1).and_then(|i| lines.get_mut(i)) else { continue };
        let at = target.char_indices().nth(column).map_or(target.len(), |(i, _)| i);
        let fits = flow || target[..at].chars().all(|c| c == ' ');
        if fits {
            target.insert_str(at, &text);
        }
    }
    lines.join("\n")
}

/// The `/etc/hosts` of a pod. With `direct`, a name leads straight to a pod behind it, as nobody would translate a
/// cluster address: so it is without the mesh.
pub fn hosts(topology: &Topology, named: &[Named], pod: &PodSpec, direct: bool) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned();
    let taken = named.iter().any(|n| !n.host && n.name == pod.name && n.namespace == pod.namespace);
    for address in pod.addresses.iter().filter(|_| !taken) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{address} {}", pod.name);
    }
    for n in named {
        let names = if n.host {
            n.name.clone()
        } else {
            let (name, space) = (&n.name, &n.namespace);
            let short = if *space == pod.namespace { format!(" {name}") } else { String::new() };
            format!("{name}.{space}.{CLUSTER_DOMAIN} {name}.{space}.svc {name}.{space}{short}")
        };
        for address in lead(topology, n, direct) {
            let _ = writeln!(text, "{address} {names}");
        }
    }
    text
}

fn lead(topology: &Topology, named: &Named, direct: bool) -> Vec<IpAddr> {
    if !direct && !named.addresses.is_empty() {
        return named.addresses.clone();
    }
    let selected =
        |p: &&PodSpec| p.namespace == named.namespace && named.selector.iter().all(|(k, v)| p.labels.get(k) == Some(v));
    let pods: Vec<_> = topology.pods.iter().filter(selected).filter(|_| !named.selector.is_empty()).collect();
    if named.headless {
        return pods.iter().flat_map(|p| p.addresses.clone()).collect();
    }
    // One backend, and of each family at most one address: names do not balance here.
    let backend = pods.first().map_or_else(|| named.endpoints.clone(), |p| p.addresses.clone());
    let wanted = |v6: bool| named.addresses.is_empty() || named.addresses.iter().any(|a| a.is_ipv6() == v6);
    let families = [false, true].into_iter().filter(|v6| wanted(*v6));
    families.filter_map(|v6| backend.iter().copied().find(|a| a.is_ipv6() == v6)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80}]
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: data}, spec: {ipFamilyPolicy: PreferDualStack, selector: {app: db}}}
---
kind: Service
metadata: {name: fixed}
spec: {clusterIP: 10.0.0.9}
---
kind: ServiceEntry
metadata: {name: out}
spec:
  hosts: [api.example.com, '*.example.org']
  endpoints: [{address: 192.0.2.1}]
";

    fn topology() -> Topology {
        let pod = |name: &str, space: &str| PodSpec::new(name, "a").account(space, name);
        Topology::of_nodes(&["a"]).pod(pod("web", "default")).pod(pod("db", "data")).complete().unwrap()
    }

    #[test]
    fn services_without_an_address_get_one_that_stays() {
        let mut allocated = BTreeMap::new();
        let (named, text) = read("s.yaml", SERVICES, &mut allocated).unwrap();
        assert_eq!(named.len(), 4);
        let (again, same) = read("s.yaml", &text, &mut allocated).unwrap();
        assert_eq!((&again, &same), (&named, &text), "the copy carries the addresses:\n{text}");
        assert_eq!(named[0].addresses, ["10.96.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(named[1].addresses, ["10.96.0.2".parse::<IpAddr>().unwrap(), "fd00:96::2".parse().unwrap()]);
        assert_eq!(named[2].addresses, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn names_lead_to_the_cluster_address_or_straight_to_a_pod() {
        let topology = topology();
        let (named, _) = read("s.yaml", SERVICES, &mut BTreeMap::new()).unwrap();
        let hosts = |pod, direct| super::hosts(&topology, &named, topology.find(pod).unwrap(), direct);
        assert!(
            hosts("web", false).contains("10.96.0.1 web.default.svc.cluster.local web.default.svc web.default web\n")
        );
        assert!(hosts("db", false).contains("10.96.0.1 web.default.svc.cluster.local web.default.svc web.default\n"));
        assert!(hosts("db", true).contains("10.10.0.2 web.default.svc.cluster.local"));
        assert!(hosts("web", true).contains("fd00:10::3 db.data.svc.cluster.local"));
        assert!(hosts("web", false).contains("192.0.2.1 api.example.com\n"));
        assert!(!hosts("web", false).contains("example.org"));
    }
}
