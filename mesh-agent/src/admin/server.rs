//! The HTTP server under the pages: HTTP/1.1, GET only. In: a listener. Out: pages. Bounds: connections, size and time
//! of a request's head; bodies are never read.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::View;
use super::pages::{self, Page};
use crate::shutdown::Watch;

/// Connections to one listener at a time; further ones wait.
const MAX_CONNECTIONS: usize = 64;
/// Largest request head, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// How long a client may take to send a head, also between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, as when the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `pages` on `listener` until the shutdown stops.
pub async fn serve(listener: TcpListener, pages: &'static [Page], view: Arc<View>, watch: Watch) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Never closed, so this cannot fail.
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on an admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let view = view.clone();
        watch.spawn("admin", async move {
            let service = service_fn(|request| {
                let response = respond(&request, pages, &view);
                async move { Ok::<_, Infallible>(response) }
            });
            // How a client ends is its own affair.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(permit);
        });
    }
}

fn respond(request: &Request<Incoming>, pages: &'static [Page], view: &View) -> Response<Full<Bytes>> {
    let (status, kind, body) = if request.method() != Method::GET {
        (StatusCode::METHOD_NOT_ALLOWED, pages::TEXT, "only GET is allowed\n".to_owned())
    } else {
        match pages.iter().find(|page| page.path == request.uri().path()) {
            Some(page) => page.render(pages, view, request.uri().query().unwrap_or_default()),
            None => (StatusCode::NOT_FOUND, pages::TEXT, pages::not_found(pages)),
        }
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
    }
    response
}
