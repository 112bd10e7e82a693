//! Envoy as a peer: the pieces of its static configuration that tests and benches put together, and its start in a pod.
//!
//! In: names, addresses, filters. Out: JSON as Envoy reads it (its v3 API), and the running program.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Value, json};

use crate::{Pod, Process, tools};

/// Runs Envoy in a pod with a configuration and so many workers; back when it listens at `port`.
pub fn start(pod: &Pod, configuration: &Value, workers: usize, port: u16) -> Result<Process> {
    let file = pod.scratch()?.join(format!("envoy-{port}.json"));
    std::fs::write(&file, serde_json::to_vec(configuration)?)?;
    let (program, file, workers) =
        (tools::envoy()?.display().to_string(), file.display().to_string(), workers.to_string());
    pod.serve(&[&program, "-c", &file, "--concurrency", &workers, "--disable-hot-restart", "-l", "warning"], port)
}

/// A configuration that asks no server.
pub fn bootstrap(listeners: &[Value], clusters: &[Value]) -> Value {
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}

/// An extension with its settings; `kind` is the message's name behind `envoy.extensions.`.
pub fn extension(name: &str, kind: &str, mut settings: Value) -> Value {
    settings["@type"] = format!("type.googleapis.com/envoy.extensions.{kind}").into();
    json!({"name": name, "typed_config": settings})
}

/// A listener with one filter, in plaintext without `tls`.
pub fn listener(name: &str, host: &str, port: u16, filter: &Value, tls: Option<Value>) -> Value {
    let mut chain = json!({"filters": [filter]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({
        "name": name,
        "address": {"socket_address": {"address": host, "port_value": port}},
        "filter_chains": [chain],
    })
}

/// The filter that forwards HTTP with these settings; routing is its last filter.
pub fn http(name: &str, mut settings: Value, filters: &[Value]) -> Value {
    let router = extension("envoy.filters.http.router", "filters.http.router.v3.Router", json!({}));
    settings["stat_prefix"] = name.into();
    settings["http_filters"] = filters.iter().cloned().chain([router]).collect();
    let kind = "filters.network.http_connection_manager.v3.HttpConnectionManager";
    extension("envoy.filters.network.http_connection_manager", kind, settings)
}

/// The filter that forwards bytes.
pub fn tcp(name: &str, cluster: &str) -> Value {
    let settings = json!({"stat_prefix": name, "cluster": cluster});
    extension("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", settings)
}

/// The filter that forwards bytes by CONNECT, which asks a cluster of HTTP/2 to lead to `host:port`.
pub fn tunnelled(name: &str, cluster: &str, to: &str) -> Value {
    let settings = json!({"stat_prefix": name, "cluster": cluster, "tunneling_config": {"hostname": to}});
    extension("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", settings)
}

/// A cluster of one endpoint, with room for what a bench asks; spoken to in HTTP/1 unless `http2`, in plaintext without `tls`.
pub fn cluster(name: &str, host: IpAddr, port: u16, http2: bool, tls: Option<Value>) -> Value {
    let endpoint = json!({"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}});
    let most = json!({"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000});
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [most]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}

/// TLS towards clients, which must show a certificate.
pub fn downstream(common: Value) -> Value {
    let settings = json!({"require_client_certificate": true, "common_tls_context": common});
    extension("envoy.transport_sockets.tls", "transport_sockets.tls.v3.DownstreamTlsContext", settings)
}

/// TLS towards servers.
pub fn upstream(mut settings: Value, common: Value) -> Value {
    settings["common_tls_context"] = common;
    extension("envoy.transport_sockets.tls", "transport_sockets.tls.v3.UpstreamTlsContext", settings)
}
