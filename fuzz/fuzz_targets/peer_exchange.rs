//! What a peer says of itself on TCP (`istio-peer-exchange`), without the frame's header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::upstream::peer_exchange::parse;

fuzz_target!(|data: &[u8]| {
    if let Ok(peer) = parse(data) {
        assert!(peer.principal.is_empty() && peer.workload.len() <= 256);
    }
});
