//! Runs one ADS stream: opens it, keeps the store up to date, opens it again. In: the channel, a store. Out:
//! a call after every change of the store. Ends only when it is dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_core::store::{Shared, Store};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};

use super::backoff::Backoff;
use super::channel::{ChannelError, ControlPlaneChannel};
use super::kept::Kept;
use super::protocol::{self, Protocol};
use super::status::{Counters, State, StatusCell};

/// Largest response accepted, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 200 << 20;
/// Requests waiting to be sent; a response causes at most three.
const REQUESTS: usize = 16;

/// Time for connecting and for the first sign of the server; Istio's sends its first one with the first response.
const FIRST_ANSWER: Duration = Duration::from_secs(30);
/// A stream that lasted this long was a good one, even if there was nothing to say on it.
const HEALTHY: Duration = Duration::from_secs(15);

/// What all streams of a node share.
pub struct Client {
    channel: Arc<ControlPlaneChannel>,
    counters: Arc<Counters>,
    shared: Shared,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("{address}: {}", reason(.status))]
    Status { address: String, status: Box<tonic::Status> },
    #[error("the control plane closed the stream")]
    Closed,
}

impl Client {
    /// A client over `channel`.
    pub fn new(channel: Arc<ControlPlaneChannel>) -> Client {
        Client { channel, counters: Arc::default(), shared: Shared::new() }
    }

    /// An empty store for one stream. What its resources have in common with other streams' is held once.
    pub fn store(&self) -> Store {
        Store::sharing(self.shared.clone())
    }

    /// The figures of all streams.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Keeps `store` up to date for ever. `changed` is called after every response that was applied. `random` gives
    /// numbers in 0..1 for jitter.
    pub async fn run<S: Kept>(
        &self,
        node: Node,
        store: &mut S,
        status: &StatusCell,
        mut changed: impl FnMut(&mut S),
        mut random: impl FnMut() -> f64,
    ) {
        let mut backoff = Backoff::default();
        let mut last_reason = String::new();
        loop {
            let mut received = false;
            let begun = Instant::now();
            let error = match self.stream(&node, store, status, &mut changed, &mut received).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let healthy = received || begun.elapsed() >= HEALTHY;
            if healthy {
                backoff.reset();
                last_reason.clear();
            }
            // A server that closes in good order (a restart, its connections' age) is there again at once.
            let delay = match error {
                StreamError::Closed if healthy => Duration::ZERO,
                _ => backoff.next(random()),
            };
            let reason = error.to_string();
            // Said once, not at every attempt.
            if reason == last_reason {
                tracing::debug!(node = node.id, reason, ?delay, "no configuration stream");
            } else {
                tracing::warn!(node = node.id, reason, ?delay, "no configuration stream");
            }
            if !matches!(error, StreamError::Closed) {
                self.counters.failures.fetch_add(1, Relaxed);
            }
            last_reason.clone_from(&reason);
            status.update(|status| {
                status.state = State::Disconnected;
                status.last_error = Some(reason);
            });
            tokio::time::sleep(delay).await;
        }
    }

    async fn stream<S: Kept>(
        &self,
        node: &Node,
        store: &mut S,
        status: &StatusCell,
        changed: &mut impl FnMut(&mut S),
        received: &mut bool,
    ) -> Result<std::convert::Infallible, StreamError> {
        let (channel, generation) = self.channel.get()?;
        let (mut protocol, opening) = Protocol::open(node.clone(), store);
        let (requests, receiver) = mpsc::channel(REQUESTS);
        // Before the call: a server may answer its headers only with the first response.
        send(&requests, opening).await?;
        let mut request = Request::new(ReceiverStream::new(receiver));
        self.channel.authenticate(request.metadata_mut())?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let lost = |status: tonic::Status| {
            // What the server refuses to this one stream says nothing of the channel.
            if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled) {
                self.channel.lost(generation);
            }
            StreamError::Status { address: self.channel.address().to_owned(), status: Box::new(status) }
        };
        // tonic limits the time for TCP but not for TLS: a server that is stuck there would hold the stream for ever.
        let answer = match tokio::time::timeout(FIRST_ANSWER, client.delta_aggregated_resources(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(tonic::Status::unavailable(format!("no answer in {} s", FIRST_ANSWER.as_secs()))),
        };
        let mut responses = answer.map_err(lost)?.into_inner();
        let _open = Open::new(&self.counters);
        tracing::info!(node = node.id, address = self.channel.address(), "configuration stream is open");
        status.update(|status| {
            status.state = State::Connected;
            status.last_error = None;
        });
        while let Some(response) = responses.message().await.map_err(lost)? {
            *received = true;
            self.counters.responses.fetch_add(1, Relaxed);
            tracing::debug!(
                node = node.id,
                type_url = response.type_url,
                resources = response.resources.len(),
                removed = response.removed_resources.len(),
                "configuration received"
            );
            let handled = protocol.respond(response, store);
            // In force before it is acknowledged.
            changed(store);
            let nack = (!handled.refused.is_empty()).then(|| protocol::reasons(&handled.refused));
            if let Some(reasons) = &nack {
                self.counters.nacks.fetch_add(1, Relaxed);
                self.counters.refused.fetch_add(handled.refused.len() as u64, Relaxed);
                tracing::warn!(node = node.id, reasons, "configuration refused");
            }
            status.update(|status| {
                status.last_response = Some(SystemTime::now());
                status.responses += 1;
                if nack.is_some() {
                    status.nacks += 1;
                    status.last_nack = nack;
                }
            });
            send(&requests, [handled.reply]).await?;
            send(&requests, protocol.resubscribe(store.wanted())).await?;
        }
        Err(StreamError::Closed)
    }
}

async fn send(
    requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    batch: impl IntoIterator<Item = DeltaDiscoveryRequest>,
) -> Result<(), StreamError> {
    for request in batch {
        requests.send(request).await.map_err(|_| StreamError::Closed)?;
    }
    Ok(())
}

/// What the server said, or what became of the connection: tonic hides the latter in the sources.
fn reason(status: &tonic::Status) -> String {
    let mut text = format!("{}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// Counts an open stream while it lives.
struct Open<'a>(&'a Counters);

impl<'a> Open<'a> {
    fn new(counters: &'a Counters) -> Open<'a> {
        counters.streams.fetch_add(1, Relaxed);
        Open(counters)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}
