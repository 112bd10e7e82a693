//! Connections to a local workload: those that come in the open, where that is allowed, or by TLS to a port ([`secured`]), and
//! from [`lead`] on also those from a tunnel.
//!
//! For a client that may come in the open the application is dialled before anything is read, at the address that the client
//! dialled: it sees the connection as early as without the mesh, it may speak first, and its refusal is the client's refusal.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use mesh_core::Snapshot;
use mesh_core::balance::PickContext;
use mesh_core::detect::Detect;
use mesh_core::resource::listener::{Detection, Terminal};
use tokio::net::TcpStream;

use super::authorize::Facts;
use super::chosen::{Chosen, Flow, Served, Side, server_name};
use super::cluster;
use super::detect::{is_http2, spoken};
use super::pod::Pod;
use super::secured::Hello;
use super::{authorize, plaintext, probe, secured, tcp};
use crate::net::copy::Duplex;
use crate::net::peek::Peeked;
use crate::random::random;
use crate::settings::probes::Probe;
use crate::upstream::Connected;
use crate::upstream::stream::Stream;

/// Serves one connection that does not come through a tunnel: by TLS where its chain ends that, else in the open, for as long as
/// plaintext may come in. Nobody dials the application for a client that may not.
pub(super) async fn serve(pod: Rc<Pod>, mut accepted: TcpStream) {
    let Some((facts, probes)) = enter(&pod, &accepted) else {
        accepted.reset();
        return;
    };
    if !probes.is_empty() {
        return Box::pin(probe::serve(pod, facts.client, facts.destination, accepted, probes)).await;
    }
    // Boxed as in `outbound`.
    let forbidden = Box::pin(forbidden(&pod, &facts));
    match Box::pin(come_in(&pod, &facts, accepted)).await {
        // By its identity it is judged anew.
        Some(Served::Tls(hello)) => secured::serve(pod.clone(), hello).await,
        Some(served) => tokio::select! {
            () = served.run(pod.clone()) => {}
            () = forbidden => {}
        },
        None => {}
    }
}

async fn come_in(pod: &Pod, facts: &Facts, accepted: TcpStream) -> Option<Served> {
    let mut downstream = Peeked::new(Stream::plain(accepted, pod.metrics.bytes()));
    if let Some((snapped, detected)) = Box::pin(secured::only_tls(pod, facts, &mut downstream)).await {
        let flow = Flow::new(Side::Inbound, facts.client, facts.destination);
        match Hello::new(snapped, flow, &detected, downstream) {
            Ok(hello) => return Some(Served::Tls(hello)),
            Err(back) => downstream = back,
        }
    }
    admit_and_lead(pod, facts, downstream).await
}

/// Who connected, and the probes that it may send if it may do nothing else. Boxed: a connection holds it all its life.
fn enter(pod: &Pod, accepted: &TcpStream) -> Option<(Box<Facts>, Vec<Probe>)> {
    let (client, destination) = ends(pod, accepted)?;
    let facts = Box::new(Facts::in_the_open(client, destination));
    let mut probes = pod.probes(client, destination);
    if !probes.is_empty() && plaintext::is_open(pod, client, destination) && authorize::is_open(pod, &facts) {
        probes.clear();
    }
    Some((facts, probes))
}

/// Resolves when a connection in the open may no longer be there.
async fn forbidden(pod: &Pod, facts: &Facts) {
    tokio::select! {
        biased;
        () = plaintext::forbidden(pod, facts.client, facts.destination) => {}
        () = authorize::forbidden(pod, facts) => {}
    }
}

async fn admit_and_lead(pod: &Pod, facts: &Facts, accepted: Peeked<Stream>) -> Option<Served> {
    let flow = Flow::new(Side::Inbound, facts.client, facts.destination);
    let snapshot = match plaintext::admit(pod, &flow).await {
        Ok(snapshot) => snapshot,
        Err(refusal) => {
            plaintext::refuse(pod, &flow, accepted, refusal);
            return None;
        }
    };
    if let Err(denial) = authorize::admit(pod, facts).await {
        authorize::refuse(pod, &flow, accepted, &denial);
        return None;
    }
    tokio::select! {
        served = dial_and_lead(pod, flow, &snapshot, accepted) => served,
        () = forbidden(pod, facts) => None,
    }
}

async fn dial_and_lead(
    pod: &Pod,
    flow: Flow,
    snapshot: &Arc<Snapshot>,
    mut accepted: Peeked<Stream>,
) -> Option<Served> {
    match pod.dial_app(&flow).await {
        Ok(app) => lead(pod, flow, snapshot, accepted, app).await,
        Err(error) => {
            tracing::debug!(workload = pod.name, %error, "the application does not answer");
            accepted.reset();
            None
        }
    }
}

/// What is known of a connection that nobody serves.
pub(super) fn flow(pod: &Pod, accepted: &TcpStream) -> Option<Flow> {
    let (client, destination) = ends(pod, accepted)?;
    Some(Flow::new(Side::Inbound, client, destination))
}

/// Who connected, and to what: the accepted socket's own address is the one that the client dialled.
fn ends(pod: &Pod, accepted: &TcpStream) -> Option<(SocketAddr, SocketAddr)> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let client = canonical(accepted.peer_addr().ok()?);
    let destination = canonical(accepted.local_addr().ok()?);
    if !pod.serves(destination) {
        return None;
    }
    accepted.set_nodelay(true).ok()?;
    Some((client, destination))
}

/// Leads a connection whose application is connected to the codec or relay that serves it. `None`: it was reset, and reported if there was anything to tell.
pub(super) async fn lead(
    pod: &Pod,
    flow: Flow,
    snapshot: &Arc<Snapshot>,
    mut downstream: Peeked<Stream>,
    app: Connected,
) -> Option<Served> {
    let Some(listener) = snapshot.inbound() else {
        tcp::refuse_without_chain(pod, &flow, downstream, None);
        return None;
    };
    let first = match listener.detection(flow.destination, flow.proved()) {
        Detection::NotNeeded => First::Unheard,
        Detection::Needed => first_to_speak(&mut downstream, &app.stream).await,
    };
    let detected = match first {
        First::Unheard => None,
        First::Application if flow.proved() => None,
        First::Application => secured::late_hello(listener, flow.destination, &mut downstream).await,
        First::Client(detected) => Some(detected),
        First::Broken => {
            downstream.reset();
            return None;
        }
    };
    let name = server_name(detected.as_ref());
    let Some(chosen) = Chosen::new(listener, &flow, detected.as_ref()) else {
        tcp::refuse_without_chain(pod, &flow, downstream, name);
        return None;
    };
    if let Some(tls) = chosen.tls(&flow) {
        let name = name.map(Into::into);
        let (snapshot, app) = (snapshot.clone(), Some(app));
        return Some(Served::Tls(Box::new(Hello { flow, snapshot, downstream, chosen, tls, detected, name, app })));
    }
    let http2 = detected.as_ref().map(|detected| *detected == Detect::Http2);
    serve_by(pod, Inside { flow, downstream, chosen, app }, snapshot, http2, name).await
}

/// A connection without any TLS of ours around it any more, the chain that serves it, and its application.
pub(super) struct Inside {
    pub(super) flow: Flow,
    pub(super) downstream: Peeked<Stream>,
    pub(super) chosen: Chosen,
    pub(super) app: Connected,
}

/// Gives a connection to the codec or relay that its chain says. `http2`: whether it speaks that, if it is known already.
pub(super) async fn serve_by(
    pod: &Pod,
    inside: Inside,
    snapshot: &Snapshot,
    http2: Option<bool>,
    name: Option<&str>,
) -> Option<Served> {
    let Inside { flow, mut downstream, chosen, app } = inside;
    match chosen.terminal() {
        Some(Terminal::Tcp(proxy)) => {
            let cluster = &proxy.clusters.pick(random()).name;
            match cluster::choose(snapshot, cluster, &flow, &PickContext::default(), |_| None) {
                Ok(target) => {
                    let upstream = tcp::Upstream { target, connected: app };
                    Some(Served::tcp(flow, downstream, upstream, &chosen, name, Bytes::new()))
                }
                Err(none) => {
                    tcp::refuse(pod, &flow, downstream, &tcp::Failure::no_target(none, cluster), name);
                    None
                }
            }
        }
        Some(Terminal::Http(manager)) => {
            let http2 = match http2 {
                Some(http2) => http2,
                None => is_http2(&mut downstream, manager.codec).await.ok()?,
            };
            Some(Served::http(flow, downstream, chosen, http2, Some(app)))
        }
        None => {
            tcp::refuse_without_chain(pod, &flow, downstream, name);
            None
        }
    }
}

/// Who spoke first.
enum First {
    /// Nobody was listened to.
    Unheard,
    Client(Detect),
    /// The application spoke, or left: only an opaque protocol begins so.
    Application,
    Broken,
}

/// Listens to both ends at once: there is no time to wait for, because one of them will speak.
async fn first_to_speak(downstream: &mut Peeked<Stream>, app: &Stream) -> First {
    let client = async {
        match spoken(downstream).await {
            Ok(detected) => First::Client(detected),
            Err(_) => First::Broken,
        }
    };
    tokio::pin!(client);
    let application = tokio::select! {
        biased;
        first = &mut client => return first,
        heard = heard(app) => heard,
    };
    match application {
        Ok(Heard::Http2) => client.await,
        Ok(Heard::Else) => First::Application,
        Err(_) => First::Broken,
    }
}

/// What an application says unasked.
enum Heard {
    /// Settings of HTTP/2, which its client is about to speak too.
    Http2,
    /// Anything else, or its end.
    Else,
}

/// Waits for the application's first bytes and leaves them where they are.
async fn heard(app: &Stream) -> std::io::Result<Heard> {
    let Some(app) = app.tcp() else { return std::future::pending().await };
    let mut head = [0; 9];
    let n = app.peek(&mut head).await?;
    // Frame header (RFC 9113, 4.1): length, type 4, no flags, stream 0.
    Ok(if n == head.len() && head[3..] == [4, 0, 0, 0, 0, 0] { Heard::Http2 } else { Heard::Else })
}
