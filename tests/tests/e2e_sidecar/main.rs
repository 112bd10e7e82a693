//! Pods with a sidecar of Istio's beside ours: a real Envoy speaks mutual TLS with the agents at the applications' own ports, in
//! both directions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::{Context, Result};
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Shared, Topology, envoy, tools};
use serde_json::Value;

mod configuration;
mod from;
mod to;
mod websocket;

static LAB: Shared = Shared::new(build);

fn build() -> Result<Lab> {
    tools::envoy()?;
    let apps = "mesh-lab-app http-echo --port 8083 & exec mesh-lab-app tcp --port 9100";
    let server = "mesh-lab-app http-echo --port 8083 & exec mesh-lab-app tcp --port 9000";
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("server", "a").command(&["sh", "-c", server], &[8083, 9000]))
        .pod(
            PodSpec::new("sidecar", "b")
                .unenrolled()
                .label("security.istio.io/tlsMode", "istio")
                .label("version", "v1")
                .command(&["sh", "-c", apps], &[8083, 9100]),
        );
    let lab = LabBuilder::for_test("sidecar", topology).config("objects.yaml", OBJECTS).up()?;
    for (pod, settings) in [("sidecar", configuration::sidecar(&lab)?), ("server", configuration::application())] {
        envoy::start(&lab.pod(pod)?, &settings, 1, 8080)?.leave();
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
  - {name: http-ws, port: 8280}
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

/// A header that the echo saw.
pub fn header<'s>(seen: &'s Value, name: &str) -> &'s str {
    seen["headers"][name].as_str().unwrap_or_default()
}
