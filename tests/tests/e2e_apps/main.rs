//! Real programs through the whole mesh: two nodes, one lab for all tests of this file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::{Context, Result};
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Shared, Topology};
use serde_json::Value;

mod databases;
mod dns;
mod outside;
mod tcp;
mod telemetry;
mod web;

static LAB: Shared = Shared::new(build);

/// An address that a pod on either node has for itself.
pub const PRIVATE: &str = "192.168.77.1";

fn build() -> Result<Lab> {
    let pod = |name: &str, node: &str| PodSpec::new(name, node).label("version", "v1");
    let echo = ["mesh-lab-app", "http-echo"];
    let private = |mut spec: PodSpec| {
        spec.private_addresses = vec![PRIVATE.parse().unwrap()];
        spec
    };
    let both = "mesh-lab-app tcp --port 9000 & exec mesh-lab-app tcp --port 9001 --greet";
    let outside = "mesh-lab-app http-echo --port 7070 & exec mesh-lab-app http-echo --port 8080";
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(pod("client", "a"))
        .pod(pod("client-b", "b"))
        .pod(pod("web", "b"))
        .pod(pod("echo", "b").command(&echo, &[8080]))
        .pod(pod("six", "b").command(&echo, &[8080]))
        .pod(pod("near", "a").command(&echo, &[8080]))
        .pod(pod("tcp", "b").command(&["sh", "-c", both], &[9000, 9001]))
        .pod(pod("short-client", "a").shortcuts("on"))
        .pod(pod("short-tcp", "b").shortcuts("on").command(&["mesh-lab-app", "tcp", "--port", "9000"], &[9000]))
        .pod(pod("redis", "b"))
        .pod(pod("postgres", "b"))
        .pod(private(pod("left", "a").command(&echo, &[8080])))
        .pod(private(pod("right", "b").command(&echo, &[8080])))
        .pod(pod("outside", "a").unenrolled().command(&["sh", "-c", outside], &[8080, 7070]))
        .pod(pod("names-a", "a").unenrolled().command(&["sh", "-c", &dns::server("a")], &[53]))
        .pod(pod("names-b", "b").unenrolled().command(&["sh", "-c", &dns::server("b")], &[53]))
        .pod(pod("outside-b", "b").unenrolled().command(&["mesh-lab-app", "tcp"], &[9000]));
    LabBuilder::for_test("apps", topology).config("services.yaml", SERVICES).up()
}

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports:
  - {name: http, port: 8080}
  - {name: guess, port: 8081, targetPort: 8080}
---
apiVersion: v1
kind: Service
metadata: {name: dual}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: six}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec: {ipFamilies: [IPv6], selector: {app: six}, ports: [{name: http, port: 8080}, {name: tcp, port: 8081, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {selector: {app: near}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: short-tcp}
spec: {selector: {app: short-tcp}, ports: [{name: tcp-any, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: tcp}
spec: {selector: {app: tcp}, ports: [{name: tcp-any, port: 9000}, {name: tcp-greet, port: 9001}]}
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec: {selector: {app: redis}, ports: [{name: tcp-redis, port: 6379}]}
---
apiVersion: v1
kind: Service
metadata: {name: postgres}
spec: {selector: {app: postgres}, ports: [{name: tcp-postgres, port: 5432}]}
"#;

/// Runs a command in a pod and parses the JSON it prints.
pub fn json(lab: &Lab, pod: &str, argv: &[&str]) -> Result<Value> {
    let output = lab.pod(pod)?.run(argv)?.text();
    serde_json::from_str(&output).with_context(|| format!("`{}` printed no JSON: {output}", argv.join(" ")))
}

/// What the `http-echo` role saw of a request by curl, and curl's own end of the connection.
pub fn curl(lab: &Lab, pod: &str, url: &str, more: &[&str]) -> Result<(Value, String)> {
    let mut argv = vec!["curl", "-sS", "--max-time", "20", "-w", "%{stderr}%{local_ip} %{local_port}", url];
    argv.extend(more);
    let output = lab.pod(pod)?.run(&argv)?;
    let seen = serde_json::from_str(&output.text()).with_context(|| format!("{url}: {}", output.text()))?;
    let (ip, port) = output.stderr.trim().split_once(' ').with_context(|| output.stderr.clone())?;
    let ip: std::net::IpAddr = ip.parse()?;
    Ok((seen, std::net::SocketAddr::new(ip, port.parse()?).to_string()))
}

/// The address without the port.
pub fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}
