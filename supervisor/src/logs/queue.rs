//! State that reader and writer share: per tenant, the lines queued for the sink and the last lines in memory.
//!
//! All sizes are bounded in bytes. A full queue drops its own tenant's lines until half of it is free, then reports how
//! many. No chunk is copied: when the sink takes JSON, the queue, the memory and the followers share the same bytes.

use super::encode::Encoder;
use super::filter::Filter;
use super::follow::Follower;
use super::line_format::LineOrigin;
use super::record::{CHUNK_COST, LogChunk, LogSource};
use super::tail;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Largest number of bytes queued for the sink, over all tenants.
const QUEUES: usize = 64 << 20;
/// Largest number of bytes queued for one tenant, however few tenants there are.
const QUEUE_MOST: usize = 16 << 20;
/// Number of bytes that every tenant may have queued, however many tenants there are.
const QUEUE_LEAST: usize = 64 << 10;
/// Largest number of bytes of last lines in memory, over all tenants.
const MEMORY: usize = 32 << 20;
/// Largest number of bytes of last lines in memory for one tenant.
const MEMORY_MOST: usize = 256 << 10;
/// Number of bytes of last lines that every tenant may keep, however many tenants there are.
const MEMORY_LEAST: usize = 4 << 10;
/// Whole lines queued for the sink, in the sink's format.
#[derive(Debug)]
struct Ready {
    bytes: Bytes,
    lines: u32,
    /// The losses that this line reports; `None` for other lines.
    says: Option<Losses>,
}

/// Lines lost since the last report of losses.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Losses {
    count: u64,
    /// True when the sink refused some of these lines, rather than that all came too fast.
    refused: bool,
}

#[derive(Debug, Default)]
struct Entry {
    queue: VecDeque<Ready>,
    queued: usize,
    /// Chunks with their sequence numbers, which count over all tenants.
    memory: VecDeque<(u64, LogChunk)>,
    remembered: usize,
    /// Lines lost since the last report, and the origin under which the report will appear.
    losing: Option<(Arc<LineOrigin>, Losses)>,
    lost: u64,
    /// Number of open pipes.
    pipes: usize,
    /// True once the tenant was removed: no lines are kept, and the entry goes after its last pipe and queued line.
    gone: bool,
}

struct State {
    entries: BTreeMap<LogSource, Entry>,
    /// Names with queued lines, each once, in the order in which the writer serves them.
    turns: VecDeque<LogSource>,
    followers: Vec<Arc<Follower>>,
    remembered: usize,
    sequence: u64,
    encoder: Arc<Encoder>,
    /// True once no more lines will come.
    closed: bool,
    written: bool,
    /// True while the writer has written all that it took, and waits for more.
    idle: bool,
}

/// State that reader, writer and followers share.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    encoder: Arc<Encoder>,
}

/// One chunk of one tenant, taken for the sink.
#[derive(Debug)]
pub(super) struct SourceTurn {
    pub(super) name: LogSource,
    pub(super) bytes: Bytes,
    pub(super) lines: u32,
    pub(super) says: Option<Losses>,
}

impl Shared {
    pub(super) fn new(encoder: Encoder) -> Self {
        let encoder = Arc::new(encoder);
        let state = State {
            entries: BTreeMap::new(),
            turns: VecDeque::new(),
            followers: Vec::new(),
            remembered: 0,
            sequence: 0,
            encoder: Arc::clone(&encoder),
            closed: false,
            written: false,
            idle: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            encoder,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock is used too, because continued logging matters more than any half-finished update.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues whole lines. Blocks only for the lock, which no thread holds during a system call.
    pub(super) fn push(&self, chunk: LogChunk) {
        if chunk.lines == 0 {
            return;
        }
        // Encode before taking the lock, because encoding is slow and the supervisor's event loop may wait for the
        // lock.
        let encoded = self.encoder.encoded(&chunk);
        let mut state = self.lock();
        let wake = state.turns.is_empty();
        state.push(chunk, encoded);
        let wake = wake && !state.turns.is_empty();
        drop(state);
        if wake {
            self.changed.notify_all();
        }
    }

    /// Waits for queued lines, then takes about `budget` bytes, one chunk per tenant in turn. Returns `None` once all
    /// lines are written and no more will come.
    pub(super) fn take(&self, budget: usize) -> Option<Vec<SourceTurn>> {
        let mut state = self.lock();
        loop {
            if !state.turns.is_empty() {
                state.idle = false;
                return Some(state.take(budget));
            }
            if !std::mem::replace(&mut state.idle, true) {
                self.changed.notify_all();
            }
            if state.closed {
                state.written = true;
                drop(state);
                self.changed.notify_all();
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Counts `lines` lines that the sink refused, so that the tenant's next lines report them.
    pub(super) fn lost(&self, name: &LogSource, lines: u32, says: Option<Losses>) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(name) else {
            return;
        };
        // A report of losses does not count as a lost line, but the losses in it must be reported again.
        let new = if says.is_some() { 0 } else { u64::from(lines) };
        entry.lost += new;
        if entry.gone {
            return;
        }
        let last = entry.memory.back();
        let origin = last.map(|(_, chunk)| Arc::clone(&chunk.origin));
        let (_, losses) = entry.losing.get_or_insert_with(|| {
            let own = || Arc::new(LineOrigin::supervisor(name.clone()));
            (origin.unwrap_or_else(own), Losses::default())
        });
        losses.count += new + says.map_or(0, |losses| losses.count);
        losses.refused = true;
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until the log is closed and all lines are written; returns false if `deadline` passes first.
    pub(super) fn wait_written(&self, deadline: Instant) -> bool {
        self.wait_until(deadline, |state| state.written)
    }

    /// Waits until all lines pushed so far are written; returns false if `deadline` passes first.
    pub(super) fn wait_flushed(&self, deadline: Instant) -> bool {
        self.wait_until(deadline, |state| {
            state.written || (state.idle && state.turns.is_empty())
        })
    }

    fn wait_until(&self, deadline: Instant, done: impl Fn(&State) -> bool) -> bool {
        let mut state = self.lock();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            (state, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    pub(super) fn pipe_opened(&self, name: &LogSource) {
        let mut state = self.lock();
        let entry = state.entries.entry(name.clone()).or_default();
        entry.pipes += 1;
        entry.gone = false;
    }

    pub(super) fn pipe_closed(&self, name: &LogSource) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(name) {
            entry.pipes = entry.pipes.saturating_sub(1);
        }
        state.tidy(name);
    }

    pub(super) fn forget(&self, name: &LogSource) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(name) else {
            return;
        };
        entry.gone = true;
        entry.memory = VecDeque::new();
        let freed = std::mem::take(&mut entry.remembered);
        state.remembered -= freed;
        state.tidy(name);
    }

    /// Returns the number of lines lost so far by each tenant that lost any. `None` stands for the supervisor's own.
    pub(super) fn dropped(&self) -> Vec<(LogSource, u64)> {
        let state = self.lock();
        let lost = state.entries.iter().filter(|(_, entry)| entry.lost > 0);
        lost.map(|(name, entry)| (name.clone(), entry.lost))
            .collect()
    }

    /// Takes the last `lines` lines in memory that match `filter`, oldest first, [dealt out](tail::deal) among their
    /// sources. `follower` gets all later lines, so none is missed and none comes twice.
    pub(super) fn tail(
        &self,
        filter: &Filter,
        lines: usize,
        follower: Option<Arc<Follower>>,
    ) -> Vec<Bytes> {
        let sources: Vec<Vec<(u64, LogChunk)>> = {
            let mut state = self.lock();
            state.followers.extend(follower);
            let wanted = state.entries.iter().filter(|(name, _)| filter.wants(name));
            wanted
                .map(|(_, entry)| entry.memory.iter().cloned().collect())
                .collect()
        };
        let sources = sources
            .into_iter()
            .map(|chunks| tail::newest(chunks.into_iter().rev(), lines, filter.level));
        let dealt = tail::deal(sources.collect(), lines);
        dealt.into_iter().map(|line| line.bytes).collect()
    }

    /// Returns the last `lines` lines of one process.
    pub(super) fn last_words(&self, name: &LogSource, pid: i32, lines: usize) -> Vec<Bytes> {
        let chunks: Vec<(u64, LogChunk)> = {
            let state = self.lock();
            let memory = state.entries.get(name).map(|entry| entry.memory.iter());
            let own = memory
                .into_iter()
                .flatten()
                .filter(|(_, chunk)| chunk.origin.pid == pid);
            own.cloned().collect()
        };
        let newest = tail::newest(chunks.into_iter().rev(), lines, None);
        newest.into_iter().rev().map(|line| line.bytes).collect()
    }
}

impl State {
    fn push(&mut self, chunk: LogChunk, encoded: Bytes) {
        let name = chunk.origin.tenant.clone();
        let limit = share(QUEUES, self.entries.len(), QUEUE_LEAST, QUEUE_MOST);
        self.remember(&name, chunk.clone());
        let entry = self.entries.entry(name.clone()).or_default();
        match &mut entry.losing {
            // Report losses only once the queue is half empty, because otherwise every second line would be a report.
            Some(_) if entry.queued <= limit / 2 => {
                self.say_losses(&name);
                self.enqueue(&name, encoded, chunk.lines, None);
            }
            Some((origin, losses)) => {
                *origin = chunk.origin;
                losses.count += u64::from(chunk.lines);
                entry.lost += u64::from(chunk.lines);
            }
            None if entry.queue.is_empty() || entry.queued + encoded.len() <= limit => {
                self.enqueue(&name, encoded, chunk.lines, None);
            }
            None => {
                let losses = Losses {
                    count: u64::from(chunk.lines),
                    refused: false,
                };
                entry.losing = Some((chunk.origin, losses));
                entry.lost += u64::from(chunk.lines);
            }
        }
    }

    fn say_losses(&mut self, name: &LogSource) {
        let Some((origin, losses)) = self.entries.get_mut(name).and_then(|e| e.losing.take())
        else {
            return;
        };
        let mut line = Vec::new();
        let count = losses.count;
        let plural = if count == 1 { "line" } else { "lines" };
        let why = match losses.refused {
            true => "the log could not be written",
            false => "they came faster than the log is read",
        };
        let message = format!("dropped {count} {plural}: {why}");
        origin.write(&mut line, "WARN", "brokkr_supervisor::logs", &message);
        let chunk = LogChunk {
            origin,
            bytes: line.into(),
            lines: 1,
        };
        self.remember(name, chunk.clone());
        let encoded = self.encoder.encoded(&chunk);
        self.enqueue(name, encoded, 1, Some(losses));
    }

    fn enqueue(&mut self, name: &LogSource, bytes: Bytes, lines: u32, says: Option<Losses>) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        if entry.queue.is_empty() {
            self.turns.push_back(name.clone());
        }
        entry.queued += bytes.len() + CHUNK_COST;
        entry.queue.push_back(Ready { bytes, lines, says });
    }

    fn remember(&mut self, name: &LogSource, chunk: LogChunk) {
        for follower in &self.followers {
            follower.offer(&chunk);
        }
        self.followers.retain(|follower| !follower.is_closed());
        let tenants = self.entries.len().max(1);
        let limit = share(MEMORY, tenants, MEMORY_LEAST, MEMORY_MOST);
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.gone {
            return;
        }
        let cost = chunk.cost();
        entry.memory.push_back((self.sequence, chunk));
        self.sequence += 1;
        entry.remembered += cost;
        self.remembered += cost;
        self.remembered -= entry.trim(limit);
        if self.remembered > MEMORY {
            // Trim every tenant's lines, because each tenant's share may have shrunk since that tenant last wrote.
            let freed: usize = self
                .entries
                .values_mut()
                .map(|entry| entry.trim(limit))
                .sum();
            self.remembered -= freed;
        }
    }

    fn take(&mut self, budget: usize) -> Vec<SourceTurn> {
        let limit = share(QUEUES, self.entries.len(), QUEUE_LEAST, QUEUE_MOST);
        let mut turns = Vec::new();
        let mut taken = 0;
        while taken < budget
            && let Some(name) = self.turns.pop_front()
        {
            let Some(entry) = self.entries.get_mut(&name) else {
                continue;
            };
            let Some(ready) = entry.queue.pop_front() else {
                continue;
            };
            entry.queued -= ready.bytes.len() + CHUNK_COST;
            taken += ready.bytes.len();
            if !entry.queue.is_empty() {
                self.turns.push_back(name.clone());
            }
            let has_room = entry.losing.is_some() && entry.queued <= limit / 2;
            if has_room {
                self.say_losses(&name);
            }
            self.tidy(&name);
            turns.push(SourceTurn {
                name,
                bytes: ready.bytes,
                lines: ready.lines,
                says: ready.says,
            });
        }
        turns
    }

    /// Removes the entry of a removed tenant once the tenant has no pipe, queued line or unreported loss.
    fn tidy(&mut self, name: &LogSource) {
        let done = self.entries.get(name).is_some_and(|entry| {
            entry.gone && entry.pipes == 0 && entry.queue.is_empty() && entry.losing.is_none()
        });
        if done && let Some(entry) = self.entries.remove(name) {
            self.remembered -= entry.remembered;
        }
    }
}

impl Entry {
    /// Removes the oldest chunks beyond `limit`, but never the latest. Returns the number of bytes freed.
    fn trim(&mut self, limit: usize) -> usize {
        let before = self.remembered;
        while self.remembered > limit && self.memory.len() > 1 {
            if let Some((_, chunk)) = self.memory.pop_front() {
                self.remembered -= chunk.cost();
            }
        }
        before - self.remembered
    }
}

/// Returns a fair share of `whole`, within bounds.
fn share(whole: usize, among: usize, least: usize, most: usize) -> usize {
    (whole / among.max(1)).clamp(least, most)
}
