//! What the pages say of the whole mesh. In: what is known of it. Out: JSON, bounded. No I/O.

use mesh_core::ambient::{Ambient, Counts};
use mesh_core::resource::authorization::{Action, Authorization, Scope};
use mesh_core::resource::workload::Tunnel;
use serde_json::{Value, json};

use crate::workload::Workload;

/// Workloads, services and policies listed; the rest is counted.
const MAX_LISTED: usize = 1000;

/// How much is known.
pub(super) fn counts(ambient: &Ambient) -> Value {
    let Counts { workloads, services, policies } = ambient.counts();
    json!({ "generation": ambient.generation, "workloads": workloads, "services": services, "policies": policies })
}

/// All that is known, as far as it is listed.
pub(super) fn whole(ambient: &Ambient) -> Value {
    let mut workloads: Vec<_> = ambient.workloads().take(MAX_LISTED).collect();
    workloads.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
    let workloads: Vec<Value> = workloads
        .into_iter()
        .map(|one| {
            json!({
                "uid": &*one.uid,
                "namespace": &*one.namespace,
                "serviceAccount": &*one.identity.service_account,
                "addresses": one.addresses,
                "node": &*one.node,
                "tunnel": one.tunnel == Tunnel::Hbone,
                "healthy": one.healthy,
                "policies": one.policies.iter().map(|key| &**key).collect::<Vec<_>>(),
            })
        })
        .collect();
    let mut services: Vec<&str> = ambient.services().take(MAX_LISTED).map(|service| &*service.key).collect();
    services.sort_unstable();
    let mut policies: Vec<_> = ambient.policies().take(MAX_LISTED).collect();
    policies.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let policies: Vec<Value> = policies.into_iter().map(|one| policy(one)).collect();
    json!({ "counts": counts(ambient), "workloads": workloads, "services": services, "policies": policies })
}

/// The policies in force for a workload, or why that cannot be said.
pub(super) fn in_force(ambient: &Ambient, workload: &Workload) -> Value {
    let Some(known) = ambient.local(&workload.addresses, &workload.namespace, &workload.name) else {
        return json!({ "unknown": "the control plane has not told of this workload" });
    };
    match ambient.in_force(known) {
        Ok(policies) => policies.all().map(|one| policy(one)).collect(),
        Err(unknown) => json!({ "unknown": unknown.to_string() }),
    }
}

fn policy(policy: &Authorization) -> Value {
    let scope = match policy.scope {
        Scope::Global => "mesh",
        Scope::Namespace => "namespace",
        Scope::Selector => "selector",
    };
    let action = match policy.action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
    };
    json!({ "name": &*policy.key, "scope": scope, "action": action, "rules": policy.rules.len(), "dryRun": policy.dry_run })
}
