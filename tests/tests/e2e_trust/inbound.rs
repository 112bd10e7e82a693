//! The server's side: whose certificate the tunnel port of an enrolled pod takes.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::LAB;
use crate::authority::Authority;
use crate::tls::{Verdict, knock};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

#[test]
fn the_tunnel_port_takes_identities_of_the_mesh_only() -> Result<()> {
    LAB.test(|lab| {
        let ours = Authority::of_lab(&lab.control().ca_dir())?;
        let foreign = Authority::foreign()?;
        let to = SocketAddr::new(lab.pod("server")?.address(), 15008);
        let knock = |shown| lab.pod("impostor")?.within(|| knock(to, shown))?;
        let cases = [
            ("no certificate", None),
            ("a foreign CA's certificate with a name of the mesh", Some(foreign.issue(Some(CLIENT), false)?)),
            (
                "a certificate of another trust domain",
                Some(ours.issue(Some("spiffe://other.org/ns/default/sa/client"), false)?),
            ),
            ("a certificate without an identity", Some(ours.issue(None, false)?)),
            (
                "a URI that is no SPIFFE identity",
                Some(ours.issue(Some("https://cluster.local/ns/default/sa/client"), false)?),
            ),
            ("an expired certificate", Some(ours.issue(Some(CLIENT), true)?)),
        ];
        for (what, shown) in cases {
            let (verdict, _) = knock(shown)?;
            ensure!(verdict != Verdict::Accepted, "{what} was accepted");
        }
        // The same knock with a good certificate: the refusals above are for the certificates.
        let (verdict, certificate) = knock(Some(ours.issue(Some(CLIENT), false)?))?;
        ensure!(verdict == Verdict::Accepted, "a good certificate: {verdict:?}");
        ensure!(certificate.is_some());
        Ok(())
    })
}
