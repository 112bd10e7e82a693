//! Who may speak to whom: identities in both directions, signing requests, rotation under traffic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::Result;
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Shared, Topology};

mod anybody;
mod authority;
mod csr;
mod inbound;
mod outbound;
mod rotation;
mod tls;

static LAB: Shared = Shared::new(build);

/// Address of the endpoint that pretends to be `trusted`, on the client's node.
pub const IMPOSTOR: &str = "192.168.88.1";

fn build() -> Result<Lab> {
    let mut impostor = PodSpec::new("impostor", "a").unenrolled();
    impostor.private_addresses = vec![IMPOSTOR.parse().unwrap()];
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("server", "b").command(&["mesh-lab-app", "http-echo"], &[8080]))
        .pod(impostor);
    LabBuilder::for_test("trust", topology).config("objects.yaml", OBJECTS).up()
}

/// `trusted` is a Pod that the control plane believes in; at its address listens the test.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: trusted}
spec: {selector: {app: trusted}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: trusted
  labels: {app: trusted}
  annotations: {ambient.istio.io/redirection: enabled}
spec: {nodeName: elsewhere, serviceAccountName: trusted, containers: [{name: app, image: none}]}
status:
  phase: Running
  podIP: 192.168.88.1
  podIPs: [{ip: 192.168.88.1}]
  conditions: [{type: Ready, status: "True"}]
"#;
