//! HTTP: a downstream stream whose chain is HTTP, its requests routed one by one, until it closes.
//!
//! In: the stream, and which version it speaks. Out: responses, and a report of each request. HTTP/1 goes through `mesh-http`
//! ([`http1`]), HTTP/2 through hyper. Upstream connections belong to their downstream connection, so that an application sees the
//! port of its real client.
//!
//! HTTP/2 with prior knowledge (gRPC) is sent on as HTTP/2, whatever the cluster says, since that is what the server would get
//! without the mesh. HTTP/1 is sent as HTTP/2 only to a cluster that asks for it.
//! Never: buffers a body, repeats a request of which the server may have seen something, unless that is safe (RFC 9110, 9.2.2).

mod body;
mod date;
mod exchange;
mod http1;
mod record;
mod reply;
mod request;
mod route;
mod upstreams;

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;

use ::http::HeaderValue;
use hyper::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_core::resource::listener::{self, ClientCertHeader, HttpManager, Terminal};
use mesh_http::path::{Cleaning, EscapedSlashes};

use super::chosen::{Chosen, Flow, HttpConnection, Side};
use super::pod::Pod;
use crate::net::peek::Peeked;
use crate::upstream::Connected;
use crate::upstream::stream::Stream;
use upstreams::Upstreams;

/// Longest head of an HTTP/2 request, in bytes (Envoy's default: 60 KiB).
const MAX_REQUEST_HEAD: u32 = 60 << 10;
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
    /// `server` header to set; outbound leaves the upstream's.
    server: Option<HeaderValue>,
}

/// Serves a downstream connection to its end.
pub(super) async fn serve(pod: Rc<Pod>, connection: Box<HttpConnection>) {
    let HttpConnection { flow, downstream, chosen, http2, first } = *connection;
    let conn = Rc::new(Conn::new(pod, flow, chosen, first));
    if http2 {
        Box::pin(serve_http2(conn, downstream)).await;
    } else {
        http1::serve(&conn, downstream).await;
    }
}

async fn serve_http2(conn: Rc<Conn>, downstream: Peeked<Stream>) {
    let mut shutdown = conn.pod.shutdown.clone();
    let service = {
        let conn = conn.clone();
        service_fn(move |request: Request<Incoming>| {
            let conn = conn.clone();
            async move { Ok::<_, Infallible>(exchange::answer(conn, request).await) }
        })
    };
    let serving = http2::Builder::new(OnWorker)
        .max_concurrent_streams(MAX_CONCURRENT_REQUESTS)
        .initial_stream_window_size(REQUEST_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_REQUEST_HEAD)
        .serve_connection(TokioIo::new(downstream), service);
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.draining() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(workload = conn.pod.name, client = %conn.flow.client, %error, "HTTP/2 connection ended");
    }
}

impl Conn {
    fn new(pod: Rc<Pod>, flow: Flow, chosen: Chosen, first: Option<Connected>) -> Self {
        let server = (flow.side == Side::Inbound).then(|| {
            let name = manager(&chosen).map(|manager| &manager.server_name).filter(|name| !name.is_empty());
            name.and_then(|name| HeaderValue::from_str(name).ok()).unwrap_or(SERVER_NAME)
        });
        Self { pod, flow, chosen, upstreams: Upstreams::new(first), series: RefCell::default(), server }
    }

    fn manager(&self) -> Option<&HttpManager> {
        manager(&self.chosen)
    }

    /// How paths are cleaned before routing sees them.
    fn cleaning(&self) -> Cleaning {
        let Some(manager) = self.manager() else { return Cleaning::default() };
        let escaped = match manager.escaped_slashes {
            listener::EscapedSlashes::Keep => EscapedSlashes::Keep,
            listener::EscapedSlashes::Reject => EscapedSlashes::Reject,
            listener::EscapedSlashes::Redirect => EscapedSlashes::Redirect,
            listener::EscapedSlashes::Unescape => EscapedSlashes::Unescape,
        };
        Cleaning { dots: manager.normalize_path, slashes: manager.merge_slashes, escaped }
    }

    /// What becomes of `x-forwarded-client-cert`.
    fn client_cert(&self) -> ClientCertHeader {
        self.manager().map_or(ClientCertHeader::Sanitize, |manager| manager.client_cert)
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
