//! Istio's exchange of names on TCP: each end of a connection on which ALPN has settled `istio-peer-exchange` sends a frame in
//! front of all other bytes that says which workload it is.
//!
//! A frame: magic and length, each four bytes in network order, then an `Any` with a `Struct` that has `x-envoy-peer-metadata`
//! and `x-envoy-peer-metadata-id` (filter `istio.metadata_exchange` of Istio's proxy).
//! In: an open connection, and who we are. Out: who the peer says that it is: names for metrics, no proof of anything.
//! Never: reads a byte behind the peer's frame, or a frame that is larger than [`MAX_FRAME`].

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use prost::Message;
use prost_types::value::Kind;
use prost_types::{Any, Struct, Value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::telemetry::Peer;

/// The first bytes of a frame.
pub const MAGIC: u32 = 0x3D23_0467;
/// Longest frame without its header, in bytes. Istio's have some hundred.
pub const MAX_FRAME: usize = 64 << 10;
/// Longest value that is taken over, in bytes: it becomes a label of metrics.
const MAX_VALUE: usize = 256;

const STRUCT_TYPE: &str = "type.googleapis.com/google.protobuf.Struct";
const METADATA: &str = "x-envoy-peer-metadata";
const METADATA_ID: &str = "x-envoy-peer-metadata-id";
const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";

/// Why there are no names of the peer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection has broken, or ended.
    #[error("the peer has not sent its frame: {0}")]
    Io(#[from] io::Error),
    /// The bytes are something else.
    #[error(
        "the peer has settled istio-peer-exchange and sent no frame of it (first bytes {0:#010x}): see whether it runs Istio's metadata_exchange"
    )]
    Magic(u32),
    /// The frame is too large.
    #[error("the peer's frame has {0} bytes, more than {MAX_FRAME}")]
    TooLong(u32),
    /// The frame is no message with metadata.
    #[error("the peer's frame is malformed: {0}")]
    Malformed(String),
}

/// Sends our frame and reads the peer's. Each end sends first and unasked, so that nobody waits for the other.
pub async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, own: &[u8]) -> Result<Peer, ExchangeError> {
    stream.write_all(own).await?;
    stream.flush().await?;
    let magic = stream.read_u32().await?;
    if magic != MAGIC {
        return Err(ExchangeError::Magic(magic));
    }
    let length = stream.read_u32().await?;
    let size = usize::try_from(length).ok().filter(|size| *size <= MAX_FRAME);
    let mut body = vec![0; size.ok_or(ExchangeError::TooLong(length))?];
    stream.read_exact(&mut body).await?;
    parse(&body)
}

/// Our frame. `name`: the pod's; `address`: its main one.
pub fn frame(peer: &Peer, name: &str, address: &str) -> Arc<[u8]> {
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let of = |fields: &[(&str, &str)]| Struct {
        fields: fields
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| ((*key).into(), text(value)))
            .collect(),
    };
    let nested = |fields: Struct| Value { kind: Some(Kind::StructValue(fields)) };
    let labels = of(&[
        ("app", &peer.app),
        ("version", &peer.version),
        (CANONICAL_NAME, &peer.canonical_service),
        (CANONICAL_REVISION, &peer.canonical_revision),
    ]);
    let mut metadata = of(&[
        ("NAME", name),
        ("NAMESPACE", &peer.namespace),
        ("WORKLOAD_NAME", &peer.workload),
        ("CLUSTER_ID", &peer.cluster),
    ]);
    metadata.fields.insert("LABELS".into(), nested(labels));
    let namespace = &peer.namespace;
    let id = format!("sidecar~{address}~{name}.{namespace}~{namespace}.svc.cluster.local");
    let fields = BTreeMap::from([(METADATA.into(), nested(metadata)), (METADATA_ID.into(), text(&id))]);
    let body = Any { type_url: STRUCT_TYPE.to_owned(), value: Struct { fields }.encode_to_vec() }.encode_to_vec();
    // Of names that the settings have, each far below the bound.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&MAGIC.to_be_bytes()[..], &length.to_be_bytes(), &body].concat().into()
}

/// What a frame without its header says.
pub fn parse(body: &[u8]) -> Result<Peer, ExchangeError> {
    let malformed = |error: prost::DecodeError| ExchangeError::Malformed(error.to_string());
    let any = Any::decode(body).map_err(malformed)?;
    if any.type_url != STRUCT_TYPE {
        return Err(ExchangeError::Malformed(format!(
            "it holds {:?}",
            any.type_url.get(..64).unwrap_or(&any.type_url)
        )));
    }
    let message = Struct::decode(any.value.as_slice()).map_err(malformed)?;
    let mut peer = Peer::default();
    // A peer that says nothing of itself is one of which nothing is known.
    let Some(metadata) = inner(&message, METADATA) else { return Ok(peer) };
    let nothing = Struct::default();
    let labels = inner(metadata, "LABELS").unwrap_or(&nothing);
    for (field, value) in [
        (&mut peer.workload, text(metadata, "WORKLOAD_NAME")),
        (&mut peer.namespace, text(metadata, "NAMESPACE")),
        (&mut peer.cluster, text(metadata, "CLUSTER_ID")),
        (&mut peer.app, text(labels, "app")),
        (&mut peer.version, text(labels, "version")),
        (&mut peer.canonical_service, text(labels, CANONICAL_NAME).or(text(metadata, "WORKLOAD_NAME"))),
        (&mut peer.canonical_revision, text(labels, CANONICAL_REVISION)),
    ] {
        if let Some(value) = value {
            *field = value.into();
        }
    }
    Ok(peer)
}

fn inner<'s>(message: &'s Struct, key: &str) -> Option<&'s Struct> {
    match message.fields.get(key)?.kind.as_ref()? {
        Kind::StructValue(inner) => Some(inner),
        _ => None,
    }
}

fn text<'s>(message: &'s Struct, key: &str) -> Option<&'s str> {
    match message.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) if text.len() <= MAX_VALUE => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::reviews;

    async fn said(bytes: &[u8]) -> Result<Peer, ExchangeError> {
        let (mut near, mut far) = tokio::io::duplex(256 << 10);
        far.write_all(bytes).await.unwrap();
        far.shutdown().await.unwrap();
        exchange(&mut near, b"").await
    }

    fn framed(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap();
        [&MAGIC.to_be_bytes()[..], &length.to_be_bytes(), body].concat()
    }

    #[tokio::test]
    async fn two_ends_learn_of_each_other_and_leave_what_follows() {
        let (mut near, mut far) = tokio::io::duplex(64 << 10);
        let web = Peer { workload: "web".into(), ..reviews() };
        let (ours, theirs) = (frame(&reviews(), "reviews-v1-x", "10.0.0.1"), frame(&web, "web-x", "10.0.0.2"));
        near.write_all(b"").await.unwrap();
        let theirs_then = [&theirs[..], b"hello"].concat();
        let (one, other) = tokio::join!(exchange(&mut near, &ours), exchange(&mut far, &theirs_then));
        assert_eq!((one.unwrap(), other.unwrap()), (web, reviews()));
        let mut rest = [0; 5];
        near.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn the_frame_is_istios() {
        let bytes = frame(&reviews(), "reviews-v1-x", "10.0.0.1");
        assert_eq!(bytes[..4], [0x3d, 0x23, 0x04, 0x67]);
        assert_eq!(u32::from_be_bytes(bytes[4..8].try_into().unwrap()) as usize, bytes.len() - 8);
        let any = Any::decode(&bytes[8..]).unwrap();
        assert_eq!(any.type_url, "type.googleapis.com/google.protobuf.Struct");
        let message = Struct::decode(any.value.as_slice()).unwrap();
        let metadata = inner(&message, "x-envoy-peer-metadata").unwrap();
        let id = "sidecar~10.0.0.1~reviews-v1-x.shop~shop.svc.cluster.local";
        assert_eq!(text(&message, "x-envoy-peer-metadata-id"), Some(id));
        assert_eq!((text(metadata, "NAME"), text(metadata, "NAMESPACE")), (Some("reviews-v1-x"), Some("shop")));
        let labels = inner(metadata, "LABELS").unwrap();
        assert_eq!(text(labels, "service.istio.io/canonical-name"), Some("reviews"));
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        let kind = |bytes: Vec<u8>| async move {
            match said(&bytes).await {
                Err(ExchangeError::Io(_)) => "io",
                Err(ExchangeError::Magic(_)) => "magic",
                Err(ExchangeError::TooLong(_)) => "long",
                Err(ExchangeError::Malformed(_)) => "malformed",
                Ok(peer) => panic!("{peer:?}"),
            }
        };
        let any = |type_url: &str, value: &[u8]| Any { type_url: type_url.into(), value: value.into() }.encode_to_vec();
        assert_eq!(kind(b"GET / HTTP/1.1\r\n".to_vec()).await, "magic");
        assert_eq!(kind(vec![]).await, "io");
        assert_eq!(kind(framed(b"")[..6].to_vec()).await, "io");
        assert_eq!(kind([&MAGIC.to_be_bytes()[..], &[0, 0, 0, 9, 1]].concat()).await, "io");
        assert_eq!(kind([&MAGIC.to_be_bytes()[..], &[0xff; 4]].concat()).await, "long");
        assert_eq!(kind(framed(b"\xff")).await, "malformed");
        assert_eq!(kind(framed(b"")).await, "malformed");
        assert_eq!(kind(framed(&any("type.googleapis.com/x.Y", b""))).await, "malformed");
        assert_eq!(kind(framed(&any(STRUCT_TYPE, b"\xff\xff"))).await, "malformed");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_names_or_refused(body in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0..300_usize, byte: u8) {
            let _ = parse(&body);
            let mut spoiled = frame(&reviews(), "n", "10.0.0.1").to_vec();
            let at = 8 + at % (spoiled.len() - 8);
            spoiled[at] = byte;
            let _ = parse(&spoiled[8..]);
        }
    }

    #[tokio::test]
    async fn a_peer_may_say_nothing_of_itself_and_no_value_is_long() {
        let any = |message: Struct| {
            framed(&Any { type_url: STRUCT_TYPE.into(), value: message.encode_to_vec() }.encode_to_vec())
        };
        assert_eq!(said(&any(Struct::default())).await.unwrap(), Peer::default());
        let long = Peer { workload: "x".repeat(MAX_VALUE + 1).into(), app: "a".into(), ..Peer::default() };
        let peer = said(&frame(&long, "n", "10.0.0.1")).await.unwrap();
        assert_eq!((&*peer.workload, &*peer.app), ("", "a"));
    }
}
