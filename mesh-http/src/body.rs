//! Bodies of every framing.
//!
//! In: the bytes of the body not yet taken. Out: how many of them can go on, which of these are data, and whether that was all.
//! Never: holds a byte, takes one behind the body's end.

use crate::chunked::Chunked;
use crate::{Framing, Refusal};

/// How far a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

/// What one step has found at the front of its input. `taken` 0 without `done`: it needs more bytes behind those that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Step {
    /// Bytes that belong to the body as it is written.
    pub taken: usize,
    /// Of these, bytes of data: all of them or none.
    pub data: usize,
    /// The body has ended.
    pub done: bool,
    /// `grpc-status` of the trailers.
    pub grpc_status: Option<u8>,
}

impl Body {
    /// The body of a message with this framing.
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::None => State::Length(0),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Chunked::default()),
            Framing::UntilClose | Framing::Tunnel => State::UntilClose,
        })
    }

    /// One step forward.
    ///
    /// # Errors
    /// The body is malformed; nothing behind it can be understood any more.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, Refusal> {
        match &mut self.0 {
            State::Length(left) => {
                let taken = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= taken as u64;
                Ok(Step { taken, data: taken, done: *left == 0, grpc_status: None })
            }
            State::Chunked(chunked) => chunked.step(input),
            State::UntilClose => Ok(Step { taken: input.len(), data: input.len(), ..Step::default() }),
        }
    }

    /// As many steps as the input has: `taken` and `data` in all. What is taken may go on as it is.
    ///
    /// # Errors
    /// As of [`Body::step`].
    pub fn pass(&mut self, input: &[u8]) -> Result<Step, Refusal> {
        let mut all = Step::default();
        loop {
            let step = self.step(&input[all.taken..])?;
            all = Step {
                taken: all.taken + step.taken,
                data: all.data + step.data,
                done: step.done,
                grpc_status: step.grpc_status,
            };
            if step.done || step.taken == 0 || all.taken == input.len() {
                return Ok(all);
            }
        }
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        matches!(self.0, State::Length(0) | State::Chunked(Chunked::Done))
    }

    /// Whether the end of the connection ends the body, and does not cut it off.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self.0, State::UntilClose)
    }
}
