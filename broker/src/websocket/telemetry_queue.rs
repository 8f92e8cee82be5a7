//! The bounded queue of telemetry rows that wait to be stored.
//!
//! The memory for waiting rows is bounded in bytes, for all agents together. When it is full, a reader waits up to
//! `PATIENCE`, which slows its agent down through the socket, and then drops the row; while the database is
//! unavailable, readers do not wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use crate::store::telemetry::{NewKubeEvent, NewLogLine};

/// Memory for waiting rows, in units of [`UNIT`] bytes.
const ROOM: usize = 8 * 1024;
/// Bytes in a unit of [`ROOM`]. A row takes at least one unit, so `ROOM` also bounds the number of rows.
const UNIT: usize = 1024;
/// Longest wait for room.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest wait of a drain for the last rows.
const LAST: Duration = Duration::from_secs(2);

/// A row with its share of the room.
pub(super) type Waiting = (Row, OwnedSemaphorePermit);

/// A row of one of the two tables.
#[derive(Debug)]
pub(super) enum Row {
    Event(NewKubeEvent),
    Line(NewLogLine),
}

/// Queue through which readers hand rows to the writer.
#[derive(Debug)]
pub(super) struct TelemetryQueue {
    room: Arc<Semaphore>,
    rows: mpsc::Sender<Waiting>,
    /// Receiver of the rows, until the writer takes it.
    receiver: Mutex<Option<mpsc::Receiver<Waiting>>>,
    /// True when the latest statement found no connection.
    pub(super) away: AtomicBool,
}

impl TelemetryQueue {
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

    /// Returns the receiver of the rows to its only caller, the writer.
    pub(super) fn receiver(&self) -> Option<mpsc::Receiver<Waiting>> {
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.take()
    }
}
