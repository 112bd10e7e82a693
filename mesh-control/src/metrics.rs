//! The control plane's own figures in Prometheus text format.
//!
//! In: events. Out: the text of `/metrics`. Label sets are fixed: resource types and severities, nothing from outside.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The resource types that are counted apart, as Istio's `pilot_xds_pushes` names them.
pub const TYPES: [&str; 6] = ["cds", "eds", "lds", "rds", "wads", "wds"];

/// All counters. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Counters>);

#[derive(Default)]
struct Counters {
    pushes: [AtomicU64; TYPES.len()],
    nacks: [AtomicU64; TYPES.len()],
    resources_sent: [AtomicU64; TYPES.len()],
    proxies: AtomicU64,
    streams_refused: AtomicU64,
    issued: AtomicU64,
    refused: AtomicU64,
    loads: AtomicU64,
    load_microseconds: AtomicU64,
    services: AtomicU64,
    endpoints: AtomicU64,
}

/// Values known elsewhere, read at scrape time.
#[derive(Debug, Default, Clone, Copy)]
pub struct Gauges {
    /// Configuration errors in force.
    pub errors: usize,
    /// Configuration warnings in force.
    pub warnings: usize,
    /// Resources left out because the agents would refuse them.
    pub resources_dropped: usize,
    /// Seconds since the epoch at which the root certificate ends.
    pub root_not_after: u64,
}

impl Metrics {
    /// A push of `resources` changed or removed resources; `kind` indexes [`TYPES`].
    pub fn push(&self, kind: usize, resources: usize) {
        add(self.0.pushes.get(kind), 1);
        add(self.0.resources_sent.get(kind), resources as u64);
    }

    /// A client refused a push.
    pub fn nack(&self, kind: usize) {
        add(self.0.nacks.get(kind), 1);
    }

    /// A stream was opened.
    pub fn proxy_connected(&self) {
        add(Some(&self.0.proxies), 1);
    }

    /// A stream was closed.
    pub fn proxy_gone(&self) {
        self.0.proxies.fetch_sub(1, Ordering::Relaxed);
    }

    /// Streams open now.
    pub fn proxies(&self) -> u64 {
        self.0.proxies.load(Ordering::Relaxed)
    }

    /// A stream was refused for its token, node id or the bound on streams.
    pub fn stream_refused(&self) {
        add(Some(&self.0.streams_refused), 1);
    }

    /// A certificate was issued.
    pub fn certificate_issued(&self) {
        add(Some(&self.0.issued), 1);
    }

    /// A certificate request was refused.
    pub fn certificate_refused(&self) {
        add(Some(&self.0.refused), 1);
    }

    /// Certificates issued and refused so far.
    pub fn certificates(&self) -> (u64, u64) {
        (self.0.issued.load(Ordering::Relaxed), self.0.refused.load(Ordering::Relaxed))
    }

    /// The configuration was read again and made into a mesh of so many services and endpoints.
    pub fn loaded(&self, took: std::time::Duration, services: usize, endpoints: usize) {
        add(Some(&self.0.loads), 1);
        add(Some(&self.0.load_microseconds), u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.0.services.store(services as u64, Ordering::Relaxed);
        self.0.endpoints.store(endpoints as u64, Ordering::Relaxed);
    }

    /// The text of `/metrics`.
    pub fn render(&self, gauges: Gauges) -> String {
        let counters = &self.0;
        let mut out = String::with_capacity(4096);
        by_type(&mut out, "pilot_xds_pushes_total", "Pushes by resource type.", &counters.pushes);
        by_type(
            &mut out,
            "pilot_total_xds_rejects_total",
            "Pushes a proxy refused, by resource type.",
            &counters.nacks,
        );
        by_type(
            &mut out,
            "mesh_control_resources_sent_total",
            "Resources sent or removed, by resource type.",
            &counters.resources_sent,
        );
        for (name, kind, help, value) in [
            ("pilot_xds", "gauge", "Proxies connected.", load(&counters.proxies)),
            ("mesh_control_streams_refused_total", "counter", "xDS streams refused.", load(&counters.streams_refused)),
            (
                "citadel_server_success_cert_issuance_count_total",
                "counter",
                "Certificates issued.",
                load(&counters.issued),
            ),
            (
                "mesh_control_certificates_refused_total",
                "counter",
                "Certificate requests refused.",
                load(&counters.refused),
            ),
            (
                "citadel_server_root_cert_expiry_timestamp",
                "gauge",
                "End of the root certificate, seconds since the epoch.",
                gauges.root_not_after,
            ),
            ("mesh_control_loads_total", "counter", "Times the configuration was read.", load(&counters.loads)),
            (
                "mesh_control_load_microseconds_total",
                "counter",
                "Time spent on reading the configuration.",
                load(&counters.load_microseconds),
            ),
            ("pilot_services", "gauge", "Services known.", load(&counters.services)),
            ("mesh_control_endpoints", "gauge", "Endpoints known.", load(&counters.endpoints)),
            (
                "mesh_control_resources_dropped",
                "gauge",
                "Resources not published because the agent would refuse them.",
                gauges.resources_dropped as u64,
            ),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        let name = "mesh_control_problems";
        let _ = writeln!(out, "# HELP {name} Configuration problems in force.\n# TYPE {name} gauge");
        let _ = writeln!(out, "{name}{{severity=\"error\"}} {}", gauges.errors);
        let _ = writeln!(out, "{name}{{severity=\"warning\"}} {}", gauges.warnings);
        out
    }
}

fn add(counter: Option<&AtomicU64>, value: u64) {
    if let Some(counter) = counter {
        counter.fetch_add(value, Ordering::Relaxed);
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn by_type(out: &mut String, name: &str, help: &str, counters: &[AtomicU64; TYPES.len()]) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
    for (kind, counter) in TYPES.iter().zip(counters) {
        let _ = writeln!(out, "{name}{{type=\"{kind}\"}} {}", load(counter));
    }
}
