//! Connections that a local workload opens, from accept to the end. Reads from top to bottom as the way of a connection.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use mesh_core::Snapshot;
use mesh_core::detect::Detect;
use mesh_core::resource::listener::{Detection, Listener, Terminal};
use tokio::net::TcpStream;

use super::chosen::{Chosen, Flow, Served, Side, server_name};
use super::detect::{FirstBytes, first_bytes, is_http2, spoken};
use super::pod::Pod;
use super::tcp;
use crate::kernel::Redirected;
use crate::net::copy::Duplex;
use crate::net::peek::{Peek, Peeked};
use crate::upstream::stream::Stream;

/// Serves one accepted connection.
pub(super) fn serve(pod: Rc<Pod>, accepted: TcpStream) -> impl Future<Output = ()> {
    // Each stage has a box of its own: a held connection costs what its last stage needs, not what some stage might.
    let leading = Box::pin(lead(pod.clone(), accepted));
    async move {
        if let Some(served) = leading.await {
            served.run(pod).await;
        }
    }
}

/// Leads a connection to the codec or relay that serves it. `None`: it was reset, and reported if there was anything to tell.
async fn lead(pod: Rc<Pod>, mut accepted: TcpStream) -> Option<Served> {
    let pod = &*pod;
    let Some((client, Redirected { to: destination, chosen, shortcut })) = ends(pod, &accepted) else {
        accepted.reset();
        return None;
    };
    let mut downstream = Peeked::new(pod.stream_from(accepted, shortcut));
    let Some(snapshot) = pod.config().await else {
        tracing::warn!(workload = pod.name, %destination, "no configuration yet: connection reset");
        downstream.reset();
        return None;
    };
    let flow = Flow { chosen, ..Flow::new(Side::Outbound, client, destination) };
    let Some(listener) = snapshot.outbound(flow.destination) else {
        tcp::refuse_without_chain(pod, &flow, downstream, None);
        return None;
    };
    let detected = match listener.detection(flow.destination, flow.proved()) {
        Detection::NotNeeded => None,
        Detection::Needed => match first_bytes(&mut downstream, listener).await {
            Ok(FirstBytes::Spoke(detected)) => Some(detected),
            Ok(FirstBytes::Silent) if may_go_on(listener) => {
                match end_of_silence(pod, &flow, listener, &snapshot, &mut downstream).await {
                    Silence::ServerSpoke(upstream, chosen, said) => {
                        return Some(Served::tcp(flow, downstream, *upstream, &chosen, None, said));
                    }
                    Silence::ClientSpoke(detected) => Some(detected),
                    Silence::Broken => {
                        downstream.reset();
                        return None;
                    }
                }
            }
            Ok(FirstBytes::Silent) | Err(_) => {
                downstream.reset();
                return None;
            }
        },
    };
    let name = server_name(detected.as_ref());
    let Some(chosen) = Chosen::new(listener, &flow, detected.as_ref()) else {
        tcp::refuse_without_chain(pod, &flow, downstream, name);
        return None;
    };
    match chosen.terminal() {
        Some(Terminal::Tcp(proxy)) => match tcp::connect(pod, &flow, proxy, &snapshot).await {
            Ok(upstream) => Some(Served::tcp(flow, downstream, upstream, &chosen, name, Bytes::new())),
            Err(failure) => {
                tcp::refuse(pod, &flow, downstream, &failure, name);
                None
            }
        },
        Some(Terminal::Http(manager)) => {
            let http2 = match &detected {
                Some(detected) => *detected == Detect::Http2,
                None => is_http2(&mut downstream, manager.codec).await.ok()?,
            };
            Some(Served::http(flow, downstream, chosen, http2, None))
        }
        None => {
            tcp::refuse_without_chain(pod, &flow, downstream, name);
            None
        }
    }
}

/// What is known of a connection that nobody serves.
pub(super) fn flow(pod: &Pod, stream: &TcpStream) -> Option<Flow> {
    let (client, Redirected { to, .. }) = ends(pod, stream)?;
    Some(Flow::new(Side::Outbound, client, to))
}

/// Who connected, and where to before the kernel redirected it. `None` for a connection that was not redirected: somebody
/// dialled the listener by hand, or means the agent itself.
fn ends(pod: &Pod, stream: &TcpStream) -> Option<(SocketAddr, Redirected)> {
    let client = stream.peer_addr().ok()?;
    let redirected = match pod.redirected(stream) {
        Ok(redirected) => redirected?,
        Err(error) => {
            tracing::warn!(workload = pod.name, %error, "cannot read an original destination");
            return None;
        }
    };
    if pod.is_own_listener(redirected.to) {
        return None;
    }
    // A wish of the application for low latency costs nothing to grant always.
    stream.set_nodelay(true).ok()?;
    Some((pod.shown(client, redirected.to), redirected))
}

fn may_go_on(listener: &Listener) -> bool {
    // Without a time of its own a listener would wait for ever; going on as opaque is what lets such a server speak.
    listener.continue_on_timeout || listener.detection_timeout.is_none_or(|wait| wait.is_zero())
}

/// What ended the silence.
enum Silence {
    /// The server's first bytes, on a connection made by the chain for opaque bytes.
    ServerSpoke(Box<tcp::Upstream>, Chosen, Bytes),
    ClientSpoke(Detect),
    Broken,
}

/// The client waits. Connects as for opaque bytes, so that a server that speaks first can; whoever speaks first decides.
async fn end_of_silence(
    pod: &Pod,
    flow: &Flow,
    listener: &Arc<Listener>,
    snapshot: &Snapshot,
    downstream: &mut Peeked<Stream>,
) -> Silence {
    let server = async {
        let chosen = Chosen::new(listener, flow, None)?;
        let Some(Terminal::Tcp(proxy)) = chosen.terminal() else { return None };
        let mut upstream = tcp::connect(pod, flow, proxy, snapshot).await.ok()?;
        let said = first_of(&mut upstream).await?;
        Some(Silence::ServerSpoke(Box::new(upstream), chosen, said))
    };
    let client = async {
        match spoken(downstream).await {
            Ok(detected) => Silence::ClientSpoke(detected),
            Err(_) => Silence::Broken,
        }
    };
    tokio::pin!(client);
    tokio::select! {
        biased;
        silence = &mut client => silence,
        // Where it cannot connect, or the server leaves without a word, only the client can end the silence.
        served = server => match served {
            Some(silence) => silence,
            None => client.await,
        },
    }
}

/// The first bytes of a server; `None` if it ends without any.
async fn first_of(upstream: &mut tcp::Upstream) -> Option<Bytes> {
    let mut peeked = Peeked::new(&mut upstream.connected.stream);
    match peeked.more(1).await {
        Ok(Peek::More) => Some(Bytes::copy_from_slice(peeked.seen())),
        Ok(Peek::End | Peek::Full) | Err(_) => None,
    }
}
