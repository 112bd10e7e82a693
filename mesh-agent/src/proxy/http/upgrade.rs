//! After `101 Switching Protocols` a connection is opaque bytes (WebSocket and the like).

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::record::Record;
use crate::errors::Flags;
use crate::net::copy::{Traffic, copy};
use crate::net::peek::Peeked;
use crate::upstream::stream::Stream;

/// Relays once both sides have switched, and reports the request when that ends.
pub(super) async fn relay(downstream: OnUpgrade, upstream: OnUpgrade, mut record: Record) {
    let (Ok(downstream), Ok(upstream)) = tokio::join!(downstream, upstream) else {
        return record.finish(Flags::UC);
    };
    let Ok(parts) = downstream.downcast::<TokioIo<Peeked<Stream>>>() else { return record.finish(Flags::LR) };
    let downstream = Peeked::with_prefix(parts.io.into_inner(), parts.read_buf);
    let Some(upstream) = upstream_io(upstream) else { return record.finish(Flags::LR) };
    let traffic = Traffic::default();
    copy(downstream, upstream, &traffic, None).await;
    record.request_bytes.set(record.request_bytes.get() + traffic.forward.get());
    record.response_bytes += traffic.back.get();
    record.finish(Flags::NONE);
}

fn upstream_io(upgraded: Upgraded) -> Option<Peeked<Stream>> {
    let parts = upgraded.downcast::<TokioIo<Stream>>().ok()?;
    Some(Peeked::with_prefix(parts.io.into_inner(), parts.read_buf))
}
