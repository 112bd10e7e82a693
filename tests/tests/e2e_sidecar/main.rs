//! Pods of Istio's beside ours: a real Envoy speaks with the agents in both directions, by mutual TLS at the applications' own ports as
//! a sidecar, and by HBONE.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::{Context, Result, ensure};
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Shared, Topology, envoy, tools};
use serde_json::Value;

mod configuration;
mod from;
mod grpc;
mod to;
mod tunnel_from;
mod tunnel_to;
mod tunnels;
mod websocket;

use tunnels::HBONE;

static LAB: Shared = Shared::new(build);

fn build() -> Result<Lab> {
    tools::envoy()?;
    let apps = "mesh-lab-app http-echo --port 8083 & exec mesh-lab-app tcp --port 9100";
    let server = "mesh-lab-app http-echo --port 8083 & exec mesh-lab-app tcp --port 9000";
    let tunnelled = |name| PodSpec::new(name, "b").unenrolled().label("networking.istio.io/tunnel", "http");
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("stranger", "a"))
        .pod(PodSpec::new("server", "a").command(&["sh", "-c", server], &[8083, 9000]))
        .pod(
            PodSpec::new("sidecar", "b")
                .unenrolled()
                .label("security.istio.io/tlsMode", "istio")
                .label("version", "v1")
                .command(&["sh", "-c", apps], &[8083, 9100]),
        )
        .pod(tunnelled("tunnel").command(&["sh", "-c", apps], &[8083, 9100]))
        .pod(tunnelled("foreign"))
        .pod(tunnelled("impostor"));
    let lab = LabBuilder::for_test("sidecar", topology).config("objects.yaml", OBJECTS).up()?;
    for (pod, settings, port) in [
        ("sidecar", configuration::sidecar(&lab)?, 8080),
        ("server", configuration::application(), 8080),
        ("tunnel", tunnels::peer(&lab)?, HBONE),
        ("foreign", tunnels::impostor(&lab, "foreign")?, HBONE),
        ("impostor", tunnels::impostor(&lab, "impostor")?, HBONE),
    ] {
        envoy::start(&lab.pod(pod)?, &settings, 1, port)?.leave();
    }
    Ok(lab)
}

/// Ports 8081 to 8083 of the sidecar are none that a sidecar of this mesh would serve so.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: sidecar}
spec:
  selector: {app: sidecar}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: http2-same, port: 81, targetPort: 8080}
  - {name: tcp-any, port: 9000}
  - {name: grpc, port: 8085}
  - {name: http-foreign, port: 8081}
  - {name: http-other, port: 8082}
  - {name: http-plain, port: 8083}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp-any, port: 9000}
  - {name: grpc, port: 8085}
  - {name: http-ws, port: 8280}
  - {name: http-ws-other, port: 8281}
---
apiVersion: v1
kind: Service
metadata: {name: tunnel}
spec:
  selector: {app: tunnel}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: http2-same, port: 81, targetPort: 8080}
  - {name: grpc, port: 8085}
  - {name: tcp-any, port: 9000}
---
apiVersion: v1
kind: Service
metadata: {name: foreign}
spec:
  selector: {app: foreign}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: impostor}
spec:
  selector: {app: impostor}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: server}
spec:
  selector: {matchLabels: {app: server}}
  mtls: {mode: STRICT}
  portLevelMtls:
    9000: {mode: PERMISSIVE}
"#;

/// Identity of a pod's service account.
pub fn identity(name: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{name}")
}

/// What the `http-echo` role saw of a request by curl.
pub fn curl(lab: &Lab, pod: &str, url: &str, more: &[&str]) -> Result<Value> {
    let mut argv = vec!["curl", "-sS", "--max-time", "20", url];
    argv.extend(more);
    let output = lab.pod(pod)?.run(&argv)?.text();
    serde_json::from_str(&output).with_context(|| format!("{url}: {output}"))
}

/// Status and body of an answer that nobody's application gave.
pub fn refused(lab: &Lab, pod: &str, url: &str) -> Result<(String, String)> {
    let output = lab.pod(pod)?.run(&["curl", "-sS", "--max-time", "20", "-w", "\n%{http_code}", url])?.text();
    let (body, status) = output.rsplit_once('\n').context("no status")?;
    Ok((status.to_owned(), body.to_owned()))
}

/// Sends more than fits into any queue, ends its half, and has it counted at the other end.
pub fn counted(lab: &Lab, pod: &str, to: &str) -> Result<()> {
    let talk = ["mesh-lab-app", "talk", "--to", to, "--say", "count", "--bytes", "300000", "--half-close"];
    let told: Value = serde_json::from_str(&lab.pod(pod)?.run(&talk)?.text())?;
    let received = told["received"].as_str().unwrap_or_default();
    ensure!(received.starts_with("300000 "), "{told}");
    ensure!(told["hash"].as_str().is_some_and(|hash| received.contains(hash)), "{told}");
    ensure!(told["end"] == "eof", "{told}");
    Ok(())
}

/// A header that the echo saw.
pub fn header<'s>(seen: &'s Value, name: &str) -> &'s str {
    seen["headers"][name].as_str().unwrap_or_default()
}
