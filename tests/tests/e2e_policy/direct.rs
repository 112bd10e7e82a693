//! Pods of one node that talk to each other without the agent, as their policies say and for as long as they do.

use anyhow::{Context, Result, ensure};
use mesh_tests::place::Process;
use mesh_tests::sys::wait_for;
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Topology, shared};

use crate::{HTTP, LIMIT, TCP, policy, reaches, seen_by, server, service};

/// How many connections of the node's pods have gone directly.
fn directly(lab: &Lab) -> Result<u64> {
    let all = lab.node("b")?.agent().metrics()?.sum("mesh_agent_kernel_total", &[("event", "direct_opened")]);
    Ok(all as u64)
}

fn ways(lab: &Lab) -> Result<u64> {
    Ok(lab.node("b")?.agent().metrics()?.sum("mesh_agent_direct_ways", &[]) as u64)
}

/// Waits until so many ways go directly.
fn settle(lab: &Lab, wanted: u64) -> Result<()> {
    wait_for(LIMIT, &format!("{wanted} direct ways"), || Ok((ways(lab)? == wanted).then_some(())))
}

/// A conversation that goes on until somebody else ends it.
fn open(lab: &Lab, client: &str) -> Result<Process> {
    let before = seen_by(lab, "local")?.len();
    let process = lab.pod(client)?.spawn(&[
        "mesh-lab-app",
        "talk",
        "--to",
        "local.default:9000",
        "--say",
        "wait",
        "--limit",
        "300",
    ])?;
    wait_for(LIMIT, "the server to see the client", || Ok((seen_by(lab, "local")?.len() > before).then_some(())))?;
    Ok(process)
}

/// `local` and `near` are on one node, `remote` is the other endpoint of the service `both`. Everything is STRICT.
fn build() -> Result<Lab> {
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("near", "b").account("bank", "near"))
        .pod(PodSpec::new("stranger", "b").unenrolled())
        .pod(server("local", "b").label("part", "both"))
        .pod(server("remote", "a").label("part", "both"));
    let both = service("both").replace("{app: both}", "{part: both}");
    let strict = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: \
                  istio-system}\nspec: {mtls: {mode: STRICT}}\n";
    LabBuilder::for_test("direct", topology)
        .config("services.yaml", &[service("local"), both].concat())
        .config("strict.yaml", strict)
        .up()
}

#[test]
fn pods_of_one_node_need_no_agent_where_nothing_asks_for_it() -> Result<()> {
    let lab = build()?;
    let body = || -> Result<()> {
        // Of two pods each may go to the other's declared ports; only the server has any.
        settle(&lab, 2)?;
        let agent = lab.node("b")?.agent();

        // Declared TCP goes directly, under STRICT, and the application sees its client. HTTP never does, nor who is not in
        // the mesh, nor anybody in the other direction.
        let before = directly(&lab)?;
        ensure!(reaches(&lab, "near", "local", TCP)? && directly(&lab)? == before + 1);
        let near = lab.pod("near")?.spec().addresses.clone();
        let seen = seen_by(&lab, "local")?;
        ensure!(seen.last().is_some_and(|who| near.iter().any(|own| who.contains(&own.to_string()))), "{seen:?}");
        ensure!(reaches(&lab, "near", "local", HTTP)? && directly(&lab)? == before + 1);
        ensure!(!reaches(&lab, "stranger", "local", TCP)?);

        // One endpoint here and one elsewhere: each connection is drawn once, whoever makes it.
        let (before, here) = (directly(&lab)?, seen_by(&lab, "local")?.len());
        let (elsewhere, calls) = (seen_by(&lab, "remote")?.len(), 60);
        for _ in 0..calls {
            ensure!(reaches(&lab, "near", "both", TCP)?);
        }
        let direct = usize::try_from(directly(&lab)? - before)?;
        let (here, elsewhere) = (seen_by(&lab, "local")?.len() - here, seen_by(&lab, "remote")?.len() - elsewhere);
        ensure!(direct == here && here + elsewhere == calls, "{direct} directly, {here} here, {elsewhere} elsewhere");
        ensure!((10..=50).contains(&here), "{here} of {calls} here");

        // An open connection outlives the agent, and what is forbidden meanwhile ends when it is back.
        let mut kept = open(&lab, "near")?;
        agent.kill()?;
        ensure!(!reaches(&lab, "near", "local", TCP)?, "nothing new without the agent");
        agent.start()?;
        settle(&lab, 2)?;
        ensure!(kept.running() && reaches(&lab, "near", "local", TCP)?);

        // A policy that forbids it ends it at once, and the agent refuses what is new.
        let before = directly(&lab)?;
        let forbid = policy("forbid", "local", "  action: DENY\n  rules: [{from: [{source: {namespaces: [bank]}}]}]");
        lab.write_config("forbid.yaml", &forbid)?;
        kept.wait(LIMIT)?;
        ensure!(!reaches(&lab, "near", "local", TCP)? && directly(&lab)? == before);
        let denied = [("reason", "denied")];
        ensure!(agent.metrics()?.sum("mesh_agent_policy_refused_total", &denied) >= 1.0, "told by nobody");
        lab.remove_config("forbid.yaml")?;
        settle(&lab, 2)?;
        ensure!(reaches(&lab, "near", "local", TCP)? && directly(&lab)? == before + 1);
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
