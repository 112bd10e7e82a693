//! What is not the mesh's business: unknown destinations, pods that are not enrolled, private addresses.

use anyhow::{Result, ensure};
use mesh_tests::capture::contains;

use crate::{LAB, PRIVATE, curl, host, json};

/// Nobody declares this port, so nothing is known of it, not even its protocol.
const UNKNOWN: u16 = 7070;

#[test]
fn unknown_destinations_pass_through_untouched() -> Result<()> {
    LAB.test(|lab| {
        let address = lab.pod("outside")?.address();
        for client in ["client", "client-b"] {
            let (seen, own) = curl(lab, client, &format!("http://{address}:{UNKNOWN}/through"), &[])?;
            let headers = seen["headers"].as_object().cloned().unwrap_or_default();
            let added: Vec<_> =
                headers.keys().filter(|k| !["host", "user-agent", "accept"].contains(&k.as_str())).collect();
            ensure!(added.is_empty(), "{client}: headers added on the way: {added:?}");
            // Without a tunnel only the address travels: the port is that of the agent's own connection.
            let peer = seen["peer"].as_str().unwrap_or_default();
            ensure!(seen["pod"] == "outside" && host(peer) == host(&own), "{client}: {seen}, curl's end is {own}");
            // A port that Services elsewhere declare HTTP: parsed, as with Istio, and passed on all the same.
            let (seen, _) = curl(lab, client, &format!("http://{address}:8080/through"), &[])?;
            ensure!(seen["pod"] == "outside" && seen["path"] == "/through", "{client}: {seen}");
        }
        let to = format!("{}:9000", lab.pod("outside-b")?.address());
        let said = json(lab, "client", &["mesh-lab-app", "talk", "--to", &to, "--say", "whoami"])?;
        let heard = said["received"].as_str().unwrap_or_default();
        ensure!(heard.starts_with(&format!("peer {}:", lab.pod("client")?.address())), "{said}");
        ensure!(said["remote"] == to.as_str(), "the client sees another peer than it dialled: {said}");
        Ok(())
    })
}

#[test]
fn pods_that_are_not_enrolled_are_left_alone() -> Result<()> {
    LAB.test(|lab| {
        let capture = lab.node("a")?.capture("tcp")?;
        let marker = "left-alone-marker";
        // Outside to outside, and to an enrolled pod, which is PERMISSIVE.
        let to = format!("{}:9000", lab.pod("outside-b")?.address());
        let said = json(lab, "outside", &["mesh-lab-app", "talk", "--to", &to, "--say", "whoami"])?;
        let expected = format!("peer {} local {to}\n", said["local"].as_str().unwrap_or_default());
        ensure!(said["received"] == expected.as_str(), "{said}");
        let url = format!("http://{}:8080/{marker}", lab.pod("echo")?.address());
        let (seen, own) = curl(lab, "outside", &url, &[])?;
        ensure!(seen["pod"] == "echo" && seen["peer"] == own.as_str(), "{seen}, curl's end is {own}");
        let packets = std::fs::read(capture.stop()?)?;
        ensure!(contains(&packets, marker.as_bytes()), "what is not enrolled must cross the wire as it is");
        let metrics = lab.node("a")?.agent().metrics()?;
        let as_source = metrics.samples.iter().find(|s| {
            s.labels.get("source_workload").is_some_and(|w| w == "outside")
                && s.labels.get("reporter").is_some_and(|r| r == "source")
        });
        ensure!(as_source.is_none(), "the agent reports for a pod that is not enrolled: {as_source:?}");
        // Its destination is enrolled and tells that nothing secured the connection.
        let plain = lab.node("b")?.agent().metrics()?.sum(
            "istio_requests_total",
            &[("reporter", "destination"), ("destination_workload", "echo"), ("connection_security_policy", "none")],
        );
        ensure!(plain >= 1.0, "no plaintext request is reported by the destination");
        Ok(())
    })
}

#[test]
fn equal_private_addresses_on_two_nodes_do_not_mix() -> Result<()> {
    LAB.test(|lab| {
        let url = format!("http://{PRIVATE}:8080/");
        for _ in 0..20 {
            for (client, server) in [("client", "left"), ("client-b", "right")] {
                let (seen, own) = curl(lab, client, &url, &[])?;
                let peer = seen["peer"].as_str().unwrap_or_default();
                ensure!(seen["pod"] == server && host(peer) == host(&own), "{client}: {seen}, curl's end is {own}");
            }
        }
        Ok(())
    })
}
