//! The probers, one per PostgreSQL server: they read its limits, count its connections, and check that it is up.
//!
//! The probers run in one event loop on the thread `servers`, so that a slow TLS handshake or a hung server does not
//! delay the fleet. The fleet names the wanted URLs; the thread publishes a complete [`ServersView`] after each change.
//!
//! *Knock*: asks an address for one byte, without a role or a database, before any login and whenever a login is
//! silent. The result holds for every URL of the address; the result of a login holds for its URL only.
//!
//! *Look*: logs into each URL twice at once (a pooler that gives both the same backend is refused), and reads
//! `system_identifier` and postmaster start time. URLs that agree in both are one server. A look happens for new URLs,
//! on [`Servers::refresh`], and when a server comes back, because another server may answer there.
//!
//! *Probe*: runs one statement a second on one open connection per server, with a deadline of our own, because a
//! stopped server (SIGSTOP) or a network that drops packets triggers no timeout of its own. The connection uses some
//! tenant's URL, so a failed probe only puts the server in doubt: its addresses are knocked at and its URLs looked at,
//! and the server is down when none answers. A server that is down gets a knock about every quarter of a second.

mod coordinator;
mod identify;
mod knock;
mod no_tls;
mod probe;
pub(crate) mod provision;
mod schemas;
mod session;
#[cfg(test)]
mod tests;
mod view;

pub use schemas::{SchemaProblems, schema_problems};
pub use view::{Endpoint, ServerView, ServersView};

use brokkr_tenant::{DatabaseUrl, SchemaName};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};

/// The pause between two tries to make the event loop.
const AGAIN: Duration = Duration::from_secs(1);

/// The URLs to look at. For each, the schemas with a login role of their own in its database: sessions of these roles
/// are this supervisor's.
pub type Wanted = BTreeMap<DatabaseUrl, BTreeSet<SchemaName>>;

type Wants = watch::Receiver<Wanted>;

/// Makes an event loop for this thread.
pub(crate) fn event_loop() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Makes the event loop, with retries; `None` once all handles have been dropped. Blocks.
fn made_at_last(wants: &Wants, mut make: impl FnMut() -> io::Result<Runtime>) -> Option<Runtime> {
    let mut said = false;
    // An error means that the last handle has been dropped.
    while wants.has_changed().is_ok() {
        match make() {
            Ok(runtime) => return Some(runtime),
            Err(error) if !std::mem::replace(&mut said, true) => {
                tracing::error!("the probers cannot start: {error}; it is tried again");
            }
            Err(_) => {}
        }
        std::thread::sleep(AGAIN);
    }
    None
}

/// A handle to the thread of probers. The thread ends, and its connections close, when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Servers {
    wanted: Arc<watch::Sender<Wanted>>,
    refreshes: mpsc::Sender<oneshot::Sender<()>>,
    view: watch::Receiver<Arc<ServersView>>,
    counts: Arc<watch::Sender<u64>>,
}

impl Servers {
    /// Starts the thread. `prefix` begins the `application_name` of every program of this machine, and is followed by
    /// the tenant's name. All other connections are foreign.
    ///
    /// # Errors
    /// When the thread or its event loop cannot be made.
    pub fn start(prefix: String) -> io::Result<Self> {
        let runtime = event_loop()?;
        Self::begin(prefix, move |_| Some(runtime))
    }

    /// Starts the thread like `start`, but retries until the kernel can give an event loop. Until then no server is
    /// known.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start_patiently(prefix: String) -> io::Result<Self> {
        Self::begin(prefix, |wants| made_at_last(wants, event_loop))
    }

    /// Starts the thread. `make` returns its event loop, or `None` once all handles have been dropped.
    fn begin(
        prefix: String,
        make: impl FnOnce(&Wants) -> Option<Runtime> + Send + 'static,
    ) -> io::Result<Self> {
        let (wanted, wants) = watch::channel(Wanted::new());
        // When the queue is full, the next reload waits for a place.
        let (refreshes, requests) = mpsc::channel(16);
        let (counts, soon) = watch::channel(0);
        let (publish, view) = watch::channel(Arc::new(ServersView::default()));
        std::thread::Builder::new()
            .name("servers".to_owned())
            .spawn(move || {
                let Some(runtime) = make(&wants) else {
                    return;
                };
                let work = coordinator::run(wants, requests, publish, soon, prefix);
                tokio::task::LocalSet::new().block_on(&runtime, work);
                // Does not wait for a running name resolution, which may take long.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            wanted: Arc::new(wanted),
            refreshes,
            view,
            counts: Arc::new(counts),
        })
    }

    /// Sets the wanted URLs. New URLs are tried at once, and unnamed URLs are forgotten.
    pub fn want(&self, urls: Wanted) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != urls;
            *wanted = urls;
            changed
        });
    }

    /// Returns the latest view, with a signal for each newer one.
    pub fn view(&self) -> watch::Receiver<Arc<ServersView>> {
        self.view.clone()
    }

    /// Requests a count of connections at once instead of within a second; the next view holds it.
    pub fn count_soon(&self) {
        self.counts.send_modify(|asked| *asked += 1);
    }

    /// Tries every wanted URL again, reads all figures again, and returns once the view holds them. Servers that do not
    /// answer cost a few seconds at most.
    pub async fn refresh(&self) {
        let (done, wait) = oneshot::channel();
        if self.refreshes.send(done).await.is_ok() {
            // An error means that the thread has ended, so there is no result to wait for.
            let _ = wait.await;
        }
    }
}
