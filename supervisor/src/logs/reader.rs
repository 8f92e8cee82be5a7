//! The one thread that reads: every pipe in turn, a big block at a time, and only when there is something to read.
//!
//! The pipes are blocking, for they are shared with the brokers, whose writes must not fail; a read of a pipe that
//! is readable and has no other reader does not block. A tenant that floods has one block a round, as everybody has.

use super::line::{Origin, Splitter, timestamp};
use super::queue::{Chunk, Shared};
use crate::handover::Carry;
use bytes::Bytes;
use chrono::Utc;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// One read. A pipe holds as much.
const BLOCK: usize = 64 << 10;
/// A chunk is handed on when it has grown to this; short lines of text grow sevenfold.
const CHUNK: usize = 64 << 10;
/// Most that is read of one pipe when its process has ended or we are ending: somebody else may still be writing.
const LAST: usize = 1 << 20;
/// The token of the wake-up descriptor.
const WAKE: u64 = 0;

/// What the reader is told.
pub(super) enum Command {
    /// A new pipe.
    Attach {
        token: u64,
        origin: Arc<Origin>,
        pipe: Arc<OwnedFd>,
        carry: Carry,
    },
    /// The process has ended: read all there is, take what has no line feed as a line, and say so.
    Drain {
        origin: Origin,
        done: oneshot::Sender<()>,
    },
    /// Let every pipe go, and say by pid where each was left.
    Release(oneshot::Sender<BTreeMap<i32, Carry>>),
    /// Read all there is, everywhere, and end.
    Stop,
}

/// The way to the reader.
pub(super) struct Control {
    epoll: Epoll,
    wake: EventFd,
    commands: Mutex<VecDeque<Command>>,
    tokens: AtomicU64,
}

impl Control {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let commands = Mutex::default();
        Ok(Self {
            epoll,
            wake,
            commands,
            tokens: AtomicU64::new(WAKE + 1),
        })
    }

    /// Hands a pipe over.
    pub(super) fn attach(
        &self,
        origin: Arc<Origin>,
        pipe: Arc<OwnedFd>,
        carry: Carry,
    ) -> io::Result<()> {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        // First here, where an error has somebody to go to. Readable before the reader knows the token, it is
        // simply reported again.
        self.epoll
            .add(&*pipe, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        self.tell(Command::Attach {
            token,
            origin,
            pipe,
            carry,
        });
        Ok(())
    }

    pub(super) fn tell(&self, command: Command) {
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(command);
        // Full only when the reader has been woken four thousand million times and not looked.
        let _ = self.wake.write(1);
    }

    fn next(&self) -> Option<Command> {
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

struct Source {
    origin: Arc<Origin>,
    pipe: Arc<OwnedFd>,
    splitter: Splitter,
}

/// The state of the thread.
pub(super) struct Reader {
    control: Arc<Control>,
    shared: Arc<Shared>,
    sources: HashMap<u64, Source>,
    block: Box<[u8]>,
    out: Vec<u8>,
}

impl Reader {
    pub(super) fn new(control: Arc<Control>, shared: Arc<Shared>) -> Self {
        let block = vec![0; BLOCK].into_boxed_slice();
        Self {
            control,
            shared,
            sources: HashMap::new(),
            block,
            out: Vec::new(),
        }
    }

    /// Reads until told to stop.
    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            // Level-triggered and with a short list of events: the kernel goes round among those that are ready.
            let count = match self.control.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                // Cannot happen to a descriptor that we hold; if it does, reading has ended.
                Err(_) => break,
            };
            let mut woken = false;
            for event in &events[..count] {
                if event.data() == WAKE {
                    woken = true;
                } else {
                    self.read(event.data());
                }
            }
            if woken && !self.obey() {
                break;
            }
        }
        self.shared.close();
    }

    /// False: stop.
    fn obey(&mut self) -> bool {
        let _ = self.control.wake.read();
        while let Some(command) = self.control.next() {
            match command {
                Command::Attach {
                    token,
                    origin,
                    pipe,
                    carry,
                } => {
                    let splitter = Splitter::resume(carry);
                    self.sources.insert(
                        token,
                        Source {
                            origin,
                            pipe,
                            splitter,
                        },
                    );
                }
                Command::Drain { origin, done } => {
                    let of_it = self
                        .sources
                        .iter()
                        .filter(|(_, source)| *source.origin == origin);
                    for token in of_it.map(|(token, _)| *token).collect::<Vec<_>>() {
                        self.drain(token);
                    }
                    // Whoever asked may have gone; the lines are in memory all the same.
                    let _ = done.send(());
                }
                Command::Release(done) => {
                    let mut left = BTreeMap::new();
                    for (_, source) in self.sources.drain() {
                        // Said to the kernel: the descriptor lives on elsewhere, and would go on being reported.
                        let _ = self.control.epoll.delete(&*source.pipe);
                        self.shared.pipe_closed(&source.origin.tenant);
                        left.insert(source.origin.pid, source.splitter.leave());
                    }
                    let _ = done.send(left);
                }
                Command::Stop => {
                    for token in self.sources.keys().copied().collect::<Vec<_>>() {
                        self.drain(token);
                    }
                    return false;
                }
            }
        }
        true
    }

    /// Reads all there is, then takes what has no line feed as a line.
    fn drain(&mut self, token: u64) {
        let mut total = 0;
        while total < LAST {
            match self.sources.get(&token) {
                Some(source) if is_readable(&source.pipe) => total += self.read(token),
                _ => break,
            }
        }
        if let Some(source) = self.sources.get_mut(&token) {
            let lines = source
                .splitter
                .end(&source.origin, &timestamp(Utc::now()), &mut self.out);
            hand_on(&self.shared, &source.origin, &mut self.out, lines);
        }
    }

    /// Reads one block. Says how much that was.
    fn read(&mut self, token: u64) -> usize {
        let Some(source) = self.sources.get_mut(&token) else {
            return 0;
        };
        let now = timestamp(Utc::now());
        match nix::unistd::read(&*source.pipe, &mut self.block) {
            Ok(0) => {}
            Ok(count) => {
                let mut lines = 0;
                // Parts, so that no chunk becomes much larger than others.
                for part in self.block[..count].chunks(BLOCK / 4) {
                    lines += source
                        .splitter
                        .feed(&source.origin, part, &now, &mut self.out);
                    if self.out.len() >= CHUNK {
                        hand_on(
                            &self.shared,
                            &source.origin,
                            &mut self.out,
                            std::mem::take(&mut lines),
                        );
                    }
                }
                hand_on(&self.shared, &source.origin, &mut self.out, lines);
                return count;
            }
            Err(Errno::EINTR | Errno::EAGAIN) => return 0,
            // A pipe has no other errors; whatever it is, nothing more will come of it.
            Err(_) => {}
        }
        if let Some(mut source) = self.sources.remove(&token) {
            let lines = source.splitter.end(&source.origin, &now, &mut self.out);
            hand_on(&self.shared, &source.origin, &mut self.out, lines);
            // Said to the kernel, for the descriptor may be held elsewhere too and would go on being reported.
            let _ = self.control.epoll.delete(&*source.pipe);
            self.shared.pipe_closed(&source.origin.tenant);
        }
        0
    }
}

fn hand_on(shared: &Shared, origin: &Arc<Origin>, out: &mut Vec<u8>, lines: u32) {
    if lines > 0 {
        let bytes = Bytes::copy_from_slice(out);
        shared.push(Chunk {
            origin: Arc::clone(origin),
            bytes,
            lines,
        });
    }
    out.clear();
    // Kept for the next block, but not what one flood of tiny lines made of it.
    out.shrink_to(8 * CHUNK);
}

fn is_readable(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
