//! Pods of one node whose connections need an agent: they stay within it, unless one of them wants the wire.

use anyhow::{Context, Result, ensure};
use mesh_tests::sys::{wait_for, write_whole};
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Topology, shared};
use nix::sys::signal::Signal;

use crate::{HTTP, LIMIT, TCP, policy, reaches, seen_by, server, service};

/// Bytes of the body that is sent, more than waits anywhere.
const BODY: usize = 5_000_000;

/// `near` has the defaults, `calm` does not want to be direct, `wired` wants the wire, and of the servers so does `apart`.
/// Everything is STRICT.
fn build(name: &str) -> Result<Lab> {
    let client = |name| PodSpec::new(name, "b").account("bank", name);
    let topology = Topology::of_nodes(&["b"])
        .pod(client("near"))
        .pod(client("calm").same_node("agent"))
        .pod(client("wired").same_node("wire"))
        .pod(server("local", "b"))
        .pod(server("apart", "b").same_node("wire"));
    let strict = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: \
                  istio-system}\nspec: {mtls: {mode: STRICT}}\n";
    LabBuilder::for_test(name, topology)
        .config("services.yaml", &[service("local"), service("apart")].concat())
        .config("strict.yaml", strict)
        .up()
}

/// Bytes that pods of the node have sent within the agent, and by tunnels.
fn sent(lab: &Lab) -> Result<(u64, u64)> {
    let metrics = lab.node("b")?.agent().metrics()?;
    let by = |path| metrics.sum("mesh_agent_bytes_total", &[("path", path), ("direction", "sent")]) as u64;
    Ok((by("neighbour"), by("tunnel")))
}

/// Which of the two grow when a client reaches a server.
fn grows(lab: &Lab, client: &str, server: &str, port: u16) -> Result<(bool, bool)> {
    let before = sent(lab)?;
    ensure!(reaches(lab, client, server, port)?, "{client} does not reach {server}, {port}");
    let now = sent(lab)?;
    Ok((now.0 > before.0, now.1 > before.1))
}

#[test]
fn what_needs_an_agent_stays_within_it() -> Result<()> {
    let lab = build("neighbour")?;
    let body = || -> Result<()> {
        // HTTP, and TCP of who does not go directly.
        for (client, port) in [("near", HTTP), ("calm", HTTP), ("calm", TCP)] {
            let grown = grows(&lab, client, "local", port)?;
            ensure!(grown == (true, false), "{client} to {port}: {grown:?}");
        }
        let own = lab.pod("calm")?.spec().addresses.clone();
        let seen = seen_by(&lab, "local")?;
        ensure!(seen.last().is_some_and(|who| own.iter().any(|own| who.contains(&own.to_string()))), "{seen:?}");
        for (client, server) in [("wired", "local"), ("calm", "apart")] {
            for port in [HTTP, TCP] {
                let grown = grows(&lab, client, server, port)?;
                ensure!(grown == (false, true), "{client} to {server}, {port}: {grown:?}");
            }
        }
        // A body of any size.
        let put = format!("head -c {BODY} /dev/zero | curl -sS --fail --max-time 60 -T - http://local.default:{HTTP}/");
        let said = lab.pod("near")?.run(&["sh", "-c", &put])?.text();
        ensure!(said.contains(&format!("\"bytes\":{BODY}")), "{said}");

        // Both halves tell, and who both are.
        let labels = |reporter| {
            [
                ("reporter", reporter),
                ("connection_security_policy", if reporter == "source" { "unknown" } else { "mutual_tls" }),
                ("source_principal", "spiffe://cluster.local/ns/bank/sa/near"),
                ("destination_principal", "spiffe://cluster.local/ns/default/sa/local"),
                ("destination_service_name", "local"),
                ("response_code", "200"),
            ]
        };
        for reporter in ["source", "destination"] {
            wait_for(LIMIT, "two requests to be told", || {
                let metrics = lab.node("b")?.agent().metrics()?;
                Ok((metrics.sum("istio_requests_total", &labels(reporter)) == 2.0).then_some(()))
            })
            .with_context(|| format!("{reporter}: {:?}", labels(reporter)))?;
        }

        // What a policy forbids ends, and is refused.
        let before = seen_by(&lab, "local")?.len();
        let argv = ["mesh-lab-app", "talk", "--to", "local.default:9000", "--say", "wait", "--limit", "300"];
        let mut open = lab.pod("calm")?.spawn(&argv)?;
        wait_for(LIMIT, "the server to see it", || Ok((seen_by(&lab, "local")?.len() > before).then_some(())))?;
        let forbid = "  action: DENY\n  rules: [{from: [{source: {principals: [cluster.local/ns/bank/sa/calm]}}]}]";
        lab.write_config("forbid.yaml", &policy("forbid", "local", forbid))?;
        open.wait(LIMIT)?;
        let seen = seen_by(&lab, "local")?.len();
        ensure!(!reaches(&lab, "calm", "local", TCP)? && !reaches(&lab, "calm", "local", HTTP)?);
        ensure!(seen_by(&lab, "local")?.len() == seen, "the application was dialled for who is refused");
        ensure!(reaches(&lab, "near", "local", HTTP)? && reaches(&lab, "wired", "local", HTTP)?);
        let denied = lab.node("b")?.agent().metrics()?.sum("mesh_agent_policy_refused_total", &[("reason", "denied")]);
        ensure!(denied >= 2.0, "{denied}");
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}

/// The settings of the node's agent without a workload.
fn without(settings: &str, workload: &str) -> String {
    let name = format!("\"{workload}\"");
    let kept: Vec<&str> = settings.split("- name: ").filter(|part| !part.starts_with(&name)).collect();
    kept.join("- name: ")
}

/// Who is at the server's address by what the agent knows itself, and not by what the mesh is told, is not the server; and
/// with a workload its connections end.
#[test]
fn a_neighbour_is_who_it_is_said_to_be_for_as_long_as_it_is_one() -> Result<()> {
    let lab = build("neighbour-who")?;
    let body = || -> Result<()> {
        let agent = lab.node("b")?.agent();
        let good = agent.settings();
        let put = |settings: &str| -> Result<()> {
            write_whole(&agent.settings_file(), settings)?;
            agent.signal(Signal::SIGHUP);
            Ok(())
        };
        let reached = |wanted: bool| {
            let what = format!("calm to reach local: {wanted}");
            wait_for(LIMIT, &what, || Ok((reaches(&lab, "calm", "local", HTTP)? == wanted).then_some(())))
        };
        reached(true)?;
        let seen = seen_by(&lab, "local")?.len();
        let argv = ["mesh-lab-app", "talk", "--to", "local.default:9000", "--say", "wait", "--limit", "300"];
        let mut open = lab.pod("calm")?.spawn(&argv)?;
        wait_for(LIMIT, "the server to see it", || Ok((seen_by(&lab, "local")?.len() > seen).then_some(())))?;
        put(&without(&good, "local"))?;
        open.wait(LIMIT).context("the connection to a workload that was withdrawn")?;

        // The account that calm has, at the address of local.
        let alias = good.split("- name: ").find(|part| part.starts_with("\"local\"")).context(good.clone())?;
        let other = alias
            .replace("serviceAccount: \"local\"", "serviceAccount: \"calm\"")
            .replace("namespace: \"default\"", "namespace: \"bank\"");
        ensure!(other.contains("\"calm\"") && other.contains("\"bank\""), "{other}");
        put(&good.replace(alias, &other))?;
        reached(false)?;
        let enrolled = |line: &str| line.contains(" enrolled ") && line.contains("\"bank/local\"");
        wait_for(LIMIT, "the other to be enrolled", || Ok(agent.log().lines().any(enrolled).then_some(())))?;
        // By the wire, where its certificate says who it is.
        let asked = || agent.log().matches("tunnel refused").count();
        let before = asked();
        ensure!(!reaches(&lab, "calm", "local", HTTP)? && asked() > before, "it was let in without being asked");
        put(&good)?;
        reached(true)
    };
    body().with_context(|| shared::logs(lab.state()))
}
