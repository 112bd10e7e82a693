//! The agent from start to end. In: settings, signals. Out: everything running, in the order below, and ended in the
//! reverse. Holds no logic of its own beyond that order.

mod events;
mod roster;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin::{self, Page, View};
use crate::dns;
use crate::identity::Identities;
use crate::kernel::{Kernel, KernelError};
use crate::live::Live;
use crate::proxy::{Context, Refused, Workers};
use crate::settings::{AccessLogSink, Settings};
use crate::shutdown;
use crate::telemetry::access_log::{AccessLog, Log};
use crate::telemetry::{Kind, Limits, Metrics};
use crate::xds::{Client, ControlPlaneChannel};
use roster::{Parts, Workloads, lock};

/// How often connections from before an enrolment are looked after.
const SWEEP: Duration = Duration::from_secs(30);

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The eBPF side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A port of the agent's own.
    #[error("cannot listen on {address} (settings: listen.{field}): {source}")]
    Listen {
        /// Which setting.
        field: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The access log's file or thread.
    #[error("cannot write the access log (settings: accessLog): {0}")]
    AccessLog(std::io::Error),
    /// A worker thread died; without it its workloads have no network.
    #[error("a worker thread has panicked; this is a defect of the agent")]
    Worker,
    /// Threads or signal handlers.
    #[error("cannot start {what}: {source}")]
    Start {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// Runs until SIGTERM or SIGINT. `path` is read again at SIGHUP.
pub async fn run(path: &Path, settings: Settings) -> Result<(), AppError> {
    let settings = Arc::new(settings);
    let (trigger, watch, own_guard) = shutdown::channel();
    let mut signals = Signals::new()?;

    // What can fail for a wrong setting comes first, before the kernel is touched.
    let admin_listener = listen("admin", settings.listen.admin).await?;
    let metrics_listener = listen("metrics", settings.listen.metrics).await?;
    let ready_listener = listen("ready", settings.listen.ready).await?;

    let metrics = Metrics::new(Limits { series: settings.metric_series, ..Limits::default() });
    let access_log = start_access_log(&settings, &metrics)?;

    let mut kernel = Kernel::load(&settings.kernel, &settings.node)?;
    if let Some(events) = kernel.take_events() {
        watch.spawn("kernel-events", events::follow(events));
    }
    let identities = Identities::new(&settings.control_plane, Handle::current());
    let live = Arc::new(Live::default());
    let channel = Arc::new(ControlPlaneChannel::new(settings.control_plane.clone(), &settings.cluster_id));
    let client = Arc::new(Client::new(channel));
    let counters = client.counters();
    metrics.add_source(move |out| counters.write(out));

    let dns = Arc::new(dns::Counters::default());
    let counters = dns.clone();
    metrics.add_source(move |out| counters.write(out));

    let kernel = Arc::new(Mutex::new(kernel));
    let refused = Arc::new(Refused::default());
    let counting = refused.clone();
    metrics.add_source(move |out| counting.write(out));
    let workers = Workers::start(settings.worker_count(), |index| Context {
        live: live.clone(),
        sockets: lock(&kernel).sockets(),
        identities: identities.clone(),
        metrics: metrics.worker(index),
        refused: refused.clone(),
        access_log: access_log.as_ref().map_or_else(Log::off, AccessLog::handle),
        dns: dns.clone(),
        settings: settings.clone(),
        shutdown: watch.clone(),
    })
    .map_err(|source| AppError::Start { what: "a worker", source })?;

    let mut workloads = Workloads::new(Parts {
        settings: settings.clone(),
        kernel,
        identities: identities.clone(),
        client,
        live: live.clone(),
        workers,
        shutdown: watch.clone(),
    });
    workloads.register(&metrics);
    workloads.reconcile(&settings.workloads).await;

    add_certificates(&metrics, identities.clone());

    let view = Arc::new(View {
        settings: settings.clone(),
        metrics,
        live,
        identities,
        roster: workloads.watch(),
        started: SystemTime::now(),
        shutdown: watch.clone(),
    });
    for (name, listener, pages) in [
        ("admin", admin_listener, Page::ADMIN),
        ("metrics", metrics_listener, Page::METRICS),
        ("ready", ready_listener, Page::READY),
    ] {
        watch.spawn(name, admin::serve(listener, pages, view.clone(), watch.clone()));
    }
    tracing::info!(node = settings.node, version = env!("CARGO_PKG_VERSION"), "started");

    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            _ = sweep.tick() => workloads.sweep(),
            event = signals.next() => match event {
                Event::End(name) => {
                    tracing::info!(signal = name, drain_seconds = settings.drain_seconds, "ending");
                    break;
                }
                Event::Reload => match Settings::load(path) {
                    Ok(new) => workloads.reconcile(&new.workloads).await,
                    Err(error) => tracing::error!(%error, "the new settings are not used"),
                },
            },
            key = workloads.due() => workloads.try_enrol(key).await,
            () = workloads.worker_ended() => return Err(AppError::Worker),
        }
    }

    // New connections go by themselves from here on; those that are open get time to finish.
    workloads.release();
    drop(own_guard);
    if !trigger.drain(settings.drain()).await {
        tracing::warn!("some connections did not finish in time and were closed");
    }
    workloads.end()?;
    tracing::info!("ended");
    Ok(())
}

async fn listen(field: &'static str, address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|source| AppError::Listen { field, address, source })
}

fn start_access_log(settings: &Settings, metrics: &Metrics) -> Result<Option<AccessLog>, AppError> {
    let path = match &settings.access_log {
        None => return Ok(None),
        Some(AccessLogSink::Stdout) => None,
        Some(AccessLogSink::File(path)) => Some(path.as_path()),
    };
    let log = AccessLog::start(path).map_err(AppError::AccessLog)?;
    let dropped = log.dropped();
    metrics.add_source(move |out| {
        let dropped = dropped.load(std::sync::atomic::Ordering::Relaxed);
        out.single("mesh_agent_access_log_dropped_total", Kind::Counter, "Access log lines dropped.", dropped);
    });
    Ok(Some(log))
}

fn add_certificates(metrics: &Metrics, identities: Identities) {
    metrics.add_source(move |out| {
        let all = identities.snapshot();
        let valid = all.iter().filter(|status| status.credential.is_some()).count();
        out.family(
            "mesh_agent_certificates",
            Kind::Gauge,
            "Identities of local workloads, by whether a certificate is in force.",
        );
        for (state, count) in [("valid", valid), ("missing", all.len() - valid)] {
            out.name("mesh_agent_certificates", "");
            out.label("state", state);
            out.value(count);
        }
        let failing = all.iter().filter(|status| status.failures > 0).count();
        out.single(
            "mesh_agent_certificates_failing",
            Kind::Gauge,
            "Identities whose last certificate request failed.",
            failing,
        );
    });
}

/// What the outside asks of the agent.
enum Event {
    End(&'static str),
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Signals, AppError> {
        let handler = |kind| signal(kind).map_err(|source| AppError::Start { what: "signal handlers", source });
        Ok(Signals {
            terminate: handler(SignalKind::terminate())?,
            interrupt: handler(SignalKind::interrupt())?,
            hangup: handler(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => Event::End("SIGTERM"),
            _ = self.interrupt.recv() => Event::End("SIGINT"),
            _ = self.hangup.recv() => Event::Reload,
        }
    }
}
