//! The HTTP port: readiness, metrics and a look inside. GET only, nothing here changes anything.
//!
//! In: requests. Out: `/healthz/ready`, `/metrics`, `/debug/problems`, `/debug/endpointz`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Gauges, Metrics, TYPES};
use crate::problem::{Problem, Problems, Severity};
use crate::translate::{Checked, Translation};

/// Most connections at one time.
const MAX_CONNECTIONS: usize = 256;
/// Time for the head of a request, also for the first.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection.
const MAX_LIFE: Duration = Duration::from_secs(300);
/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// Problems of the configuration.
    pub problems: Problems,
    /// Resources left out.
    pub checked: Checked,
    /// Counters.
    pub metrics: Metrics,
    /// The mesh in force.
    pub translation: watch::Receiver<Arc<Translation>>,
    /// End of the root certificate.
    pub root_not_after: SystemTime,
}

/// Serves the port until `shutdown`.
pub async fn serve(listener: TcpListener, pages: Pages, shutdown: CancellationToken) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let pages = pages.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = pages.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(MAX_LIFE, connection).await {
                tracing::debug!(%error, "HTTP connection ended");
            }
            drop(permit);
        });
    }
}

#[derive(Serialize)]
struct ProblemPage {
    problems: Vec<Problem>,
    left_off: usize,
}

#[derive(Serialize)]
struct ServicePage {
    host: String,
    namespace: String,
    ports: Vec<PortPage>,
}

#[derive(Serialize)]
struct PortPage {
    port: u16,
    protocol: String,
    endpoints: Vec<EndpointPage>,
}

#[derive(Serialize)]
struct EndpointPage {
    address: String,
    port: u16,
    workload: Option<String>,
    identity: Option<String>,
    tunnel: bool,
}

impl Pages {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return page(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is served here\n");
        }
        match request.uri().path() {
            // The port opens only after the configuration was read.
            "/healthz/ready" => page(StatusCode::OK, "text/plain", "ready\n"),
            "/metrics" => page(StatusCode::OK, "text/plain; version=0.0.4", self.metrics.render(self.gauges())),
            "/debug/problems" => json(&self.problem_page()),
            "/debug/endpointz" => json(&self.endpoints()),
            _ => page(
                StatusCode::NOT_FOUND,
                "text/plain",
                "/healthz/ready\n/metrics\n/debug/problems\n/debug/endpointz\n",
            ),
        }
    }

    fn gauges(&self) -> Gauges {
        let end = self.root_not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Gauges {
            errors: self.problems.count(Severity::Error),
            warnings: self.problems.count(Severity::Warning),
            resources_dropped: self.checked.refused().len(),
            root_not_after: end.as_secs(),
        }
    }

    fn problem_page(&self) -> ProblemPage {
        let (mut problems, left_off) = self.problems.list();
        problems.extend(self.checked.refused().into_iter().map(|refused| Problem {
            object: format!(
                "{} {}",
                TYPES.get(refused.kind.index()).copied().unwrap_or_default(),
                refused.rejection.name
            ),
            path: refused.rejection.path,
            ..Problem::of_file(&"".into(), format!("left out, the agents would refuse it: {}", refused.rejection.why))
        }));
        ProblemPage { problems, left_off }
    }

    fn endpoints(&self) -> Vec<ServicePage> {
        let translation = self.translation.borrow().clone();
        let services = translation.mesh().services.iter();
        services
            .map(|service| ServicePage {
                host: service.host.to_string(),
                namespace: service.namespace.to_string(),
                ports: service
                    .ports
                    .iter()
                    .map(|port| PortPage {
                        port: port.number,
                        protocol: format!("{:?}", port.protocol),
                        endpoints: port
                            .endpoints
                            .iter()
                            .map(|endpoint| {
                                let workload = endpoint.workload.as_ref();
                                let identity = workload.and_then(|workload| workload.identity.as_ref());
                                EndpointPage {
                                    address: endpoint.address.to_string(),
                                    port: endpoint.port,
                                    workload: workload.map(|one| format!("{}/{}", one.namespace, one.name)),
                                    identity: identity.map(ToString::to_string),
                                    tunnel: endpoint.tunnel,
                                }
                            })
                            .collect(),
                    })
                    .collect(),
            })
            .collect()
    }
}

fn json<T: Serialize>(value: &T) -> Response<Full<Bytes>> {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => page(StatusCode::OK, "application/json", body),
        Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
