//! The lock between two starts on one schema.

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;

use super::error::{StartError, racing};
use super::plan::{Plan, Step};
use crate::db::manager::set_path;

/// The pause between two attempts to take the lock.
const RETRY: Duration = Duration::from_millis(100);

/// `brokkr_lock`, held in an open transaction on a connection of its own.
pub(super) struct StartLock(Client);

impl StartLock {
    /// Takes the lock. Waits for at most [`Plan::patience`] while another session has it.
    pub(super) fn take(
        plan: &Plan,
        client: &mut Client,
        step: &dyn Fn(Step),
    ) -> Result<Self, StartError> {
        racing(|| {
            let there = client
                .query_one("SELECT to_regclass('brokkr_lock') IS NOT NULL", &[])?
                .get(0);
            if there {
                Ok(())
            } else {
                client.batch_execute("CREATE TABLE brokkr_lock ()")
            }
        })?;
        let mut holder = plan.connect()?;
        holder.batch_execute(&set_path(&plan.schema))?;
        let began = Instant::now();
        loop {
            match holder
                .batch_execute("BEGIN; LOCK TABLE brokkr_lock IN ACCESS EXCLUSIVE MODE NOWAIT")
            {
                Ok(()) => return Ok(StartLock(holder)),
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                    holder.batch_execute("ROLLBACK")?;
                }
                Err(error) => return Err(error.into()),
            }
            // Another start migrates, or another transaction was left open with the lock.
            if began.elapsed() >= plan.patience {
                return Err(StartError::Away(format!(
                    "table brokkr_lock of schema {} has been locked for {:?} by {}",
                    plan.schema,
                    plan.patience,
                    holders(client)?
                )));
            }
            step(Step::WaitingForLock);
            std::thread::sleep(RETRY);
        }
    }

    /// Releases the lock. Dropping it releases it too, because the server ends the transaction with the connection.
    pub(super) fn release(mut self) {
        if let Err(error) = self.0.batch_execute("ROLLBACK") {
            tracing::debug!(%error, "the lock's connection was gone already");
        }
    }
}

/// Names the sessions that have locked `brokkr_lock`.
fn holders(client: &mut Client) -> Result<String, postgres::Error> {
    const HOLDERS: &str = "SELECT coalesce(string_agg(coalesce(format('process %s (%s)', l.pid, \
             coalesce(nullif(a.application_name, ''), a.usename)), 'a prepared transaction'), ', '), \
             'a transaction that has just ended') \
         FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
         WHERE l.granted AND l.locktype = 'relation' AND l.relation = 'brokkr_lock'::regclass \
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    Ok(client.query_one(HOLDERS, &[])?.get(0))
}
