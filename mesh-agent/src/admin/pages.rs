//! What the pages say. In: the view. Out: a status, a content type, a body. No I/O.

use std::time::{Instant, SystemTime};

use hyper::StatusCode;
use mesh_core::Snapshot;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Enrolled, View, mesh};
use crate::xds;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Names listed where the list could be long; the rest is counted.
const MAX_LISTED: usize = 20;

type Answer = (StatusCode, &'static str, String);

/// One page.
pub struct Page {
    pub(super) path: &'static str,
    about: &'static str,
    render: fn(&View, &str) -> Answer,
}

impl Page {
    /// The admin port's pages.
    pub const ADMIN: &'static [Page] = &[
        Page { path: "/", about: "this list", render: |_, _| (StatusCode::OK, TEXT, String::new()) },
        Page { path: "/healthz", about: "the process is alive", render: healthz },
        READY,
        Page { path: "/workloads", about: "local workloads and their configuration streams (JSON)", render: workloads },
        Page { path: "/certs", about: "certificates, without keys (JSON)", render: certs },
        Page {
            path: "/config_dump",
            about: "configuration in force: counts, or with ?workload=NAMESPACE/NAME or ?mesh what it consists of (JSON)",
            render: config_dump,
        },
        Page { path: "/stats", about: "metrics (Prometheus)", render: metrics },
    ];
    /// The metrics port's pages.
    pub const METRICS: &'static [Page] =
        &[Page { path: "/metrics", about: "metrics (Prometheus)", render: metrics }, READY];
    /// The readiness port's pages.
    pub const READY: &'static [Page] = &[READY];

    pub(super) fn render(&self, all: &[Page], view: &View, query: &str) -> Answer {
        match self.path {
            "/" => (StatusCode::OK, TEXT, list(all)),
            _ => (self.render)(view, query),
        }
    }
}

const READY: Page =
    Page { path: "/healthz/ready", about: "every workload has configuration and certificate", render: ready };

pub(super) fn not_found(pages: &[Page]) -> String {
    format!("no such page; there are:\n{}", list(pages))
}

fn list(pages: &[Page]) -> String {
    pages.iter().map(|page| format!("{:<15} {}\n", page.path, page.about)).collect()
}

fn healthz(_: &View, _: &str) -> Answer {
    (StatusCode::OK, TEXT, "ok\n".into())
}

fn metrics(view: &View, _: &str) -> Answer {
    (StatusCode::OK, PROMETHEUS, view.metrics.render(Instant::now()))
}

/// The kernel programs are attached before any page is served, so only the workloads can be missing something.
fn ready(view: &View, _: &str) -> Answer {
    if view.shutdown.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready: the agent is ending\n".into());
    }
    let roster = view.roster.borrow().clone();
    let now = SystemTime::now();
    let mut missing: Vec<String> =
        roster.pending.iter().map(|pending| format!("{}: not enrolled: {}", pending.key, pending.reason)).collect();
    for Enrolled { workload, xds } in &roster.enrolled {
        if view.live.workload(workload.id).is_none() {
            let why = xds.get().last_error.unwrap_or_else(|| "waiting for the control plane".into());
            missing.push(format!("{}: no configuration: {why}", workload.key()));
        }
        let certificate = view.identities.current(&workload.identity);
        if certificate.is_none_or(|credential| credential.not_after <= now) {
            missing.push(format!("{}: no valid certificate for {}", workload.key(), workload.identity));
        }
    }
    if let Some(stream) = &view.node_stream
        && view.live.ambient().is_none()
    {
        let why = stream.get().last_error.unwrap_or_else(|| "waiting for the control plane".into());
        missing.push(format!("no workloads and policies of the mesh (WDS, WADS): {why}"));
    }
    if missing.is_empty() {
        return (StatusCode::OK, TEXT, "ready\n".into());
    }
    let mut body = format!("not ready: {} missing\n", missing.len());
    for line in missing.iter().take(MAX_LISTED) {
        body.push_str(line);
        body.push('\n');
    }
    if let Some(more) = missing.len().checked_sub(MAX_LISTED + 1) {
        body.push_str(&format!("and {} more\n", more + 1));
    }
    (StatusCode::SERVICE_UNAVAILABLE, TEXT, body)
}

fn workloads(view: &View, _: &str) -> Answer {
    let roster = view.roster.borrow().clone();
    let enrolled: Vec<Value> = roster
        .enrolled
        .iter()
        .map(|Enrolled { workload, xds }| {
            let status = xds.get();
            json!({
                "name": &*workload.name,
                "namespace": &*workload.namespace,
                "serviceAccount": &*workload.service_account,
                "identity": workload.identity.as_str(),
                "addresses": workload.addresses,
                "labels": workload.labels,
                "netnsCookie": workload.netns.cookie(),
                "cgroup": workload.host.as_ref().map(|host| &host.cgroup),
                "ports": workload.host.as_ref().map(|host| &host.ports),
                "configured": view.live.workload(workload.id).is_some(),
                "certificate": view.identities.current(&workload.identity).is_some(),
                "xds": stream(status),
            })
        })
        .collect();
    let pending: Vec<Value> =
        roster.pending.iter().map(|pending| json!({"workload": pending.key, "reason": pending.reason})).collect();
    page(&json!({
        "node": view.settings.node,
        "clusterId": &*view.settings.cluster_id,
        "trustDomain": &*view.settings.trust_domain,
        "version": env!("CARGO_PKG_VERSION"),
        "started": rfc3339(view.started),
        "nodeStream": view.node_stream.as_ref().map(|status| stream(status.get())),
        "enrolled": enrolled,
        "pending": pending,
    }))
}

fn stream(status: xds::Status) -> Value {
    json!({
        "connected": status.state == xds::State::Connected,
        "lastResponse": status.last_response.map(rfc3339),
        "lastError": status.last_error,
        "lastNack": status.last_nack,
        "responses": status.responses,
        "nacks": status.nacks,
    })
}

fn certs(view: &View, _: &str) -> Answer {
    let certs: Vec<Value> = view
        .identities
        .snapshot()
        .into_iter()
        .map(|status| {
            json!({
                "identity": status.identity.as_str(),
                "workloads": status.users,
                "serial": status.serial,
                "notBefore": status.not_before.map(rfc3339),
                "notAfter": status.credential.as_ref().map(|credential| rfc3339(credential.not_after)),
                "renewAt": status.renew_at.map(rfc3339),
                "issued": status.issued,
                "failures": status.failures,
                "lastError": status.last_error,
            })
        })
        .collect();
    page(&json!({ "certificates": certs }))
}

fn config_dump(view: &View, query: &str) -> Answer {
    let roster = view.roster.borrow().clone();
    let ambient = view.live.ambient();
    if query.split('&').any(|pair| pair == "mesh" || pair == "mesh=") {
        return page(&json!({ "mesh": ambient.as_deref().map(mesh::whole) }));
    }
    let Some(wanted) = query.split('&').find_map(|pair| pair.strip_prefix("workload=")) else {
        let summaries: Vec<Value> = roster
            .enrolled
            .iter()
            .map(|enrolled| {
                let snapshot = view.live.workload(enrolled.workload.id);
                json!({ "workload": enrolled.workload.key(), "counts": snapshot.as_deref().map(counts) })
            })
            .collect();
        return page(&json!({ "workloads": summaries, "mesh": ambient.as_deref().map(mesh::counts) }));
    };
    let wanted = wanted.replace("%2F", "/").replace("%2f", "/");
    let Some(enrolled) = roster.enrolled.iter().find(|enrolled| enrolled.workload.key() == wanted) else {
        return (StatusCode::NOT_FOUND, TEXT, "no such workload here; write ?workload=NAMESPACE/NAME\n".into());
    };
    let snapshot = view.live.workload(enrolled.workload.id);
    let policies = ambient.as_deref().map(|ambient| mesh::in_force(ambient, &enrolled.workload));
    page(&json!({ "workload": wanted, "configuration": snapshot.as_deref().map(names), "policies": policies }))
}

fn counts(snapshot: &Snapshot) -> Value {
    json!({
        "listeners": snapshot.listeners().count(),
        "routeTables": snapshot.route_tables().count(),
        "clusters": snapshot.clusters().count(),
        "endpoints": snapshot.clusters().map(|cluster| snapshot.endpoints(cluster).endpoints().count()).sum::<usize>(),
    })
}

fn names(snapshot: &Snapshot) -> Value {
    let sorted = |mut names: Vec<String>| {
        names.sort_unstable();
        names
    };
    let clusters: serde_json::Map<String, Value> = snapshot
        .clusters()
        .map(|cluster| {
            let endpoints = snapshot.endpoints(cluster).endpoints().map(|endpoint| {
                json!({
                    "address": endpoint.address.to_string(),
                    "weight": endpoint.weight,
                    "tunnel": endpoint.tunnel,
                    "identity": endpoint.identity.as_ref().map(|identity| identity.as_str()),
                })
            });
            (cluster.name.to_string(), endpoints.collect())
        })
        .collect();
    json!({
        "listeners": sorted(snapshot.listeners().map(|listener| listener.name.to_string()).collect()),
        "routeTables": sorted(snapshot.route_tables().map(|table| table.name.to_string()).collect()),
        "clusters": clusters,
    })
}

fn page(value: &Value) -> Answer {
    (StatusCode::OK, JSON, format!("{value:#}\n"))
}

fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .replace_nanosecond(0)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .format(&Rfc3339)
        .unwrap_or_default()
}
