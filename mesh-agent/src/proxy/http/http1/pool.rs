//! The HTTP/1 connections of one client to servers, which wait for its next request.
//!
//! In: those whose last response has been read to its end. Out: one for the same endpoint, if it is still good. Bounded; the oldest goes.
//! Never: serves two clients with one connection.

use std::rc::Rc;
use std::task::Context;

use super::super::record::Seen;
use super::link::Link;
use crate::net::copy::Duplex;
use crate::proxy::cluster::{End, Fit, Target};

/// Connections that wait.
const MAX_IDLE: usize = 8;

/// One connection to a server.
pub(in super::super) struct Upstream {
    end: End,
    pub(in super::super) seen: Rc<Seen>,
    pub(super) link: Link,
    /// It was open before this request: the server may be about to close it.
    pub(super) reused: bool,
}

impl Upstream {
    pub(in super::super) fn new(target: &Target, seen: Rc<Seen>, link: Link, reused: bool) -> Self {
        Self { end: target.end(), seen, link, reused }
    }
}

/// The connections.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "one is handed on several times a request, and a box is small")]
pub(in super::super) struct Pool(Vec<Box<Upstream>>);

impl Pool {
    /// A connection to the target that is still good as far as is known.
    pub(in super::super) fn take(&mut self, cx: &mut Context<'_>, target: &Target) -> Option<Box<Upstream>> {
        loop {
            let mut outdated = false;
            let found = self.0.iter().position(|one| {
                let fit = target.fit(&one.end);
                outdated |= fit == Fit::Outdated;
                fit == Fit::Same
            });
            if outdated {
                self.0.retain(|one| target.fit(&one.end) != Fit::Outdated);
                continue;
            }
            let mut upstream = self.0.swap_remove(found?);
            if upstream.link.is_quiet(cx) {
                return Some(upstream);
            }
        }
    }

    /// Whether one leads to the target.
    pub(in super::super) fn leads_to(&self, target: &Target) -> bool {
        self.0.iter().any(|one| target.fit(&one.end) == Fit::Same)
    }

    /// Keeps a connection whose response has been read.
    pub(super) fn put(&mut self, mut upstream: Box<Upstream>) {
        if self.0.len() >= MAX_IDLE {
            self.0.remove(0);
        }
        upstream.reused = true;
        self.0.push(upstream);
    }

    /// Tells every server that nothing more will come.
    pub(in super::super) fn finish(&mut self, cx: &mut Context<'_>) {
        for mut upstream in self.0.drain(..) {
            // Where that cannot be said at once, it is dropped.
            let _ = upstream.link.poll_finish(cx);
        }
    }

    /// Lets go of those whose server has left or said something unasked.
    pub(in super::super) fn look(&mut self, cx: &mut Context<'_>) {
        self.0.retain_mut(|upstream| upstream.link.is_quiet(cx));
    }
}
