//! One request of an HTTP/2 client, from its head to the end of the answer.
//!
//! In: the request, and where its answer goes. Out: the answer, and a report. A head that `h2` lets pass and RFC 9113, 8.3, does not is
//! answered with 400. Never: touches another stream of the connection.

use std::borrow::Cow;
use std::future::poll_fn;
use std::rc::Rc;

use ::http::header::{EXPECT, HOST, HeaderMap};
use ::http::uri::{Authority, PathAndQuery};
use ::http::{Method, Request};
use bytes::Bytes;
use h2::RecvStream;
use h2::ext::Protocol;
use h2::server::SendResponse;
use mesh_http::{Refusal, is_host, is_target};

use super::super::Conn;
use super::super::exchange::{Client, Ended, Wanted};
use super::super::heads::{self, Lines, Map};
use super::super::record::{Asked, Record};
use super::super::reply::Reply;
use super::super::timer::Alarms;
use super::client::Http2;
use super::watch::Resets;
use crate::errors::Flags;
use crate::telemetry::Limit;

/// Serves one request.
pub(super) async fn serve(
    conn: Rc<Conn>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    alarms: Rc<Alarms>,
    resets: Rc<Resets>,
) {
    let place = conn.pod.admit_request();
    let (mut head, body) = request.into_parts();
    let too_many = head.headers.len() > conn.pod.budget.limits().head_lines;
    heads::add_standard(&conn, &mut Map(&mut head.headers));
    let host = head.headers.remove(HOST);
    let named = head.uri.authority().map(Authority::as_str).or(host.as_ref().and_then(|host| host.to_str().ok()));
    let authority = named.filter(|named| !named.is_empty());
    let protocol = head.extensions.get::<Protocol>().map(|protocol| protocol.as_str().to_ascii_lowercase());
    // What asks to switch is to rules what it is in HTTP/1.
    let method = if protocol.is_some() { Method::GET } else { head.method };
    let path = head.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let refusal = check(&method, authority, path).or(too_many.then_some(Refusal::TooManyLines));
    if too_many {
        conn.pod.budget.reached(Limit::HeadLines);
    }
    let mut lines = Map(&mut head.headers);
    let web = conn.grpc_web(&mut lines);
    let (grpc, size) = (heads::says_grpc(&lines), lines.size());
    let record = Record::new(
        &conn,
        &Asked {
            method: method.as_str(),
            path,
            protocol: "HTTP/2",
            authority: authority.unwrap_or_default(),
            headers: &head.headers,
            head_size: size,
            grpc,
        },
    );
    let expects = head.headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let mut client = Http2::new(head.headers, body, respond, &alarms, resets);
    let mut wanted = Wanted {
        conn: &conn,
        client: &mut client,
        record,
        method: method.as_str(),
        authority: Cow::Borrowed(authority.unwrap_or_default()),
        path: Cow::Borrowed(path),
        upgrade: protocol,
        expects,
        http2: true,
        grpc,
        web,
        idle: None,
        near: None,
    };
    let answered = match refusal {
        Some(refusal) => Err(Reply::refused(refusal).into()),
        None if place.is_none() => Err(Reply::overloaded().into()),
        None => wanted.forward().await,
    };
    match answered {
        Ok(_) => wanted.finish(Flags::NONE),
        Err(Ended::Reply(reply)) => answer(&mut wanted, *reply).await,
        Err(Ended::Cut(flags, reason)) => {
            // What has been sent goes out first: a reset overtakes it.
            tokio::task::yield_now().await;
            wanted.client.abort(reason);
            wanted.finish(flags);
        }
    }
}

/// Pseudo headers that could be read in two ways, or that the other version has no place for.
fn check(method: &Method, authority: Option<&str>, path: &str) -> Option<Refusal> {
    let whole = match path.as_bytes() {
        [] => *method == Method::CONNECT,
        [b'/', ..] => is_target(path.as_bytes()),
        b"*" => *method == Method::OPTIONS,
        _ => false,
    };
    match authority {
        None => Some(Refusal::NoHost),
        Some(host) if !is_host(host.as_bytes()) => Some(Refusal::Host),
        Some(_) if !whole => Some(Refusal::Target),
        Some(_) => None,
    }
}

/// Gives the agent's own answer.
async fn answer(wanted: &mut Wanted<'_, Http2>, reply: Reply) {
    let reply = wanted.worded(reply);
    let mut headers = HeaderMap::with_capacity(8);
    let mut lines = Map(&mut headers);
    reply.each_line(wanted.conn.server_name(), &mut |name, value| lines.append(name, value));
    let size = lines.size();
    reply.tell(&mut wanted.record, size);
    let over = reply.body.is_empty() || wanted.method == "HEAD";
    let client = &mut *wanted.client;
    let mut sent = client.respond(reply.status, headers, over);
    if sent.is_ok() && !over {
        client.put(reply.body, true);
        sent = poll_fn(|cx| client.poll_flush(cx)).await;
    }
    wanted.finish(if sent.is_ok() { Flags::NONE } else { Flags::DC });
}
