//! Small builders for Envoy's messages.
//!
//! In: plain values. Out: messages. No decision is made here.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::google::protobuf as google;
use envoy_types::pb::google::protobuf::value::Kind;
use prost::{Message, Name};

pub(crate) fn any<T: Message + Name>(message: &T) -> google::Any {
    google::Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

pub(crate) fn duration(value: Duration) -> Option<google::Duration> {
    Some(google::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or_default(),
    })
}

pub(crate) fn uint32(value: u32) -> Option<google::UInt32Value> {
    Some(google::UInt32Value { value })
}

pub(crate) fn boolean(value: bool) -> Option<google::BoolValue> {
    Some(google::BoolValue { value })
}

pub(crate) fn address(host: &str, port: u16) -> core::Address {
    core::Address { address: Some(core::address::Address::SocketAddress(socket_address(host, port))) }
}

pub(crate) fn socket_address(host: &str, port: u16) -> core::SocketAddress {
    core::SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
        ..Default::default()
    }
}

pub(crate) fn cidr(address: IpAddr, length: u8) -> core::CidrRange {
    core::CidrRange { address_prefix: address.to_string(), prefix_len: uint32(length.into()) }
}

/// Resources come over the same ADS stream; an agent waits for them without limit.
pub(crate) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        initial_fetch_timeout: duration(Duration::ZERO),
        resource_api_version: core::ApiVersion::V3.into(),
        ..Default::default()
    }
}

pub(crate) fn text(value: &str) -> google::Value {
    google::Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

pub(crate) fn structure<const N: usize>(fields: [(&str, google::Value); N]) -> google::Struct {
    google::Struct { fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
}

pub(crate) fn nested(value: google::Struct) -> google::Value {
    google::Value { kind: Some(Kind::StructValue(value)) }
}

pub(crate) fn list(values: Vec<google::Value>) -> google::Value {
    google::Value { kind: Some(Kind::ListValue(google::ListValue { values })) }
}

pub(crate) fn metadata<const N: usize>(filters: [(&str, google::Struct); N]) -> core::Metadata {
    core::Metadata {
        filter_metadata: filters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        typed_filter_metadata: HashMap::new(),
    }
}
