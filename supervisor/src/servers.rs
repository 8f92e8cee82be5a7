//! One prober per PostgreSQL server: what it has to give, who uses it, whether it is there.
//!
//! A thread of its own, `servers`, runs one small event loop, so a slow TLS handshake or a hung server costs
//! the fleet nothing. The fleet says which URLs it wants; the thread publishes a [`ServersView`], always
//! whole and always the latest.
//!
//! *Knock*: an address is asked for one byte, without a role or a database, before anything else and whenever a login is
//! silent. What that says is true for every URL of the address; what a login says is true for its URL alone.
//!
//! *Look*: each URL is logged into, twice at once (a pooler that gives both the same backend is
//! refused), and asked in one pass which server it is: `system_identifier` and postmaster start time. URLs
//! that agree in both are one server. This happens when URLs are new, on [`Servers::refresh`], and when a
//! server comes back, because another one may be answering there.
//!
//! *Probe*: one kept connection per server, one statement a second, bounded by a deadline of ours: a
//! server that is stopped (SIGSTOP), or a network that swallows packets, answers no timeout of its own.
//! The connection is some tenant's, so when it fails the server is in doubt and no more: its addresses are knocked at and
//! its URLs looked at, and it is down when none of them is answered. Then it is knocked at every quarter of a second or so.

mod coordinator;
mod identify;
mod knock;
mod plain;
mod probe;
mod schemas;
mod session;
#[cfg(test)]
mod tests;
mod view;

pub use schemas::{SchemaProblems, schema_problems};
pub use view::{Endpoint, Server, ServersView};

use brokkr_tenant::DatabaseUrl;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};

/// Between two tries to make the event loop.
const AGAIN: Duration = Duration::from_secs(1);

type Wants = watch::Receiver<BTreeSet<DatabaseUrl>>;

fn event_loop() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Makes it, as often as it takes; `None` once nobody wants anything any more. Blocks.
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

/// A handle to the thread of probers. The thread ends, and its connections close, when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Servers {
    wanted: Arc<watch::Sender<BTreeSet<DatabaseUrl>>>,
    refreshes: mpsc::Sender<oneshot::Sender<()>>,
    view: watch::Receiver<Arc<ServersView>>,
    counts: Arc<watch::Sender<u64>>,
}

impl Servers {
    /// Starts the thread. `prefix` is what begins the `application_name` of every program of this machine:
    /// what does not begin with it is not ours. The rest of such a name is the tenant's.
    ///
    /// # Errors
    /// When the thread or its event loop cannot be made.
    pub fn start(prefix: String) -> io::Result<Self> {
        let runtime = event_loop()?;
        Self::begin(prefix, move |_| Some(runtime))
    }

    /// The same; its event loop is made as soon as the kernel has what it takes, and nothing is known of any server until
    /// then.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start_patiently(prefix: String) -> io::Result<Self> {
        Self::begin(prefix, |wants| made_at_last(wants, event_loop))
    }

    /// `make`: the thread's event loop, or `None` when it is no longer wanted.
    fn begin(
        prefix: String,
        make: impl FnOnce(&Wants) -> Option<Runtime> + Send + 'static,
    ) -> io::Result<Self> {
        let (wanted, wants) = watch::channel(BTreeSet::new());
        // Full when this many reloads wait at once: the next one waits for its place.
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
                // A name that is being resolved may take long; nobody waits for it any more.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            wanted: Arc::new(wanted),
            refreshes,
            view,
            counts: Arc::new(counts),
        })
    }

    /// Says which URLs matter from now on. New ones are tried at once, those no longer named are forgotten.
    pub fn want(&self, urls: BTreeSet<DatabaseUrl>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != urls;
            *wanted = urls;
            changed
        });
    }

    /// The latest view, and to be woken by each newer one.
    pub fn view(&self) -> watch::Receiver<Arc<ServersView>> {
        self.view.clone()
    }

    /// Has connections counted at once instead of within a second; the view will have it.
    pub fn count_soon(&self) {
        self.counts.send_modify(|asked| *asked += 1);
    }

    /// Tries every wanted URL again, reads every figure again, and returns when the view has them. Takes a
    /// few seconds at most for servers that do not answer.
    pub async fn refresh(&self) {
        let (done, wait) = oneshot::channel();
        if self.refreshes.send(done).await.is_ok() {
            // An error means that the thread has ended: there is nothing to wait for.
            let _ = wait.await;
        }
    }
}
