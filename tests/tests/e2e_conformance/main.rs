//! Suites of cases, the same against our agents and against a real Envoy in one run: HTTP/2 byte by byte, WebSocket, requests that two
//! readers could read in two ways, gRPC. No case that Envoy passes may fail for us.
//!
//! In: with `MESH_CONFORMANCE`, a directory: every case runs, and what came of each is written there for `cargo xtask conformance`. Else a
//! share that takes less than a minute.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::Result;
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Shared, Topology, tools};

mod access;
mod envoy;
mod grpc;
mod http2;
mod neighbour;
mod report;
mod smuggling;
mod websocket;

static LAB: Shared = Shared::new(build);

fn build() -> Result<Lab> {
    tools::envoy()?;
    let echo = "mesh-lab-app http-echo --port 8080 & exec mesh-lab-app tcp --port 9000";
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("outside", "a").unenrolled())
        .pod(PodSpec::new("server", "b").command(&["sh", "-c", echo], &[8080, 9000]))
        .pod(
            PodSpec::new("envoy", "b").unenrolled().command(&["mesh-lab-app", "http-echo", "--port", "8083"], &[8083]),
        );
    // One worker: whatever a case does, it does beside all others of its node.
    let lab = LabBuilder::for_test("conform", topology).workers(1).config("objects.yaml", OBJECTS).up()?;
    envoy::start(&lab)?.leave();
    Ok(lab)
}

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: http-nginx, port: 8081}
  - {name: http-haproxy, port: 8082}
  - {name: http-ws, port: 8084}
  - {name: grpc, port: 8085}
  - {name: tcp, port: 9000}
"#;
