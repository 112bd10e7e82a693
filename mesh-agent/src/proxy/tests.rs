//! Connections through the proxy, on loopback, with configuration as a control plane sends it.

mod across;
mod config;
mod cost;
mod grpc;
mod h2;
mod http;
mod http1;
mod http2;
mod http2_faults;
mod limits;
/// The builders that mesh-core's tests use too: two copies would part.
#[path = "../../../mesh-core/src/testing.rs"]
pub(crate) mod messages;
mod mixed;
mod pair;
mod plaintext;
mod policies;
mod probe;
mod slow;
mod switch;
mod tcp;
mod tls;
mod told;
mod world;

use std::rc::Rc;
use std::sync::Arc;

use mesh_core::detect::Detect;

use super::*;
use crate::net::peek::Peeked;
use crate::telemetry::{Peer, Protocol};
use crate::upstream::stream::Stream;
use chosen::{Chosen, Flow, Served, Side};
use config::Config;
use world::{World, pair};

/// What a connection costs while nothing happens on it, beside its sockets and its place in a tunnel. By size of allocation: mimalloc
/// rounds up to one of these.
#[tokio::test]
async fn a_held_connection_is_small() {
    let world = World::new();
    world.configure(Config::new().build());
    let ((a, b), (c, d)) = tokio::join!(pair(), pair());
    let to = "10.0.0.2:80".parse().unwrap();
    let flow = Flow::new(Side::Inbound, to, to);
    let snapshot = world.pod().snapshot().unwrap();
    let chosen = Chosen::new(snapshot.inbound().unwrap(), &flow, Some(&Detect::Http1)).unwrap();
    let http = Served::http(flow, Peeked::new(Stream::Tcp(d)), chosen, false, None).run(world.pod());
    for (name, size, most) in [
        ("outbound", size_of_val(&outbound::serve(world.pod(), a)), 128),
        ("inbound", size_of_val(&inbound::serve(world.pod(), b)), 256),
        ("HTTP/1", size_of_val(&*http), 512),
        ("tunnel", size_of_val(&tunnel::serve(world.pod(), c)), 4 << 10),
    ] {
        println!("{name}: {size} bytes");
        assert!(size <= most, "{name}: {size} bytes");
    }
}

#[tokio::test]
async fn series_are_shared_by_equal_labels_and_bounded() {
    let pod = World::new().pod();
    let address = "10.0.0.2:80".parse().unwrap();
    let of = |workload: usize| {
        let source = Peer { workload: workload.to_string().into(), ..Peer::default() };
        let flow = Flow { source: Some(Arc::new(source)), ..Flow::new(Side::Inbound, address, address) };
        pod.series(report::labels(&pod, &flow, &report::Far::default(), Protocol::Http))
    };
    let (first, other) = (of(0), of(1));
    assert!(Rc::ptr_eq(&first, &of(0)) && !Rc::ptr_eq(&first, &other));
    (0..1000).for_each(|workload| drop(of(workload)));
    assert!(pod.series_kept() <= 256, "{} kept", pod.series_kept());
}
