//! A policy of who may connect (`istio.security.Authorization`, WADS), compiled for evaluation.
//!
//! In: the message. Out: an [`Authorization`] whose conditions are typed values, or a refusal. A condition that
//! cannot be read is never left out: a rule with a condition less would match more.

mod parse;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::SpiffeId;

pub use parse::{MAX_MATCHES, MAX_NAME_BYTES, MAX_RULES, MAX_VALUES};

/// Which workloads a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All of the mesh.
    Global,
    /// Those of its namespace.
    Namespace,
    /// Those that name it.
    Selector,
}

/// For whom a policy is that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All of the mesh; or nobody can tell.
    Everybody,
    /// Those of a namespace.
    Namespace(Arc<str>),
    /// Those that name it, or nobody.
    Named,
}

/// What a policy does with what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It may come in.
    Allow,
    /// It may not, whatever else allows it.
    Deny,
}

/// One policy. Nothing in it is allocated or parsed when it is evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// `namespace/name`: its name in xDS.
    pub key: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Which workloads it is for.
    pub scope: Scope,
    /// What it does.
    pub action: Action,
    /// It is not enforced; only told what it would have done.
    pub dry_run: bool,
    /// One of them is enough; none matches nothing.
    pub rules: Box<[Rule]>,
}

/// All clauses have to match; none matches everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The clauses.
    pub clauses: Box<[Clause]>,
}

/// A part of a rule: its clients, its ports, or one of its conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clause {
    /// It came without matches: no condition.
    Anything,
    /// One of them is enough. Those without any condition were left out, since they never match; so this may be empty.
    OneOf(Box<[Match]>),
}

/// Conditions of several kinds, all of which have to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    /// The client's namespace.
    pub namespaces: Terms<Text>,
    /// The client's service account.
    pub accounts: Terms<Account>,
    /// The client's identity without `spiffe://`.
    pub principals: Terms<Text>,
    /// The client's address.
    pub sources: Terms<IpNet>,
    /// The address that the client dialled.
    pub destinations: Terms<IpNet>,
    /// The port that the client dialled.
    pub ports: Terms<u16>,
}

/// Conditions of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms<T> {
    /// One has to hold; none given = any value.
    pub any: Box<[T]>,
    /// None may hold.
    pub none: Box<[T]>,
}

impl<T> Default for Terms<T> {
    fn default() -> Self {
        Terms { any: Box::default(), none: Box::default() }
    }
}

/// How a text is compared. Without a client's identity the text is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// Equal.
    Exact(Box<str>),
    /// Starts with.
    Prefix(Box<str>),
    /// Ends with.
    Suffix(Box<str>),
    /// Not empty.
    Presence,
}

/// A service account of a namespace, in any trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Namespace.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
}

/// What a policy sees of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'c> {
    /// The client's identity, if a certificate proved one.
    pub identity: Option<&'c SpiffeId>,
    /// The client's address.
    pub source: IpAddr,
    /// The address that the client dialled.
    pub destination: IpAddr,
    /// The port that the client dialled.
    pub port: u16,
}

impl Authorization {
    /// Index of the first rule that matches.
    pub fn matches(&self, connection: &Connection<'_>) -> Option<usize> {
        self.rules.iter().position(|rule| rule.clauses.iter().all(|clause| clause.matches(connection)))
    }
}

impl Clause {
    fn matches(&self, connection: &Connection<'_>) -> bool {
        match self {
            Clause::Anything => true,
            Clause::OneOf(matches) => matches.iter().any(|one| one.matches(connection)),
        }
    }
}

impl Match {
    /// Whether it has no condition at all.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.accounts.is_empty()
            && self.principals.is_empty()
            && self.sources.is_empty()
            && self.destinations.is_empty()
            && self.ports.is_empty()
    }

    fn matches(&self, connection: &Connection<'_>) -> bool {
        let identity = connection.identity;
        let namespace = identity.map(SpiffeId::namespace);
        let principal = identity.map(SpiffeId::principal);
        self.ports.hold(|port| *port == connection.port)
            && self.namespaces.hold(|text| text.matches(namespace.unwrap_or_default()))
            // Without an identity not even an empty text is equal, a start or an end of it.
            && self.principals.hold(|text| principal.is_some_and(|principal| text.matches(principal)))
            && self.accounts.hold(|account| identity.is_some_and(|identity| account.is(identity)))
            && self.sources.hold(|range| range.contains(&connection.source))
            && self.destinations.hold(|range| range.contains(&connection.destination))
    }
}

impl<T> Terms<T> {
    /// Whether it is no condition.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }

    fn hold(&self, holds: impl Fn(&T) -> bool) -> bool {
        (self.any.is_empty() || self.any.iter().any(&holds)) && !self.none.iter().any(holds)
    }
}

impl Text {
    fn matches(&self, text: &str) -> bool {
        match self {
            Text::Exact(want) => **want == *text,
            Text::Prefix(want) => text.starts_with(&**want),
            Text::Suffix(want) => text.ends_with(&**want),
            Text::Presence => !text.is_empty(),
        }
    }
}

impl Account {
    fn is(&self, identity: &SpiffeId) -> bool {
        *self.namespace == *identity.namespace() && *self.name == *identity.service_account()
    }
}

#[cfg(test)]
mod tests;
