//! Tells when the directory may have changed.
//!
//! In: file system events. Out: one notice for a burst of them. A lost or unknown event only makes a notice too many; a slow
//! timer makes up for events that never came.

use std::path::Path;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

/// Quiet time after which a burst of events counts as over.
pub const DEBOUNCE: Duration = Duration::from_millis(100);
/// Longest time that a burst can hold a notice back.
pub const DEBOUNCE_LIMIT: Duration = Duration::from_secs(1);
/// A notice comes at least this often, in case the file system sends no events (some network file systems).
const RESCAN: Duration = Duration::from_secs(30);

/// Notices; dropping it ends the watch.
pub struct Changes {
    events: mpsc::Receiver<()>,
    _watcher: Option<notify::RecommendedWatcher>,
}

/// Watches a directory. Without a working watch the timer alone gives notices.
pub fn watch(dir: &Path) -> Changes {
    // One waiting event says as much as a thousand.
    let (sender, events) = mpsc::channel(1);
    let handler = move |event: notify::Result<Event>| {
        if event.as_ref().map_or(true, counts) {
            let _ = sender.try_send(());
        }
    };
    let watcher = notify::recommended_watcher(handler)
        .and_then(|mut watcher| watcher.watch(dir, RecursiveMode::Recursive).map(|()| watcher));
    let watcher = watcher
        .inspect_err(|error| {
            let seconds = RESCAN.as_secs();
            tracing::warn!(directory = %dir.display(), %error, "cannot watch the configuration directory; it is read every {seconds} s");
        })
        .ok();
    Changes { events, _watcher: watcher }
}

/// Reading the files makes events too; they must not cause the next reading.
fn counts(event: &Event) -> bool {
    !matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
}

impl Changes {
    /// Waits until something may have changed and the burst is over.
    pub async fn next(&mut self) {
        match timeout(RESCAN, self.events.recv()).await {
            Ok(Some(())) => {}
            Ok(None) => return tokio::time::sleep(RESCAN).await,
            Err(_) => return,
        }
        let limit = Instant::now() + DEBOUNCE_LIMIT;
        while let Ok(Some(())) = timeout_at(limit.min(Instant::now() + DEBOUNCE), self.events.recv()).await {}
    }
}
