//! Peers that stand at both ends, with mutual TLS between them: Envoy and HAProxy in the pods of client and server.
//!
//! In: the pods. Out: the running proxies, and where a client finds them on loopback. Their certificates are from a CA that is made for
//! this; each checks the other's. Envoy also has a policy by the client's name, as the mesh has.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;
use mesh_tests::certificates::Issuer;
use mesh_tests::envoy::{self, bootstrap, cluster, extension, listener, tcp};
use mesh_tests::{Lab, Pod, Process};
use serde_json::{Value, json};

use crate::measure::family;
use crate::ways::{ECHO, HTTP, ONCE, SINK, Table, Way};

/// From a server's port to the one at which the proxy in front of it listens, and to that of the proxy in the client's pod.
const ENVOY: u16 = 13_000;
const ENVOY_HTTP2: u16 = 13_500;
const HAPROXY: u16 = 12_000;
/// Envoy in the client's pod alone, in plaintext.
const ALONE: u16 = 19_090;

const CLIENT: &str = "plain-client";
const SERVER: &str = "plain-server";

/// What one end shows and whom it trusts.
struct Files {
    own: mesh_tests::certificates::Files,
    root: PathBuf,
}

/// Starts them all, and lists the ways through them.
pub fn start(lab: &Lab, processes: &mut Vec<Process>) -> Result<Vec<Way>> {
    let (client, server) = (lab.pod(CLIENT)?, lab.pod(SERVER)?);
    let issuer = Issuer::new("bench root")?;
    let files = |pod: &Pod, name: &str| -> Result<Files> {
        let dir = pod.scratch()?;
        let own = issuer.sign(&dir, "pair", &format!("spiffe://bench/ns/default/sa/{name}"))?;
        Ok(Files { own, root: issuer.write_root(&dir, "pair-root.pem")? })
    };
    let (own, other) = (files(&client, "client")?, files(&server, "server")?);
    let to = server.address();
    let envoy = |pod: &str, config: &Value, port: u16| envoy::start(&lab.pod(pod)?, config, 2, port);
    let haproxy = |pod: &str, config: &str, port: u16| -> Result<Process> {
        let pod = lab.pod(pod)?;
        let file = pod.scratch()?.join("haproxy-pair.cfg");
        std::fs::write(&file, config)?;
        pod.serve(&["haproxy", "-f", &file.display().to_string()], port)
    };
    let pids = |of: &[&Process]| of.iter().filter_map(|one| one.id()).flat_map(family).collect::<Vec<_>>();
    let way = |name, ports: &[u16], offset: u16, proxies| Way {
        name,
        pod: CLIENT,
        to: ports.iter().map(|port| (*port, loopback(port + offset))).collect::<BTreeMap<_, _>>(),
        proxies,
        table: Some(Table::Nodes),
    };
    let tcp = [HTTP, ECHO, SINK, ONCE];
    let alone = envoy(CLIENT, &alone(to), ALONE)?;
    let (near, far) = (envoys(to, &own, ENVOY, false), envoys(to, &other, ENVOY, true));
    let pair = [envoy(SERVER, &far, HTTP + ENVOY)?, envoy(CLIENT, &near, HTTP + ENVOY)?];
    let (near, far) = (envoys(to, &own, ENVOY_HTTP2, false), envoys(to, &other, ENVOY_HTTP2, true));
    let pair_http2 = [envoy(SERVER, &far, HTTP + ENVOY_HTTP2)?, envoy(CLIENT, &near, HTTP + ENVOY_HTTP2)?];
    let (near, far) = (haproxies(to, &own, false), haproxies(to, &other, true));
    let haproxies = [haproxy(SERVER, &far, HTTP + HAPROXY)?, haproxy(CLIENT, &near, HTTP + HAPROXY)?];
    let ways = vec![
        Way { to: [(HTTP, loopback(ALONE))].into(), ..way("Envoy, one hop, plain", &[], 0, pids(&[&alone])) },
        way("Envoy, pair, mTLS", &tcp, ENVOY, pids(&[&pair[0], &pair[1]])),
        way("Envoy, pair, mTLS, HTTP/2 between", &[HTTP], ENVOY_HTTP2, pids(&[&pair_http2[0], &pair_http2[1]])),
        way("HAProxy, pair, mTLS", &tcp, HAPROXY, pids(&[&haproxies[0], &haproxies[1]])),
    ];
    processes.push(alone);
    processes.extend(pair);
    processes.extend(pair_http2);
    processes.extend(haproxies);
    Ok(ways)
}

fn loopback(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// HAProxy at one end.
fn haproxies(server: IpAddr, files: &Files, at_server: bool) -> String {
    let (both, root) = (files.own.both.display(), files.root.display());
    let mut text = String::from(
        "global\n  maxconn 9000\n  nbthread 2\ndefaults\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n",
    );
    for port in [HTTP, ECHO, SINK, ONCE] {
        let (mode, reuse) = if port == HTTP { ("http", "  http-reuse always\n") } else { ("tcp", "") };
        let (bind, to) = if at_server {
            let tls = format!("ssl crt {both} ca-file {root} verify required");
            (format!("0.0.0.0:{} {tls} backlog 4096", port + HAPROXY), format!("127.0.0.1:{port}"))
        } else {
            let tls = format!("ssl crt {both} ca-file {root} verify required");
            (format!("127.0.0.1:{} backlog 4096", port + HAPROXY), format!("{server}:{} {tls}", port + HAPROXY))
        };
        // Writing to a string cannot fail.
        let _ = write!(text, "listen p{port}\n  mode {mode}\n  bind {bind}\n{reuse}  server next {to}\n");
    }
    text
}

/// Envoy in the client's pod, without another at the server.
fn alone(server: IpAddr) -> Value {
    let listener = listener("alone", "127.0.0.1", ALONE, &manager("alone", false), None);
    bootstrap(&[listener], &[cluster("alone", server, HTTP, false, None)])
}

/// Envoy at one end: HTTP, and unless HTTP/2 is between, TCP too.
fn envoys(server: IpAddr, files: &Files, offset: u16, at_server: bool) -> Value {
    let http2 = offset == ENVOY_HTTP2;
    let ports: &[u16] = if http2 { &[HTTP] } else { &[HTTP, ECHO, SINK, ONCE] };
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for port in ports {
        let name = format!("p{port}");
        let filter = if *port == HTTP { manager(&name, at_server) } else { tcp(&name, &name) };
        if at_server {
            listeners.push(listener(
                &name,
                "0.0.0.0",
                port + offset,
                &filter,
                Some(envoy::downstream(common(files, &["h2", "http/1.1"]))),
            ));
            clusters.push(cluster(&name, IpAddr::from([127, 0, 0, 1]), *port, false, None));
        } else {
            let alpn: &[&str] = if http2 { &["h2"] } else { &["http/1.1"] };
            listeners.push(listener(&name, "127.0.0.1", port + offset, &filter, None));
            clusters.push(cluster(
                &name,
                server,
                port + offset,
                http2,
                Some(envoy::upstream(json!({}), common(files, alpn))),
            ));
        }
    }
    bootstrap(&listeners, &clusters)
}

/// With a policy where the client has a name.
fn manager(name: &str, judge: bool) -> Value {
    let who = json!({"authenticated": {"principal_name": {"prefix": "spiffe://bench/ns/default/"}}});
    let rules =
        json!({"action": "ALLOW", "policies": {"clients": {"permissions": [{"any": true}], "principals": [who]}}});
    let policy = extension("envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC", json!({"rules": rules}));
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}});
    let routes = json!({"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]});
    envoy::http(name, json!({"route_config": routes}), if judge { std::slice::from_ref(&policy) } else { &[] })
}

fn common(files: &Files, alpn: &[&str]) -> Value {
    let Files { own, root } = files;
    json!({
        "tls_certificates": [{"certificate_chain": {"filename": own.chain}, "private_key": {"filename": own.key}}],
        "validation_context": {"trusted_ca": {"filename": root}},
        "alpn_protocols": alpn,
    })
}
