//! A metered thread for work whose size an untrusted caller decides.
//!
//! The work calls [`spend`] wherever it may go on for long. Work that exceeds its allowance, its processor time or its
//! stack is ended by unwinding, because the libraries in between would swallow an error or collect it and go on. This
//! unwinding calls no panic hook and prints nothing.

use std::cell::Cell;
use std::hint::black_box;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::sync::Semaphore;

/// The name of the metered threads. A panic on such a thread comes from a library, and its message may hold a caller's
/// text.
pub(crate) const THREAD: &str = "template";

/// The largest number of pieces of work of one kind at once. Each may hold some hundred MiB for a moment, and the event
/// loop needs a core too.
const AT_ONCE: usize = 2;
/// The time that a piece of work waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// The stack size of each thread.
const STACK: usize = 8 * 1024 * 1024;
/// The stack depth from which nothing deeper begins. The rest is for recursion between two calls of [`spend`], which
/// `scan` bounds.
const DEEPEST: usize = STACK / 2;
/// The limit of processor time. Wall-clock time would let templates fail on a busy machine.
const PROCESSOR: Duration = Duration::from_secs(1);
/// The number of bytes after which the processor time is read again, because reading it costs a system call.
const BYTES_UNWATCHED: u64 = 16 * 1024;
/// The number of calls of [`spend`] after which the processor time is read again.
const CALLS_UNWATCHED: u32 = 8;

/// Reason why work did not finish.
#[derive(Debug)]
pub(crate) enum Interrupted {
    /// The work exceeded a limit.
    Limit(&'static str),
    /// The work panicked.
    Panicked,
    /// The work was not begun.
    Busy,
}

/// The payload that unwinds out of ended work.
struct Ended(&'static str);

#[derive(Clone, Copy)]
struct Meter {
    left: u64,
    top: usize,
    bytes: u64,
    calls: u32,
    until: Duration,
}

thread_local! {
    static METER: Cell<Option<Meter>> = const { Cell::new(None) };
}

/// Runs `work` with an allowance of bytes, and waits for it. The caller holds a turn of [`ThreadLimit`].
pub(super) fn run<T: Send>(
    allowance: u64,
    work: impl FnOnce() -> T + Send,
) -> Result<T, Interrupted> {
    run_for(PROCESSOR, allowance, work)
}

/// Runs as [`run`] does, with this much processor time.
pub(crate) fn run_for<T: Send>(
    processor: Duration,
    allowance: u64,
    work: impl FnOnce() -> T + Send,
) -> Result<T, Interrupted> {
    thread::scope(|scope| {
        let begun = thread::Builder::new()
            .name(THREAD.to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, move || {
                METER.set(Some(Meter {
                    left: allowance,
                    top: here(),
                    bytes: 0,
                    calls: 0,
                    until: processor_time() + processor,
                }));
                work()
            });
        let worker = begun.map_err(|error| {
            tracing::warn!(%error, "no thread for a stranger's text");
            Interrupted::Busy
        })?;
        worker
            .join()
            .map_err(|payload| match payload.downcast::<Ended>() {
                Ok(ended) => Interrupted::Limit(ended.0),
                Err(_) => Interrupted::Panicked,
            })
    })
}

/// Takes bytes from the allowance, and ends the work when it exceeds a limit. Free outside [`run`].
pub(crate) fn spend(bytes: usize) {
    let Some(mut meter) = METER.get() else {
        return;
    };
    let bytes = bytes as u64;
    let Some(left) = meter.left.checked_sub(bytes) else {
        stop("this needs too much memory or too many steps");
    };
    if meter.top.abs_diff(here()) > DEEPEST {
        stop("this recurses too deeply");
    }
    meter.left = left;
    meter.bytes += bytes;
    meter.calls += 1;
    if meter.bytes >= BYTES_UNWATCHED || meter.calls >= CALLS_UNWATCHED {
        (meter.bytes, meter.calls) = (0, 0);
        if processor_time() > meter.until {
            stop("this takes too long");
        }
    }
    METER.set(Some(meter));
}

/// Ends the work by unwinding.
pub(crate) fn stop(why: &'static str) -> ! {
    resume_unwind(Box::new(Ended(why)))
}

/// Returns the approximate position of the stack.
fn here() -> usize {
    let local = 0_u8;
    std::ptr::from_ref(black_box(&local)).addr()
}

/// Returns the processor time that this thread has used.
fn processor_time() -> Duration {
    // Cannot fail: every Linux has this clock.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The turns of one kind of work. Callers wait for a turn on the event loop, without a thread or a connection.
pub(crate) struct ThreadLimit(Semaphore);

impl ThreadLimit {
    pub(crate) const fn new() -> Self {
        Self(Semaphore::const_new(AT_ONCE))
    }

    /// Runs `work` on a blocking thread when its turn comes. The work keeps its turn to its end, even after the caller
    /// has gone.
    pub(crate) async fn take<T: Send + 'static>(
        &'static self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Interrupted> {
        let Ok(Ok(turn)) = tokio::time::timeout(PATIENCE, self.0.acquire()).await else {
            return Err(Interrupted::Busy);
        };
        let working = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        working.await.map_err(|_| Interrupted::Panicked)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn why(outcome: Result<(), Interrupted>) -> &'static str {
        match outcome {
            Err(Interrupted::Limit(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn work_that_spends_more_than_it_has_is_ended() {
        run(100, || spend(100)).unwrap();
        assert!(why(run(100, || spend(101))).contains("memory"));
    }

    #[test]
    fn work_that_spends_nothing_is_ended_by_its_processor_time() {
        assert!(
            why(run(100, || loop {
                spend(0);
            }))
            .contains("too long")
        );
    }

    #[test]
    fn work_that_recurses_is_ended_before_its_stack_is() {
        fn deeper(n: u64) -> u64 {
            spend(0);
            if n == 0 {
                0
            } else {
                black_box(deeper(n - 1) + 1)
            }
        }
        assert!(why(run(100, || drop(deeper(u64::MAX).to_string()))).contains("deeply"));
    }

    #[test]
    fn a_panic_is_told_from_an_end() {
        let outcome = run(1, || panic!("expected by a test"));
        assert!(matches!(outcome, Err::<(), _>(Interrupted::Panicked)));
    }
}
