//! One stream, and every line knows its tenant.
//!
//! Two threads and what is between them:
//!
//! ```text
//! pipes ─▶ reader ─▶ canonical lines ─▶ queue per tenant ─▶ writer ─▶ sink
//!          layer  ─▶       │
//!  (supervisor's own)      ├─▶ memory per tenant ─▶ `logs`, last words
//!                          └─▶ followers         ─▶ `logs -f`
//! ```
//!
//! - The *reader* waits for all pipes at once and reads one block of each that has something, in turn. It never waits for
//!   anything else, so a broker's pipe is always read.
//! - A *canonical line* is one flat JSON object with `tenant` and `pid` as we know them. What a broker writes as JSON is
//!   looked at in one pass and copied; what is not JSON is wrapped as the message of a `WARN` of target `stderr`.
//! - Every queue is bounded. When a tenant's is full, because the sink is slower than the tenant is loud, new lines of that
//!   tenant are lost and counted until half is written; then `dropped N lines` stands where they would have been.
//! - The *writer* takes one chunk of each tenant in turn, and only it ever waits for the sink. journald's limit is our
//!   unit's, not a tenant's, so the writer stays below it: what is too much is lost here, where it is known whose it is.
//!
//! Neither thread wakes up while nothing is logged.

mod encode;
mod filter;
mod flat;
mod follow;
mod journal;
mod layer;
mod line;
mod output;
mod queue;
mod reader;
mod tail;
#[cfg(test)]
mod tests;
mod text;
mod writer;

pub(crate) use filter::{Filter, Level};
pub(crate) use follow::{Followed, Subscription};
pub(crate) use layer::HubLayer;
pub(crate) use output::{Format, Output};
pub(crate) use text::TextEncoder;

use crate::handover::Carry;
use brokkr_tenant::TenantName;
use bytes::Bytes;
use follow::Follower;
use line::Origin;
use queue::Shared;
use reader::{Command, Control, Reader};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use tokio::sync::oneshot;

/// How many lines of an instance that ended are its last words.
const LAST_WORDS: usize = 20;

/// The merged log of all tenants and of the supervisor itself. Cloning it gives another handle to the same.
#[derive(Clone)]
pub(crate) struct Hub {
    shared: Arc<Shared>,
    control: Arc<Control>,
}

impl Hub {
    /// Starts the two threads.
    ///
    /// # Errors
    /// When the kernel refuses a descriptor or a thread.
    pub(crate) fn start(output: Output) -> io::Result<Self> {
        let (encoder, sink) = output.open()?;
        let shared = Arc::new(Shared::new(encoder));
        let control = Arc::new(Control::new()?);
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

    /// Reads `pipe`, the standard output and error of process `pid`, until its last writer has gone. It stays blocking.
    /// Where it was read before, `carry` is the beginning of the line it was left in.
    ///
    /// # Errors
    /// When it is nothing that can be waited for, or the kernel is out of watches.
    pub(crate) fn attach(
        &self,
        tenant: TenantName,
        pid: i32,
        pipe: impl Into<Arc<OwnedFd>>,
        carry: Carry,
    ) -> io::Result<()> {
        let name = Some(tenant);
        let origin = Arc::new(Origin::new(name.clone(), pid));
        self.shared.pipe_opened(&name);
        self.control
            .attach(origin, pipe.into(), carry)
            .inspect_err(|_| self.shared.pipe_closed(&name))
    }

    /// Ceases to read every pipe, and says by pid in what line each was left: another supervisor reads on.
    pub(crate) async fn release(&self) -> BTreeMap<i32, Carry> {
        let (done, released) = oneshot::channel();
        self.control.tell(Command::Release(done));
        // An error means that the reader has ended, and holds nothing.
        released.await.unwrap_or_default()
    }

    /// Waits until the sink has everything that was read so far; false when it does not take it by `deadline`.
    pub(crate) fn flush(&self, deadline: Instant) -> bool {
        self.shared.wait_flushed(deadline)
    }

    /// The last lines of a process that has ended. Everything it wrote is read first, a last line without line feed
    /// included, also where a child of its own still holds the pipe. Empty when it wrote nothing.
    pub(crate) async fn last_words(&self, tenant: &TenantName, pid: i32) -> Vec<String> {
        let name = Some(tenant.clone());
        let (done, drained) = oneshot::channel();
        self.control.tell(Command::Drain {
            origin: Origin::new(name.clone(), pid),
            done,
        });
        // An error means that the reader has ended, and it read everything before.
        let _ = drained.await;
        let lines = self.shared.last_words(&name, pid, LAST_WORDS);
        lines.iter().map(|line| text::brief(line)).collect()
    }

    /// Forgets the lines in memory of a tenant that has gone.
    pub(crate) fn forget(&self, tenant: &TenantName) {
        self.shared.forget(&Some(tenant.clone()));
    }

    /// The last `lines` lines in memory that `filter` wants, as JSON with their line feeds, oldest first. No tenant's lines
    /// push out all others'.
    pub(crate) fn tail(&self, filter: &Filter, lines: usize) -> Vec<Bytes> {
        self.shared.tail(filter, lines, None)
    }

    /// The same, and a subscription to all that comes after these, with none missed between.
    pub(crate) fn follow(&self, filter: Filter, lines: usize) -> (Vec<Bytes>, Subscription) {
        let follower = Arc::new(Follower::new(filter.clone()));
        let tail = self
            .shared
            .tail(&filter, lines, Some(Arc::clone(&follower)));
        (tail, Subscription(follower))
    }

    /// How many lines each tenant has lost on the way to the sink; `None` are the supervisor's own. Only those that lost any.
    pub(crate) fn dropped(&self) -> Vec<(Option<TenantName>, u64)> {
        self.shared.dropped()
    }

    /// A layer for the supervisor's own events. It never waits for the sink.
    pub(crate) fn layer(&self) -> HubLayer {
        HubLayer::new(Arc::clone(&self.shared))
    }

    /// Reads what is in the pipes, writes everything and ends both threads. False when not all was written by
    /// `deadline`, because the sink did not take it.
    pub(crate) fn flush_and_stop(&self, deadline: Instant) -> bool {
        self.control.tell(Command::Stop);
        self.shared.wait_written(deadline)
    }
}

/// One canonical line of the supervisor's own, about no tenant, that is in nobody's log: for those who read here and now.
pub(crate) fn notice(message: &str) -> Bytes {
    let origin = Origin::supervisor(None);
    let mut line = Vec::new();
    origin.write(&mut line, "WARN", "brokkr_supervisor::logs", message);
    line.into()
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}
