//! What a unit's programs say, and what others on the host do.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use mesh_tests::sys::wait_for;

use crate::{HOST, LAB, LIMIT, NOBODYS, curl, get, unit};

#[test]
fn a_unit_speaks_with_its_own_identity_and_nobody_else_does() -> Result<()> {
    LAB.test(|lab| {
        // The server is STRICT: whoever is served has proved who it is.
        let seen = get(&unit(lab, "web")?, "http://server:8080/")?;
        ensure!(seen.contains(HOST), "the application sees the host's address: {seen}");
        let server = lab.node("b")?.agent();
        for (name, account) in [("web", "web"), ("web-2", "web"), ("db", "db")] {
            let principal = format!("spiffe://cluster.local/ns/default/sa/{account}");
            let labels = [
                ("reporter", "destination"),
                ("source_principal", &*principal),
                ("source_workload", name),
                ("destination_workload", "server"),
                ("connection_security_policy", "mutual_tls"),
            ];
            let count = || -> Result<f64> { Ok(server.metrics()?.sum("istio_requests_total", &labels)) };
            let before = count()?;
            get(&unit(lab, name)?, "http://server:8080/")?;
            wait_for(LIMIT, &format!("a request of {principal}"), || Ok((count()? > before).then_some(())))?;
        }
        // On both ports, by address family and from below the unit's cgroup, too.
        std::fs::create_dir_all(crate::directory(lab, "web/inner"))?;
        get(&unit(lab, "web/inner")?, "http://server:8080/")?;
        let talk = ["mesh-lab-app", "talk", "--to", "server:9000", "--say", "whoami"];
        let said = unit(lab, "db")?.run(&talk)?.text();
        ensure!(said.contains("\"received\":\"peer ") && said.contains(HOST), "{said}");
        Ok(())
    })
}

#[test]
fn programs_beside_it_go_as_without_the_mesh() -> Result<()> {
    LAB.test(|lab| {
        let address = lab.pod("server")?.address();
        let url = format!("http://{address}:8080/");
        for place in [unit(lab, "other")?, lab.node("a")?.place()] {
            // In the open, which STRICT refuses.
            ensure!(!curl(&place, &url)?.status.success(), "{} is served", place.name);
        }
        // What is not STRICT they reach: a server of their own kind.
        let _server = crate::serve(lab, "other", &["mesh-lab-app", "tcp", "--port", &NOBODYS.to_string()], NOBODYS)?;
        let to = format!("{HOST}:{NOBODYS}");
        let talk = ["mesh-lab-app", "talk", "--to", &to, "--say", "whoami"];
        let outside = lab.pod("outside")?;
        let said = outside.run(&talk)?.text();
        ensure!(said.contains(&outside.address().to_string()), "{said}");
        // The agent has had no part in that: what it has is in its access log, in the order in which it ended.
        get(&unit(lab, "web")?, "http://server:8080/last")?;
        let agent = lab.node("a")?.agent();
        wait_for(LIMIT, "the last request in the access log", || {
            Ok(agent.access_log().contains("/last").then_some(()))
        })?;
        ensure!(!agent.access_log().contains(&to), "{}", agent.access_log());
        Ok(())
    })
}

#[test]
fn the_agent_s_ports_are_for_nobody() -> Result<()> {
    LAB.test(|lab| {
        let ports: Vec<u16> =
            lab.node("a")?.place().listeners()?.into_iter().filter(|port| (15001..15008).contains(port)).collect();
        ensure!(ports.len() >= 2, "{ports:?}");
        for place in [unit(lab, "web")?, unit(lab, "other")?, lab.pod("outside")?.place()] {
            for port in &ports {
                let to = SocketAddr::new(HOST.parse::<IpAddr>()?, *port);
                let run = curl(&place, &format!("http://{to}/"))?;
                ensure!(run.stdout.is_empty() && !run.status.success(), "{} at {to}: {}", place.name, run.text());
            }
        }
        Ok(())
    })
}
