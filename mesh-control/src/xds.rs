//! The xDS server: aggregated discovery in the delta protocol, one stream per workload and one per node.
//!
//! In: streams of authenticated nodes and the configuration in force. Out: to each stream what changed for its
//! workload, clusters before endpoints before listeners before routes; for a node the whole mesh's policies before its
//! workloads and services. A workload's stream is only for one that runs on the node which opened it. The state-of-the-world protocol is refused.

mod node_id;
mod session;
mod stream;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::NodeAuth;
use crate::metrics::Metrics;
use crate::resource::Published;

/// Streams open at once; one more is refused and comes back later.
const MAX_STREAMS: usize = 20_000;
/// Responses that wait for a slow client; a push waits when they are this many, and then sends the newest state.
const QUEUE: usize = 4;
/// Largest request in bytes: names of all subscribed resources.
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// Serves aggregated discovery.
pub struct Xds {
    auth: NodeAuth,
    published: watch::Receiver<Arc<Published>>,
    metrics: Metrics,
    streams: Arc<Semaphore>,
}

impl Xds {
    /// `published` is the configuration in force.
    pub fn new(auth: NodeAuth, published: watch::Receiver<Arc<Published>>, metrics: Metrics) -> Xds {
        Xds { auth, published, metrics, streams: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }

    /// The service with its message bound, to mount on a server.
    pub fn into_server(self) -> AggregatedDiscoveryServiceServer<Xds> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Xds {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only the delta protocol is served: use DeltaAggregatedResources"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
        let refuse = |status: Status| {
            self.metrics.stream_refused();
            tracing::warn!(%peer, reason = status.message(), "xDS stream refused");
            status
        };
        let node = self.auth.node(request.metadata()).map_err(refuse)?;
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| {
            refuse(Status::resource_exhausted(format!("{MAX_STREAMS} streams are open; come back later")))
        })?;
        let (responses, queue) = mpsc::channel(QUEUE);
        let stream = stream::Task {
            node,
            peer,
            requests: request.into_inner(),
            responses,
            published: self.published.clone(),
            metrics: self.metrics.clone(),
        };
        tokio::spawn(async move {
            stream.run().await;
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }
}
