//! The agent's life: it is killed again and again under traffic, replaced by another one under traffic, stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::{Context, Result};
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Topology};
use serde_json::Value;

mod killed;
mod replaced;
mod stopped;

/// A server on node `b`, a client in the mesh on `a`, and somebody outside the mesh on `a`.
pub fn lab(name: &str, config: &[(&str, &str)]) -> Result<Lab> {
    let all = format!(
        "mesh-lab-app http-echo --port 8080 & \
         dnsmasq --no-daemon --conf-file=/dev/null --no-resolv --no-hosts --txt-record=who.test,{NAME} & \
         exec mesh-lab-app tcp --port 9000"
    );
    let server = PodSpec::new("server", "b").command(&["sh", "-c", &all], &[8080, 9000, 53]);
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("outsider", "a").unenrolled())
        .pod(server);
    let lab = LabBuilder::for_test(name, topology).config("server.yaml", SERVICE);
    config.iter().fold(lab, |lab, (file, yaml)| lab.config(file, yaml)).up()
}

/// What the server's DNS calls it.
pub const NAME: &str = "the-server";

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]}
"#;

/// The last line that a client printed, as JSON.
pub fn said(log: &str) -> Result<Value> {
    serde_json::from_str(log.lines().last().unwrap_or_default()).with_context(|| log.to_owned())
}
