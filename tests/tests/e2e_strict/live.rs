//! The whole mesh, changing under open connections; bad objects; no configuration at all.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::sys::wait_for;
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Topology, shared};

use crate::intruder::{Verdict, seen_by, try_plain};
use crate::levels::{everybody_comes_in, nobody_comes_in};
use crate::{HTTP, TCP, UNDECLARED, server, service, works};

const LIMIT: Duration = Duration::from_secs(20);

fn of_mesh(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: \
         istio-system}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

/// A conversation in the open that goes on until somebody ends it.
fn open_connection(lab: &Lab, to: SocketAddr) -> Result<TcpStream> {
    let mut stream = lab.pod("outside")?.within(|| TcpStream::connect_timeout(&to, LIMIT))??;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"echo\n")?;
    echoed(&mut stream)?;
    Ok(stream)
}

fn echoed(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"still there?")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).context("the echo")?;
    ensure!(&answer == b"still there?");
    Ok(())
}

/// Waits for the end, which must come without a byte.
fn ended(stream: &mut TcpStream) -> Result<bool> {
    match stream.read(&mut [0]) {
        Ok(0) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted) => Ok(true),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
        other => anyhow::bail!("instead of its end: {other:?}"),
    }
}

fn verdict_becomes(lab: &Lab, to: SocketAddr, served: bool) -> Result<()> {
    let outside = lab.pod("outside")?.place();
    wait_for(LIMIT, "the new mode", || {
        Ok((matches!(try_plain(&outside, to)?, Verdict::Served(_)) == served).then_some(()))
    })
}

#[test]
fn modes_change_under_traffic_and_bad_ones_change_nothing() -> Result<()> {
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("outside", "a").unenrolled())
        .pod(PodSpec::new("outside-b", "b").unenrolled())
        .pod(server("server", "b"));
    let lab = LabBuilder::for_test("modes", topology).config("services.yaml", &service("server", "default")).up()?;
    let body = || -> Result<()> {
        let to = SocketAddr::new(lab.pod("server")?.address(), TCP);
        everybody_comes_in(&lab, "server", &[HTTP, TCP, UNDECLARED])?;

        // PERMISSIVE becomes STRICT for the whole mesh under an open connection of each kind of port.
        let mut open = [TCP, UNDECLARED].map(|port| open_connection(&lab, SocketAddr::new(to.ip(), port)));
        for stream in &mut open {
            echoed(stream.as_mut().map_err(|e| anyhow::anyhow!("{e:#}"))?)?;
        }
        lab.write_config("mesh.yaml", &of_mesh("STRICT"))?;
        let told = Instant::now();
        for stream in open {
            ensure!(ended(&mut stream?)?, "an open plaintext connection lives on");
        }
        println!("open connections were closed {:?} after the file had changed", told.elapsed());
        nobody_comes_in(&lab, "server", &[HTTP, TCP, UNDECLARED])?;
        works(&lab, "client", "server")?;
        let cut = lab.node("b")?.agent().metrics()?;
        ensure!(cut.sum("mesh_agent_plaintext_refused_total", &[("reason", "became_strict")]) == 2.0);

        // Bad objects are named, and STRICT stays.
        let bad = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: \
                   istio-system}\nspec:\n  mtls:\n    mode: PERMISIVE\n";
        lab.write_config("mesh.yaml", bad)?;
        let ports = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: ports}\nspec:\n  \
                     selector: {matchLabels: {app: server}}\n  mtls: {mode: DISABLE}\n  portLevelMtls:\n    http: {mode: \
                     DISABLE}\n";
        lab.write_config("ports.yaml", ports)?;
        for named in ["mesh.yaml:6: ", "ports.yaml:8: "] {
            wait_for(LIMIT, &format!("the log to name {named}"), || {
                Ok(lab.control().log().contains(named).then_some(()))
            })?;
        }
        nobody_comes_in(&lab, "server", &[HTTP, TCP, UNDECLARED])?;
        works(&lab, "client", "server")?;

        // And back: plaintext comes in again, for as long as nobody says otherwise.
        lab.remove_config("ports.yaml")?;
        lab.write_config("mesh.yaml", &of_mesh("PERMISSIVE"))?;
        verdict_becomes(&lab, to, true)?;
        everybody_comes_in(&lab, "server", &[HTTP, TCP, UNDECLARED])?;
        let mut open = open_connection(&lab, to)?;
        lab.write_config("mesh.yaml", &of_mesh("DISABLE"))?;
        lab.write_config("other.yaml", &service("other", "default"))?;
        works(&lab, "client", "server")?;
        echoed(&mut open).context("a change that forbids nothing ended a connection")?;
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}

#[test]
fn before_the_first_configuration_nobody_comes_in_and_who_was_there_waits_for_it() -> Result<()> {
    let topology =
        Topology::of_nodes(&["a", "b"]).pod(PodSpec::new("outside", "a").unenrolled()).pod(server("server", "b"));
    let lab =
        LabBuilder::for_test("unconfigured", topology).config("services.yaml", &service("server", "default")).up()?;
    let body = || -> Result<()> {
        let outside = lab.pod("outside")?.place();
        let to = SocketAddr::new(lab.pod("server")?.address(), TCP);
        ensure!(matches!(try_plain(&outside, to)?, Verdict::Served(_)), "PERMISSIVE");
        let agent = lab.node("b")?.agent();
        let settings = agent.settings().replace("  serviceAccount:", "  onAgentLoss: open\n  serviceAccount:");
        agent.stop()?;
        lab.control().kill()?;
        // Straight to the application: no agent knows of it.
        let mut from_before = open_connection(&lab, to)?;
        let enrolled = agent.log().matches(" enrolled ").count();
        agent.spawn_with(&settings)?;
        wait_for(LIMIT, "the workload to be enrolled", || {
            Ok((agent.log().matches(" enrolled ").count() > enrolled).then_some(()))
        })?;
        let before = seen_by(&lab, "server")?.len();
        ensure!(try_plain(&outside, to)? == Verdict::Refused, "nobody said that plaintext may come in");
        let refused = agent.metrics()?.sum("mesh_agent_plaintext_refused_total", &[("reason", "no_configuration")]);
        ensure!(refused == 1.0, "{refused} refusals are counted");
        lab.control().start()?;
        agent.wait_ready()?;
        ensure!(matches!(try_plain(&outside, to)?, Verdict::Served(_)), "PERMISSIVE again");
        // Only the last one.
        wait_for(LIMIT, "the application's log", || Ok((seen_by(&lab, "server")?.len() > before).then_some(())))?;
        ensure!(seen_by(&lab, "server")?.len() == before + 1, "the application has seen a refused connection");
        // The kernel has been told too: what was there before the agent lives as long as the mode lets it.
        echoed(&mut from_before).context("a connection from before the agent, to a PERMISSIVE port")?;
        lab.write_config("mesh.yaml", &of_mesh("STRICT"))?;
        ensure!(ended(&mut from_before)?, "a connection from before the agent lives on under STRICT");

        // Nor does STRICT need the agent's life; PERMISSIVE with `onAgentLoss: open` passes by it.
        agent.kill()?;
        let before = seen_by(&lab, "server")?.len();
        ensure!(try_plain(&outside, to)? == Verdict::Dropped, "STRICT with a dead agent");
        ensure!(seen_by(&lab, "server")?.len() == before, "the application has seen a refused connection");
        agent.spawn_with(&settings)?;
        agent.wait_ready()?;
        ensure!(try_plain(&outside, to)? == Verdict::Refused, "STRICT with the next agent");
        lab.write_config("mesh.yaml", &of_mesh("PERMISSIVE"))?;
        verdict_becomes(&lab, to, true)?;
        agent.kill()?;
        ensure!(matches!(try_plain(&outside, to)?, Verdict::Served(_)), "PERMISSIVE with a dead agent and `open`");
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
