//! SIGHUP, which makes a broker without a supervisor reload its configuration.

use std::io;
use std::os::unix::net::UnixStream;

use signal_hook::consts::SIGHUP;
use signal_hook::low_level;
use tokio::io::AsyncReadExt;

/// The broker's SIGHUPs, handled from this value's creation on.
#[derive(Debug)]
pub struct Hangups {
    /// The socket that receives a byte per signal.
    arrived: tokio::net::UnixStream,
}

impl Hangups {
    /// Installs the handler.
    ///
    /// # Errors
    /// When the process lacks descriptors.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        low_level::pipe::register(SIGHUP, writer)?;
        Ok(Self {
            arrived: tokio::net::UnixStream::from_std(reader)?,
        })
    }

    /// Waits for a signal, and takes all that have come. Cancel-safe, because bytes are taken only when this returns.
    pub(super) async fn next(&mut self) {
        // The handler holds the other end as long as this process lives, so neither end of file nor error comes.
        if !matches!(self.arrived.read(&mut [0; 64]).await, Ok(1..)) {
            std::future::pending::<()>().await;
        }
    }
}
