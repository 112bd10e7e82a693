//! The access log in Istio's default text format. In: one entry per request or connection, formatted on the worker
//! into its own bounded buffer. Out: lines, written by one thread to stdout or a file. A full buffer drops the line
//! and counts it; a worker never waits for the disk.

use std::fmt::{self, Display, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;

use crate::errors::Flags;

/// How long the writer lets lines gather once there have been some.
const GATHER: Duration = Duration::from_millis(20);
/// Longest text of a single field, in bytes; the rest of it is cut off.
const MAX_FIELD: usize = 2048;

/// What one line tells; the names are Envoy's operators. `None` prints as `-`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "each field is the Envoy operator of its name")]
pub struct Entry<'a> {
    pub start_time: SystemTime,
    pub method: Option<&'a str>,
    /// `X-ENVOY-ORIGINAL-PATH`, else the path.
    pub path: Option<&'a str>,
    /// `HTTP/1.1`, `HTTP/2`; `None` for TCP.
    pub protocol: Option<&'a str>,
    /// 0 when no response was sent, and for TCP.
    pub response_code: u16,
    pub response_flags: Flags,
    pub response_code_details: Option<&'a str>,
    pub connection_termination_details: Option<&'a str>,
    pub upstream_transport_failure_reason: Option<&'a str>,
    /// From the client: body for HTTP, everything for TCP.
    pub bytes_received: u64,
    /// To the client.
    pub bytes_sent: u64,
    pub duration: Duration,
    pub upstream_service_time: Option<Duration>,
    pub x_forwarded_for: Option<&'a str>,
    pub user_agent: Option<&'a str>,
    pub x_request_id: Option<&'a str>,
    pub authority: Option<&'a str>,
    pub upstream_host: Option<SocketAddr>,
    pub upstream_cluster: Option<&'a str>,
    pub upstream_local_address: Option<SocketAddr>,
    pub downstream_local_address: Option<SocketAddr>,
    pub downstream_remote_address: Option<SocketAddr>,
    pub requested_server_name: Option<&'a str>,
    pub route_name: Option<&'a str>,
}

impl Entry<'_> {
    /// An entry that knows only its start.
    pub fn new(start_time: SystemTime) -> Entry<'static> {
        Entry {
            start_time,
            method: None,
            path: None,
            protocol: None,
            response_code: 0,
            response_flags: Flags::NONE,
            response_code_details: None,
            connection_termination_details: None,
            upstream_transport_failure_reason: None,
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            upstream_service_time: None,
            x_forwarded_for: None,
            user_agent: None,
            x_request_id: None,
            authority: None,
            upstream_host: None,
            upstream_cluster: None,
            upstream_local_address: None,
            downstream_local_address: None,
            downstream_remote_address: None,
            requested_server_name: None,
            route_name: None,
        }
    }
}

/// Istio's `EnvoyTextLogFormat`, without the newline.
impl Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = OffsetDateTime::from(self.start_time);
        write!(
            f,
            "[{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z] \"{} {} {}\" {} {} {} {} \"{}\" {} {} {} {} \"{}\" \"{}\" \
             \"{}\" \"{}\" \"{}\" {} {} {} {} {} {}",
            start.year(),
            u8::from(start.month()),
            start.day(),
            start.hour(),
            start.minute(),
            start.second(),
            start.millisecond(),
            Field(self.method),
            Field(self.path),
            Field(self.protocol),
            self.response_code,
            self.response_flags,
            Field(self.response_code_details),
            Field(self.connection_termination_details),
            Field(self.upstream_transport_failure_reason),
            self.bytes_received,
            self.bytes_sent,
            self.duration.as_millis(),
            OrDash(self.upstream_service_time.map(|time| time.as_millis())),
            Field(self.x_forwarded_for),
            Field(self.user_agent),
            Field(self.x_request_id),
            Field(self.authority),
            OrDash(self.upstream_host),
            Field(self.upstream_cluster),
            OrDash(self.upstream_local_address),
            OrDash(self.downstream_local_address),
            OrDash(self.downstream_remote_address),
            Field(self.requested_server_name),
            Field(self.route_name),
        )
    }
}

/// The writer thread and what it reads from.
pub struct AccessLog {
    /// Bytes that each worker may have waiting for the writer.
    most: usize,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// One worker's handle; cheap to clone.
#[derive(Clone)]
pub struct Log {
    /// `None`: the access log is off.
    sink: Option<Sink>,
}

#[derive(Clone)]
struct Sink {
    /// Bytes that may wait for the writer.
    most: usize,
    buffer: Arc<Buffer>,
    dropped: Arc<AtomicU64>,
    asleep: Arc<AtomicBool>,
    writer: Thread,
}

struct Shared {
    buffers: Mutex<Vec<Arc<Buffer>>>,
    dropped: Arc<AtomicU64>,
    stop: AtomicBool,
    /// The writer waits until it is woken, which costs the waker a system call.
    asleep: Arc<AtomicBool>,
}

#[derive(Default)]
struct Buffer(Mutex<String>);

impl AccessLog {
    /// Starts the writer; `path` is a file to append to, or stdout. Each worker may have `most` bytes waiting for it.
    pub fn start(path: Option<&Path>, most: usize) -> io::Result<AccessLog> {
        let mut out: Box<dyn Write + Send> = match path {
            Some(path) => Box::new(append(path)?),
            None => Box::new(io::stdout()),
        };
        let shared = Arc::new(Shared {
            buffers: Mutex::new(Vec::new()),
            dropped: Arc::new(AtomicU64::new(0)),
            stop: AtomicBool::new(false),
            asleep: Arc::default(),
        });
        let reader = shared.clone();
        let writer = std::thread::Builder::new().name("access-log".into()).spawn(move || {
            loop {
                // Read before the buffers, so that what was logged before the stop is still written.
                let stop = reader.stop.load(Ordering::Acquire);
                match reader.write_all(&mut *out) {
                    _ if stop => break,
                    true => std::thread::park_timeout(GATHER),
                    // Said before the last look: who writes afterwards wakes us.
                    false if !reader.asleep.swap(true, Ordering::SeqCst) => {}
                    false => std::thread::park(),
                }
            }
        })?;
        Ok(AccessLog { most, shared, writer: Some(writer) })
    }

    /// A handle with a buffer of its own, for one worker.
    pub fn handle(&self) -> Log {
        let Some(writer) = &self.writer else { return Log::off() };
        let buffer = Arc::new(Buffer::default());
        self.shared.buffers.lock().unwrap_or_else(PoisonError::into_inner).push(buffer.clone());
        let (dropped, asleep) = (self.shared.dropped.clone(), self.shared.asleep.clone());
        Log { sink: Some(Sink { most: self.most, buffer, dropped, asleep, writer: writer.thread().clone() }) }
    }

    /// The count of lines dropped so far, to be read at any time.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        self.shared.dropped.clone()
    }
}

impl Drop for AccessLog {
    /// Writes what is left.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(writer) = self.writer.take() {
            writer.thread().unpark();
            let _ = writer.join();
        }
    }
}

impl Log {
    /// A handle that logs nothing.
    pub fn off() -> Log {
        Log { sink: None }
    }

    /// Whether entries are wanted; lets the caller save itself the gathering.
    pub fn is_on(&self) -> bool {
        self.sink.is_some()
    }

    /// Logs one entry, or counts it as dropped when the writer is too far behind.
    pub fn write(&self, entry: &Entry<'_>) {
        let Some(sink) = &self.sink else { return };
        let mut buffer = sink.buffer.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.len() >= sink.most {
            sink.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = buffer.len();
        let _ = writeln!(buffer, "{entry}");
        let filling = before < sink.most / 2 && buffer.len() >= sink.most / 2;
        drop(buffer);
        if filling || before == 0 && sink.asleep.swap(false, Ordering::SeqCst) {
            sink.writer.unpark();
        }
    }
}

impl Shared {
    /// Writes all that is waiting; returns whether there was anything.
    fn write_all(&self, out: &mut dyn Write) -> bool {
        let buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut any = false;
        for buffer in buffers {
            let waiting = std::mem::take(&mut *buffer.0.lock().unwrap_or_else(PoisonError::into_inner));
            if waiting.is_empty() {
                continue;
            }
            any = true;
            if out.write_all(waiting.as_bytes()).and_then(|()| out.flush()).is_err() {
                let lines = waiting.bytes().filter(|byte| *byte == b'\n').count();
                self.dropped.fetch_add(lines as u64, Ordering::Relaxed);
            }
        }
        any
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// A text that a client or server chose: what would break the line's structure is escaped.
struct Field<'a>(Option<&'a str>);

impl Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(text) = self.0.filter(|text| !text.is_empty()) else { return f.write_str("-") };
        let mut rest = &text[..text.floor_char_boundary(MAX_FIELD)];
        while let Some(at) = rest.find(|c: char| c == '"' || c.is_control()) {
            f.write_str(&rest[..at])?;
            let mut after = rest[at..].chars();
            match after.next() {
                Some('"') => f.write_str("\\\"")?,
                Some(c) => write!(f, "\\x{:02x}", u32::from(c))?,
                None => {}
            }
            rest = after.as_str();
        }
        f.write_str(rest)
    }
}

struct OrDash<T>(Option<T>);

impl<T: Display> Display for OrDash<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry<'static> {
        Entry {
            method: Some("GET"),
            path: Some("/reviews/0"),
            protocol: Some("HTTP/1.1"),
            response_code: 200,
            response_code_details: Some("via_upstream"),
            bytes_sent: 295,
            duration: Duration::from_micros(12_900),
            upstream_service_time: Some(Duration::from_millis(11)),
            user_agent: Some("curl/8 \"x\"\n"),
            x_request_id: Some("b1f5"),
            authority: Some("reviews:9080"),
            upstream_host: Some("10.0.1.7:9080".parse().unwrap()),
            upstream_cluster: Some("outbound|9080|v1|reviews.default.svc.cluster.local"),
            upstream_local_address: Some("10.0.0.5:41000".parse().unwrap()),
            downstream_local_address: Some("10.96.0.7:9080".parse().unwrap()),
            downstream_remote_address: Some("[fd00::5]:40000".parse().unwrap()),
            route_name: Some("default"),
            ..Entry::new(SystemTime::UNIX_EPOCH + Duration::from_millis(1_785_585_600_042))
        }
    }

    #[test]
    fn istios_default_format() {
        assert_eq!(
            entry().to_string(),
            "[2026-08-01T12:00:00.042Z] \"GET /reviews/0 HTTP/1.1\" 200 - via_upstream - \"-\" 0 295 12 11 \"-\" \
             \"curl/8 \\\"x\\\"\\x0a\" \"b1f5\" \"reviews:9080\" \"10.0.1.7:9080\" \
             outbound|9080|v1|reviews.default.svc.cluster.local 10.0.0.5:41000 10.96.0.7:9080 [fd00::5]:40000 - default"
        );
    }

    #[test]
    fn a_tcp_connection_has_no_request() {
        let entry = Entry {
            response_flags: Flags::UF | Flags::URX,
            upstream_transport_failure_reason: Some("connection refused"),
            bytes_received: 5,
            ..Entry::new(SystemTime::UNIX_EPOCH)
        };
        assert_eq!(
            entry.to_string(),
            "[1970-01-01T00:00:00.000Z] \"- - -\" 0 UF,URX - - \"connection refused\" 5 0 0 - \"-\" \"-\" \"-\" \"-\" \
             \"-\" - - - - - -"
        );
    }

    #[test]
    fn writes_every_line_before_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = AccessLog::start(Some(&path), 1 << 20).unwrap();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let handle = log.handle();
                std::thread::spawn(move || (0..100).for_each(|_| handle.write(&entry())))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let dropped = log.dropped();
        drop(log);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 400);
        assert_eq!(dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn lines_come_without_waiting_for_more_or_for_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = AccessLog::start(Some(&path), 1 << 20).unwrap();
        let handle = log.handle();
        // Among them those that meet a writer that is just falling asleep.
        for count in 1..=30_u64 {
            std::thread::sleep(GATHER.mul_f64(0.1 * (count % 20) as f64));
            handle.write(&entry());
            let written = || std::fs::read_to_string(&path).unwrap().lines().count() as u64;
            let waited = std::time::Instant::now();
            while written() < count {
                assert!(waited.elapsed() < Duration::from_secs(10), "line {count} is not there");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn a_full_buffer_drops_and_counts() {
        let (buffer, dropped, asleep) = (Arc::default(), Arc::default(), Arc::default());
        let sink = Sink { most: 5000, buffer, dropped, asleep, writer: std::thread::current() };
        let log = Log { sink: Some(sink.clone()) };
        sink.buffer.0.lock().unwrap().push_str(&"x".repeat(5000));
        log.write(&entry());
        assert_eq!(sink.dropped.load(Ordering::Relaxed), 1);
        assert_eq!(sink.buffer.0.lock().unwrap().len(), 5000);
    }
}
