//! One request and its response: `route → cluster → endpoint → upstream connection → response`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONNECTION, HeaderName, HeaderValue, SERVER, UPGRADE};
use ::http::request::Parts;
use ::http::{Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use mesh_core::Snapshot;
use mesh_core::balance::PickContext;
use mesh_core::resource::cluster::HttpProtocol;
use mesh_core::resource::listener::Routes;
use mesh_core::resource::route::{
    Action, Forward, RequestHead, RetryPolicy, Route, RouteOutcome, RouteTable, WeightedCluster,
};
use tokio::time::{Instant, sleep, timeout_at};

use super::Conn;
use super::body::{FromUpstream, RequestBody, ResponseBody};
use super::record::Record;
use super::reply::Reply;
use super::upstreams::{SendError, Upstream};
use super::{request, upgrade};
use crate::errors::Flags;
use crate::proxy::cluster::{self, NoTarget, Target};
use crate::proxy::plaintext;
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
    upgrade: Option<(String, OnUpgrade)>,
    record: Record,
}

/// Serves one request.
pub(super) async fn answer(conn: Rc<Conn>, mut incoming: Request<Incoming>) -> Response<ResponseBody> {
    let on_upgrade = hyper::upgrade::on(&mut incoming);
    let (mut head, body) = incoming.into_parts();
    let upgrade = request::upgrade(&head).map(|protocol| (protocol, on_upgrade));
    request::add_standard_headers(&conn, &mut head.headers);
    let authority = request::authority(&conn, &head).into_owned();
    let path = request::path(&conn, &head).into_owned();
    let record = Record::new(&conn, &head, &authority);
    request::strip_hop_by_hop(&mut head.headers);
    let body = Some(body).filter(|body| !body.is_end_stream());
    let mut wanted = Wanted { head, body, unsent: None, authority, path, upgrade, record };
    match route(&conn, &mut wanted).await {
        Ok((response, from)) => respond(&conn, wanted, response, from),
        Err(reply) => reply.respond(&conn, wanted.record),
    }
}

type FromUpstreamHead = (Response<()>, Answered);

/// An upstream's answer, before its body.
struct Answered {
    from: FromUpstream,
    upgraded: Option<OnUpgrade>,
}

/// Finds the route and takes it.
async fn route(conn: &Rc<Conn>, wanted: &mut Wanted) -> Result<FromUpstreamHead, Reply> {
    // The configuration of this moment, for the whole request.
    let snapshot = conn.pod.snapshot().ok_or_else(Reply::no_route)?;
    let table = table(conn, &snapshot).ok_or_else(Reply::no_route)?;
    let selected = {
        let head = RequestHead {
            authority: &wanted.authority,
            path: &wanted.path,
            method: wanted.head.method.as_str(),
            scheme: "http",
            headers: &wanted.head.headers,
        };
        match table.select(&head) {
            RouteOutcome::Route(route) => match &route.action {
                Action::Forward(forward) => (route, &**forward, forward.hash(&head, conn.flow.client.ip())),
                Action::DirectResponse { status, body } => {
                    wanted.record.route = Some(route.name.clone());
                    return Err(Reply::direct(*status, body.clone()));
                }
                Action::Redirect(redirect) => {
                    wanted.record.route = Some(route.name.clone());
                    return Err(Reply::redirect(redirect.status, route.location(&head).unwrap_or_default()));
                }
            },
            RouteOutcome::NoVirtualHost | RouteOutcome::NoRoute => return Err(Reply::no_route()),
        }
    };
    let (route, forward, hash) = selected;
    wanted.record.route = Some(route.name.clone());
    let deadline = forward.timeout.filter(|limit| !limit.is_zero()).map(|limit| Instant::now() + limit);
    let entry = forward.clusters.pick(rand::random());
    let sent = Instant::now();
    let forwarding = forward_to(conn, wanted, &snapshot, Way { route, forward, entry, hash });
    let (target, upstream, response) = match deadline {
        Some(deadline) => timeout_at(deadline, forwarding).await.map_err(|_| Reply::timeout())??,
        None => forwarding.await?,
    };
    wanted.record.details = "via_upstream";
    let (mut head, body) = response.into_parts();
    let upgraded =
        (head.status == StatusCode::SWITCHING_PROTOCOLS).then(|| head.extensions.remove::<OnUpgrade>()).flatten();
    let mut response = Response::from_parts(head, ());
    finish_head(conn, &mut wanted.record, &mut response, sent.elapsed(), route, entry);
    let upstream = (!upstream.is_http2() && upgraded.is_none()).then(|| (conn.clone(), upstream));
    let from = FromUpstream { body, target, upstream, deadline: FromUpstream::timer(deadline) };
    Ok((response, Answered { from, upgraded }))
}

fn table(conn: &Conn, snapshot: &Snapshot) -> Option<Arc<RouteTable>> {
    match &conn.manager()?.routes {
        Routes::Inline(table) => Some(table.clone()),
        Routes::Rds(name) => snapshot.routes(name).cloned(),
    }
}

/// What routing has decided.
struct Way<'a> {
    route: &'a Route,
    forward: &'a Forward,
    entry: &'a WeightedCluster,
    hash: Option<u64>,
}

/// Applies the route's changes and sends the request to an endpoint of the cluster.
async fn forward_to(
    conn: &Rc<Conn>,
    wanted: &mut Wanted,
    snapshot: &Snapshot,
    Way { route, forward, entry, hash }: Way<'_>,
) -> Result<(Target, Upstream, Response<Incoming>), Reply> {
    change(wanted, route, forward, entry)?;
    let attempts = 1 + forward.retry.as_ref().filter(|retry| retry.on.connect_failure).map_or(0, |r| r.num_retries);
    let mut tried = Vec::new();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let context = PickContext { hash, avoid: &tried };
        let known = |to| conn.pod.known(to);
        let target = cluster::choose(snapshot, &entry.name, &conn.flow, &context, known).map_err(|none| {
            wanted.record.cluster(&entry.name);
            match none {
                NoTarget::NoCluster => Reply::no_cluster(forward.cluster_not_found),
                NoTarget::NoEndpoint => Reply::no_endpoint(),
            }
        })?;
        if route.include_attempt_count {
            wanted.head.headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(attempt));
        }
        let http2 = conn.http2 || target.cluster.http == HttpProtocol::Http2 && wanted.upgrade.is_none();
        match send(conn, wanted, &target, http2).await {
            Ok((upstream, response)) => return Ok((target, upstream, response)),
            Err(Failed::Connect(error)) => {
                wanted.record.target(&target, None);
                wanted.record.failure = Some(error.to_string());
                if attempt >= attempts {
                    return Err(if error.flags() == Flags::UO { Reply::overflow() } else { Reply::no_connection() });
                }
                tried.push(target.address);
                sleep(pause(forward.retry.as_ref(), attempt)).await;
            }
            Err(Failed::Answer(reply)) => return Err(reply),
        }
    }
}

/// Envoy's back-off: a random time below `base · (2^n − 1)`, within the maximum.
fn pause(retry: Option<&RetryPolicy>, attempt: u32) -> Duration {
    let Some(retry) = retry else { return Duration::ZERO };
    let factor = 2_u32.saturating_pow(attempt).saturating_sub(1);
    let most = retry.base_interval.saturating_mul(factor).min(retry.max_interval);
    most.mul_f64(rand::random::<f64>())
}

/// Rewrites, header operations and the upgrade.
fn change(wanted: &mut Wanted, route: &Route, forward: &Forward, entry: &WeightedCluster) -> Result<(), Reply> {
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
    let refused = |protocol: &str| forward.upgrades.iter().any(|(name, allowed)| **name == *protocol && !allowed);
    // h2c is between two neighbours, and each hop makes its own choice of protocol.
    match wanted.upgrade.take().filter(|(protocol, _)| protocol != "h2c" && !refused(protocol)) {
        Some((protocol, on_upgrade)) => {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_str(&protocol).map_err(|_| Reply::bad_request())?);
            wanted.upgrade = Some((protocol, on_upgrade));
        }
        None => wanted.upgrade = None,
    }
    Ok(())
}

impl Wanted {
    /// Whether the server may see it twice without harm (RFC 9110, 9.2.2).
    fn is_repeatable(&self) -> bool {
        self.body.is_none() && self.unsent.is_none() && self.head.method.is_idempotent()
    }

    /// The request in the form for one attempt; `again` keeps what is needed to make it once more.
    fn request(&mut self, http2: bool, again: bool) -> Result<Request<RequestBody>, Reply> {
        if let Some(request) = self.unsent.take() {
            return Ok(request);
        }
        let mut head = match again {
            true => self.head.clone(),
            false => std::mem::replace(&mut self.head, Request::new(()).into_parts().0),
        };
        request::address(&mut head, &self.authority, &self.path, http2).ok_or_else(Reply::bad_request)?;
        let body = match self.body.take() {
            Some(body) => RequestBody::new(body, self.record.request_bytes.clone()),
            None => RequestBody::empty(),
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
async fn send(
    conn: &Rc<Conn>,
    wanted: &mut Wanted,
    target: &Target,
    http2: bool,
) -> Result<(Upstream, Response<Incoming>), Failed> {
    let mut stale = 0;
    loop {
        let mut upstream = conn.upstreams.get(conn, target, http2).await.map_err(Failed::Connect)?;
        // A connection kept alive may be closed by its server at any time; that is no failure of this request.
        let may_be_stale = upstream.reused && stale < MAX_STALE;
        let again = may_be_stale && wanted.is_repeatable();
        let request = wanted.request(http2, again).map_err(Failed::Answer)?;
        wanted.record.target(target, Some(&upstream.seen));
        let SendError { error, unsent } = match upstream.send(request).await {
            Ok(response) => return Ok((upstream, response)),
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
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let protocol = switching.then(|| response.headers().get(UPGRADE).cloned()).flatten();
    let headers = response.headers_mut();
    request::strip_hop_by_hop(headers);
    if let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    record.service_time = Some(service_time);
    let millis = u64::try_from(service_time.as_millis()).unwrap_or(u64::MAX);
    headers.insert(X_ENVOY_SERVICE_TIME, HeaderValue::from(millis));
    entry.response_headers.apply(headers);
    route.response_headers.apply(headers);
    if let Some(server) = &conn.server {
        headers.insert(SERVER, server.clone());
    }
    let status = response.status().as_u16();
    record.response(status, response.headers());
}

/// Puts the answer together; after an upgrade the connection becomes a relay.
fn respond(conn: &Rc<Conn>, wanted: Wanted, head: Response<()>, answered: Answered) -> Response<ResponseBody> {
    let Answered { from, upgraded } = answered;
    match (wanted.upgrade, upgraded) {
        (Some((_, downstream)), Some(upstream)) => {
            let (pod, flow) = (conn.pod.clone(), conn.flow.clone());
            let (record, held) = (wanted.record, (from.target, conn.pod.shutdown.guard()));
            tokio::task::spawn_local(async move {
                let _held = held;
                tokio::select! {
                    () = upgrade::relay(downstream, upstream, record) => {}
                    () = pod.ended.cancelled() => {}
                    () = plaintext::forbidden(&pod, flow.client, flow.destination), if flow.in_the_open() => {}
                }
            });
            head.map(|()| ResponseBody::none())
        }
        _ => head.map(|()| ResponseBody::upstream(from, wanted.record)),
    }
}
