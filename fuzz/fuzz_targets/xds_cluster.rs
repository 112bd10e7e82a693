//! Any bytes are a cluster or refused, and parsing it twice gives the same.
#![no_main]

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use libfuzzer_sys::fuzz_target;
use mesh_core::resource::cluster::Cluster;
use prost::Message;

fuzz_target!(|body: &[u8]| {
    // The resource's own name, so that parsing goes on past the check of names.
    let Ok(message) = pb::Cluster::decode(body) else { return };
    let first = Cluster::parse(&message.name, body, None);
    let again = Cluster::parse(&message.name, body, first.as_ref().ok());
    assert_eq!(first, again);
});
