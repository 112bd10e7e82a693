//! From a pod of ours by HBONE to Envoy, which ends the tunnel.

use std::time::Duration;

use anyhow::ensure;
use mesh_tests::sys::wait_for;

use crate::{LAB, counted, curl, header, identity, refused, websocket};

/// For a line of the access log, whose writer lets lines gather.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn requests_go_through_in_either_version() {
    LAB.test(|lab| {
        for (port, version, hop) in
            [(80, "--http1.1", "HTTP/1.1"), (81, "--http2-prior-knowledge", "HTTP/2"), (81, "--http1.1", "HTTP/2")]
        {
            let seen = curl(lab, "client", &format!("http://tunnel:{port}/x"), &[version])?;
            ensure!(header(&seen, "x-hop") == hop, "{seen}");
        }
        let metrics = lab.node("a")?.agent().metrics()?;
        let labels = [
            ("reporter", "source"),
            ("destination_service_name", "tunnel"),
            ("destination_principal", &identity("tunnel")),
            ("destination_workload", "tunnel"),
        ];
        ensure!(metrics.sum("istio_requests_total", &labels) >= 3.0);
        Ok(())
    })
    .unwrap();
}

#[test]
fn bytes_go_both_ways_and_each_half_ends() {
    LAB.test(|lab| counted(lab, "client", "tunnel:9000")).unwrap();
}

#[test]
fn websockets_open() {
    LAB.test(|lab| {
        let server = websocket::serve(lab, "tunnel", websocket::PORT)?;
        let said = websocket::talk(lab, "client", "tunnel", 80)?;
        ensure!(said.starts_with("HTTP/1.1 101") && said.ends_with("hello"), "{said}");
        let head = server.join().unwrap()?;
        ensure!(head.contains("x-hop: http/1.1"), "{head}");
        Ok(())
    })
    .unwrap();
}

/// Envoy lets in the identity of `client` alone; the impostors are not who they should be.
#[test]
fn neither_end_serves_somebody_else() {
    LAB.test(|lab| {
        for (client, server, why) in [
            ("stranger", "tunnel", "403"),
            ("client", "foreign", "none of the trusted roots has signed the server's certificate"),
            ("client", "impostor", "the server is spiffe://cluster.local/ns/default/sa/another"),
        ] {
            let (status, body) = refused(lab, client, &format!("http://{server}/x"))?;
            ensure!(status == "503", "{server}: {status} {body}");
            let agent = lab.node("a")?.agent();
            let told = || {
                let log = agent.access_log();
                let mut lines = log.lines().filter(|line| line.contains(&format!("{server}.default")));
                Ok(lines.any(|line| line.contains(why)).then_some(()))
            };
            wait_for(LIMIT, &format!("{why:?} in the access log ({server}: {body})"), told)?;
        }
        Ok(())
    })
    .unwrap();
}
