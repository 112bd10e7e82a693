//! Istio's standard metrics. In: label sets, resolved once per connection or route to cells of the worker's own, and
//! what happened. Out: sums of all workers' cells at scrape. Bounded: label sets beyond the limit share one overflow
//! series; series that nobody holds and nothing changed for a while are forgotten.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::exposition::{Kind, Text};
use super::histogram::{BUCKETS, Histogram, Totals, bump};
use super::labels::{self, ConnLabels, Outcome};
use super::limits::{self, LimitCounts};
use super::paths::{self, PathBytes};
use crate::errors::Flags;

/// Series of one connection or route kept at hand per handle; the rest is looked up again.
const CACHED_OUTCOMES: usize = 8;

/// Bounds of the registry.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Label sets kept for HTTP and for TCP each; further ones count in the overflow series.
    pub series: usize,
    /// A series that no connection holds and that did not change for this long is dropped at a scrape.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { series: 20_000, idle: Duration::from_secs(3600) }
    }
}

type Key = (Arc<ConnLabels>, Outcome);
type Source = Box<dyn Fn(&mut Text) + Send + Sync>;

/// All metrics of the process; the scrape side.
pub struct Metrics {
    http: Mutex<Family<HttpCell>>,
    tcp: Mutex<Family<TcpCell>>,
    limits: Limits,
    /// Look-ups that ended in the overflow series.
    overflowed: AtomicU64,
    sources: Mutex<Vec<Source>>,
    /// Of every worker.
    bytes: Mutex<Vec<Arc<PathBytes>>>,
    /// Of every worker.
    reached: Mutex<Vec<Arc<LimitCounts>>>,
}

/// One worker's side. All clones must stay on the worker's thread: its cells have one writer.
#[derive(Clone)]
pub struct WorkerMetrics {
    metrics: Arc<Metrics>,
    worker: usize,
    bytes: Arc<PathBytes>,
    reached: Arc<LimitCounts>,
}

struct Family<C> {
    series: HashMap<Key, Series<C>>,
    overflow: Series<C>,
}

struct Series<C> {
    /// By worker; the worker's handles share its cell.
    cells: Vec<Option<Arc<C>>>,
    /// For expiry: the total seen at the last scrape, and when it last differed.
    seen: u64,
    changed: Instant,
}

#[derive(Default)]
struct HttpCell {
    requests: AtomicU64,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

#[derive(Default)]
struct TcpCell {
    opened: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// Where the requests of one connection or route are counted.
pub struct HttpSeries {
    owner: WorkerMetrics,
    labels: Arc<ConnLabels>,
    cells: RefCell<Vec<(Outcome, Arc<HttpCell>)>>,
}

/// Where one opaque connection is counted.
pub struct TcpSeries {
    cell: Arc<TcpCell>,
}

impl Metrics {
    /// An empty registry.
    pub fn new(limits: Limits) -> Arc<Metrics> {
        Arc::new(Metrics {
            http: Mutex::new(Family::new()),
            tcp: Mutex::new(Family::new()),
            limits,
            overflowed: AtomicU64::new(0),
            sources: Mutex::new(Vec::new()),
            bytes: Mutex::new(Vec::new()),
            reached: Mutex::new(Vec::new()),
        })
    }

    /// The handle of worker `index`; one per thread.
    pub fn worker(self: &Arc<Self>, index: usize) -> WorkerMetrics {
        let bytes = Arc::new(PathBytes::default());
        lock(&self.bytes).push(bytes.clone());
        let reached = Arc::new(LimitCounts::default());
        lock(&self.reached).push(reached.clone());
        WorkerMetrics { metrics: self.clone(), worker: index, bytes, reached }
    }

    /// Adds a module's own metrics to the page: `write` is called at every scrape and must be quick.
    pub fn add_source(&self, write: impl Fn(&mut Text) + Send + Sync + 'static) {
        lock(&self.sources).push(Box::new(write));
    }

    /// The Prometheus page.
    pub fn render(&self, now: Instant) -> String {
        let mut out = Text::default();
        out.family("istio_build", Kind::Gauge, "Istio component build info");
        out.name("istio_build", "");
        out.label("component", "proxy");
        out.label("tag", env!("CARGO_PKG_VERSION"));
        out.value(1);
        self.render_http(&mut out, now);
        self.render_tcp(&mut out, now);
        out.single(
            "mesh_agent_metric_overflows_total",
            Kind::Counter,
            "Lookups of label sets beyond the limit; they count in the series whose labels are \"overflow\".",
            self.overflowed.load(Relaxed),
        );
        paths::write(&mut out, &lock(&self.bytes));
        limits::write(&mut out, &lock(&self.reached));
        for source in lock(&self.sources).iter() {
            source(&mut out);
        }
        out.finish()
    }

    fn render_http(&self, out: &mut Text, now: Instant) {
        // Copied out under the lock, printed after it: a worker that meets a new label set does not wait for us.
        let rows: Vec<(String, HttpTotals)> = {
            let mut family = lock(&self.http);
            family.expire(now, self.limits.idle, |cell| cell.requests.load(Relaxed));
            family.rows(true, HttpCell::add_to)
        };
        family(out, "istio_requests_total", "Requests.", &rows, |totals| totals.requests);
        let histograms: [(&str, &str, Part); 3] = [
            ("istio_request_duration_milliseconds", "Duration of requests in milliseconds.", |t| &t.duration),
            ("istio_request_bytes", "Size of requests in bytes.", |t| &t.request_bytes),
            ("istio_response_bytes", "Size of responses in bytes.", |t| &t.response_bytes),
        ];
        for (name, help, pick) in histograms {
            if rows.is_empty() {
                continue;
            }
            out.family(name, Kind::Histogram, help);
            for (labels, totals) in &rows {
                histogram(out, name, labels, pick(totals));
            }
        }
    }

    fn render_tcp(&self, out: &mut Text, now: Instant) {
        let rows: Vec<(String, TcpTotals)> = {
            let mut family = lock(&self.tcp);
            family.expire(now, self.limits.idle, |cell| {
                let mut totals = TcpTotals::default();
                cell.add_to(&mut totals);
                totals.opened
                    ^ totals.closed.rotate_left(16)
                    ^ totals.sent.rotate_left(32)
                    ^ totals.received.rotate_left(48)
            });
            family.rows(false, TcpCell::add_to)
        };
        family(out, "istio_tcp_connections_opened_total", "Opened connections.", &rows, |t| t.opened);
        family(out, "istio_tcp_connections_closed_total", "Closed connections.", &rows, |t| t.closed);
        family(out, "istio_tcp_sent_bytes_total", "Bytes sent to the client.", &rows, |t| t.sent);
        family(out, "istio_tcp_received_bytes_total", "Bytes received from the client.", &rows, |t| t.received);
    }
}

impl WorkerMetrics {
    /// Where bytes are counted by their path.
    pub fn bytes(&self) -> &Arc<PathBytes> {
        &self.bytes
    }

    /// Where limits that were reached are counted.
    pub fn limits(&self) -> &Arc<LimitCounts> {
        &self.reached
    }

    /// Where the HTTP requests with these labels count. Once per connection or route.
    pub fn http(&self, labels: &ConnLabels) -> HttpSeries {
        HttpSeries { owner: self.clone(), labels: Arc::new(labels.clone()), cells: RefCell::new(Vec::new()) }
    }

    /// Where a TCP connection with these labels counts. `flags`: [`Flags::NONE`] while it is open, and at its end
    /// what ended it, if anything did.
    pub fn tcp(&self, labels: &ConnLabels, flags: Flags) -> TcpSeries {
        let key = (Arc::new(labels.clone()), Outcome { code: 0, grpc_status: None, flags });
        TcpSeries { cell: self.cell(&self.metrics.tcp, key) }
    }

    fn cell<C: Default>(&self, family: &Mutex<Family<C>>, key: Key) -> Arc<C> {
        let mut family = lock(family);
        let Family { series, overflow } = &mut *family;
        let series = if series.contains_key(&key) || series.len() < self.metrics.limits.series {
            series.entry(key).or_default()
        } else {
            self.metrics.overflowed.fetch_add(1, Relaxed);
            overflow
        };
        series.cell(self.worker)
    }
}

impl HttpSeries {
    /// Counts a finished request. `code` is 0 when no response was sent; sizes are of head and body, in bytes.
    pub fn record(&self, code: u16, flags: Flags, duration: Duration, request_bytes: u64, response_bytes: u64) {
        self.count(Outcome { code, grpc_status: None, flags }, duration, request_bytes, response_bytes);
    }

    /// As [`HttpSeries::record`], for gRPC; `status` is the gRPC status code.
    pub fn record_grpc(
        &self,
        code: u16,
        status: u8,
        flags: Flags,
        duration: Duration,
        request_bytes: u64,
        response_bytes: u64,
    ) {
        self.count(Outcome { code, grpc_status: Some(status), flags }, duration, request_bytes, response_bytes);
    }

    fn count(&self, outcome: Outcome, duration: Duration, request_bytes: u64, response_bytes: u64) {
        let cell = self.cell(outcome);
        bump(&cell.requests, 1);
        cell.duration.record_milli(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        cell.request_bytes.record_milli(request_bytes.saturating_mul(1000));
        cell.response_bytes.record_milli(response_bytes.saturating_mul(1000));
    }

    fn cell(&self, outcome: Outcome) -> Arc<HttpCell> {
        let mut cells = self.cells.borrow_mut();
        if let Some((_, cell)) = cells.iter().find(|(known, _)| *known == outcome) {
            return cell.clone();
        }
        let cell = self.owner.cell(&self.owner.metrics.http, (self.labels.clone(), outcome));
        if cells.len() >= CACHED_OUTCOMES {
            cells.remove(0);
        }
        cells.push((outcome, cell.clone()));
        cell
    }
}

impl TcpSeries {
    /// A connection was opened.
    pub fn opened(&self) {
        bump(&self.cell.opened, 1);
    }

    /// A connection was closed.
    pub fn closed(&self) {
        bump(&self.cell.closed, 1);
    }

    /// `bytes` were sent to the client (Istio's sense: response direction).
    pub fn sent(&self, bytes: u64) {
        bump(&self.cell.sent, bytes);
    }

    /// `bytes` were received from the client (request direction).
    pub fn received(&self, bytes: u64) {
        bump(&self.cell.received, bytes);
    }

    /// Many connections at once: how many were opened and closed; bytes from the client, and to it.
    pub fn add(&self, opened: u64, closed: u64, received: u64, sent: u64) {
        bump(&self.cell.opened, opened);
        bump(&self.cell.closed, closed);
        self.received(received);
        self.sent(sent);
    }
}

/// Which histogram of a series.
type Part = fn(&HttpTotals) -> &Totals;

#[derive(Default)]
struct HttpTotals {
    requests: u64,
    duration: Totals,
    request_bytes: Totals,
    response_bytes: Totals,
}

#[derive(Default)]
struct TcpTotals {
    opened: u64,
    closed: u64,
    sent: u64,
    received: u64,
}

impl HttpCell {
    fn add_to(&self, totals: &mut HttpTotals) {
        totals.requests += self.requests.load(Relaxed);
        self.duration.add_to(&mut totals.duration);
        self.request_bytes.add_to(&mut totals.request_bytes);
        self.response_bytes.add_to(&mut totals.response_bytes);
    }
}

impl TcpCell {
    fn add_to(&self, totals: &mut TcpTotals) {
        totals.opened += self.opened.load(Relaxed);
        totals.closed += self.closed.load(Relaxed);
        totals.sent += self.sent.load(Relaxed);
        totals.received += self.received.load(Relaxed);
    }
}

impl<C> Family<C> {
    fn new() -> Family<C> {
        Family { series: HashMap::new(), overflow: Series::default() }
    }

    /// One row per series: its labels, and the sum of its cells.
    fn rows<T: Default>(&self, http: bool, add: impl Fn(&C, &mut T)) -> Vec<(String, T)> {
        let none = Outcome { code: 0, grpc_status: None, flags: Flags::NONE };
        let overflow = (!self.overflow.cells.is_empty()).then_some((None, none, &self.overflow));
        let named = self.series.iter().map(|((labels, outcome), series)| (Some(&**labels), *outcome, series));
        let mut rows: Vec<(String, T)> = named
            .chain(overflow)
            .map(|(labels, outcome, series)| {
                let mut text = Text::default();
                labels::write(&mut text, http, labels, outcome);
                let mut totals = T::default();
                series.cells.iter().flatten().for_each(|cell| add(cell, &mut totals));
                (text.into_raw_labels(), totals)
            })
            .collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        rows
    }

    fn expire(&mut self, now: Instant, idle: Duration, total: impl Fn(&C) -> u64) {
        self.series.retain(|_, series| {
            let sum = series.cells.iter().flatten().fold(0u64, |sum, cell| sum.wrapping_add(total(cell)));
            if sum != series.seen {
                series.seen = sum;
                series.changed = now;
            }
            let held = series.cells.iter().flatten().any(|cell| Arc::strong_count(cell) > 1);
            held || now.saturating_duration_since(series.changed) < idle
        });
    }
}

impl<C> Default for Series<C> {
    fn default() -> Series<C> {
        Series { cells: Vec::new(), seen: 0, changed: Instant::now() }
    }
}

impl<C: Default> Series<C> {
    fn cell(&mut self, worker: usize) -> Arc<C> {
        if self.cells.len() <= worker {
            self.cells.resize_with(worker + 1, || None);
        }
        self.cells[worker].get_or_insert_default().clone()
    }
}

fn family<T>(out: &mut Text, name: &str, help: &str, rows: &[(String, T)], value: impl Fn(&T) -> u64) {
    if rows.is_empty() {
        return;
    }
    out.family(name, Kind::Counter, help);
    for (labels, totals) in rows {
        out.name(name, "");
        out.raw_labels(labels);
        out.value(value(totals));
    }
}

fn histogram(out: &mut Text, name: &str, labels: &str, totals: &Totals) {
    let mut cumulative = 0;
    for (i, count) in totals.buckets.iter().enumerate() {
        cumulative += count;
        out.name(name, "_bucket");
        out.raw_labels(labels);
        match BUCKETS.get(i) {
            Some(bound) => out.label("le", bound),
            None => out.label("le", "+Inf"),
        }
        out.value(cumulative);
    }
    out.name(name, "_sum");
    out.raw_labels(labels);
    out.value(totals.sum());
    out.name(name, "_count");
    out.raw_labels(labels);
    out.value(totals.count());
}

/// A poisoned lock only means that some other thread died between two counters; the figures are still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
