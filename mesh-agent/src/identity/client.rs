//! Asks the CA for one certificate.
//!
//! In: an identity. Out: a fresh P-256 key with its signed chain as a [`Credential`]. Root and token files are read at every
//! request, so that replacing them needs no restart; the connection is kept while its root stays the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use mesh_proto::ca::IstioCertificateRequest;
use mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::Mutex;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::chain;
use crate::settings::ControlPlane;
use crate::tls::Credential;

/// Time for the connection to the CA.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a whole request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of the settings cannot be used.
    #[error("{}: {why}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The address of the settings cannot be used.
    #[error("controlPlane.address `{address}`: {why}")]
    Address {
        /// The address.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// The server cannot be reached, or its certificate is not the expected one.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The server refused.
    #[error("the CA refuses: {:?}: {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    /// The server answered with something that is no usable certificate.
    #[error("unusable answer: {0}")]
    Answer(String),
    /// A key or CSR could not be made.
    #[error("making the request: {0}")]
    Request(#[from] rcgen::Error),
}

/// A new credential with what the admin pages show of it.
pub(super) struct Issued {
    pub credential: Credential,
    pub serial: String,
    pub not_before: SystemTime,
}

/// Client of Istio's certificate service. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub(super) struct CaClient(Arc<Inner>);

struct Inner {
    settings: ControlPlane,
    connection: Mutex<Shared>,
    /// Failed attempts to connect so far; written under the lock.
    failures: AtomicU64,
}

/// What all requests have in common.
#[derive(Default)]
struct Shared {
    connection: Option<Connection>,
    /// Why the last attempt to connect failed.
    failure: String,
}

#[derive(Clone)]
struct Connection {
    roots: Option<Vec<u8>>,
    channel: Channel,
}

impl CaClient {
    pub(super) fn new(settings: &ControlPlane) -> CaClient {
        CaClient(Arc::new(Inner {
            settings: settings.clone(),
            connection: Mutex::default(),
            failures: AtomicU64::new(0),
        }))
    }

    pub(super) fn address(&self) -> &str {
        &self.0.settings.address
    }

    /// One request, from key to checked credential.
    pub(super) async fn certificate(&self, identity: &SpiffeId) -> Result<Issued, IdentityError> {
        let (key, csr) = key_and_csr(identity)?;
        let connection = self.connection().await?;
        let mut request =
            Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata: Some(impersonate(identity)) });
        request.set_timeout(REQUEST_TIMEOUT);
        if let Some(token) = self.token()? {
            request.metadata_mut().insert("authorization", token);
        }
        let mut client =
            IstioCertificateServiceClient::new(connection.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let answer = match tokio::time::timeout(REQUEST_TIMEOUT, client.create_certificate(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                if !is_refusal(&status) {
                    self.forget().await;
                }
                return Err(IdentityError::Refused(Box::new(status)));
            }
            Err(_) => {
                self.forget().await;
                return Err(IdentityError::Connect(format!("no answer in {} s", REQUEST_TIMEOUT.as_secs())));
            }
        };
        let chain = chain::read(&answer.cert_chain, identity, connection.roots.as_deref(), SystemTime::now())
            .map_err(IdentityError::Answer)?;
        let credential = Credential::new(identity.clone(), chain.certificates, key, chain.roots, chain.not_after)
            .map_err(|error| IdentityError::Answer(error.to_string()))?;
        Ok(Issued { credential, serial: chain.serial, not_before: chain.not_before })
    }

    /// The shared connection, made anew when there is none or the root file has changed. Whoever waited while another
    /// request failed to connect has failed with it: otherwise the identities of a node would wait one after the other.
    async fn connection(&self) -> Result<Connection, IdentityError> {
        let settings = &self.0.settings;
        let roots = settings.root_cert.as_deref().map(read_file).transpose()?;
        let before = self.0.failures.load(Ordering::Relaxed);
        let mut shared = self.0.connection.lock().await;
        if let Some(connection) = shared.connection.as_ref().filter(|connection| connection.roots == roots) {
            return Ok(connection.clone());
        }
        if self.0.failures.load(Ordering::Relaxed) != before {
            return Err(IdentityError::Connect(shared.failure.clone()));
        }
        let endpoint = endpoint(settings, roots.as_deref())?;
        // tonic's own limit for connecting ends before TLS begins.
        let failure = match tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
            Ok(Ok(channel)) => {
                let connection = Connection { roots, channel };
                shared.connection = Some(connection.clone());
                return Ok(connection);
            }
            Ok(Err(error)) => with_sources(&error),
            Err(_) => format!("{} does not answer in {} s", settings.address, CONNECT_TIMEOUT.as_secs()),
        };
        shared.failure.clone_from(&failure);
        self.0.failures.fetch_add(1, Ordering::Relaxed);
        Err(IdentityError::Connect(failure))
    }

    async fn forget(&self) {
        self.0.connection.lock().await.connection = None;
    }

    fn token(&self) -> Result<Option<MetadataValue<Ascii>>, IdentityError> {
        let Some(path) = self.0.settings.token_file.as_deref() else { return Ok(None) };
        let content = read_file(path)?;
        let wrong = |why: &str| IdentityError::File { path: path.to_owned(), why: why.to_owned() };
        let token = std::str::from_utf8(&content).map_err(|_| wrong("the token is no text"))?.trim();
        if token.is_empty() {
            return Err(wrong("the token file is empty"));
        }
        let mut value = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| wrong("the token is not one line of ASCII"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Whether the server itself decided, so that the connection is fine.
fn is_refusal(status: &Status) -> bool {
    use tonic::Code;
    matches!(
        status.code(),
        Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::ResourceExhausted
    )
}

fn endpoint(settings: &ControlPlane, roots: Option<&[u8]>) -> Result<Endpoint, IdentityError> {
    let address = |why: String| IdentityError::Address { address: settings.address.clone(), why };
    let endpoint = Endpoint::from_shared(settings.address.clone())
        .map_err(|error| address(error.to_string()))?
        .timeout(REQUEST_TIMEOUT);
    match (endpoint.uri().scheme_str(), roots) {
        (Some("http"), _) => Ok(endpoint),
        (Some("https"), Some(roots)) => {
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots));
            if let Some(name) = &settings.server_name {
                tls = tls.domain_name(name.clone());
            }
            endpoint.tls_config(tls).map_err(|error| address(with_sources(&error)))
        }
        (Some("https"), None) => Err(address("https needs controlPlane.rootCert".to_owned())),
        _ => Err(address("must begin with https:// or http://".to_owned())),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|error| IdentityError::File { path: path.to_owned(), why: error.to_string() })
}

/// A new key and a CSR that proves it; the name in the CSR is only informative.
fn key_and_csr(identity: &SpiffeId) -> Result<(PrivateKeyDer<'static>, String), IdentityError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())), csr))
}

fn impersonate(identity: &SpiffeId) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(identity.to_string())) };
    Struct { fields: [("ImpersonatedIdentity".to_owned(), value)].into() }
}

/// An error with what caused it, in one line; tonic's own text alone says only "transport error".
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
