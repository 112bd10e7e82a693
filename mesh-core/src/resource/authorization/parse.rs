//! Reads `istio.security.Authorization`.
//!
//! In: the message. Out: an [`Authorization`], or what is wrong with it and where.

use ipnet::IpNet;
use mesh_proto::security as pb;

use super::{Account, Action, Authorization, Clause, Match, Reach, Rule, Scope, Terms, Text};
use crate::resource::Rejection;
use crate::resource::fault::{At, Fault, each};
use crate::resource::wire::{self, decode};

/// Most rules of one policy (Istio's own bound is 512).
pub const MAX_RULES: usize = 1024;
/// Most clauses of a rule, and most matches of a clause.
pub const MAX_MATCHES: usize = 1024;
/// Most values of one condition.
pub const MAX_VALUES: usize = 4096;
/// Longest text in bytes: no SPIFFE id is longer.
pub const MAX_NAME_BYTES: usize = 2048;

impl Authorization {
    /// Parses a resource called `name`.
    pub fn parse(name: &str, body: &[u8]) -> Result<Self, Rejection> {
        let read = || {
            let message: pb::Authorization = decode(body)?;
            policy(name, &message)
        };
        read().map_err(|fault: Fault| fault.reject(name))
    }

    /// For whom a policy would be that was refused, as far as it can be read: what it would forbid is not known.
    pub(crate) fn reach(body: &[u8]) -> Reach {
        let Ok(message) = decode::<pb::Authorization>(body) else { return Reach::Everybody };
        match pb::Scope::try_from(message.scope) {
            // What is only tried forbids nothing.
            _ if message.dry_run => Reach::Named,
            Ok(pb::Scope::WorkloadSelector) => Reach::Named,
            Ok(pb::Scope::Namespace) => Reach::Namespace(message.namespace.into()),
            Ok(pb::Scope::Global) | Err(_) => Reach::Everybody,
        }
    }
}

fn policy(key: &str, message: &pb::Authorization) -> Result<Authorization, Fault> {
    if message.name.is_empty() {
        return Err(Fault::field("name", "is empty"));
    }
    bounded_text(&message.name).at("name")?;
    bounded_text(&message.namespace).at("namespace")?;
    if key != format!("{}/{}", message.namespace, message.name) {
        let why = format!("is {:?} in namespace {:?}, the resource is called {key:?}", message.name, message.namespace);
        return Err(Fault::field("name", why));
    }
    let scope = match pb::Scope::try_from(message.scope) {
        Ok(pb::Scope::Global) => Scope::Global,
        Ok(pb::Scope::Namespace) => Scope::Namespace,
        Ok(pb::Scope::WorkloadSelector) => Scope::Selector,
        Err(_) => return Err(Fault::field("scope", format!("{} is unknown", message.scope))),
    };
    if scope == Scope::Namespace && message.namespace.is_empty() {
        return Err(Fault::field("namespace", "is empty, and the scope is NAMESPACE"));
    }
    let action = match pb::Action::try_from(message.action) {
        Ok(pb::Action::Allow) => Action::Allow,
        Ok(pb::Action::Deny) => Action::Deny,
        Err(_) => return Err(Fault::field("action", format!("{} is unknown", message.action))),
    };
    at_most(&message.rules, MAX_RULES).at("rules")?;
    Ok(Authorization {
        key: key.into(),
        namespace: message.namespace.as_str().into(),
        scope,
        action,
        dry_run: message.dry_run,
        rules: each("rules", &message.rules, rule)?.into(),
    })
}

fn rule(message: &pb::Rule) -> Result<Rule, Fault> {
    at_most(&message.clauses, MAX_MATCHES).at("clauses")?;
    Ok(Rule { clauses: each("clauses", &message.clauses, clause)?.into() })
}

fn clause(message: &pb::Clause) -> Result<Clause, Fault> {
    if message.matches.is_empty() {
        return Ok(Clause::Anything);
    }
    at_most(&message.matches, MAX_MATCHES).at("matches")?;
    let mut matches = each("matches", &message.matches, conditions)?;
    matches.retain(|one| !one.is_empty());
    Ok(Clause::OneOf(matches.into()))
}

fn conditions(message: &pb::Match) -> Result<Match, Fault> {
    macro_rules! terms {
        ($any:ident, $none:ident, $read:expr) => {
            Terms {
                any: values(stringify!($any), &message.$any, $read)?,
                none: values(stringify!($none), &message.$none, $read)?,
            }
        };
    }
    Ok(Match {
        namespaces: terms!(namespaces, not_namespaces, text),
        accounts: terms!(service_accounts, not_service_accounts, account),
        principals: terms!(principals, not_principals, text),
        sources: terms!(source_ips, not_source_ips, range),
        destinations: terms!(destination_ips, not_destination_ips, range),
        ports: terms!(destination_ports, not_destination_ports, port),
    })
}

fn values<A, B>(field: &str, list: &[A], read: impl FnMut(&A) -> Result<B, Fault>) -> Result<Box<[B]>, Fault> {
    at_most(list, MAX_VALUES).at(field)?;
    each(field, list, read).map(Vec::into_boxed_slice)
}

fn text(message: &pb::StringMatch) -> Result<Text, Fault> {
    use pb::string_match::MatchType;
    let read = |value: &str| bounded_text(value).map(|()| value.into());
    match &message.match_type {
        Some(MatchType::Exact(value)) => read(value).map(Text::Exact),
        Some(MatchType::Prefix(value)) => read(value).map(Text::Prefix),
        Some(MatchType::Suffix(value)) => read(value).map(Text::Suffix),
        Some(MatchType::Presence(_)) => Ok(Text::Presence),
        None => Err(Fault::new("needs exact, prefix, suffix or presence")),
    }
}

fn account(message: &pb::ServiceAccountMatch) -> Result<Account, Fault> {
    let read = |field: &str, value: &str| {
        if value.is_empty() {
            return Err(Fault::field(field, "is empty"));
        }
        bounded_text(value).at(field).map(|()| value.into())
    };
    Ok(Account {
        namespace: read("namespace", &message.namespace)?,
        name: read("service_account", &message.service_account)?,
    })
}

fn range(message: &pb::Address) -> Result<IpNet, Fault> {
    wire::range(&message.address, message.length)
}

fn port(value: &u32) -> Result<u16, Fault> {
    match u16::try_from(*value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Fault::new(format!("{value} is not a port"))),
    }
}

fn bounded_text(text: &str) -> Result<(), Fault> {
    if text.len() > MAX_NAME_BYTES {
        return Err(Fault::new(format!("has {} bytes, at most {MAX_NAME_BYTES} are allowed", text.len())));
    }
    Ok(())
}

fn at_most<T>(list: &[T], limit: usize) -> Result<(), Fault> {
    if list.len() > limit {
        return Err(Fault::new(format!("has {} entries, at most {limit} are allowed", list.len())));
    }
    Ok(())
}
