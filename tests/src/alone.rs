//! Tests that need the machine to themselves.

use std::sync::{Mutex, MutexGuard, PoisonError};

static MACHINE: Mutex<()> = Mutex::new(());

/// Waits until no other test of this program runs, and keeps the others waiting as long as the guard lives. Every test
/// of the program `exclusive` begins with it, because cargo runs one program at a time but several of its tests.
#[must_use = "other tests run as soon as it is dropped"]
pub fn alone() -> MutexGuard<'static, ()> {
    // A failed test poisons the lock, but leaves nothing behind that the next test would see.
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
