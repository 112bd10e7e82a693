//! From Envoy by HBONE to a pod of ours, whose agent ends the tunnel.

use std::time::Duration;

use anyhow::ensure;
use mesh_tests::sys::wait_for;
use serde_json::Value;

use crate::tunnels::{ANOTHER, ELSEWHERE, FOREIGN, HTTP, HTTP_V6, TCP, TCP_V6, WEBSOCKET, WITHOUT};
use crate::{LAB, counted, curl, header, identity, websocket};

/// For a line of the log.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn requests_come_with_the_peer_s_identity_in_either_version() {
    LAB.test(|lab| {
        let versions = ["--http1.1", "--http2-prior-knowledge"];
        for (port, version) in [HTTP, HTTP_V6].into_iter().flat_map(|port| versions.map(|version| (port, version))) {
            let seen = curl(lab, "tunnel", &format!("http://127.0.0.1:{port}/x"), &[version])?;
            let hop = if version == "--http1.1" { "HTTP/1.1" } else { "HTTP/2" };
            ensure!(header(&seen, "x-hop") == hop, "{seen}");
            let wanted = format!("By={};URI={}", identity("server"), identity("tunnel"));
            ensure!(header(&seen, "x-forwarded-client-cert") == wanted, "{seen}");
        }
        let metrics = lab.node("a")?.agent().metrics()?;
        let labels = [
            ("reporter", "destination"),
            ("source_principal", &identity("tunnel")[..]),
            ("source_workload_namespace", "default"),
            ("connection_security_policy", "mutual_tls"),
        ];
        ensure!(metrics.sum("istio_requests_total", &labels) >= 4.0);
        Ok(())
    })
    .unwrap();
}

#[test]
fn bytes_go_both_ways_and_each_half_ends() {
    LAB.test(|lab| {
        let pod = lab.pod("tunnel")?;
        for (port, address) in [(TCP, pod.address().to_string()), (TCP_V6, format!("[{}]", pod.address_v6()?))] {
            let to = format!("127.0.0.1:{port}");
            counted(lab, "tunnel", &to)?;
            // The application sees its client's address.
            let whoami = ["mesh-lab-app", "talk", "--to", &to, "--say", "whoami"];
            let told: Value = serde_json::from_str(&pod.run(&whoami)?.text())?;
            ensure!(told["received"].as_str().is_some_and(|text| text.contains(&format!("peer {address}:"))), "{told}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn websockets_open() {
    LAB.test(|lab| {
        let server = websocket::serve(lab, "server", websocket::OTHER_PORT)?;
        let said = websocket::talk(lab, "tunnel", "127.0.0.1", WEBSOCKET)?;
        ensure!(said.starts_with("HTTP/1.1 101") && said.ends_with("hello"), "{said}");
        let head = server.join().unwrap()?;
        ensure!(head.contains(&identity("tunnel").to_lowercase()), "{head}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn who_is_not_of_the_mesh_gets_no_tunnel_and_nobody_gets_beyond_the_pod() {
    LAB.test(|lab| {
        let agent = lab.node("a")?.agent();
        for (port, what, why) in [
            (WITHOUT, "tunnel refused", "the client shows no certificate"),
            (FOREIGN, "tunnel refused", "none of the trusted roots has signed the client's certificate"),
            // It is Envoy that wants another server than this one.
            (ANOTHER, "tunnel refused", "the client refuses our certificate"),
            (ELSEWHERE, "CONNECT refused", "404"),
        ] {
            let before = agent.log().len();
            let url = format!("http://127.0.0.1:{port}/x");
            let outcome = lab.pod("tunnel")?.try_run(&["curl", "-sS", "--max-time", "20", &url])?;
            ensure!(!outcome.status.success(), "{port}: {}", outcome.text());
            let told = || {
                let log = agent.log();
                let mut lines = log[before..].lines();
                Ok(lines.any(|line| line.contains(what) && line.contains(why)).then_some(()))
            };
            wait_for(LIMIT, &format!("{why:?} in the log"), told)?;
        }
        Ok(())
    })
    .unwrap();
}
