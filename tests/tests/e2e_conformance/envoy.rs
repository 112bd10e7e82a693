//! Envoy as it is when nobody has told it more than where to: one listener for each suite, the server beside it.

use std::net::IpAddr;

use anyhow::Result;
use mesh_tests::envoy::{self, bootstrap, cluster};
use mesh_tests::{Lab, Process};
use serde_json::{Value, json};

/// What a test dials: HTTP/2 to the echo, WebSocket, gRPC.
pub const HTTP2: u16 = 8080;
pub const WEBSOCKET: u16 = 8180;
pub const GRPC: u16 = 8185;

/// Starts it in the pod `envoy` and waits until it serves.
pub fn start(lab: &Lab) -> Result<Process> {
    let here = IpAddr::from([127, 0, 0, 1]);
    let configuration = bootstrap(
        &[listener("h2", HTTP2, "HTTP2"), listener("ws", WEBSOCKET, "HTTP1"), listener("grpc", GRPC, "HTTP2")],
        &[
            cluster("h2", here, 8083, false, None),
            cluster("ws", here, 8084, false, None),
            cluster("grpc", here, 8085, true, None),
        ],
    );
    envoy::start(&lab.pod("envoy")?, &configuration, 1, GRPC)
}

fn listener(name: &str, port: u16, codec: &str) -> Value {
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}});
    let settings = json!({
        "codec_type": codec,
        // What it waits before it closes behind a GOAWAY, a second if nobody says less.
        "delayed_close_timeout": "0.1s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        // As many as our agent takes, so that the case of one too many asks the same of both.
        "http2_protocol_options": {"max_concurrent_streams": 1024},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    });
    envoy::listener(name, "0.0.0.0", port, &envoy::http(name, settings, &[]), None)
}
