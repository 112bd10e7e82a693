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

use super::*;
use world::{World, pair};

#[tokio::test]
async fn a_held_connection_is_small() {
    let world = World::new();
    let ((a, b), (c, _d)) = tokio::join!(pair(), pair());
    for (name, size, most) in [
        ("outbound", size_of_val(&outbound::serve(world.pod(), a)), 1024),
        ("inbound", size_of_val(&inbound::serve(world.pod(), b)), 1024),
        ("tunnel", size_of_val(&tunnel::serve(world.pod(), c)), 9 << 10),
    ] {
        println!("{name}: {size} bytes");
        assert!(size <= most, "{name}: {size} bytes");
    }
}
