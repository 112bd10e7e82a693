//! One request of an HTTP/1 client, and its way to a server that speaks HTTP/1 too: bytes that stay as they are.
//!
//! In: a parsed head, and the connection that it came by. Out: the response written; a report; and what becomes of the connection.
//! Never: copies a body, parses one more than it must.

use std::borrow::Cow;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::Buf;
use mesh_http::{Body, Framing, Known, ResponseHead, Version};

use super::super::Conn;
use super::super::exchange::{After, Broken, Client, Ended, Failed, MAX_INTERIM, MAX_STALE, Wanted};
use super::super::heads::{self, View};
use super::super::record::{Asked, Record};
use super::super::reply::Reply;
use super::super::route::Way;
use super::Session;
use super::client::Http1;
use super::pool::Upstream;
use super::relay::{Form, Relay, form};
use super::work::Work;
use crate::errors::Flags;
use crate::net::copy::Duplex;
use crate::proxy::cluster::Target;

/// Serves the request whose head is at the front of what the client has sent.
pub(super) async fn serve(conn: &Rc<Conn>, session: &mut Session, work: &mut Work) -> After {
    let Session { client, timer } = session;
    let head = client.seen.split_to(work.request.len);
    let mut memory = std::mem::take(&mut work.to_client);
    memory.clear();
    client.refill(memory);
    let request = &mut work.request;
    let mut lines = View { fields: &mut request.fields, buf: &head };
    heads::add_standard(conn, &mut lines);
    let web = conn.grpc_web(&mut lines);
    let grpc = heads::says_grpc(&lines);
    let authority = match request.authority(&head) {
        "" => Cow::Owned(conn.flow.destination.to_string()),
        named => Cow::Borrowed(named),
    };
    let path = request.path(&head);
    let size = request.fields.size();
    let record = Record::new(
        conn,
        &Asked {
            method: request.method(&head),
            path: &path,
            protocol: if request.version == Version::Http10 { "HTTP/1.0" } else { "HTTP/1.1" },
            authority: &authority,
            headers: &View { fields: &mut request.fields, buf: &head },
            head_size: size,
            grpc,
        },
    );
    let upgrade = request.upgrade(&head).map(|wanted| String::from_utf8_lossy(wanted).to_ascii_lowercase());
    let (method, expects) = (request.method(&head), request.expects_continue);
    request.fields.strip_hop_by_hop(&head, request.framing == Framing::Chunked);
    let mut client = Http1::new(conn, client, timer, work, &head);
    let mut wanted = Wanted {
        conn,
        client: &mut client,
        record,
        method,
        authority,
        path,
        upgrade,
        expects,
        http2: false,
        grpc,
        web,
        idle: None,
        near: None,
    };
    let after = match wanted.forward().await {
        Ok(after) => {
            wanted.finish(Flags::NONE);
            after
        }
        Err(Ended::Reply(reply)) => answer(&mut wanted, *reply).await,
        Err(Ended::Cut(flags, reason)) => {
            wanted.client.abort(reason);
            wanted.finish(flags);
            After::Close
        }
    };
    let memory = wanted.client.link.take_back();
    wanted.client.work.to_client = memory;
    after
}

/// Sends the request to a target that speaks HTTP/1 and passes the answer on.
pub(super) async fn forward(
    wanted: &mut Wanted<'_, Http1<'_>>,
    target: &Target,
    way: &Way<'_>,
) -> Result<Result<After, Failed>, Ended> {
    match send(wanted, target).await? {
        Ok(upstream) => respond(wanted, upstream, way).await.map(Ok),
        Err(failed) => Ok(Err(failed)),
    }
}

/// Sends the request on a connection to the target; if the server has closed that meanwhile, on another one. Gives the connection
/// on which a response's head has come, or why there is no connection.
async fn send(wanted: &mut Wanted<'_, Http1<'_>>, target: &Target) -> Result<Result<Box<Upstream>, Failed>, Ended> {
    let (method, head) = (wanted.method, wanted.client.head);
    let mut out = std::mem::take(&mut wanted.client.work.to_server);
    out.clear();
    let request = &wanted.client.work.request;
    let path = if request.is_connect(head) { &wanted.authority } else { &wanted.path };
    request.write(head, path, &mut out);
    let safe = wanted.client.body.is_done() && is_idempotent(method);
    let mut stale = 0;
    loop {
        let mut upstream = match wanted.connection(target).await? {
            Ok(upstream) => upstream,
            // What has been taken of the body is in `out` only: another attempt would be without it.
            Err(error) if stale > 0 => return Err(Reply::unconnected(&error).into()),
            Err(error) => {
                wanted.client.work.to_server = out;
                return Ok(Err(Failed::Unconnected(error)));
            }
        };
        wanted.record.target(target, Some(&upstream.seen));
        upstream.link.refill(std::mem::take(&mut out));
        wanted.say_continue();
        let may_be_stale = upstream.reused && stale < MAX_STALE;
        let mut response = std::mem::take(&mut wanted.client.work.response);
        let mut relay = Relay::new(wanted.client, &mut upstream.link);
        let seen = poll_fn(|cx| relay.poll_head(cx, &mut response, method)).await;
        let whole = relay.whole;
        wanted.client.work.response = response;
        let Err(broken) = seen else { return Ok(Ok(upstream)) };
        if let Broken::Server(_) = &broken
            && upstream.link.seen.is_empty()
            && may_be_stale
            && whole
            && (safe || upstream.link.is_unsent())
        {
            stale += 1;
            out = upstream.link.take_back();
            continue;
        }
        return Err(wanted.broken(broken));
    }
}

/// Passes the response on whose head has come.
async fn respond(
    wanted: &mut Wanted<'_, Http1<'_>>,
    mut upstream: Box<Upstream>,
    way: &Way<'_>,
) -> Result<After, Ended> {
    let method = wanted.method;
    let mut interim = 0;
    while wanted.client.work.response.is_interim() {
        interim += 1;
        if interim > MAX_INTERIM {
            return Err(Reply::upstream_garbage().into());
        }
        pass_interim(wanted.client, &mut upstream);
        let mut response = std::mem::take(&mut wanted.client.work.response);
        let mut relay = Relay::new(wanted.client, &mut upstream.link);
        let seen = poll_fn(|cx| relay.poll_head(cx, &mut response, method)).await;
        wanted.client.work.response = response;
        if let Err(broken) = seen {
            return Err(wanted.broken(broken));
        }
    }
    let ResponseHead { framing, status, len, keep_alive, .. } = wanted.client.work.response;
    let switches = framing == Framing::Tunnel;
    if switches && status == 101 && wanted.upgrade.is_none() {
        return Err(Reply::upstream_garbage().into());
    }
    let old = wanted.client.work.request.version == Version::Http10;
    let (form, stays) = form(framing, old);
    let stays = stays && wanted.client.stays();
    let head = upstream.link.seen.split_to(len);
    write_head(wanted, &head, way, form, stays, switches);
    if switches {
        return wanted.tunnel(&mut upstream.link).await;
    }
    let mut body = Body::new(framing);
    let mut relay = Relay::new(wanted.client, &mut upstream.link);
    let mut over = false;
    let done = poll_fn(|cx| relay.poll_response(cx, &mut body, form, &mut over)).await;
    let (grpc_status, refuses) = (relay.grpc_status, relay.refuses);
    wanted.grpc(grpc_status);
    if let Err(broken) = done {
        if form == Form::Same && framing == Framing::UntilClose {
            // Otherwise what came so far would look like all of it.
            wanted.client.link.reset();
        }
        return Err(wanted.cut_off(broken));
    }
    let link = &mut upstream.link;
    let asked = wanted.client.body.is_done();
    let quiet = link.is_flushed() && link.seen.is_empty() && !link.finished && !refuses;
    wanted.client.work.to_server = link.take_back();
    if keep_alive && framing != Framing::UntilClose && asked && quiet {
        wanted.conn.pool.borrow_mut().put(upstream);
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
fn pass_interim(client: &mut Http1<'_>, upstream: &mut Upstream) {
    let response = &mut client.work.response;
    let head = upstream.link.seen.split_to(response.len);
    if response.status != 100 && client.work.request.version == Version::Http11 {
        response.strip_hop_by_hop(&head, false);
        response.write(&head, client.link.out());
    }
}

/// The head of the upstream's answer as it goes on.
fn write_head(wanted: &mut Wanted<'_, Http1<'_>>, head: &[u8], way: &Way<'_>, form: Form, stays: bool, switches: bool) {
    let Work { request, response, .. } = &mut *wanted.client.work;
    let protocol = response.fields.known(head, Known::Upgrade).filter(|_| switches).map(<[u8]>::to_vec);
    response.strip_hop_by_hop(head, form == Form::Same && response.framing == Framing::Chunked);
    let ResponseHead { fields, status, .. } = response;
    if let Some(protocol) = protocol {
        fields.append("connection", b"upgrade");
        fields.append("upgrade", &protocol);
    }
    let lines = &mut View { fields, buf: head };
    heads::finish(wanted.conn, &mut wanted.record, wanted.near.as_mut(), lines, *status, way);
    if form == Form::Chunks {
        fields.append("transfer-encoding", b"chunked");
    }
    if !stays && !switches {
        fields.append("connection", b"close");
    } else if request.version == Version::Http10 && !switches {
        fields.append("connection", b"keep-alive");
    }
    response.write(head, wanted.client.link.out());
}

/// Gives the agent's own answer.
async fn answer(wanted: &mut Wanted<'_, Http1<'_>>, reply: Reply) -> After {
    // What is there of the body goes; a client that still sends gets its answer, and no other.
    let reply = wanted.worded(reply);
    let client = &mut *wanted.client;
    let asked = match client.body.pass(&client.link.seen) {
        Ok(step) => {
            client.link.seen.advance(step.taken);
            client.body.is_done()
        }
        Err(_) => false,
    };
    let stays = client.stays() && asked;
    let head = wanted.method == "HEAD";
    let link = &mut *client.link;
    let before = link.out().len();
    reply.write(wanted.conn.server_name(), !stays, head, link.out());
    let body = if head { 0 } else { reply.body.len() };
    let size = (link.out().len() - before - body) as u64;
    reply.tell(&mut wanted.record, size);
    let flushed = poll_fn(|cx| link.poll_flush(cx)).await;
    client.sent = body as u64;
    wanted.finish(if flushed.is_ok() { Flags::NONE } else { Flags::DC });
    match (flushed, stays, asked) {
        (Err(_), ..) => After::Close,
        (Ok(()), true, _) => After::Next,
        (Ok(()), false, true) => After::Close,
        (Ok(()), false, false) => After::Linger,
    }
}

/// RFC 9110, 9.2.2.
pub(in super::super) fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}
