//! Handles SIGINT and SIGTERM while a command waits for an order: the first signal ends the wait and the order stands,
//! the second ends the process at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::io::AsyncReadExt;

/// Exit status of an interrupted command, as shells use it for SIGINT.
pub(super) const EXIT_INTERRUPTED: u8 = 130;

/// Receiver of both signals, from its creation on.
#[derive(Debug)]
pub(super) struct Interrupt {
    /// Stream that receives a byte for every signal.
    arrived: tokio::net::UnixStream,
}

impl Interrupt {
    /// Takes over both signals for the rest of this process's life. Must be used in the event loop that creates it.
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let told = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Handlers run in this order, so the first signal finds the flag unset.
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
        // The handlers hold the other end for the life of this process, so the read never ends or fails.
        if self.arrived.read_u8().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
