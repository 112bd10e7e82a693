//! How a cluster's endpoints are reached: `transport_socket`, `transport_socket_matches`.
//!
//! In: the messages. Out: [`TransportMatch`]es in order, at least one. A socket of unknown type is
//! refused: guessing it could send plain bytes where encryption was meant.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::google::protobuf as google;

use crate::resource::cluster::{Transport, TransportMatch, TransportWhen, UpstreamTls};
use crate::resource::fault::{At, Fault};
use crate::resource::tls::CommonTls;
use crate::resource::wire::{decode, refuse, text, type_name};

/// Whose name the server must have is said by each request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AutoNames {
    pub(super) sni: bool,
    pub(super) sans: bool,
}

const RAW: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const INTERNAL: &str = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";

/// `names`: what the cluster's HTTP options say of names.
pub(super) fn parse(message: &pb::Cluster, names: AutoNames) -> Result<Vec<TransportMatch>, Fault> {
    let mut transports = Vec::with_capacity(message.transport_socket_matches.len() + 1);
    for (i, entry) in message.transport_socket_matches.iter().enumerate() {
        transports.push(socket_match(entry, names).at_index("transport_socket_matches", i)?);
    }
    // What applies when no match does.
    transports.push(TransportMatch {
        name: Arc::from("default"),
        when: TransportWhen::Always,
        transport: socket(message.transport_socket.as_ref(), names).at("transport_socket")?,
    });
    Ok(transports)
}

fn socket_match(message: &pb::cluster::TransportSocketMatch, names: AutoNames) -> Result<TransportMatch, Fault> {
    Ok(TransportMatch {
        name: Arc::from(message.name.as_str()),
        when: criteria(message.r#match.as_ref()).at("match")?,
        transport: socket(message.transport_socket.as_ref(), names).at("transport_socket")?,
    })
}

fn criteria(message: Option<&google::Struct>) -> Result<TransportWhen, Fault> {
    let Some(message) = message else {
        return Ok(TransportWhen::Always);
    };
    let mut fields = message.fields.iter().map(|(key, value)| (key.as_str(), text(value.kind.as_ref())));
    match (fields.next(), fields.next()) {
        (None, _) => Ok(TransportWhen::Always),
        (Some(("tunnel", Some("http"))), None) => Ok(TransportWhen::Tunnel),
        (Some(("tlsMode", Some("istio"))), None) => Ok(TransportWhen::IstioMtls),
        _ => Err(Fault::new("supported are {}, {tunnel: http} and {tlsMode: istio}")),
    }
}

fn socket(message: Option<&core::TransportSocket>, names: AutoNames) -> Result<Transport, Fault> {
    use core::transport_socket::ConfigType;
    let Some(message) = message else {
        return Ok(Transport::Raw);
    };
    let Some(ConfigType::TypedConfig(any)) = &message.config_type else {
        return Err(Fault::field("typed_config", "missing"));
    };
    match type_name(any).as_str() {
        RAW => Ok(Transport::Raw),
        INTERNAL => Ok(Transport::Hbone),
        TLS => upstream_tls(&any.value, names).map(|tls| Transport::Tls(Arc::new(tls))).at("typed_config"),
        other => Err(Fault::field("typed_config", format!("transport socket {other:?} is not supported"))),
    }
}

fn upstream_tls(body: &[u8], names: AutoNames) -> Result<UpstreamTls, Fault> {
    let message: tls::UpstreamTlsContext = decode(body)?;
    refuse!(message; auto_host_sni, allow_renegotiation);
    let common = CommonTls::parse(message.common_tls_context.as_ref()).at("common_tls_context")?;
    Ok(UpstreamTls {
        sni: Arc::from(message.sni.as_str()),
        alpn: common.alpn,
        sans: common.sans,
        client_certificate: common.certificate,
        roots: common.roots,
        auto_sni: names.sni,
        auto_sans: names.sans || message.auto_sni_san_validation,
        only_tls13: common.only_tls13,
    })
}
