//! The label set of Istio's standard metrics, in the order of Istio's proxies. In: who talks to whom. Out: label names
//! and values. No I/O.

use std::sync::Arc;

use super::exposition::Text;
use super::peer::Peer;
use crate::errors::Flags;

/// Which side reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's agent.
    Source,
    /// The server's agent.
    Destination,
}

/// Label `request_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP other than gRPC.
    Http,
    /// gRPC.
    Grpc,
    /// Opaque bytes.
    Tcp,
}

/// Label `connection_security_policy`. The source side always reports `Unknown`, as Istio does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// The peer's certificate was verified.
    MutualTls,
    /// Plaintext.
    None,
    /// Not known at this side.
    Unknown,
}

/// What does not change during a connection or a route: resolved to a series once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConnLabels {
    /// Side that reports.
    pub reporter: Reporter,
    /// The client.
    pub source: Arc<Peer>,
    /// The server.
    pub destination: Arc<Peer>,
    /// `destination_service`: the host name of the service; empty = unknown.
    pub service_host: Arc<str>,
    /// `destination_service_name`; `PassthroughCluster` for an unknown destination.
    pub service_name: Arc<str>,
    /// `destination_service_namespace`.
    pub service_namespace: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// How the connection was secured, as this side knows it.
    pub security: Security,
}

/// What is known at the end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Outcome {
    /// HTTP only; 0 when no response was sent.
    pub code: u16,
    /// gRPC only.
    pub grpc_status: Option<u8>,
    pub flags: Flags,
}

/// The value of every label of the series that stands for what did not fit the bound.
const OVERFLOW: &str = "overflow";

/// Writes the labels of a series; `labels` is `None` for the overflow series.
pub(super) fn write(out: &mut Text, http: bool, labels: Option<&ConnLabels>, outcome: Outcome) {
    let Some(labels) = labels else {
        for name in NAMES {
            if http || !HTTP_ONLY.contains(name) {
                out.label(name, OVERFLOW);
            }
        }
        return;
    };
    let (source, destination) = (&labels.source, &labels.destination);
    out.label(
        "reporter",
        match labels.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        },
    );
    out.label("source_workload", known(&source.workload));
    out.label("source_canonical_service", known(&source.canonical_service));
    out.label("source_canonical_revision", revision(&source.canonical_revision));
    out.label("source_workload_namespace", known(&source.namespace));
    out.label("source_principal", known(&source.principal));
    out.label("source_app", known(&source.app));
    out.label("source_version", known(&source.version));
    out.label("source_cluster", known(&source.cluster));
    out.label("destination_workload", known(&destination.workload));
    out.label("destination_workload_namespace", known(&destination.namespace));
    out.label("destination_principal", known(&destination.principal));
    out.label("destination_app", known(&destination.app));
    out.label("destination_version", known(&destination.version));
    out.label("destination_service", known(&labels.service_host));
    out.label("destination_canonical_service", known(&destination.canonical_service));
    out.label("destination_canonical_revision", revision(&destination.canonical_revision));
    out.label("destination_service_name", known(&labels.service_name));
    out.label("destination_service_namespace", known(&labels.service_namespace));
    out.label("destination_cluster", known(&destination.cluster));
    out.label(
        "request_protocol",
        match labels.protocol {
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
            Protocol::Tcp => "tcp",
        },
    );
    if http {
        out.label("response_code", format_args!("{}", outcome.code));
        match outcome.grpc_status {
            Some(status) => out.label("grpc_response_status", format_args!("{status}")),
            None => out.label("grpc_response_status", ""),
        }
    }
    out.label("response_flags", format_args!("{}", outcome.flags));
    out.label(
        "connection_security_policy",
        match labels.security {
            Security::MutualTls => "mutual_tls",
            Security::None => "none",
            Security::Unknown => "unknown",
        },
    );
}

const HTTP_ONLY: &[&str] = &["response_code", "grpc_response_status"];

/// All names in order (source: Istio's proxy metrics).
const NAMES: &[&str] = &[
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

fn known(value: &str) -> &str {
    if value.is_empty() { "unknown" } else { value }
}

fn revision(value: &str) -> &str {
    if value.is_empty() { "latest" } else { value }
}
