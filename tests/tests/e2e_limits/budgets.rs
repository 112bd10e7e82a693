//! Two workloads of one node: one takes all it can get and is refused what is beyond its budget, the other goes on. As clients, as
//! servers, and where the node's own limit is what is reached.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::sys::wait_for;
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Process, Topology, shared};
use nix::sys::signal::Signal;

use crate::said;

/// Connections that one workload of the clients' node may have.
const BUDGET: usize = 50;
/// The same of the servers' node: more than all clients' budgets.
const SERVERS_BUDGET: usize = 120;
/// Connections that the abuser wants.
const WANTED: usize = 300;
/// Connections of the whole node, where those of a workload are not limited.
const NODE: usize = 100;
/// Handshakes that are begun and never finished.
const HALF_HANDSHAKES: usize = 40;
const PATIENCE: Duration = Duration::from_secs(10);

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: victim}
spec: {selector: {app: victim}, ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]}
"#;

fn lab() -> Result<Lab> {
    let serve = "mesh-lab-app http-echo --port 8080 & exec mesh-lab-app tcp --port 9000";
    let serve = ["sh", "-c", serve];
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("abuser", "a"))
        .pod(PodSpec::new("good", "a"))
        .pod(PodSpec::new("late", "a"))
        .pod(PodSpec::new("server", "b").command(&serve, &[8080, 9000]))
        .pod(PodSpec::new("victim", "b").command(&serve, &[8080, 9000]))
        .pod(PodSpec::new("outside", "a").unenrolled());
    LabBuilder::for_test("budgets", topology).config("s.yaml", SERVICES).up()
}

/// Starts an agent anew with these limits.
fn limit(lab: &Lab, node: &str, limits: &str) -> Result<()> {
    let agent = lab.node(node)?.agent();
    agent.stop()?;
    agent.spawn_with(&format!("limits: {{{limits}}}\n{}", agent.settings()))?;
    agent.wait_ready()
}

fn reached(lab: &Lab, node: &str, limit: &str) -> Result<f64> {
    Ok(lab.node(node)?.agent().metrics()?.sum("mesh_agent_limit_reached_total", &[("limit", limit)]))
}

/// Requests, each on a connection of its own, and a connection that is held.
fn steady(lab: &Lab) -> Result<Process> {
    let argv = ["mesh-lab-app", "steady", "--http", "server:8080", "--tcp", "server:9000"];
    let mut steady = lab.pod("good")?.spawn(&argv)?;
    steady.wait_log(PATIENCE, "traffic to start", |log| log.contains("started").then_some(()))?;
    Ok(steady)
}

/// Ends it; nothing of it may have failed, or been refused by a limit.
fn unhurt(lab: &Lab, mut steady: Process) -> Result<()> {
    steady.signal(Signal::SIGTERM);
    steady.wait(Duration::from_secs(15))?;
    let said = said(&steady.log())?;
    ensure!(said["failed_requests"] == 0 && said["failed_echoes"] == 0, "{said}");
    ensure!(said["requests"].as_u64() > Some(1) && said["echoes"].as_u64() > Some(1), "{said}");
    for node in ["a", "b"] {
        let metrics = lab.node(node)?.agent().metrics()?;
        for metric in ["istio_tcp_connections_closed_total", "istio_requests_total"] {
            let refused = metrics.sum(metric, &[("source_workload", "good"), ("response_flags", "OM")]);
            ensure!(refused == 0.0, "{metric} of the other on {node}: {refused}");
        }
    }
    Ok(())
}

/// Opens as many connections as it wants, all at once; how many were served to the end.
fn hold(lab: &Lab, pod: &str, to: &str) -> Result<usize> {
    let wanted = WANTED.to_string();
    let output = lab.pod(pod)?.try_run(&["mesh-lab-app", "hold", "--to", to, "--connections", &wanted])?;
    let held = said(&output.text()).with_context(|| output.stderr.clone())?;
    let (right, failed) = (held["right"].as_u64().unwrap_or_default(), held["failed"].as_u64().unwrap_or_default());
    ensure!(right + failed == WANTED as u64, "{held}");
    Ok(right as usize)
}

#[test]
fn one_workload_that_wants_everything_does_not_take_it_from_another() -> Result<()> {
    let lab = lab()?;
    let body = || -> Result<()> {
        limit(&lab, "a", &format!("connectionsPerWorkload: {BUDGET}"))?;
        limit(&lab, "b", &format!("connectionsPerWorkload: {SERVERS_BUDGET}, handshakesPerWorkload: 2"))?;
        as_a_client(&lab).context("as a client")?;
        as_a_server(&lab).context("as a server")?;
        by_handshakes(&lab).context("by handshakes")?;
        limit(&lab, "a", &format!("connections: {NODE}"))?;
        on_a_full_node(&lab).context("on a full node")
    };
    body().with_context(|| shared::logs(lab.state()))
}

fn as_a_client(lab: &Lab) -> Result<()> {
    let steady = steady(lab)?;
    let held = hold(lab, "abuser", "server:9000")?;
    ensure!(held == BUDGET, "{held} of {WANTED} connections were served");
    let beyond = (WANTED - BUDGET) as f64;
    ensure!(reached(lab, "a", "connectionsPerWorkload")? == beyond, "{}", reached(lab, "a", "connectionsPerWorkload")?);
    ensure!(reached(lab, "b", "connectionsPerWorkload")? == 0.0);
    let metrics = lab.node("a")?.agent().metrics()?;
    let labels = [("source_workload", "abuser"), ("response_flags", "OM")];
    let refused = metrics.sum("istio_tcp_connections_closed_total", &labels);
    ensure!(refused == beyond, "{refused} were told of");
    ensure!(metrics.sum("mesh_agent_connections_limit", &[]) >= 1000.0);
    let mut lines = 0;
    wait_for(PATIENCE, "the access log", || {
        lines = lab.node("a")?.agent().access_log().matches(" 0 OM too_many_connections ").count();
        Ok((lines == WANTED - BUDGET).then_some(()))
    })
    .with_context(|| format!("{lines} lines"))?;
    wait_for(PATIENCE, "its places to be given back", || {
        let metrics = lab.node("a")?.agent().metrics()?;
        Ok((metrics.sum("mesh_agent_workload_connections", &[("workload", "abuser")]) == 0.0).then_some(()))
    })?;
    unhurt(lab, steady)
}

fn as_a_server(lab: &Lab) -> Result<()> {
    let steady = steady(lab)?;
    let victim = format!("{}:9000", lab.pod("victim")?.address());
    let held = hold(lab, "outside", &victim)?;
    ensure!(held == SERVERS_BUDGET, "{held} of {WANTED} connections were served");
    ensure!(reached(lab, "b", "connectionsPerWorkload")? == (WANTED - SERVERS_BUDGET) as f64);
    unhurt(lab, steady)
}

/// What a client of a tunnel says first.
fn hello() -> Result<Vec<u8>> {
    let config = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
    let name = rustls::pki_types::ServerName::try_from("b")?;
    let mut client = rustls::ClientConnection::new(config.with_no_client_auth().into(), name)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}

/// Begins handshakes with the tunnel's port of a pod, and leaves them so.
fn half_handshakes(from: &mesh_tests::place::Place, to: IpAddr) -> Result<Vec<TcpStream>> {
    let hello = hello()?;
    from.within(|| {
        let one = |_| -> std::io::Result<TcpStream> {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, 15008), PATIENCE)?;
            std::io::Write::write_all(&mut stream, &hello)?;
            Ok(stream)
        };
        (0..HALF_HANDSHAKES).map(one).collect::<std::io::Result<Vec<_>>>()
    })?
    .context("handshakes with the victim")
}

fn by_handshakes(lab: &Lab) -> Result<()> {
    let steady = steady(lab)?;
    let before = reached(lab, "b", "handshakesPerWorkload")?;
    let open = half_handshakes(&lab.pod("outside")?.place(), lab.pod("victim")?.address())?;
    wait_for(PATIENCE, "handshakes to wait for their turn", || {
        // Two have theirs on each worker that has any of them.
        let waiting = reached(lab, "b", "handshakesPerWorkload")? - before;
        Ok((waiting > 0.0).then_some(()))
    })?;
    // Another pod of that node has its own: a workload that has no tunnel yet is served at once.
    lab.pod("late")?.run(&["curl", "-sSf", "--max-time", "8", "http://server:8080/"])?;
    drop(open);
    // And so is the victim again.
    lab.pod("late")?.run(&["curl", "-sSf", "--max-time", "15", "http://victim:8080/"])?;
    unhurt(lab, steady)
}

fn on_a_full_node(lab: &Lab) -> Result<()> {
    let steady = steady(lab)?;
    let held = hold(lab, "abuser", "server:9000")?;
    ensure!((NODE / 2..NODE).contains(&held), "{held} of {NODE} places of the node");
    ensure!(reached(lab, "a", "connections")? == (WANTED - held) as f64);
    let metrics = lab.node("a")?.agent().metrics()?;
    ensure!(metrics.sum("mesh_agent_connections_limit", &[]) == NODE as f64);
    unhurt(lab, steady)
}
