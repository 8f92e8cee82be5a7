//! SIGTERM and SIGINT, with the same meaning: the first signal drains, the second ends the process at once.
//!
//! The second signal takes effect in the signal handler, so that it works even while the event loop does not turn.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use tokio::io::AsyncReadExt;

/// The exit code after a second signal, which is a failure because it cut requests.
const TOLD_TWICE: i32 = 1;

/// The broker's signals, handled from this value's creation on.
#[derive(Debug)]
pub(super) struct Signals {
    /// The socket that receives a byte per signal.
    arrived: tokio::net::UnixStream,
}

impl Signals {
    /// Installs the handlers of both signals.
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let told = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // Actions run in this order, so the first signal finds the flag unset.
            flag::register_conditional_shutdown(signal, TOLD_TWICE, Arc::clone(&told))?;
            flag::register(signal, Arc::clone(&told))?;
            low_level::pipe::register(signal, writer.try_clone()?)?;
        }
        Ok(Self {
            arrived: tokio::net::UnixStream::from_std(reader)?,
        })
    }

    /// Waits for the first signal. Cancel-safe, because a byte is taken only when this returns.
    pub(super) async fn next(&mut self) {
        // The handlers hold the other end as long as this process lives, so neither end of file nor error comes.
        if self.arrived.read_u8().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
