//! Who a stream speaks for, in the form that Istio's control plane expects of a sidecar, and of ztunnel for the node. In: a
//! workload. Out: Envoy's `Node`. No I/O.

use std::collections::HashMap;
use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::{Node, node};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

use crate::settings::Settings;
use crate::workload::Workload;

/// Istio's release whose configuration this agent understands; the control plane gates features by it.
const ISTIO_VERSION: &str = "1.32.0";

/// Where the agent runs, as far as a control plane wants to know: Istio's own namespace.
const AGENT_NAMESPACE: &str = "istio-system";

/// The node message of a workload's stream.
pub fn node(workload: &Workload, settings: &Settings) -> Node {
    let (name, namespace) = (&workload.name, &workload.namespace);
    let address = workload.addresses.first().map(ToString::to_string).unwrap_or_default();
    let addresses: Vec<String> = workload.addresses.iter().map(ToString::to_string).collect();
    let labels = workload.labels.iter().map(|(key, value)| (key.clone(), text(value))).collect();
    // The workload's name, or the pod's where there is none.
    let workload_name = &workload.peer.workload;
    let metadata = HashMap::from([
        ("NAME".into(), text(name)),
        ("NAMESPACE".into(), text(namespace)),
        ("SERVICE_ACCOUNT".into(), text(&workload.service_account)),
        ("CLUSTER_ID".into(), text(&settings.cluster_id)),
        ("MESH_ID".into(), text(&settings.trust_domain)),
        ("LABELS".into(), object(labels)),
        ("INSTANCE_IPS".into(), text(&addresses.join(","))),
        ("WORKLOAD_NAME".into(), text(workload_name)),
        ("NODE_NAME".into(), text(&settings.node)),
        ("ISTIO_VERSION".into(), text(ISTIO_VERSION)),
        ("INTERCEPTION_MODE".into(), text("REDIRECT")),
        ("ENABLE_HBONE".into(), text("true")),
        // istiod lists only proxies that bring one.
        (
            "PROXY_CONFIG".into(),
            object(HashMap::from([("discoveryAddress".into(), text(&settings.control_plane.address))])),
        ),
    ]);
    Node {
        id: format!("sidecar~{address}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: format!("{workload_name}.{namespace}"),
        metadata: Some(Struct { fields: metadata }),
        user_agent_name: "mesh-agent".into(),
        user_agent_version_type: Some(node::UserAgentVersionType::UserAgentVersion(env!("CARGO_PKG_VERSION").into())),
        ..Node::default()
    }
}

/// The node message of the node's own stream; `address` is one of the node's.
pub fn whole_node(settings: &Settings, address: IpAddr) -> Node {
    let name = format!("mesh-agent-{}", settings.node);
    let metadata = HashMap::from([
        ("NAME".into(), text(&name)),
        ("NAMESPACE".into(), text(AGENT_NAMESPACE)),
        ("CLUSTER_ID".into(), text(&settings.cluster_id)),
        ("NODE_NAME".into(), text(&settings.node)),
        ("ISTIO_VERSION".into(), text(ISTIO_VERSION)),
    ]);
    Node {
        id: format!("ztunnel~{address}~{name}.{AGENT_NAMESPACE}~{AGENT_NAMESPACE}.svc.cluster.local"),
        metadata: Some(Struct { fields: metadata }),
        user_agent_name: "mesh-agent".into(),
        user_agent_version_type: Some(node::UserAgentVersionType::UserAgentVersion(env!("CARGO_PKG_VERSION").into())),
        ..Node::default()
    }
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

fn object(fields: HashMap<String, Value>) -> Value {
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}
