//! A request from one application of this node to another: the client's side and the server's in one process, so that it is parsed once
//! and both sides still do all that is theirs.
//!
//! In: a request whose client's side has found its target. Out: the server's side of it as an exchange of its own, with its routes,
//! policies, headers and report; what it does to the response, the client's side does after it. In the report of each stands what it
//! would know if the other were another process.
//! Never: lets in whom a tunnel would not, keeps a way open that may not be any more.

use std::borrow::Cow;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Context;

use ::http::header::{CONNECTION, HeaderMap, UPGRADE};
use mesh_common::abi::Path;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::Conn;
use super::exchange::{After, Broken, Client, Ended, Wanted};
use super::heads::{self, Lines, Map};
use super::record::{Asked, Record, Seen};
use super::reply::Reply;
use super::route::Way;
use super::timer::Bounds;
use crate::errors::Flags;
use crate::proxy::chosen::Side;
use crate::proxy::cluster::{End, Fit, Target};
use crate::proxy::neighbour::{self, Visit};
use crate::proxy::pod::Pod;
use crate::upstream::UpstreamError;

/// Servers of this node that one client has at hand.
const MAX_FAR: usize = 8;

/// The server's side, for all requests of one client.
pub(super) struct Far {
    end: End,
    /// Its client's side speaks HTTP/2 to it.
    http2: bool,
    conn: Rc<Conn>,
    /// What the client's side knows of it.
    seen: Rc<Seen>,
    /// The client may no longer be there, or nobody has this any more.
    over: DropGuard,
}

/// Those of one client.
#[derive(Default)]
pub(super) struct Fars {
    known: RefCell<Vec<Rc<Far>>>,
    /// Requests that come at once share one.
    visiting: Mutex<()>,
}

impl Fars {
    fn find(&self, target: &Target, http2: bool) -> Option<Rc<Far>> {
        let mut known = self.known.borrow_mut();
        if known.is_empty() {
            return None;
        }
        known.retain(|far| !far.is_over() && target.fit(&far.end) != Fit::Outdated);
        known.iter().find(|far| far.http2 == http2 && target.fit(&far.end) == Fit::Same).cloned()
    }

    fn keep(&self, far: Rc<Far>) {
        let mut known = self.known.borrow_mut();
        if known.len() >= MAX_FAR {
            known.remove(0);
        }
        known.push(far);
    }

    /// Lets go of applications that have left, and of those where the client may not be any more.
    pub(super) fn look(&self, cx: &mut Context<'_>) {
        let mut known = self.known.borrow_mut();
        known.retain(|far| !far.is_over());
        known.iter().for_each(|far| far.conn.look(cx));
    }

    /// Tells the applications that nothing more will come.
    pub(super) fn finish(&self, cx: &mut Context<'_>) {
        self.known.take().iter().for_each(|far| far.conn.finish(cx));
    }
}

impl Far {
    fn is_over(&self) -> bool {
        self.over.token().is_cancelled()
    }
}

/// What is known of a request's client's side, to the exchange of its server's.
pub(super) struct Near<'a> {
    pub(super) conn: &'a Conn,
    pub(super) record: &'a mut Record,
    pub(super) way: &'a Way<'a>,
    /// The client speaks HTTP/2.
    pub(super) http2: bool,
    /// When it gives up.
    bounds: Bounds,
    /// Its patience with a silent stream ends no later than the server's side's.
    idles_first: bool,
    /// It has ended the exchange: its client, or its time.
    ended: bool,
}

impl Near<'_> {
    /// Notes whose failure it is.
    pub(super) fn judge(&mut self, broken: &Broken) {
        self.ended = match broken {
            Broken::Client | Broken::Cancelled | Broken::Request(_) | Broken::Malformed => true,
            Broken::Timeout => self.bounds.deadline.is_some_and(|due| due <= Instant::now()),
            Broken::Idle => self.idles_first,
            Broken::Server(_) | Broken::Reset(_) | Broken::Response(_) => false,
        };
    }
}

/// Goes to a server's side, as one does who connects.
async fn visit(
    conn: &Conn,
    server: Rc<Pod>,
    address: SocketAddr,
    target: &Target,
    http2: bool,
) -> Result<Option<Rc<Far>>, UpstreamError> {
    let _turn = conn.fars.visiting.lock().await;
    if let Some(found) = conn.fars.find(target, http2) {
        return Ok(Some(found));
    }
    let seen = Seen { local: None, identity: Some(server.identity.clone()), peer: Some(server.as_peer.clone()) };
    let limit = target.cluster.connect_timeout;
    let visit = neighbour::visit(&conn.pod, server, address, &conn.flow, limit, http2).await?;
    let Some(Visit { server, flow, chosen, app, over }) = visit else { return Ok(None) };
    let theirs = Rc::new(Conn::new(server, flow, chosen, Some(Box::new(app))));
    let far = Rc::new(Far { end: target.end(), http2, conn: theirs, seen: Rc::new(seen), over });
    conn.fars.keep(far.clone());
    Ok(Some(far))
}

impl<C: Client> Wanted<'_, C> {
    /// The server's side of a request, if that is here and speaks HTTP.
    pub(super) async fn far(
        &mut self,
        target: &Target,
        http2: bool,
    ) -> Result<Result<Option<Rc<Far>>, UpstreamError>, Ended> {
        let conn = self.conn;
        if conn.flow.side == Side::Inbound {
            return Ok(Ok(None));
        }
        let found = conn.fars.find(target, http2);
        if found.is_some() || conn.pool.borrow().leads_to(target) || conn.upstreams.leads_to(target) {
            return Ok(Ok(found));
        }
        let Some((server, address)) = conn.pod.neighbour(target) else { return Ok(Ok(None)) };
        self.while_waiting(Box::pin(visit(conn, server, address, target, http2))).await
    }

    /// When the exchange is given up: the server's side and the client's have each their own patience.
    pub(super) fn bound(&mut self, bounds: Bounds) -> Bounds {
        let bounds = match &mut self.near {
            Some(near) => {
                let both = bounds.and(&near.bounds);
                near.idles_first = both.idles_as(&near.bounds);
                both
            }
            None => bounds,
        };
        self.client.bound(bounds);
        self.idle = bounds.idle.map(|(_, limit)| limit);
        bounds
    }

    /// Does the server's side of the request.
    pub(super) async fn across(
        &mut self,
        far: &Rc<Far>,
        target: &Target,
        way: &Way<'_>,
        bounds: Bounds,
    ) -> Result<After, Ended> {
        self.record.target(target, Some(&far.seen));
        let conn = &far.conn;
        let place = far.http2.then(|| conn.pod.admit_request());
        let mut lines = self.client.lines();
        if self.upgrade.is_some() {
            // For this hop.
            lines.remove(&CONNECTION);
            lines.remove(&UPGRADE);
        }
        heads::add_standard(conn, &mut lines);
        let web = self.web.clone().or_else(|| conn.grpc_web(&mut lines));
        let grpc = heads::says_grpc(&lines);
        let asked = Asked {
            method: self.method,
            path: &self.path,
            protocol: if far.http2 { "HTTP/2" } else { "HTTP/1.1" },
            authority: &self.authority,
            headers: &lines,
            head_size: lines.size(),
            grpc,
        };
        let record = Record::new(conn, &asked);
        drop(lines);
        let mut wanted = Wanted {
            conn,
            client: &mut *self.client,
            record,
            method: self.method,
            authority: Cow::Borrowed(&*self.authority),
            path: Cow::Borrowed(&*self.path),
            upgrade: self.upgrade.clone(),
            expects: self.expects,
            http2: far.http2,
            grpc,
            web,
            idle: None,
            near: Some(Near {
                conn: self.conn,
                record: &mut self.record,
                way,
                http2: self.http2,
                bounds,
                idles_first: false,
                ended: false,
            }),
        };
        let forwarded = async {
            match place {
                Some(None) => Err(Reply::overloaded().into()),
                _ => Box::pin(wanted.forward()).await,
            }
        };
        let answered = tokio::select! {
            biased;
            answered = forwarded => Some(answered),
            () = far.over.token().cancelled() => None,
        };
        let answered = match answered {
            Some(answered) => Some(wanted.told(answered)),
            None => {
                wanted.finish(Flags::DC);
                None
            }
        };
        let (request, response) = wanted.record.sizes();
        drop(wanted);
        for (pod, sent, received) in [(&self.conn.pod, request, response), (&conn.pod, response, request)] {
            pod.metrics.bytes().sent(Path::Neighbour, sent);
            pod.metrics.bytes().received(Path::Neighbour, received);
        }
        answered.unwrap_or_else(|| {
            let lost = Broken::Server(None);
            Err(if self.record.status == 0 { self.broken(lost) } else { self.cut_off(lost) })
        })
    }

    /// How the server's side ends, to its report and to the client's side.
    fn told(&mut self, answered: Result<After, Ended>) -> Result<After, Ended> {
        let is_near_s = self.near.as_ref().is_some_and(|near| near.ended);
        match answered {
            Ok(after) => {
                self.finish(Flags::NONE);
                Ok(after)
            }
            // As if it had been hung up on, or its stream reset.
            Err(ended) if is_near_s => {
                self.finish(if self.http2 { Flags::DR } else { Flags::DC });
                Err(ended)
            }
            Err(Ended::Cut(flags, reason)) => {
                self.finish(flags);
                let seen = if self.http2 { Flags::UR } else { Flags::UC };
                if let Some(near) = &mut self.near {
                    near.record.failure = Some("connection closed before the response was whole".to_owned());
                }
                Err(Ended::Cut(seen, reason))
            }
            Err(Ended::Reply(reply)) => Err(self.pass_on(*reply).into()),
        }
    }

    /// The answer of the server's side itself, which to the client's side is the server's.
    fn pass_on(&mut self, reply: Reply) -> Reply {
        let reply = self.worded(reply);
        let mut headers = HeaderMap::with_capacity(8);
        let mut lines = Map(&mut headers);
        reply.each_line(self.conn.server_name(), &mut |name, value| lines.append(name, value));
        reply.tell(&mut self.record, lines.size());
        (self.record.request_bytes, _) = self.client.traffic();
        self.record.response_bytes = if self.method == "HEAD" { 0 } else { reply.body.len() as u64 };
        self.record.finish(Flags::NONE);
        if let Some(near) = &mut self.near {
            heads::add_to_response(near.conn, near.record, &mut lines, reply.status.as_u16(), near.way);
        }
        reply.passed_on(headers)
    }
}
