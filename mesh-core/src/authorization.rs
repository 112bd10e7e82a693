//! Whether a connection may come in: the policies in force for one workload, and their verdict.
//!
//! In: policies, a connection's facts. Out: allow or deny, and which policy said so. Nothing is allocated to decide.
//! Rules (Istio's; ztunnel's `rbac`): a DENY that matches goes before everything; without any ALLOW policy everything
//! else may come in; with one, only what one of them matches.

use std::sync::Arc;

use crate::resource::authorization::{Action, Authorization, Connection};

/// The policies in force for one workload, compiled: sorted by what they do.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    /// Grows with every change of this list; whoever copies it elsewhere tells old and new apart by it.
    pub generation: u64,
    deny: Box<[Arc<Authorization>]>,
    allow: Box<[Arc<Authorization>]>,
    dry_run: Box<[Arc<Authorization>]>,
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'p> {
    /// It may come in.
    Allow {
        /// The policy that allows it; `None`: none forbids it, and no ALLOW policy is there.
        by: Option<Matched<'p>>,
    },
    /// It may not.
    Deny {
        /// The policy that forbids it; `None`: there are ALLOW policies, and none matches.
        by: Option<Matched<'p>>,
    },
}

/// A policy and the first of its rules that matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched<'p> {
    /// The policy.
    pub policy: &'p Authorization,
    /// Index of the rule.
    pub rule: usize,
}

impl Verdict<'_> {
    /// Whether the connection may come in.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Verdict::Allow { .. })
    }
}

impl Policies {
    /// The policies of a workload, in any order.
    pub fn new(generation: u64, all: impl IntoIterator<Item = Arc<Authorization>>) -> Policies {
        let (mut deny, mut allow, mut dry_run) = (Vec::new(), Vec::new(), Vec::new());
        for policy in all {
            match (policy.dry_run, policy.action) {
                (true, _) => dry_run.push(policy),
                (false, Action::Deny) => deny.push(policy),
                (false, Action::Allow) => allow.push(policy),
            }
        }
        for list in [&mut deny, &mut allow, &mut dry_run] {
            list.sort_by(|a, b| a.key.cmp(&b.key));
        }
        Policies { generation, deny: deny.into(), allow: allow.into(), dry_run: dry_run.into() }
    }

    /// Every policy, those that are not enforced last.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Authorization>> {
        self.deny.iter().chain(&self.allow).chain(&self.dry_run)
    }

    /// Whether both say the same; only the generation may differ.
    pub fn same(&self, other: &Policies) -> bool {
        self.all().eq(other.all())
    }

    /// Judges a connection.
    pub fn evaluate(&self, connection: &Connection<'_>) -> Verdict<'_> {
        self.judge(connection, false)
    }

    /// What would become of it if the policies that are not enforced were; `None` if there is none of them.
    pub fn rehearse(&self, connection: &Connection<'_>) -> Option<Verdict<'_>> {
        (!self.dry_run.is_empty()).then(|| self.judge(connection, true))
    }

    fn judge(&self, connection: &Connection<'_>, rehearsal: bool) -> Verdict<'_> {
        let extra = |action| self.dry_run.iter().filter(move |policy| rehearsal && policy.action == action);
        if let Some(by) = first(self.deny.iter().chain(extra(Action::Deny)), connection) {
            return Verdict::Deny { by: Some(by) };
        }
        let mut allowing = self.allow.iter().chain(extra(Action::Allow)).peekable();
        if allowing.peek().is_none() {
            return Verdict::Allow { by: None };
        }
        match first(allowing, connection) {
            None => Verdict::Deny { by: None },
            by => Verdict::Allow { by },
        }
    }
}

/// The first policy that matches.
fn first<'p>(
    mut policies: impl Iterator<Item = &'p Arc<Authorization>>,
    connection: &Connection<'_>,
) -> Option<Matched<'p>> {
    policies.find_map(|policy| policy.matches(connection).map(|rule| Matched { policy, rule }))
}

#[cfg(test)]
mod tests;
