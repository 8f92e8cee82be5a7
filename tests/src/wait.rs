//! Waiting for a state, with a bound.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Interval between two looks at a state; not shorter, because a look may start a process.
const STEP: Duration = Duration::from_millis(20);

/// Asks until there is an answer, and returns it.
///
/// # Panics
/// When there is none within `bound`; the message has `what` and the time.
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

/// Asks until the answer is `Ok`, and returns its value.
///
/// # Panics
/// When there is none within `bound`; the message has the last error.
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

/// Checks again and again for `span` that nothing happens, which no single state can show.
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

/// Sets a flag when dropped, also by a panic. Loops in other threads that check the flag then end, otherwise a
/// [`std::thread::scope`] would wait for them for ever.
#[derive(Debug)]
#[must_use = "it sets the flag when it goes, which is now"]
pub struct SetAtEnd<'f>(&'f AtomicBool);

impl<'f> SetAtEnd<'f> {
    /// Makes a guard for this flag.
    pub fn of(flag: &'f AtomicBool) -> Self {
        Self(flag)
    }
}

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
