//! Peers that stand at both ends, with mutual TLS between them: Envoy and HAProxy in the pods of client and server.
//!
//! In: the pods. Out: the running proxies, and where a client finds them on loopback. Their certificates are from a CA that is made for
//! this; each checks the other's. Envoy also has a policy by the client's name, as the mesh has.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mesh_tests::{Lab, Process, tools};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
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

/// Certificate, key, both in one file, and the root.
struct Files {
    chain: PathBuf,
    key: PathBuf,
    both: PathBuf,
    root: PathBuf,
}

/// Starts them all, and lists the ways through them.
pub fn start(lab: &Lab, processes: &mut Vec<Process>) -> Result<Vec<Way>> {
    let (client, server) = (lab.pod(CLIENT)?, lab.pod(SERVER)?);
    let [own, other] = certificates(&client.scratch()?, &server.scratch()?)?;
    let to = server.address();
    let program = tools::envoy()?.display().to_string();
    let envoy = |pod: &str, config: &Value, port: u16| -> Result<Process> {
        let pod = lab.pod(pod)?;
        let file = pod.scratch()?.join(format!("envoy-{port}.json"));
        std::fs::write(&file, serde_json::to_vec(config)?)?;
        let file = file.display().to_string();
        pod.serve(&[&program, "-c", &file, "--concurrency", "2", "--disable-hot-restart", "-l", "error"], port)
    };
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

/// Certificates for client and server, each in its pod's directory.
fn certificates(client: &Path, server: &Path) -> Result<[Files; 2]> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Another name than the leaves', which would seem to be signed by themselves.
    params.distinguished_name.push(DnType::CommonName, "bench root");
    let key = KeyPair::generate()?;
    let root = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let one = |dir: &Path, name: &str| -> Result<Files> {
        let mut params = CertificateParams::default();
        let identity = format!("spiffe://bench/ns/default/sa/{name}");
        params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &issuer)?.pem();
        let write = |file: &str, text: &str| {
            let path = dir.join(file);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            anyhow::Ok(path)
        };
        Ok(Files {
            chain: write("pair.pem", &leaf)?,
            key: write("pair-key.pem", &key.serialize_pem())?,
            both: write("pair-both.pem", &format!("{leaf}{}", key.serialize_pem()))?,
            root: write("pair-root.pem", &root)?,
        })
    };
    Ok([one(client, "client")?, one(server, "server")?])
}

/// HAProxy at one end.
fn haproxies(server: IpAddr, files: &Files, at_server: bool) -> String {
    let (both, root) = (files.both.display(), files.root.display());
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
    let listener = listener("alone", "127.0.0.1", ALONE, manager("alone", false), None);
    json!({"static_resources": {
        "listeners": [listener],
        "clusters": [cluster("alone", server, HTTP, false, None)],
    }})
}

/// Envoy at one end: HTTP, and unless HTTP/2 is between, TCP too.
fn envoys(server: IpAddr, files: &Files, offset: u16, at_server: bool) -> Value {
    let http2 = offset == ENVOY_HTTP2;
    let ports: &[u16] = if http2 { &[HTTP] } else { &[HTTP, ECHO, SINK, ONCE] };
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for port in ports {
        let name = format!("p{port}");
        let filter = if *port == HTTP { manager(&name, at_server) } else { tcp(&name) };
        if at_server {
            listeners.push(listener(&name, "0.0.0.0", port + offset, filter, Some(downstream(files))));
            clusters.push(cluster(&name, IpAddr::from([127, 0, 0, 1]), *port, false, None));
        } else {
            let alpn: &[&str] = if http2 { &["h2"] } else { &["http/1.1"] };
            listeners.push(listener(&name, "127.0.0.1", port + offset, filter, None));
            clusters.push(cluster(&name, server, port + offset, http2, Some(upstream(files, alpn))));
        }
    }
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}

fn typed(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.extensions.{kind}").into();
    json!({"name": name, "typed_config": config})
}

fn listener(name: &str, host: &str, port: u16, filter: Value, tls: Option<Value>) -> Value {
    let mut chain = json!({"filters": [filter]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({
        "name": name,
        "address": {"socket_address": {"address": host, "port_value": port}},
        "filter_chains": [chain],
        "enable_reuse_port": true,
    })
}

/// With a policy where the client has a name.
fn manager(name: &str, judge: bool) -> Value {
    let router = typed("envoy.filters.http.router", "filters.http.router.v3.Router", json!({}));
    let who = json!({"authenticated": {"principal_name": {"prefix": "spiffe://bench/ns/default/"}}});
    let rules =
        json!({"action": "ALLOW", "policies": {"clients": {"permissions": [{"any": true}], "principals": [who]}}});
    let policy = typed("envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC", json!({"rules": rules}));
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}});
    typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": name,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": if judge { vec![policy, router] } else { vec![router] },
        }),
    )
}

fn tcp(name: &str) -> Value {
    let config = json!({"stat_prefix": name, "cluster": name});
    typed("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", config)
}

fn cluster(name: &str, host: IpAddr, port: u16, http2: bool, tls: Option<Value>) -> Value {
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

fn common(files: &Files, alpn: &[&str]) -> Value {
    json!({
        "tls_certificates": [{"certificate_chain": {"filename": files.chain}, "private_key": {"filename": files.key}}],
        "validation_context": {"trusted_ca": {"filename": files.root}},
        "alpn_protocols": alpn,
    })
}

fn downstream(files: &Files) -> Value {
    let config = json!({"require_client_certificate": true, "common_tls_context": common(files, &["h2", "http/1.1"])});
    typed("envoy.transport_sockets.tls", "transport_sockets.tls.v3.DownstreamTlsContext", config)
}

fn upstream(files: &Files, alpn: &[&str]) -> Value {
    let config = json!({"common_tls_context": common(files, alpn)});
    typed("envoy.transport_sockets.tls", "transport_sockets.tls.v3.UpstreamTlsContext", config)
}
