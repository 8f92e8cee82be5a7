//! Reads the values that `/metrics` shows of the database (`metrics::gauges`).
//!
//! The first reading is made at the start. Later readings are made while `/metrics` is scraped, at most every
//! [`PERIOD`], when this process has written since the last reading, and every [`STALE`] otherwise, because other
//! processes may have written. The time of a reading grows with the number of rows, so a slow reading delays the next:
//! readings use at most one hundredth of one connection's time. A scrape itself reads nothing, so frequent scrapes cost
//! no statements.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::app::App;
use crate::db::DbError;
use crate::pak::PUBLIC_HASH;
use crate::store::gauges;

/// Shortest time between two readings.
const PERIOD: Duration = Duration::from_secs(30);

/// Age at which a reading is repeated without a write by this process, because another process may have written.
const STALE: Duration = Duration::from_secs(300);

/// Time after the last scrape at which readings stop.
const INTEREST: Duration = Duration::from_secs(300);

/// Pause after a reading, in multiples of the time that the reading took.
const SHARE: u32 = 100;

/// Time between two warnings that the administrator's PAK is the public default.
const REMIND: Duration = Duration::from_secs(3600);

struct Latest {
    /// Number of writes that the database handle had counted before the reading.
    writes: u64,
    /// Earliest moment of the next reading.
    next: Option<Instant>,
    /// Moment of the latest warning of a public admin PAK.
    warned: Option<Instant>,
}

static LATEST: Mutex<Latest> = Mutex::new(Latest {
    writes: 0,
    next: None,
    warned: None,
});

/// Reads when `/metrics` is scraped, the data may have changed and the pause has passed.
pub(super) async fn run(app: &App) -> Result<Option<Duration>, DbError> {
    let shown = &app.metrics.gauges;
    let wanted = shown.since_scrape().is_some_and(|ago| ago < INTEREST);
    let due = match shown.age() {
        None => true,
        Some(age) => {
            let news = with_latest(|latest| latest.writes != app.db.writes());
            wanted && rest().is_zero() && (news || age >= STALE)
        }
    };
    if due {
        read(app).await?;
    }
    // Without a change, check again after the period; the check costs no statement.
    let again = wanted.then(|| {
        Some(rest())
            .filter(|rest| !rest.is_zero())
            .unwrap_or(PERIOD)
    });
    Ok(again.into_iter().chain(remind(app)).min())
}

async fn read(app: &App) -> Result<(), DbError> {
    let (began, writes) = (Instant::now(), app.db.writes());
    let configured = app.config.broker.pak_hash.as_ref();
    let configured = configured.is_some_and(|hash| hash.expose().eq_ignore_ascii_case(PUBLIC_HASH));
    let (reading, stored) = app
        .db
        .run(|conn| {
            let read = gauges::read(conn);
            conn.leave_nothing_behind();
            read
        })
        .await?;
    app.metrics.gauges.set(reading);
    app.metrics
        .gauges
        .set_default_admin_pak(configured || stored);
    with_latest(|latest| {
        latest.writes = writes;
        latest.next = Some(Instant::now() + PERIOD.max(began.elapsed() * SHARE));
    });
    Ok(())
}

/// Returns the time until the next reading is allowed.
fn rest() -> Duration {
    with_latest(|latest| latest.next).map_or(Duration::ZERO, |next| {
        next.saturating_duration_since(Instant::now())
    })
}

/// Warns of a public admin PAK once per `REMIND`. Returns the time until the next warning.
fn remind(app: &App) -> Option<Duration> {
    if !app.metrics.gauges.default_admin_pak() {
        return None;
    }
    let left = with_latest(|latest| {
        let left = latest
            .warned
            .map_or(Duration::ZERO, |at| REMIND.saturating_sub(at.elapsed()));
        if left.is_zero() {
            latest.warned = Some(Instant::now());
        }
        left
    });
    if !left.is_zero() {
        return Some(left);
    }
    tracing::warn!(
        "the administrator's PAK is the public one of the development defaults: anybody can administer this tenant; \
         run `brokkr-broker rotate admin` without broker.pak_hash, or with a hash of your own"
    );
    Some(REMIND)
}

/// A poisoned value is consistent, because every change is one assignment.
fn with_latest<T>(look: impl FnOnce(&mut Latest) -> T) -> T {
    look(&mut LATEST.lock().unwrap_or_else(PoisonError::into_inner))
}
