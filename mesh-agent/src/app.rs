//! The agent from start to end. In: settings, signals. Out: everything running, in the order below, and ended in the
//! reverse. Holds no logic of its own beyond that order.

mod carried;
mod direct;
mod events;
mod roster;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mesh_common::abi::{MAX_NODE_ADDRESSES, Tuple};
use nix::sys::resource::{Resource, getrlimit};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::admin::{self, Page, View};
use crate::apply;
use crate::dns;
use crate::handover::{self, Estate, HandoverError, Predecessor, Request};
use crate::identity::Identities;
use crate::kernel::{self, Kernel, KernelError};
use crate::live::Live;
use crate::net::netns::NetNs;
use crate::proxy::{Context, Judged, Refused, Workers};
use crate::settings::{AccessLogSink, Settings};
use crate::shutdown;
use crate::telemetry::access_log::{AccessLog, Log};
use crate::telemetry::{Kind, Limits, Metrics, write_tcp};
use crate::xds::{Client, ControlPlaneChannel, StatusCell};
use carried::DirectTold;
use direct::DirectWays;
use roster::{InheritError, Parts, Workloads, lock};

/// How often connections from before an enrolment are looked after.
const SWEEP: Duration = Duration::from_secs(30);

/// How often the cgroups of the host's workloads are looked after: one system call each.
const FOLLOW: Duration = Duration::from_millis(50);

/// Connections of all workloads where neither settings nor descriptors bound them.
const MOST_CONNECTIONS: usize = 10_000_000;

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
    /// Another agent runs and this one cannot take over; the other one goes on.
    #[error("cannot take over from the running agent: {0}")]
    Handover(#[from] HandoverError),
    /// As above, for a workload that would not be served as before.
    #[error("cannot take over from the running agent: {0}")]
    Inherit(#[from] InheritError),
    /// Threads or signal handlers.
    #[error("cannot start {what}: {source}")]
    Start {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to; its workloads go on without the mesh.
    Stopped,
    /// Another agent has taken over.
    HandedOver,
}

/// Runs until SIGTERM or SIGINT, or until another agent has taken over. `path` is read again at SIGHUP. `take_over`:
/// from the running agent, if there is one.
pub async fn run(path: &Path, settings: Settings, take_over: bool) -> Result<Ended, AppError> {
    let settings = Arc::new(settings);
    let (trigger, watch, own_guard) = shutdown::channel();
    let mut signals = Signals::new()?;

    let pins = kernel::pin_path(&settings.kernel, &settings.node)?;
    let (predecessor, estate) = match take_over.then(|| Predecessor::ask(&settings, &pins)).transpose()?.flatten() {
        Some((predecessor, estate)) => (Some(predecessor), Some(estate)),
        None => {
            kernel::check_free(&pins)?;
            (None, None)
        }
    };
    let (lock_on_pins, pages, pods) = match estate {
        Some(Estate { lock, pages, pods }) => (Some(lock), pages.map(Some), pods),
        None => (None, [None, None, None], Vec::new()),
    };
    // What can fail for a wrong setting comes first, before the kernel is touched.
    let [admin, metrics_page, ready] = pages;
    let pages = [
        listen("admin", settings.listen.admin, admin)?,
        listen("metrics", settings.listen.metrics, metrics_page)?,
        listen("ready", settings.listen.ready, ready)?,
    ];

    let metrics = Metrics::new(Limits { series: settings.metric_series, ..Limits::default() });
    let access_log = start_access_log(&settings, &metrics)?;

    let mut kernel = match lock_on_pins {
        Some(lock) => Kernel::take_over(&settings.kernel, &settings.node, lock)?,
        None => Kernel::load(&settings.kernel, &settings.node)?,
    };
    let direct_stats = kernel.direct_stats()?;
    let tcp = kernel.take_tcp_stats();
    metrics.add_source(move |out| {
        write_tcp(out, |path, figure| tcp.as_ref().and_then(|tcp| tcp.figure(path, figure).ok()).unwrap_or_default());
    });
    let identities = Identities::new(&settings.control_plane, Handle::current());
    let live = Arc::new(Live::default());
    let channel = Arc::new(ControlPlaneChannel::new(settings.control_plane.clone(), &settings.cluster_id));
    let client = Arc::new(Client::new(channel));
    let counters = client.counters();
    metrics.add_source(move |out| counters.write(out));

    let dns = Arc::new(dns::Counters::default());
    let counters = dns.clone();
    metrics.add_source(move |out| counters.write(out));

    let node = node_addresses(&settings)?;
    let kernel = Arc::new(Mutex::new(kernel));
    lock(&kernel).set_node_addresses(&node)?;
    let refused = Arc::new(Refused::default());
    let counting = refused.clone();
    metrics.add_source(move |out| counting.write(out));
    let judged = Arc::new(Judged::default());
    let counting = judged.clone();
    metrics.add_source(move |out| counting.write(out));
    let workers = Workers::start(settings.worker_count(), most_connections(&settings), |index| Context {
        live: live.clone(),
        sockets: lock(&kernel).sockets(),
        identities: identities.clone(),
        metrics: metrics.worker(index),
        refused: refused.clone(),
        judged: judged.clone(),
        access_log: access_log.as_ref().map_or_else(Log::off, AccessLog::handle),
        dns: dns.clone(),
        node: node.clone(),
        settings: settings.clone(),
        shutdown: watch.clone(),
    })
    .map_err(|source| AppError::Start { what: "a worker", source })?;
    let ledgers = workers.ledgers();
    metrics.add_source(move |out| ledgers.write(out));

    let node_stream = follow_node(&settings, &client, &node, &live, &watch);

    let mut workloads = Workloads::new(Parts {
        settings: settings.clone(),
        kernel: kernel.clone(),
        identities: identities.clone(),
        client,
        live: live.clone(),
        workers,
        shutdown: watch.clone(),
    });
    workloads.register(&metrics);
    let mut alone = None;
    if let Some(predecessor) = predecessor {
        workloads.inherit(pods, &settings.workloads).await?;
        alone = Some(replace(predecessor));
        tracing::info!("took over from the agent that ran before");
    }
    workloads.reconcile(&settings.workloads).await;
    let mut direct = DirectWays::new(live.clone(), kernel.clone(), workloads.watch(), settings.node_stream, &metrics);
    let worker = metrics.worker(settings.worker_count());
    let mut told = DirectTold::new(direct_stats, live.clone(), workloads.watch(), worker);
    let followed = lock(&kernel).take_events();
    // Weak: the task must not keep the programs attached.
    let ending = Arc::downgrade(&kernel);
    let end = move |connection: &Tuple| {
        if let Some(kernel) = ending.upgrade() {
            lock(&kernel).end_direct(connection);
        }
    };
    let followed = followed.map(|events| watch.spawn("kernel-events", events::follow(events, end)));
    let debug_log = lock(&kernel).take_debug_log();
    let debug_log = debug_log.map(|log| watch.spawn("kernel-log", events::print(log)));
    let mut successor = handover::serve(&settings, pins)
        .map_err(|source| AppError::Start { what: "the node's socket (settings: nodeSocket)", source })?;

    add_certificates(&metrics, identities.clone());

    let view = Arc::new(View {
        settings: settings.clone(),
        metrics,
        live,
        node_stream,
        identities,
        roster: workloads.watch(),
        started: SystemTime::now(),
        shutdown: watch.clone(),
    });
    let mut tasks: Vec<JoinHandle<()>> = followed.into_iter().chain(debug_log).collect();
    let about = [("admin", Page::ADMIN), ("metrics", Page::METRICS), ("ready", Page::READY)];
    for ((name, content), listener) in about.into_iter().zip(&pages) {
        let listener = listener.try_clone().and_then(TcpListener::from_std);
        let listener = listener.map_err(|source| AppError::Start { what: "a page", source })?;
        tasks.push(watch.spawn(name, admin::serve(listener, content, view.clone(), watch.clone())));
    }
    tracing::info!(node = settings.node, version = env!("CARGO_PKG_VERSION"), "started");

    let mut sweep = tokio::time::interval(SWEEP);
    let mut follow = tokio::time::interval(FOLLOW);
    follow.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Between a successor's question and its answer nothing of what it was told may change.
    let mut frozen = false;
    let left = loop {
        tokio::select! {
            _ = sweep.tick(), if !frozen => workloads.sweep(),
            event = signals.next(), if !frozen => match event {
                Event::End(name) => {
                    tracing::info!(signal = name, drain_seconds = settings.drain_seconds, "ending");
                    break None;
                }
                Event::Reload => match Settings::load_in(path, own_cgroup().as_deref()) {
                    Ok(new) => workloads.reconcile(&new.workloads).await,
                    Err(error) => tracing::error!(%error, "the new settings are not used"),
                },
            },
            _ = follow.tick(), if !frozen => workloads.follow_host(),
            key = workloads.due(), if !frozen => workloads.try_enrol(key).await,
            () = direct.due(), if !frozen => direct.settle().await,
            () = told.due() => told.settle().await,
            () = gone(&mut alone) => {
                alone = None;
                lock(&kernel).claim()?;
            }
            Some(request) = successor.recv() => match request {
                Request::Offer(reply) => {
                    frozen = true;
                    // Nobody may be waiting any more; then `Withdrawn` follows.
                    let _ = reply.send(workloads.estate(&pages));
                }
                Request::Withdrawn => {
                    frozen = false;
                    workloads.reassert();
                }
                Request::Taken(reply) => break Some(reply),
            },
            () = workloads.worker_ended() => return Err(AppError::Worker),
        }
    };
    // For whoever looks while connections have time to finish; and the other agent goes on from here.
    told.settle().await;
    let Some(left) = left else {
        // New connections go by themselves from here on; those that are open get time to finish.
        workloads.release();
        drop(own_guard);
        finished(trigger.drain(settings.drain()).await);
        workloads.end()?;
        tracing::info!("ended");
        return Ok(Ended::Stopped);
    };
    tracing::info!(drain_seconds = settings.drain_seconds, "another agent has taken over");
    workloads.leave();
    drop(pages);
    for task in tasks {
        task.abort();
        let _ = task.await;
    }
    let _ = left.send(());
    drop(own_guard);
    finished(trigger.hand_over(settings.drain()).await);
    workloads.join();
    tracing::info!("ended; what is in force belongs to the other agent");
    Ok(Ended::HandedOver)
}

/// The agent's own cgroup, as settings name cgroups.
pub fn own_cgroup() -> Option<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

/// Connections that all workloads together may have. Most of them need two descriptors.
fn most_connections(settings: &Settings) -> usize {
    match settings.limits.connections {
        0 => getrlimit(Resource::RLIMIT_NOFILE)
            .map_or(MOST_CONNECTIONS, |(now, _)| usize::try_from(now / 2).unwrap_or(MOST_CONNECTIONS))
            .min(MOST_CONNECTIONS),
        most => most,
    }
}

/// Begins the node's own stream, if it is wanted; its status.
fn follow_node(
    settings: &Arc<Settings>,
    client: &Arc<Client>,
    node: &[IpAddr],
    live: &Arc<Live>,
    watch: &shutdown::Watch,
) -> Option<StatusCell> {
    if !settings.node_stream {
        tracing::warn!("no AuthorizationPolicy is enforced (settings: nodeStream)");
        return None;
    }
    let status = StatusCell::default();
    let address = node.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let (settings, client, live, own) = (settings.clone(), client.clone(), live.clone(), status.clone());
    watch.spawn("xds-node", async move { apply::follow_node(&client, &settings, address, &live, &own).await });
    Some(status)
}

/// From where the orchestrator probes workloads.
fn node_addresses(settings: &Settings) -> Result<Arc<[IpAddr]>, AppError> {
    if !settings.node_addresses.is_empty() {
        return Ok(settings.node_addresses.as_slice().into());
    }
    let found = NetNs::current().and_then(|own| own.addresses());
    let mut found = found.map_err(|source| AppError::Start { what: "a list of the node's addresses", source })?;
    if found.len() > MAX_NODE_ADDRESSES as usize {
        tracing::warn!(
            found = found.len(),
            "of the node's addresses only {MAX_NODE_ADDRESSES} may probe workloads; list those that do in the settings: nodeAddresses"
        );
        found.truncate(MAX_NODE_ADDRESSES as usize);
    }
    Ok(found.into())
}

fn finished(in_time: bool) {
    if !in_time {
        tracing::warn!("some connections did not finish in time and were closed");
    }
}

/// Sends the old agent away, and tells when its process has ended.
fn replace(predecessor: Predecessor) -> JoinHandle<()> {
    if let Err(error) = predecessor.take() {
        // Everything is in force by now, whatever became of it.
        tracing::warn!(%error, "the agent that ran before does not answer");
    }
    tokio::task::spawn_blocking(move || predecessor.wait_gone())
}

async fn gone(other: &mut Option<JoinHandle<()>>) {
    match other {
        Some(other) => {
            let _ = other.await;
        }
        None => std::future::pending().await,
    }
}

/// A listener for a page: the one that was handed over if it is at the right place.
fn listen(
    field: &'static str,
    address: SocketAddr,
    handed_over: Option<std::net::TcpListener>,
) -> Result<std::net::TcpListener, AppError> {
    let listener = match handed_over.and_then(|listener| handover::page(listener, address)) {
        Some(listener) => Ok(listener),
        None => std::net::TcpListener::bind(address),
    };
    let prepared = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    prepared.map_err(|source| AppError::Listen { field, address, source })
}

fn start_access_log(settings: &Settings, metrics: &Metrics) -> Result<Option<AccessLog>, AppError> {
    let path = match &settings.access_log {
        None => return Ok(None),
        Some(AccessLogSink::Stdout) => None,
        Some(AccessLogSink::File(path)) => Some(path.as_path()),
    };
    let log = AccessLog::start(path, settings.limits.access_log_bytes).map_err(AppError::AccessLog)?;
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
