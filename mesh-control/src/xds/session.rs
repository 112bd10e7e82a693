//! One client's side of the delta protocol: what it subscribed to, what it has, what it has not answered yet.
//!
//! In: its requests, and the resources it is to have. Out: what a request means, and the response that brings the client
//! up to date. At most one response per kind is unanswered; what changes meanwhile goes into the next. No I/O.
//! Source: Envoy's "xDS REST and gRPC protocol", incremental xDS; Istio's reading of it in pilot/pkg/xds/delta.go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Entry,
};

use crate::resource::{Kind, Offer};

/// Names that a client subscribes to, or says to have, of one kind.
pub const MAX_NAMES: usize = 200_000;
/// The name that stands for all.
const WILDCARD: &str = "*";

#[cfg(test)]
mod tests;

/// What a request meant.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// It changed a subscription: the client is to be brought up to date.
    Subscription(Kind),
    /// It accepted the last response.
    Ack(Kind),
    /// It refused the last response, for this reason.
    Nack(Kind, String),
    /// It needs no answer: a stale answer, or a kind that we have nothing of.
    Ignored,
}

/// The state of one stream.
#[derive(Default)]
pub struct Session {
    kinds: [Subscription; Kind::ALL.len()],
    responses: u64,
}

#[derive(Default)]
struct Subscription {
    /// The client asked for this kind at all.
    active: bool,
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// Names it asked for again.
    again: BTreeSet<Arc<str>>,
    /// Names of which it was told that nothing is known.
    unknown: BTreeSet<Arc<str>>,
    /// What the client has, and in which version; 0 is a version that no resource has.
    sent: BTreeMap<Arc<str>, u64>,
    /// The response that it has not answered.
    unanswered: Option<String>,
    /// It waits for an answer even if nothing changed.
    owed: bool,
    /// What it was brought up to date with, if it asked for nothing since.
    brought: Option<Offer>,
}

impl Session {
    /// Takes in a request.
    ///
    /// # Errors
    /// More names than [`MAX_NAMES`].
    pub fn request(&mut self, request: &DeltaDiscoveryRequest) -> Result<Event, String> {
        let Some(kind) = Kind::of(&request.type_url) else { return Ok(Event::Ignored) };
        let subscription = &mut self.kinds[kind.index()];
        let changes = !request.resource_names_subscribe.is_empty() || !request.resource_names_unsubscribe.is_empty();
        let answer = !request.response_nonce.is_empty();
        let mut event = Event::Ignored;
        if answer && subscription.unanswered.as_ref() == Some(&request.response_nonce) {
            subscription.unanswered = None;
            event = match &request.error_detail {
                Some(error) => Event::Nack(kind, error.message.clone()),
                None => Event::Ack(kind),
            };
        }
        if (changes || !answer) && subscription.change(kind, request)? {
            // An answer that also changes the subscription is unusual; its refusal must not be lost.
            if !matches!(event, Event::Nack(..)) {
                event = Event::Subscription(kind);
            }
        }
        Ok(event)
    }

    /// Whether the client wants this kind and has answered the last response.
    pub fn ready(&self, kind: Kind) -> bool {
        let subscription = &self.kinds[kind.index()];
        subscription.active && subscription.unanswered.is_none()
    }

    /// The response that brings the client from what it has to `all`; `None` if it has everything.
    pub fn respond(&mut self, kind: Kind, all: &Offer) -> Option<DeltaDiscoveryResponse> {
        let subscription = &mut self.kinds[kind.index()];
        let brought = subscription.brought.replace(all.clone());
        let update = match &brought {
            // Whoever asks by other names than resources have is looked up anew.
            Some(brought) if subscription.names.is_empty() || !kind.tells_unknown() => {
                subscription.follow(kind, all, brought.differences(all).cloned().collect())
            }
            _ => subscription.bring(kind, all),
        };
        if update.entries.is_empty() && update.removed.is_empty() && !subscription.owed {
            return None;
        }
        subscription.owed = false;
        self.responses += 1;
        let nonce = self.responses.to_string();
        subscription.unanswered = Some(nonce.clone());
        Some(DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            resources: update.entries,
            removed_resources: update.removed,
            nonce,
            ..Default::default()
        })
    }
}

/// What a client is to be told.
#[derive(Default)]
struct Update {
    entries: Vec<Entry>,
    removed: Vec<String>,
}

impl Subscription {
    /// From whatever the client has.
    fn bring(&mut self, kind: Kind, all: &Offer) -> Update {
        let mut update = Update::default();
        let names = self.own_names(kind, all);
        for name in std::mem::take(&mut self.again) {
            self.sent.remove(names.get(&name).unwrap_or(&name));
            self.unknown.remove(&name);
        }
        if self.wildcard {
            all.iter().for_each(|(name, _)| self.offer(kind, all, name, &mut update));
        }
        for (asked, name) in &names {
            self.offer(kind, all, name, &mut update);
            if all.get(name).is_some() {
                self.unknown.remove(asked);
            } else if kind.tells_unknown() && self.unknown.insert(asked.clone()) {
                update.removed.push(asked.to_string());
            }
        }
        let wildcard = self.wildcard;
        let names: BTreeSet<&Arc<str>> = names.values().collect();
        self.sent.retain(|name, _| {
            let stays = stays(kind, all, name, wildcard, names.contains(name));
            if !stays {
                update.removed.push(name.to_string());
            }
            stays
        });
        update
    }

    /// From what it was brought up to date with: only these names differ.
    fn follow(&mut self, kind: Kind, all: &Offer, differ: BTreeSet<Arc<str>>) -> Update {
        let mut update = Update::default();
        for name in &differ {
            let named = self.names.contains(name);
            if self.wildcard || named {
                self.offer(kind, all, name, &mut update);
            }
            if !stays(kind, all, name, self.wildcard, named) && self.sent.remove(name).is_some() {
                update.removed.push(name.to_string());
            }
        }
        update
    }

    /// Tells of a resource unless the client has it, in this version.
    fn offer(&mut self, kind: Kind, all: &Offer, name: &Arc<str>, update: &mut Update) {
        let absent;
        let resource = match all.get(name) {
            Some(resource) => &**resource,
            None => match kind.absent(name) {
                Some(resource) => {
                    absent = resource;
                    &absent
                }
                None => return,
            },
        };
        if self.sent.insert(name.clone(), resource.version) != Some(resource.version) {
            update.entries.push(Entry {
                name: name.to_string(),
                version: format!("{:016x}", resource.version),
                resource: Some(resource.body.clone()),
                aliases: resource.aliases.clone(),
                ..Default::default()
            });
        }
    }

    /// Each name that was asked for, with the resource's own: it may have been an alias.
    fn own_names(&self, kind: Kind, all: &Offer) -> BTreeMap<Arc<str>, Arc<str>> {
        let has_aliases = kind.tells_unknown() && self.names.iter().any(|name| all.get(name).is_none());
        let aliases: HashMap<&str, &Arc<str>> = if has_aliases {
            let own = all.iter().flat_map(|(name, one)| one.aliases.iter().map(move |alias| (alias.as_str(), name)));
            own.collect()
        } else {
            HashMap::new()
        };
        let own =
            |name: &Arc<str>| aliases.get(&**name).filter(|_| all.get(name).is_none()).map_or(name, |own| *own).clone();
        self.names.iter().map(|name| (name.clone(), own(name))).collect()
    }

    /// Applies a subscription change; true if the client is to hear of it.
    fn change(&mut self, kind: Kind, request: &DeltaDiscoveryRequest) -> Result<bool, String> {
        let first = !self.active;
        self.active = true;
        self.brought = None;
        if first {
            // Until it says otherwise, a client that names nothing wants everything there is of these kinds.
            self.wildcard = kind.has_wildcard() && request.resource_names_subscribe.is_empty();
            for (name, version) in &request.initial_resource_versions {
                let version = u64::from_str_radix(version, 16).unwrap_or_default();
                self.sent.insert(name.as_str().into(), version);
                if !kind.has_wildcard() {
                    self.names.insert(name.as_str().into());
                }
            }
        }
        for name in &request.resource_names_subscribe {
            if name == WILDCARD && kind.has_wildcard() {
                self.wildcard = true;
            } else {
                let name: Arc<str> = name.as_str().into();
                // Subscribing again asks for the resource again.
                if !self.names.insert(name.clone()) && !first {
                    self.again.insert(name);
                }
            }
        }
        for name in &request.resource_names_unsubscribe {
            if name == WILDCARD && kind.has_wildcard() {
                self.wildcard = false;
            } else {
                self.names.remove(name.as_str());
                self.unknown.remove(name.as_str());
                // The client forgets it by itself: it is not told of a removal.
                if !self.wildcard {
                    self.sent.remove(name.as_str());
                }
            }
        }
        if self.names.len() > MAX_NAMES || self.sent.len() > MAX_NAMES {
            return Err(format!("more than {MAX_NAMES} names of {}", kind.type_url()));
        }
        let asks = first || !request.resource_names_subscribe.is_empty();
        self.owed |= asks;
        Ok(asks)
    }
}

/// Whether a client that has a resource of this name goes on having one. `named`: it asks for it by name.
fn stays(kind: Kind, all: &Offer, name: &str, wildcard: bool, named: bool) -> bool {
    if all.get(name).is_some() { wildcard || named } else { named && !kind.has_wildcard() }
}
