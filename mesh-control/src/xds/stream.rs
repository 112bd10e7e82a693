//! The task of one stream. In: requests, and every new configuration. Out: responses, in push order. Ends with the
//! client, with the server, or when its workload no longer runs on the node that opened it. (A node's own stays.)

use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use super::node_id;
use super::session::{Event, Session};
use crate::metrics::Metrics;
use crate::resource::{Kind, Proxy, Published};

/// Longest part of a client's reason that is logged, in characters.
const MAX_REASON: usize = 2000;

pub(super) struct Task {
    pub node: Arc<str>,
    pub peer: String,
    pub requests: Streaming<DeltaDiscoveryRequest>,
    pub responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    pub published: watch::Receiver<Arc<Published>>,
    pub metrics: Metrics,
}

/// The stream is over.
struct Over;

impl Task {
    pub async fn run(mut self) {
        let first = match self.requests.message().await {
            Ok(Some(first)) => first,
            Ok(None) | Err(_) => return,
        };
        let proxy = match self.admit(&first) {
            Ok(proxy) => proxy,
            Err(status) => {
                self.metrics.stream_refused();
                tracing::warn!(node = %self.node, peer = %self.peer, reason = status.message(), "xDS stream refused");
                // A client that has gone need not know.
                let _ = self.responses.send(Err(status)).await;
                return;
            }
        };
        self.metrics.proxy_connected();
        tracing::info!(node = %self.node, %proxy, "xDS stream opened");
        let mut session = Session::default();
        if self.take(&mut session, &proxy, &first).await.is_ok() {
            while self.step(&mut session, &proxy).await.is_ok() {}
        }
        self.metrics.proxy_gone();
        tracing::info!(node = %self.node, %proxy, "xDS stream closed");
    }

    /// Whom the stream is for, if the node that opened it may speak for that.
    fn admit(&self, first: &DeltaDiscoveryRequest) -> Result<Proxy, Status> {
        let id = first.node.as_ref().map_or("", |node| node.id.as_str());
        if id.is_empty() {
            return Err(Status::invalid_argument("the first request of a stream must carry node.id"));
        }
        let proxy = node_id::parse(id).map_err(Status::invalid_argument)?;
        self.still_here(&proxy)?;
        Ok(proxy)
    }

    fn still_here(&self, proxy: &Proxy) -> Result<(), Status> {
        let (namespace, name) = match proxy {
            // Its token has told which one it is.
            Proxy::Node => return Ok(()),
            Proxy::Workload { namespace, name } => (namespace, name),
        };
        let published = self.published.borrow();
        match published.directory.resident(namespace, name) {
            Some(resident) if resident.node == self.node => Ok(()),
            // Where else it runs is nobody's business.
            Some(_) | None => Err(Status::permission_denied(format!(
                "node `{}` runs no workload `{name}` in namespace `{namespace}`",
                self.node
            ))),
        }
    }

    /// Waits for the next thing to do and does it.
    async fn step(&mut self, session: &mut Session, proxy: &Proxy) -> Result<(), Over> {
        tokio::select! {
            request = self.requests.message() => match request {
                Ok(Some(request)) => self.take(session, proxy, &request).await,
                Ok(None) | Err(_) => Err(Over),
            },
            changed = self.published.changed() => {
                changed.map_err(|_| Over)?;
                if let Err(status) = self.still_here(proxy) {
                    tracing::info!(node = %self.node, %proxy, "the workload is gone; its xDS stream ends");
                    let _ = self.responses.send(Err(status)).await;
                    return Err(Over);
                }
                for kind in Kind::ALL {
                    self.push(session, proxy, kind).await?;
                }
                Ok(())
            }
        }
    }

    async fn take(
        &mut self,
        session: &mut Session,
        proxy: &Proxy,
        request: &DeltaDiscoveryRequest,
    ) -> Result<(), Over> {
        match session.request(request) {
            Ok(Event::Subscription(kind) | Event::Ack(kind)) => self.push(session, proxy, kind).await,
            Ok(Event::Nack(kind, reason)) => {
                self.metrics.nack(kind.index());
                let reason: String = reason.chars().take(MAX_REASON).collect();
                tracing::warn!(node = %self.node, %proxy, ?kind, %reason, "the agent refused configuration");
                self.push(session, proxy, kind).await
            }
            Ok(Event::Ignored) => Ok(()),
            Err(why) => {
                let _ = self.responses.send(Err(Status::resource_exhausted(why))).await;
                Err(Over)
            }
        }
    }

    /// Sends what the client lacks of a kind, unless it still has to answer the last response.
    async fn push(&mut self, session: &mut Session, proxy: &Proxy, kind: Kind) -> Result<(), Over> {
        if !session.ready(kind) {
            return Ok(());
        }
        let published = self.published.borrow().clone();
        let resources = (published.resources)(proxy, kind);
        let Some(response) = session.respond(kind, &resources) else { return Ok(()) };
        self.metrics.push(kind.index(), response.resources.len() + response.removed_resources.len());
        self.responses.send(Ok(response)).await.map_err(|_| Over)
    }
}
