//! Who is let in by which condition, and how operators see it.

use anyhow::{Context, Result, ensure};
use mesh_tests::Lab;
use mesh_tests::sys::wait_for;

use crate::{HTTP, LAB, LIMIT, TCP, policy, reaches, seen_by};

/// All clients at both ports; the application has seen nobody who was refused.
fn table(lab: &Lab, host: &str, wanted: [(&str, [bool; 2]); 4]) -> Result<()> {
    for (client, served) in wanted {
        for (port, served) in [HTTP, TCP].into_iter().zip(served) {
            let before = seen_by(lab, host)?.len();
            ensure!(reaches(lab, client, host, port)? == served, "{client} to {host}:{port}");
            if !served {
                ensure!(seen_by(lab, host)?.len() == before, "{host} has seen {client}");
            }
        }
    }
    Ok(())
}

const YES: [bool; 2] = [true, true];
const NO: [bool; 2] = [false, false];

#[test]
fn identities_namespaces_ports_and_denials() -> Result<()> {
    LAB.test(|lab| {
        let all = |client, teller, near, outside| {
            [("client", client), ("teller", teller), ("near", near), ("outside", outside)]
        };
        table(lab, "free", all(YES, YES, YES, YES))?;
        table(lab, "named", all(YES, NO, NO, NO))?;
        table(lab, "spaced", all(NO, YES, YES, NO))?;
        let one = [false, true];
        table(lab, "ported", all(one, one, one, one))?;
        table(lab, "denying", all(NO, YES, YES, YES))?;
        table(lab, "shut", all(NO, NO, NO, NO))?;
        Ok(())
    })
}

#[test]
fn a_policy_on_trial_refuses_nobody_and_is_told() -> Result<()> {
    LAB.test(|lab| {
        let agent = lab.node("b")?.agent();
        let tried = || -> Result<f64> { Ok(agent.metrics()?.sum("mesh_agent_policy_dry_run_total", &[])) };
        let before = tried()?;
        ensure!(reaches(lab, "client", "trial", TCP)? && reaches(lab, "outside", "trial", TCP)?);
        ensure!(tried()? == before + 2.0);
        Ok(())
    })
}

#[test]
fn a_refusal_is_counted_and_logged_with_its_policy() -> Result<()> {
    LAB.test(|lab| {
        let agent = lab.node("b")?.agent();
        let denied =
            || -> Result<f64> { Ok(agent.metrics()?.sum("mesh_agent_policy_refused_total", &[("reason", "denied")])) };
        let before = denied()?;
        ensure!(!reaches(lab, "client", "denying", TCP)? && !reaches(lab, "outside", "named", TCP)?);
        ensure!(denied()? >= before + 2.0);
        let flagged = [("response_flags", "DENY"), ("reporter", "destination")];
        ensure!(agent.metrics()?.sum("istio_tcp_connections_closed_total", &flagged) >= 2.0);
        let details = ["rbac_access_denied_matched_policy[ns[default]-policy[but]-rule[0]]", "matched_policy[none]"];
        for wanted in details {
            wait_for(LIMIT, &format!("{wanted} in the access log"), || {
                Ok(agent.access_log().lines().any(|line| line.contains(wanted) && line.contains("DENY")).then_some(()))
            })?;
        }
        ensure!(agent.log().contains("explicitly denied by: default/but"), "{}", agent.log());
        // The client's agent tells what it was answered.
        let own = lab.node("a")?.agent();
        wait_for(LIMIT, "401 in the client's access log", || Ok(own.access_log().contains("401").then_some(())))?;
        let dump = agent.admin("/config_dump?workload=default/denying")?;
        ensure!(dump.contains("default/but") && dump.contains("default/everybody"), "{dump}");
        Ok(())
    })
}

#[test]
fn an_address_is_a_condition_in_the_open_and_in_a_tunnel() -> Result<()> {
    LAB.test(|lab| {
        let range = |pods: &[&str]| -> Result<String> {
            let addresses = pods.iter().map(|pod| Ok(lab.pod(pod)?.address().to_string()));
            Ok(addresses.collect::<Result<Vec<_>>>()?.join(", "))
        };
        let allow = |blocks: &str| {
            policy("blocks", "ranged", &format!("  rules: [{{from: [{{source: {{ipBlocks: [{blocks}]}}}}]}}]"))
        };
        let body = || -> Result<()> {
            lab.write_config("blocks.yaml", &allow(&range(&["client", "outside"])?))?;
            crate::becomes(lab, "teller", "ranged", TCP, false)?;
            for (client, served) in [("client", true), ("outside", true), ("near", false)] {
                ensure!(reaches(lab, client, "ranged", TCP)? == served, "{client}");
            }
            Ok(())
        };
        let done = body();
        lab.remove_config("blocks.yaml")?;
        crate::becomes(lab, "teller", "ranged", TCP, true).context("once the policy is gone")?;
        done
    })
}
