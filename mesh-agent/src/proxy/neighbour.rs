//! From one workload of this node to another, with both halves of the connection in this process: no TLS, and no way over the
//! wire.
//!
//! In: a client of one workload, an endpoint that is the other one. Out: a connection to it, led by the same policies, chains
//! and reports on both sides as through a tunnel. Who the client is the kernel has said, by its namespace; who the server
//! is, the agent knows itself. Never: lets in whom a tunnel would not.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::timeout;

use super::authorize::{self, Facts};
use super::budget::Place;
use super::chosen::{Flow, Side};
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
    let Some(place) = server.admit() else {
        return Err(UpstreamError::Overflow { to, what: "connections to a workload of this node" });
    };
    let (name, identity) = (client.as_peer(), client.identity.clone());
    let mut theirs = Flow::new(Side::Inbound, client.as_seen(flow.client, to), to);
    theirs.source = Some(Arc::new(name));
    theirs.identity = Some(identity);
    let enter = enter(&server, theirs);
    let entered = timeout(limit, Box::pin(enter)).await;
    let entered = entered.map_err(|_| UpstreamError::Timeout { to, stage: "neighbour" })?;
    let Entered { flow, facts, snapshot, app } =
        entered.map_err(|status| UpstreamError::Refused { to, status: status.as_u16() })?;
    let (near, far) = Pipe::new();
    let far = Stream::neighbour(far, server.metrics.bytes());
    let (identity, peer) = (server.identity.clone(), server.as_peer());
    let held: (Place, _) = (place, server.shutdown.guard());
    tokio::task::spawn_local(async move {
        let _held = held;
        let serving = async {
            if let Some(served) = Box::pin(inbound::lead(&server, flow, &snapshot, Peeked::new(far), app)).await {
                served.run(server.clone()).await;
            }
        };
        tokio::select! {
            () = serving => {}
            () = authorize::forbidden(&server, &facts) => {}
            () = server.ended.cancelled() => {}
        }
    });
    let stream = Stream::neighbour(near, client.metrics.bytes());
    Ok(Connected { stream, local: None, remote: to, identity: Some(identity), peer: Some(peer) })
}

/// A client that may come in, and its connection to the application.
struct Entered {
    flow: Flow,
    facts: Facts,
    snapshot: Arc<mesh_core::Snapshot>,
    app: Connected,
}

/// What a tunnel's server does before it answers; the error is its answer.
async fn enter(server: &Pod, flow: Flow) -> Result<Entered, StatusCode> {
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
        Ok(app) => Ok(Entered { flow, facts, snapshot, app }),
        Err(error) => {
            tracing::debug!(workload = server.name, %error, "the application does not answer");
            Err(tunnel::status(&error))
        }
    }
}
