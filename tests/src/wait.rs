//! Waiting for a state, with a bound.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a state is looked at. Looking may start a process, so not more often.
const STEP: Duration = Duration::from_millis(20);

/// Asks until there is an answer, and gives it.
///
/// # Panics
/// When there is none within `bound`: the message names `what` and the time.
pub fn until<T>(bound: Duration, what: impl Display, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            start.elapsed() < bound,
            "waited {bound:?} in vain for: {what}"
        );
        sleep(STEP);
    }
}

/// As [`until`], for questions that can say what they saw instead; the last thing seen is in the panic.
///
/// # Panics
/// When `ask` is never `Ok` within `bound`.
pub fn until_ok<T, E: Display>(
    bound: Duration,
    what: impl Display,
    mut ask: impl FnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(seen) => assert!(
                start.elapsed() < bound,
                "waited {bound:?} in vain for: {what}\nlast seen: {seen}"
            ),
        }
        sleep(STEP);
    }
}

/// Looks again and again for `span` and fails at the first time it is not so: for "nothing happens", which no state
/// can show.
///
/// # Panics
/// When `ask` is `Err` once.
pub fn holds_for<E: Display>(
    span: Duration,
    what: impl Display,
    mut ask: impl FnMut() -> Result<(), E>,
) {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(seen) = ask() {
            panic!(
                "did not stay so for {span:?}: {what}\nseen after {:?}: {seen}",
                start.elapsed()
            );
        }
        sleep(STEP);
    }
}

/// Sets a flag when it goes, also by a panic: loops of other threads that end by the flag end then too, and a
/// [`std::thread::scope`] that waits for them does not wait for ever.
#[derive(Debug)]
#[must_use = "it sets the flag when it goes, which is now"]
pub struct SetAtEnd<'f>(&'f AtomicBool);

impl<'f> SetAtEnd<'f> {
    /// Sets this one.
    pub fn of(flag: &'f AtomicBool) -> Self {
        Self(flag)
    }
}

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
