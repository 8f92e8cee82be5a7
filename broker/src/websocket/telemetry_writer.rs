//! Stores telemetry: gathers rows for `GATHER`, then inserts many rows in one statement.
//!
//! A batch is retried when the database had no connection for it, and dropped when the database refused it, because it
//! would be refused again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::telemetry_queue::{Row, Waiting};
use crate::app::App;
use crate::db::DbError;
use crate::metrics::sockets::Loss;
use crate::store::telemetry;

/// Largest number of rows in one statement.
const ROWS: usize = 1000;
/// Time for which rows are gathered.
const GATHER: Duration = Duration::from_millis(250);
/// Time between two attempts while the database is unavailable.
const PAUSE: Duration = Duration::from_secs(1);

/// Stores rows for ever.
pub(super) async fn record(app: App) {
    let Some(mut rows) = app.live.0.telemetry_queue.receiver() else {
        return;
    };
    loop {
        let batch = gather(&app, &mut rows).await;
        if batch.is_empty() {
            return;
        }
        store(&app, batch).await;
    }
}

/// Returns the next rows: the first row, and the rows that came within `GATHER` after it. Empty when the channel is
/// closed.
async fn gather(app: &App, rows: &mut mpsc::Receiver<Waiting>) -> Vec<Waiting> {
    let mut batch = Vec::new();
    rows.recv_many(&mut batch, ROWS).await;
    let until = Instant::now() + GATHER;
    while !batch.is_empty() && batch.len() < ROWS && !app.live.is_draining() {
        let most = ROWS - batch.len();
        let more = rows.recv_many(&mut batch, most);
        // Cancel-safe: rows that were not received stay in the channel.
        match timeout_at(until, more).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => break,
        }
    }
    batch
}

async fn store(app: &App, batch: Vec<Waiting>) {
    let (mut events, mut lines, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for (row, share) in batch {
        match row {
            Row::Event(event) => events.push(event),
            Row::Line(line) => lines.push(line),
        }
        shares.push(share);
    }
    if !events.is_empty() {
        let events = Arc::new(events);
        until_stored(app, events.len(), move || {
            let events = events.clone();
            move |db: &mut crate::db::Conn| telemetry::insert_events(db, &events)
        })
        .await;
    }
    if !lines.is_empty() {
        let lines = Arc::new(lines);
        until_stored(app, lines.len(), move || {
            let lines = lines.clone();
            move |db: &mut crate::db::Conn| telemetry::insert_lines(db, &lines)
        })
        .await;
    }
}

/// Runs one statement, and repeats it while the database is unavailable.
async fn until_stored<F, W>(app: &App, rows: usize, work: F)
where
    F: Fn() -> W,
    W: FnOnce(&mut crate::db::Conn) -> Result<(), DbError> + Send + 'static,
{
    let away = &app.live.0.telemetry_queue.away;
    loop {
        match app.db.run(work()).await {
            Ok(()) => away.store(false, Ordering::Relaxed),
            Err(error) if error.is_unavailable() => {
                if !away.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "telemetry waits for the database");
                }
                sleep(PAUSE).await;
                continue;
            }
            Err(error) => {
                app.metrics.sockets.lost(Loss::Refused, rows as u64);
                tracing::error!(%error, rows, "telemetry was refused and is dropped");
            }
        }
        return;
    }
}
