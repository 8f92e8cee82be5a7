//! SIGINT and SIGTERM while a command waits for an order to be carried out: the first one ends the waiting and says that
//! the order stands, a second one ends the process at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::io::AsyncReadExt;

/// Exit status of a command that was interrupted, as shells have it for SIGINT.
pub(super) const EXIT_INTERRUPTED: u8 = 130;

/// Waits for both signals from the moment it is made.
#[derive(Debug)]
pub(super) struct Interrupt {
    /// Every signal is a byte here.
    arrived: tokio::net::UnixStream,
}

impl Interrupt {
    /// Takes both signals over, for the rest of this process's life. Belongs to the event loop it is made in.
    ///
    /// # Errors
    /// When the kernel refuses a handler or a descriptor.
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let told = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Actions run in this order: the first signal finds the flag unset.
            let status = i32::from(EXIT_INTERRUPTED);
            flag::register_conditional_shutdown(signal, status, Arc::clone(&told))?;
            flag::register(signal, Arc::clone(&told))?;
            low_level::pipe::register(signal, writer.try_clone()?)?;
        }
        Ok(Self {
            arrived: tokio::net::UnixStream::from_std(reader)?,
        })
    }

    /// Waits for the first signal. Cancel-safe: a byte is taken only when this returns.
    pub(super) async fn wait(&mut self) {
        // The handlers hold the other end as long as this process lives, so that neither end nor error comes.
        if self.arrived.read_u8().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
