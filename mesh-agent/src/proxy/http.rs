//! HTTP: a downstream stream whose chain is HTTP, its requests routed one by one, until it closes.
//!
//! In: the stream, and which version it speaks. Out: responses, and a report of each request. HTTP/1 goes through `mesh-http`
//! ([`http1`]), HTTP/2 through `h2` ([`http2`]), in any mix; the rules for both are in [`exchange`] and [`heads`]. Upstream connections
//! belong to their downstream connection, so that an application sees the port of its real client.
//!
//! Never: buffers a body, repeats a request of which the server may have seen something, unless that is safe (RFC 9110, 9.2.2).

mod across;
mod date;
mod exchange;
mod heads;
mod http1;
mod http2;
mod record;
mod reply;
mod route;
mod timer;
mod web;
mod websocket;

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::time::Duration;

use ::http::HeaderValue;
use mesh_core::resource::listener::{self, ClientCertHeader, HttpManager, Terminal};
use mesh_http::path::{Cleaning, EscapedSlashes};

use super::chosen::{Chosen, Flow, HttpConnection, Side};
use super::pod::Pod;
use crate::errors::Flags;
use crate::upstream::Connected;
#[cfg(fuzzing)]
pub use http2::follow_http2;

/// `server` header of answers to inbound requests where the listener names none.
const SERVER_NAME: HeaderValue = HeaderValue::from_static("istio-envoy");

/// A downstream connection.
struct Conn {
    pod: Rc<Pod>,
    flow: Flow,
    chosen: Chosen,
    upstreams: http2::Upstreams,
    /// Upstream connections of HTTP/1 that wait for a request.
    pool: RefCell<http1::Pool>,
    /// Applications of this node that it has asked.
    fars: across::Fars,
    series: RefCell<record::SeriesCache>,
    /// Flag of requests that end only because the connection does.
    cut_off: Cell<Flags>,
    /// `server` header to set; outbound leaves the upstream's.
    server: Option<HeaderValue>,
}

/// Serves a downstream connection to its end.
pub(super) fn serve(pod: Rc<Pod>, connection: Box<HttpConnection>) -> Pin<Box<dyn Future<Output = ()>>> {
    let HttpConnection { flow, downstream, chosen, http2, first } = *connection;
    let conn = Rc::new(Conn::new(pod, flow, chosen, first));
    if http2 { Box::pin(http2::serve(conn, downstream)) } else { Box::pin(http1::serve(conn, downstream)) }
}

impl Conn {
    fn new(pod: Rc<Pod>, flow: Flow, chosen: Chosen, first: Option<Box<Connected>>) -> Self {
        let server = (flow.side == Side::Inbound).then(|| {
            let name = manager(&chosen).map(|manager| &manager.server_name).filter(|name| !name.is_empty());
            name.and_then(|name| HeaderValue::from_str(name).ok()).unwrap_or(SERVER_NAME)
        });
        Self {
            pod,
            flow,
            chosen,
            upstreams: http2::Upstreams::new(first),
            pool: RefCell::default(),
            fars: across::Fars::default(),
            series: RefCell::default(),
            cut_off: Cell::new(Flags::DC),
            server,
        }
    }

    /// Lets go of connections whose server has left or said something unasked.
    fn look(&self, cx: &mut Context<'_>) {
        self.pool.borrow_mut().look(cx);
        self.fars.look(cx);
    }

    /// Tells every server that nothing more will come.
    fn finish(&self, cx: &mut Context<'_>) {
        self.pool.borrow_mut().finish(cx);
        self.fars.finish(cx);
    }

    fn manager(&self) -> Option<&HttpManager> {
        manager(&self.chosen)
    }

    /// How long a client may ask for nothing.
    fn idle_timeout(&self) -> Option<Duration> {
        self.manager().and_then(|manager| manager.idle_timeout).filter(|limit| !limit.is_zero())
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

    /// The call of gRPC-Web that a request is, where that is served; its lines are gRPC's from now on.
    fn grpc_web(&self, lines: &mut impl heads::Lines) -> Option<web::Web> {
        self.manager().filter(|manager| manager.grpc_web).and_then(|_| web::Web::of(lines))
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
