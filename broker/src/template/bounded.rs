//! A thread of its own, with a meter, for work whose size a stranger decides.
//!
//! The work calls [`spend`] wherever it may go on for long. When it has spent what it was given, used its processor time or
//! come near the end of its stack, it is ended where it is by unwinding: the libraries in between would swallow an error,
//! or collect it and go on. Unwinding this way calls no panic hook and prints nothing.

use std::cell::Cell;
use std::hint::black_box;
use std::panic::resume_unwind;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The name of these threads. What panics on one is a library that met what it did not foresee, and its message holds a
/// stranger's text.
pub(crate) const THREAD: &str = "template";

/// Most pieces of work at once: each may hold some hundred MiB for a moment, and the event loop needs a core as well.
const AT_ONCE: u32 = 2;
/// How long a piece of work waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// The stack of each.
const STACK: usize = 8 * 1024 * 1024;
/// From here on nothing deeper is begun. What is left is for what recurses between two calls of [`spend`], which `scan` bounds.
const DEEPEST: usize = STACK / 2;
/// Processor time, not time on the clock: a busy machine must not make a template fail.
const PROCESSOR: Duration = Duration::from_secs(1);
/// Asking for the time costs a system call: once in so many bytes …
const BYTES_UNWATCHED: u64 = 16 * 1024;
/// … or so many calls of [`spend`].
const CALLS_UNWATCHED: u32 = 8;

/// Why work did not come to its end.
#[derive(Debug)]
pub(super) enum Stopped {
    /// It needed too much of something.
    Limit(&'static str),
    /// It panicked.
    Panicked,
    /// It was not begun.
    Busy,
}

/// What unwinds out of work that is ended.
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

/// Runs `work` with an allowance of bytes, and waits for it.
pub(super) fn run<T: Send>(allowance: u64, work: impl FnOnce() -> T + Send) -> Result<T, Stopped> {
    let _turn = Turn::wait().ok_or(Stopped::Busy)?;
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
                    until: processor_time() + PROCESSOR,
                }));
                work()
            });
        let worker = begun.map_err(|error| {
            tracing::warn!(%error, "no thread for a template");
            Stopped::Busy
        })?;
        worker
            .join()
            .map_err(|payload| match payload.downcast::<Ended>() {
                Ok(ended) => Stopped::Limit(ended.0),
                Err(_) => Stopped::Panicked,
            })
    })
}

/// Takes this much from the allowance, and ends the work if it has used up anything. Free outside [`run`].
pub(super) fn spend(bytes: usize) {
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

/// Ends the work, wherever it is.
pub(super) fn stop(why: &'static str) -> ! {
    resume_unwind(Box::new(Ended(why)))
}

/// About where the stack has come to.
fn here() -> usize {
    let local = 0_u8;
    std::ptr::from_ref(black_box(&local)).addr()
}

/// What this thread has used so far.
fn processor_time() -> Duration {
    // Cannot fail: every Linux has this clock.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

static AT_WORK: Mutex<u32> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();

/// One of the [`AT_ONCE`].
struct Turn;

impl Turn {
    fn wait() -> Option<Self> {
        // A number cannot be left half-changed by a panic.
        let at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut at_work, waited) = LEFT
            .wait_timeout_while(at_work, PATIENCE, |at_work| *at_work >= AT_ONCE)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *at_work += 1;
        Some(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *AT_WORK.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        LEFT.notify_one();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn why(outcome: Result<(), Stopped>) -> &'static str {
        match outcome {
            Err(Stopped::Limit(why)) => why,
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
        assert!(matches!(outcome, Err::<(), _>(Stopped::Panicked)));
    }
}
