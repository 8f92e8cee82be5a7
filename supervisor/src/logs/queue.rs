//! What the reader and the writer share: per tenant, the lines on their way to the sink and the last lines in memory.
//!
//! Everything is counted in bytes and bounded: a queue that is full loses its own tenant's lines until it has half
//! emptied, and says how many when it has. Chunks are never copied: queue, memory and followers hold the same bytes when
//! the sink takes JSON.

use super::encode::Encoder;
use super::filter::Filter;
use super::follow::Follower;
use super::line::Origin;
use super::tail;
use brokkr_tenant::TenantName;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most bytes waiting for the sink, over all tenants.
const QUEUES: usize = 64 << 20;
/// Most bytes waiting for the sink for one tenant, however few tenants there are.
const QUEUE_MOST: usize = 16 << 20;
/// What every tenant may have waiting, however many there are.
const QUEUE_LEAST: usize = 64 << 10;
/// Most bytes of last lines kept, over all tenants.
const MEMORY: usize = 32 << 20;
/// Most bytes of last lines kept for one tenant.
const MEMORY_MOST: usize = 256 << 10;
/// What every tenant keeps, however many there are.
const MEMORY_LEAST: usize = 4 << 10;
/// Cost of a chunk beside its bytes, so that thousands of short lines are counted as what they are.
const CHUNK_COST: usize = 96;

/// The supervisor's lines about no tenant are kept under `None`.
pub(super) type Name = Option<TenantName>;

/// Whole lines of one origin, in canonical form.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub(super) origin: Arc<Origin>,
    pub(super) bytes: Bytes,
    pub(super) lines: u32,
}

impl Chunk {
    fn cost(&self) -> usize {
        self.bytes.len() + CHUNK_COST
    }
}

/// What is on its way to the sink: encoded for it, whole lines.
#[derive(Debug)]
struct Ready {
    bytes: Bytes,
    lines: u32,
    /// Where it only says how many were lost: what it says.
    says: Option<Losses>,
}

/// Lines lost since it was last said.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Losses {
    count: u64,
    /// The sink refused some: it was not that they came too fast.
    refused: bool,
}

#[derive(Debug, Default)]
struct Entry {
    queue: VecDeque<Ready>,
    queued: usize,
    /// Chunks with the order they came in, over all tenants.
    memory: VecDeque<(u64, Chunk)>,
    remembered: usize,
    /// Lines lost since it was last said, and who was to have said them.
    losing: Option<(Arc<Origin>, Losses)>,
    lost: u64,
    /// Open pipes.
    pipes: usize,
    /// Its tenant has gone: nothing is remembered, and the entry goes with its last pipe and line.
    gone: bool,
}

struct State {
    entries: BTreeMap<Name, Entry>,
    /// Who has something for the sink, each once, in turn.
    turns: VecDeque<Name>,
    followers: Vec<Arc<Follower>>,
    remembered: usize,
    sequence: u64,
    encoder: Arc<Encoder>,
    /// No more lines will come.
    closed: bool,
    written: bool,
    /// The writer has written all it took, and waits for more.
    idle: bool,
}

/// The shared part.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    encoder: Arc<Encoder>,
}

/// One turn of one tenant at the sink.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) name: Name,
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
        // Nothing in here is left half done by a panic that matters more than logging on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes whole lines. Never blocks but for the lock, which nobody holds over a system call.
    pub(super) fn push(&self, chunk: Chunk) {
        if chunk.lines == 0 {
            return;
        }
        // Before the lock: this is the costly part, and the supervisor's event loop may be waiting to log.
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

    /// Waits for something to write, then takes turns worth about `budget` bytes, one chunk a tenant in turn. `None`: all
    /// is written and nothing will come.
    pub(super) fn take(&self, budget: usize) -> Option<Vec<Turn>> {
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

    /// A turn the sink did not take after all, of so many lines: said when it takes the tenant's next.
    pub(super) fn lost(&self, name: &Name, lines: u32, says: Option<Losses>) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(name) else {
            return;
        };
        // A line about losses is none itself, and what it said is still to be said.
        let new = if says.is_some() { 0 } else { u64::from(lines) };
        entry.lost += new;
        if entry.gone {
            return;
        }
        let last = entry.memory.back();
        let origin = last.map(|(_, chunk)| Arc::clone(&chunk.origin));
        let (_, losses) = entry.losing.get_or_insert_with(|| {
            let own = || Arc::new(Origin::supervisor(name.clone()));
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

    /// Waits until all is written and nothing will come; false when it was not by `deadline`.
    pub(super) fn wait_written(&self, deadline: Instant) -> bool {
        self.wait_until(deadline, |state| state.written)
    }

    /// Waits until all that was pushed so far is written; false when it was not by `deadline`.
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

    pub(super) fn pipe_opened(&self, name: &Name) {
        let mut state = self.lock();
        let entry = state.entries.entry(name.clone()).or_default();
        entry.pipes += 1;
        entry.gone = false;
    }

    pub(super) fn pipe_closed(&self, name: &Name) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(name) {
            entry.pipes = entry.pipes.saturating_sub(1);
        }
        state.tidy(name);
    }

    pub(super) fn forget(&self, name: &Name) {
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

    /// Lines lost so far, by tenant; only tenants that lost any. The supervisor's own are under `None`.
    pub(super) fn dropped(&self) -> Vec<(Name, u64)> {
        let state = self.lock();
        let lost = state.entries.iter().filter(|(_, entry)| entry.lost > 0);
        lost.map(|(name, entry)| (name.clone(), entry.lost))
            .collect()
    }

    /// Takes the last `lines` lines in memory that `filter` wants, oldest first, [dealt out](tail::deal) among their
    /// sources. From then on `follower` gets all that come: none is missed between and none comes twice.
    pub(super) fn tail(
        &self,
        filter: &Filter,
        lines: usize,
        follower: Option<Arc<Follower>>,
    ) -> Vec<Bytes> {
        let sources: Vec<Vec<(u64, Chunk)>> = {
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

    /// The last `lines` lines of one process.
    pub(super) fn last_words(&self, name: &Name, pid: i32, lines: usize) -> Vec<Bytes> {
        let chunks: Vec<(u64, Chunk)> = {
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
    fn push(&mut self, chunk: Chunk, encoded: Bytes) {
        let name = chunk.origin.tenant.clone();
        let limit = share(QUEUES, self.entries.len(), QUEUE_LEAST, QUEUE_MOST);
        self.remember(&name, chunk.clone());
        let entry = self.entries.entry(name.clone()).or_default();
        match &mut entry.losing {
            // Half empty again, not just one line less: else every second line would be about the others.
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

    fn say_losses(&mut self, name: &Name) {
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
        let chunk = Chunk {
            origin,
            bytes: line.into(),
            lines: 1,
        };
        self.remember(name, chunk.clone());
        let encoded = self.encoder.encoded(&chunk);
        self.enqueue(name, encoded, 1, Some(losses));
    }

    fn enqueue(&mut self, name: &Name, bytes: Bytes, lines: u32, says: Option<Losses>) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        if entry.queue.is_empty() {
            self.turns.push_back(name.clone());
        }
        entry.queued += bytes.len() + CHUNK_COST;
        entry.queue.push_back(Ready { bytes, lines, says });
    }

    fn remember(&mut self, name: &Name, chunk: Chunk) {
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
            // The share has shrunk since the others wrote last.
            let freed: usize = self
                .entries
                .values_mut()
                .map(|entry| entry.trim(limit))
                .sum();
            self.remembered -= freed;
        }
    }

    fn take(&mut self, budget: usize) -> Vec<Turn> {
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
            turns.push(Turn {
                name,
                bytes: ready.bytes,
                lines: ready.lines,
                says: ready.says,
            });
        }
        turns
    }

    /// Removes what is left of a tenant that has gone, once nothing of it is under way.
    fn tidy(&mut self, name: &Name) {
        let done = self.entries.get(name).is_some_and(|entry| {
            entry.gone && entry.pipes == 0 && entry.queue.is_empty() && entry.losing.is_none()
        });
        if done && let Some(entry) = self.entries.remove(name) {
            self.remembered -= entry.remembered;
        }
    }
}

impl Entry {
    /// Forgets the oldest chunks beyond `limit`, but never the latest. Says how much that freed.
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

/// A fair share of `whole`, within bounds.
fn share(whole: usize, among: usize, least: usize, most: usize) -> usize {
    (whole / among.max(1)).clamp(least, most)
}
