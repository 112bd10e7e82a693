//! Memory that one exchange needs and the next one can use again: parsed heads, and what is written.
//!
//! In: memory of exchanges that are over. Out: memory for one that begins. A worker keeps a few, so a connection that waits has none.

use std::cell::RefCell;

use mesh_http::{RequestHead, ResponseHead};

/// What one worker keeps for exchanges to come.
const MAX_SPARE: usize = 32;
/// Buffers that have grown longer are not kept, in bytes.
const MAX_KEPT: usize = 64 << 10;

/// The memory.
#[derive(Default)]
pub(super) struct Work {
    pub(super) request: RequestHead,
    pub(super) response: ResponseHead,
    pub(super) to_server: Vec<u8>,
    pub(super) to_client: Vec<u8>,
}

thread_local! {
    /// Of the worker of this thread.
    #[expect(clippy::vec_box, reason = "a connection holds the place for one all its life, and a box is small")]
    static SPARE: RefCell<Vec<Box<Work>>> = const { RefCell::new(Vec::new()) };
}

impl Work {
    pub(super) fn take() -> Box<Self> {
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    pub(super) fn give_back(self: Box<Self>) {
        let small = self.to_server.capacity().max(self.to_client.capacity()) <= MAX_KEPT;
        SPARE.with_borrow_mut(|spare| {
            if small && spare.len() < MAX_SPARE {
                spare.push(self);
            }
        });
    }
}
