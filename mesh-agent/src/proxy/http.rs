//! HTTP stub
use super::chosen::{Chosen, Flow};
use super::pod::Pod;
use crate::net::peek::Peeked;
use crate::upstream::Connected;
use crate::upstream::stream::Stream;
use std::rc::Rc;
pub(super) async fn serve(
    pod: Rc<Pod>,
    flow: Flow,
    chosen: Chosen,
    downstream: Peeked<Stream>,
    http2: bool,
    first: Option<Connected>,
) {
    let _ = (pod, flow, chosen, downstream, http2, first);
}
