//! The whole control plane over its real ports: TLS, tokens, files that change.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc::Status as RpcStatus;
use mesh_proto::ca::IstioCertificateRequest;
use mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use rcgen::{CertificateParams, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Streaming};

use super::*;
use crate::resource::Kind;

/// Longest that anything here is waited for.
const LIMIT: Duration = Duration::from_secs(20);

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: web}
status: {podIP: 10.1.0.1}
";

fn rule(header: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: shop}}\nspec:\n  hosts: \
         [web]\n  http:\n  - route: [{{destination: {{host: web}}}}]\n    headers: {header}\n"
    )
}

struct Running {
    app: App,
    dir: tempfile::TempDir,
}

impl Running {
    async fn start() -> Running {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mesh")).unwrap();
        fs::write(dir.path().join("mesh/web.yaml"), MESH).unwrap();
        for node in ["n1", "n2"] {
            fs::write(dir.path().join(node), format!("token-token-token-{node}")).unwrap();
        }
        let app = App::start(settings(dir.path())).await.unwrap();
        Running { app, dir }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join("mesh").join(name), text).unwrap();
    }

    async fn channel(&self) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.app.root_pem))
            .domain_name("istiod.istio-system.svc");
        let address = format!("https://{}", self.app.xds);
        Endpoint::from_shared(address).unwrap().tls_config(tls).unwrap().connect().await.unwrap()
    }

    async fn open(&self, versions: &[(String, String)]) -> Client {
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await);
        let (requests, queue) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(queue));
        request.metadata_mut().insert("authorization", "Bearer token-token-token-n1".parse().unwrap());
        let mut first = subscribe(Kind::Cluster, &[]);
        first.initial_resource_versions = versions.iter().cloned().collect();
        let id = "sidecar~10.1.0.1~web-1.shop~shop.svc.cluster.local".to_owned();
        first.node = Some(Node { id, ..Default::default() });
        requests.send(first).await.unwrap();
        let responses = client.delta_aggregated_resources(request).await.unwrap().into_inner();
        Client { requests, responses }
    }

    async fn page(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.app.http).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    async fn get(&self, path: &str) -> String {
        self.page(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
    }
}

fn settings(dir: &Path) -> Settings {
    let yaml = "configDir: mesh\ncaDir: ca\nlisten: {xds: '127.0.0.1:0', http: '127.0.0.1:0'}\ncertTtl: 60\nnodes:\n- {name: n1, \
                tokenFile: n1}\n- {name: n2, tokenFile: n2}\n";
    let file: PathBuf = dir.join("control.yaml");
    fs::write(&file, yaml).unwrap();
    Settings::load(&file).unwrap()
}

fn subscribe(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    async fn ask(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    /// The next response, which is answered, with a refusal if there is a reason for one.
    async fn next(&mut self, refuse: Option<&str>) -> (Kind, Vec<String>, Vec<String>, DeltaDiscoveryResponse) {
        let response = tokio::time::timeout(LIMIT, self.responses.message()).await.unwrap().unwrap().unwrap();
        let kind = Kind::of(&response.type_url).unwrap();
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: refuse.map(|why| RpcStatus { message: why.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        self.ask(answer).await;
        let names = response.resources.iter().map(|one| one.name.clone()).collect();
        (kind, names, response.removed_resources.clone(), response)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_become_pushes() {
    let running = Running::start().await;
    let mut client = running.open(&[]).await;
    let (kind, clusters, _, response) = client.next(None).await;
    let web = "outbound|80||web.shop.svc.cluster.local";
    assert_eq!(kind, Kind::Cluster);
    assert!(clusters.contains(&web.to_owned()) && clusters.contains(&"inbound|80||".to_owned()), "{clusters:?}");
    let versions: Vec<_> = response.resources.iter().map(|one| (one.name.clone(), one.version.clone())).collect();
    client.ask(subscribe(Kind::Endpoint, &[web])).await;
    assert_eq!(client.next(None).await.1, [web]);
    client.ask(subscribe(Kind::Listener, &[])).await;
    assert_eq!(client.next(None).await.1, ["0.0.0.0_80", "virtualOutbound", "virtualInbound"]);
    client.ask(subscribe(Kind::Route, &["80"])).await;
    assert_eq!(client.next(None).await.1, ["80"]);

    // A new rule: the route table and nothing else.
    running.write("rule.yaml", &rule("{request: {set: {x: '1'}}}"));
    let (kind, names, _, _) = client.next(Some("80: virtual_hosts[0]: why not")).await;
    assert_eq!((kind, names), (Kind::Route, vec!["80".to_owned()]));

    // A rule gone bad: told, and the last good one stays in force, so nothing is pushed for it; the next push is of a pod.
    running.write("rule.yaml", &rule("{request: {set: 5}}"));
    let pod = MESH.split("---").nth(1).unwrap().replace("web-1", "web-2").replace("10.1.0.1", "10.1.0.2");
    running.write("pod.yaml", &pod);
    let (kind, names, _, _) = client.next(None).await;
    assert_eq!((kind, names), (Kind::Endpoint, vec![web.to_owned()]));
    let problems = running.get("/debug/problems").await;
    assert!(problems.contains("\"file\": \"rule.yaml\"") && problems.contains("\"line\": 8"), "{problems}");

    // The service goes: removals, clusters first.
    running.write("web.yaml", MESH.split("---").nth(1).unwrap());
    let (kind, _, removed, _) = client.next(None).await;
    assert_eq!((kind, removed), (Kind::Cluster, vec!["inbound|80||".to_owned(), web.to_owned()]));

    // Back again with what it held: only the difference comes.
    let mut again = running.open(&versions).await;
    let (_, names, removed, _) = again.next(None).await;
    assert_eq!((names, removed), (Vec::new(), vec!["inbound|80||".to_owned(), web.to_owned()]));

    let metrics = running.get("/metrics").await;
    assert!(metrics.contains("pilot_total_xds_rejects_total{type=\"rds\"} 1"), "{metrics}");
    assert!(metrics.contains("pilot_xds 2"), "{metrics}");
    assert!(running.get("/healthz/ready").await.starts_with("HTTP/1.1 200"));
    assert!(running.get("/debug/endpointz").await.contains('['));
    assert!(
        running
            .page("POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 405")
    );
    drop((client, again));
    tokio::time::timeout(LIMIT, running.app.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_over_tls_with_tokens() {
    let running = Running::start().await;
    let mut client = IstioCertificateServiceClient::new(running.channel().await);
    let mut ask = async |token: &str| {
        let identity = "spiffe://cluster.local/ns/shop/sa/web";
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 30, metadata: None });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        client.create_certificate(request).await.map(|answer| answer.into_inner().cert_chain)
    };
    let chain = ask("token-token-token-n1").await.unwrap();
    assert_eq!((chain.len(), chain[1].as_str()), (2, running.app.root_pem.as_str()));
    assert_eq!(ask("token-token-token-n2").await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(ask("token-token-token-n3").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(running.app.metrics.certificates(), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_costs_nothing_but_itself() {
    let running = Running::start().await;
    let mut held = Vec::new();
    for address in [running.app.xds, running.app.http] {
        for bytes in [&b"GET / HTTP/9.9\r\n\r\n"[..], &[0xff; 4096], b"\x16\x03\x01\x40\x00\x01", b""] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // The other side may have closed already; that is its right.
            let _ = stream.write_all(bytes).await;
            held.push(stream);
        }
    }
    let mut client = running.open(&[]).await;
    assert_eq!(client.next(None).await.0, Kind::Cluster);
    assert!(running.get("/healthz/ready").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_bad_start_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = async |settings: Settings| App::start(settings).await.err().unwrap().to_string();
    let missing = error(settings(dir.path())).await;
    assert!(missing.contains("configDir") && missing.contains("create it"), "{missing}");
    fs::create_dir(dir.path().join("mesh")).unwrap();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut wrong = settings(dir.path());
    let holder = tokio::net::TcpListener::bind(taken).await.unwrap();
    wrong.listen.http = taken;
    let message = error(wrong).await;
    assert!(message.contains(&taken.to_string()) && message.contains("listen.http"), "{message}");
    drop(holder);
    fs::remove_file(dir.path().join("ca/root-cert.pem")).unwrap();
    let message = error(settings(dir.path())).await;
    assert!(message.contains("root-cert.pem is missing"), "{message}");
}
