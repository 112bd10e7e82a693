//! What is told of one request: metrics and an access log entry, once, however it ends.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use mesh_core::resource::route::Headers;
use tokio::time::Instant;

use super::Conn;
use crate::errors::Flags;
use crate::live::same_name;
use crate::proxy::cluster::Target;
use crate::proxy::report::{self, Far};
use crate::telemetry::access_log::Entry;
use crate::telemetry::{HttpSeries, Peer, Protocol};

/// Series of one downstream connection kept at hand.
const MAX_SERIES: usize = 16;

/// What an open upstream connection tells of its far end.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) local: Option<SocketAddr>,
    pub(super) identity: Option<SpiffeId>,
    pub(super) peer: Option<Arc<Peer>>,
}

/// The series that requests of one connection counted in: by cluster, address and protocol.
#[derive(Default)]
pub(super) struct SeriesCache(Vec<(Arc<str>, SocketAddr, Protocol, Rc<HttpSeries>)>);

/// One request.
pub(super) struct Record {
    conn: Rc<Conn>,
    pub(super) started: Instant,
    protocol: Protocol,
    request_head: u64,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    response_head: u64,
    pub(super) status: u16,
    pub(super) flags: Flags,
    pub(super) details: &'static str,
    grpc_status: Option<u8>,
    series: Option<Rc<HttpSeries>>,
    upstream: Option<SocketAddr>,
    upstream_local: Option<SocketAddr>,
    cluster: Option<Arc<str>>,
    route: Option<Arc<str>>,
    pub(super) failure: Option<String>,
    pub(super) service_time: Option<Duration>,
    /// Only while the access log is on.
    log: Option<Box<LogFields>>,
    done: bool,
}

/// Texts for the access log, taken before the request is changed.
struct LogFields {
    start_time: SystemTime,
    method: String,
    path: String,
    protocol: &'static str,
    authority: String,
    forwarded_for: Option<String>,
    user_agent: Option<String>,
    request_id: Option<String>,
}

/// A request's head as it is told of.
pub(super) struct Asked<'a> {
    pub(super) method: &'a str,
    /// Path and query as the client sent them.
    pub(super) path: &'a str,
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`.
    pub(super) protocol: &'static str,
    pub(super) authority: &'a str,
    pub(super) headers: &'a dyn Headers,
    /// Bytes of the header lines.
    pub(super) head_size: u64,
    pub(super) grpc: bool,
}

impl Record {
    pub(super) fn new(conn: &Rc<Conn>, asked: &Asked<'_>) -> Self {
        let text = |name: &str| {
            let mut found = None;
            asked.headers.each(name, &mut |value| found = found.or(std::str::from_utf8(value).ok()));
            found.map(str::to_owned)
        };
        let log = conn.pod.log.is_on().then(|| {
            Box::new(LogFields {
                start_time: SystemTime::now(),
                method: asked.method.to_owned(),
                path: asked.path.to_owned(),
                protocol: asked.protocol,
                authority: asked.authority.to_owned(),
                forwarded_for: text("x-forwarded-for"),
                user_agent: text("user-agent"),
                request_id: text("x-request-id"),
            })
        });
        Self {
            conn: conn.clone(),
            started: Instant::now(),
            protocol: if asked.grpc { Protocol::Grpc } else { Protocol::Http },
            request_head: asked.head_size + (asked.method.len() + asked.path.len() + 12) as u64,
            request_bytes: 0,
            response_bytes: 0,
            response_head: 0,
            status: 0,
            flags: Flags::NONE,
            details: "",
            grpc_status: None,
            series: None,
            upstream: None,
            upstream_local: None,
            cluster: None,
            route: None,
            failure: None,
            service_time: None,
            log,
            done: false,
        }
    }

    /// A request that could not be parsed.
    pub(super) fn unreadable(conn: &Conn, status: u16, flags: Flags, details: &'static str) {
        let labels = report::labels(&conn.pod, &conn.flow, &Far::default(), Protocol::Http);
        conn.pod.series(labels).record(status, flags, Duration::ZERO, 0, 0);
        if conn.pod.log.is_on() {
            conn.pod.log.write(&Entry {
                response_code: status,
                response_flags: flags,
                response_code_details: Some(details),
                downstream_local_address: Some(conn.flow.destination),
                downstream_remote_address: Some(conn.flow.client),
                ..Entry::new(SystemTime::now())
            });
        }
    }

    /// The request goes (or would go) to this target.
    pub(super) fn target(&mut self, target: &Target, seen: Option<&Seen>) {
        self.upstream = Some(target.address);
        self.upstream_local = seen.and_then(|seen| seen.local);
        if self.log.is_some() {
            self.cluster = Some(target.cluster.name.clone());
        }
        self.series = Some(self.series_of(target, seen));
    }

    /// The request has this route.
    pub(super) fn route(&mut self, name: &Arc<str>) {
        if self.log.is_some() {
            self.route = Some(name.clone());
        }
    }

    /// The request would go to a cluster that has no endpoint, or does not exist.
    pub(super) fn cluster(&mut self, name: &Arc<str>) {
        self.cluster = Some(name.clone());
    }

    /// The response's head: its status, the bytes of its header lines, and what they say of gRPC.
    pub(super) fn response(&mut self, status: u16, head_size: u64, grpc_status: Option<u8>) {
        self.status = status;
        self.response_head = head_size + 17;
        self.grpc(grpc_status);
    }

    /// gRPC says its outcome in the trailers, or in the headers of a response without body.
    pub(super) fn grpc(&mut self, status: Option<u8>) {
        if self.protocol == Protocol::Grpc && status.is_some() {
            self.grpc_status = status;
        }
    }

    /// Bytes of the request and of the response, with their heads.
    pub(super) fn sizes(&self) -> (u64, u64) {
        (self.request_head + self.request_bytes, self.response_head + self.response_bytes)
    }

    /// Reports the request; only the first call counts.
    pub(super) fn finish(&mut self, flags: Flags) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let flags = self.flags | flags;
        let duration = self.started.elapsed();
        let (request, response) = self.sizes();
        let series = match self.series.take() {
            Some(series) => series,
            None => {
                let conn = &self.conn;
                let snapshot = conn.pod.snapshot();
                let cluster = snapshot.as_ref().zip(self.cluster.as_ref()).and_then(|(s, name)| s.cluster(name));
                let far = Far { cluster: cluster.map(AsRef::as_ref), ..Far::default() };
                conn.pod.series(report::labels(&conn.pod, &conn.flow, &far, self.protocol))
            }
        };
        match self.grpc_status {
            Some(status) => series.record_grpc(self.status, status, flags, duration, request, response),
            None => series.record(self.status, flags, duration, request, response),
        }
        self.log(flags, duration);
    }

    fn log(&self, flags: Flags, duration: Duration) {
        let Some(fields) = &self.log else { return };
        let conn = &self.conn;
        conn.pod.log.write(&Entry {
            start_time: fields.start_time,
            method: Some(&fields.method),
            path: Some(&fields.path),
            protocol: Some(fields.protocol),
            response_code: self.status,
            response_flags: flags,
            response_code_details: Some(self.details).filter(|details| !details.is_empty()),
            connection_termination_details: None,
            upstream_transport_failure_reason: self.failure.as_deref(),
            bytes_received: self.request_bytes,
            bytes_sent: self.response_bytes,
            duration,
            upstream_service_time: self.service_time,
            x_forwarded_for: fields.forwarded_for.as_deref(),
            user_agent: fields.user_agent.as_deref(),
            x_request_id: fields.request_id.as_deref(),
            authority: Some(&fields.authority),
            upstream_host: self.upstream,
            upstream_cluster: self.cluster.as_deref(),
            upstream_local_address: self.upstream_local,
            downstream_local_address: Some(conn.flow.destination),
            downstream_remote_address: Some(conn.flow.client),
            requested_server_name: None,
            route_name: self.route.as_deref(),
        });
    }

    fn series_of(&self, target: &Target, seen: Option<&Seen>) -> Rc<HttpSeries> {
        let conn = &self.conn;
        let mut cache = conn.series.borrow_mut();
        let known = cache.0.iter().find(|(cluster, address, protocol, _)| {
            *protocol == self.protocol && *address == target.address && same_name(cluster, &target.cluster.name)
        });
        if let (Some((.., series)), Some(_)) = (known, seen) {
            return series.clone();
        }
        let far = Far {
            peer: seen.and_then(|seen| seen.peer.as_deref()),
            identity: seen.and_then(|seen| seen.identity.as_ref()),
            ..Far::new(target, None)
        };
        let series = conn.pod.series(report::labels(&conn.pod, &conn.flow, &far, self.protocol));
        // What could not be connected to is not kept: the next attempt may know more of it.
        if seen.is_some() {
            if cache.0.len() >= MAX_SERIES {
                cache.0.remove(0);
            }
            // As a rule it stays the only one.
            if cache.0.is_empty() {
                cache.0.reserve_exact(1);
            }
            cache.0.push((target.cluster.name.clone(), target.address, self.protocol, series.clone()));
        }
        series
    }
}

impl Drop for Record {
    /// A request whose client went away before there was an answer.
    fn drop(&mut self) {
        self.finish(self.conn.cut_off.get());
    }
}
