//! Reads what `/metrics` shows of the database (`metrics::gauges`).
//!
//! At most every [`PERIOD`], only while somebody scrapes, and only when this process has written something since; what
//! others write is found every [`STALE`] all the same. Once after the start nobody needs to have asked. Counting takes time
//! in proportion to what is there, so a slow reading makes the next one wait: a hundredth of the time of one connection is
//! all it may cost. A scrape itself reads nothing, so whoever scrapes without end changes none of that.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::app::App;
use crate::db::DbError;
use crate::pak::PUBLIC_HASH;
use crate::store::gauges;

/// Least time between two readings.
const PERIOD: Duration = Duration::from_secs(30);

/// A reading this old is made again without a write of our own: another instance or a command may have written.
const STALE: Duration = Duration::from_secs(300);

/// Who has not scraped for this long does not scrape.
const INTEREST: Duration = Duration::from_secs(300);

/// A reading that took a second is followed by the next after this many.
const SHARE: u32 = 100;

/// How often the log says again that the administrator's PAK is the public one.
const REMIND: Duration = Duration::from_secs(3600);

/// What is known of the latest run.
struct Latest {
    /// The database's count of writes before the reading.
    writes: u64,
    /// No reading before this.
    next: Option<Instant>,
    /// When the log was last told of a public admin PAK.
    warned: Option<Instant>,
}

static LATEST: Mutex<Latest> = Mutex::new(Latest {
    writes: 0,
    next: None,
    warned: None,
});

/// Reads if there is somebody to read for, something new to read, and time to.
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
    // Without news it is looked again for them; that costs no statement.
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

/// How long no reading may be made yet.
fn rest() -> Duration {
    with_latest(|latest| latest.next).map_or(Duration::ZERO, |next| {
        next.saturating_duration_since(Instant::now())
    })
}

/// Warns of a public admin PAK, now and then. After how long to warn again.
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

/// Every change is one assignment, so a poisoned value is whole.
fn with_latest<T>(look: impl FnOnce(&mut Latest) -> T) -> T {
    look(&mut LATEST.lock().unwrap_or_else(PoisonError::into_inner))
}
