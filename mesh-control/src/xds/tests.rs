//! The state of a stream as tables, and the server over a real connection with a client of its own making.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc::Status as RpcStatus;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Streaming};

use super::Xds;
use super::session::{Event, Session};
use crate::auth::NodeAuth;
use crate::directory::{Directory, Resident};
use crate::metrics::Metrics;
use crate::resource::{Kind, Offer, Proxy, Published, Resource};
use crate::settings::NodeSettings;

fn resources(kind: Kind, list: &[(&str, &str)]) -> Offer {
    let one = |(name, text): &(&str, &str)| ((*name).into(), Arc::new(Resource::new(kind, text.as_bytes().to_vec())));
    Offer::shared(Arc::new(list.iter().map(one).collect()))
}

fn subscribe(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

fn answer(response: &DeltaDiscoveryResponse, error: Option<&str>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        error_detail: error.map(|message| RpcStatus { message: message.to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|entry| entry.name.as_str()).collect()
}

/// What is a proxy's own counts where others have the name too, and changes without what is shared.
#[test]
fn an_offer_changes_in_either_of_its_parts() {
    let kind = Kind::Listener;
    let shared = resources(kind, &[("a", "1"), ("b", "1")]).shared;
    let offer = |own: &[(&str, &str)]| Offer { shared: shared.clone(), own: resources(kind, own).shared };
    let mut session = Session::default();
    session.request(&subscribe(kind, &[])).unwrap();
    let first = session.respond(kind, &offer(&[("b", "own")])).unwrap();
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first.resources[1].resource.as_ref().unwrap().value, b"own");
    session.request(&answer(&first, None)).unwrap();
    assert_eq!(session.respond(kind, &offer(&[("b", "own")])), None);
    let second = session.respond(kind, &offer(&[("b", "other")])).unwrap();
    assert_eq!(names(&second), ["b"]);
    session.request(&answer(&second, None)).unwrap();
    let third = session.respond(kind, &Offer { shared: resources(kind, &[("a", "2")]).shared, ..offer(&[]) }).unwrap();
    assert_eq!(names(&third), ["a"]);
    assert_eq!(third.removed_resources, ["b"]);
}

#[test]
fn a_wildcard_gets_all_then_only_changes_and_removals() {
    let mut session = Session::default();
    let kind = Kind::Cluster;
    assert!(!session.ready(kind));
    assert_eq!(session.request(&subscribe(kind, &[])).unwrap(), Event::Subscription(kind));
    let first = session.respond(kind, &resources(kind, &[("a", "1"), ("b", "1")])).unwrap();
    assert_eq!(names(&first), ["a", "b"]);
    assert!(!session.ready(kind), "one unanswered response at a time");
    assert_eq!(session.request(&answer(&first, None)).unwrap(), Event::Ack(kind));
    assert!(session.ready(kind));
    assert_eq!(session.respond(kind, &resources(kind, &[("a", "1"), ("b", "1")])), None);
    let second = session.respond(kind, &resources(kind, &[("b", "2")])).unwrap();
    assert_eq!((names(&second), second.removed_resources.clone()), (vec!["b"], vec!["a".to_owned()]));
}

#[test]
fn names_get_what_they_name_and_an_empty_resource_for_what_is_not_there() {
    let mut session = Session::default();
    let kind = Kind::Endpoint;
    session.request(&subscribe(kind, &["a", "gone"])).unwrap();
    let all = resources(kind, &[("a", "1"), ("other", "1")]);
    let first = session.respond(kind, &all).unwrap();
    assert_eq!(names(&first), ["a", "gone"]);
    session.request(&answer(&first, None)).unwrap();
    // A name more, one less: only the new one is sent, and nothing is said of the dropped one.
    let mut change = subscribe(kind, &["other"]);
    change.resource_names_unsubscribe = vec!["a".to_owned()];
    session.request(&change).unwrap();
    let second = session.respond(kind, &all).unwrap();
    assert_eq!((names(&second), second.removed_resources.len()), (vec!["other"], 0));
    session.request(&answer(&second, None)).unwrap();
    // Asked for again, it is sent again.
    session.request(&subscribe(kind, &["other"])).unwrap();
    assert_eq!(names(&session.respond(kind, &all).unwrap()), ["other"]);
}

#[test]
fn a_refusal_is_reported_and_the_same_is_not_sent_again() {
    let mut session = Session::default();
    let kind = Kind::Listener;
    let all = resources(kind, &[("bad", "1")]);
    session.request(&subscribe(kind, &[])).unwrap();
    let first = session.respond(kind, &all).unwrap();
    assert_eq!(
        session.request(&answer(&first, Some("bad: path: why"))).unwrap(),
        Event::Nack(kind, "bad: path: why".to_owned())
    );
    assert_eq!(session.respond(kind, &all), None);
    assert!(session.respond(kind, &resources(kind, &[("bad", "2")])).is_some());
}

#[test]
fn stale_answers_and_unknown_kinds_are_ignored() {
    let mut session = Session::default();
    let kind = Kind::Route;
    session.request(&subscribe(kind, &["9080"])).unwrap();
    let first = session.respond(kind, &resources(kind, &[])).unwrap();
    let mut stale = answer(&first, None);
    stale.response_nonce = "77".to_owned();
    assert_eq!(session.request(&stale).unwrap(), Event::Ignored);
    assert!(!session.ready(kind));
    let unknown = DeltaDiscoveryRequest { type_url: "type.googleapis.com/x.Y".to_owned(), ..Default::default() };
    assert_eq!(session.request(&unknown).unwrap(), Event::Ignored);
}

#[test]
fn a_client_that_comes_back_gets_only_what_changed_while_it_was_away() {
    let kind = Kind::Cluster;
    let mut before = Session::default();
    before.request(&subscribe(kind, &[])).unwrap();
    let first = before.respond(kind, &resources(kind, &[("a", "1"), ("b", "1"), ("c", "1")])).unwrap();
    let versions = first.resources.iter().map(|entry| (entry.name.clone(), entry.version.clone())).collect();
    let mut after = Session::default();
    let mut hello = subscribe(kind, &[]);
    hello.initial_resource_versions = versions;
    after.request(&hello).unwrap();
    let second = after.respond(kind, &resources(kind, &[("a", "1"), ("b", "2")])).unwrap();
    assert_eq!((names(&second), second.removed_resources.clone()), (vec!["b"], vec!["c".to_owned()]));
}

#[test]
fn the_first_request_is_answered_even_with_nothing() {
    let mut session = Session::default();
    session.request(&subscribe(Kind::Cluster, &[])).unwrap();
    let response = session.respond(Kind::Cluster, &Offer::default()).unwrap();
    assert!(response.resources.is_empty());
}

fn addresses(list: &[(&str, &str, &str)]) -> Offer {
    let one = |(name, text, alias): &(&str, &str, &str)| {
        let mut resource = Resource::new(Kind::Address, text.as_bytes().to_vec());
        resource.aliases.push((*alias).to_owned());
        ((*name).into(), Arc::new(resource))
    };
    Offer::shared(Arc::new(list.iter().map(one).collect()))
}

#[test]
fn who_has_an_address_may_be_asked_on_demand() {
    let mut session = Session::default();
    let kind = Kind::Address;
    session.request(&subscribe(kind, &["/10.0.0.1", "/10.0.0.9"])).unwrap();
    let all = addresses(&[("web", "1", "/10.0.0.1"), ("db", "1", "/10.0.0.2")]);
    let first = session.respond(kind, &all).unwrap();
    assert_eq!((names(&first), first.removed_resources.clone()), (vec!["web"], vec!["/10.0.0.9".to_owned()]));
    assert_eq!(first.resources[0].aliases, ["/10.0.0.1"]);
    session.request(&answer(&first, None)).unwrap();
    assert_eq!(session.respond(kind, &all), None, "what is unknown is told once");
    // Somebody has it now, and another one has gone.
    let second = session.respond(kind, &addresses(&[("new", "1", "/10.0.0.9")])).unwrap();
    assert_eq!((names(&second), second.removed_resources.len()), (vec!["new"], 2));
    assert!(second.removed_resources.contains(&"web".to_owned()));
    session.request(&answer(&second, None)).unwrap();
    // By its own name, again and once more.
    for _ in 0..2 {
        session.request(&subscribe(kind, &["new"])).unwrap();
        let again = session.respond(kind, &addresses(&[("new", "1", "/10.0.0.9")])).unwrap();
        session.request(&answer(&again, None)).unwrap();
    }
    session.request(&subscribe(kind, &["/10.0.0.9"])).unwrap();
    assert_eq!(names(&session.respond(kind, &addresses(&[("new", "1", "/10.0.0.9")])).unwrap()), ["new"]);
}

#[test]
fn everything_and_nothing_may_be_subscribed_to_by_the_wildcard() {
    let all = addresses(&[("web", "1", "/10.0.0.1")]);
    let mut session = Session::default();
    session.request(&subscribe(Kind::Address, &["*"])).unwrap();
    assert_eq!(names(&session.respond(Kind::Address, &all).unwrap()), ["web"]);
    let mut session = Session::default();
    let mut nothing = subscribe(Kind::Address, &["*"]);
    nothing.resource_names_unsubscribe = vec!["*".to_owned()];
    session.request(&nothing).unwrap();
    assert!(session.respond(Kind::Address, &all).unwrap().resources.is_empty());
}

/// The server on a real port, with node `a` that runs pod `web`.
struct Server {
    address: String,
    published: watch::Sender<Arc<Published>>,
    metrics: Metrics,
    _tokens: tempfile::TempDir,
}

fn published(clusters: &[(&str, &str)], with_web: bool) -> Arc<Published> {
    let mut directory = Directory::default();
    if with_web {
        let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        directory.add("shop".into(), "web".into(), Resident { node: "a".into(), identity });
    }
    let clusters = resources(Kind::Cluster, clusters);
    let resources = Box::new(move |proxy: &Proxy, kind| match (proxy, kind) {
        (Proxy::Workload { .. }, Kind::Cluster) => clusters.clone(),
        (Proxy::Node, Kind::Cluster) => resources(Kind::Cluster, &[("of the node", "1")]),
        _ => Offer::default(),
    });
    Arc::new(Published { directory: Arc::new(directory), resources })
}

async fn server() -> Server {
    let tokens = tempfile::tempdir().unwrap();
    let nodes: Vec<NodeSettings> = ["a", "b"]
        .map(|name| {
            let token_file: PathBuf = tokens.path().join(name);
            std::fs::write(&token_file, format!("token-of-node-{name}-0001")).unwrap();
            NodeSettings { name: name.to_owned(), token_file }
        })
        .into();
    let (sender, receiver) = watch::channel(published(&[("one", "1")], true));
    let metrics = Metrics::default();
    let service = Xds::new(NodeAuth::new(&nodes), receiver, metrics.clone()).into_server();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    Server { address, published: sender, metrics, _tokens: tokens }
}

struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    async fn open(server: &Server, token: &str, node_id: &str) -> Result<Client, tonic::Status> {
        let mut client = AggregatedDiscoveryServiceClient::connect(server.address.clone()).await.unwrap();
        let (requests, queue) = mpsc::channel(8);
        let mut hello = subscribe(Kind::Cluster, &[]);
        hello.node = Some(Node { id: node_id.to_owned(), ..Default::default() });
        requests.send(hello).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(queue));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let responses = client.delta_aggregated_resources(request).await?.into_inner();
        Ok(Client { requests, responses })
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, tonic::Status> {
        let message =
            tokio::time::timeout(Duration::from_secs(10), self.responses.message()).await.expect("a response");
        message.map(|message| message.expect("an open stream"))
    }
}

const WEB: &str = "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local";

#[tokio::test]
async fn a_new_configuration_reaches_an_open_stream() {
    let server = server().await;
    let mut client = Client::open(&server, "token-of-node-a-0001", WEB).await.unwrap();
    let first = client.next().await.unwrap();
    assert_eq!(names(&first), ["one"]);
    client.requests.send(answer(&first, None)).await.unwrap();
    server.published.send(published(&[("one", "1"), ("two", "1")], true)).unwrap();
    let second = client.next().await.unwrap();
    assert_eq!(names(&second), ["two"]);
    assert_eq!(server.metrics.proxies(), 1);
    // Answered only after the next change: that change still arrives.
    server.published.send(published(&[("two", "1")], true)).unwrap();
    client.requests.send(answer(&second, Some("two: x: y"))).await.unwrap();
    assert_eq!(client.next().await.unwrap().removed_resources, ["one"]);
    assert!(server.metrics.render(Default::default()).contains("pilot_total_xds_rejects_total{type=\"cds\"} 1"));
}

#[tokio::test]
async fn a_node_speaks_only_for_its_own_workloads() {
    let server = server().await;
    let cases: BTreeMap<&str, (&str, &str, Code)> = BTreeMap::from([
        ("wrong token", ("token-of-node-a-0002", WEB, Code::Unauthenticated)),
        ("other node", ("token-of-node-b-0001", WEB, Code::PermissionDenied)),
        ("unknown pod", ("token-of-node-a-0001", "sidecar~10.0.0.1~db.shop~x", Code::PermissionDenied)),
        ("no node id", ("token-of-node-a-0001", "", Code::InvalidArgument)),
        ("malformed node id", ("token-of-node-a-0001", "web", Code::InvalidArgument)),
    ]);
    for (case, (token, id, code)) in cases {
        let status = match Client::open(&server, token, id).await {
            Err(status) => status,
            Ok(mut client) => client.next().await.unwrap_err(),
        };
        assert_eq!(status.code(), code, "{case}");
    }
    assert_eq!(server.metrics.proxies(), 0);
}

#[tokio::test]
async fn a_node_has_a_stream_of_its_own() {
    let server = server().await;
    let id = "ztunnel~10.0.0.2~agent-b.istio-system~istio-system.svc.cluster.local";
    assert!(Client::open(&server, "token-of-node-b-0002", id).await.is_err());
    // It may be a node without any workload, and stays when workloads go.
    let mut client = Client::open(&server, "token-of-node-b-0001", id).await.unwrap();
    assert_eq!(names(&client.next().await.unwrap()), ["of the node"]);
    server.published.send(published(&[], false)).unwrap();
    client.requests.send(subscribe(Kind::Listener, &[])).await.unwrap();
    assert_eq!(client.next().await.unwrap().type_url, Kind::Listener.type_url());
}

#[tokio::test]
async fn the_stream_of_a_workload_that_left_ends() {
    let server = server().await;
    let mut client = Client::open(&server, "token-of-node-a-0001", WEB).await.unwrap();
    client.next().await.unwrap();
    server.published.send(published(&[("one", "1")], false)).unwrap();
    assert_eq!(client.next().await.unwrap_err().code(), Code::PermissionDenied);
}
