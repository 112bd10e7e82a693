//! Envoy as Istio's sidecar: listeners and clusters with its TLS settings, without what its own filters add.
//!
//! The filter for the exchange of names is none of a released Envoy's, so that nothing here settles `istio-peer-exchange`.

use std::net::IpAddr;

use anyhow::Result;
use mesh_tests::Lab;
use mesh_tests::certificates::{Files, Issuer};
use mesh_tests::envoy::{self, bootstrap, cluster, listener, tcp};
use serde_json::{Value, json};

use crate::identity;

/// What a test dials in the sidecar's pod, and how that goes on to `server`.
pub const HTTP1: u16 = 7001;
pub const HTTP2: u16 = 7002;
pub const TCP: u16 = 7003;
pub const WEBSOCKET: u16 = 7004;
pub const WITHOUT: u16 = 7005;
pub const FOREIGN: u16 = 7006;
pub const GRPC: u16 = 7007;
/// Where the peer's own application of gRPC listens.
pub const OWN_GRPC: u16 = 8185;

/// The pod of the other mesh: its server side, and listeners on loopback in place of captured connections.
pub fn sidecar(lab: &Lab) -> Result<Value> {
    let (own, server) = (identity("sidecar"), identity("server"));
    let (here, to) = (IpAddr::from([127, 0, 0, 1]), lab.pod("server")?.address());
    let dir = lab.pod("sidecar")?.scratch()?;
    let known = Issuer::of(&lab.control().ca_dir())?;
    let good = known.sign(&dir, "good", &own)?;
    let other = known.sign(&dir, "other", &identity("another"))?;
    let foreign = Issuer::new("a root that nobody knows")?.sign(&dir, "foreign", &own)?;
    let root = known.write_root(&dir, "root.pem")?.display().to_string();
    let inside = |name, port, files: &Files, http: bool| {
        let alpn: &[&str] = if http { &["h2", "http/1.1"] } else { &["istio"] };
        let app = if port == 8085 { "app-grpc" } else { "app" };
        let filter = if http { manager(name, app) } else { tcp(name, "app-tcp") };
        listener(name, "0.0.0.0", port, &filter, Some(downstream(files, &root, alpn)))
    };
    let outside = |name: &str, port, http: bool| {
        let filter = if http { manager(name, name) } else { tcp(name, name) };
        listener(name, "127.0.0.1", port, &filter, None)
    };
    let upstream = |name: &str, port, files: Option<&Files>, alpn: &[&str], http2| {
        cluster(name, to, port, http2, Some(upstream(files, &root, &server, alpn)))
    };
    let http1 = ["istio-http/1.1", "istio", "http/1.1"];
    Ok(bootstrap(
        &[
            inside("in-http", 8080, &good, true),
            inside("in-tcp", 9000, &good, false),
            inside("in-grpc", 8085, &good, true),
            inside("in-foreign", 8081, &foreign, true),
            inside("in-other", 8082, &other, true),
            outside("out-http1", HTTP1, true),
            outside("out-http2", HTTP2, true),
            outside("out-tcp", TCP, false),
            outside("out-websocket", WEBSOCKET, true),
            outside("out-grpc", GRPC, true),
            outside("out-without", WITHOUT, true),
            outside("out-foreign", FOREIGN, true),
        ],
        &[
            cluster("app", here, 8083, false, None),
            cluster("app-tcp", here, 9100, false, None),
            cluster("app-grpc", here, OWN_GRPC, true, None),
            cluster("websocket", here, 8280, false, None),
            upstream("out-grpc", 8085, Some(&good), &["istio-h2", "istio", "h2"], true),
            upstream("out-http1", 8080, Some(&good), &http1, false),
            upstream("out-http2", 8080, Some(&good), &["istio-h2", "istio", "h2"], true),
            upstream("out-tcp", 9000, Some(&good), &["istio"], false),
            upstream("out-websocket", 8280, Some(&good), &http1, false),
            upstream("out-without", 8080, None, &http1, false),
            upstream("out-foreign", 8080, Some(&foreign), &http1, false),
        ],
    ))
}

/// An application of our pod's that speaks both versions of HTTP, and says which one it was asked in.
pub fn application() -> Value {
    let here = IpAddr::from([127, 0, 0, 1]);
    bootstrap(
        &[
            listener("app", "0.0.0.0", 8080, &manager("app", "echo"), None),
            listener("app-v6", "::", 8080, &manager("app", "echo"), None),
        ],
        &[cluster("echo", here, 8083, false, None), cluster("websocket", here, 8280, false, None)],
    )
}

/// Requests for `/ws` go to a server of WebSocket; what was spoken on the hop before is told in `x-hop`.
pub fn manager(name: &str, cluster: &str) -> Value {
    let websocket = if name.starts_with("out") { cluster } else { "websocket" };
    let route =
        |path: &str, cluster: &str| json!({"match": {"prefix": path}, "route": {"cluster": cluster, "timeout": "0s"}});
    let told = if name.starts_with("out") {
        json!([])
    } else {
        json!([{"header": {"key": "x-hop", "value": "%PROTOCOL%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}])
    };
    let settings = json!({
        "codec_type": "AUTO",
        "forward_client_cert_details": if name.starts_with("in") { "APPEND_FORWARD" } else { "ALWAYS_FORWARD_ONLY" },
        "set_current_client_cert_details": {"uri": true},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http2_protocol_options": {"allow_connect": true},
        "route_config": {"virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "request_headers_to_add": told,
            "routes": [route("/ws", websocket), route("/", cluster)],
        }]},
    });
    envoy::http(name, settings, &[])
}

/// TLS of a peer that demands to see `matcher` among the names of the other.
pub fn common(files: Option<&Files>, root: &str, matcher: &Value, alpn: &[&str]) -> Value {
    let certificates: Vec<Value> = files
        .iter()
        .map(|files| json!({"certificate_chain": {"filename": files.chain}, "private_key": {"filename": files.key}}))
        .collect();
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": certificates,
        "alpn_protocols": alpn,
        "validation_context": {
            "trusted_ca": {"filename": root},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": matcher}],
        },
    })
}

/// TLS towards clients of the mesh.
pub fn downstream(files: &Files, root: &str, alpn: &[&str]) -> Value {
    envoy::downstream(common(Some(files), root, &json!({"prefix": "spiffe://cluster.local/"}), alpn))
}

fn upstream(files: Option<&Files>, root: &str, server: &str, alpn: &[&str]) -> Value {
    let settings = json!({"sni": "outbound_.80_._.server.default.svc.cluster.local"});
    envoy::upstream(settings, common(files, root, &json!({"exact": server}), alpn))
}
