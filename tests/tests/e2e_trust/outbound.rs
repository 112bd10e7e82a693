//! The client's side: an endpoint that shows another identity than its workload's gets nothing.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::Lab;
use mesh_tests::sys::wait_for;

use crate::authority::{Authority, Shown};
use crate::tls::{Verdict, receive};
use crate::{IMPOSTOR, LAB};

/// For a line of the access log.
const LIMIT: Duration = Duration::from_secs(10);
const TRUSTED: &str = "spiffe://cluster.local/ns/default/sa/trusted";

/// Lets the client ask `trusted` while we, at its address, show a certificate. Returns how the client's agent took it
/// each time it tried, and what curl got.
fn ask(lab: &Lab, listener: &TcpListener, shown: &Shown) -> Result<(Vec<Verdict>, String)> {
    let client = lab.pod("client")?;
    let argv = ["curl", "-sS", "-o", "/dev/null", "--max-time", "15", "-w", "%{http_code}", "http://trusted:8080/"];
    listener.set_nonblocking(true)?;
    std::thread::scope(|scope| {
        let curl = scope.spawn(|| client.try_run(&argv));
        let mut verdicts = Vec::new();
        while !curl.is_finished() {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    verdicts.push(receive(stream, shown)?);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
                Err(e) => return Err(e.into()),
            }
        }
        let output = curl.join().map_err(|_| anyhow::anyhow!("curl's thread panicked"))??;
        ensure!(!verdicts.is_empty(), "nobody came to the impostor; curl: {}", output.stderr);
        Ok((verdicts, output.text()))
    })
}

#[test]
fn an_endpoint_of_another_identity_gets_nothing() -> Result<()> {
    LAB.test(|lab| {
        let ours = Authority::of_lab(&lab.control().ca_dir())?;
        let foreign = Authority::foreign()?;
        let at: SocketAddr = format!("{IMPOSTOR}:15008").parse()?;
        let listener = lab.pod("impostor")?.within(|| TcpListener::bind(at))?.context("listening as the impostor")?;
        let cases = [
            ("another identity of the mesh", ours.issue(Some("spiffe://cluster.local/ns/default/sa/server"), false)?),
            ("the right name by a foreign CA", foreign.issue(Some(TRUSTED), false)?),
            (
                "the right path in another trust domain",
                ours.issue(Some("spiffe://other.org/ns/default/sa/trusted"), false)?,
            ),
            ("no identity", ours.issue(None, false)?),
            ("an expired certificate", ours.issue(Some(TRUSTED), true)?),
        ];
        for (what, shown) in cases {
            let (verdicts, status) = ask(lab, &listener, &shown)?;
            ensure!(!verdicts.contains(&Verdict::Accepted), "{what} was accepted");
            ensure!(status == "503", "{what}: curl got `{status}`, expected 503");
        }
        let agent = lab.node("a")?.agent();
        let told = |line: &str| line.contains(" 503 UF ") && line.contains("trusted");
        wait_for(LIMIT, "503 UF in the access log", || Ok(agent.access_log().lines().any(told).then_some(())))?;
        // The same question with the right certificate goes on to HTTP/2: the refusals above are for the certificates.
        let (verdicts, _) = ask(lab, &listener, &ours.issue(Some(TRUSTED), false)?)?;
        ensure!(verdicts.contains(&Verdict::Accepted), "the right certificate: {verdicts:?}");
        Ok(())
    })
}
