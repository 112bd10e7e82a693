//! From a pod with a sidecar to one of ours.

use anyhow::{Result, ensure};
use mesh_tests::Lab;

use crate::configuration::{FOREIGN, HTTP1, HTTP2, TCP, WEBSOCKET, WITHOUT};
use crate::{LAB, counted, curl, header, identity, refused, websocket};

#[test]
fn requests_come_with_the_sidecar_s_identity_in_either_version() {
    LAB.test(|lab| {
        for (port, hop) in [(HTTP1, "HTTP/1.1"), (HTTP2, "HTTP/2")] {
            for _ in 0..2 {
                let seen = curl(lab, "sidecar", &format!("http://127.0.0.1:{port}/x"), &[])?;
                ensure!(header(&seen, "x-hop") == hop, "{seen}");
                let wanted = format!("By={};URI={}", identity("server"), identity("sidecar"));
                ensure!(header(&seen, "x-forwarded-client-cert") == wanted, "{seen}");
            }
        }
        let metrics = lab.node("a")?.agent().metrics()?;
        let labels = [
            ("reporter", "destination"),
            ("source_principal", &identity("sidecar")[..]),
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
        let to = format!("127.0.0.1:{TCP}");
        counted(lab, "sidecar", &to)?;
        // The application sees its client's address.
        let whoami = ["mesh-lab-app", "talk", "--to", &to, "--say", "whoami"];
        let told: serde_json::Value = serde_json::from_str(&lab.pod("sidecar")?.run(&whoami)?.text())?;
        let address = lab.pod("sidecar")?.address();
        ensure!(told["received"].as_str().is_some_and(|text| text.contains(&format!("peer {address}:"))), "{told}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn websockets_open() {
    LAB.test(|lab| {
        let server = websocket::serve(lab, "server", websocket::PORT)?;
        let said = websocket::talk(lab, "sidecar", "127.0.0.1", WEBSOCKET)?;
        ensure!(said.starts_with("HTTP/1.1 101") && said.ends_with("hello"), "{said}");
        let head = server.join().unwrap()?;
        ensure!(head.contains(&identity("sidecar").to_lowercase()), "{head}");
        Ok(())
    })
    .unwrap();
}

fn count(lab: &Lab, metric: &str, reason: &str) -> Result<f64> {
    Ok(lab.node("a")?.agent().metrics()?.sum(metric, &[("reason", reason)]))
}

#[test]
fn who_proves_nothing_is_refused_and_told() {
    LAB.test(|lab| {
        for (port, why) in [(WITHOUT, "shows no certificate"), (FOREIGN, "none of the trusted roots")] {
            let before = count(lab, "mesh_agent_tls_refused_total", "handshake")?;
            let (status, body) = refused(lab, "sidecar", &format!("http://127.0.0.1:{port}/x"))?;
            ensure!(status == "503", "{port}: {status} {body}");
            ensure!(count(lab, "mesh_agent_tls_refused_total", "handshake")? > before, "{port}");
            let log = lab.node("a")?.agent().log();
            ensure!(log.contains(why), "{port}: {log}");
        }
        // In the open nobody comes in either.
        let before = count(lab, "mesh_agent_plaintext_refused_total", "strict")?;
        let url = format!("http://{}:8080/x", lab.pod("server")?.address());
        let outcome = lab.pod("sidecar")?.try_run(&["curl", "-sS", "--max-time", "20", &url])?;
        ensure!(!outcome.status.success(), "{}", outcome.text());
        ensure!(count(lab, "mesh_agent_plaintext_refused_total", "strict")? > before);
        Ok(())
    })
    .unwrap();
}
