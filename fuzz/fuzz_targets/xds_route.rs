//! Any bytes are a route table or refused; of what is accepted requests can be routed and rewritten.
#![no_main]

use envoy_types::pb::envoy::config::route::v3 as pb;
use libfuzzer_sys::fuzz_target;
use mesh_core::resource::route::{Action, RequestHead, RouteOutcome, RouteTable};
use prost::Message;

fuzz_target!(|body: &[u8]| {
    let Ok(message) = pb::RouteConfiguration::decode(body) else { return };
    let Ok(table) = RouteTable::parse(&message.name, body) else { return };
    let headers: Vec<(&str, &[u8])> = vec![("x", b"1"), ("cookie", b"a=b; c"), ("x", b"\xff")];
    let domains = message.virtual_hosts.iter().flat_map(|host| host.domains.iter());
    for authority in domains.map(String::as_str).chain(["", "a:80", "[::1]:80"]) {
        for path in ["", "/", "*", "/a/b?x=1&y#z", "/\u{e4}"] {
            let request = RequestHead { authority, path, method: "GET", scheme: "http", headers: &headers };
            let RouteOutcome::Route(route) = table.select(&request) else { continue };
            let _ = route.rewrite_path(path);
            let _ = route.location(&request);
            if let Action::Forward(forward) = &route.action {
                let _ = forward.clusters.pick(7);
                let _ = forward.hash(&request, [10, 0, 0, 1].into());
            }
        }
    }
});
