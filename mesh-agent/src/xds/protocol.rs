//! The delta protocol of one stream, without the stream. In: responses and the names that are wanted. Out: requests.
//! Rules (xDS protocol, Istio's server): the node only in the first request; an ACK or NACK carries the nonce and no
//! names; a change of subscription carries names and no nonce; on reconnect the versions that are held are told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc::{Code, Status};
use mesh_core::resource::{CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE, Rejection};
use mesh_core::store::{Store, Subscriptions, Upsert};

/// Longest text of a NACK in bytes; what does not fit is counted in its last words.
const MAX_ERROR: usize = 4096;

/// Subscriptions of one stream.
pub(super) struct Protocol {
    /// Told once, then gone.
    node: Option<Node>,
    /// Names asked for, by type. Wildcard types are not in it.
    named: BTreeMap<&'static str, BTreeSet<Arc<str>>>,
}

/// What came of a response.
pub(super) struct Handled {
    /// The ACK or NACK.
    pub reply: DeltaDiscoveryRequest,
    /// What was refused.
    pub refused: Vec<Rejection>,
}

impl Protocol {
    /// A new stream, and the requests that open it: what `store` holds is told, so that only changes come.
    pub fn open(node: Node, store: &Store) -> (Protocol, Vec<DeltaDiscoveryRequest>) {
        let mut protocol = Protocol { node: Some(node), named: BTreeMap::new() };
        let wanted = store.subscriptions();
        let mut requests = Vec::new();
        // Clusters before the endpoints and listeners that need them: make before break. A wildcard subscription is
        // one without names.
        requests.push(protocol.request(CLUSTER_TYPE, store.versions(CLUSTER_TYPE)));
        requests.extend(protocol.subscribe(ENDPOINT_TYPE, wanted.endpoints, store.versions(ENDPOINT_TYPE)));
        requests.push(protocol.request(LISTENER_TYPE, store.versions(LISTENER_TYPE)));
        requests.extend(protocol.subscribe(ROUTE_TYPE, wanted.routes, store.versions(ROUTE_TYPE)));
        (protocol, requests)
    }

    /// Applies a response to the store.
    pub fn respond(&mut self, response: DeltaDiscoveryResponse, store: &mut Store) -> Handled {
        let DeltaDiscoveryResponse { type_url, resources, removed_resources, nonce, .. } = response;
        let mut refused = Vec::new();
        let mut upserts = Vec::with_capacity(resources.len());
        for resource in resources {
            match resource.resource {
                Some(body) if body.type_url == type_url => {
                    upserts.push(Upsert { name: resource.name, version: resource.version, body: body.value.into() });
                }
                Some(body) => refused.push(Rejection {
                    name: resource.name,
                    path: "resource".into(),
                    why: format!("is a {}, in a response of {type_url}", body.type_url),
                }),
                None => {
                    refused.push(Rejection { name: resource.name, path: "resource".into(), why: "is empty".into() })
                }
            }
        }
        refused.extend(store.apply(&type_url, upserts, &removed_resources));
        let error_detail = (!refused.is_empty()).then(|| Status {
            code: Code::InvalidArgument.into(),
            message: reasons(&refused),
            ..Status::default()
        });
        let reply = DeltaDiscoveryRequest { type_url, response_nonce: nonce, error_detail, ..Default::default() };
        Handled { reply, refused }
    }

    /// The requests that turn what is subscribed into what is wanted.
    pub fn resubscribe(&mut self, wanted: Subscriptions) -> Vec<DeltaDiscoveryRequest> {
        let endpoints = self.subscribe(ENDPOINT_TYPE, wanted.endpoints, HashMap::new());
        let routes = self.subscribe(ROUTE_TYPE, wanted.routes, HashMap::new());
        endpoints.into_iter().chain(routes).collect()
    }

    fn subscribe(
        &mut self,
        type_url: &'static str,
        wanted: BTreeSet<Arc<str>>,
        initial_resource_versions: HashMap<String, String>,
    ) -> Option<DeltaDiscoveryRequest> {
        let current = self.named.entry(type_url).or_default();
        let names = |set: &BTreeSet<Arc<str>>, not: &BTreeSet<Arc<str>>| -> Vec<String> {
            set.difference(not).map(ToString::to_string).collect()
        };
        let resource_names_subscribe = names(&wanted, current);
        let resource_names_unsubscribe = names(current, &wanted);
        if resource_names_subscribe.is_empty() && resource_names_unsubscribe.is_empty() {
            return None;
        }
        *current = wanted;
        let mut request = self.request(type_url, initial_resource_versions);
        request.resource_names_subscribe = resource_names_subscribe;
        request.resource_names_unsubscribe = resource_names_unsubscribe;
        Some(request)
    }

    fn request(&mut self, type_url: &str, initial_resource_versions: HashMap<String, String>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: type_url.to_owned(),
            initial_resource_versions,
            ..DeltaDiscoveryRequest::default()
        }
    }
}

/// `name: path: why`, one after the other.
pub(super) fn reasons(refused: &[Rejection]) -> String {
    let mut text = String::new();
    for (i, rejection) in refused.iter().enumerate() {
        let one = rejection.to_string();
        let separator = if i == 0 { "" } else { "; " };
        if text.len() + separator.len() + one.len() > MAX_ERROR {
            if i == 0 {
                text.push_str(&one[..one.floor_char_boundary(MAX_ERROR)]);
            }
            let left = refused.len() - i.max(1);
            if left > 0 {
                text.push_str(&format!("; and {left} more"));
            }
            break;
        }
        text.push_str(separator);
        text.push_str(&one);
    }
    text
}
