//! One request of an HTTP/2 client and its response: `route → cluster → endpoint → upstream connection → response`.
//!
//! It is sent on as HTTP/2. In: a request. Out: the upstream's response, or the agent's own, and a report either way.

use std::rc::Rc;
use std::time::Duration;

use ::http::header::{HeaderName, HeaderValue, SERVER};
use ::http::request::Parts;
use ::http::{Request, Response};
use hyper::body::{Body, Incoming};
use mesh_core::Snapshot;
use mesh_core::resource::route::{RequestHead, Route, WeightedCluster};
use tokio::time::{Instant, sleep, timeout_at};

use super::Conn;
use super::body::{FromUpstream, RequestBody, ResponseBody};
use super::record::{Asked, Record, grpc_status, head_size, says_grpc};
use super::reply::Reply;
use super::request;
use super::route::{Way, clean_path, select, table};
use super::upstreams::{SendError, Upstream};
use crate::proxy::cluster::Target;
use crate::upstream::UpstreamError;

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_ENVOY_ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const X_ENVOY_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// Connections tried for one request because the server had closed the one before, without having seen the request.
const MAX_STALE: usize = 3;

/// A request with all that was found out about it.
struct Wanted {
    head: Parts,
    /// Taken by the first attempt that sends; without one the request can be made as often as needed.
    body: Option<Incoming>,
    /// Put together, and not a byte of it sent.
    unsent: Option<Request<RequestBody>>,
    authority: String,
    path: String,
    record: Record,
}

/// Serves one request.
pub(super) async fn answer(conn: Rc<Conn>, incoming: Request<Incoming>) -> Response<ResponseBody> {
    let (mut head, body) = incoming.into_parts();
    request::add_standard_headers(&conn, &mut head.headers);
    let authority = request::authority(&conn, &head).into_owned();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let record = Record::new(
        &conn,
        &Asked {
            method: head.method.as_str(),
            path: head.uri.path_and_query().map_or("", |path| path.as_str()),
            protocol: "HTTP/2",
            authority: &authority,
            headers: &head.headers,
            head_size: head_size(&head.headers),
            grpc: says_grpc(&head.headers),
        },
    );
    request::strip_hop_by_hop(&mut head.headers);
    let body = Some(body).filter(|body| !body.is_end_stream());
    let mut wanted = Wanted { head, body, unsent: None, authority, path, record };
    match route(&conn, &mut wanted).await {
        Ok((response, from)) => response.map(|()| ResponseBody::upstream(from, wanted.record)),
        Err(reply) => reply.respond(&conn, wanted.record),
    }
}

/// Finds the route and takes it.
async fn route(conn: &Rc<Conn>, wanted: &mut Wanted) -> Result<(Response<()>, FromUpstream), Reply> {
    // The configuration of this moment, for the whole request.
    let snapshot = conn.pod.snapshot().ok_or_else(Reply::no_route)?;
    let table = table(conn, &snapshot).ok_or_else(Reply::no_route)?;
    if let Some(clean) = clean_path(conn, &wanted.path, says_grpc(&wanted.head.headers))? {
        wanted.path = clean;
    }
    let way = {
        let head = RequestHead {
            authority: &wanted.authority,
            path: &wanted.path,
            method: wanted.head.method.as_str(),
            scheme: "http",
            headers: &wanted.head.headers,
        };
        select(conn, &table, &head, &mut wanted.record)?
    };
    let sent = Instant::now();
    let deadline = way.forward.timeout.filter(|limit| !limit.is_zero()).map(|limit| sent + limit);
    let forwarding = forward_to(conn, wanted, &snapshot, &way);
    let (target, response) = match deadline {
        Some(deadline) => timeout_at(deadline, forwarding).await.map_err(|_| Reply::timeout())??,
        None => forwarding.await?,
    };
    wanted.record.details = "via_upstream";
    let (head, body) = response.into_parts();
    let mut response = Response::from_parts(head, ());
    finish_head(conn, &mut wanted.record, &mut response, sent.elapsed(), way.route, way.entry);
    Ok((response, FromUpstream { body, _target: target, deadline: FromUpstream::timer(deadline) }))
}

/// Applies the route's changes and sends the request to an endpoint of the cluster.
async fn forward_to(
    conn: &Rc<Conn>,
    wanted: &mut Wanted,
    snapshot: &Snapshot,
    way: &Way<'_>,
) -> Result<(Target, Response<Incoming>), Reply> {
    change(wanted, way)?;
    let mut tried = Vec::new();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let target = way.target(conn, snapshot, &tried, &mut wanted.record)?;
        if way.route.include_attempt_count {
            wanted.head.headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(attempt));
        }
        match send(conn, wanted, &target).await {
            Ok(response) => return Ok((target, response)),
            Err(Failed::Connect(error)) => {
                wanted.record.target(&target, None);
                wanted.record.failure = Some(error.to_string());
                if attempt >= way.attempts() {
                    return Err(Reply::unconnected(&error));
                }
                tried.push(target.address);
                sleep(way.pause(attempt)).await;
            }
            Err(Failed::Answer(reply)) => return Err(reply),
        }
    }
}

/// Rewrites and header operations.
fn change(wanted: &mut Wanted, Way { route, forward, entry, .. }: &Way<'_>) -> Result<(), Reply> {
    let headers = &mut wanted.head.headers;
    if let Some(path) = route.rewrite_path(&wanted.path) {
        if let Ok(original) = HeaderValue::from_str(&wanted.path) {
            headers.insert(X_ENVOY_ORIGINAL_PATH, original);
        }
        wanted.path = path;
    }
    entry.request_headers.apply(headers);
    route.request_headers.apply(headers);
    if let Some(host) = entry.host_rewrite.as_ref().or(forward.host_rewrite.as_ref()) {
        let host = host.to_str().map_err(|_| Reply::bad_request())?;
        if forward.append_x_forwarded_host
            && let Ok(original) = HeaderValue::from_str(&wanted.authority)
        {
            headers.append(X_FORWARDED_HOST, original);
        }
        wanted.authority = host.to_owned();
    }
    Ok(())
}

impl Wanted {
    /// Whether the server may see it twice without harm (RFC 9110, 9.2.2).
    fn is_repeatable(&self) -> bool {
        self.body.is_none() && self.unsent.is_none() && self.head.method.is_idempotent()
    }

    /// The request in the form for one attempt; `again` keeps what is needed to make it once more.
    fn request(&mut self, again: bool) -> Result<Request<RequestBody>, Reply> {
        if let Some(request) = self.unsent.take() {
            return Ok(request);
        }
        let mut head = match again {
            true => self.head.clone(),
            false => std::mem::replace(&mut self.head, Request::new(()).into_parts().0),
        };
        request::address(&mut head, &self.authority, &self.path).ok_or_else(Reply::bad_request)?;
        let body = match self.body.take() {
            Some(body) => RequestBody::Http2(body, self.record.request_bytes.clone()),
            None => RequestBody::Empty,
        };
        Ok(Request::from_parts(head, body))
    }
}

/// Why an attempt failed.
enum Failed {
    /// Nothing was sent: another endpoint may serve the request.
    Connect(UpstreamError),
    Answer(Reply),
}

/// Sends the request on a connection to the target; if the server has closed that meanwhile, on another one.
async fn send(conn: &Rc<Conn>, wanted: &mut Wanted, target: &Target) -> Result<Response<Incoming>, Failed> {
    let mut stale = 0;
    loop {
        let mut upstream: Upstream = conn.upstreams.get(conn, target).await.map_err(Failed::Connect)?;
        // A connection kept alive may be closed by its server at any time; that is no failure of this request.
        let may_be_stale = upstream.reused && stale < MAX_STALE;
        let again = may_be_stale && wanted.is_repeatable();
        let request = wanted.request(again).map_err(Failed::Answer)?;
        wanted.record.target(target, Some(&upstream.seen));
        let SendError { error, unsent } = match upstream.send(request).await {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        wanted.record.failure = Some(error.to_string());
        wanted.unsent = unsent;
        stale += 1;
        if may_be_stale && (wanted.unsent.is_some() || again && !error.is_parse()) {
            continue;
        }
        return Err(Failed::Answer(if error.is_parse() {
            Reply::upstream_garbage()
        } else {
            Reply::connection_lost()
        }));
    }
}

/// The head of the upstream's answer as it goes on.
fn finish_head(
    conn: &Conn,
    record: &mut Record,
    response: &mut Response<()>,
    service_time: Duration,
    route: &Route,
    entry: &WeightedCluster,
) {
    let headers = response.headers_mut();
    request::strip_hop_by_hop(headers);
    record.service_time = Some(service_time);
    let millis = u64::try_from(service_time.as_millis()).unwrap_or(u64::MAX);
    headers.insert(X_ENVOY_SERVICE_TIME, HeaderValue::from(millis));
    entry.response_headers.apply(headers);
    route.response_headers.apply(headers);
    if let Some(server) = &conn.server {
        headers.insert(SERVER, server.clone());
    }
    let status = response.status().as_u16();
    record.response(status, head_size(response.headers()), grpc_status(response.headers()));
}
