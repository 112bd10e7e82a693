//! Readers of the small messages that all resources share: durations, addresses, metadata, `Any`.
//!
//! In: parts of Envoy's messages. Out: values of the standard library, or a fault.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf as google;
use ipnet::IpNet;
use prost::Message;

use crate::resource::fault::{At, Fault};

const TYPE_PREFIX: &str = "type.googleapis.com/";
const UDPA_TYPED_STRUCT: &str = "udpa.type.v1.TypedStruct";
const XDS_TYPED_STRUCT: &str = "xds.type.v3.TypedStruct";

/// Refuses every named field that is set, so that nothing with an effect is passed over.
macro_rules! refuse {
    ($message:expr; $($field:ident),+ $(,)?) => {
        $(
            if $crate::resource::wire::is_set(&$message.$field) {
                let name = stringify!($field);
                return Err($crate::resource::fault::Fault::field(
                    name.strip_prefix("r#").unwrap_or(name),
                    "not supported",
                ));
            }
        )+
    };
}
pub(crate) use refuse;

/// Metadata of endpoints by which a cluster chooses how to reach them (Envoy documentation, `transport_socket_matches`).
pub(crate) const MATCH_METADATA: &str = "envoy.transport_socket_match";

/// Whether a field holds anything but its default.
pub(crate) fn is_set<T: Default + PartialEq>(field: &T) -> bool {
    *field != T::default()
}

/// Decodes the body of an `Any` or of a resource.
pub(crate) fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Fault> {
    M::decode(bytes).map_err(|error| Fault::new(format!("not a valid message: {error}")))
}

/// The type of an `Any` without its host part; for a TypedStruct the type it stands for.
pub(crate) fn type_name(any: &google::Any) -> String {
    /// The only field wanted of `TypedStruct`; both packages have the same shape.
    #[derive(Clone, PartialEq, Message)]
    struct TypedStruct {
        #[prost(string, tag = "1")]
        type_url: String,
    }
    let name = strip(&any.type_url);
    if (name == UDPA_TYPED_STRUCT || name == XDS_TYPED_STRUCT)
        && let Ok(inner) = TypedStruct::decode(any.value.as_slice())
    {
        return strip(&inner.type_url).to_owned();
    }
    name.to_owned()
}

fn strip(type_url: &str) -> &str {
    type_url.strip_prefix(TYPE_PREFIX).unwrap_or(type_url)
}

/// A duration; negative ones and those beyond `u64` seconds are refused.
pub(crate) fn duration(message: &google::Duration) -> Result<Duration, Fault> {
    let seconds = u64::try_from(message.seconds);
    let nanos = u32::try_from(message.nanos);
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(Fault::new("a duration must be zero or more")),
    }
}

/// A duration where absent means `default` and zero means "none".
pub(crate) fn timeout(
    field: &str,
    message: Option<&google::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>, Fault> {
    use crate::resource::fault::At;
    match message {
        None => Ok(default),
        Some(message) => {
            let value = duration(message).at(field)?;
            Ok(Some(value).filter(|value| !value.is_zero()))
        }
    }
}

/// A TCP or UDP port.
pub(crate) fn port(value: u32) -> Result<u16, Fault> {
    u16::try_from(value).map_err(|_| Fault::new(format!("{value} is not a port")))
}

/// Address and port as text and number; the address may be a name.
pub(crate) fn host_port(message: &core::SocketAddress) -> Result<(&str, u16), Fault> {
    use core::socket_address::{PortSpecifier, Protocol};
    if message.protocol != Protocol::Tcp as i32 {
        return Err(Fault::field("protocol", "only TCP is supported"));
    }
    refuse!(message; resolver_name, network_namespace_filepath);
    let port = match &message.port_specifier {
        Some(PortSpecifier::PortValue(value)) => port(*value)?,
        Some(PortSpecifier::NamedPort(_)) => {
            return Err(Fault::field("named_port", "not supported"));
        }
        None => return Err(Fault::field("port_value", "missing")),
    };
    Ok((&message.address, port))
}

/// Address and port, both literal. IPv4-mapped IPv6 becomes IPv4.
pub(crate) fn socket_address(message: &core::SocketAddress) -> Result<SocketAddr, Fault> {
    let (host, port) = host_port(message)?;
    let ip: IpAddr = host.parse().map_err(|_| Fault::field("address", format!("{host:?} is not an IP address")))?;
    Ok(SocketAddr::new(ip.to_canonical(), port))
}

/// An address range.
pub(crate) fn cidr(message: &core::CidrRange) -> Result<IpNet, Fault> {
    let ip: IpAddr = message
        .address_prefix
        .parse()
        .map_err(|_| Fault::field("address_prefix", format!("{:?} is not an IP address", message.address_prefix)))?;
    let length = message.prefix_len.as_ref().map_or(0, |len| len.value);
    u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(ip, length).ok())
        .map(|net| net.trunc())
        .ok_or_else(|| Fault::field("prefix_len", format!("{length} is too long for {ip}")))
}

/// An address of 4 or 16 bytes, as it stands.
pub(crate) fn address(bytes: &[u8]) -> Result<IpAddr, Fault> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(four.into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(sixteen) => Ok(sixteen.into()),
        Err(_) => Err(Fault::new(format!("has {} bytes; an address has 4 or 16", bytes.len()))),
    }
}

/// A range of addresses of 4 or 16 bytes, without the bits behind its length. IPv4 ranges written as IPv6 become IPv4, as the
/// addresses they are compared with.
pub(crate) fn range(bytes: &[u8], length: u32) -> Result<IpNet, Fault> {
    let ip = address(bytes).at("address")?;
    let too_long = || Fault::field("length", format!("{length} is too long for {ip}"));
    let length = u8::try_from(length).map_err(|_| too_long())?;
    let net = match (ip, ip.to_canonical()) {
        (IpAddr::V6(_), short @ IpAddr::V4(_)) if length >= 96 => IpNet::new(short, length - 96),
        _ => IpNet::new(ip, length),
    };
    net.map(|net| net.trunc()).map_err(|_| too_long())
}

/// A value in `filter_metadata`, by filter and key.
pub(crate) fn metadata<'a>(
    message: Option<&'a core::Metadata>,
    filter: &str,
    key: &str,
) -> Option<&'a google::value::Kind> {
    member(message?.filter_metadata.get(filter)?, key)
}

/// A member of a struct.
pub(crate) fn member<'a>(message: &'a google::Struct, key: &str) -> Option<&'a google::value::Kind> {
    message.fields.get(key)?.kind.as_ref()
}

/// The text of a value, if it is one.
pub(crate) fn text(kind: Option<&google::value::Kind>) -> Option<&str> {
    match kind {
        Some(google::value::Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

/// `None` for an empty text.
pub(crate) fn name(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| Arc::from(text))
}
