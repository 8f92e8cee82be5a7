//! What must survive a restart: the admitted list and the tenants stopped by the operator, one small file each.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How soon a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A text that is kept in a file, written off the event loop; only the latest matters.
#[derive(Debug)]
pub(crate) struct Kept {
    latest: watch::Sender<String>,
    writer: JoinHandle<()>,
}

impl Kept {
    /// Keeps `path`, which now holds `text`.
    pub(crate) fn new(path: PathBuf, text: String) -> Self {
        let (latest, mut changes) = watch::channel(text);
        let writer = tokio::spawn(async move {
            // A change made while one is written is seen by the next turn; the last one is written after the sender
            // has gone too, for `changed` reports a value not seen yet before it reports the end.
            let mut failed = false;
            loop {
                if failed {
                    // Retried until the disk takes it; a newer text, or the end, is not waited out.
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

    /// Takes a new text, if it is new.
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

/// Replaces a file so that after a crash the old or the new content is there, whole.
///
/// # Errors
/// What the file system said; the old content stays then.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(folder)?.sync_all()
}

/// The text of a file that may not be there yet.
///
/// # Errors
/// When it is there and cannot be read.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}
