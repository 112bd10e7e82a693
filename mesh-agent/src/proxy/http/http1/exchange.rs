//! One request of an HTTP/1 client and its response: `route → cluster → endpoint → upstream connection → response`.
//!
//! In: a parsed head, and the connection that it came by. Out: the upstream's response, or the agent's own, written; a report either way;
//! and what becomes of the connection. Never: sends a request twice of which the server may have seen something, unless that is safe.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::{Buf, Bytes};
use mesh_core::resource::cluster::HttpProtocol;
use mesh_core::resource::route::{RequestHead, RouteTable};
use mesh_http::{Body, Framing, Known, ResponseHead, Version};
use tokio::time::sleep;

use super::super::record::{Asked, Record, Seen};
use super::super::reply::Reply;
use super::super::route::{Way, clean_path, select, table};
use super::super::{Conn, date};
use super::heads::{self, View};
use super::link::Link;
use super::pool::{Pool, Upstream};
use super::relay::{Bounds, Broken, Client, Form, Relay, form};
use super::work::Work;
use super::{After, LIMITS, Session, bridge};
use crate::errors::Flags;
use crate::net::copy::{Duplex, Traffic, copy};
use crate::proxy::cluster::Target;
use crate::upstream::{Connected, UpstreamError};

/// Connections tried for one request because the server had closed the one before, without having seen the request.
const MAX_STALE: usize = 3;
/// Interim responses (1xx) passed on for one request.
const MAX_INTERIM: usize = 16;

/// How an exchange ends without the upstream's whole response.
pub(super) enum Ended {
    /// The agent answers.
    Reply(Reply),
    /// There is nobody to answer, or it is too late.
    Cut(Flags),
}

impl From<Reply> for Ended {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// A request with all that was found out about it.
pub(super) struct Wanted<'a> {
    pub(super) conn: &'a Rc<Conn>,
    pub(super) client: Client<'a>,
    pub(super) pool: &'a mut Pool,
    pub(super) work: &'a mut Work,
    /// The head as it was received.
    pub(super) head: &'a Bytes,
    pub(super) record: Record,
    pub(super) authority: Cow<'a, str>,
    pub(super) path: Cow<'a, str>,
    /// The protocol to switch to, lower case.
    pub(super) upgrade: Option<String>,
    /// Whether the client has been told to go on.
    continued: bool,
}

/// Serves the request whose head is at the front of what the client has sent.
pub(super) async fn serve(conn: &Rc<Conn>, session: &mut Session, work: &mut Work) -> After {
    let Session { client, pool, timer } = session;
    let head = client.seen.split_to(work.request.len);
    let mut memory = std::mem::take(&mut work.to_client);
    memory.clear();
    client.refill(memory);
    let request = &mut work.request;
    heads::add_standard(conn, &mut request.fields, &head);
    let authority = match request.authority(&head) {
        "" => Cow::Owned(conn.flow.destination.to_string()),
        named => Cow::Borrowed(named),
    };
    let path = request.path(&head);
    let record = Record::new(
        conn,
        &Asked {
            method: request.method(&head),
            path: &path,
            protocol: if request.version == Version::Http10 { "HTTP/1.0" } else { "HTTP/1.1" },
            authority: &authority,
            headers: &View { fields: &request.fields, buf: &head },
            head_size: request.fields.size(),
            grpc: heads::is_grpc(&request.fields, &head),
        },
    );
    let upgrade = request.upgrade(&head).map(|wanted| String::from_utf8_lossy(wanted).to_ascii_lowercase());
    request.fields.strip_hop_by_hop(&head, request.framing == Framing::Chunked);
    let client = Client {
        body: Body::new(request.framing),
        received: 0,
        sent: 0,
        may_finish: !request.keep_alive,
        bounds: Bounds::default(),
        moved: 0,
        link: client,
        timer,
    };
    let mut wanted =
        Wanted { conn, client, pool, work, head: &head, record, authority, path, upgrade, continued: false };
    let after = match wanted.forward().await {
        Ok(after) => {
            wanted.finish(Flags::NONE);
            after
        }
        Err(Ended::Reply(reply)) => wanted.answer(reply).await,
        Err(Ended::Cut(flags)) => {
            wanted.finish(flags);
            After::Close
        }
    };
    let memory = wanted.client.link.take_back();
    wanted.work.to_client = memory;
    after
}

impl Wanted<'_> {
    /// Reports the request.
    fn finish(&mut self, flags: Flags) {
        self.record.request_bytes.set(self.client.received);
        self.record.response_bytes = self.client.sent;
        self.record.finish(flags);
    }

    /// Finds the route and takes it.
    async fn forward(&mut self) -> Result<After, Ended> {
        let conn = self.conn;
        // The configuration of this moment, for the whole request.
        let snapshot = conn.pod.snapshot().ok_or_else(Reply::no_route)?;
        let table = table(conn, &snapshot).ok_or_else(Reply::no_route)?;
        let way = self.route(&table)?;
        let sent = self.record.started;
        let limit = way.forward.timeout.filter(|limit| !limit.is_zero());
        let idle = way.forward.idle_timeout.or(conn.manager().and_then(|manager| manager.stream_idle_timeout));
        self.client.bounds = Bounds {
            deadline: limit.map(|limit| sent + limit),
            idle: idle.filter(|limit| !limit.is_zero()).map(|limit| (sent, limit)),
        };
        self.change(&way)?;
        let mut tried = Vec::new();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let target = way.target(conn, &snapshot, &tried, &mut self.record)?;
            if way.route.include_attempt_count {
                let fields = &mut self.work.request.fields;
                heads::set_number(fields, self.head, "x-envoy-attempt-count", u64::from(attempt));
            }
            let plain = self.upgrade.is_none() && !self.work.request.is_connect(self.head);
            let error = if target.cluster.http == HttpProtocol::Http2 && plain {
                match Box::pin(bridge::send(self, &target)).await? {
                    Ok(answered) => return Box::pin(bridge::respond(self, answered, &way)).await,
                    Err(error) => error,
                }
            } else {
                match self.send(&target).await? {
                    Ok(upstream) => return self.respond(upstream, &way).await,
                    Err(error) => error,
                }
            };
            self.record.target(&target, None);
            self.record.failure = Some(error.to_string());
            if attempt >= way.attempts() {
                return Err(Reply::unconnected(&error).into());
            }
            tried.push(target.address);
            let pause = Box::pin(sleep(way.pause(attempt)));
            self.while_waiting(pause).await?;
        }
    }

    /// The route, and the path as it is clean.
    fn route<'t>(&mut self, table: &'t RouteTable) -> Result<Way<'t>, Reply> {
        let grpc = heads::is_grpc(&self.work.request.fields, self.head);
        if let Some(clean) = clean_path(self.conn, &self.path, grpc)? {
            self.path = Cow::Owned(clean);
        }
        let request = &self.work.request;
        let head = RequestHead {
            authority: &self.authority,
            path: &self.path,
            method: request.method(self.head),
            scheme: "http",
            headers: &View { fields: &request.fields, buf: self.head },
        };
        let way = select(self.conn, table, &head, &mut self.record)?;
        // A CONNECT is for this hop unless the route or the listener hands it on.
        let listed = |manager: &mesh_core::resource::listener::HttpManager| {
            manager.upgrades.iter().any(|name| **name == *"connect")
        };
        let connects = way.forward.upgrades.iter().any(|(name, allowed)| **name == *"connect" && *allowed);
        if request.is_connect(self.head) && !connects && !self.conn.manager().is_some_and(listed) {
            return Err(Reply::no_upgrade());
        }
        Ok(way)
    }

    /// Rewrites, header operations and the upgrade.
    fn change(&mut self, way: &Way<'_>) -> Result<(), Reply> {
        let Way { route, forward, entry, .. } = way;
        let request = &mut self.work.request;
        let (named, expects) = (request.names_host(self.head), request.expects_continue);
        let fields = &mut request.fields;
        if let Some(path) = route.rewrite_path(&self.path) {
            fields.set(self.head, "x-envoy-original-path", self.path.as_bytes());
            if !path.bytes().all(|byte| matches!(byte, 0x21..=0x7e)) {
                return Err(Reply::bad_request());
            }
            self.path = Cow::Owned(path);
        }
        heads::apply(&entry.request_headers, fields, self.head);
        heads::apply(&route.request_headers, fields, self.head);
        let host = entry.host_rewrite.as_ref().or(forward.host_rewrite.as_ref());
        if let Some(host) = host {
            let host = host.to_str().map_err(|_| Reply::bad_request())?;
            if forward.append_x_forwarded_host {
                fields.append("x-forwarded-host", self.authority.as_bytes());
            }
            self.authority = Cow::Owned(host.to_owned());
        }
        if host.is_some() || !named {
            fields.set(self.head, "host", self.authority.as_bytes());
        }
        if expects {
            fields.remove_known(Known::Expect);
        }
        // h2c is between two neighbours, and each hop makes its own choice of protocol.
        self.upgrade = self.upgrade.take().filter(|protocol| protocol != "h2c" && way.may_upgrade(protocol));
        if let Some(protocol) = &self.upgrade {
            fields.append("connection", b"upgrade");
            fields.append("upgrade", protocol.as_bytes());
        }
        Ok(())
    }

    /// Sends the request on a connection to the target; if the server has closed that meanwhile, on another one. Gives the connection
    /// on which a response's head has come, or why there is no connection.
    async fn send(&mut self, target: &Target) -> Result<Result<Upstream, UpstreamError>, Ended> {
        let request = &self.work.request;
        let path = if request.is_connect(self.head) { &self.authority } else { &self.path };
        let mut out = std::mem::take(&mut self.work.to_server);
        out.clear();
        request.write(self.head, path, &mut out);
        let method = request.method(self.head);
        let safe = self.client.body.is_done() && is_idempotent(method);
        let mut stale = 0;
        loop {
            let mut upstream = match self.connection(target).await? {
                Ok(upstream) => upstream,
                // What has been taken of the body is in `out` only: another attempt would be without it.
                Err(error) if stale > 0 => return Err(Reply::unconnected(&error).into()),
                Err(error) => {
                    self.work.to_server = out;
                    return Ok(Err(error));
                }
            };
            self.record.target(target, Some(&upstream.seen));
            upstream.link.refill(std::mem::take(&mut out));
            self.say_continue();
            let may_be_stale = upstream.reused && stale < MAX_STALE;
            let mut relay = Relay::new(&mut self.client, &mut upstream.link);
            let response = &mut self.work.response;
            let broken = match poll_fn(|cx| relay.poll_head(cx, response, method, &LIMITS)).await {
                Ok(()) => return Ok(Ok(upstream)),
                Err(broken) => broken,
            };
            let (whole, unheard) = (relay.whole, upstream.link.seen.is_empty());
            if let Broken::Server(_) = &broken
                && unheard
                && may_be_stale
                && whole
                && (safe || upstream.link.is_unsent())
            {
                stale += 1;
                out = upstream.link.take_back();
                continue;
            }
            return Err(self.broken(broken));
        }
    }

    /// A connection to the target.
    async fn connection(&mut self, target: &Target) -> Result<Result<Upstream, UpstreamError>, Ended> {
        let pool = &mut *self.pool;
        if let Some(upstream) = poll_fn(|cx| Poll::Ready(pool.take(cx, target))).await {
            return Ok(Ok(upstream));
        }
        let first = self.conn.upstreams.take_first(false);
        let reused = first.is_some();
        let connected = match first {
            Some(connected) => connected,
            None => {
                let conn = self.conn;
                let dialling = Box::pin(conn.pod.connect(&conn.flow, target));
                match self.while_waiting(dialling).await? {
                    Ok(connected) => connected,
                    Err(error) => return Ok(Err(error)),
                }
            }
        };
        let Connected { stream, local, identity, peer, .. } = connected;
        let seen = Rc::new(Seen { local, identity, peer });
        Ok(Ok(Upstream::new(target, seen, Link::new(stream, Bytes::new()), reused)))
    }

    /// Waits for something else than the upstream's answer, as long as the client is there and the time is not over.
    pub(super) async fn while_waiting<F: Future>(&mut self, future: F) -> Result<F::Output, Ended> {
        let mut future = pin!(future);
        let client = &mut self.client;
        let waited = poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            client.watch(cx)?;
            client.expire(cx)?;
            Poll::Pending
        });
        waited.await.map_err(|broken| self.broken(broken))
    }

    /// A client that waits for it is told to send its body, as Envoy does: the server is not asked.
    pub(super) fn say_continue(&mut self) {
        let client = &mut self.client;
        let waits = self.work.request.expects_continue && !client.body.is_done() && client.link.seen.is_empty();
        if waits && !std::mem::replace(&mut self.continued, true) {
            client.link.out().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    /// What a failure before the response's head comes to.
    pub(super) fn broken(&mut self, broken: Broken) -> Ended {
        Ended::Reply(match broken {
            Broken::Client => return Ended::Cut(Flags::DC),
            Broken::Request(refusal) => Reply::refused(refusal),
            Broken::Timeout => Reply::timeout(),
            Broken::Idle => Reply::idle(),
            Broken::Server(error) => {
                let why = error.map_or("connection closed before the response".to_owned(), |error| error.to_string());
                self.record.failure = Some(why);
                Reply::connection_lost()
            }
            Broken::Response(refusal) => {
                self.record.failure = Some(refusal.to_string());
                Reply::upstream_garbage()
            }
        })
    }

    /// Passes the response on whose head has come.
    async fn respond(&mut self, mut upstream: Upstream, way: &Way<'_>) -> Result<After, Ended> {
        let mut interim = 0;
        while self.work.response.is_interim() {
            interim += 1;
            if interim > MAX_INTERIM {
                return Err(Reply::upstream_garbage().into());
            }
            self.pass_interim(&mut upstream);
            let mut relay = Relay::new(&mut self.client, &mut upstream.link);
            let Work { request, response, .. } = &mut *self.work;
            let method = request.method(self.head);
            if let Err(broken) = poll_fn(|cx| relay.poll_head(cx, response, method, &LIMITS)).await {
                return Err(self.broken(broken));
            }
        }
        let framing = self.work.response.framing;
        let switches = framing == Framing::Tunnel;
        if switches && self.work.response.status == 101 && self.upgrade.is_none() {
            return Err(Reply::upstream_garbage().into());
        }
        let old = self.work.request.version == Version::Http10;
        let (form, stays) = form(framing, old);
        let stays = stays && self.stays();
        let head = upstream.link.seen.split_to(self.work.response.len);
        self.write_head(&head, way, form, stays, switches);
        if switches {
            return self.switch(upstream).await;
        }
        let mut body = Body::new(framing);
        let mut relay = Relay::new(&mut self.client, &mut upstream.link);
        let mut over = false;
        let done = poll_fn(|cx| relay.poll_response(cx, &mut body, form, &mut over)).await;
        let (grpc_status, refuses) = (relay.grpc_status, relay.refuses);
        self.record.grpc(grpc_status);
        if let Err(broken) = done {
            if form == Form::Same && framing == Framing::UntilClose {
                // Otherwise what came so far would look like all of it.
                self.client.link.reset();
            }
            return Err(Ended::Cut(self.cut(broken)));
        }
        let link = &mut upstream.link;
        let asked = self.client.body.is_done();
        let quiet = link.is_flushed() && link.seen.is_empty() && !link.finished && !refuses;
        self.work.to_server = link.take_back();
        if self.work.response.keep_alive && framing != Framing::UntilClose && asked && quiet {
            self.pool.put(upstream);
        } else if asked {
            // It has served its time; a server that waits for the end gets it as an end, not as a failure.
            let _ = poll_fn(|cx| Poll::Ready(upstream.link.poll_finish(cx))).await;
        }
        Ok(match (stays && asked, asked) {
            (true, _) => After::Next,
            (false, true) => After::Close,
            (false, false) => After::Linger,
        })
    }

    /// Passes on a response that is not the last one. The client has got its `100 Continue` already.
    fn pass_interim(&mut self, upstream: &mut Upstream) {
        let response = &mut self.work.response;
        let head = upstream.link.seen.split_to(response.len);
        if response.status != 100 && self.work.request.version == Version::Http11 {
            response.strip_hop_by_hop(&head, false);
            response.write(&head, self.client.link.out());
        }
    }

    /// Whether the client's connection can stay.
    pub(super) fn stays(&self) -> bool {
        // The next request of a client is to come by another connection: to the agent that has taken over.
        self.work.request.keep_alive && !self.conn.pod.shutdown.is_draining()
    }

    /// The head of the upstream's answer as it goes on.
    fn write_head(&mut self, head: &[u8], way: &Way<'_>, form: Form, stays: bool, switches: bool) {
        let Work { request, response, .. } = &mut *self.work;
        let protocol = response.fields.known(head, Known::Upgrade).filter(|_| switches).map(<[u8]>::to_vec);
        response.strip_hop_by_hop(head, form == Form::Same && response.framing == Framing::Chunked);
        let ResponseHead { fields, status, .. } = response;
        if let Some(protocol) = protocol {
            fields.append("connection", b"upgrade");
            fields.append("upgrade", &protocol);
        }
        finish_fields(self.conn, &mut self.record, fields, head, *status, way);
        if form == Form::Chunks {
            fields.append("transfer-encoding", b"chunked");
        }
        if !stays && !switches {
            fields.append("connection", b"close");
        } else if request.version == Version::Http10 && !switches {
            fields.append("connection", b"keep-alive");
        }
        response.write(head, self.client.link.out());
    }

    /// After `101 Switching Protocols`, or a CONNECT that succeeded, a connection is opaque bytes.
    async fn switch(&mut self, mut upstream: Upstream) -> Result<After, Ended> {
        let link = &mut *self.client.link;
        if poll_fn(|cx| link.poll_flush(cx)).await.is_err() {
            return Err(Ended::Cut(Flags::DC));
        }
        let traffic = Traffic::default();
        Box::pin(copy(link, &mut upstream.link, &traffic, None)).await;
        self.client.received += traffic.forward.get();
        self.client.sent += traffic.back.get();
        Ok(After::Close)
    }

    /// The flag of a response that was cut off.
    pub(super) fn cut(&mut self, broken: Broken) -> Flags {
        match broken {
            Broken::Client => Flags::DC,
            Broken::Request(_) => Flags::DPE,
            Broken::Timeout => Flags::UT,
            Broken::Idle => Flags::SI,
            Broken::Server(error) => {
                self.record.failure = error.map(|error| error.to_string());
                Flags::UC
            }
            Broken::Response(refusal) => {
                self.record.failure = Some(refusal.to_string());
                Flags::UC
            }
        }
    }

    /// Gives the agent's own answer.
    async fn answer(&mut self, reply: Reply) -> After {
        // What is there of the body goes; a client that still sends gets its answer, and no other.
        let client = &mut self.client;
        let asked = match client.body.pass(&client.link.seen) {
            Ok(step) => {
                client.link.seen.advance(step.taken);
                client.body.is_done()
            }
            Err(_) => false,
        };
        let stays = self.stays() && asked;
        let head = self.work.request.method(self.head) == "HEAD";
        let link = &mut *self.client.link;
        let before = link.out().len();
        reply.write(self.conn.server_name(), !stays, head, link.out());
        let body = if head { 0 } else { reply.body.len() };
        let size = (link.out().len() - before - body) as u64;
        self.record.flags |= reply.flags;
        self.record.details = reply.details;
        self.record.response(reply.status.as_u16(), size, None);
        let flushed = poll_fn(|cx| link.poll_flush(cx)).await;
        self.client.sent = body as u64;
        self.finish(if flushed.is_ok() { Flags::NONE } else { Flags::DC });
        match (flushed, stays, asked) {
            (Err(_), ..) => After::Close,
            (Ok(()), true, _) => After::Next,
            (Ok(()), false, true) => After::Close,
            (Ok(()), false, false) => After::Linger,
        }
    }
}

/// The lines that every response carries, and the route's changes to them.
pub(super) fn finish_fields(
    conn: &Conn,
    record: &mut Record,
    fields: &mut mesh_http::Fields,
    buf: &[u8],
    status: u16,
    way: &Way<'_>,
) {
    let service_time = record.started.elapsed();
    record.service_time = Some(service_time);
    record.details = "via_upstream";
    let millis = u64::try_from(service_time.as_millis()).unwrap_or(u64::MAX);
    heads::set_number(fields, buf, "x-envoy-upstream-service-time", millis);
    heads::apply(&way.entry.response_headers, fields, buf);
    heads::apply(&way.route.response_headers, fields, buf);
    if let Some(server) = &conn.server {
        fields.remove_known(Known::Server);
        fields.append("server", server.as_bytes());
    }
    if fields.known(buf, Known::Date).is_none() {
        fields.append("date", &date::now());
    }
    record.response(status, fields.size(), heads::grpc_status(fields, buf));
}

/// RFC 9110, 9.2.2.
fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}
