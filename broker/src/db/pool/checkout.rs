//! Gives a request a working connection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use r2d2::ManageConnection;

use super::{CONNECTION_TIMEOUT, Inner, LastCheckout};
use crate::db::error::DbError;
use crate::db::manager::Manager;

/// The pause between two looks for a free connection when no other can be opened.
const FREE_PAUSE: Duration = Duration::from_millis(2);

impl Inner {
    /// Returns a connection that has just been tested.
    pub(super) fn checkout(
        &self,
        until: Instant,
    ) -> Result<r2d2::PooledConnection<Manager>, DbError> {
        let began = Instant::now();
        loop {
            let mut slotted = match self.pool.try_get() {
                Some(slotted) => slotted,
                // The server is read-only: no other connection can be opened, but an open connection comes free soon.
                None if self.shared.must_do_with_what_is_open() && Instant::now() < until => {
                    std::thread::sleep(FREE_PAUSE);
                    continue;
                }
                None => match self.wait_for_new(until) {
                    Ok(slotted) => slotted,
                    // On a busy host an attempt may take longer than one wait and still succeed.
                    Err(_) if Instant::now() < until => continue,
                    Err(error) => {
                        self.note(LastCheckout::failed(error.to_string()));
                        return Err(error);
                    }
                },
            };
            if slotted.is_left_behind(self.unwritable().is_none()) {
                slotted.spoil();
                continue;
            }
            match slotted.failed() {
                // The attempt was made for this request, so its reason is the answer.
                Some(failed)
                    if failed.at >= began
                        && failed.reason.is_some()
                        && !self.shared.must_do_with_what_is_open() =>
                {
                    let reason = failed.reason.clone().unwrap_or_default();
                    self.note(LastCheckout::failed(reason.clone()));
                    return Err(DbError::unavailable(reason));
                }
                // The attempt was made for an earlier request that stopped waiting, or no attempt was made.
                Some(_) => {}
                None => match self.manager.is_valid(&mut slotted) {
                    Ok(()) => {
                        self.note(LastCheckout::Worked(Instant::now()));
                        return Ok(slotted);
                    }
                    Err(error) => {
                        self.note(LastCheckout::failed(error.to_string()));
                        if !slotted.is_spoiled() {
                            return Err(error);
                        }
                    }
                },
            }
            if Instant::now() >= until {
                return Err(DbError::unavailable("no working connection in time"));
            }
        }
    }

    fn wait_for_new(&self, until: Instant) -> Result<r2d2::PooledConnection<Manager>, DbError> {
        struct Wanted<'a>(&'a AtomicUsize);
        impl Drop for Wanted<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.shared.wanted.fetch_add(1, Ordering::Relaxed);
        let _wanted = Wanted(&self.shared.wanted);
        let wait = until
            .saturating_duration_since(Instant::now())
            .min(CONNECTION_TIMEOUT);
        self.pool
            .get_timeout(wait)
            .map_err(|_| DbError::unavailable("no new connection in time"))
    }
}
