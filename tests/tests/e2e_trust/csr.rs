//! The CA signs for identities that the calling node runs, and for nothing else.

use anyhow::{Context, Result, ensure};
use mesh_proto::ca::IstioCertificateRequest;
use mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_tests::{Lab, network};
use rcgen::{CertificateParams, KeyPair, SanType};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use crate::LAB;

/// Asks the lab's CA for an identity, from node `a`.
fn ask(lab: &Lab, token: Option<&str>, identity: &str) -> Result<Result<Vec<String>, Status>> {
    let root = std::fs::read(lab.control().ca_dir().join("root-cert.pem"))?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
    let csr = params.serialize_request(&KeyPair::generate()?)?.pem()?;
    let call = async {
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name("istiod.istio-system.svc");
        let endpoint = Endpoint::from_shared(format!("https://{}:15012", network::CONTROL.0))?.tls_config(tls)?;
        let mut client = IstioCertificateServiceClient::new(endpoint.connect().await.context("connecting the CA")?);
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 3600, ..Default::default() });
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        Ok(client.create_certificate(request).await.map(|r| r.into_inner().cert_chain))
    };
    lab.node("a")?.place().within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(call)
    })?
}

#[test]
fn a_node_gets_certificates_for_its_own_pods_only() -> Result<()> {
    LAB.test(|lab| {
        let token = std::fs::read_to_string(lab.state().node_dir("a").join("token"))?;
        let token = token.trim();
        let own = "spiffe://cluster.local/ns/default/sa/client";
        let chain = ask(lab, Some(token), own)?.context("its own identity")?;
        ensure!(chain.len() >= 2, "a leaf and a root: {chain:?}");

        for other in [
            // Runs on node b; runs, but is not enrolled; runs nowhere; another namespace; another trust domain.
            "spiffe://cluster.local/ns/default/sa/server",
            "spiffe://cluster.local/ns/default/sa/nobody",
            "spiffe://cluster.local/ns/kube-system/sa/client",
            "spiffe://other.org/ns/default/sa/client",
        ] {
            let status = ask(lab, Some(token), other)?.err().with_context(|| format!("{other} was signed"))?;
            ensure!(status.code() == Code::PermissionDenied, "{other}: {status}");
            ensure!(lab.control().log().contains(other), "the refusal of {other} is not logged");
        }
        for token in [None, Some("0123456789abcdef0123456789abcdef")] {
            let status = ask(lab, token, own)?.err().context("signed without a node's token")?;
            ensure!(status.code() == Code::Unauthenticated, "{status}");
        }
        Ok(())
    })
}

#[test]
fn the_root_key_is_roots_alone() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    LAB.test(|lab| {
        let mode = std::fs::metadata(lab.control().ca_dir().join("root-key.pem"))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "root-key.pem has mode {mode:o}");
        Ok(())
    })
}
