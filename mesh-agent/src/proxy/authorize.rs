//! Policies: who may connect to a local workload, decided before its application hears of it, and again at every change.
//!
//! In: a connection's ends and the identity that a certificate proved. Out: that it may come in, or why not. Until it is
//! known which policies are in force nobody comes in: a connection waits for it, but not for ever. One that is open stays
//! until a policy says otherwise. Refusals are told as those of plaintext are.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mesh_core::ambient::{Ambient, Unknown};
use mesh_core::authorization::{Matched, Policies, Verdict};
use mesh_core::identity::SpiffeId;
use mesh_core::resource::authorization::Connection;
use mesh_core::resource::workload::Workload as Known;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::chosen::Flow;
use super::plaintext::{self, Refusal};
use super::pod::Pod;
use super::tcp;
use crate::live::Live;
use crate::net::copy::Duplex;
use crate::telemetry::{Budget, Kind, Text};
use crate::workload::Workload;

/// How long a connection waits until the policies of its workload are known.
const POLICY_WAIT: Duration = Duration::from_secs(10);
/// How Istio names the policies that it makes of PeerAuthentications.
const CONVERTED: [&str; 2] = ["istio_converted_static_strict", "converted_peer_authentication_"];

/// Why a connection may not come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denial {
    /// A policy forbids it: `namespace/name` and the rule.
    Forbidden(Arc<str>, usize),
    /// There are policies that allow, and none allows this.
    NotAllowed,
    /// It is not known which policies are in force.
    Unknown(Missing),
}

/// Why it is not known which policies are in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Missing {
    #[error("the control plane has not told of workloads and policies (WDS, WADS)")]
    Answer,
    #[error(transparent)]
    Part(#[from] Unknown),
}

/// In ztunnel's words.
impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denial::Forbidden(policy, _) => write!(f, "explicitly denied by: {policy}"),
            Denial::NotAllowed => f.write_str("allow policies exist, but none allowed"),
            Denial::Unknown(missing) => missing.fmt(f),
        }
    }
}

impl Denial {
    /// Envoy's connection termination detail.
    pub(super) fn details(&self) -> String {
        let policy = match self {
            Denial::Forbidden(policy, rule) => {
                let (namespace, name) = policy.split_once('/').unwrap_or(("", policy));
                format!("ns[{namespace}]-policy[{name}]-rule[{rule}]")
            }
            Denial::NotAllowed => "none".to_owned(),
            Denial::Unknown(_) => return "rbac_policies_unknown".to_owned(),
        };
        format!("rbac_access_denied_matched_policy[{policy}]")
    }

    /// Whether it is STRICT, said by a policy.
    fn is_strict(&self) -> bool {
        let Denial::Forbidden(policy, _) = self else { return false };
        let name = policy.split_once('/').map_or(&**policy, |(_, name)| name);
        CONVERTED.iter().any(|start| name.starts_with(start))
    }

    fn of(by: Option<Matched<'_>>) -> Denial {
        by.map_or(Denial::NotAllowed, |by| Denial::Forbidden(by.policy.key.clone(), by.rule))
    }
}

/// When a connection was judged.
#[derive(Debug, Clone, Copy)]
enum When {
    New,
    Open,
}

/// What policies did on all workers.
#[derive(Debug, Default)]
pub struct Judged {
    denied: AtomicU64,
    closed: AtomicU64,
    unknown: AtomicU64,
    dry_run: AtomicU64,
}

impl Judged {
    /// Writes them to the metrics page.
    pub fn write(&self, out: &mut Text) {
        let name = "mesh_agent_policy_refused_total";
        out.family(name, Kind::Counter, "Connections to local workloads that policies refused or closed, by reason.");
        for (reason, count) in [("denied", &self.denied), ("closed", &self.closed), ("unknown", &self.unknown)] {
            out.name(name, "");
            out.label("reason", reason);
            out.value(count.load(Relaxed));
        }
        let help = "Connections that policies on trial (dry run) would have decided otherwise.";
        out.single("mesh_agent_policy_dry_run_total", Kind::Counter, help, self.dry_run.load(Relaxed));
    }
}

/// Where one worker tells of refusals.
#[derive(Clone)]
pub(super) struct Judge {
    judged: Arc<Judged>,
    budget: Rc<RefCell<Budget>>,
}

impl Judge {
    pub(super) fn new(judged: Arc<Judged>) -> Self {
        Self { judged, budget: Rc::default() }
    }
}

/// The policies of one workload as one worker knows them.
pub(super) struct Door {
    /// `None`: they are not enforced.
    whose: Option<Whose>,
    seen: RefCell<Seen>,
    changes: watch::Sender<()>,
    judge: Judge,
}

/// By what a workload is found in the mesh.
pub(super) struct Whose {
    pub(super) addresses: Vec<std::net::IpAddr>,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

impl Whose {
    pub(super) fn of(workload: &Workload) -> Self {
        let (addresses, namespace, name) =
            (workload.addresses.clone(), workload.namespace.clone(), workload.name.clone());
        Self { addresses, namespace, name }
    }
}

struct Seen {
    /// What the policies were taken from.
    of: Option<Arc<Ambient>>,
    /// The workload as it was told of last: one that is ending serves on, under the policies that select it.
    workload: Option<Arc<Known>>,
    policies: Result<Arc<Policies>, Missing>,
}

impl Door {
    pub(super) fn new(whose: Option<Whose>, judge: Judge) -> Self {
        let seen = Seen { of: None, workload: None, policies: Err(Missing::Answer) };
        Self { whose, seen: RefCell::new(seen), changes: watch::channel(()).0, judge }
    }

    /// Looks which policies are in force now, and lets open connections know if they are other ones.
    pub(super) fn look(&self, live: &Live) -> Result<Arc<Policies>, Missing> {
        let (Some(whose), Some(ambient)) = (&self.whose, live.ambient()) else { return Err(Missing::Answer) };
        let mut seen = self.seen.borrow_mut();
        if !seen.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &ambient)) {
            if let Some(told) = ambient.local(&whose.addresses, &whose.namespace, &whose.name) {
                seen.workload = Some(told.clone());
            }
            let now = policies(&ambient, seen.workload.as_deref());
            seen.of = Some(ambient);
            let same = matches!((&now, &seen.policies), (Ok(now), Ok(before)) if now.same(before));
            if !same {
                seen.policies = now.map(Arc::new);
                self.changes.send_replace(());
            }
        }
        seen.policies.clone()
    }
}

fn policies(ambient: &Ambient, workload: Option<&Known>) -> Result<Policies, Missing> {
    Ok(ambient.in_force(workload.ok_or(Unknown::Workload)?)?)
}

/// What policies see of a connection.
#[derive(Debug)]
pub(super) struct Facts {
    identity: Option<SpiffeId>,
    pub(super) client: SocketAddr,
    pub(super) destination: SocketAddr,
}

impl Facts {
    pub(super) fn of(flow: &Flow) -> Self {
        Self { identity: flow.identity.clone(), client: flow.client, destination: flow.destination }
    }

    /// Of a client that has proved nothing; both addresses are canonical.
    pub(super) fn in_the_open(client: SocketAddr, destination: SocketAddr) -> Self {
        Self { identity: None, client, destination }
    }

    fn connection(&self) -> Connection<'_> {
        Connection {
            identity: self.identity.as_ref(),
            source: self.client.ip(),
            destination: self.destination.ip(),
            port: self.destination.port(),
        }
    }
}

/// Lets a connection in, or says why not. It waits until the policies are known, but not for ever.
pub(super) async fn admit(pod: &Pod, facts: &Facts) -> Result<(), Denial> {
    if pod.door.whose.is_none() {
        return Ok(());
    }
    let policies = once_known(pod).await.map_err(Denial::Unknown)?;
    rehearse(pod, facts, &policies);
    judged(facts, &policies)
}

/// Whether a connection may come in, without a word about it. It waits as [`admit`] does.
pub(super) async fn opens(pod: &Pod, facts: &Facts) -> bool {
    pod.door.whose.is_none() || once_known(pod).await.is_ok_and(|policies| judged(facts, &policies).is_ok())
}

/// The policies, for which it waits, but not for ever.
async fn once_known(pod: &Pod) -> Result<Arc<Policies>, Missing> {
    match pod.door.look(&pod.live) {
        Ok(policies) => Ok(policies),
        Err(_) => match timeout(POLICY_WAIT, known(pod)).await {
            Ok(policies) => Ok(policies),
            Err(_) => pod.door.look(&pod.live),
        },
    }
}

/// Whether a connection may come in now, whoever it is from.
pub(super) fn is_open(pod: &Pod, facts: &Facts) -> bool {
    pod.door.whose.is_none() || pod.door.look(&pod.live).is_ok_and(|policies| judged(facts, &policies).is_ok())
}

/// Resolves, having told of it, when a connection may no longer be there.
pub(super) async fn forbidden(pod: &Pod, facts: &Facts) {
    // Before the first look, so that no change is missed.
    let mut changes = pod.door.changes.subscribe();
    let denial = loop {
        // What is not known now does not end what was allowed before.
        let denial = pod.door.look(&pod.live).ok().and_then(|policies| judged(facts, &policies).err());
        match denial {
            Some(denial) => break denial,
            // The pod holds the sender. Without policies nothing ever changes.
            None => drop(changes.changed().await),
        }
    };
    if facts.identity.is_none() && denial.is_strict() {
        return pod.teller.tell(pod, facts.client, facts.destination, Refusal::BecameStrict);
    }
    tell(pod, facts, &denial, When::Open);
}

/// Tells of a connection with an identity that is refused.
pub(super) fn refused(pod: &Pod, flow: &Flow, denial: &Denial) {
    tell(pod, &Facts::of(flow), denial, When::New);
    tcp::report_refusal(pod, flow, &tcp::Failure::denied(denial), None);
}

/// Resets a client that may not come in.
pub(super) fn refuse(pod: &Pod, flow: &Flow, accepted: impl Duplex, denial: &Denial) {
    if denial.is_strict() {
        return plaintext::refuse(pod, flow, accepted, Refusal::Strict);
    }
    tell(pod, &Facts::of(flow), denial, When::New);
    tcp::refuse(pod, flow, accepted, &tcp::Failure::denied(denial), None);
}

async fn known(pod: &Pod) -> Arc<Policies> {
    let mut changes = pod.live.changes();
    loop {
        if let Ok(policies) = pod.door.look(&pod.live) {
            return policies;
        }
        // The live cell outlives the pod.
        let _ = changes.changed().await;
    }
}

fn judged(facts: &Facts, policies: &Policies) -> Result<(), Denial> {
    match policies.evaluate(&facts.connection()) {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny { by } => Err(Denial::of(by)),
    }
}

/// Tells what policies on trial would have done, if that is something else.
fn rehearse(pod: &Pod, facts: &Facts, policies: &Policies) {
    let connection = facts.connection();
    let Some(rehearsed) = policies.rehearse(&connection) else { return };
    if rehearsed.is_allowed() == policies.evaluate(&connection).is_allowed() {
        return;
    }
    let Judge { judged, budget } = &pod.door.judge;
    judged.dry_run.fetch_add(1, Relaxed);
    if let Some(skipped) = budget.borrow_mut().take(Instant::now()) {
        let reason = match rehearsed {
            Verdict::Allow { .. } => "it would be allowed".to_owned(),
            Verdict::Deny { by } => Denial::of(by).to_string(),
        };
        let (workload, client, destination) = (&pod.name, facts.client, facts.destination);
        tracing::info!(workload, %client, %destination, reason, skipped, "a policy on trial would decide otherwise");
    }
}

fn tell(pod: &Pod, facts: &Facts, denial: &Denial, when: When) {
    let Judge { judged, budget } = &pod.door.judge;
    let (counter, what) = match (denial, when) {
        (Denial::Unknown(_), _) => (&judged.unknown, "connection refused: its workload's policies are not known"),
        (_, When::New) => (&judged.denied, "connection closed due to policy rejection"),
        (_, When::Open) => (&judged.closed, "connection closed due to policy change"),
    };
    counter.fetch_add(1, Relaxed);
    if let Some(skipped) = budget.borrow_mut().take(Instant::now()) {
        let (workload, client, destination) = (&pod.name, facts.client, facts.destination);
        let identity = facts.identity.as_ref().map_or("none", SpiffeId::as_str);
        tracing::warn!(workload, %client, identity, %destination, reason = %denial, skipped, "{what}");
    }
}
