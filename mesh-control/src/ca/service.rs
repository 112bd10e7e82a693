//! Istio's certificate service: `istio.v1.auth.IstioCertificateService/CreateCertificate`.
//!
//! In: a node's request. Out: a chain for an identity that this node runs; every refusal is logged with node, identity and
//! reason, and comes back as Unauthenticated, PermissionDenied or InvalidArgument.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use mesh_proto::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use mesh_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{Ca, Csr};
use crate::auth::NodeAuth;
use crate::directory::Directory;
use crate::metrics::Metrics;

/// Largest request message in bytes: a CSR and some metadata.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Metadata key with the identity that a node agent asks for.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// Answers certificate requests.
pub struct CaService {
    ca: Ca,
    auth: NodeAuth,
    directory: watch::Receiver<Arc<Directory>>,
    max_ttl: Duration,
    metrics: Metrics,
}

impl CaService {
    /// `max_ttl` is both the longest life and the one given when the request wishes for none.
    pub fn new(
        ca: Ca,
        auth: NodeAuth,
        directory: watch::Receiver<Arc<Directory>>,
        max_ttl: Duration,
        metrics: Metrics,
    ) -> CaService {
        CaService { ca, auth, directory, max_ttl, metrics }
    }

    /// The service with its message bound, to mount on a server.
    pub fn into_server(self) -> IstioCertificateServiceServer<CaService> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    fn create(&self, node: &str, request: &IstioCertificateRequest) -> Result<IstioCertificateResponse, Refusal> {
        let wished = impersonated(request)?;
        let csr = Csr::parse(&request.csr)
            .map_err(|why| Refusal { identity: wished.clone(), status: Status::invalid_argument(why) })?;
        let identity = match (wished, csr.spiffe.as_slice()) {
            (Some(identity), _) => identity,
            (None, [identity]) => identity.clone(),
            (None, names) => {
                return Err(Refusal::invalid(format!(
                    "no identity is asked for: set metadata `{IMPERSONATED_IDENTITY}`, or name one SPIFFE URI in the CSR (it names {})",
                    names.len()
                )));
            }
        };
        if !self.directory.borrow().runs(node, &identity) {
            let why = format!("node `{node}` runs no workload with identity {identity}");
            return Err(Refusal { identity: Some(identity), status: Status::permission_denied(why) });
        }
        let ttl = match u64::try_from(request.validity_duration) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds).min(self.max_ttl),
            _ => self.max_ttl,
        };
        let signed = self.ca.sign_workload(&csr, &identity, ttl, SystemTime::now()).map_err(|error| Refusal {
            identity: Some(identity.clone()),
            status: Status::internal(error.to_string()),
        })?;
        tracing::info!(%node, %identity, ttl_seconds = ttl.as_secs(), "certificate issued");
        Ok(IstioCertificateResponse { cert_chain: signed.chain })
    }
}

struct Refusal {
    identity: Option<SpiffeId>,
    status: Status,
}

impl Refusal {
    fn invalid(why: String) -> Refusal {
        Refusal { identity: None, status: Status::invalid_argument(why) }
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Result<Option<SpiffeId>, Refusal> {
    use prost_types::value::Kind;
    let value = request.metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY));
    match value.and_then(|value| value.kind.as_ref()) {
        None | Some(Kind::NullValue(_)) => Ok(None),
        Some(Kind::StringValue(text)) => text
            .parse()
            .map(Some)
            .map_err(|error| Refusal::invalid(format!("metadata `{IMPERSONATED_IDENTITY}` is `{text:.256}`: {error}"))),
        Some(_) => Err(Refusal::invalid(format!("metadata `{IMPERSONATED_IDENTITY}` is no string"))),
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
        let node = self.auth.node(request.metadata()).inspect_err(|status| {
            self.metrics.certificate_refused();
            tracing::warn!(%peer, reason = status.message(), "certificate refused");
        })?;
        match self.create(&node, request.get_ref()) {
            Ok(response) => {
                self.metrics.certificate_issued();
                Ok(Response::new(response))
            }
            Err(Refusal { identity, status }) => {
                self.metrics.certificate_refused();
                let identity = identity.map(|identity| identity.to_string()).unwrap_or_default();
                tracing::warn!(%node, %peer, %identity, reason = status.message(), "certificate refused");
                Err(status)
            }
        }
    }
}
