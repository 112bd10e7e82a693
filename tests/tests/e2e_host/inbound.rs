//! What comes to a unit's ports on the host's interfaces.

use anyhow::{Result, ensure};
use mesh_tests::sys::wait_for;

use crate::{DB, HOST, LAB, LIMIT, MONITOR, WEB, WEB2, curl, get, nginx, serve, unit};

#[test]
fn the_mesh_comes_in_and_strict_lets_nobody_else() -> Result<()> {
    LAB.test(|lab| {
        let first = nginx(lab, "web", WEB)?;
        let _second = nginx(lab, "web-2", WEB2)?;
        let client = lab.pod("client")?;
        let own = client.address().to_string();
        // Two workloads with one identity share what tunnels there are, and each gets its own.
        for (host, name) in [("web.vm", "web"), ("web-2.vm", "web-2"), ("web.vm", "web")] {
            let said = get(&client.place(), &format!("http://{host}/"))?;
            ensure!(said == format!("{name} {own}"), "{host}: {said}");
        }
        // From a pod of the same node, too.
        let near = lab.pod("near")?;
        let said = get(&near.place(), "http://web.vm/")?;
        ensure!(said == format!("web {}", near.address()), "{said}");
        let labels = [
            ("reporter", "destination"),
            ("source_principal", "spiffe://cluster.local/ns/default/sa/client"),
            ("destination_principal", "spiffe://cluster.local/ns/default/sa/web"),
            ("destination_workload", "web-2"),
            ("connection_security_policy", "mutual_tls"),
        ];
        let agent = lab.node("a")?.agent();
        wait_for(LIMIT, "the request of the client's identity", || {
            Ok((agent.metrics()?.sum("istio_requests_total", &labels) > 0.0).then_some(()))
        })?;

        // In the open: from elsewhere, from the other node, from a pod of the mesh that dials the address by itself.
        let seen = first.log().matches("seen").count();
        for place in [lab.pod("outside")?.place(), lab.node("b")?.place(), client.place()] {
            let run = curl(&place, &format!("http://{HOST}:{WEB}/"))?;
            ensure!(run.stdout.is_empty() && !run.status.success(), "{}: {}", place.name, run.text());
        }
        ensure!(first.log().matches("seen").count() == seen, "the application has seen somebody: {}", first.log());
        let refused = agent.metrics()?.sum("mesh_agent_plaintext_refused_total", &[("reason", "strict")]);
        ensure!(refused >= 3.0, "{refused} are counted");
        // The host itself is inside, and so is who is beside the workload.
        let said = get(&unit(lab, "other")?, &format!("http://{HOST}:{WEB}/"))?;
        ensure!(said == format!("web {HOST}"), "{said}");
        Ok(())
    })
}

#[test]
fn another_identity_another_mode_and_a_policy() -> Result<()> {
    LAB.test(|lab| {
        let _db = serve(lab, "db", &["mesh-lab-app", "tcp", "--port", &DB.to_string()], DB)?;
        let talk = |to: &str| {
            vec!["mesh-lab-app".to_owned(), "talk".into(), "--to".into(), to.into(), "--say".into(), "whoami".into()]
        };
        let (client, outside) = (lab.pod("client")?, lab.pod("outside")?);
        for (place, to) in [(client.place(), "db.vm:9000"), (outside.place(), "172.31.0.10:9000")] {
            let said = place.run(&talk(to))?.text();
            ensure!(said.contains("\"received\":\"peer "), "{}: {said}", place.name);
        }
        let labels = [
            ("reporter", "destination"),
            ("source_principal", "spiffe://cluster.local/ns/default/sa/client"),
            ("destination_principal", "spiffe://cluster.local/ns/default/sa/db"),
        ];
        let agent = lab.node("a")?.agent();
        wait_for(LIMIT, "the connection of the client's identity", || {
            Ok((agent.metrics()?.sum("istio_tcp_connections_opened_total", &labels) > 0.0).then_some(()))
        })?;
        // By the identity in the certificate: near is denied, client was not. So is web, by its own, when it comes by the
        // service's name.
        let said = lab.pod("near")?.try_run(&talk("db.vm:9000"))?;
        ensure!(!said.text().contains("\"received\":\"peer "), "{}", said.text());
        let said = unit(lab, "web")?.run(&talk("db.vm:9000"))?.text();
        ensure!(said.contains("\"received\":\"peer "), "{said}");
        let labels = [
            ("reporter", "destination"),
            ("source_principal", "spiffe://cluster.local/ns/default/sa/web"),
            ("destination_principal", "spiffe://cluster.local/ns/default/sa/db"),
        ];
        wait_for(LIMIT, "the connection of the other unit's identity", || {
            Ok((agent.metrics()?.sum("istio_tcp_connections_opened_total", &labels) > 0.0).then_some(()))
        })
    })
}

/// A pod with hostNetwork is a cgroup as a unit is. Nobody is told of a tunnel to it, so it is reached in the open, where
/// that may be: by the agent.
#[test]
fn a_pod_with_the_host_s_network() -> Result<()> {
    LAB.test(|lab| {
        get(&unit(lab, "monitor")?, "http://server:8080/")?;
        let _server = serve(lab, "monitor", &["mesh-lab-app", "tcp", "--port", &MONITOR.to_string()], MONITOR)?;
        let (outside, to) = (lab.pod("outside")?, format!("{HOST}:{MONITOR}"));
        let said = outside.run(&["mesh-lab-app", "talk", "--to", &to, "--say", "whoami"])?.text();
        ensure!(said.contains(&format!("peer {}", outside.address())), "{said}");
        let labels = [("reporter", "destination"), ("destination_workload", "monitor")];
        let agent = lab.node("a")?.agent();
        wait_for(LIMIT, "the connection, told by the agent", || {
            Ok((agent.metrics()?.sum("istio_tcp_connections_opened_total", &labels) > 0.0).then_some(()))
        })?;
        let page = agent.admin("/config_dump?workload=default/monitor")?;
        ensure!(!page.contains("not told of"), "{page}");
        Ok(())
    })
}
