//! Probes of the orchestrator, where plaintext may not come in.
//!
//! In: a connection from one of the node's addresses to a port for which probes are declared. Out: the application's own
//! answer to a declared probe. The application is dialled first and sees the node. Anything else is refused, and told
//! as other plaintext is. Never: a byte of the client to the application that is not part of a declared probe.

use std::cell::RefCell;
use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ::http::header::{CONTENT_TYPE, HeaderValue, UPGRADE};
use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn as client;
use hyper::rt::Executor;
use hyper::server::conn as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_core::detect::Detect;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::chosen::{Flow, Side};
use super::detect::spoken;
use super::plaintext::Refusal;
use super::pod::Pod;
use crate::net::copy::Duplex;
use crate::net::peek::Peeked;
use crate::settings::probes::Probe;
use crate::upstream::stream::Stream;

/// Longest that one probe takes. Those of Kubernetes last a second unless told otherwise.
const LIMIT: Duration = Duration::from_secs(60);
/// Longest head of a probe's request or answer, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Longest body of a health check, in bytes: the name of a service, and a few more.
const MAX_BODY: usize = 1024;
/// gRPC's health check.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

type BoxError = Box<dyn Error + Send + Sync>;
type AnyBody = UnsyncBoxBody<Bytes, BoxError>;

/// One connection that may carry the probes of its port.
struct Probing {
    pod: Rc<Pod>,
    client: SocketAddr,
    destination: SocketAddr,
    declared: Vec<Probe>,
}

/// Serves a connection from the node.
pub(super) async fn serve(
    pod: Rc<Pod>,
    client: SocketAddr,
    destination: SocketAddr,
    accepted: TcpStream,
    declared: Vec<Probe>,
) {
    let probing = Rc::new(Probing { pod, client, destination, declared });
    // When the time is over, everything is dropped and so closed.
    let _ = timeout(LIMIT, probing.answer(accepted)).await;
}

impl Probing {
    async fn answer(self: Rc<Self>, mut accepted: TcpStream) {
        let flow = Flow::new(Side::Inbound, self.client, self.destination);
        let app = match self.pod.dial_app(&flow).await {
            Ok(app) => app.stream,
            Err(error) => {
                tracing::debug!(workload = self.pod.name, %error, "the application does not answer a probe");
                return accepted.reset();
            }
        };
        let mut downstream = Peeked::new(Stream::Tcp(accepted));
        let detected = spoken(&mut downstream).await;
        if downstream.seen().is_empty() {
            // It has left without a word, as a TCP probe does.
            return;
        }
        let declared = |wanted: fn(&Probe) -> bool| self.declared.iter().any(wanted);
        let ended = match detected {
            Ok(Detect::Http1) if declared(|one| matches!(one, Probe::Http { .. })) => self.http1(downstream, app).await,
            Ok(Detect::Http2) if declared(|one| matches!(one, Probe::Grpc { .. })) => self.http2(downstream, app).await,
            _ => {
                self.refused();
                return downstream.reset();
            }
        };
        if let Err(error) = ended {
            tracing::debug!(workload = self.pod.name, client = %self.client, %error, "a probe ended early");
        }
    }

    /// One request, and its answer.
    async fn http1(self: &Rc<Self>, downstream: Peeked<Stream>, app: Stream) -> Result<(), hyper::Error> {
        let (sender, connection) =
            client::http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(app)).await?;
        let driver = self.drive(connection);
        // There is only one request on the connection.
        let sender = Rc::new(RefCell::new(Some(sender)));
        let service = service_fn(|request: Request<Incoming>| {
            let sender = self.admits_http(&request).then(|| sender.take()).flatten();
            async move {
                let Some(mut sender) = sender else { return Ok(self.forbidden()) };
                sender.send_request(request).await.map(|answer| answer.map(any))
            }
        });
        let done = server::http1::Builder::new()
            .keep_alive(false)
            .max_header_size(MAX_HEAD)
            .serve_connection(TokioIo::new(downstream), service)
            .await;
        driver.abort();
        done
    }

    /// Health checks, one at a time.
    async fn http2(self: &Rc<Self>, downstream: Peeked<Stream>, app: Stream) -> Result<(), hyper::Error> {
        let (sender, connection) = client::http2::Builder::new(OnWorker)
            .max_header_list_size(MAX_HEAD as u32)
            .handshake(TokioIo::new(app))
            .await?;
        let driver = self.drive(connection);
        let own = Rc::clone(self);
        let service = service_fn(move |request: Request<Incoming>| {
            let (own, mut sender) = (Rc::clone(&own), sender.clone());
            async move {
                if request.method() != Method::POST || request.uri().path() != HEALTH_CHECK {
                    return Ok(own.forbidden());
                }
                let request = request.map(|body| Limited::new(body, MAX_BODY));
                sender.send_request(request).await.map(|answer| answer.map(any))
            }
        });
        let done = server::http2::Builder::new(OnWorker)
            .max_concurrent_streams(1)
            .max_header_list_size(MAX_HEAD as u32)
            .serve_connection(TokioIo::new(downstream), service)
            .await;
        driver.abort();
        done
    }

    /// Keeps the connection to the application going.
    fn drive<C: Future + 'static>(&self, connection: C) -> tokio::task::JoinHandle<()> {
        let ended = self.pod.ended.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                // Its failure is the failure of the request that it carries.
                _ = timeout(LIMIT, connection) => {}
                () = ended.cancelled() => {}
            }
        })
    }

    fn admits_http(&self, request: &Request<Incoming>) -> bool {
        let asked = request.uri().path_and_query().map(|asked| asked.as_str());
        let declared = self.declared.iter().any(|one| match one {
            Probe::Http { path, .. } => asked == Some(path.as_str()),
            Probe::Tcp { .. } | Probe::Grpc { .. } => false,
        });
        let plain = request.method() == Method::GET && request.body().is_end_stream();
        declared && plain && request.uri().authority().is_none() && !request.headers().contains_key(UPGRADE)
    }

    fn forbidden(&self) -> Response<AnyBody> {
        self.refused();
        let words = Full::new(Bytes::from_static(b"only the declared probes may come in the open\n"));
        let mut response = Response::new(words.map_err(|never: Infallible| match never {}).boxed_unsync());
        *response.status_mut() = StatusCode::FORBIDDEN;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    }

    fn refused(&self) {
        self.pod.teller.tell(&self.pod, self.client, self.destination, Refusal::NoProbe);
    }
}

/// Runs hyper's tasks on the worker that has the connection.
#[derive(Debug, Clone, Copy)]
struct OnWorker;

impl<F: Future<Output = ()> + 'static> Executor<F> for OnWorker {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

fn any(body: Incoming) -> AnyBody {
    body.map_err(BoxError::from).boxed_unsync()
}
