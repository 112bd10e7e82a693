//! Reads `envoy.config.cluster.v3.Cluster`.
//!
//! In: the message, and the cluster it replaces (whose inline endpoints' counters live on). Out: a
//! [`Cluster`]. DNS, health-check and statistics details that Istio sends are accepted.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::google::protobuf as google;

use crate::resource::cluster::{
    Cluster, ClusterKind, DEFAULT_PANIC_THRESHOLD, DnsHost, LbConfig, LbPolicy, ServiceRef, SlowStart, Transport,
};
use crate::resource::endpoint::LoadAssignment;
use crate::resource::fault::{At, Fault};
use crate::resource::filters;
use crate::resource::wire::{
    MATCH_METADATA, decode, duration, host_port, is_set, member, metadata, name, port, refuse, text, timeout,
};
use crate::resource::{Rejection, cluster};

/// Envoy's default connect timeout.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's default number of endpoints that least-request compares.
const DEFAULT_CHOICES: u32 = 2;
/// Most endpoints that least-request compares.
const MAX_CHOICES: u32 = 100;

impl Cluster {
    /// Parses a resource called `name`; `previous` is the version it replaces.
    pub fn parse(name: &str, body: &[u8], previous: Option<&Cluster>) -> Result<Self, Rejection> {
        let read = || {
            let message: pb::Cluster = decode(body)?;
            if message.name != name {
                return Err(Fault::field("name", format!("is {:?}, the resource is called {name:?}", message.name)));
            }
            Self::from_message(&message, previous)
        };
        read().map_err(|fault: Fault| fault.reject(name))
    }

    pub(crate) fn from_message(message: &pb::Cluster, previous: Option<&Cluster>) -> Result<Self, Fault> {
        refuse!(message;
            transport_socket_matcher, health_checks, lb_subset_config, load_balancing_policy,
            lrs_server, upstream_config, queuing_policies,
        );
        filters::check_upstream(&message.filters)?;
        let istio = message.metadata.as_ref();
        let labels = metadata(istio, "istio", "subset");
        let protocol = cluster::limits::protocol(message)?;
        let transports = cluster::transport::parse(message, protocol.names)?;
        Ok(Cluster {
            name: Arc::from(message.name.as_str()),
            kind: kind(message, previous)?,
            lb: lb(message)?,
            connect_timeout: timeout(
                "connect_timeout",
                message.connect_timeout.as_ref(),
                Some(DEFAULT_CONNECT_TIMEOUT),
            )?
            .ok_or_else(|| Fault::field("connect_timeout", "must be above zero"))?,
            service: service(istio),
            subset: text(labels).and_then(name).or_else(|| subset_of(&message.name)),
            default_port: default_port(istio),
            external: matches!(metadata(istio, "istio", "external"), Some(google::value::Kind::BoolValue(true))),
            sans: transports
                .iter()
                .filter_map(|entry| match &entry.transport {
                    Transport::Tls(tls) => Some(tls),
                    Transport::Hbone | Transport::Raw => None,
                })
                .flat_map(|tls| tls.sans.iter().filter_map(|san| san.text.exact()?.parse().ok()))
                .collect(),
            transports,
            http: protocol.http,
            limits: cluster::limits::limits(message, &protocol)?,
            outlier: match &message.outlier_detection {
                Some(outlier) => Some(cluster::limits::outlier(outlier).at("outlier_detection")?),
                None => None,
            },
            bind_sources: match &message.upstream_bind_config {
                Some(bind) => bind_sources(bind).at("upstream_bind_config")?,
                None => Vec::new(),
            },
        })
    }
}

fn kind(message: &pb::Cluster, previous: Option<&Cluster>) -> Result<ClusterKind, Fault> {
    use pb::cluster::{ClusterDiscoveryType as By, DiscoveryType, LbConfig as LbBy};
    let discovery = match &message.cluster_discovery_type {
        Some(By::Type(value)) => DiscoveryType::try_from(*value).map_err(|_| Fault::field("type", "unknown value"))?,
        Some(By::ClusterType(custom)) => {
            return Err(Fault::field("cluster_type", format!("{:?} is not supported", custom.name)));
        }
        None => DiscoveryType::Static,
    };
    let assignment = message.load_assignment.as_ref();
    match discovery {
        DiscoveryType::Eds => {
            let config =
                message.eds_cluster_config.as_ref().ok_or_else(|| Fault::field("eds_cluster_config", "missing"))?;
            let service_name = name(&config.service_name).unwrap_or_else(|| message.name.as_str().into());
            Ok(ClusterKind::Eds { service_name })
        }
        DiscoveryType::Static => {
            if assignment.is_some_and(is_internal) {
                return Ok(ClusterKind::Internal);
            }
            let old = match previous.map(|cluster| &cluster.kind) {
                Some(ClusterKind::Static(old)) => Some(old.as_ref()),
                _ => None,
            };
            let parsed = match assignment {
                Some(assignment) => LoadAssignment::from_message(assignment, old).at("load_assignment")?,
                None => LoadAssignment::empty(&message.name),
            };
            Ok(ClusterKind::Static(Arc::new(parsed)))
        }
        DiscoveryType::StrictDns => Ok(ClusterKind::StrictDns(dns_hosts(assignment)?)),
        DiscoveryType::LogicalDns => Ok(ClusterKind::LogicalDns(dns_hosts(assignment)?)),
        DiscoveryType::OriginalDst => {
            let mut port_override = None;
            if let Some(LbBy::OriginalDstLbConfig(config)) = &message.lb_config {
                if config.use_http_header || is_set(&config.metadata_key) {
                    return Err(Fault::field("original_dst_lb_config", "only upstream_port_override is supported"));
                }
                if let Some(value) = &config.upstream_port_override {
                    port_override = Some(port(value.value).at("original_dst_lb_config")?);
                }
            }
            Ok(ClusterKind::OriginalDst { port_override })
        }
    }
}

/// Whether an assignment leads to internal listeners only (Istio's HBONE plumbing).
fn is_internal(message: &endpoint::ClusterLoadAssignment) -> bool {
    let mut any = false;
    let all = addresses(message).all(|(_, _, address)| {
        any = true;
        matches!(address.and_then(|a| a.address.as_ref()), Some(core::address::Address::EnvoyInternalAddress(_)))
    });
    any && all
}

type Located<'a> = (u32, &'a endpoint::LbEndpoint, Option<&'a core::Address>);

fn addresses(message: &endpoint::ClusterLoadAssignment) -> impl Iterator<Item = Located<'_>> {
    use endpoint::lb_endpoint::HostIdentifier;
    message.endpoints.iter().flat_map(|locality| {
        locality.lb_endpoints.iter().map(|lb| {
            let address = match &lb.host_identifier {
                Some(HostIdentifier::Endpoint(endpoint)) => endpoint.address.as_ref(),
                _ => None,
            };
            (locality.priority, lb, address)
        })
    })
}

fn dns_hosts(message: Option<&endpoint::ClusterLoadAssignment>) -> Result<Vec<DnsHost>, Fault> {
    let message = message.ok_or_else(|| Fault::field("load_assignment", "missing"))?;
    addresses(message)
        .map(|(priority, lb, address)| match address.and_then(|a| a.address.as_ref()) {
            Some(core::address::Address::SocketAddress(socket)) => {
                let (host, port) = host_port(socket)?;
                if host.is_empty() {
                    return Err(Fault::new("a host needs a name"));
                }
                Ok(DnsHost {
                    host: Arc::from(host),
                    port,
                    weight: lb.load_balancing_weight.as_ref().map_or(1, |w| w.value).max(1),
                    priority,
                    istio_mtls: text(metadata(lb.metadata.as_ref(), MATCH_METADATA, "tlsMode")) == Some("istio"),
                })
            }
            _ => Err(Fault::new("only socket addresses are supported")),
        })
        .collect::<Result<_, _>>()
        .at("load_assignment")
}

fn lb(message: &pb::Cluster) -> Result<LbConfig, Fault> {
    use pb::cluster::common_lb_config::LocalityConfigSpecifier as Locality;
    use pb::cluster::{LbConfig as By, LbPolicy as Policy};
    let policy = Policy::try_from(message.lb_policy).map_err(|_| Fault::field("lb_policy", "unknown value"))?;
    let mut slow_start = None;
    let policy = match policy {
        Policy::RoundRobin => {
            if let Some(By::RoundRobinLbConfig(config)) = &message.lb_config {
                slow_start = config.slow_start_config.as_ref();
            }
            LbPolicy::RoundRobin
        }
        Policy::LeastRequest => {
            let mut choices = DEFAULT_CHOICES;
            if let Some(By::LeastRequestLbConfig(config)) = &message.lb_config {
                slow_start = config.slow_start_config.as_ref();
                choices = config.choice_count.as_ref().map_or(choices, |c| c.value);
            }
            LbPolicy::LeastRequest { choices: choices.clamp(DEFAULT_CHOICES, MAX_CHOICES) }
        }
        Policy::Random => LbPolicy::Random,
        Policy::RingHash | Policy::Maglev => LbPolicy::ConsistentHash,
        Policy::ClusterProvided => LbPolicy::ClusterProvided,
        Policy::LoadBalancingPolicyConfig => {
            return Err(Fault::field("lb_policy", "load_balancing_policy is not supported"));
        }
    };
    let common = message.common_lb_config.as_ref();
    let threshold = common.and_then(|common| common.healthy_panic_threshold.as_ref());
    Ok(LbConfig {
        policy,
        panic_threshold: match threshold {
            Some(percent) if (0.0..=100.0).contains(&percent.value) => percent.value,
            Some(percent) => {
                return Err(Fault::field(
                    "common_lb_config.healthy_panic_threshold",
                    format!("{} is not a percentage", percent.value),
                ));
            }
            None => DEFAULT_PANIC_THRESHOLD,
        },
        // Zone-aware routing without weights of localities spreads evenly, which is its fallback.
        locality_weighted: matches!(
            common.and_then(|common| common.locality_config_specifier.as_ref()),
            Some(Locality::LocalityWeightedLbConfig(_))
        ),
        slow_start: match slow_start {
            Some(config) => Some(slow_start_of(config).at("slow_start_config")?),
            None => None,
        },
    })
}

fn slow_start_of(message: &pb::cluster::SlowStartConfig) -> Result<SlowStart, Fault> {
    let window = message.slow_start_window.as_ref().ok_or_else(|| Fault::field("slow_start_window", "missing"))?;
    let aggression = message.aggression.as_ref().and_then(|a| a.default_value.into());
    let percent = message.min_weight_percent.as_ref().map_or(10.0, |p| p.value);
    Ok(SlowStart {
        window: duration(window).at("slow_start_window")?,
        min_weight_percent: percent.clamp(0.0, 100.0),
        aggression: aggression.filter(|a: &f64| a.is_finite() && *a > 0.0).unwrap_or(1.0),
    })
}

fn service(message: Option<&core::Metadata>) -> Option<Arc<ServiceRef>> {
    let google::value::Kind::ListValue(list) = metadata(message, "istio", "services")? else {
        return None;
    };
    let Some(google::value::Kind::StructValue(first)) = &list.values.first()?.kind else {
        return None;
    };
    let field = |key: &str| Arc::from(text(member(first, key)).unwrap_or_default());
    Some(Arc::new(ServiceRef { host: field("host"), name: field("name"), namespace: field("namespace") }))
}

fn default_port(message: Option<&core::Metadata>) -> Option<u16> {
    match metadata(message, "istio", "default_original_port")? {
        google::value::Kind::NumberValue(number) if number.fract() == 0.0 && (1.0..=65535.0).contains(number) => {
            // In range and whole, as just checked.
            Some(*number as u16)
        }
        _ => None,
    }
}

/// The subset in `outbound|<port>|<subset>|<host>`.
fn subset_of(cluster: &str) -> Option<Arc<str>> {
    let mut parts = cluster.split('|');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("outbound"), Some(_), Some(subset), Some(_)) => name(subset),
        _ => None,
    }
}

fn bind_sources(message: &core::BindConfig) -> Result<Vec<IpAddr>, Fault> {
    refuse!(message; local_address_selector);
    let extra = message.extra_source_addresses.iter().map(|e| e.address.as_ref());
    std::iter::once(message.source_address.as_ref())
        .chain(extra)
        .flatten()
        .map(|address| {
            address.address.parse().map_err(|_| Fault::new(format!("{:?} is not an IP address", address.address)))
        })
        .collect()
}
