//! DISABLE: plaintext for everybody, and clients of the mesh do not even try a tunnel.

use anyhow::{Result, ensure};
use mesh_tests::Lab;
use mesh_tests::capture::contains;

use crate::levels::everybody_comes_in;
use crate::{HTTP, LAB, TCP, UNDECLARED, works};

/// What an enrolled client says to a server is on the wire as it is.
fn on_the_wire(lab: &Lab, host: &str, port: u16, marker: &str) -> Result<bool> {
    let capture = lab.node("a")?.capture("tcp")?;
    let client = lab.pod("client")?;
    if port == HTTP {
        client.run(&["curl", "-sS", "--fail", "--max-time", "20", &format!("http://{host}:{port}/{marker}")])?;
    } else {
        // An unknown word is listened to until we end.
        client.run(&["mesh-lab-app", "talk", "--to", &format!("{host}:{port}"), "--say", marker, "--half-close"])?;
    }
    Ok(contains(&std::fs::read(capture.stop()?)?, marker.as_bytes()))
}

#[test]
fn nobody_uses_a_tunnel_where_it_is_off() -> Result<()> {
    LAB.test(|lab| {
        everybody_comes_in(lab, "off", &[HTTP, TCP, UNDECLARED])?;
        works(lab, "client", "off")?;
        ensure!(on_the_wire(lab, "off", HTTP, "off-http-marker")?, "HTTP to a DISABLE workload went through a tunnel");
        ensure!(on_the_wire(lab, "off", TCP, "off-tcp-marker")?, "TCP to a DISABLE workload went through a tunnel");
        // By port: 9000 is DISABLE, 8080 PERMISSIVE, of a STRICT workload.
        ensure!(on_the_wire(lab, "mixed", TCP, "mixed-tcp-marker")?, "the port's own mode was not told to clients");
        ensure!(
            !on_the_wire(lab, "mixed", HTTP, "mixed-http-marker")?,
            "PERMISSIVE must not stop clients from using TLS"
        );
        ensure!(!on_the_wire(lab, "strict", HTTP, "strict-http-marker")?);
        Ok(())
    })
}
