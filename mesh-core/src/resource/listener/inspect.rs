//! Listener filters that look at first bytes: TLS and HTTP inspectors, and the ports they leave alone.
//!
//! In: the filters; then a destination port. Out: whether bytes of a connection to that port are
//! looked at, and for what.

use envoy_types::pb::envoy::config::listener::v3 as pb;

use crate::resource::fault::{At, Fault};
use crate::resource::filters;
use crate::resource::wire::type_name;

const TLS: &str = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const HTTP: &str = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";

/// The inspectors of a listener.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Inspectors {
    tls: Vec<Ports>,
    http: Vec<Ports>,
}

/// A set of destination ports (`filter_disabled`).
#[derive(Debug, Clone, PartialEq)]
enum Ports {
    None,
    All,
    /// From the first up to, but without, the second.
    Range(i32, i32),
    Or(Vec<Ports>),
    And(Vec<Ports>),
    Not(Box<Ports>),
}

impl Inspectors {
    pub(crate) fn parse(filters: &[pb::ListenerFilter]) -> Result<Self, Fault> {
        use pb::listener_filter::ConfigType;
        let mut inspectors = Inspectors::default();
        for (i, filter) in filters.iter().enumerate() {
            let add = |inspectors: &mut Inspectors| {
                let config = match &filter.config_type {
                    Some(ConfigType::TypedConfig(any)) => Some(any),
                    Some(ConfigType::ConfigDiscovery(_)) => {
                        return Err(Fault::field("config_discovery", "not supported"));
                    }
                    None => None,
                };
                let type_name = config.map(type_name).unwrap_or_default();
                let bare = |name| type_name.is_empty() && filter.name == name;
                let disabled = match &filter.filter_disabled {
                    Some(message) => Ports::parse(message).at("filter_disabled")?,
                    None => Ports::None,
                };
                if type_name == TLS || bare("envoy.filters.listener.tls_inspector") {
                    inspectors.tls.push(disabled);
                } else if type_name == HTTP || bare("envoy.filters.listener.http_inspector") {
                    inspectors.http.push(disabled);
                } else {
                    filters::check_listener(&filter.name, config)?;
                }
                Ok(())
            };
            add(&mut inspectors).at_index("listener_filters", i)?;
        }
        Ok(inspectors)
    }

    /// Whether a ClientHello to this port is recognised.
    pub(super) fn tls(&self, port: u16) -> bool {
        self.tls.iter().any(|disabled| !disabled.has(port))
    }

    /// Whether HTTP to this port is recognised.
    pub(super) fn http(&self, port: u16) -> bool {
        self.http.iter().any(|disabled| !disabled.has(port))
    }
}

impl Ports {
    /// Depth is bounded by the decoder's own limit on nesting.
    fn parse(message: &pb::ListenerFilterChainMatchPredicate) -> Result<Self, Fault> {
        use pb::listener_filter_chain_match_predicate::Rule;
        let all = |set: &pb::listener_filter_chain_match_predicate::MatchSet| {
            set.rules.iter().map(Ports::parse).collect::<Result<_, _>>()
        };
        match &message.rule {
            Some(Rule::OrMatch(set)) => Ok(Ports::Or(all(set)?)),
            Some(Rule::AndMatch(set)) => Ok(Ports::And(all(set)?)),
            Some(Rule::NotMatch(inner)) => Ok(Ports::Not(Box::new(Ports::parse(inner)?))),
            Some(Rule::AnyMatch(true)) => Ok(Ports::All),
            Some(Rule::AnyMatch(false)) => Err(Fault::field("any_match", "must be true")),
            Some(Rule::DestinationPortRange(range)) => Ok(Ports::Range(range.start, range.end)),
            None => Err(Fault::new("a predicate needs a rule")),
        }
    }

    fn has(&self, port: u16) -> bool {
        match self {
            Ports::None => false,
            Ports::All => true,
            Ports::Range(start, end) => (*start..*end).contains(&i32::from(port)),
            Ports::Or(rules) => rules.iter().any(|rule| rule.has(port)),
            Ports::And(rules) => rules.iter().all(|rule| rule.has(port)),
            Ports::Not(rule) => !rule.has(port),
        }
    }
}
