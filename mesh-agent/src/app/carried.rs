//! Tells of direct connections what the agent tells of its own: Istio's TCP metrics at both ends, and bytes by path. In: the
//! list of workloads, their configuration, what the kernel counts. Out: metrics. Asks every few seconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::abi::{Carried, Pair, Path};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::admin::Roster;
use crate::errors::Flags;
use crate::kernel::DirectStats;
use crate::live::Live;
use crate::net::netns::NetNs;
use crate::proxy::{DirectEnd, direct_labels};
use crate::telemetry::WorkerMetrics;

/// How often the kernel is asked.
const PERIOD: Duration = Duration::from_secs(5);
/// How many times what concerns a workload of which not everything is known is put off, from the start on.
const MAX_WAITS: u32 = 12;
/// How many times a workload that is gone is remembered: what it did last is told after it.
const REMEMBERED: u32 = 3;

/// What direct connections carry, told.
pub(super) struct DirectTold {
    /// `None` while it is asked.
    stats: Option<DirectStats>,
    roster: watch::Receiver<Arc<Roster>>,
    live: Arc<Live>,
    metrics: WorkerMetrics,
    /// By the cookie of their namespaces, which is never another one's.
    ends: HashMap<u64, (DirectEnd, u32)>,
    asked: u32,
    ticks: Interval,
}

impl DirectTold {
    /// `metrics`: a handle of which nobody else has a copy.
    pub(super) fn new(
        stats: DirectStats,
        live: Arc<Live>,
        roster: watch::Receiver<Arc<Roster>>,
        metrics: WorkerMetrics,
    ) -> Self {
        let mut ticks = interval_at(Instant::now() + PERIOD, PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { stats: Some(stats), roster, live, metrics, ends: HashMap::new(), asked: 0, ticks }
    }

    /// Waits until it is time to ask.
    pub(super) async fn due(&mut self) {
        loop {
            tokio::select! {
                _ = self.ticks.tick() => return,
                // The sender lives as long as the agent. Who comes and goes in between is not missed.
                _ = self.roster.changed() => self.look(),
            }
        }
    }

    /// Asks, and tells.
    pub(super) async fn settle(&mut self) {
        self.ends.retain(|_, (_, gone)| {
            *gone += 1;
            *gone <= REMEMBERED
        });
        self.look();
        self.asked = self.asked.saturating_add(1);
        let Some(mut stats) = self.stats.take() else { return };
        let spaces: HashMap<u64, Arc<NetNs>> =
            self.ends.iter().map(|(cookie, (end, _))| (*cookie, end.workload.netns.clone())).collect();
        let known: Vec<u64> =
            self.ends.iter().filter(|(_, (end, _))| end.snapshot.is_some()).map(|(cookie, _)| *cookie).collect();
        let all = self.asked > MAX_WAITS;
        let asked = tokio::task::spawn_blocking(move || {
            let known = |pair: &Pair, carried: &Carried| {
                all || *pair == Pair::NOBODY || (known.contains(&pair.client) && known.contains(&carried.server))
            };
            let news = stats.news(|cookie| spaces.get(&cookie).map(|netns| &**netns), known);
            (stats, news)
        });
        match asked.await {
            Ok((stats, news)) => {
                self.stats = Some(stats);
                news.told.iter().for_each(|(pair, carried)| self.tell(pair, carried));
                if let Some(error) = news.failure {
                    tracing::error!(%error, again = ?PERIOD, "cannot tell all that direct connections carry");
                }
            }
            Err(error) => {
                tracing::error!(%error, "what direct connections carry is told no more; a defect of the agent")
            }
        }
    }

    /// Notes who is there, with the configuration that is in force.
    fn look(&mut self) {
        for enrolled in &self.roster.borrow_and_update().enrolled {
            let workload = enrolled.workload.clone();
            let cookie = workload.number();
            let snapshot = self.live.workload(workload.id);
            self.ends.insert(cookie, (DirectEnd { workload, snapshot }, 0));
        }
    }

    fn tell(&self, pair: &Pair, carried: &Carried) {
        let end = |cookie: u64| self.ends.get(&cookie).map(|(end, _)| end);
        let (to, endpoint) = (pair.to.into(), pair.endpoint.into());
        for labels in direct_labels(end(pair.client), end(carried.server), to, endpoint) {
            let series = self.metrics.tcp(&labels, Flags::NONE);
            series.add(carried.opened, carried.closed, carried.forward, carried.back);
        }
        // Both ends are this node's: what one sends the other receives.
        for bytes in [carried.forward, carried.back] {
            self.metrics.bytes().sent(Path::Direct, bytes);
            self.metrics.bytes().received(Path::Direct, bytes);
        }
    }
}
