//! From one workload of this node to another, with both halves of the connection in this process: no TLS, and no way over the
//! wire.
//!
//! In: a client of one workload, an endpoint that is the other one. Out: for HTTP the server's half as it is, for [`http`] to lead
//! requests through both; otherwise a connection to it. Both are led by the same policies, chains and reports on both sides as
//! through a tunnel. Who the client is the kernel has said, by its namespace; who the server is, the agent knows itself. Never:
//! lets in whom a tunnel would not.
//!
//! [`http`]: super::http

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::StatusCode;
use mesh_core::Snapshot;
use mesh_core::detect::Detect;
use mesh_core::resource::listener::{Codec, Detection, Terminal};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::authorize::{self, Facts};
use super::budget::Place;
use super::chosen::{Chosen, Flow, Side};
use super::pod::Pod;
use super::{inbound, tunnel};
use crate::net::peek::Peeked;
use crate::upstream::pipe::Pipe;
use crate::upstream::stream::Stream;
use crate::upstream::{Connected, UpstreamError};

/// Connects `client` to the application of `server` at `to`, for the application whose connection `flow` is.
pub(super) async fn connect(
    client: &Pod,
    server: Rc<Pod>,
    to: SocketAddr,
    flow: &Flow,
    limit: Duration,
) -> Result<Connected, UpstreamError> {
    let Entered { flow, facts, snapshot, app, place } = enter(client, &server, to, flow, limit).await?;
    let (near, far) = Pipe::new();
    let far = Stream::neighbour(far, server.metrics.bytes());
    let (identity, peer) = (server.identity.clone(), server.as_peer.clone());
    let held = (place, server.shutdown.guard());
    let pod = server.clone();
    let leading = Box::pin(async move { inbound::lead(&pod, flow, &snapshot, Peeked::new(far), app).await });
    let serving = async move {
        let running = async {
            if let Some(served) = leading.await {
                served.run(server.clone()).await;
            }
        };
        tokio::select! {
            () = running => {}
            () = forbidden(&server, &facts) => {}
        }
    };
    tokio::task::spawn_local(serving.map(move |()| drop(held)));
    let stream = Stream::neighbour(near, client.metrics.bytes());
    Ok(Connected { stream, local: None, remote: to, identity: Some(identity), peer: Some(peer) })
}

/// The server's half of a connection whose bytes nobody has to see, because both halves know them already.
pub(super) struct Visit {
    pub(super) server: Rc<Pod>,
    pub(super) flow: Flow,
    pub(super) chosen: Chosen,
    pub(super) app: Connected,
    /// Cancelled when the client may not be there any more; to be dropped when it has left.
    pub(super) over: DropGuard,
}

/// As [`connect`], for a client's half that speaks HTTP. `None`: the server's half does not, it wants bytes.
pub(super) async fn visit(
    client: &Pod,
    server: Rc<Pod>,
    to: SocketAddr,
    flow: &Flow,
    limit: Duration,
    http2: bool,
) -> Result<Option<Visit>, UpstreamError> {
    let theirs = seen(client, to, flow);
    let Some(chosen) = server.snapshot().and_then(|snapshot| http_chain(&snapshot, &theirs, http2)) else {
        return Ok(None);
    };
    let Entered { flow, facts, app, place, .. } = enter(client, &server, to, flow, limit).await?;
    let over = CancellationToken::new();
    let (held, watched, left) = ((place, server.shutdown.guard()), server.clone(), over.clone());
    tokio::task::spawn_local(async move {
        let _held = held;
        tokio::select! {
            () = forbidden(&watched, &facts) => left.cancel(),
            () = left.cancelled() => {}
        }
    });
    Ok(Some(Visit { server, flow, chosen, app, over: over.drop_guard() }))
}

/// The server's chain for the client's requests, if that is one for HTTP of this version.
fn http_chain(snapshot: &Snapshot, flow: &Flow, http2: bool) -> Option<Chosen> {
    let listener = snapshot.inbound()?;
    let spoken = if http2 { Detect::Http2 } else { Detect::Http1 };
    let detected = match listener.detection(flow.destination, flow.proved()) {
        Detection::NotNeeded => None,
        Detection::Needed => Some(spoken),
    };
    let chosen = Chosen::new(listener, flow, detected.as_ref())?;
    let codec = match chosen.terminal() {
        Some(Terminal::Http(manager)) => manager.codec,
        _ => return None,
    };
    let speaks = match codec {
        Codec::Auto => true,
        Codec::Http1 => !http2,
        Codec::Http2 => http2,
    };
    speaks.then_some(chosen)
}

/// The connection as the server's half sees it.
fn seen(client: &Pod, to: SocketAddr, flow: &Flow) -> Flow {
    let mut theirs = Flow::new(Side::Inbound, client.as_seen(flow.client, to), to);
    theirs.source = Some(client.as_peer.clone());
    theirs.identity = Some(client.identity.clone());
    theirs
}

/// A client that may come in, and its connection to the application.
struct Entered {
    flow: Flow,
    facts: Facts,
    snapshot: Arc<Snapshot>,
    app: Connected,
    place: Place,
}

/// What a tunnel's server does before it answers.
async fn enter(
    client: &Pod,
    server: &Pod,
    to: SocketAddr,
    flow: &Flow,
    limit: Duration,
) -> Result<Entered, UpstreamError> {
    let Some(place) = server.admit() else {
        return Err(UpstreamError::Overflow { to, what: "connections to a workload of this node" });
    };
    let entered = timeout(limit, Box::pin(admit(server, seen(client, to, flow), place))).await;
    let entered = entered.map_err(|_| UpstreamError::Timeout { to, stage: "neighbour" })?;
    entered.map_err(|status| UpstreamError::Refused { to, status: status.as_u16() })
}

/// The error is the answer that a tunnel would get.
async fn admit(server: &Pod, flow: Flow, place: Place) -> Result<Entered, StatusCode> {
    if !server.serves(flow.destination) {
        return Err(StatusCode::NOT_FOUND);
    }
    let facts = Facts::of(&flow);
    if let Err(denial) = authorize::admit(server, &facts).await {
        authorize::refused(server, &flow, &denial);
        return Err(tunnel::denied(&denial));
    }
    let Some(snapshot) = server.config().await else {
        tracing::warn!(workload = server.name, peer = ?flow.identity, "no configuration yet: a workload of this node is refused");
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    };
    match server.dial_app(&flow).await {
        Ok(app) => Ok(Entered { flow, facts, snapshot, app, place }),
        Err(error) => {
            tracing::debug!(workload = server.name, %error, "the application does not answer");
            Err(tunnel::status(&error))
        }
    }
}

/// Resolves when a client may no longer be there.
async fn forbidden(server: &Pod, facts: &Facts) {
    tokio::select! {
        () = authorize::forbidden(server, facts) => {}
        () = server.ended.cancelled() => {}
    }
}
