//! Headless services, and pods dialled by their address: real programs between two nodes and on one, where only identities
//! come in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::sys::wait_for;
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Shared, Topology};

static LAB: Shared = Shared::new(build);

/// Longest that anything takes; only a failure takes so long.
const LIMIT: Duration = Duration::from_secs(20);
/// Declared TCP.
const REDIS: u16 = 6379;
/// Declared HTTP.
const HTTP: u16 = 8080;
/// Of the pod alone: no service knows it.
const UNDECLARED: u16 = 9100;

/// `store` is STRICT, takes no `stranger`, and runs on node `b`.
fn build() -> Result<Lab> {
    let servers = format!(
        "redis-server --port {REDIS} --bind '*' --protected-mode no --save '' & mesh-lab-app http-echo --port {HTTP} & \
         exec mesh-lab-app tcp --port {UNDECLARED}"
    );
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("stranger", "a"))
        .pod(PodSpec::new("near", "b"))
        .pod(PodSpec::new("near-stranger", "b"))
        .pod(PodSpec::new("outside", "a").unenrolled())
        .pod(PodSpec::new("store", "b").command(&["sh", "-c", &servers], &[REDIS, HTTP, UNDECLARED]));
    LabBuilder::for_test("headless", topology).config("store.yaml", OBJECTS).up()
}

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: store}
spec:
  clusterIP: None
  selector: {app: store}
  ports: [{name: tcp-redis, port: 6379}, {name: http, port: 8080}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: store}
spec:
  selector: {matchLabels: {app: store}}
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: store}
spec:
  selector: {matchLabels: {app: store}}
  action: DENY
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/default/sa/stranger, cluster.local/ns/default/sa/near-stranger]
"#;

/// How often the agent at one side has told of `store` with these labels.
fn told(lab: &Lab, node: &str, metric: &str, labels: &[(&str, &str)]) -> Result<f64> {
    let labels: Vec<(&str, &str)> = [("destination_workload", "store")].iter().chain(labels).copied().collect();
    Ok(lab.node(node)?.agent().metrics()?.sum(metric, &labels))
}

fn kernel(lab: &Lab, node: &str, event: &str) -> Result<f64> {
    Ok(lab.node(node)?.agent().metrics()?.sum("mesh_agent_kernel_total", &[("event", event)]))
}

/// By the service's name, by the pod's own, and by its address.
fn urls(lab: &Lab) -> Result<[Vec<String>; 3]> {
    let at = SocketAddr::new(lab.pod("store")?.address(), HTTP);
    let own = format!("store-0.store.default.svc.cluster.local:{HTTP}");
    let resolve = ["--resolve".to_owned(), format!("{own}:{}", at.ip())];
    Ok([
        vec![format!("http://store:{HTTP}/")],
        resolve.into_iter().chain([format!("http://{own}/")]).collect(),
        vec![format!("http://{at}/")],
    ])
}

fn curl(lab: &Lab, pod: &str, url: &[String]) -> Result<(bool, String)> {
    let argv: Vec<&str> =
        ["curl", "-sS", "--fail", "--max-time", "10"].into_iter().chain(url.iter().map(String::as_str)).collect();
    let run = lab.pod(pod)?.try_run(&argv)?;
    Ok((run.status.success(), run.text()))
}

fn cli(lab: &Lab, pod: &str, host: &str, argv: &[&str]) -> Result<String> {
    let argv: Vec<&str> = ["redis-cli", "-h", host].iter().chain(argv).copied().collect();
    Ok(lab.pod(pod)?.try_run(&argv)?.text().trim().to_owned())
}

#[test]
fn between_nodes_they_are_reached_by_tunnel_with_identities() -> Result<()> {
    LAB.test(|lab| {
        let (client, address) = (lab.pod("client")?.address(), lab.pod("store")?.address().to_string());
        let principal = |name: &str| format!("spiffe://cluster.local/ns/default/sa/{name}");
        let (from, to) = (principal("client"), principal("store"));
        let arrived =
            [("reporter", "destination"), ("source_principal", &*from), ("connection_security_policy", "mutual_tls")];
        let left = [("reporter", "source"), ("destination_principal", &*to)];
        let (opened, requests) = ("istio_tcp_connections_opened_total", "istio_requests_total");

        for host in ["store", &address] {
            ensure!(cli(lab, "client", host, &["ping"])? == "PONG", "{host}");
            let list = cli(lab, "client", host, &["client", "list"])?;
            ensure!(list.contains(&format!(" addr={client}:")), "redis sees its client as: {list}");
        }
        wait_for(LIMIT, "four connections of the client's identity", || {
            Ok((told(lab, "b", opened, &arrived)? >= 4.0 && told(lab, "a", opened, &left)? >= 4.0).then_some(()))
        })?;
        // The service is known also where its pod was dialled by address: that is how its clients find it.
        let named = [left[0], left[1], ("destination_service_name", "store")];
        ensure!(told(lab, "a", opened, &named)? >= 4.0);

        for url in urls(lab)? {
            let (served, said) = curl(lab, "client", &url)?;
            ensure!(served && said.contains("\"pod\""), "{url:?}: {said}");
        }
        wait_for(LIMIT, "three requests of the client's identity", || {
            Ok((told(lab, "b", requests, &arrived)? >= 3.0 && told(lab, "a", requests, &left)? >= 3.0).then_some(()))
        })?;
        let to = format!("{address}:{UNDECLARED}");
        let said = lab.pod("client")?.run(&["mesh-lab-app", "talk", "--to", &to, "--say", "whoami"])?.text();
        ensure!(said.contains(&format!("peer {client}")), "{said}");

        // Three ports of one pod have shared the tunnels that there are: one for each worker at most.
        let door = format!("{address}:15008");
        let sockets = lab.pod("client")?.run(&["ss", "-Htn", "state", "established", "dst", &door])?.text();
        let (open, workers) = (sockets.lines().count(), std::thread::available_parallelism()?.get());
        ensure!((1..=workers).contains(&open), "{open} tunnels with {workers} workers: {sockets}");
        Ok(())
    })
}

#[test]
fn on_one_node_bytes_go_directly_and_the_rest_by_tunnel() -> Result<()> {
    LAB.test(|lab| {
        let (near, address) = (lab.pod("near")?.address(), lab.pod("store")?.address().to_string());
        wait_for(LIMIT, "a direct way", || {
            let ways = lab.node("b")?.agent().metrics()?.sum("mesh_agent_direct_ways", &[]);
            Ok((ways >= 1.0).then_some(()))
        })?;
        for host in ["store", &address] {
            let before = kernel(lab, "b", "direct_opened")?;
            let list = cli(lab, "near", host, &["client", "list"])?;
            ensure!(list.contains(&format!(" addr={near}:")), "redis sees its client as: {list}");
            ensure!(kernel(lab, "b", "direct_opened")? == before + 1.0, "{host} was not gone to directly");
        }
        let from = "spiffe://cluster.local/ns/default/sa/near";
        let arrived =
            [("reporter", "destination"), ("source_principal", from), ("connection_security_policy", "mutual_tls")];
        let before = kernel(lab, "b", "direct_opened")?;
        for url in urls(lab)? {
            let (served, said) = curl(lab, "near", &url)?;
            ensure!(served && said.contains("\"pod\""), "{url:?}: {said}");
        }
        wait_for(LIMIT, "three requests of the neighbour's identity", || {
            Ok((told(lab, "b", "istio_requests_total", &arrived)? >= 3.0).then_some(()))
        })?;
        ensure!(kernel(lab, "b", "direct_opened")? == before, "requests went by the agent's side");
        Ok(())
    })
}

#[test]
fn who_may_not_come_in_does_not_by_address_either() -> Result<()> {
    LAB.test(|lab| {
        let address = lab.pod("store")?.address().to_string();
        let denied = || {
            let metrics = lab.node("b")?.agent().metrics()?;
            anyhow::Ok(metrics.sum("mesh_agent_policy_refused_total", &[("reason", "denied")]))
        };
        for pod in ["stranger", "near-stranger"] {
            let before = denied()?;
            for host in ["store", &address] {
                let said = cli(lab, pod, host, &["ping"])?;
                ensure!(said != "PONG", "{pod} reaches {host}");
            }
            for url in urls(lab)? {
                let (served, said) = curl(lab, pod, &url)?;
                ensure!(!served && !said.contains("\"pod\""), "{pod}, {url:?}: {said}");
            }
            // By its identity, not because it came in plaintext.
            ensure!(denied()? >= before + 5.0, "{} of {pod} were denied", denied()? - before);
        }
        let said = cli(lab, "outside", &address, &["ping"])?;
        ensure!(said != "PONG", "who is not in the mesh reaches it");
        Ok(())
    })
}
