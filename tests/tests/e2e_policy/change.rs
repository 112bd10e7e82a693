//! Policies that change under open connections; bad ones; a control plane that goes away and comes back.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use mesh_tests::place::Process;
use mesh_tests::sys::wait_for;
use mesh_tests::{Lab, LabBuilder, shared};

use crate::{HTTP, LIMIT, TCP, becomes, clients, policy, reaches, seen_by, server, service};

/// A conversation that goes on until somebody else ends it.
fn open_connection(lab: &Lab, client: &str) -> Result<Process> {
    let before = seen_by(lab, "server")?.len();
    let pod = lab.pod(client)?;
    let talk = ["mesh-lab-app", "talk", "--to", "server.default:9000", "--say", "wait", "--limit", "300"];
    let process = pod.spawn(&talk)?;
    wait_for(LIMIT, "the server to see the client", || Ok((seen_by(lab, "server")?.len() > before).then_some(())))?;
    Ok(process)
}

fn ended(process: &mut Process) -> Result<String> {
    process.wait(LIMIT)?;
    Ok(process.log())
}

fn deny(who: &str) -> String {
    policy("change", "server", &format!("  action: DENY\n  rules: [{{from: [{{source: {{{who}}}}}]}}]"))
}

#[test]
fn a_change_ends_what_it_forbids_and_bad_policies_change_nothing() -> Result<()> {
    let topology = clients().pod(server("server", "b"));
    let lab = LabBuilder::for_test("polchange", topology).config("services.yaml", &service("server")).up()?;
    let body = || -> Result<()> {
        let agent = lab.node("b")?.agent();
        let closed =
            || -> Result<f64> { Ok(agent.metrics()?.sum("mesh_agent_policy_refused_total", &[("reason", "closed")])) };
        let mut client = open_connection(&lab, "client")?;
        let mut teller = open_connection(&lab, "teller")?;
        let mut near = open_connection(&lab, "near")?;
        let mut outside = open_connection(&lab, "outside")?;

        // Whom the policy means goes, in a tunnel; the others stay.
        lab.write_config("change.yaml", &deny("principals: [cluster.local/ns/default/sa/client]"))?;
        let told = Instant::now();
        let said = ended(&mut client)?;
        println!("an open connection was closed {:?} after the file had changed: {said}", told.elapsed());
        ensure!(!reaches(&lab, "client", "server", TCP)? && !reaches(&lab, "client", "server", HTTP)?);
        ensure!(reaches(&lab, "teller", "server", TCP)? && reaches(&lab, "outside", "server", TCP)?);
        ensure!(teller.running() && near.running() && outside.running(), "a change ended what it allows");
        ensure!(closed()? == 1.0, "{}", closed()?);

        // A bad policy is named with file, line and path; the last good one stays, and so does everything else.
        let bad = deny("principal: [x]");
        lab.write_config("change.yaml", &bad)?;
        let named =
            "change.yaml:8: AuthorizationPolicy default/change: spec.rules[0].from[0].source.principal: unknown field";
        wait_for(LIMIT, &format!("the log to name {named}"), || Ok(lab.control().log().contains(named).then_some(())))?;
        lab.write_config("other.yaml", &policy("other", "nobody", "  rules: [{}]"))?;
        wait_for(LIMIT, "the next configuration", || {
            Ok(agent.admin("/config_dump?mesh")?.contains("default/other").then_some(()))
        })?;
        ensure!(!reaches(&lab, "client", "server", TCP)? && reaches(&lab, "teller", "server", TCP)?);

        // Without a control plane what it told last stays; and what was changed meanwhile is told when it is back.
        lab.control().kill()?;
        lab.write_config("change.yaml", &deny("namespaces: [bank]"))?;
        ensure!(!reaches(&lab, "client", "server", TCP)? && reaches(&lab, "teller", "server", TCP)?);
        agent.wait_ready().context("an agent stays ready without its control plane")?;
        ensure!(teller.running() && near.running());
        lab.control().start()?;
        ended(&mut teller)?;
        ended(&mut near)?;
        ensure!(!reaches(&lab, "near", "server", TCP)?, "on the same node");
        ensure!(outside.running(), "a change ended what it allows");
        becomes(&lab, "client", "server", TCP, true)?;

        // In the open there is no identity: an ALLOW of any ends it.
        lab.write_config(
            "change.yaml",
            &policy("change", "server", "  rules: [{from: [{source: {principals: ['*']}}]}]"),
        )?;
        ended(&mut outside)?;
        ensure!(!reaches(&lab, "outside", "server", TCP)? && !reaches(&lab, "outside", "server", HTTP)?);
        ensure!(reaches(&lab, "client", "server", TCP)? && reaches(&lab, "near", "server", HTTP)?);
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
