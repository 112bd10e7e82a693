//! Makes a document into objects.
//!
//! In: a tree and its file. Out: objects and problems. One wrong field makes its object unusable, never its neighbours.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::known::{self, Handling, Unread};
use super::{Body, Findings, Key, Kind, Metadata, Object, Origin};
use crate::problem::{Problem, Severity};
use crate::yaml::{self, FieldPath, Node};

/// What a document gave.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Objects without an error.
    pub objects: Vec<Object>,
    /// Objects that are there but wrong; whoever keeps their last good version may go on with it.
    pub broken: Vec<Key>,
    /// Everything to tell.
    pub problems: Vec<Problem>,
}

/// The part that every object has. Content is read apart from it, so that both keep their field paths.
#[derive(Deserialize)]
struct Envelope {
    metadata: Metadata,
}

/// Content that is under `spec`.
#[derive(Deserialize)]
struct WithSpec<T> {
    spec: T,
}

/// Decodes a document; a `v1` List gives its items.
pub fn decode(node: Node, file: &Arc<str>) -> Decoded {
    let mut decoded = Decoded::default();
    let is_list = node.get("kind").and_then(Node::text) == Some("List")
        && node.get("apiVersion").and_then(Node::text) == Some("v1");
    if is_list {
        if let yaml::Kind::Map(entries) = node.kind {
            for entry in entries.into_iter().filter(|entry| entry.key == "items") {
                if let yaml::Kind::List(items) = entry.value.kind {
                    items.into_iter().for_each(|item| decode_one(item, file, &mut decoded));
                }
            }
        }
    } else {
        decode_one(node, file, &mut decoded);
    }
    decoded
}

fn decode_one(node: Node, file: &Arc<str>, decoded: &mut Decoded) {
    let mut problem = |severity, line, path: &str, message: String| {
        decoded.problems.push(Problem {
            severity,
            file: file.clone(),
            line,
            object: String::new(),
            path: path.to_owned(),
            message,
        });
    };
    if !matches!(node.kind, yaml::Kind::Map(_)) {
        problem(Severity::Error, node.line, "", "a document must be an object with apiVersion and kind".to_owned());
        return;
    }
    let (Some(version), Some(kind)) =
        (node.get("apiVersion").and_then(Node::text), node.get("kind").and_then(Node::text))
    else {
        problem(Severity::Error, node.line, "", "apiVersion and kind are needed".to_owned());
        return;
    };
    let kind_line = node.line_of(&FieldPath::of("kind"));
    match known::kind(version, kind) {
        None => problem(Severity::Error, kind_line, "kind", format!("unknown kind `{kind}` of `{version}`")),
        Some(Handling::NoEffect) => {
            problem(Severity::Info, kind_line, "kind", format!("objects of kind `{kind}` have no effect here"));
        }
        Some(Handling::Later) => {
            problem(Severity::Warning, kind_line, "kind", format!("kind `{kind}` is not supported yet, ignored"));
        }
        Some(Handling::Read(kind)) => read(node, kind, file, decoded),
    }
}

fn read(node: Node, kind: Kind, file: &Arc<str>, decoded: &mut Decoded) {
    let text = |field: &str| node.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Node::text);
    let key = Key {
        kind,
        namespace: text("namespace").unwrap_or("default").into(),
        name: text("name").unwrap_or_default().into(),
    };
    let mut findings = Findings::default();
    let metadata = metadata(&node, kind, &mut findings);
    let body = match kind {
        Kind::Service => spec(&node, kind, Body::Service, &mut findings),
        Kind::EndpointSlice => flat(&node, kind, Body::EndpointSlice, &mut findings),
        Kind::Pod => flat(&node, kind, Body::Pod, &mut findings),
        Kind::Node => flat(&node, kind, |_: super::kubernetes::Node| Body::Node, &mut findings),
        Kind::VirtualService => spec(&node, kind, Body::VirtualService, &mut findings),
        Kind::DestinationRule => spec(&node, kind, |rule| Body::DestinationRule(Box::new(rule)), &mut findings),
        Kind::ServiceEntry => spec(&node, kind, |entry| Body::ServiceEntry(Box::new(entry)), &mut findings),
        Kind::WorkloadEntry => spec(&node, kind, Body::WorkloadEntry, &mut findings),
        Kind::PeerAuthentication => spec(&node, kind, Body::PeerAuthentication, &mut findings),
        Kind::AuthorizationPolicy => {
            spec(&node, kind, |policy| Body::AuthorizationPolicy(Box::new(policy)), &mut findings)
        }
    };
    match &body {
        None | Some(Body::Node) => {}
        Some(Body::Service(service)) => service.check(&mut findings),
        Some(Body::EndpointSlice(slice)) => slice.check(&mut findings),
        Some(Body::Pod(pod)) => pod.check(&mut findings),
        Some(Body::VirtualService(service)) => service.check(&mut findings),
        Some(Body::DestinationRule(rule)) => rule.check(&mut findings),
        Some(Body::ServiceEntry(entry)) => entry.check(&mut findings),
        Some(Body::WorkloadEntry(entry)) => entry.check(&mut findings),
        Some(Body::PeerAuthentication(rule)) => rule.check(&mut findings),
        Some(Body::AuthorizationPolicy(policy)) => policy.check(&mut findings),
    }
    let broken = findings.0.iter().any(|wrong| wrong.severity == Severity::Error);
    for wrong in findings.0 {
        decoded.problems.push(Problem {
            severity: wrong.severity,
            file: file.clone(),
            line: node.line_of(&wrong.path),
            object: key.to_string(),
            path: wrong.path.to_string(),
            message: wrong.message,
        });
    }
    match (metadata, body) {
        (Some(metadata), Some(body)) if !broken => {
            // References are checked against other objects later, and then lines are wanted.
            let keeps_lines = !matches!(kind, Kind::EndpointSlice | Kind::Pod | Kind::Node);
            let origin = Origin { file: file.clone(), line: node.line, tree: keeps_lines.then(|| Arc::new(node)) };
            decoded.objects.push(Object { key, metadata, body, origin });
        }
        _ => decoded.broken.push(key),
    }
}

fn spec<T: DeserializeOwned>(node: &Node, kind: Kind, wrap: fn(T) -> Body, findings: &mut Findings) -> Option<Body> {
    typed::<WithSpec<T>>(node, kind, findings).map(|object| wrap(object.spec))
}

fn flat<T: DeserializeOwned>(node: &Node, kind: Kind, wrap: fn(T) -> Body, findings: &mut Findings) -> Option<Body> {
    typed(node, kind, findings).map(wrap)
}

fn metadata(node: &Node, kind: Kind, findings: &mut Findings) -> Option<Metadata> {
    let reading = yaml::read::<Envelope>(node);
    // What stands beside `metadata` is told by whoever reads the content.
    let within = |path: &FieldPath| path.0.len() > 1;
    unread(reading.unknown.into_iter().filter(within), kind, findings);
    let metadata = reading.value.map_err(|fault| findings.error(fault.path, fault.why)).ok()?.metadata;
    check_names(&metadata, findings);
    Some(metadata)
}

fn typed<T: DeserializeOwned>(node: &Node, kind: Kind, findings: &mut Findings) -> Option<T> {
    let reading = yaml::read::<T>(node);
    unread(reading.unknown, kind, findings);
    reading.value.map_err(|fault| findings.error(fault.path, fault.why)).ok()
}

fn unread(paths: impl IntoIterator<Item = FieldPath>, kind: Kind, findings: &mut Findings) {
    for path in paths {
        match known::unread(kind, &path.pattern()) {
            Unread::NoEffect => {}
            Unread::Later => findings.warning(path, "is not supported yet, ignored"),
            Unread::Unknown => findings.error(path, "unknown field"),
        }
    }
}

fn check_names(metadata: &Metadata, findings: &mut Findings) {
    let path = FieldPath::of("metadata");
    let fits = |name: &str, dots: bool| {
        !name.is_empty()
            && name.len() <= 253
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || (dots && c == '.'))
    };
    if !fits(&metadata.name, true) {
        let why = format!("`{}` is no name of lowercase letters, digits, `-` and `.`", metadata.name);
        findings.error(path.key("name"), why);
    }
    if let Some(namespace) = metadata.namespace.as_deref().filter(|namespace| !fits(namespace, false)) {
        findings.error(path.key("namespace"), format!("`{namespace}` is no namespace name"));
    }
}
