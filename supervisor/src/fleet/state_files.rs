//! Stores the admitted list and the list of stopped tenants, one small file each, because both must survive a restart.

use crate::atomic_file::replace;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Delay before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A text stored in a file. A task writes it off the event loop, and writes only the latest text.
#[derive(Debug)]
pub(crate) struct StateFile {
    latest: watch::Sender<String>,
    writer: JoinHandle<()>,
}

impl StateFile {
    /// Starts the writer of `path`, which now holds `text`.
    pub(crate) fn new(path: PathBuf, text: String) -> Self {
        let (latest, mut changes) = watch::channel(text);
        let writer = tokio::spawn(async move {
            // A change during a write is seen in the next turn. The last text is written even after the sender is
            // dropped, because `changed` reports an unseen value before it reports the end.
            let mut failed = false;
            loop {
                if failed {
                    // Wait before the retry, but not if there is a newer text or the sender is dropped.
                    let newer = tokio::time::timeout(RETRY, changes.changed()).await;
                    if matches!(newer, Ok(Err(_))) {
                        return;
                    }
                } else if changes.changed().await.is_err() {
                    return;
                }
                let (to, text) = (path.clone(), changes.borrow_and_update().clone());
                let write = tokio::task::spawn_blocking(move || replace(&to, text.as_bytes()));
                let outcome = write
                    .await
                    .unwrap_or_else(|panic| Err(io::Error::other(panic)));
                if let Err(error) = &outcome
                    && !failed
                {
                    tracing::error!(path = %path.display(), %error, "cannot be written: a restart would not know of the last change; it is tried again");
                }
                failed = outcome.is_err();
            }
        });
        Self { latest, writer }
    }

    /// Sets the text to write, if it differs.
    pub(crate) fn set(&self, text: String) {
        self.latest.send_if_modified(|old| {
            let changed = *old != text;
            *old = text;
            changed
        });
    }

    /// Waits until the last text is on disk.
    pub(crate) async fn finish(self) {
        drop(self.latest);
        let _ = self.writer.await;
    }
}
