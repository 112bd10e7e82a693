//! The gRPC ports: connections in, TLS with a certificate of the own CA, bounded in number.
//!
//! In: listeners and services. Out: a served port until shutdown. A connection that does not finish its handshake costs
//! nothing but itself.

mod certificate;
mod io;

use std::io::Result as IoResult;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

pub use certificate::{CertificateError, ServerCertificate};
use io::Counted;

/// Most connections of one gRPC port, handshakes included.
pub const MAX_CONNECTIONS: usize = 4096;
/// Most streams of one connection: a node has one per workload.
const MAX_STREAMS: u32 = 16_384;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Silence after which a connection is asked whether it lives, and time for its answer.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);
/// Pause after an accept that failed, as a rule for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Accepted connections that wait to be served.
const BACKLOG: usize = 64;

/// TLS settings with a certificate of the CA.
pub fn tls_config(certificate: Arc<ServerCertificate>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Serves `routes` on a port, with TLS or plain, until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    routes: Routes,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
        .add_routes(routes);
    let stop = shutdown.clone().cancelled_owned();
    match tls {
        Some(config) => {
            let acceptor = TlsAcceptor::from(config);
            let (sender, receiver) = mpsc::channel(BACKLOG);
            tokio::spawn(accept(listener, shutdown, move |stream, permit| {
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    let peer = stream.peer_addr().ok();
                    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => forward(&sender, stream, permit).await,
                        Ok(Err(error)) => tracing::debug!(?peer, %error, "TLS handshake failed"),
                        Err(_) => tracing::debug!(?peer, "TLS handshake took too long"),
                    }
                });
            }));
            server.serve_with_incoming_shutdown(ReceiverStream::new(receiver), stop).await
        }
        None => {
            let (sender, receiver) = mpsc::channel(BACKLOG);
            tokio::spawn(accept(listener, shutdown, move |stream, permit| {
                let sender = sender.clone();
                tokio::spawn(async move { forward(&sender, stream, permit).await });
            }));
            server.serve_with_incoming_shutdown(ReceiverStream::new(receiver), stop).await
        }
    }
}

async fn forward<S: Connected>(sender: &mpsc::Sender<IoResult<Counted<S>>>, stream: S, permit: OwnedSemaphorePermit) {
    // The server is gone when nobody takes it; so is the connection then.
    let _ = sender.send(Ok(Counted::new(stream, permit))).await;
}

/// Accepts connections as long as there is room for them.
async fn accept(
    listener: TcpListener,
    shutdown: CancellationToken,
    handle: impl Fn(TcpStream, OwnedSemaphorePermit) + Send,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                // Configuration is small messages both ways.
                let _ = stream.set_nodelay(true);
                handle(stream, permit);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
