//! TLS that comes to a port of a local application's: ended here with the certificate that the chain names, as Istio's sidecars do.
//!
//! In: a connection whose chain ends TLS. Out: the same connection, served by that chain, with the identity that the client's
//! certificate proves to policies, headers and metrics. Refusals are told as those of plaintext are.
//! Never: lets anybody in by what it says before the handshake, or by a certificate that nobody has verified.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::detect::Detect;
use mesh_core::resource::listener::{DownstreamTls, Listener};
use mesh_core::resource::{CertificateSource, RootsSource};
use mesh_core::{Snapshot, SpiffeId};
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;

use super::authorize::{self, Facts};
use super::chosen::{Chosen, Flow, Served};
use super::detect::spoken;
use super::pod::Pod;
use super::{inbound, plaintext, tcp};
use crate::net::copy::Duplex;
use crate::net::peek::Peeked;
use crate::telemetry::Peer;
use crate::tls::ports::{ALPN_PEER_EXCHANGE, Proved, Servers, explain};
use crate::tls::secrets::Secrets;
use crate::upstream::Connected;
use crate::upstream::peer_exchange::{ExchangeError, exchange};
use crate::upstream::secure::Secure;
use crate::upstream::stream::Stream;

/// Time for the first bytes where only TLS may come in, and then for the handshake and what both ends say of themselves.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take for its hello where its application has spoken first. A client of TLS says it at once.
const HELLO_WAIT: Duration = Duration::from_millis(50);

/// Why TLS at a port has come to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsRefusal {
    /// The handshake has failed: as a rule the client's certificate is missing, unknown, or another's.
    Handshake,
    /// It took too long.
    Timeout,
    /// We have nothing to show or to verify with.
    Secrets,
    /// What the client says of itself is malformed.
    PeerExchange,
    /// The port's settings have changed, and the open connection does not fit them.
    Changed,
}

impl TlsRefusal {
    pub(super) const ALL: [(TlsRefusal, &'static str); 5] = [
        (TlsRefusal::Handshake, "handshake"),
        (TlsRefusal::Timeout, "timeout"),
        (TlsRefusal::Secrets, "secrets"),
        (TlsRefusal::PeerExchange, "peer_exchange"),
        (TlsRefusal::Changed, "changed"),
    ];
}

/// What one workload needs to end TLS, as one worker has it.
pub(super) struct Terminator {
    secrets: Secrets,
    servers: Servers,
    /// What it says of itself where that is asked.
    frame: Arc<[u8]>,
}

impl Terminator {
    pub(super) fn new(secrets: Secrets, frame: Arc<[u8]>) -> Self {
        Self { secrets, servers: Servers::default(), frame }
    }
}

/// A connection whose chain ends TLS, before its handshake.
pub(super) struct Hello {
    pub(super) flow: Flow,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) downstream: Peeked<Stream>,
    pub(super) chosen: Chosen,
    pub(super) tls: Arc<DownstreamTls>,
    /// What the chain was chosen by.
    pub(super) detected: Option<Detect>,
    /// The name that the client asks for.
    pub(super) name: Option<Box<str>>,
    /// The application, if it is connected already.
    pub(super) app: Option<Connected>,
}

/// Waits for the hello of a client who may come in by TLS and not in the open. `None`: it says something else, or nothing; then it
/// is judged as one in the open.
pub(super) async fn only_tls(pod: &Pod, facts: &Facts, downstream: &mut Peeked<Stream>) -> Option<(Snapped, Detect)> {
    let snapshot = pod.config().await?;
    let listener = snapshot.inbound()?.clone();
    let (client, destination) = (facts.client, facts.destination);
    if !listener.terminates_tls(destination)
        || plaintext::is_open(pod, client, destination) && authorize::opens(pod, facts).await
    {
        return None;
    }
    let detected = timeout(HANDSHAKE_TIMEOUT, spoken(downstream)).await.ok()?.ok()?;
    matches!(detected, Detect::Tls(_)).then_some(((snapshot, listener), detected))
}

/// A configuration and its inbound listener.
pub(super) type Snapped = (Arc<Snapshot>, Arc<Listener>);

/// Waits a moment for the hello of a client whose application has spoken first.
pub(super) async fn late_hello(
    listener: &Listener,
    destination: SocketAddr,
    downstream: &mut Peeked<Stream>,
) -> Option<Detect> {
    if !listener.terminates_tls(destination) {
        return None;
    }
    let detected = timeout(HELLO_WAIT, spoken(downstream)).await.ok()?.ok()?;
    matches!(detected, Detect::Tls(_)).then_some(detected)
}

impl Hello {
    /// The connection whose chain ends TLS; `Err`: it belongs to another chain.
    pub(super) fn new(
        (snapshot, listener): Snapped,
        flow: Flow,
        detected: &Detect,
        downstream: Peeked<Stream>,
    ) -> Result<Box<Self>, Peeked<Stream>> {
        let chosen = Chosen::new(&listener, &flow, Some(detected));
        let Some((chosen, tls)) = chosen.and_then(|chosen| chosen.tls(&flow).map(|tls| (chosen, tls))) else {
            return Err(downstream);
        };
        let name = super::chosen::server_name(Some(detected)).map(Into::into);
        Ok(Box::new(Self {
            flow,
            snapshot,
            downstream,
            chosen,
            tls,
            detected: Some(detected.clone()),
            name,
            app: None,
        }))
    }
}

/// Serves such a connection to its end.
pub(super) fn serve(pod: Rc<Pod>, hello: Box<Hello>) -> Pin<Box<dyn Future<Output = ()>>> {
    // Boxed, and here: what it serves is served as any other connection is, which may be one of these.
    Box::pin(async move {
        let before = Before { flow: hello.flow.clone(), detected: hello.detected.clone(), tls: hello.tls.clone() };
        let Some((served, facts, identity)) = Box::pin(open(&pod, hello)).await else { return };
        tokio::select! {
            () = served.run(pod.clone()) => {}
            () = authorize::forbidden(&pod, &facts) => {}
            () = Box::pin(before.outdated(&pod, identity.as_ref())) => {}
        }
    })
}

/// A connection as it was chosen for its chain, and by which settings its client was let in.
struct Before {
    flow: Flow,
    detected: Option<Detect>,
    tls: Arc<DownstreamTls>,
}

impl Before {
    /// Resolves once the port would not take this client any more, as the configuration is now.
    async fn outdated(self, pod: &Pod, identity: Option<&SpiffeId>) {
        // Before the first look, so that no change is missed.
        let mut changes = pod.inbound_changes.subscribe();
        // Without a configuration the workload is on its way out, and its connections with it.
        while pod.snapshot().is_none_or(|snapshot| self.fits(&snapshot, identity)) {
            // The pod holds the sender.
            let _ = changes.changed().await;
        }
        tell(
            pod,
            &self.flow,
            TlsRefusal::Changed,
            "the port's settings have changed, and the client does not fit them",
        );
    }

    fn fits(&self, snapshot: &Snapshot, identity: Option<&SpiffeId>) -> bool {
        let chosen = snapshot.inbound().and_then(|listener| Chosen::new(listener, &self.flow, self.detected.as_ref()));
        let Some(chosen) = chosen else { return false };
        // A port that takes plaintext takes this too.
        let Some(tls) = chosen.tls(&self.flow) else { return true };
        let before = &self.tls;
        // Of a client without an identity of the mesh nothing is known but that it obeyed these.
        let same = tls.sans == before.sans && tls.require_client_certificate == before.require_client_certificate;
        tls.roots == before.roots
            && (same || identity.map_or(!tls.require_client_certificate, |identity| tls.admits(identity)))
    }
}

/// Handshake, policies, application. `None`: it was refused, and told.
async fn open(pod: &Pod, hello: Box<Hello>) -> Option<(Served, Facts, Option<SpiffeId>)> {
    let Hello { mut flow, snapshot, downstream, chosen, tls, name, app, detected: _ } = *hello;
    let (stream, seen) = downstream.into_parts();
    let Stream::Plain(wire) = stream else {
        // What comes in by another way has been secured there.
        tcp::refuse_without_chain(pod, &flow, stream, name.as_deref());
        return None;
    };
    let tcp = Peeked::with_prefix(wire.into_inner(), seen);
    let secured = match secure(pod, tcp, &tls).await {
        Ok(secured) => secured,
        Err((refusal, why)) => {
            tell(pod, &flow, refusal, &why);
            tcp::report_refusal(pod, &flow, &tcp::Failure::downstream_tls(why), name.as_deref());
            return None;
        }
    };
    let Secured { secure, identity, said } = secured;
    if let Some(identity) = &identity {
        let mut source = said.unwrap_or_default().with_principal(identity.as_str());
        source.namespace = identity.namespace().into();
        flow.source = Some(Arc::new(source));
    }
    flow.identity = identity.clone();
    let mut stream = Stream::tls(secure, pod.metrics.bytes());
    let facts = Facts::of(&flow);
    if let Err(denial) = authorize::admit(pod, &facts).await {
        stream.reset();
        authorize::refused(pod, &flow, &denial);
        return None;
    }
    let app = match app {
        Some(app) => app,
        None => match pod.dial_app(&flow).await {
            Ok(app) => app,
            Err(error) => {
                tracing::debug!(workload = pod.name, %error, "the application does not answer");
                stream.reset();
                return None;
            }
        },
    };
    let inside = inbound::Inside { flow, downstream: Peeked::new(stream), chosen, app };
    let served = inbound::serve_by(pod, inside, &snapshot, None, name.as_deref()).await?;
    Some((served, facts, identity))
}

/// A finished handshake.
struct Secured {
    secure: Secure,
    identity: Option<SpiffeId>,
    /// What the client says of itself.
    said: Option<Peer>,
}

async fn secure(
    pod: &Pod,
    tcp: Peeked<TcpStream>,
    settings: &Arc<DownstreamTls>,
) -> Result<Secured, (TlsRefusal, String)> {
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let Terminator { secrets, servers, frame } = &pod.terminator;
    let late =
        |what: &'static str| move |_| (TlsRefusal::Timeout, format!("{what} took longer than {HANDSHAKE_TIMEOUT:?}"));
    let failed = |error: std::io::Error| (TlsRefusal::Handshake, explain(&error, "client"));
    let own = settings.certificate.as_ref().unwrap_or(&CertificateSource::Workload);
    let asking = secrets.materials(Some(own), settings.roots.as_ref());
    let materials = timeout_at(deadline, asking).await.map_err(late("the wait for the workload's certificate"))?;
    let materials = materials.map_err(|error| (TlsRefusal::Secrets, error.to_string()))?;
    let handshake = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await.map_err(failed)?;
        let config = servers.config(settings, start.client_hello().alpn().into_iter().flatten(), &materials);
        let config = config.map_err(|error| (TlsRefusal::Secrets, error.to_string()))?;
        let _turn = pod.handshakes.turn().await;
        start.into_stream(config).await.map_err(failed)
    };
    let tls = timeout_at(deadline, handshake).await.map_err(late("the handshake"))??;
    let state = tls.get_ref().1;
    let proved = Proved::of(state, settings.roots == Some(RootsSource::Workload), SystemTime::now());
    let identity = proved.map_err(|error| (TlsRefusal::Handshake, error.to_string()))?.identity;
    let exchanges = state.alpn_protocol() == Some(ALPN_PEER_EXCHANGE);
    let mut secure = Secure::new(tls);
    let mut said = None;
    if exchanges {
        let told = timeout_at(deadline, exchange(&mut secure, frame)).await.map_err(late("the peer exchange"))?;
        said = Some(told.map_err(refusal_of)?);
    }
    Ok(Secured { secure, identity, said })
}

fn refusal_of(error: ExchangeError) -> (TlsRefusal, String) {
    match error {
        // In TLS 1.3 this is where a server hears that its certificate is refused.
        ExchangeError::Io(error) => (TlsRefusal::Handshake, explain(&error, "client")),
        other => (TlsRefusal::PeerExchange, other.to_string()),
    }
}

fn tell(pod: &Pod, flow: &Flow, refusal: TlsRefusal, why: &str) {
    pod.teller.tell_tls(pod, flow.client, flow.destination, refusal, why);
}
