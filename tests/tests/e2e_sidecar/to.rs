//! From a pod of ours to one with a sidecar.

use std::time::Duration;

use anyhow::ensure;
use mesh_tests::sys::wait_for;

use crate::{LAB, counted, curl, header, identity, refused, websocket};

/// For a line of the access log, whose writer lets lines gather.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn requests_come_with_our_pod_s_identity_in_either_version() {
    LAB.test(|lab| {
        for (port, version, hop) in
            [(80, "--http1.1", "HTTP/1.1"), (81, "--http2-prior-knowledge", "HTTP/2"), (81, "--http1.1", "HTTP/2")]
        {
            let seen = curl(lab, "client", &format!("http://sidecar:{port}/x"), &[version])?;
            ensure!(header(&seen, "x-hop") == hop, "{seen}");
            let told = header(&seen, "x-forwarded-client-cert");
            ensure!(told.contains(&format!("URI={}", identity("client"))), "{seen}");
            // Nothing has been said in the open to make it so.
            ensure!(told.contains(&format!("By={}", identity("sidecar"))), "{seen}");
        }
        let metrics = lab.node("a")?.agent().metrics()?;
        let labels = [
            ("reporter", "source"),
            ("destination_service_name", "sidecar"),
            ("destination_principal", &identity("sidecar")),
            ("destination_workload", "sidecar"),
        ];
        ensure!(metrics.sum("istio_requests_total", &labels) >= 3.0);
        Ok(())
    })
    .unwrap();
}

#[test]
fn bytes_go_both_ways_and_each_half_ends() {
    LAB.test(|lab| counted(lab, "client", "sidecar:9000")).unwrap();
}

#[test]
fn websockets_open() {
    LAB.test(|lab| {
        let server = websocket::serve(lab, "sidecar", websocket::PORT)?;
        let said = websocket::talk(lab, "client", "sidecar", 80)?;
        ensure!(said.starts_with("HTTP/1.1 101") && said.ends_with("hello"), "{said}");
        let head = server.join().unwrap()?;
        ensure!(head.contains(&identity("client").to_lowercase()), "{head}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_server_that_is_not_the_right_one_gets_nothing() {
    LAB.test(|lab| {
        for (port, why) in [
            (8081, "none of the trusted roots has signed the server's certificate"),
            (8082, "it is made out to spiffe://cluster.local/ns/default/sa/another"),
            (8083, "the server"),
        ] {
            let (status, body) = refused(lab, "client", &format!("http://sidecar:{port}/x"))?;
            ensure!(status == "503", "{port}: {status} {body}");
            let agent = lab.node("a")?.agent();
            let told = || Ok(agent.access_log().contains(why).then_some(()));
            wait_for(LIMIT, &format!("{why:?} in the access log ({port}: {body})"), told)?;
        }
        Ok(())
    })
    .unwrap();
}
