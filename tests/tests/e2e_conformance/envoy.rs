//! Envoy as it is when nobody has told it more than where to: one listener for each suite, the server beside it.

use anyhow::Result;
use mesh_tests::{Lab, Process, tools};
use serde_json::{Value, json};

/// What a test dials: HTTP/2 to the echo, WebSocket, gRPC.
pub const HTTP2: u16 = 8080;
pub const WEBSOCKET: u16 = 8180;
pub const GRPC: u16 = 8185;

/// Starts it in the pod `envoy` and waits until it serves.
pub fn start(lab: &Lab) -> Result<Process> {
    let pod = lab.pod("envoy")?;
    let configuration = json!({"static_resources": {
        "listeners": [listener("h2", HTTP2, "HTTP2"), listener("ws", WEBSOCKET, "HTTP1"), listener("grpc", GRPC, "HTTP2")],
        "clusters": [cluster("h2", 8083, false), cluster("ws", 8084, false), cluster("grpc", 8085, true)],
    }});
    let file = pod.scratch()?.join("envoy.json");
    std::fs::write(&file, serde_json::to_vec(&configuration)?)?;
    let program = tools::envoy()?.display().to_string();
    let file = file.display().to_string();
    let argv = [&program, "-c", &file, "--concurrency", "1", "--disable-hot-restart", "-l", "warning"];
    pod.serve(&argv, GRPC)
}

fn listener(name: &str, port: u16, codec: &str) -> Value {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": codec,
        // What it waits before it closes behind a GOAWAY, a second if nobody says less.
        "delayed_close_timeout": "0.1s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        // As many as our agent takes, so that the case of one too many asks the same of both.
        "http2_protocol_options": {"max_concurrent_streams": 1024},
        "route_config": {"virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}],
        }]},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        }}],
    });
    json!({
        "name": name,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": manager,
        }]}],
    })
}

fn cluster(name: &str, port: u16, http2: bool) -> Value {
    let endpoint = json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}});
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    cluster
}
