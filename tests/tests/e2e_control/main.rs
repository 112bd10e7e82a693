//! The control plane's worst days: it dies and comes back under traffic, it sends a bad resource, it is fed bad objects.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::{Context, Result, ensure};
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, Topology};
use serde_json::Value;

mod between;
mod nack;
mod objects;
mod restart;

/// Two versions of a server on node `b`, a client on node `a`.
pub fn topology() -> Topology {
    let both = "mesh-lab-app http-echo --port 8080 & exec mesh-lab-app tcp --port 9000";
    let server = |version: &str| {
        PodSpec::new(&format!("server-{version}"), "b")
            .label("app", "server")
            .label("version", version)
            .command(&["sh", "-c", both], &[8080, 9000])
    };
    Topology::of_nodes(&["a", "b"]).pod(PodSpec::new("client", "a")).pod(server("v1")).pod(server("v2"))
}

/// The server's Service, with its versions as subsets.
pub const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: server}
spec:
  host: server
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
"#;

/// A VirtualService that sends everything to one version.
pub fn all_to(version: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: server}}\nspec:\n  hosts: [server]\n  \
         http: [{{route: [{{destination: {{host: server, subset: {version}}}}}]}}]\n"
    )
}

/// Which pod answers the client.
pub fn who_answers(lab: &Lab) -> Result<String> {
    let said = lab.pod("client")?.run(&["curl", "-sS", "--max-time", "10", "http://server:8080/who"])?.text();
    let seen: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let pod = seen["pod"].as_str().unwrap_or_default().to_owned();
    ensure!(!pod.is_empty(), "{said}");
    Ok(pod)
}
