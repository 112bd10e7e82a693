//! Where a request goes, whatever it came by: the route, and what it says before anything is dialled.
//!
//! In: the head as routing sees it, and the configuration of the moment. Out: the route and its cluster, or the agent's own answer.
//! No I/O.

use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::balance::PickContext;
use mesh_core::resource::listener::Routes;
use mesh_core::resource::route::{
    Action, Forward, RequestHead, RetryPolicy, Route, RouteOutcome, RouteTable, WeightedCluster,
};

use mesh_http::path::{Cleaned, clean};

use super::Conn;
use super::exchange::Failed;
use super::record::Record;
use super::reply::Reply;
use crate::live::{Current, FoundTable};
use crate::proxy::cluster::{self, NoTarget, Target};
use crate::random::random;

/// What routing has decided.
pub(super) struct Way<'a> {
    pub(super) route: &'a Route,
    pub(super) forward: &'a Forward,
    pub(super) entry: &'a WeightedCluster,
    pub(super) hash: Option<u64>,
}

/// The routes of the connection's listener.
pub(super) fn table(conn: &Conn, current: &Current) -> Option<Table> {
    match &conn.manager()?.routes {
        Routes::Inline(table) => Some(Table::Inline(table.clone())),
        Routes::Rds(name) => current.routes(name).map(Table::Found),
    }
}

/// The table that a request is routed by.
pub(super) enum Table {
    Inline(Arc<RouteTable>),
    Found(Rc<FoundTable>),
}

impl Deref for Table {
    type Target = RouteTable;

    fn deref(&self) -> &RouteTable {
        match self {
            Self::Inline(table) => table,
            Self::Found(found) => &found.table,
        }
    }
}

/// The path as routing sees it, if it is another than the client's; the answer, if the listener does not let it pass.
pub(super) fn clean_path(conn: &Conn, path: &str, grpc: bool) -> Result<Option<String>, Reply> {
    match clean(path, conn.cleaning()) {
        Cleaned::Same => Ok(None),
        Cleaned::Other(clean) => Ok(Some(clean)),
        // A gRPC client follows no redirect.
        Cleaned::Redirect(clean) if !grpc => Err(Reply::clean_path(clean)),
        Cleaned::Redirect(_) | Cleaned::Refused => Err(Reply::unclean_path()),
    }
}

/// Finds the route; the answer, if the route is one.
pub(super) fn select<'a>(
    conn: &Conn,
    table: &'a RouteTable,
    head: &RequestHead<'_>,
    record: &mut Record,
) -> Result<Way<'a>, Reply> {
    let RouteOutcome::Route(route) = table.select(head) else { return Err(Reply::no_route()) };
    record.route(&route.name);
    match &route.action {
        Action::Forward(forward) => {
            let hash = forward.hash(head, conn.flow.client.ip());
            Ok(Way { route, forward, entry: forward.clusters.pick(random()), hash })
        }
        Action::DirectResponse { status, body } => Err(Reply::direct(*status, body.clone())),
        Action::Redirect(redirect) => Err(Reply::redirect(redirect.status, route.location(head).unwrap_or_default())),
    }
}

impl Way<'_> {
    /// Whether a request for this protocol may be upgraded.
    pub(super) fn may_upgrade(&self, protocol: &str) -> bool {
        !self.forward.upgrades.iter().any(|(name, allowed)| **name == *protocol && !allowed)
    }

    /// Attempts that may be made where they fail so.
    pub(super) fn attempts(&self, failed: &Failed) -> u32 {
        let again = |retry: &&RetryPolicy| match failed {
            Failed::Unconnected(_) => retry.on.connect_failure,
            Failed::Refused => retry.on.refused_stream,
        };
        1 + self.forward.retry.as_ref().filter(again).map_or(0, |retry| retry.num_retries)
    }

    /// Envoy's back-off: a random time below `base · (2^n − 1)`, within the maximum.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        let Some(RetryPolicy { base_interval, max_interval, .. }) = &self.forward.retry else { return Duration::ZERO };
        let factor = 2_u32.saturating_pow(attempt).saturating_sub(1);
        base_interval.saturating_mul(factor).min(*max_interval).mul_f64(random::<f64>())
    }

    /// Picks the endpoint, other than those tried before if there is one.
    pub(super) fn target(
        &self,
        conn: &Conn,
        current: &Current,
        tried: &[std::net::SocketAddr],
        record: &mut Record,
    ) -> Result<Target, Reply> {
        let context = PickContext { hash: self.hash, avoid: tried };
        let known = |to| conn.pod.known(to);
        let chosen = current.cluster(&self.entry.name).ok_or(NoTarget::NoCluster).and_then(|found| {
            let (snapshot, endpoints) = (&current.snapshot, found.endpoints(&current.snapshot));
            cluster::choose_of(snapshot, &found.cluster, endpoints, &conn.flow, &context, known)
        });
        chosen.map_err(|none| {
            record.cluster(&self.entry.name);
            match none {
                NoTarget::NoCluster => Reply::no_cluster(self.forward.cluster_not_found),
                NoTarget::NoEndpoint => Reply::no_endpoint(),
            }
        })
    }
}
