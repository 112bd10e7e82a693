//! Envoy at the other end of HBONE: it ends tunnels at port 15008 of its pod, and makes them to ours.
//!
//! Nothing of it listens for others at the ports that clients ask for: who gets there has come by a tunnel.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use mesh_tests::Lab;
use mesh_tests::certificates::{Files, Issuer};
use mesh_tests::envoy::{self, bootstrap, cluster, extension, listener, tunnelled};
use serde_json::{Value, json};

use crate::configuration::{OWN_GRPC, common, downstream, manager};
use crate::{identity, websocket};

/// Where tunnels end.
pub const HBONE: u16 = 15008;
/// What a test dials in the peer's pod, each of which leads to a port of `server`.
pub const HTTP: u16 = 7101;
pub const TCP: u16 = 7102;
pub const WEBSOCKET: u16 = 7103;
pub const GRPC: u16 = 7104;
/// Leads through our pod's tunnel to somebody else.
pub const ELSEWHERE: u16 = 7105;
/// With no certificate, one of an unknown root, and with the wish for another server.
pub const WITHOUT: u16 = 7106;
pub const FOREIGN: u16 = 7107;
pub const ANOTHER: u16 = 7108;
/// As `HTTP` and `TCP`, all of it over IPv6.
pub const HTTP_V6: u16 = 7109;
pub const TCP_V6: u16 = 7110;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// The pod `tunnel`: both ends of tunnels.
pub fn peer(lab: &Lab) -> Result<Value> {
    let (pod, server) = (lab.pod("tunnel")?, lab.pod("server")?);
    let (server, server_v6) = (server.address(), server.address_v6()?);
    let (dir, own) = (pod.scratch()?, identity("tunnel"));
    let known = Issuer::of(&lab.control().ca_dir())?;
    let root = known.write_root(&dir, "root.pem")?.display().to_string();
    let good = known.sign(&dir, "good", &own)?;
    let foreign = Issuer::new("a root that nobody knows")?.sign(&dir, "foreign", &own)?;
    let to = |port: u16, through: &str, host: IpAddr, wanted: u16| {
        let name = format!("to-{port}");
        listener(&name, "127.0.0.1", port, &tunnelled(&name, through, &SocketAddr::new(host, wanted).to_string()), None)
    };
    let through = |name: &str, to: IpAddr, files: Option<&Files>, server_is: &str| {
        let tls = common(files, &root, &json!({"exact": identity(server_is)}), &["h2"]);
        cluster(name, to, HBONE, true, Some(envoy::upstream(json!({}), tls)))
    };
    Ok(bootstrap(
        &[
            end(pod.address(), &good, &root),
            listener("app", "127.0.0.1", 8080, &manager("app", "echo"), None),
            to(HTTP, "tunnel", server, 8080),
            to(TCP, "tunnel", server, 9000),
            to(WEBSOCKET, "tunnel", server, websocket::OTHER_PORT),
            to(GRPC, "tunnel", server, 8085),
            to(ELSEWHERE, "tunnel", lab.pod("sidecar")?.address(), 8083),
            to(WITHOUT, "without", server, 8080),
            to(FOREIGN, "foreign", server, 8080),
            to(ANOTHER, "another", server, 8080),
            to(HTTP_V6, "tunnel-v6", server_v6, 8080),
            to(TCP_V6, "tunnel-v6", server_v6, 9000),
        ],
        &[
            cluster("port-8080", HERE, 8080, false, None),
            cluster("port-9000", HERE, 9100, false, None),
            cluster("port-8085", HERE, OWN_GRPC, false, None),
            cluster("echo", HERE, 8083, false, None),
            cluster("websocket", HERE, websocket::PORT, false, None),
            through("tunnel", server, Some(&good), "server"),
            through("tunnel-v6", server_v6, Some(&good), "server"),
            through("without", server, None, "server"),
            through("foreign", server, Some(&foreign), "server"),
            through("another", server, Some(&good), "another"),
        ],
    ))
}

/// A pod that shows a certificate which is not its own: one of the mesh for somebody else, or one for itself of an unknown root.
pub fn impostor(lab: &Lab, name: &str) -> Result<Value> {
    let pod = lab.pod(name)?;
    let dir = pod.scratch()?;
    let known = Issuer::of(&lab.control().ca_dir())?;
    let root = known.write_root(&dir, "root.pem")?.display().to_string();
    let shown = match name {
        "foreign" => Issuer::new("a root that nobody knows")?.sign(&dir, "shown", &identity(name))?,
        _ => known.sign(&dir, "shown", &identity("another"))?,
    };
    let clusters = [8080, 9000, 8085].map(|port| cluster(&format!("port-{port}"), HERE, 8083, false, None));
    Ok(bootstrap(&[end(pod.address(), &shown, &root)], &clusters))
}

/// Ends tunnels of the pod `client`'s identity, each of which asks for a port of this pod; there are clusters for three of them.
fn end(own: IpAddr, files: &Files, root: &str) -> Value {
    let host = |port: u16| {
        let connect = json!({"upgrade_type": "CONNECT", "connect_config": {}});
        let route = json!({"cluster": format!("port-{port}"), "timeout": "0s", "upgrade_configs": [connect]});
        json!({
            "name": format!("port-{port}"),
            "domains": [format!("{own}:{port}")],
            "routes": [{"match": {"connect_matcher": {}}, "route": route}],
        })
    };
    let settings = json!({
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"virtual_hosts": [host(8080), host(9000), host(8085)]},
    });
    let client = json!({"authenticated": {"principal_name": {"exact": identity("client")}}});
    let rules = json!({"policies": {"client": {"permissions": [{"any": true}], "principals": [client]}}});
    let only = extension("envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC", json!({"rules": rules}));
    listener(
        "hbone",
        "0.0.0.0",
        HBONE,
        &envoy::http("hbone", settings, &[only]),
        Some(downstream(files, root, &["h2"])),
    )
}
