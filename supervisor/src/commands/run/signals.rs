//! Signals, none of which is lost: not while one supervisor becomes the next either.
//!
//! They are blocked in every thread, and those that wait are read from a descriptor (signalfd). A signal that comes when
//! nothing reads any more waits in the kernel, over the execution of another program too, for the next reader. Handlers,
//! which signal-hook installs for the broker and for the other commands, cannot do this: what a handler has taken is in this
//! program's memory, which the execution of the next supervisor ends. SIGCHLD has a handler, because the next
//! supervisor looks at every child anyway.

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

/// After an error of the descriptor, so that trying again does not become a busy loop.
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

/// Blocks what [`Signals`] reads, in this thread and in all it will start: to be called while there is no other.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn hold_back() -> io::Result<()> {
    Ok(held_back().thread_block()?)
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// To end; `true`: for the first time.
    End(Signal, bool),
    /// To read every file again.
    HangUp,
    /// To become the program on disk.
    Succeed,
    /// To see which child has ended.
    Child,
}

/// The first signal that is to end this process, from the moment it is read.
#[derive(Debug, Clone, Default)]
pub(super) struct Ending(Arc<AtomicI32>);

impl Ending {
    /// Whether it is the first.
    fn note(&self, signal: Signal) -> bool {
        let first = self
            .0
            .compare_exchange(0, signal as i32, Ordering::Relaxed, Ordering::Relaxed);
        first.is_ok()
    }

    /// Sends what was noted again: it waits for whoever reads next, in this program or in another one that is executed.
    pub(super) fn pass_on(&self) {
        if let Ok(signal) = Signal::try_from(self.0.swap(0, Ordering::Relaxed)) {
            // To this thread, which is the one that executes. It fails for a bad argument only.
            let _ = raise(signal);
        }
    }
}

/// Every signal the daemon heeds.
#[derive(Debug)]
pub(super) struct Signals {
    waiting: AsyncFd<SignalFd>,
    child: ChildEnded,
}

/// SIGCHLD. Its handler goes with it.
#[derive(Debug)]
struct ChildEnded {
    /// Has a byte, or several, after each.
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

    /// Waits for the next, or for several that came since. Cancel-safe: bytes are taken only when this returns.
    async fn next(&mut self) {
        let mut bytes = [0; 64];
        // The handler holds the other end, so that neither end nor error comes.
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
    /// Takes them over; they have been [held back](hold_back).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn new() -> io::Result<Self> {
        let signals = Self {
            waiting: sys::readable_signals(&held_back())?,
            child: ChildEnded::new()?,
        };
        // Blocked while this program was executed, so that none was missed.
        SigSet::from(Signal::SIGCHLD).thread_unblock()?;
        Ok(signals)
    }

    /// The next one; what is to end this process is noted in `ending` in the moment it is read. Cancel-safe: a signal that
    /// is not returned has not been read.
    pub(super) async fn next(&mut self, ending: &Ending) -> Heard {
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
                () = self.child.next() => return Heard::Child,
            }
        }
    }
}

fn read(waiting: &SignalFd, ending: &Ending) -> io::Result<Heard> {
    let Some(info) = waiting.read_signal()? else {
        return Err(io::ErrorKind::WouldBlock.into());
    };
    let number = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
    Ok(match Signal::try_from(number)? {
        Signal::SIGHUP => Heard::HangUp,
        Signal::SIGUSR2 => Heard::Succeed,
        signal => Heard::End(signal, ending.note(signal)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// In a thread of its own, and sent to that: other tests of this process do not block them.
    #[tokio::test]
    async fn a_signal_waits_for_its_reader_and_one_that_was_read_can_be_passed_on() {
        hold_back().unwrap();
        let ending = Ending::default();
        ending.pass_on();
        raise(Signal::SIGHUP).unwrap();
        raise(Signal::SIGTERM).unwrap();
        let mut signals = Signals::new().unwrap();
        let mut heard = [signals.next(&ending).await, signals.next(&ending).await];
        heard.sort_by_key(|heard| *heard == Heard::HangUp);
        assert_eq!(heard, [Heard::End(Signal::SIGTERM, true), Heard::HangUp]);
        raise(Signal::SIGINT).unwrap();
        let second = signals.next(&ending).await;
        assert_eq!(second, Heard::End(Signal::SIGINT, false));

        // Nobody reads, and then somebody else does.
        drop(signals);
        ending.pass_on();
        let mut signals = Signals::new().unwrap();
        let again = signals.next(&Ending::default()).await;
        assert_eq!(again, Heard::End(Signal::SIGTERM, true));
    }
}
