//! HTTP: the narrow boundary behind which the codec (hyper today) can be replaced.
//!
//! In: a downstream stream whose chain is HTTP. Out: its requests routed one by one, until it closes. Upstream connections
//! belong to their downstream connection, so that an application sees the port of its real client.
//!
//! HTTP/2 with prior knowledge (gRPC) is served by the same code: it is sent on as HTTP/2, whatever the cluster says, since
//! that is what the server would get without the mesh. HTTP/1 is sent as HTTP/2 only to a cluster that asks for it.
//! Never: buffers a body, repeats a request of which the server may have seen something, unless that is safe (RFC 9110, 9.2.2).

mod body;
mod exchange;
mod record;
mod reply;
mod request;
mod upgrade;
mod upstreams;

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;

use ::http::header::CONNECTION;
use ::http::{HeaderValue, StatusCode};
use hyper::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_core::resource::listener::{HttpManager, Terminal};

use super::chosen::{Chosen, Flow, HttpConnection, Side};
use super::pod::Pod;
use crate::errors::Flags;
use crate::upstream::Connected;
use record::Record;
use upstreams::Upstreams;

/// Longest head of a request, in bytes (Envoy's default: 60 KiB).
const MAX_REQUEST_HEAD: usize = 60 << 10;
/// Most header lines of a request or response (Envoy's default).
const MAX_HEADERS: usize = 100;
/// Bytes that hyper may hold of a message in parts not yet parsed or written.
const MAX_BUFFER: usize = 256 << 10;
/// Requests under way on one HTTP/2 connection.
const MAX_CONCURRENT_REQUESTS: u32 = 1024;
/// Flow-control window of an HTTP/2 request, in bytes.
const REQUEST_WINDOW: u32 = 1 << 20;
/// Flow-control window of an HTTP/2 connection, in bytes.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// `server` header of answers to inbound requests where the listener names none.
const SERVER_NAME: HeaderValue = HeaderValue::from_static("istio-envoy");

/// A downstream connection.
struct Conn {
    pod: Rc<Pod>,
    flow: Flow,
    chosen: Chosen,
    upstreams: Upstreams,
    series: RefCell<record::SeriesCache>,
    http2: bool,
    /// `server` header to set; outbound leaves the upstream's.
    server: Option<HeaderValue>,
}

/// Serves a downstream connection to its end.
pub(super) async fn serve(pod: Rc<Pod>, connection: Box<HttpConnection>) {
    let HttpConnection { flow, downstream, chosen, http2, first } = *connection;
    let mut shutdown = pod.shutdown.clone();
    let conn = Rc::new(Conn::new(pod, flow, chosen, http2, first));
    let service = {
        let conn = conn.clone();
        service_fn(move |request: Request<Incoming>| {
            let conn = conn.clone();
            async move {
                let mut response = exchange::answer(conn.clone(), request).await;
                // The client's next request is to come by another connection: to the agent that has taken over.
                if !conn.http2
                    && conn.pod.shutdown.is_draining()
                    && response.status() != StatusCode::SWITCHING_PROTOCOLS
                {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        })
    };
    let io = TokioIo::new(downstream);
    let ended = if http2 {
        let serving = http2::Builder::new(OnWorker)
            .max_concurrent_streams(MAX_CONCURRENT_REQUESTS)
            .initial_stream_window_size(REQUEST_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_REQUEST_HEAD as u32)
            .serve_connection(io, service);
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            ended = serving.as_mut() => ended,
            () = shutdown.draining() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        }
    } else {
        let serving = http1::Builder::new()
            .preserve_header_case(true)
            .max_header_size(MAX_REQUEST_HEAD)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_BUFFER)
            .serve_connection(io, service)
            .with_upgrades();
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            ended = serving.as_mut() => ended,
            () = shutdown.closing() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        }
    };
    if let Err(error) = ended {
        conn.broken(&error);
    }
}

impl Conn {
    fn new(pod: Rc<Pod>, flow: Flow, chosen: Chosen, http2: bool, first: Option<Connected>) -> Self {
        let server = (flow.side == Side::Inbound).then(|| {
            let name = manager(&chosen).map(|manager| &manager.server_name).filter(|name| !name.is_empty());
            name.and_then(|name| HeaderValue::from_str(name).ok()).unwrap_or(SERVER_NAME)
        });
        Self { pod, flow, chosen, upstreams: Upstreams::new(first), series: RefCell::default(), http2, server }
    }

    fn manager(&self) -> Option<&HttpManager> {
        manager(&self.chosen)
    }

    /// The connection could not be read as HTTP. hyper has answered with the fitting status.
    fn broken(&self, error: &hyper::Error) {
        tracing::debug!(workload = self.pod.name, client = %self.flow.client, %error, "HTTP connection ended");
        if error.is_parse() {
            let status = if error.is_parse_too_large() { 431 } else { 400 };
            Record::unreadable(self, status, Flags::DPE);
        }
    }
}

fn manager(chosen: &Chosen) -> Option<&HttpManager> {
    match chosen.terminal() {
        Some(Terminal::Http(manager)) => Some(manager),
        _ => None,
    }
}

/// Runs hyper's tasks on the worker that has the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct OnWorker;

impl<F: Future<Output = ()> + 'static> Executor<F> for OnWorker {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
