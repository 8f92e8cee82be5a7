//! Stores telemetry: gathers rows for `GATHER`, then inserts many rows in one statement.
//!
//! The memory for waiting rows is bounded in bytes, for all agents together. When it is full, a reader waits up to
//! `PATIENCE`, which slows its agent down through the socket, and then drops the row; while the database is
//! unavailable, readers do not wait. A batch is retried when the database had no connection for it, and dropped when
//! the database refused it, because it would be refused again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::app::App;
use crate::db::DbError;
use crate::metrics::sockets::Loss;
use crate::store::telemetry::{self, NewKubeEvent, NewLogLine};

/// Memory for waiting rows, in units of [`UNIT`] bytes.
const ROOM: usize = 8 * 1024;
/// Bytes in a unit of [`ROOM`]. A row takes at least one unit, so `ROOM` also bounds the number of rows.
const UNIT: usize = 1024;
/// Largest number of rows in one statement.
const ROWS: usize = 1000;
/// Time for which rows are gathered.
const GATHER: Duration = Duration::from_millis(250);
/// Longest wait for room.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two attempts while the database is unavailable.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait of a drain for the last rows.
const LAST: Duration = Duration::from_secs(2);

/// A row with its share of the room.
type Waiting = (Row, OwnedSemaphorePermit);

/// A row of one of the two tables.
#[derive(Debug)]
pub(super) enum Row {
    Event(NewKubeEvent),
    Line(NewLogLine),
}

/// Handle through which readers add rows.
#[derive(Debug)]
pub(super) struct TelemetryWriter {
    room: Arc<Semaphore>,
    rows: mpsc::Sender<Waiting>,
    /// Receiver of the rows, until [`record`] takes it.
    receiver: Mutex<Option<mpsc::Receiver<Waiting>>>,
    /// True when the latest statement found no connection.
    away: AtomicBool,
}

impl TelemetryWriter {
    pub(super) fn new() -> Self {
        // The channel is as long as the room is large, so that a row with its share always finds a place.
        let (rows, receiver) = mpsc::channel(ROOM);
        Self {
            room: Arc::new(Semaphore::new(ROOM)),
            rows,
            receiver: Mutex::new(Some(receiver)),
            away: AtomicBool::new(false),
        }
    }

    /// Takes a row of about `size` bytes. Returns false when the row was dropped.
    pub(super) async fn take(&self, row: Row, size: usize) -> bool {
        let units = size.div_ceil(UNIT).clamp(1, ROOM) as u32;
        let room = self.room.clone();
        let share = match room.clone().try_acquire_many_owned(units) {
            Ok(share) => share,
            Err(_) if self.away.load(Ordering::Relaxed) => return false,
            Err(_) => match timeout(PATIENCE, room.acquire_many_owned(units)).await {
                Ok(Ok(share)) => share,
                _ => return false,
            },
        };
        self.rows.try_send((row, share)).is_ok()
    }

    /// Waits until every row taken so far is stored or dropped, for at most `LAST`.
    pub(super) async fn stored(&self) {
        // The semaphore is never closed; rows not stored by then are lost with the process.
        let _ = timeout(LAST, self.room.acquire_many(ROOM as u32)).await;
    }
}

/// Stores rows for ever.
pub(super) async fn record(app: App) {
    let telemetry_writer = &app.live.0.telemetry_writer;
    let receiver = telemetry_writer
        .receiver
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let Some(mut rows) = receiver else { return };
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
    let away = &app.live.0.telemetry_writer.away;
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
