//! AuthorizationPolicy: who may connect, from files to the application's own log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::sys::wait_for;
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Shared, Topology};

mod carried;
mod change;
mod direct;
mod neighbour;
mod start;
mod who;

static LAB: Shared = Shared::new(build);

/// Port of every server that is declared HTTP.
pub const HTTP: u16 = 8080;
/// Port of every server that is declared TCP.
pub const TCP: u16 = 9000;
/// Longest that anything takes; only a failure takes so long.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A server that speaks HTTP on one port, and logs every connection that it gets to see on the other.
pub fn server(name: &str, node: &str) -> PodSpec {
    let all = format!("mesh-lab-app http-echo --port {HTTP} & exec mesh-lab-app tcp --port {TCP}");
    PodSpec::new(name, node).command(&["sh", "-c", &all], &[HTTP, TCP])
}

/// Clients in two namespaces, one of them on the servers' node, and one that is not in the mesh.
pub fn clients() -> Topology {
    Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a").account("default", "client"))
        .pod(PodSpec::new("teller", "a").account("bank", "teller"))
        .pod(PodSpec::new("near", "b").account("bank", "near"))
        .pod(PodSpec::new("outside", "a").unenrolled())
}

/// A Service for a server's ports.
pub fn service(name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports: \
         [{{name: http, port: {HTTP}}}, {{name: tcp, port: {TCP}}}]\n"
    )
}

/// A policy that selects a server.
pub fn policy(name: &str, app: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec:\n  selector: \
         {{matchLabels: {{app: {app}}}}}\n{spec}\n"
    )
}

const SERVERS: [&str; 8] = ["free", "ranged", "named", "spaced", "ported", "denying", "shut", "trial"];

fn build() -> Result<Lab> {
    let topology = SERVERS.iter().fold(clients(), |topology, name| topology.pod(server(name, "b")));
    let services: String = SERVERS.iter().map(|name| service(name)).collect();
    let policies = [
        policy("named", "named", "  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]"),
        policy("spaced", "spaced", "  rules: [{from: [{source: {namespaces: [bank]}}]}]"),
        policy("ported", "ported", "  rules: [{to: [{operation: {ports: ['9000']}}]}]"),
        policy("everybody", "denying", "  rules: [{}]"),
        policy("but", "denying", "  action: DENY\n  rules: [{from: [{source: {principals: ['*/sa/client']}}]}]"),
        policy("shut", "shut", ""),
        policy("trial", "trial", "  action: DENY\n  rules: [{}]")
            .replace("{name: trial}", "{name: trial, annotations: {istio.io/dry-run: 'true'}}"),
    ];
    LabBuilder::for_test("policy", topology)
        .config("services.yaml", &services)
        .config("policies.yaml", &policies.concat())
        .up()
}

/// Whether a client gets an answer of a server: by curl on the HTTP port, by a line on the other one.
pub fn reaches(lab: &Lab, client: &str, host: &str, port: u16) -> Result<bool> {
    let client = lab.pod(client)?;
    let to = format!("{host}.default:{port}");
    if port == HTTP {
        let url = format!("http://{to}/");
        let said = client.try_run(&["curl", "-sS", "--fail", "--max-time", "30", &url])?;
        ensure!(said.status.success() == said.text().contains("\"pod\""), "{url}: {}{}", said.text(), said.stderr);
        return Ok(said.status.success());
    }
    let said = client.try_run(&["mesh-lab-app", "talk", "--to", &to, "--say", "whoami", "--limit", "30"])?;
    Ok(said.text().contains("\"received\":\"peer "))
}

/// Waits until a client reaches a server, or no longer does.
pub fn becomes(lab: &Lab, client: &str, host: &str, port: u16, served: bool) -> Result<()> {
    let what = format!("{client} to {host}:{port} to become {}", if served { "served" } else { "refused" });
    wait_for(LIMIT, &what, || Ok((reaches(lab, client, host, port)? == served).then_some(())))
}

/// The clients of all connections that a server's TCP application has accepted.
pub fn seen_by(lab: &Lab, pod: &str) -> Result<Vec<String>> {
    let log = lab.pod(pod)?.log();
    Ok(log.lines().filter_map(|line| line.strip_prefix("begin ")).map(str::to_owned).collect())
}
