//! Telemetry on its way to its tables: gathered for a moment, then many rows in one statement.
//!
//! The room for rows that wait is bounded in bytes, for all agents together. Whoever finds it full waits a little, which
//! slows the agent down through its socket, and then drops; while the database is away nobody waits. A batch that the
//! database could not take for want of a connection is tried again; one that it refuses is dropped, for it would be refused
//! again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::app::App;
use crate::db::DbError;
use crate::metrics::sockets::Loss;
use crate::store::telemetry::{self, NewEvent, NewLine};

/// All the room there is, in units of [`UNIT`] bytes.
const ROOM: usize = 8 * 1024;
/// See [`ROOM`]. A row takes one unit at least, so this also bounds their number.
const UNIT: usize = 1024;
/// Most rows in one statement.
const ROWS: usize = 1000;
/// How long rows are gathered.
const GATHER: Duration = Duration::from_millis(250);
/// Longest wait for room.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts while the database is away.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest that draining waits for the last rows.
const LAST: Duration = Duration::from_secs(2);

/// A row and its share of the room.
type Waiting = (Row, OwnedSemaphorePermit);

/// One row of either table.
#[derive(Debug)]
pub(super) enum Row {
    Event(NewEvent),
    Line(NewLine),
}

/// Where rows are put. See the module's comment.
#[derive(Debug)]
pub(super) struct Recorder {
    room: Arc<Semaphore>,
    rows: mpsc::Sender<Waiting>,
    /// Until [`record`] takes it.
    receiver: Mutex<Option<mpsc::Receiver<Waiting>>>,
    /// The latest statement found no connection.
    away: AtomicBool,
}

impl Recorder {
    pub(super) fn new() -> Self {
        // As many as there is room for, so that a row with its share always finds a place.
        let (rows, receiver) = mpsc::channel(ROOM);
        Self {
            room: Arc::new(Semaphore::new(ROOM)),
            rows,
            receiver: Mutex::new(Some(receiver)),
            away: AtomicBool::new(false),
        }
    }

    /// Takes a row of about `size` bytes. False: it was dropped.
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

    /// Waits until everything taken so far is stored or dropped, for a bounded time.
    pub(super) async fn stored(&self) {
        // The semaphore is never closed; what is not stored by then is lost with the process.
        let _ = timeout(LAST, self.room.acquire_many(ROOM as u32)).await;
    }
}

/// Records for ever.
pub(super) async fn record(app: App) {
    let recorder = &app.live.0.recorder;
    let receiver = recorder
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

/// The next rows: as many as came within a moment of the first. None when there will be none.
async fn gather(app: &App, rows: &mut mpsc::Receiver<Waiting>) -> Vec<Waiting> {
    let mut batch = Vec::new();
    rows.recv_many(&mut batch, ROWS).await;
    let until = Instant::now() + GATHER;
    while !batch.is_empty() && batch.len() < ROWS && !app.live.is_draining() {
        let most = ROWS - batch.len();
        let more = rows.recv_many(&mut batch, most);
        // Cancel-safe: what was not received stays.
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

/// Runs one statement, again and again while the database is away.
async fn until_stored<F, W>(app: &App, rows: usize, work: F)
where
    F: Fn() -> W,
    W: FnOnce(&mut crate::db::Conn) -> Result<(), DbError> + Send + 'static,
{
    let away = &app.live.0.recorder.away;
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
