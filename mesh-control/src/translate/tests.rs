//! What is told of a mesh: names, domains, routes and chains as Envoy's messages, and what mesh-core makes of all of it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod inbound;
mod listeners;
mod nodes;
mod routes;
mod versions;
mod whole;

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use prost::{Message, Name};

use super::{Checked, Translation};
use crate::model::Mesh;
use crate::model::tests::{objects, options, pod};
use crate::resource::{Kind, Offer, Resources};

/// Translates for the pod `client` of a namespace, which is added to the objects.
struct Told {
    translation: Translation,
    checked: Checked,
    namespace: &'static str,
}

fn whole(offer: &Offer) -> Resources {
    offer.iter().map(|(name, resource)| (name.clone(), resource.clone())).collect()
}

impl Told {
    fn new(text: &str) -> Told {
        Told::in_namespace("default", text)
    }

    fn in_namespace(namespace: &'static str, text: &str) -> Told {
        let client = pod("client", "client", "", "10.1.9.9")
            .replace("  name: client\n", &format!("  name: client\n  namespace: {namespace}\n"));
        let (mesh, _) = Mesh::build(options(), &objects(&format!("{text}\n{client}")));
        let checked = Checked::default();
        Told { translation: Translation::new(Arc::new(mesh), checked.clone()), checked, namespace }
    }

    fn of_nodes(&self, kind: Kind) -> Resources {
        whole(&self.translation.of_nodes(kind))
    }

    fn resources(&self, kind: Kind) -> Resources {
        self.of("client", kind)
    }

    fn of(&self, name: &str, kind: Kind) -> Resources {
        let workload = self.translation.mesh().workloads.get(self.namespace, name).unwrap().clone();
        let resources = self.translation.resources(&workload, kind);
        let refused = self.checked.refused();
        assert!(refused.is_empty(), "mesh-core refuses {refused:#?}");
        whole(&resources)
    }

    fn names(&self, kind: Kind) -> Vec<String> {
        self.resources(kind).keys().map(ToString::to_string).collect()
    }

    fn get<T: Message + Default>(&self, kind: Kind, name: &str) -> T {
        let all = self.resources(kind);
        let resource = all.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", all.keys().collect::<Vec<_>>()));
        T::decode(resource.body.value.as_slice()).unwrap()
    }

    fn cluster(&self, name: &str) -> Cluster {
        self.get(Kind::Cluster, name)
    }

    fn endpoints(&self, name: &str) -> ClusterLoadAssignment {
        self.get(Kind::Endpoint, name)
    }

    fn listener(&self, name: &str) -> Listener {
        self.get(Kind::Listener, name)
    }

    fn routes(&self, name: &str) -> RouteConfiguration {
        self.get(Kind::Route, name)
    }
}

/// What a chain does, in few words: `tcp <clusters>`, `rds <name>` or `http <inline route table>`.
fn does(chain: &FilterChain) -> String {
    use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
    use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
    let Some(ConfigType::TypedConfig(any)) = &chain.filters.last().unwrap().config_type else { panic!("{chain:?}") };
    if any.type_url == TcpProxy::type_url() {
        return match TcpProxy::decode(any.value.as_slice()).unwrap().cluster_specifier.unwrap() {
            ClusterSpecifier::Cluster(name) => format!("tcp {name}"),
            ClusterSpecifier::WeightedClusters(weighted) => {
                let parts: Vec<_> =
                    weighted.clusters.iter().map(|one| format!("{}={}", one.name, one.weight)).collect();
                format!("tcp {}", parts.join(" "))
            }
        };
    }
    match HttpConnectionManager::decode(any.value.as_slice()).unwrap().route_specifier.unwrap() {
        RouteSpecifier::Rds(rds) => format!("rds {}", rds.route_config_name),
        RouteSpecifier::RouteConfig(table) => format!("http {}", table.name),
        RouteSpecifier::ScopedRoutes(_) => panic!("{chain:?}"),
    }
}

/// A service with an address.
fn service(name: &str, address: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: {address}\n  selector: {{app: \
         {name}}}\n  ports: {ports}\n"
    )
}

fn istio(kind: &str, name: &str, spec: &str) -> String {
    format!("---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{spec}\n")
}

type Versions = BTreeMap<(Kind, String), u64>;

fn versions(told: &Told) -> Versions {
    let of = |kind: Kind| {
        let resources = told.resources(kind);
        resources.iter().map(|(name, one)| ((kind, name.to_string()), one.version)).collect::<Vec<_>>()
    };
    Kind::ALL.into_iter().flat_map(of).collect()
}
