//! The client against a server in memory, with the clock under the test's hand.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::{AggregatedConfigSource, ConfigSource, Node};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use hyper_util::rt::TokioIo;
use mesh_core::resource::{CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, Rejection};
use mesh_core::store::Store;
use prost::Message;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service;
use tonic::transport::{Endpoint, Server, Uri};
use tonic::{Request, Response, Status, Streaming};

use super::protocol::reasons;
use super::*;

/// Connects through memory; the other ends go to whoever serves.
#[derive(Clone)]
struct Wire(mpsc::Sender<DuplexStream>);

impl Service<Uri> for Wire {
    type Response = TokioIo<DuplexStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let servers = self.0.clone();
        Box::pin(async move {
            let (client, server) = tokio::io::duplex(1 << 16);
            servers.send(server).await.map_err(|_| std::io::Error::other("nobody serves"))?;
            Ok(TokioIo::new(client))
        })
    }
}

/// Gives each stream that is opened to the test, which plays the server by hand.
struct Ads(mpsc::Sender<ServerStream>);

struct ServerStream {
    authorization: Option<String>,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = tokio_stream::Pending<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(16);
        let authorization =
            request.metadata().get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let stream = ServerStream { authorization, requests: request.into_inner(), responses };
        self.0.send(stream).await.map_err(|_| Status::unavailable("test is over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl ServerStream {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        // On the paused clock this is at once when nothing else can happen.
        let request = tokio::time::timeout(Duration::from_secs(60), self.requests.next()).await;
        request.expect("a request in time").expect("a request").expect("a good request")
    }

    async fn respond(&self, type_url: &str, nonce: &str, resources: Vec<Resource>, removed: &[&str]) {
        let response = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: nonce.into(),
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
    }

    /// The opening: clusters and listeners, as wildcards.
    async fn opening(&mut self) -> DeltaDiscoveryRequest {
        let clusters = self.request().await;
        assert_eq!(clusters.type_url, CLUSTER_TYPE);
        assert_eq!(self.request().await.type_url, LISTENER_TYPE);
        clusters
    }
}

struct Harness {
    streams: mpsc::Receiver<ServerStream>,
    status: StatusCell,
    changes: watch::Receiver<usize>,
    client: Arc<Client>,
    _task: tokio::task::JoinHandle<Infallible>,
}

fn start() -> Harness {
    let (connections, incoming) = mpsc::channel(1);
    let (opened, streams) = mpsc::channel(1);
    let server = Server::builder()
        .add_service(AggregatedDiscoveryServiceServer::new(Ads(opened)))
        .serve_with_incoming(ReceiverStream::new(incoming).map(Ok::<_, Infallible>));
    tokio::spawn(server);
    start_over(connections, streams)
}

fn start_over(connections: mpsc::Sender<DuplexStream>, streams: mpsc::Receiver<ServerStream>) -> Harness {
    let channel = Endpoint::from_static("http://memory").connect_with_connector_lazy(Wire(connections));
    let client = Arc::new(Client::new(Arc::new(ControlPlaneChannel::with_channel(channel))));
    let (changed, changes) = watch::channel(0);
    let (status, running) = (StatusCell::default(), client.clone());
    let seen = status.clone();
    let task = tokio::spawn(async move {
        let node = Node { id: "sidecar~10.0.0.1~a.default~default.svc.cluster.local".into(), ..Node::default() };
        let mut store = Store::new();
        let count = |_: &mut Store| changed.send_modify(|n| *n += 1);
        running.run(node, &mut store, &seen, count, || 1.0).await;
        unreachable!()
    });
    Harness { streams, status, changes, client, _task: task }
}

fn resource(name: &str, version: &str, type_url: &str, message: impl Message) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any { type_url: type_url.into(), value: message.encode_to_vec() }),
        ..Resource::default()
    }
}

fn cluster(name: &str, version: &str) -> Resource {
    let message = Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
                ..ConfigSource::default()
            }),
            service_name: name.into(),
        }),
        ..Cluster::default()
    };
    resource(name, version, CLUSTER_TYPE, message)
}

fn endpoints(name: &str, version: &str) -> Resource {
    let message = ClusterLoadAssignment { cluster_name: name.into(), ..ClusterLoadAssignment::default() };
    resource(name, version, ENDPOINT_TYPE, message)
}

const A: &str = "outbound|80||a.default.svc.cluster.local";
const B: &str = "outbound|80||b.default.svc.cluster.local";

#[tokio::test(start_paused = true)]
async fn acknowledges_and_subscribes_apart() {
    let mut harness = start();
    let mut stream = harness.streams.recv().await.unwrap();
    let first = stream.opening().await;
    assert!(first.node.is_some_and(|node| node.id.starts_with("sidecar~10.0.0.1~a.default~")));
    assert!(first.resource_names_subscribe.is_empty() && first.initial_resource_versions.is_empty());
    assert_eq!(stream.authorization, None);

    stream.respond(CLUSTER_TYPE, "n1", vec![cluster(A, "1"), cluster(B, "1")], &[]).await;
    let ack = stream.request().await;
    assert_eq!((ack.type_url.as_str(), ack.response_nonce.as_str()), (CLUSTER_TYPE, "n1"));
    assert!(ack.error_detail.is_none() && ack.resource_names_subscribe.is_empty() && ack.node.is_none());
    let subscribe = stream.request().await;
    assert_eq!((subscribe.type_url.as_str(), subscribe.response_nonce.as_str()), (ENDPOINT_TYPE, ""));
    assert_eq!(subscribe.resource_names_subscribe, [A, B]);

    stream.respond(ENDPOINT_TYPE, "n2", vec![endpoints(A, "1"), endpoints(B, "1")], &[]).await;
    assert_eq!(stream.request().await.response_nonce, "n2");

    // A cluster that goes takes its subscription with it.
    stream.respond(CLUSTER_TYPE, "n3", vec![], &[A]).await;
    assert_eq!(stream.request().await.response_nonce, "n3");
    let unsubscribe = stream.request().await;
    assert_eq!(unsubscribe.resource_names_unsubscribe, [A]);
    assert!(unsubscribe.resource_names_subscribe.is_empty());

    assert_eq!(*harness.changes.wait_for(|n| *n == 3).await.unwrap(), 3);
    let status = harness.status.get();
    assert_eq!((status.state, status.responses, status.nacks), (State::Connected, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn refuses_by_name_and_takes_the_rest() {
    let mut harness = start();
    let mut stream = harness.streams.recv().await.unwrap();
    stream.opening().await;
    let broken = Resource {
        name: B.into(),
        version: "1".into(),
        resource: Some(Any { type_url: CLUSTER_TYPE.into(), value: vec![0xff, 0xff] }),
        ..Resource::default()
    };
    let strange = resource("x", "1", ENDPOINT_TYPE, ClusterLoadAssignment::default());
    let empty = Resource { name: "y".into(), ..Resource::default() };
    stream.respond(CLUSTER_TYPE, "n1", vec![cluster(A, "1"), broken, strange, empty], &[]).await;
    let nack = stream.request().await;
    assert_eq!((nack.type_url.as_str(), nack.response_nonce.as_str()), (CLUSTER_TYPE, "n1"));
    let message = nack.error_detail.expect("a NACK").message;
    for part in [&format!("{B}: "), "x: resource: is a type.googleapis.com/", "y: resource: is empty"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(!message.contains(A), "{message}");
    assert_eq!(stream.request().await.resource_names_subscribe, [A]);

    // What nobody asked for is refused, and the stream goes on.
    stream
        .respond(
            "type.googleapis.com/x.Y",
            "n2",
            vec![resource("z", "1", "type.googleapis.com/x.Y", ClusterLoadAssignment::default())],
            &[],
        )
        .await;
    let nack = stream.request().await;
    assert_eq!(nack.response_nonce, "n2");
    assert!(nack.error_detail.is_some());
    harness.changes.wait_for(|n| *n == 2).await.unwrap();
    let status = harness.status.get();
    assert_eq!((status.responses, status.nacks), (2, 2));
    assert!(status.last_nack.is_some());
}

#[tokio::test(start_paused = true)]
async fn comes_back_at_once_and_tells_what_it_has() {
    let mut harness = start();
    let mut stream = harness.streams.recv().await.unwrap();
    stream.opening().await;
    stream.respond(CLUSTER_TYPE, "n1", vec![cluster(A, "7")], &[]).await;
    stream.request().await;
    stream.request().await;
    stream.respond(ENDPOINT_TYPE, "n2", vec![endpoints(A, "3")], &[]).await;
    stream.request().await;

    let closed = Instant::now();
    drop(stream);
    let mut stream = harness.streams.recv().await.unwrap();
    assert!(closed.elapsed() < Duration::from_millis(10), "{:?}", closed.elapsed());
    let clusters = stream.request().await;
    assert!(clusters.node.is_some());
    assert_eq!(clusters.initial_resource_versions, [(A.to_owned(), "7".to_owned())].into());
    let endpoints = stream.request().await;
    assert_eq!(endpoints.type_url, ENDPOINT_TYPE);
    assert_eq!(endpoints.resource_names_subscribe, [A]);
    assert_eq!(endpoints.initial_resource_versions, [(A.to_owned(), "3".to_owned())].into());
    assert_eq!(stream.request().await.type_url, LISTENER_TYPE);
}

/// A server that takes the connection and says nothing.
#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up() {
    let (connections, mut incoming) = mpsc::channel(1);
    let harness = start_over(connections, mpsc::channel(1).1);
    let _silent = incoming.recv().await.unwrap();
    let begun = Instant::now();
    while harness.status.get().state != State::Disconnected || harness.status.get().last_error.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "still waiting");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Not before: a server may have much to do.
    assert!(begun.elapsed() >= Duration::from_secs(29), "{:?}", harness.status.get());
}

#[tokio::test(start_paused = true)]
async fn a_failing_server_is_tried_ever_more_slowly() {
    let mut harness = start();
    let mut opened = Vec::new();
    for _ in 0..14 {
        let stream = harness.streams.recv().await.unwrap();
        opened.push(Instant::now());
        stream.responses.send(Err(Status::permission_denied("who are you"))).await.unwrap();
    }
    let pauses: Vec<_> = opened.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    let expected = [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000];
    for (pause, expected) in pauses.iter().zip(expected) {
        // The clock of the runtime has steps of a millisecond.
        assert!((expected..expected + 5).contains(pause), "{pauses:?}");
    }
    let error = loop {
        match harness.status.get().last_error {
            Some(error) => break error,
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    assert!(error.contains("who are you"), "{error}");
    let mut page = crate::telemetry::Text::default();
    harness.client.counters().write(&mut page);
    assert!(page.finish().contains("\nmesh_agent_xds_failures_total 14\n"));

    // One good answer, and the pauses begin anew.
    let mut stream = harness.streams.recv().await.unwrap();
    stream.opening().await;
    stream.respond(CLUSTER_TYPE, "n1", vec![], &[]).await;
    stream.request().await;
    stream.responses.send(Err(Status::resource_exhausted("oh"))).await.unwrap();
    let failed = Instant::now();
    harness.streams.recv().await.unwrap();
    assert!(failed.elapsed() < Duration::from_millis(15), "{:?}", failed.elapsed());
}

#[test]
fn a_nack_has_a_bounded_length() {
    let rejection = |name: String| Rejection { name, path: "a.b".into(), why: "no".into() };
    assert_eq!(reasons(&[rejection("x".into()), rejection("y".into())]), "x: a.b: no; y: a.b: no");
    let many: Vec<_> = (0..10_000).map(|i| rejection(format!("cluster-{i}"))).collect();
    let text = reasons(&many);
    assert!(text.len() < 4200, "{}", text.len());
    assert!(text.ends_with(" more"), "{text}");
    let long = [rejection("é".repeat(5000)), rejection("y".into())];
    assert!(reasons(&long).ends_with("; and 1 more"));
}
