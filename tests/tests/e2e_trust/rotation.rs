//! Certificates that live for seconds change under traffic, and nobody notices.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::sys::wait_for;
use mesh_tests::topology::PodSpec;
use mesh_tests::{LabBuilder, Topology, shared};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::authority::Authority;
use crate::tls::{Verdict, knock};

/// Life of a certificate, in seconds; it is renewed at half of it.
const LIFE: u64 = 6;
/// Certificates that must have been shown: the first two have expired by then.
const SHOWN: usize = 4;

#[test]
fn rotation_goes_unnoticed_under_traffic() -> Result<()> {
    let both = "mesh-lab-app http-echo --port 8080 & exec mesh-lab-app tcp --port 9000";
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("server", "b").command(&["sh", "-c", both], &[8080, 9000]))
        .pod(PodSpec::new("outside", "a").unenrolled());
    let services = "apiVersion: v1\nkind: Service\nmetadata: {name: server}\nspec:\n  selector: {app: server}\n  \
                    ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]\n";
    let lab = LabBuilder::for_test("rotate", topology).config("s.yaml", services).cert_ttl(LIFE).up()?;
    let body = || -> Result<()> {
        let argv = ["mesh-lab-app", "steady", "--http", "server:8080", "--tcp", "server:9000"];
        let mut steady = lab.pod("client")?.spawn(&argv)?;
        steady.wait_log(Duration::from_secs(10), "traffic to start", |l| l.contains("started").then_some(()))?;

        let authority = Authority::of_lab(&lab.control().ca_dir())?;
        let to = SocketAddr::new(lab.pod("server")?.address(), 15008);
        let mut seen = Vec::new();
        wait_for(Duration::from_secs(LIFE * SHOWN as u64), &format!("{SHOWN} certificates of the server"), || {
            // Ours must outlive the test, not the server's.
            let shown = authority.issue(Some("spiffe://cluster.local/ns/default/sa/client"), false)?;
            let (verdict, certificate) = lab.pod("outside")?.within(|| knock(to, Some(shown)))??;
            ensure!(verdict == Verdict::Accepted, "{verdict:?}");
            let certificate = certificate.context("no certificate")?;
            if !seen.contains(&certificate) {
                seen.push(certificate);
            }
            std::thread::sleep(Duration::from_millis(200));
            Ok((seen.len() >= SHOWN).then_some(()))
        })?;

        ensure!(steady.running(), "the traffic ended: {}", steady.log());
        steady.signal(Signal::SIGTERM);
        steady.wait(Duration::from_secs(15))?;
        let last = steady.log().lines().last().unwrap_or_default().to_owned();
        let said: Value = serde_json::from_str(&last).with_context(|| steady.log())?;
        ensure!(said["failed_requests"] == 0 && said["failed_echoes"] == 0, "{said}");
        ensure!(said["requests"].as_u64() > Some(100) && said["echoes"].as_u64() > Some(100), "{said}");
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
