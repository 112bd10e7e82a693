//! gRPC's own cases, client and server in Python, with Envoy as the peer of our agent: over mutual TLS and over HBONE, both ways.

use anyhow::{Result, ensure};
use mesh_tests::{Lab, grpc};

use crate::configuration::{self, OWN_GRPC};
use crate::{LAB, tunnels};

/// Where our pod's server listens, and the peers' services.
const PORT: u16 = 8085;

/// All cases, from one pod to a server in another.
fn pass(lab: &Lab, client: &str, to: &str) -> Result<()> {
    let cases = grpc::ask(&lab.pod(client)?, to)?;
    ensure!(cases.len() >= grpc::CASES, "{client} to {to}: {cases:?}");
    let wrong: Vec<_> = cases.iter().filter(|(_, why)| !why.is_empty()).collect();
    ensure!(wrong.is_empty(), "{client} to {to}: {wrong:?}");
    Ok(())
}

#[test]
fn calls_come_to_our_pod() -> Result<()> {
    LAB.test(|lab| {
        let _server = grpc::serve(&lab.pod("server")?, PORT)?;
        pass(lab, "sidecar", &format!("127.0.0.1:{}", configuration::GRPC))?;
        pass(lab, "tunnel", &format!("127.0.0.1:{}", tunnels::GRPC))
    })
}

#[test]
fn calls_go_from_our_pod() -> Result<()> {
    LAB.test(|lab| {
        for server in ["sidecar", "tunnel"] {
            let _server = grpc::serve(&lab.pod(server)?, OWN_GRPC)?;
            pass(lab, "client", &format!("{server}:{PORT}"))?;
        }
        Ok(())
    })
}
