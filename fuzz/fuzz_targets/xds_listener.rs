//! Any bytes are a listener or refused; of what is accepted a chain can be chosen, and where first
//! bytes are said not to be needed they make no difference. A port closed to plaintext stays so.
#![no_main]

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::listener::v3 as pb;
use libfuzzer_sys::fuzz_target;
use mesh_core::detect::Detect;
use mesh_core::resource::listener::{ConnFacts, Detection, Listener};
use prost::Message;

fuzz_target!(|body: &[u8]| {
    let Ok(message) = pb::Listener::decode(body) else { return };
    let Ok(listener) = Listener::parse(&message.name, body) else { return };
    for port in [0, 80, 9080, 15006, 65535] {
        let destination = SocketAddr::from(([10, 0, 0, 1], port));
        let source = SocketAddr::from(([10, 0, 0, 2], 1000));
        for mutual_tls in [false, true] {
            let blind = ConnFacts { destination, source, detected: None, mutual_tls };
            let without = listener.chain(&blind).map(std::ptr::from_ref);
            for detected in [Detect::Http1, Detect::Http2, Detect::Tls(None), Detect::Opaque] {
                let facts = ConnFacts { detected: Some(&detected), ..blind };
                let with = listener.chain(&facts).map(std::ptr::from_ref);
                if listener.detection(destination, mutual_tls) == Detection::NotNeeded {
                    assert_eq!(with, without);
                }
                // Where nobody may come in the open, no bytes open a door.
                if !mutual_tls && !listener.admits_plaintext(source, destination) {
                    assert!(listener.chain(&facts).is_none_or(|chain| !chain.serves_plaintext()));
                }
            }
        }
    }
});
