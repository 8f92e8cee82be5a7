//! Trials that show that an unfit server or schema is fit again, because a working connection proves neither.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Db, Inner};
use crate::db::conn::{Conn, Sql};
use crate::db::error::DbError;
use crate::db::signs::LostSchema;

/// The average pause after a search for a server that takes writes; jittered.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// A write that surely needs room on the server's disk, which other writes may not. It is always rolled back.
const TRIAL: &str =
    "CREATE TABLE brokkr_trial AS SELECT repeat('x', 1000) AS filler FROM generate_series(1, 8)";

impl Db {
    /// Starts a trial write in the background, and moves to a server of the URL that takes writes, if there is one.
    /// Needed because no readiness probe may come, and a refused write closes no connection.
    pub(super) fn look_around(&self) {
        if self.0.looking.swap(true, Ordering::Relaxed) {
            return;
        }
        let db = self.clone();
        tokio::spawn(async move {
            let looked = db.probe(db.0.options.acquire_timeout).await;
            if let Err(reason) = looked {
                tracing::debug!(%reason, "still no server that takes writes");
            }
            tokio::time::sleep(LOOK_PAUSE.mul_f64(0.5 + fastrand::f64())).await;
            db.0.looking.store(false, Ordering::Relaxed);
        });
    }

    /// Tests within `timeout` that the database is fit for work; [`Db::last`] then holds the result. A server that took
    /// no writes must take a trial write first, and a lost schema must again hold everything that statements missed.
    ///
    /// # Errors
    /// As [`Db::run`].
    pub async fn probe(&self, timeout: Duration) -> Result<(), DbError> {
        self.look_for_schema(timeout).await?;
        if self.unwritable().is_none() {
            return self.run_within(timeout, |_| Ok(())).await;
        }
        let tried = self.run_within(timeout, |conn| {
            let tried = try_to_write(conn);
            match &conn.signs().unwritable {
                Some(why) if tried.is_err() && why.read_only => conn.move_on(),
                _ => tried,
            }
        });
        let tried = tried.await;
        self.0.refused.store(false, Ordering::Relaxed);
        tried?;
        *self.0.unwritable() = None;
        tracing::info!("the database takes writes again");
        Ok(())
    }

    /// Tests whether a lost schema is back. Asks the server nothing while the schema is not lost.
    async fn look_for_schema(&self, timeout: Duration) -> Result<(), DbError> {
        let Some(lost) = self.0.lost_schema().clone() else {
            return Ok(());
        };
        let statements = lost.statements;
        let back = self.run_within(timeout, move |conn| conn.try_statements(statements));
        let back: Result<(), DbError> = back.await;
        let mut still = self.0.lost_schema();
        match (&back, &*still) {
            // No statement has failed meanwhile.
            (Ok(()), Some(now)) if now.at == lost.at => {
                *still = None;
                tracing::info!(schema = %self.0.options.schema, "the schema is back");
                Ok(())
            }
            (Ok(()), Some(now)) => Err(DbError::unavailable(now.reason.clone())),
            (Err(_), Some(now)) if now.at > lost.at => {
                Err(DbError::unavailable(now.reason.clone()))
            }
            _ => back,
        }
    }

    /// Returns true while the schema is known to lack something that the broker's statements name.
    pub fn has_lost_schema(&self) -> bool {
        self.0.lost_schema().is_some()
    }
}

impl Inner {
    /// Notes that the schema lacks something that a statement names.
    pub(super) fn note_lost_schema(&self, sql: &'static str, said: &str) {
        let schema = &self.options.schema;
        let reason = format!("schema {schema} is gone or not as it was: {said}");
        let mut lost = self.lost_schema();
        let mut statements = lost.take().map(|lost| lost.statements);
        if statements.is_none() {
            tracing::error!(
                %reason,
                "requests are refused until it is back"
            );
        }
        statements.get_or_insert_default().insert(sql);
        *lost = Some(LostSchema {
            at: Instant::now(),
            reason,
            statements: statements.unwrap_or_default(),
        });
    }
}

/// Writes something that needs disk space, and rolls back.
fn try_to_write(conn: &mut Conn) -> Result<(), DbError> {
    enum Undo {
        Done,
        Failed(DbError),
    }
    impl From<DbError> for Undo {
        fn from(error: DbError) -> Self {
            Undo::Failed(error)
        }
    }
    let tried: Result<(), Undo> = conn.transaction(|tx| {
        tx.execute(TRIAL, &[])?;
        Err(Undo::Done)
    });
    match tried {
        Ok(()) | Err(Undo::Done) => Ok(()),
        Err(Undo::Failed(error)) => Err(error),
    }
}
