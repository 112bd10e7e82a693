//! Workload identities: one certificate per distinct SPIFFE id on this node, asked from the control plane's CA over Istio's
//! certificate service and renewed at half life.
//!
//! In: which identities the enrolled workloads have. Out: a watch channel per identity with the credential in force.
//! Never: writes a key anywhere, shares a key between identities, or lets a failed renewal take away a valid credential.

mod chain;
mod client;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::settings::ControlPlane;
use crate::tls::Credential;

use client::CaClient;
pub use client::IdentityError;

/// First pause after a failed request; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(10);
/// Longest pause between two requests for one identity.
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// Requests to the CA at one time.
const MAX_CONCURRENT_REQUESTS: usize = 8;
/// Shortest pause before a renewal, so that a certificate of no life cannot make a busy loop.
const MIN_RENEWAL: Duration = Duration::from_millis(100);

/// The identities of this node. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Identities(Arc<Inner>);

struct Inner {
    client: CaClient,
    runtime: Handle,
    permits: Arc<Semaphore>,
    slots: Mutex<HashMap<SpiffeId, Slot>>,
}

/// One identity in use.
struct Slot {
    users: usize,
    state: watch::Sender<State>,
    credential: watch::Sender<Option<Arc<Credential>>>,
    task: JoinHandle<()>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Clone, Default)]
struct State {
    serial: String,
    not_before: Option<SystemTime>,
    renew_at: Option<SystemTime>,
    issued: u64,
    failures: u64,
    last_error: Option<String>,
}

/// What the admin pages show of one identity. No key is in it.
#[derive(Debug, Clone)]
pub struct IdentityStatus {
    /// Whose certificate.
    pub identity: SpiffeId,
    /// How many enrolled workloads have it.
    pub users: usize,
    /// The credential in force.
    pub credential: Option<Arc<Credential>>,
    /// Serial number of its leaf, hexadecimal; empty before the first.
    pub serial: String,
    /// Start of its leaf's validity.
    pub not_before: Option<SystemTime>,
    /// When the next one will be asked for.
    pub renew_at: Option<SystemTime>,
    /// Certificates received so far.
    pub issued: u64,
    /// Requests that failed since the last success.
    pub failures: u64,
    /// Why the last request failed; gone after a success.
    pub last_error: Option<String>,
}

impl Identities {
    /// Certificates come from this control plane; the work is done on `runtime`.
    pub fn new(control_plane: &ControlPlane, runtime: Handle) -> Identities {
        Identities(Arc::new(Inner {
            client: CaClient::new(control_plane),
            runtime,
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_REQUESTS)),
            slots: Mutex::default(),
        }))
    }

    /// Counts one more user of an identity and gets its certificate when it is the first. Pair with [`Identities::release`].
    pub fn request(&self, identity: &SpiffeId) -> watch::Receiver<Option<Arc<Credential>>> {
        match self.slots().entry(identity.clone()) {
            Entry::Occupied(mut entry) => {
                let slot = entry.get_mut();
                slot.users += 1;
                slot.credential.subscribe()
            }
            Entry::Vacant(entry) => {
                let credential = watch::Sender::new(None);
                let state = watch::Sender::new(State::default());
                let renewal = Renewal {
                    identity: identity.clone(),
                    client: self.0.client.clone(),
                    permits: self.0.permits.clone(),
                    credential: credential.clone(),
                    state: state.clone(),
                };
                let task = self.0.runtime.spawn(renewal.run());
                let receiver = credential.subscribe();
                entry.insert(Slot { users: 1, state, credential, task });
                receiver
            }
        }
    }

    /// Counts one user less; the last one takes key and certificate out of memory.
    pub fn release(&self, identity: &SpiffeId) {
        if let Entry::Occupied(mut entry) = self.slots().entry(identity.clone()) {
            let slot = entry.get_mut();
            slot.users = slot.users.saturating_sub(1);
            if slot.users == 0 {
                slot.credential.send_replace(None);
                entry.remove();
            }
        }
    }

    /// The credential of a requested identity, now and in future. For one that nobody requested: none, and a closed channel.
    pub fn watch(&self, identity: &SpiffeId) -> watch::Receiver<Option<Arc<Credential>>> {
        match self.slots().get(identity) {
            Some(slot) => slot.credential.subscribe(),
            None => watch::channel(None).1,
        }
    }

    /// The credential in force, without a channel.
    pub fn current(&self, identity: &SpiffeId) -> Option<Arc<Credential>> {
        self.slots().get(identity).and_then(|slot| slot.credential.borrow().clone())
    }

    /// Every identity in use, for the admin pages, by name.
    pub fn snapshot(&self) -> Vec<IdentityStatus> {
        let mut list: Vec<_> = self
            .slots()
            .iter()
            .map(|(identity, slot)| {
                let state = slot.state.borrow().clone();
                IdentityStatus {
                    identity: identity.clone(),
                    users: slot.users,
                    credential: slot.credential.borrow().clone(),
                    serial: state.serial,
                    not_before: state.not_before,
                    renew_at: state.renew_at,
                    issued: state.issued,
                    failures: state.failures,
                    last_error: state.last_error,
                }
            })
            .collect();
        list.sort_by(|a, b| a.identity.cmp(&b.identity));
        list
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<SpiffeId, Slot>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps one identity's credential fresh until its slot is dropped.
struct Renewal {
    identity: SpiffeId,
    client: CaClient,
    permits: Arc<Semaphore>,
    credential: watch::Sender<Option<Arc<Credential>>>,
    state: watch::Sender<State>,
}

impl Renewal {
    async fn run(self) {
        let mut backoff = MIN_BACKOFF;
        loop {
            let result = {
                let Ok(_permit) = self.permits.acquire().await else { return };
                self.client.certificate(&self.identity).await
            };
            let now = SystemTime::now();
            let pause = match result {
                Ok(issued) => {
                    backoff = MIN_BACKOFF;
                    self.adopt(issued, now)
                }
                Err(error) => {
                    let pause = backoff.mul_f64(rand::random_range(0.75..1.0));
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                    self.failed(&error, pause, now)
                }
            };
            tokio::time::sleep(pause).await;
            self.drop_expired(SystemTime::now());
        }
    }

    /// Publishes a new credential; returns when to renew it.
    fn adopt(&self, issued: client::Issued, now: SystemTime) -> Duration {
        let life = issued.credential.remaining(now);
        let pause = renew_after(life, rand::random());
        tracing::info!(
            identity = %self.identity, server = self.client.address(), serial = %issued.serial,
            life_seconds = life.as_secs(), renew_in_seconds = pause.as_secs(), "certificate received"
        );
        self.state.send_modify(|state| {
            state.serial = issued.serial;
            state.not_before = Some(issued.not_before);
            state.renew_at = now.checked_add(pause);
            state.issued += 1;
            state.failures = 0;
            state.last_error = None;
        });
        self.credential.send_replace(Some(Arc::new(issued.credential)));
        pause
    }

    /// Tells of a failure; returns when to try again, at the latest when the present credential ends.
    fn failed(&self, error: &IdentityError, pause: Duration, now: SystemTime) -> Duration {
        let left = self.credential.borrow().as_ref().map(|credential| credential.remaining(now));
        tracing::warn!(
            identity = %self.identity, server = self.client.address(), reason = %error,
            retry_in_ms = pause.as_millis() as u64, valid_for_seconds = left.map(|left| left.as_secs()),
            "no certificate"
        );
        self.state.send_modify(|state| {
            state.failures += 1;
            state.last_error = Some(error.to_string());
            state.renew_at = now.checked_add(pause);
        });
        left.map_or(pause, |left| pause.min(left.max(MIN_BACKOFF)))
    }

    fn drop_expired(&self, now: SystemTime) {
        let expired = self.credential.borrow().as_ref().is_some_and(|credential| credential.remaining(now).is_zero());
        if expired {
            tracing::error!(identity = %self.identity, server = self.client.address(), "the certificate expired before a new one came; mTLS of this identity is refused");
            self.credential.send_replace(None);
        }
    }
}

/// Half of the remaining life, give or take a tenth of it; `random` is from 0 to 1.
fn renew_after(life: Duration, random: f64) -> Duration {
    life.mul_f64(0.45 + 0.1 * random.clamp(0.0, 1.0)).max(MIN_RENEWAL)
}
