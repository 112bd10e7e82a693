//! HBONE server: mutual TLS, HTTP/2, one CONNECT per connection of the client's application.
//!
//! In: a raw connection to the tunnel listener. Out: one inbound connection per CONNECT, with the verified identity of the
//! other agent's workload and the address of its application. Never: connects anywhere but to the workload's own
//! addresses, or takes a client's address or identity from an unverified word.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::header::{FORWARDED, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::authorize::{self, Denial, Facts};
use super::budget::Place;
use super::chosen::{Flow, Served, Side};
use super::inbound;
use super::pod::Pod;
use super::worker::Worker;
use crate::net::ahead::Ahead;
use crate::net::gather::{Gather, Outlet, gather};
use crate::net::peek::Peeked;
use crate::net::share::Window;
use crate::shutdown;
use crate::telemetry::{LastSaid, Peer};
use crate::tls::ports::explain;
use crate::tls::{Credential, PeerCertificate, peer_certificate};
use crate::upstream::stream::{Stream, TunnelStream};
use crate::upstream::tunnel::{DATA_FRAME_BUDGET, MAX_FRAME, MAX_HEADER_LIST, TLS_BUFFER};
use crate::upstream::{BAGGAGE, UpstreamError};

#[cfg(test)]
mod tests;

/// Time for TLS and the HTTP/2 preface. Whoever needs longer is no agent.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams opened and reset by the peer before anybody has looked at them.
const MAX_PENDING_RESETS: usize = 64;

/// Serves one accepted connection.
pub(super) async fn serve(pod: Rc<Pod>, accepted: TcpStream) {
    let Ok(remote) = accepted.peer_addr() else { return };
    let established = timeout(HANDSHAKE_TIMEOUT, async {
        let credential = credential(&pod).await?;
        accepted.set_nodelay(true).map_err(|error| error.to_string())?;
        establish(&pod, accepted, &credential).await
    });
    // Boxed: the handshake is large and soon over.
    lead(pod.clone(), remote, Box::pin(established), |_| None).await;
}

/// Serves one connection to the host, whose workloads have one port for tunnels.
pub(super) async fn serve_host(worker: Rc<Worker>, accepted: TcpStream) {
    let Ok(remote) = accepted.peer_addr() else { return };
    let hello = timeout(HANDSHAKE_TIMEOUT, async {
        accepted.set_nodelay(true)?;
        LazyConfigAcceptor::new(Acceptor::default(), Ahead::new(accepted)).await
    });
    let Ok(Ok(hello)) = Box::pin(hello).await else {
        tracing::debug!(%remote, "a tunnel that does not begin");
        return;
    };
    let name = hello.client_hello().server_name().map(str::to_owned);
    let Some(pod) = worker.meant(name.as_deref()) else {
        tracing::info!(%remote, name, "tunnel refused: its handshake names no port of a workload of this host, and there is more than one identity");
        return;
    };
    let secure = pod.clone();
    let established = timeout(HANDSHAKE_TIMEOUT, async move {
        let credential = credential(&secure).await?;
        answer_hello(&secure, hello, &credential).await
    });
    let ended = pod.ended.clone();
    tokio::select! {
        () = lead(pod, remote, Box::pin(established), move |port| worker.resident(port)) => {}
        () = ended.cancelled() => {}
    }
}

/// The workload's certificate, once there is one.
async fn credential(pod: &Pod) -> Result<Arc<Credential>, String> {
    let mut credentials = pod.credential.clone();
    let credential = match credentials.wait_for(Option::is_some).await {
        Ok(credential) => credential.clone(),
        Err(_) => None,
    };
    credential.ok_or_else(|| "there is no certificate".to_owned())
}

/// Serves a tunnel from its handshake to its end. `others` finds workloads of the host by their ports.
async fn lead<T: AsyncRead + AsyncWrite + Unpin>(
    pod: Rc<Pod>,
    remote: SocketAddr,
    established: impl Future<Output = Result<Established<T>, Elapsed>>,
    others: impl Fn(u16) -> Option<Rc<Pod>>,
) {
    let (connection, outlet, peer, _window) = match established.await {
        Ok(Ok(established)) => established,
        Ok(Err(why)) => {
            tracing::info!(workload = pod.name, %remote, why, "tunnel refused");
            return;
        }
        Err(_) => {
            tracing::debug!(workload = pod.name, %remote, "tunnel handshake took too long");
            return;
        }
    };
    let not_after = peer.not_after;
    let other = Other { remote, peer, said: LastSaid::default() };
    let on_request = |request: Request<RecvStream>, respond: SendResponse<Bytes>| {
        let meant = request.uri().port_u16().and_then(&others).filter(|meant| meant.identity == pod.identity);
        let pod = meant.unwrap_or_else(|| pod.clone());
        pod.spawn(answer(pod.clone(), &other, request, respond));
    };
    run(connection, outlet, not_after, pod.shutdown.clone(), on_request).await;
}

/// What a finished handshake gives; the error says why the peer is refused.
type Established<T> =
    Result<(Connection<Gather<Secured<T>>, Bytes>, Outlet<Secured<T>>, PeerCertificate, Window), String>;

/// What is under HTTP/2.
type Secured<T> = TlsStream<Ahead<T>>;

/// TLS and the HTTP/2 handshake.
async fn establish<T: AsyncRead + AsyncWrite + Unpin>(pod: &Pod, io: T, credential: &Credential) -> Established<T> {
    // Whoever says nothing has no turn.
    let hello = LazyConfigAcceptor::new(Acceptor::default(), Ahead::new(io))
        .await
        .map_err(|error| explain(&error, "client"))?;
    answer_hello(pod, hello, credential).await
}

/// As [`establish`], behind the client's first words.
async fn answer_hello<T: AsyncRead + AsyncWrite + Unpin>(
    pod: &Pod,
    hello: StartHandshake<Ahead<T>>,
    credential: &Credential,
) -> Established<T> {
    let config = credential.server_config().map_err(|error| error.to_string())?;
    let mut tls = {
        let _turn = pod.handshakes.turn().await;
        hello.into_stream(config).await.map_err(|error| explain(&error, "client"))?
    };
    let window = pod.share().window();
    let peer = peer_certificate(tls.get_ref().1, SystemTime::now()).map_err(|error| error.to_string())?;
    tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    let (io, outlet) = gather(tls);
    let connection = h2::server::Builder::new()
        .initial_window_size(window.stream)
        .initial_connection_window_size(window.connection)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(pod.budget.limits().tunnel_streams)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_send_buffer_size(pod.budget.limits().stream_buffer_bytes)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .handshake(io)
        .await
        .map_err(|error| error.to_string())?;
    Ok((connection, outlet, peer, window))
}

/// Moves the tunnel's frames and hands on each request until the tunnel ends. It takes no new streams once the peer's
/// certificate has expired or the agent drains.
async fn run<T: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<Gather<T>, Bytes>,
    outlet: Outlet<T>,
    not_after: SystemTime,
    mut shutdown: shutdown::Watch,
    on_request: impl Fn(Request<RecvStream>, SendResponse<Bytes>),
) {
    let last_call = async {
        let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::select! {
            () = sleep(left) => {}
            () = shutdown.draining() => {}
        }
    };
    tokio::pin!(last_call);
    let mut open = true;
    loop {
        tokio::select! {
            accepted = poll_fn(|cx| outlet.after(connection.poll_accept(cx), cx)) => match accepted {
                Some(Ok((request, respond))) => on_request(request, respond),
                Some(Err(error)) => {
                    tracing::debug!(%error, "tunnel ended");
                    return;
                }
                None => return,
            },
            () = &mut last_call, if open => {
                open = false;
                connection.graceful_shutdown();
            }
        }
    }
}

/// The agent at the other end.
struct Other {
    remote: SocketAddr,
    peer: PeerCertificate,
    said: LastSaid,
}

/// Serves one request to its end.
fn answer(
    pod: Rc<Pod>,
    other: &Other,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> impl Future<Output = ()> + use<> {
    // Boxed as in `outbound`.
    let entered = enter(&pod, other, request, respond)
        .map(|Entered { place, flow, body, respond }| (place, Box::pin(come_in(pod.clone(), flow, body, respond))));
    async move {
        let Some((_place, coming)) = entered else { return };
        let Some((served, facts)) = coming.await else { return };
        tokio::select! {
            () = served.run(pod.clone()) => {}
            () = authorize::forbidden(&pod, &facts) => {}
        }
    }
}

/// A request for a connection that may be asked for.
struct Entered {
    place: Place,
    flow: Flow,
    body: RecvStream,
    respond: SendResponse<Bytes>,
}

/// Who asks, and for what. `None`: it was refused.
fn enter(
    pod: &Pod,
    Other { remote, peer, said }: &Other,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> Option<Entered> {
    let Some(place) = pod.admit() else {
        refuse(respond, StatusCode::SERVICE_UNAVAILABLE);
        return None;
    };
    let (head, body) = request.into_parts();
    let wanted = match judge(&head, *remote, |to| pod.serves(to)) {
        Ok(wanted) => wanted,
        Err(status) => {
            tracing::info!(workload = pod.name, peer = %peer.identity, uri = %head.uri, %status, "CONNECT refused");
            refuse(respond, status);
            return None;
        }
    };
    let mut flow = Flow::new(Side::Inbound, wanted.client, wanted.destination);
    flow.source = Some(said.peer(baggage(&head.headers), |said| source(said, peer)));
    flow.identity = Some(peer.identity.clone());
    Some(Entered { place, flow, body, respond })
}

/// Policies, application, chain. `None`: it was refused.
async fn come_in(
    pod: Rc<Pod>,
    flow: Flow,
    body: RecvStream,
    respond: SendResponse<Bytes>,
) -> Option<(Served, Box<Facts>)> {
    let facts = Box::new(Facts::of(&flow));
    if let Err(denial) = authorize::admit(&pod, &facts).await {
        authorize::refused(&pod, &flow, &denial);
        refuse(respond, denied(&denial));
        return None;
    }
    let served = tokio::select! {
        served = dial_and_lead(&pod, flow, body, respond) => served,
        () = authorize::forbidden(&pod, &facts) => None,
    };
    served.map(|served| (served, facts))
}

async fn dial_and_lead(pod: &Pod, flow: Flow, body: RecvStream, mut respond: SendResponse<Bytes>) -> Option<Served> {
    let Some(snapshot) = pod.config().await else {
        tracing::warn!(workload = pod.name, peer = ?flow.identity, "no configuration yet: CONNECT refused");
        refuse(respond, StatusCode::SERVICE_UNAVAILABLE);
        return None;
    };
    let app = match pod.dial_app(&flow).await {
        Ok(app) => app,
        Err(error) => {
            tracing::debug!(workload = pod.name, %error, "the application does not answer");
            refuse(respond, status(&error));
            return None;
        }
    };
    let send = respond.send_response(accepted(pod), false).ok()?;
    let stream = Stream::tunnel(TunnelStream::new(send, body, None), pod.metrics.bytes());
    inbound::lead(pod, flow, &snapshot, Peeked::new(stream), app).await
}

/// As ztunnel answers: 401 for what a policy refuses. What cannot be judged yet may be tried again.
pub(super) fn denied(denial: &Denial) -> StatusCode {
    match denial {
        Denial::Forbidden(..) | Denial::NotAllowed => StatusCode::UNAUTHORIZED,
        Denial::Unknown(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn refuse(mut respond: SendResponse<Bytes>, status: StatusCode) {
    let mut refusal = Response::new(());
    *refusal.status_mut() = status;
    // The peer may have given up already.
    let _ = respond.send_response(refusal, true);
}

/// What a good CONNECT asks for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    destination: SocketAddr,
    client: SocketAddr,
}

/// Whether a request may be served; if not, with which status it is refused.
fn judge(
    head: &http::request::Parts,
    remote: SocketAddr,
    serves: impl Fn(SocketAddr) -> bool,
) -> Result<Wanted, StatusCode> {
    if head.method != Method::CONNECT {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let authority = head.uri.authority().ok_or(StatusCode::BAD_REQUEST)?;
    let destination: SocketAddr = authority.as_str().parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    if destination.port() == 0 {
        return Err(StatusCode::BAD_REQUEST);
    }
    if !serves(destination) {
        return Err(StatusCode::NOT_FOUND);
    }
    Ok(Wanted { destination, client: client(&head.headers, remote) })
}

/// The application's socket at the other end. Its port is the other agent's word. So would be its address, were it not
/// the tunnel's own: another one is not believed.
fn client(headers: &HeaderMap, remote: SocketAddr) -> SocketAddr {
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let said = headers.get(FORWARDED).and_then(|value| forwarded_for(value.to_str().ok()?));
    said.map_or(remote, |said| SocketAddr::new(remote.ip(), said.port()))
}

/// `for="192.0.2.1:4711"` of the first element (RFC 7239).
fn forwarded_for(header: &str) -> Option<SocketAddr> {
    let first = header.split(',').next()?;
    first.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then(|| value.trim_matches('"').parse().ok()).flatten()
    })
}

/// What a client's agent says of it; empty if it says nothing.
fn baggage(headers: &HeaderMap) -> &str {
    headers.get(&BAGGAGE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The client as metrics show it: its own words, except for what its certificate proves.
fn source(said: &str, peer: &PeerCertificate) -> Peer {
    let mut source = Peer::from_baggage(said).with_principal(peer.identity.as_str());
    source.namespace = peer.identity.namespace().into();
    source
}

fn accepted(pod: &Pod) -> Response<()> {
    let mut response = Response::new(());
    if let Ok(value) = HeaderValue::try_from(pod.peer.to_baggage()) {
        response.headers_mut().insert(&BAGGAGE, value);
    }
    response
}

pub(super) fn status(error: &UpstreamError) -> StatusCode {
    match error {
        UpstreamError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
