//! TLS to an endpoint's own port: Istio's mutual TLS with workloads that have a sidecar, and servers outside of the mesh.
//!
//! In: an address, the cluster's settings, and what the connection will carry. Out: an open connection whose server is who the
//! settings say. Never: falls back to plain bytes, or takes longer than the cluster's connect timeout, handshake and all.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::resource::RootsSource;
use mesh_core::resource::cluster::{Carries, Cluster, UpstreamTls};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::connect::{Connected, Source};
use super::errors::UpstreamError;
use super::peer_exchange::{self, ExchangeError, exchange};
use super::secure::Secure;
use super::stream::Stream;
use crate::net::peek::Peeked;
use crate::telemetry::PathBytes;
use crate::tls::ports::{ALPN_PEER_EXCHANGE, Clients, Proved, explain};
use crate::tls::secrets::Secrets;
use crate::tls::turns::Turns;

/// What a connection is for.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// What it carries.
    pub carries: Carries,
    /// The host that its request names, where the cluster's settings want that said to the server.
    pub host: Option<&'a str>,
}

/// What one workload needs to speak TLS to servers, as one worker has it.
pub struct Originator {
    secrets: Secrets,
    clients: Clients,
    /// What it says of itself where that is asked.
    frame: Arc<[u8]>,
    bytes: Arc<PathBytes>,
    handshakes: Rc<Turns>,
}

impl Originator {
    /// `frame`: as [`peer_exchange::frame`] makes it. `handshakes`: those that the workload asks others for.
    pub fn new(secrets: Secrets, frame: Arc<[u8]>, bytes: Arc<PathBytes>, handshakes: Rc<Turns>) -> Self {
        Self { secrets, clients: Clients::default(), frame, bytes, handshakes }
    }

    /// Makes a connection that `tcp` opens secure. All of it happens before `deadline`.
    pub async fn connect(
        &self,
        to: SocketAddr,
        settings: &Arc<UpstreamTls>,
        wish: Wish<'_>,
        deadline: Instant,
        tcp: impl Future<Output = Result<TcpStream, UpstreamError>>,
    ) -> Result<Connected, UpstreamError> {
        let refused = |why: String| UpstreamError::Tls { to, why: why.into() };
        let late = |stage| move |_| UpstreamError::Timeout { to, stage };
        let asking = self.secrets.materials(settings.client_certificate.as_ref(), settings.roots.as_ref());
        let materials = timeout_at(deadline, asking).await.map_err(late("certificate"))?;
        let materials = materials.map_err(|error| refused(error.to_string()))?;
        let (name, said) = server_name(settings, wish.host, to).map_err(refused)?;
        let config = self.clients.config(settings, wish.carries, settings.auto_sans && said, &materials);
        let config = config.map_err(|error| refused(error.to_string()))?;
        let tcp = timeout_at(deadline, tcp).await.map_err(late("TCP"))??;
        let local = tcp.local_addr().ok();
        let connecting = async {
            let _turn = self.handshakes.turn().await;
            TlsConnector::from(config).connect(name, Peeked::new(tcp)).await
        };
        let tls = timeout_at(deadline, connecting).await.map_err(late("TLS"))?;
        let tls = tls.map_err(|error| refused(explain(&error, "server")))?;
        let state = tls.get_ref().1;
        let proved = Proved::of(state, settings.roots == Some(RootsSource::Workload), SystemTime::now());
        let identity = proved.map_err(|error| refused(error.to_string()))?.identity;
        let exchanges = wish.carries == Carries::Bytes && state.alpn_protocol() == Some(ALPN_PEER_EXCHANGE);
        let mut secure = Secure::new(tls);
        let mut peer = None;
        if exchanges {
            let told = timeout_at(deadline, exchange(&mut secure, &self.frame)).await;
            let told = told.map_err(late("peer exchange"))?;
            let told = told.map_err(|error| match error {
                // Here, in TLS 1.3, we hear that our certificate is refused.
                ExchangeError::Io(error) => refused(explain(&error, "server")),
                other => UpstreamError::PeerExchange { to, why: other.to_string().into() },
            })?;
            peer = Some(Arc::new(told));
        }
        Ok(Connected { stream: Stream::tls(secure, &self.bytes), local, remote: to, identity, peer })
    }
}

impl Source {
    /// Speaks TLS to a port.
    pub(super) async fn secure(
        &self,
        to: SocketAddr,
        cluster: &Cluster,
        settings: &Arc<UpstreamTls>,
        wish: Wish<'_>,
    ) -> Result<Connected, UpstreamError> {
        let limit = cluster.connect_timeout;
        let tcp = self.tcp(to, limit, |sockets, workload| sockets.socket(&workload.netns, to));
        self.originator.connect(to, settings, wish, Instant::now() + limit, tcp).await
    }
}

/// The name to dial, and whether it is said to the server: an address is not (RFC 6066, 3).
fn server_name(
    settings: &UpstreamTls,
    host: Option<&str>,
    to: SocketAddr,
) -> Result<(ServerName<'static>, bool), String> {
    let host = host.filter(|_| settings.auto_sni);
    let name = match (host, &*settings.sni) {
        (Some(host), _) => host,
        (None, "") => return Ok((ServerName::IpAddress(to.ip().to_canonical().into()), false)),
        (None, sni) => sni,
    };
    let name = ServerName::try_from(name.to_owned());
    name.map(|name| (name, true)).map_err(|_| "the server's name (SNI) is neither a DNS name nor an address".to_owned())
}

/// What a workload says of itself on TCP.
pub fn own_frame(workload: &crate::workload::Workload) -> Arc<[u8]> {
    let address = workload.addresses.first().map(ToString::to_string).unwrap_or_default();
    peer_exchange::frame(&workload.peer, &workload.name, &address)
}
