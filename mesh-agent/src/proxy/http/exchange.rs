//! One request and its response, whatever version the client and the server speak: `route → cluster → endpoint → upstream → response`.
//!
//! In: a head, and the client that it came from. Out: the upstream's response, or the agent's own; a report either way.
//! Every rule stands here once; what differs by version is behind [`Client`].
//! Never: sends a request twice of which the server may have seen something, unless that is safe.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::header::{HeaderMap, HeaderName};
use ::http::{StatusCode, Uri};
use bytes::Bytes;
use h2::Reason;
use mesh_core::resource::cluster::{Carries, ClusterKind, HttpProtocol};
use mesh_core::resource::listener::HttpManager;
use mesh_core::resource::route::{RequestHead, RouteTable};
use mesh_http::{Known, Refusal, is_target};
use tokio::time::sleep;

use super::across::Near;
use super::heads::{self, Lines};
use super::http1::{Link, Upstream};
use super::record::{Record, Seen};
use super::reply::Reply;
use super::route::{Way, clean_path, select, table};
use super::timer::Bounds;
use super::web::Web;
use super::{Conn, http2};
use crate::errors::Flags;
use crate::net::copy::{Duplex, End, Traffic, copy};
use crate::proxy::chosen::Side;
use crate::proxy::cluster::Target;
use crate::upstream::{Connected, UpstreamError};

/// Connections tried for one request because the server had closed the one before, without having seen the request.
pub(super) const MAX_STALE: usize = 3;
/// Interim responses (1xx) passed on for one request.
pub(super) const MAX_INTERIM: usize = 16;

const CONNECTION: HeaderName = HeaderName::from_static("connection");
const UPGRADE: HeaderName = HeaderName::from_static("upgrade");
const X_ENVOY_ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What ended an exchange before its time.
#[derive(Debug)]
pub(super) enum Broken {
    /// The client has left, or cannot be written to.
    Client,
    /// The client has reset its stream.
    Cancelled,
    /// The client's body is malformed.
    Request(Refusal),
    /// As [`Broken::Request`], and its stream has been reset for that already.
    Malformed,
    /// The server has left. `None`: it has finished.
    Server(Option<io::Error>),
    /// The server has reset the stream.
    Reset(Reason),
    /// The server's answer is malformed.
    Response(Cow<'static, str>),
    /// The route's time is over.
    Timeout,
    /// Nothing has moved for the time that the stream may be idle.
    Idle,
}

/// How an exchange ends without the upstream's whole response.
pub(super) enum Ended {
    /// The agent answers.
    Reply(Box<Reply>),
    /// There is nobody to answer, or it is too late: then the client's stream is reset, with this reason.
    Cut(Flags, Reason),
}

impl From<Reply> for Ended {
    fn from(reply: Reply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

/// Why an attempt has failed, of which the server has seen nothing that counts.
pub(super) enum Failed {
    /// There is no connection.
    Unconnected(UpstreamError),
    /// The server has refused the stream (REFUSED_STREAM; RFC 9113, 8.7).
    Refused,
}

/// What becomes of the client's connection after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// The client's next request.
    Next,
    /// It ends; the client may still be sending.
    Linger,
    /// It ends.
    Close,
}

/// A part of a request's body.
pub(super) enum Part {
    Data(Bytes),
    /// The last of it.
    Trailers(HeaderMap),
    End,
}

/// A client with one request.
pub(super) trait Client: Sized {
    /// Its header lines.
    type Lines<'l>: Lines
    where
        Self: 'l;

    /// Its bytes, once it is a tunnel.
    type Tunnel<'l>: Duplex
    where
        Self: 'l;

    fn lines(&mut self) -> Self::Lines<'_>;

    /// Sets when the exchange is given up.
    fn bound(&mut self, bounds: Bounds);

    /// Makes the lines say the authority, which `changed` if a rule has said so.
    fn name_host(&mut self, authority: &str, changed: bool);

    /// The lines as a request of HTTP/2 has them.
    fn to_http2(&mut self) -> Option<HeaderMap>;

    /// Whether all of the request has been received and taken.
    fn is_asked(&self) -> bool;

    /// Whether the request can be made again: nothing of its body has been taken, or there was none.
    fn is_whole(&self) -> bool;

    /// The next part of the request's body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, Broken>>;

    /// The server has taken so many bytes of the body.
    fn took(&mut self, bytes: usize);

    /// Sees whether a client that has sent its request, or waits with it, leaves.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Broken>;

    /// Sees whether the time is over, and whether the client has left as far as that shows without reading on.
    fn check(&mut self, cx: &mut Context<'_>) -> Result<(), Broken>;

    /// Tells a client that waits for it to send its body.
    fn say_continue(&mut self);

    /// Passes on a response that is not the last one (1xx, but neither 100 nor 101).
    fn interim(&mut self, status: StatusCode, headers: HeaderMap);

    /// Passes on the head of the response. `over`: there is nothing behind it.
    fn respond(&mut self, status: StatusCode, headers: HeaderMap, over: bool) -> Result<(), Broken>;

    /// Says that the protocol has been switched, or the CONNECT has succeeded: what comes now is opaque bytes.
    fn switched(&mut self, headers: HeaderMap, protocol: Option<&str>) -> Result<(), Broken>;

    /// Those bytes, once.
    fn tunnel(&mut self) -> Option<Self::Tunnel<'_>>;

    /// Counts bytes of a tunnel.
    fn carried(&mut self, traffic: &Traffic);

    /// Whether more of the response can be put.
    fn has_room(&self) -> bool;

    /// Puts a piece of the response's body, while there is room. `last`: nothing comes behind it.
    fn put(&mut self, data: Bytes, last: bool);

    /// Puts the end of the response.
    fn end(&mut self, trailers: Option<HeaderMap>);

    /// Sends what was put; resolves when the client has room for more.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;

    /// Makes a response that was cut off look so.
    fn abort(&mut self, reason: Reason);

    /// What becomes of the connection after a whole response.
    fn after(&self) -> After;

    /// Bytes of the request's and of the response's data.
    fn traffic(&self) -> (u64, u64);

    /// Sends the request to a server that speaks HTTP/1, and passes the answer on.
    async fn over_http1(
        wanted: &mut Wanted<'_, Self>,
        target: &Target,
        way: &Way<'_>,
    ) -> Result<Result<After, Failed>, Ended>;
}

/// A request with all that was found out about it.
pub(super) struct Wanted<'a, C> {
    pub(super) conn: &'a Rc<Conn>,
    pub(super) client: &'a mut C,
    pub(super) record: Record,
    pub(super) method: &'a str,
    pub(super) authority: Cow<'a, str>,
    /// With its query; empty for CONNECT.
    pub(super) path: Cow<'a, str>,
    /// The protocol to switch to, lower case.
    pub(super) upgrade: Option<String>,
    /// The client waits for `100 Continue`.
    pub(super) expects: bool,
    /// The client speaks HTTP/2.
    pub(super) http2: bool,
    pub(super) grpc: bool,
    pub(super) web: Option<Web>,
    /// Longest time without a byte.
    pub(super) idle: Option<Duration>,
    /// The client is an application of this node, and what is found out about its side of the request.
    pub(super) near: Option<Near<'a>>,
}

impl<C: Client> Wanted<'_, C> {
    /// Reports the request.
    pub(super) fn finish(&mut self, flags: Flags) {
        (self.record.request_bytes, self.record.response_bytes) = self.client.traffic();
        self.record.finish(flags);
    }

    /// Notes gRPC's outcome, as trailers say it.
    pub(super) fn grpc(&mut self, status: Option<u8>) {
        self.record.grpc(status);
        if let Some(near) = &mut self.near {
            near.record.grpc(status);
        }
    }

    /// Finds the route and takes it.
    pub(super) async fn forward(&mut self) -> Result<After, Ended> {
        let conn = self.conn;
        // The configuration of this moment, for the whole request.
        let current = conn.pod.current().ok_or_else(Reply::no_route)?;
        let table = table(conn, &current).ok_or_else(Reply::no_route)?;
        let way = self.route(&table)?;
        let idle = way.forward.idle_timeout.or(conn.manager().and_then(|manager| manager.stream_idle_timeout));
        let bounds = self.bound(Bounds::new(self.record.started, way.forward.timeout, idle));
        self.change(&way)?;
        let mut tried = Vec::new();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let target = way.target(conn, &current, &tried, &mut self.record)?.named(&self.authority);
            if way.route.include_attempt_count {
                heads::set_number(&mut self.client.lines(), &X_ENVOY_ATTEMPT_COUNT, u64::from(attempt));
            }
            let http2 = self.wants_http2(&target);
            let answered = match self.far(&target, http2).await? {
                Ok(Some(far)) => return self.across(&far, &target, &way, bounds).await,
                Ok(None) if http2 => Box::pin(http2::forward(self, &target, &way)).await?,
                Ok(None) => C::over_http1(self, &target, &way).await?,
                Err(error) => Err(Failed::Unconnected(error)),
            };
            let failed = match answered {
                Ok(after) => return Ok(after),
                Err(failed) => failed,
            };
            if let Failed::Unconnected(error) = &failed {
                self.record.target(&target, None);
                self.record.failure = Some(error.to_string());
            }
            if attempt >= way.attempts(&failed) {
                return Err(Reply::failed(&failed).into());
            }
            tried.push(target.address);
            let pause = Box::pin(sleep(way.pause(attempt)));
            self.while_waiting(pause).await?;
        }
    }

    /// Which version the server gets: what its cluster says. A server of which nobody has said anything gets what its client speaks,
    /// and so does an application, whose client is another agent as a rule. gRPC has no other version.
    fn wants_http2(&self, target: &Target) -> bool {
        let known =
            self.conn.flow.side == Side::Outbound && !matches!(target.cluster.kind, ClusterKind::OriginalDst { .. });
        match target.cluster.http {
            HttpProtocol::Http2 => true,
            _ if self.web.is_some() => true,
            HttpProtocol::Http1 if known => self.http2 && self.grpc,
            HttpProtocol::Http1 | HttpProtocol::Downstream => self.http2,
        }
    }

    /// Whether it shall end HTTP on its stream or connection.
    pub(super) fn switches(&self) -> bool {
        self.upgrade.is_some() || self.method == "CONNECT"
    }

    /// How its client is told that it has been done.
    pub(super) fn switched_status(&self) -> u16 {
        let http2 = self.near.as_ref().map_or(self.http2, |near| near.http2);
        if self.upgrade.is_some() && !http2 { 101 } else { 200 }
    }

    /// The route, and the path as it is clean.
    fn route<'t>(&mut self, table: &'t RouteTable) -> Result<Way<'t>, Reply> {
        if let Some(clean) = clean_path(self.conn, &self.path, self.grpc)? {
            self.path = Cow::Owned(clean);
        }
        let (authority, path, method) = (&*self.authority, &*self.path, self.method);
        let headers = &self.client.lines();
        let head = RequestHead { authority, path, method, scheme: "http", headers };
        let way = select(self.conn, table, &head, &mut self.record)?;
        // A CONNECT is for this hop unless the route or the listener hands it on.
        let listed = |manager: &HttpManager| manager.upgrades.iter().any(|name| **name == *"connect");
        let connects = way.forward.upgrades.iter().any(|(name, allowed)| **name == *"connect" && *allowed);
        if method == "CONNECT" && !connects && !self.conn.manager().is_some_and(listed) {
            return Err(Reply::no_upgrade());
        }
        Ok(way)
    }

    /// Rewrites, header operations and the upgrade.
    fn change(&mut self, way: &Way<'_>) -> Result<(), Reply> {
        let Way { route, forward, entry, .. } = way;
        let mut lines = self.client.lines();
        if let Some(path) = route.rewrite_path(&self.path) {
            lines.set(&X_ENVOY_ORIGINAL_PATH, self.path.as_bytes());
            if !is_target(path.as_bytes()) {
                return Err(Reply::bad_request());
            }
            self.path = Cow::Owned(path);
        }
        heads::apply(&entry.request_headers, &mut lines);
        heads::apply(&route.request_headers, &mut lines);
        let host = entry.host_rewrite.as_ref().or(forward.host_rewrite.as_ref());
        if let Some(host) = host {
            let host = host.to_str().map_err(|_| Reply::bad_request())?;
            if forward.append_x_forwarded_host {
                lines.append(&X_FORWARDED_HOST, self.authority.as_bytes());
            }
            self.authority = Cow::Owned(host.to_owned());
        }
        if self.expects {
            lines.remove_known(Known::Expect);
        }
        // h2c is between two neighbours, and each hop makes its own choice of protocol.
        let wanted = self.upgrade.take();
        self.upgrade = wanted.clone().filter(|protocol| protocol != "h2c" && way.may_upgrade(protocol));
        if (self.http2 || self.near.is_some()) && wanted.is_some() && self.upgrade.is_none() {
            // A stream of HTTP/2 that wants to switch is nothing else (RFC 8441); and what the client's side has let pass, it waits for.
            return Err(Reply::no_upgrade());
        }
        if let Some(protocol) = &self.upgrade {
            lines.append(&CONNECTION, b"upgrade");
            lines.append(&UPGRADE, protocol.as_bytes());
        }
        drop(lines);
        self.client.name_host(&self.authority, host.is_some());
        Ok(())
    }

    /// A connection to a target that speaks HTTP/1.
    pub(super) async fn connection(&mut self, target: &Target) -> Result<Result<Box<Upstream>, UpstreamError>, Ended> {
        let conn = self.conn;
        if let Some(upstream) = poll_fn(|cx| Poll::Ready(conn.pool.borrow_mut().take(cx, target))).await {
            return Ok(Ok(upstream));
        }
        let first = conn.upstreams.take_first(false);
        let reused = first.is_some();
        let connected = match first {
            Some(connected) => connected,
            None => {
                let dialling = Box::pin(conn.pod.connect(&conn.flow, target, Carries::Http1));
                match self.while_waiting(dialling).await? {
                    Ok(connected) => connected,
                    Err(error) => return Ok(Err(error)),
                }
            }
        };
        let Connected { stream, local, identity, peer, .. } = connected;
        let seen = Rc::new(Seen { local, identity, peer });
        let link = Link::new(stream, Bytes::new()).within(conn.pod.share());
        Ok(Ok(Box::new(Upstream::new(target, seen, link, reused))))
    }

    /// Waits for something else than the upstream's answer, as long as the client is there and the time is not over.
    pub(super) async fn while_waiting<F: Future>(&mut self, future: F) -> Result<F::Output, Ended> {
        let mut future = pin!(future);
        let client = &mut *self.client;
        let waited = poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            client.watch(cx)?;
            client.check(cx)?;
            Poll::Pending
        });
        waited.await.map_err(|broken| self.broken(broken))
    }

    /// After `101 Switching Protocols`, or a CONNECT that succeeded, both sides are opaque bytes.
    pub(super) async fn tunnel(&mut self, server: impl Duplex) -> Result<After, Ended> {
        let client = &mut *self.client;
        if let Err(broken) = poll_fn(|cx| client.poll_flush(cx)).await {
            return Err(self.cut_off(broken));
        }
        let traffic = Traffic::default();
        let mut end = End::Finished;
        if let Some(tunnel) = self.client.tunnel() {
            let copying = copy(tunnel, server, &traffic, self.idle).within(self.conn.pod.share());
            end = Box::pin(copying).await;
        }
        self.client.carried(&traffic);
        if matches!(end, End::Idle) {
            return Err(self.cut_off(Broken::Idle));
        }
        Ok(After::Close)
    }

    /// A client that waits for it is told to send its body, as Envoy does: the server is not asked.
    pub(super) fn say_continue(&mut self) {
        if std::mem::take(&mut self.expects) && !self.client.is_asked() {
            self.client.say_continue();
        }
    }

    /// The agent's own answer in the words of the client.
    pub(super) fn worded(&self, reply: Reply) -> Reply {
        match &self.web {
            _ if reply.is_passed_on() => reply,
            Some(web) => reply.in_grpc(web.content_type()),
            None if self.grpc => reply.in_grpc(b"application/grpc"),
            None => reply,
        }
    }

    /// What a failure before the response's head comes to.
    pub(super) fn broken(&mut self, broken: Broken) -> Ended {
        let flags = self.cut(&broken);
        Ended::from(match broken {
            Broken::Client | Broken::Cancelled | Broken::Malformed => return Ended::Cut(flags, Reason::CANCEL),
            Broken::Request(refusal) => Reply::refused(refusal),
            Broken::Timeout => Reply::timeout(),
            Broken::Idle => Reply::idle(),
            Broken::Response(_) => Reply::upstream_garbage(),
            Broken::Reset(_) => Reply::upstream_reset(),
            Broken::Server(_) => Reply::connection_lost(),
        })
    }

    /// What a failure behind the response's head comes to.
    pub(super) fn cut_off(&mut self, broken: Broken) -> Ended {
        let reason = match broken {
            // What the server says of its stream is as good for the client, but for what would make it ask again.
            Broken::Reset(reason) if !matches!(reason, Reason::NO_ERROR | Reason::REFUSED_STREAM) => reason,
            _ => Reason::INTERNAL_ERROR,
        };
        Ended::Cut(self.cut(&broken), reason)
    }

    /// The flag of a failure.
    fn cut(&mut self, broken: &Broken) -> Flags {
        if let Some(near) = &mut self.near {
            near.judge(broken);
        }
        let failure = &mut self.record.failure;
        match broken {
            Broken::Client => Flags::DC,
            Broken::Cancelled => Flags::DR,
            Broken::Request(_) | Broken::Malformed => Flags::DPE,
            Broken::Timeout => Flags::UT,
            Broken::Idle => Flags::SI,
            Broken::Server(error) => {
                let why = error.as_ref().map(io::Error::to_string);
                *failure = Some(why.unwrap_or_else(|| "connection closed before the response was whole".to_owned()));
                Flags::UC
            }
            Broken::Reset(reason) => {
                *failure = Some(format!("stream reset: {}", reason.description()));
                Flags::UR
            }
            Broken::Response(why) => {
                *failure = Some(why.to_string());
                Flags::UPE
            }
        }
    }

    /// The target of the request in the form of HTTP/2. `None`: it does not fit.
    pub(super) fn uri(&self) -> Option<Uri> {
        let mut parts = ::http::uri::Parts::default();
        if self.method != "CONNECT" || self.upgrade.is_some() {
            parts.path_and_query = Some((*self.path).try_into().ok()?);
            parts.scheme = Some(::http::uri::Scheme::HTTP);
        }
        parts.authority = Some((*self.authority).try_into().ok()?);
        Uri::from_parts(parts).ok()
    }
}
