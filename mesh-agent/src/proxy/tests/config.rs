//! Snapshots for tests, by way of a store, as they come from a control plane.

use std::sync::Arc;

use ::http::StatusCode;
use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, SdsSecretConfig, UpstreamTlsContext,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options};
use mesh_core::Snapshot;
use mesh_core::resource::{CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE};
use mesh_core::store::{Store, Upsert};
use prost::Message;

use super::messages::*;

/// Cluster of the test's service.
pub(super) const SERVICE: &str = "outbound|80||web.default.svc.cluster.local";

/// A configuration being written.
pub(super) struct Config {
    clusters: Vec<cluster::Cluster>,
    endpoints: Vec<(String, Vec<String>)>,
    listeners: Vec<listener::Listener>,
    routes: Vec<route::RouteConfiguration>,
}

impl Config {
    /// HTTP on port 80 to [`SERVICE`], everything else passes through; inbound is detected.
    pub(super) fn new() -> Self {
        let mut service = eds_cluster(SERVICE);
        let named = [("host", "web.default.svc.cluster.local"), ("name", "web"), ("namespace", "default")];
        let named = fields(&named.map(|(key, value)| (key, text(value))));
        let list = envoy_types::pb::google::protobuf::ListValue {
            values: vec![envoy_types::pb::google::protobuf::Value {
                kind: Some(envoy_types::pb::google::protobuf::value::Kind::StructValue(named)),
            }],
        };
        let list = envoy_types::pb::google::protobuf::Value {
            kind: Some(envoy_types::pb::google::protobuf::value::Kind::ListValue(list)),
        };
        service.metadata = metadata(&[("istio", fields(&[("services", list)]))]);
        Self {
            clusters: vec![service, original_dst("PassthroughCluster"), original_dst("inbound|80||")],
            endpoints: vec![(SERVICE.into(), vec!["10.0.0.1:80".into()])],
            listeners: vec![http_listener("0.0.0.0_80", "0.0.0.0", 80, "80"), virtual_inbound()],
            routes: vec![route_table("80", SERVICE)],
        }
    }

    /// Endpoints of [`SERVICE`].
    pub(super) fn endpoints(mut self, addresses: &[&str]) -> Self {
        self.endpoints[0].1 = addresses.iter().map(ToString::to_string).collect();
        self
    }

    /// Changes the first route.
    pub(super) fn route(mut self, change: impl FnOnce(&mut route::Route, &mut route::RouteAction)) -> Self {
        let host = &mut self.routes[0].virtual_hosts[0];
        let first = &mut host.routes[0];
        let Some(route::route::Action::Route(mut action)) = first.action.take() else { unreachable!() };
        change(first, &mut action);
        if first.action.is_none() {
            first.action = Some(route::route::Action::Route(action));
        }
        self
    }

    /// Changes the virtual host.
    pub(super) fn host(mut self, change: impl FnOnce(&mut route::VirtualHost)) -> Self {
        change(&mut self.routes[0].virtual_hosts[0]);
        self
    }

    /// [`SERVICE`] speaks HTTP/2.
    pub(super) fn speaks_http2(mut self) -> Self {
        use http_protocol_options::explicit_http_config::ProtocolConfig;
        use http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions};
        let protocol_config = Some(ProtocolConfig::Http2ProtocolOptions(Default::default()));
        let explicit = UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config });
        let options = HttpProtocolOptions { upstream_protocol_options: Some(explicit), ..Default::default() };
        self.clusters[0]
            .typed_extension_protocol_options
            .insert("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(), packed(&options));
        self
    }

    /// One more listener.
    pub(super) fn listener(mut self, listener: listener::Listener) -> Self {
        self.listeners.push(listener);
        self
    }

    /// Changes the HTTP manager of the service's port.
    pub(super) fn manager(mut self, change: impl FnOnce(&mut HttpConnectionManager)) -> Self {
        let mut manager = http_manager("80");
        change(&mut manager);
        let filters = &mut self.listeners[0].filter_chains[0].filters;
        *filters = vec![filter("envoy.filters.network.http_connection_manager", packed(&manager))];
        self
    }

    /// Every inbound port is declared HTTP: nothing is detected.
    pub(super) fn inbound_declared_http(mut self) -> Self {
        let inbound = &mut self.listeners[1];
        inbound.filter_chains.truncate(1);
        inbound.filter_chains[0].filter_chain_match = None;
        self
    }

    /// Only mutual TLS may come in, from identities that begin with `prefix`.
    pub(super) fn strict(self, prefix: &str) -> Self {
        self.strict_by("ROOTCA", prefix)
    }

    /// As [`Config::strict`], by other roots than the mesh's.
    pub(super) fn strict_by(mut self, roots: &str, prefix: &str) -> Self {
        let inbound = &mut self.listeners[1];
        inbound.listener_filters.push(inspector("tls_inspector"));
        for chain in &mut inbound.filter_chains {
            let http = !chain.filter_chain_match.take().unwrap().application_protocols.is_empty();
            let alpn: &[&str] = if http { &["istio-http/1.1", "istio-h2"] } else { &[] };
            chain.filter_chain_match = Some(listener::FilterChainMatch {
                transport_protocol: "tls".into(),
                application_protocols: alpn.iter().map(ToString::to_string).collect(),
                ..Default::default()
            });
            chain.transport_socket = Some(mutual_tls(roots, prefix, http));
        }
        self
    }

    /// Anybody may come in, in the open or by mutual TLS, and applications' own TLS passes through; in istiod's shape.
    pub(super) fn permissive(mut self, prefix: &str) -> Self {
        let inbound = &mut self.listeners[1];
        inbound.listener_filters.push(inspector("tls_inspector"));
        let (http, tcp) = (inbound.filter_chains[0].clone(), inbound.filter_chains[1].clone());
        for (of, is_http, alpn) in [
            (&http, true, &["istio-http/1.0", "istio-http/1.1", "istio-h2"][..]),
            (&tcp, false, &["istio-peer-exchange", "istio"]),
        ] {
            let mut mutual = of.clone();
            mutual.filter_chain_match = Some(listener::FilterChainMatch {
                transport_protocol: "tls".into(),
                application_protocols: alpn.iter().map(ToString::to_string).collect(),
                ..Default::default()
            });
            mutual.transport_socket = Some(mutual_tls("ROOTCA", prefix, is_http));
            inbound.filter_chains.push(mutual);
        }
        let tls = listener::FilterChainMatch { transport_protocol: "tls".into(), ..Default::default() };
        inbound.filter_chains.push(listener::FilterChain { filter_chain_match: Some(tls), ..tcp });
        self
    }

    /// [`SERVICE`] is reached by TLS; `change` says more of it than that any server will do that our roots vouch for.
    pub(super) fn by_tls(mut self, change: impl FnOnce(&mut UpstreamTlsContext)) -> Self {
        let secret = |name: &str| SdsSecretConfig { name: name.into(), ..Default::default() };
        let mut context = UpstreamTlsContext {
            sni: "outbound_.80_._.web.default.svc.cluster.local".into(),
            common_tls_context: Some(CommonTlsContext {
                alpn_protocols: vec!["istio-peer-exchange".into(), "istio".into()],
                tls_certificate_sds_secret_configs: vec![secret("default")],
                validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(secret(
                    "ROOTCA",
                ))),
                ..Default::default()
            }),
            ..Default::default()
        };
        change(&mut context);
        self.clusters[0].transport_socket = Some(core::TransportSocket {
            name: "envoy.transport_sockets.tls".into(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(packed(&context))),
        });
        self
    }

    /// The server name that [`SERVICE`] hears is the host of each request, and it must be its name.
    pub(super) fn named_by_requests(mut self) -> Self {
        let names =
            core::UpstreamHttpProtocolOptions { auto_sni: true, auto_san_validation: true, ..Default::default() };
        let options = HttpProtocolOptions { upstream_http_protocol_options: Some(names), ..Default::default() };
        self.clusters[0]
            .typed_extension_protocol_options
            .insert("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(), packed(&options));
        self
    }

    pub(super) fn build(self) -> Arc<Snapshot> {
        let mut store = Store::new();
        let mut apply = |kind: &str, upserts: Vec<Upsert>| {
            let refused = store.apply(kind, upserts, &[]);
            assert!(refused.is_empty(), "{refused:?}");
        };
        apply(CLUSTER_TYPE, self.clusters.iter().map(|c| upsert(&c.name, c)).collect());
        let assignments = self.endpoints.iter().map(|(name, addresses)| {
            let endpoints = addresses.iter().map(|address| {
                let (host, port) = address.rsplit_once(':').unwrap();
                lb_endpoint(host, port.parse().unwrap())
            });
            upsert(name, &assignment(name, endpoints.collect()))
        });
        apply(ENDPOINT_TYPE, assignments.collect());
        apply(LISTENER_TYPE, self.listeners.iter().map(|l| upsert(&l.name, l)).collect());
        apply(ROUTE_TYPE, self.routes.iter().map(|r| upsert(&r.name, r)).collect());
        store.snapshot().expect("warmed")
    }
}

fn upsert(name: &str, message: &impl Message) -> Upsert {
    Upsert { name: name.into(), version: "1".into(), body: message.encode_to_vec().into() }
}

pub(super) fn original_dst(name: &str) -> cluster::Cluster {
    cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::OriginalDst as i32,
        )),
        lb_policy: cluster::cluster::LbPolicy::ClusterProvided as i32,
        connect_timeout: seconds(10),
        ..Default::default()
    }
}

/// TLS towards clients, who must prove by these roots an identity that begins with `prefix`.
fn mutual_tls(roots: &str, prefix: &str, http: bool) -> core::TransportSocket {
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
    use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
    let names = matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(prefix.into())),
        ignore_case: false,
    };
    let validation = tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: vec![tls::SubjectAltNameMatcher {
                matcher: Some(names),
                ..Default::default()
            }],
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(tls::SdsSecretConfig { name: roots.into(), ..Default::default() }),
        ..Default::default()
    };
    let alpn: &[&str] = if http { &["h2", "http/1.1"] } else { &["istio-peer-exchange", "h2", "http/1.1"] };
    let context = tls::DownstreamTlsContext {
        require_client_certificate: flag(true),
        common_tls_context: Some(tls::CommonTlsContext {
            alpn_protocols: alpn.iter().map(ToString::to_string).collect(),
            validation_context_type: Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(
                validation,
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(packed(&context))),
    }
}

fn virtual_inbound() -> listener::Listener {
    let mut manager = http_manager("80");
    manager.server_name = "istio-envoy".into();
    manager.forward_client_cert_details = 2; // APPEND_FORWARD
    let filter = filter("envoy.filters.network.http_connection_manager", packed(&manager));
    listener::Listener {
        name: "virtualInbound".into(),
        address: Some(address("0.0.0.0", 15006)),
        filter_chains: vec![
            chain("0.0.0.0_80", plain_http(), vec![filter]),
            chain("0.0.0.0_80", plain(), vec![tcp_filter("inbound|80||")]),
        ],
        listener_filters: vec![inspector("http_inspector")],
        ..Default::default()
    }
}

/// Plain bytes that are not HTTP: once one chain asks for the transport, every other has to (Envoy's order of matching).
fn plain() -> listener::FilterChainMatch {
    listener::FilterChainMatch { transport_protocol: "raw_buffer".into(), ..Default::default() }
}

/// A route's answer of its own.
pub(super) fn direct(status: StatusCode, body: &str) -> route::route::Action {
    route::route::Action::DirectResponse(route::DirectResponseAction {
        status: status.as_u16().into(),
        body: Some(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(body.into())),
            ..Default::default()
        }),
        ..Default::default()
    })
}
