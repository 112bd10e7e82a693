//! What the forwarders of all workloads did. In: events, from any worker. Out: the lines of the metrics page.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::telemetry::{Kind, Text};

/// Counts of all forwarders of the agent; one value, shared.
#[derive(Debug, Default)]
pub struct Counters {
    queries: AtomicU64,
    answers: AtomicU64,
    dropped: [AtomicU64; Reason::ALL.len()],
    in_flight: AtomicI64,
}

/// Why a question got no answer through the agent, or an answer was not given on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It came to an address that stands for no server: dialled by hand.
    Unknown,
    /// Too many wait already.
    Overload,
    /// No answer in time.
    Timeout,
    /// An answer to another question, or a forged one.
    WrongId,
    /// The server's host says that nobody is there, or there is no way to it; the client is told.
    Refused,
    /// The agent could not send or look up.
    Failed,
    /// The workload was withdrawn first.
    Withdrawn,
}

impl Reason {
    pub(super) const ALL: [(Reason, &'static str); 7] = [
        (Reason::Unknown, "unknown"),
        (Reason::Overload, "overload"),
        (Reason::Timeout, "timeout"),
        (Reason::WrongId, "wrong_id"),
        (Reason::Refused, "refused"),
        (Reason::Failed, "failed"),
        (Reason::Withdrawn, "withdrawn"),
    ];
}

impl Counters {
    pub(super) fn query(&self) {
        self.queries.fetch_add(1, Relaxed);
    }

    pub(super) fn answer(&self) {
        self.answers.fetch_add(1, Relaxed);
    }

    pub(super) fn drop_for(&self, reason: Reason) {
        if let Some(count) = self.dropped.get(reason as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// How many were dropped for a reason.
    #[cfg(test)]
    pub(super) fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize].load(Relaxed)
    }

    /// Adds the lines of the metrics page.
    pub fn write(&self, out: &mut Text) {
        let (queries, answers) = (self.queries.load(Relaxed), self.answers.load(Relaxed));
        out.single("mesh_agent_dns_queries_total", Kind::Counter, "DNS questions that came to the agent.", queries);
        out.single("mesh_agent_dns_answers_total", Kind::Counter, "DNS answers given to applications.", answers);
        out.family("mesh_agent_dns_dropped_total", Kind::Counter, "DNS questions and answers dropped, by reason.");
        for (count, (_, reason)) in self.dropped.iter().zip(Reason::ALL) {
            out.name("mesh_agent_dns_dropped_total", "");
            out.label("reason", reason);
            out.value(count.load(Relaxed));
        }
        let in_flight = self.in_flight.load(Relaxed);
        out.single("mesh_agent_dns_in_flight", Kind::Gauge, "DNS questions that wait for an answer.", in_flight);
    }
}

/// Counts a question while it lives.
pub(super) struct InFlight(Arc<Counters>);

impl InFlight {
    pub(super) fn new(counters: &Arc<Counters>) -> InFlight {
        counters.in_flight.fetch_add(1, Relaxed);
        InFlight(Arc::clone(counters))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
