//! A control plane's evil twin: passes everything on between an agent and the real one, and slips bad resources in.
//!
//! Plaintext towards the agent, TLS towards the real one. It keeps what the agent objects to.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_proto::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use mesh_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_tests::{Lab, network};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// Port of the twin, beside the real control plane.
pub const PORT: u16 = 15016;
/// A cluster that is no protobuf.
pub const BAD_CLUSTER: &str = "outbound|9999||garbage.default.svc.cluster.local";
/// A listener without an address.
pub const BAD_LISTENER: &str = "10.9.9.9_9999";

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Messages under way in one direction.
const QUEUE: usize = 64;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The twin, at work until dropped.
pub struct Between {
    objections: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Between {
    /// Starts it in the control plane's namespace.
    pub fn start(lab: &Lab) -> Result<Self> {
        let root = std::fs::read(lab.control().ca_dir().join("root-cert.pem"))?;
        let place = lab.control().place();
        let objections = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let twin = Twin { real: None, objections: objections.clone() };
        let serve = async move {
            let listener = tokio::net::TcpListener::bind((network::CONTROL.0, PORT)).await?;
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(root))
                .domain_name("istiod.istio-system.svc");
            let real =
                Endpoint::from_shared(format!("https://{}:15012", network::CONTROL.0))?.tls_config(tls)?.connect_lazy();
            let twin = Twin { real: Some(real), ..twin };
            let _ = ready.send(());
            Server::builder()
                .add_service(AggregatedDiscoveryServiceServer::new(twin.clone()))
                .add_service(IstioCertificateServiceServer::new(twin))
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
                    let _ = stopped.await;
                })
                .await
                .context("serving")
        };
        let thread = std::thread::spawn(move || {
            place.within(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let result = runtime.block_on(serve);
                runtime.shutdown_background();
                result
            })?
        });
        let started = is_ready.recv();
        let between = Self { objections, stop: Some(stop), thread: Some(thread) };
        started.context("the twin did not start")?;
        Ok(between)
    }

    /// What agents have objected to so far.
    pub fn objections(&self) -> Vec<String> {
        self.objections.lock().unwrap().clone()
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Streams of agents that still run keep it; it ends with the test program then.
        drop(self.thread.take());
    }
}

#[derive(Clone)]
struct Twin {
    real: Option<Channel>,
    objections: Arc<Mutex<Vec<String>>>,
}

impl Twin {
    fn real(&self) -> Result<Channel, Status> {
        self.real.clone().ok_or_else(|| Status::unavailable("not connected"))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Twin {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("agents speak delta"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (metadata, _, mut asked) = request.into_parts();
        let (sender, receiver) = mpsc::channel(QUEUE);
        let objections = self.objections.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = asked.next().await {
                if let Some(error) = &message.error_detail {
                    objections.lock().unwrap().push(format!("{} {}", message.type_url, error.message));
                }
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        let request = Request::from_parts(metadata, Default::default(), ReceiverStream::new(receiver));
        let mut real = AggregatedDiscoveryServiceClient::new(self.real()?);
        let answers = real.delta_aggregated_resources(request).await?.into_inner();
        Ok(Response::new(Box::pin(answers.map(|answer| answer.map(slip_in)))))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Twin {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        IstioCertificateServiceClient::new(self.real()?).create_certificate(request).await
    }
}

/// Adds a bad resource to every answer of clusters or listeners.
fn slip_in(mut answer: DeltaDiscoveryResponse) -> DeltaDiscoveryResponse {
    let bad = match answer.type_url.as_str() {
        CLUSTER => Some((BAD_CLUSTER, vec![0xff; 16])),
        LISTENER => {
            Some((BAD_LISTENER, Listener { name: BAD_LISTENER.to_owned(), ..Default::default() }.encode_to_vec()))
        }
        _ => None,
    };
    if let Some((name, value)) = bad {
        let resource = Some(Any { type_url: answer.type_url.clone(), value });
        // First, so that what follows it shows that the rest is taken.
        let bad = Resource { name: name.to_owned(), version: "1".to_owned(), resource, ..Default::default() };
        answer.resources.insert(0, bad);
    }
    answer
}
