//! TLS settings as Istio sends them: the workload's own certificate, the mesh's roots, and the names a peer may have.
//!
//! In: names and protocols. Out: messages for either side of a connection. The agents know the secrets by name.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use matcher::string_matcher::MatchPattern;

use super::pb::{any, boolean};
use crate::model::MeshOptions;

/// ALPN of a client of the mesh for what it carries inside: HTTP.
pub(crate) const ISTIO_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// ALPN of a client of the mesh for what it carries inside: other bytes.
pub(crate) const ISTIO_TCP: [&str; 2] = ["istio-peer-exchange", "istio"];

/// TLS towards a service, whose endpoints have one of these names.
pub(crate) fn upstream(sni: String, names: impl IntoIterator<Item = String>) -> pb::UpstreamTlsContext {
    let names = names.into_iter().map(MatchPattern::Exact);
    let common = common(names, &["istio-peer-exchange", "istio"]);
    pb::UpstreamTlsContext { sni, common_tls_context: Some(common), ..Default::default() }
}

/// TLS towards clients of the mesh: each must prove an identity of its trust domain.
pub(crate) fn downstream(options: &MeshOptions, http: bool) -> core::TransportSocket {
    let name = MatchPattern::Prefix(format!("spiffe://{}/", options.trust_domain));
    let alpn: &[&str] = if http { &["h2", "http/1.1"] } else { &["istio-peer-exchange", "h2", "http/1.1"] };
    let context = pb::DownstreamTlsContext {
        common_tls_context: Some(common([name], alpn)),
        require_client_certificate: boolean(true),
        ..Default::default()
    };
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(&context))),
    }
}

fn common(names: impl IntoIterator<Item = MatchPattern>, alpn: &[&str]) -> pb::CommonTlsContext {
    use pb::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    let secret = |name: &str| pb::SdsSecretConfig { name: name.to_owned(), sds_config: None };
    let names = names.into_iter().map(|name| pb::SubjectAltNameMatcher {
        san_type: pb::subject_alt_name_matcher::SanType::Uri.into(),
        matcher: Some(matcher::StringMatcher { match_pattern: Some(name), ignore_case: false }),
        ..Default::default()
    });
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(pb::CertificateValidationContext {
            match_typed_subject_alt_names: names.collect(),
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(secret("ROOTCA")),
        ..Default::default()
    };
    pb::CommonTlsContext {
        alpn_protocols: alpn.iter().map(|&protocol| protocol.to_owned()).collect(),
        tls_certificate_sds_secret_configs: vec![secret("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(validation)),
        ..Default::default()
    }
}
