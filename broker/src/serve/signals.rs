//! SIGTERM and SIGINT, which mean the same: the first one drains, a second one ends the process at once.
//!
//! The second one takes effect in the signal handler, so that it works while the event loop does not turn.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use tokio::io::AsyncReadExt;

/// A process that was told twice has cut what was in flight: that is no success.
const TOLD_TWICE: i32 = 1;

/// The broker's signals, from the moment this is made.
#[derive(Debug)]
pub(super) struct Signals {
    /// Every signal is a byte here.
    arrived: tokio::net::UnixStream,
}

impl Signals {
    /// Takes both signals over.
    ///
    /// # Errors
    /// When the kernel refuses a handler or a descriptor.
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let told = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // Actions run in this order: the first signal finds the flag unset.
            flag::register_conditional_shutdown(signal, TOLD_TWICE, Arc::clone(&told))?;
            flag::register(signal, Arc::clone(&told))?;
            low_level::pipe::register(signal, writer.try_clone()?)?;
        }
        Ok(Self {
            arrived: tokio::net::UnixStream::from_std(reader)?,
        })
    }

    /// Waits for the first signal. Cancel-safe: a byte is taken only when this returns.
    pub(super) async fn next(&mut self) {
        // The handlers hold the other end as long as this process lives, so that neither end nor error comes.
        if self.arrived.read_u8().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
