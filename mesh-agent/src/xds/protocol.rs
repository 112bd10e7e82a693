//! The delta protocol of one stream, without the stream. In: responses and the names that are wanted. Out: requests.
//! Rules (xDS protocol, Istio's server): the node only in the first request; an ACK or NACK carries the nonce and no
//! names; a change of subscription carries names and no nonce; on reconnect the versions that are held are told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc::{Code, Status};
use mesh_core::resource::Rejection;
use mesh_core::store::Upsert;

use super::kept::{Kept, Wanted, Which};

/// The name that stands for all.
const WILDCARD: &str = "*";

/// Longest text of a NACK in bytes; what does not fit is counted in its last words.
const MAX_ERROR: usize = 4096;

/// Subscriptions of one stream.
pub(super) struct Protocol {
    /// Told once, then gone.
    node: Option<Node>,
    /// Names asked for, by type. Wildcard types are not in it.
    named: BTreeMap<&'static str, Arc<BTreeSet<Arc<str>>>>,
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
    pub fn open(node: Node, store: &impl Kept) -> (Protocol, Vec<DeltaDiscoveryRequest>) {
        let mut protocol = Protocol { node: Some(node), named: BTreeMap::new() };
        let mut requests = Vec::new();
        for Wanted { type_url, which } in store.wanted() {
            let versions = store.versions(type_url);
            match which {
                Which::All => requests.push(protocol.request(type_url, versions)),
                Which::Everything => {
                    let mut request = protocol.request(type_url, versions);
                    request.resource_names_subscribe.push(WILDCARD.to_owned());
                    requests.push(request);
                }
                Which::Named(names) => requests.extend(protocol.subscribe(type_url, names, versions)),
            }
        }
        (protocol, requests)
    }

    /// Applies a response to the store.
    pub fn respond(&mut self, response: DeltaDiscoveryResponse, store: &mut impl Kept) -> Handled {
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
    pub fn resubscribe(&mut self, wanted: Vec<Wanted>) -> Vec<DeltaDiscoveryRequest> {
        let named = wanted.into_iter().filter_map(|Wanted { type_url, which }| match which {
            Which::Named(names) => Some((type_url, names)),
            Which::All | Which::Everything => None,
        });
        named.filter_map(|(type_url, names)| self.subscribe(type_url, names, HashMap::new())).collect()
    }

    fn subscribe(
        &mut self,
        type_url: &'static str,
        wanted: Arc<BTreeSet<Arc<str>>>,
        initial_resource_versions: HashMap<String, String>,
    ) -> Option<DeltaDiscoveryRequest> {
        let current = self.named.entry(type_url).or_default();
        if Arc::ptr_eq(current, &wanted) {
            return None;
        }
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
