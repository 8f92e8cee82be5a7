//! Probes one server: a kept connection and a statement once a second.

use super::session::{DEADLINE, ProbeFailure, Session};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Time between two probes of a server that is up.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// The longest wait for an answer; after that the server is in doubt, and its addresses and other URLs are asked.
const ANSWER: Duration = Duration::from_secs(1);

/// The shortest time between two probes, however many callers wait for a count.
const SOONEST: Duration = Duration::from_millis(100);

/// Asks for connections by application name, role and database (some 10 KiB for 1,000 backends), and checks that the server
/// still takes writes. Leaves out parallel workers; a role without the right to see a backend's type sees NULL.
const ASK: &str = "\
SELECT application_name, string_agg(pid::text, ' '), pg_is_in_recovery(), current_setting('transaction_read_only'), \
       datid, pg_catalog.pg_get_userbyid(usesysid) \
  FROM pg_catalog.pg_stat_activity \
 WHERE datid IS NOT NULL AND usesysid IS NOT NULL \
   AND (backend_type IS NULL OR backend_type = 'client backend') \
 GROUP BY application_name, usesysid, datid";

/// The connections of a server at one time.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Time of the query.
    pub(super) asked: Instant,
    /// Backends by their owner.
    pub(super) backends: BTreeMap<BackendOwner, BTreeSet<i32>>,
}

/// The owner of backends, as the server shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BackendOwner {
    /// `application_name`, which any session may set to any text.
    pub(super) application: String,
    pub(super) role: String,
    /// The database's OID.
    pub(super) database: u32,
}

/// Probes a server once.
pub(super) async fn sample(session: &Session) -> Result<Sample, ProbeFailure> {
    sample_within(session, DEADLINE).await
}

async fn sample_within(session: &Session, deadline: Duration) -> Result<Sample, ProbeFailure> {
    let mut sample = Sample {
        asked: Instant::now(),
        backends: BTreeMap::new(),
    };
    for row in session.ask_within(deadline, ASK).await? {
        if row.flag(2)? {
            return Err(ProbeFailure::read_only(
                "has become a standby: it is in recovery",
            ));
        }
        if row.text(3)? == "on" {
            return Err(ProbeFailure::read_only(
                "has become read-only: transaction_read_only is on",
            ));
        }
        let owner = BackendOwner {
            application: row.nullable(0).unwrap_or_default().to_owned(),
            role: row.text(5)?.to_owned(),
            database: row.number(4)?,
        };
        let pids = row.text(1)?.split(' ').filter_map(|pid| pid.parse().ok());
        sample.backends.insert(owner, pids.collect());
    }
    Ok(sample)
}

/// Probes every [`PERIOD`], and sooner when `soon` changes, until a probe fails. Calls `tell` with every answer.
pub(super) async fn watch(
    mut session: Session,
    mut soon: tokio::sync::watch::Receiver<u64>,
    mut tell: impl FnMut(Sample),
) -> ProbeFailure {
    loop {
        let asked = tokio::time::Instant::now();
        let wanted = async {
            if soon.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep_until(asked + SOONEST).await;
        };
        tokio::select! {
            // Cancel-safe: the timers are made anew, and a connection that has ended stays ended.
            failure = session.ended() => return failure,
            () = wanted => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
        match sample_within(&session, ANSWER).await {
            Ok(answer) => tell(answer),
            Err(failure) => return failure,
        }
    }
}
