//! Receives signals without losing any, even while one supervisor becomes the next.
//!
//! The signals are blocked in every thread, and pending signals are read from a descriptor (signalfd). An unread signal
//! stays pending in the kernel for the next reader, even across the execution of another program. The handlers of
//! signal-hook, which the broker and the other commands use, cannot do this, because they note the signal in memory,
//! which is lost when the next supervisor is executed. SIGCHLD has a handler, because the next supervisor looks at
//! every child anyway.

use crate::sys;
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::SignalFd;
use signal_hook::consts::SIGCHLD;
use signal_hook::{SigId, low_level};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;

/// Pause after an error of the descriptor; otherwise the retry would become a busy loop.
const PAUSE: Duration = Duration::from_secs(1);

fn held_back() -> SigSet {
    let all = [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR2,
    ];
    all.into_iter().collect()
}

/// Blocks the signals that [`Signals`] reads, in this thread and in all threads it starts. Must be called before a
/// second thread starts.
pub(super) fn hold_back() -> io::Result<()> {
    Ok(held_back().thread_block()?)
}

/// Request that a signal stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalRequest {
    /// End the process; `true` for the first such signal.
    End(Signal, bool),
    /// Read every file again.
    HangUp,
    /// Execute the program on disk.
    Succeed,
    /// Look for children that have ended.
    Child,
}

/// The first stop signal, noted at the moment it is read.
#[derive(Debug, Clone, Default)]
pub(super) struct ShutdownKind(Arc<AtomicI32>);

impl ShutdownKind {
    /// Notes a stop signal; returns true when it is the first.
    fn note(&self, signal: Signal) -> bool {
        let first = self
            .0
            .compare_exchange(0, signal as i32, Ordering::Relaxed, Ordering::Relaxed);
        first.is_ok()
    }

    /// Sends the noted signal again, so that it is pending for the next reader in this program or in an executed
    /// program.
    pub(super) fn pass_on(&self) {
        if let Ok(signal) = Signal::try_from(self.0.swap(0, Ordering::Relaxed)) {
            // The signal goes to this thread, which also executes the next program. It fails only for a bad argument.
            let _ = raise(signal);
        }
    }
}

/// Receiver of every signal that the daemon heeds.
#[derive(Debug)]
pub(super) struct Signals {
    waiting: AsyncFd<SignalFd>,
    child: ChildEnded,
}

/// Receiver of SIGCHLD; dropping it removes the handler.
#[derive(Debug)]
struct ChildEnded {
    /// Stream that receives a byte for every signal.
    arrived: UnixStream,
    handler: SigId,
}

impl ChildEnded {
    fn new() -> io::Result<Self> {
        let (reader, writer) = std::os::unix::net::UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        Ok(Self {
            arrived: UnixStream::from_std(reader)?,
            handler: low_level::pipe::register(SIGCHLD, writer)?,
        })
    }

    /// Waits for the next signal, or for several at once. Cancel-safe: bytes are taken only when this returns.
    async fn next(&mut self) {
        let mut bytes = [0; 64];
        // The handler holds the other end, so the read never ends or fails.
        if !matches!(self.arrived.read(&mut bytes).await, Ok(1..)) {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for ChildEnded {
    fn drop(&mut self) {
        low_level::unregister(self.handler);
    }
}

impl Signals {
    /// Takes over the signals, which must have been [held back](hold_back).
    pub(super) fn new() -> io::Result<Self> {
        let signals = Self {
            waiting: sys::readable_signals(&held_back())?,
            child: ChildEnded::new()?,
        };
        // SIGCHLD stays blocked while this program is executed, so that none is lost.
        SigSet::from(Signal::SIGCHLD).thread_unblock()?;
        Ok(signals)
    }

    /// Returns the next request; a stop signal is noted in `ending` at the moment it is read. Cancel-safe: a signal
    /// that is not returned has not been read.
    pub(super) async fn next(&mut self, ending: &ShutdownKind) -> SignalRequest {
        loop {
            tokio::select! {
                read = self.waiting.async_io(Interest::READABLE, |waiting| read(waiting, ending)) => {
                    match read {
                        Ok(heard) => return heard,
                        Err(error) => {
                            tracing::error!("signals cannot be read: {error}");
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                }
                () = self.child.next() => return SignalRequest::Child,
            }
        }
    }
}

fn read(waiting: &SignalFd, ending: &ShutdownKind) -> io::Result<SignalRequest> {
    let Some(info) = waiting.read_signal()? else {
        return Err(io::ErrorKind::WouldBlock.into());
    };
    let number = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
    Ok(match Signal::try_from(number)? {
        Signal::SIGHUP => SignalRequest::HangUp,
        Signal::SIGUSR2 => SignalRequest::Succeed,
        signal => SignalRequest::End(signal, ending.note(signal)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Runs in a thread of its own and signals only that thread, because other tests do not block these signals.
    #[tokio::test]
    async fn a_signal_waits_for_its_reader_and_one_that_was_read_can_be_passed_on() {
        hold_back().unwrap();
        let ending = ShutdownKind::default();
        ending.pass_on();
        raise(Signal::SIGHUP).unwrap();
        raise(Signal::SIGTERM).unwrap();
        let mut signals = Signals::new().unwrap();
        let mut heard = [signals.next(&ending).await, signals.next(&ending).await];
        heard.sort_by_key(|heard| *heard == SignalRequest::HangUp);
        assert_eq!(
            heard,
            [
                SignalRequest::End(Signal::SIGTERM, true),
                SignalRequest::HangUp
            ]
        );
        raise(Signal::SIGINT).unwrap();
        let second = signals.next(&ending).await;
        assert_eq!(second, SignalRequest::End(Signal::SIGINT, false));

        // No reader exists now, and then a new reader comes.
        drop(signals);
        ending.pass_on();
        let mut signals = Signals::new().unwrap();
        let again = signals.next(&ShutdownKind::default()).await;
        assert_eq!(again, SignalRequest::End(Signal::SIGTERM, true));
    }
}
