//! The configuration that the lab's control plane reads: what people wrote, completed by what a cluster would know.
//!
//! In: the lab's own copy of the objects (`config/`) and its pods. Out: `effective/`, with a cluster address in every
//! Service and a Pod object for every pod, and the names for everybody's `/etc/hosts`. The files that people wrote are
//! never touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::names::{self, Named};
use crate::network;
use crate::sys;
use crate::topology::{PodSpec, Topology};

/// File of `effective/` that holds the Pod objects.
pub const PODS_FILE: &str = "lab-pods.yaml";

/// YAML files of a directory, sorted.
///
/// # Errors
/// The directory cannot be read.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("reading configuration directory {}", dir.display()))?;
    let mut files: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| is_object_file(p)).collect();
    files.sort();
    Ok(files)
}

fn is_object_file(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
    !hidden && path.is_file() && path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

/// Writes `effective` anew from `source`; only files that differ are touched. Returns the names found.
///
/// # Errors
/// The file system refuses. A file that is not YAML is copied as it is, for the control plane to refuse.
pub fn render(
    source: &Path,
    effective: &Path,
    topology: &Topology,
    allocated: &mut BTreeMap<String, u16>,
) -> Result<Vec<Named>> {
    let mut named = Vec::new();
    let mut wanted = BTreeMap::from([(PODS_FILE.to_owned(), pods(topology))]);
    for path in files(source)? {
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let completed = match names::read(&path.display().to_string(), &text, allocated) {
            Ok((found, completed)) => {
                named.extend(found);
                completed
            }
            Err(_) => text,
        };
        wanted.insert(name, completed);
    }
    sys::create_dir(effective)?;
    for path in files(effective)? {
        if !path.file_name().is_some_and(|n| wanted.contains_key(n.to_string_lossy().as_ref())) {
            std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    for (name, text) in wanted {
        let path = effective.join(name);
        if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            sys::write_whole(&path, &text)?;
        }
    }
    Ok(named)
}

/// Pod objects as `kubectl get pods -o yaml` would show them, as far as the control plane cares.
fn pods(topology: &Topology) -> String {
    let documents = topology.pods.iter().map(|p| pod(topology, p));
    documents.collect::<Vec<_>>().join("---\n")
}

fn pod(topology: &Topology, spec: &PodSpec) -> String {
    let index = topology.nodes.iter().position(|n| *n == spec.node).unwrap_or_default();
    let labels: String = spec.labels.iter().map(|(k, v)| format!("    {k}: {}\n", quote(v))).collect();
    let annotations = if spec.enrolled { "  annotations:\n    ambient.istio.io/redirection: enabled\n" } else { "" };
    let ports: String = spec.ports.iter().map(|p| format!("    - containerPort: {p}\n")).collect();
    let ports = if ports.is_empty() { String::new() } else { format!("    ports:\n{ports}") };
    let ips: String = spec.addresses.iter().map(|a| format!("  - ip: {}\n", quote(&a.to_string()))).collect();
    let ip = spec.addresses.first().map(|a| quote(&a.to_string())).unwrap_or_default();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels:\n{labels}{annotations}\
         spec:\n  nodeName: {node}\n  serviceAccountName: {account}\n  containers:\n  - name: app\n    image: lab\n{ports}\
         status:\n  phase: Running\n  hostIP: {host}\n  podIP: {ip}\n  podIPs:\n{ips}  conditions:\n  - type: Ready\n    status: \"True\"\n",
        name = quote(&spec.name),
        namespace = quote(&spec.namespace),
        node = quote(&spec.node),
        account = quote(&spec.service_account),
        host = network::node_addresses(index).0,
    )
}

/// A YAML scalar that is text whatever it looks like; JSON's quoting is part of YAML.
pub fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
