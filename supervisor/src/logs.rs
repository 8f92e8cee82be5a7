//! The merged log of all tenants, with the tenant in every line.
//!
//! Two threads share the work:
//!
//! ```text
//! pipes ─▶ reader ─▶ canonical lines ─▶ queue per tenant ─▶ writer ─▶ sink
//!          layer  ─▶       │
//!  (supervisor's own)      ├─▶ memory per tenant ─▶ `logs`, last words
//!                          └─▶ followers         ─▶ `logs -f`
//! ```
//!
//! - The *reader* waits for all pipes at once and reads one block of each pipe with data, in turn. It never waits for
//!   anything else, so a broker's pipe is always read.
//! - A *canonical line* is one flat JSON object with the `tenant` and `pid` that the supervisor knows. A broker's JSON
//!   is checked in one pass and copied; any other text becomes the message of a `WARN` with target `stderr`.
//! - Every queue is bounded. When a tenant's queue is full, because the sink is slower than the tenant, new lines of
//!   that tenant are dropped and counted until half of the queue is written. A line `dropped N lines` then marks the
//!   gap.
//! - The *writer* takes one chunk of each tenant in turn, and is the only thread that waits for the sink. journald
//!   limits the whole unit and not a tenant, so the writer stays below that limit: excess lines are dropped here, where
//!   their tenant is known.
//!
//! Neither thread wakes up while nothing is logged.

mod encode;
mod filter;
mod follow;
mod journal;
mod json_scan;
mod line_format;
mod output;
mod queue;
mod reader;
mod record;
mod tail;
#[cfg(test)]
mod tests;
mod text;
mod tracing_layer;
mod writer;

pub(crate) use filter::{Filter, Level};
pub(crate) use follow::{Followed, Subscription};
pub(crate) use line_format::check_canonical_lines;
pub(crate) use output::{Output, OutputFormat};
pub(crate) use text::TextEncoder;
pub(crate) use tracing_layer::HubLayer;

use crate::handover::PartialLine;
use brokkr_tenant::TenantName;
use bytes::Bytes;
use follow::Follower;
use line_format::LineOrigin;
use queue::Shared;
use reader::{Reader, ReaderCommand, ReaderHandle};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use tokio::sync::oneshot;

/// The number of lines that are kept as the last words of an ended instance.
const LAST_WORDS: usize = 20;

/// A handle to the merged log of all tenants and of the supervisor itself. Clones share the same log.
#[derive(Clone)]
pub(crate) struct Hub {
    shared: Arc<Shared>,
    control: Arc<ReaderHandle>,
}

impl Hub {
    /// Starts the two threads.
    pub(crate) fn start(output: Output) -> io::Result<Self> {
        let (encoder, sink) = output.open()?;
        let shared = Arc::new(Shared::new(encoder));
        let control = Arc::new(ReaderHandle::new()?);
        let reader = Reader::new(Arc::clone(&control), Arc::clone(&shared));
        thread::Builder::new()
            .name("log-reader".into())
            .spawn(move || reader.run())?;
        let queue = Arc::clone(&shared);
        thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer::run(&queue, sink))?;
        Ok(Self { shared, control })
    }

    /// Reads `pipe`, the standard output and error of process `pid`, until its last writer closes it. The pipe stays in
    /// blocking mode. `partial_line` is the beginning of the line at which an earlier supervisor stopped reading.
    ///
    /// # Errors
    /// When `pipe` cannot be polled, or the kernel is out of watches.
    pub(crate) fn attach(
        &self,
        tenant: TenantName,
        pid: i32,
        pipe: impl Into<Arc<OwnedFd>>,
        partial_line: PartialLine,
    ) -> io::Result<()> {
        let name = Some(tenant);
        let origin = Arc::new(LineOrigin::new(name.clone(), pid));
        self.shared.pipe_opened(&name);
        self.control
            .attach(origin, pipe.into(), partial_line)
            .inspect_err(|_| self.shared.pipe_closed(&name))
    }

    /// Stops reading all pipes and returns, by pid, the unfinished line of each, so that another supervisor can
    /// continue.
    pub(crate) async fn release(&self) -> BTreeMap<i32, PartialLine> {
        let (done, released) = oneshot::channel();
        self.control.tell(ReaderCommand::Release(done));
        // An error means that the reader has ended and holds no lines.
        released.await.unwrap_or_default()
    }

    /// Waits until the sink has all lines read so far; returns false when the sink does not take them by `deadline`.
    pub(crate) fn flush(&self, deadline: Instant) -> bool {
        self.shared.wait_flushed(deadline)
    }

    /// Returns the last lines of a process that has ended; empty if it wrote none.
    ///
    /// Reads all of the process's output first, including a last line without line feed, even where a child of the
    /// process still holds the pipe.
    pub(crate) async fn last_words(&self, tenant: &TenantName, pid: i32) -> Vec<String> {
        let name = Some(tenant.clone());
        let (done, drained) = oneshot::channel();
        self.control.tell(ReaderCommand::Drain {
            origin: LineOrigin::new(name.clone(), pid),
            done,
        });
        // An error means that the reader has ended, after reading all output.
        let _ = drained.await;
        let lines = self.shared.last_words(&name, pid, LAST_WORDS);
        lines.iter().map(|line| text::brief(line)).collect()
    }

    /// Forgets the lines in memory of a removed tenant.
    pub(crate) fn forget(&self, tenant: &TenantName) {
        self.shared.forget(&Some(tenant.clone()));
    }

    /// Returns the last `lines` lines in memory that match `filter`, as JSON with line feeds, oldest first. A noisy
    /// tenant does not displace all lines of others.
    pub(crate) fn tail(&self, filter: &Filter, lines: usize) -> Vec<Bytes> {
        self.shared.tail(filter, lines, None)
    }

    /// Returns the same lines, and a subscription to all later lines without a gap.
    pub(crate) fn follow(&self, filter: Filter, lines: usize) -> (Vec<Bytes>, Subscription) {
        let follower = Arc::new(Follower::new(filter.clone()));
        let tail = self
            .shared
            .tail(&filter, lines, Some(Arc::clone(&follower)));
        (tail, Subscription(follower))
    }

    /// Returns the number of dropped lines per tenant, without zeros; `None` stands for the supervisor's own lines.
    pub(crate) fn dropped(&self) -> Vec<(Option<TenantName>, u64)> {
        self.shared.dropped()
    }

    /// Returns a layer for the supervisor's own events. The layer never waits for the sink.
    pub(crate) fn layer(&self) -> HubLayer {
        HubLayer::new(Arc::clone(&self.shared))
    }

    /// Reads the remaining output of the pipes, writes all lines and ends both threads. Returns false when the sink did
    /// not take all lines by `deadline`.
    pub(crate) fn flush_and_stop(&self, deadline: Instant) -> bool {
        self.control.tell(ReaderCommand::Stop);
        self.shared.wait_written(deadline)
    }
}

/// Returns a canonical line about no tenant that only the present readers see and no log keeps.
pub(crate) fn notice(message: &str) -> Bytes {
    let origin = LineOrigin::supervisor(None);
    let mut line = Vec::new();
    origin.write(&mut line, "WARN", "brokkr_supervisor::logs", message);
    line.into()
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}
