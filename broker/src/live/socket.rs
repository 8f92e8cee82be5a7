//! One socket, from its upgrade to its end: a reader and a writer in one task.
//!
//! The writer sends what its mailbox holds, pings, and closes. Nothing waits for a peer for ever: a write that takes long,
//! or a ping that nothing answers, ends the socket. While the reader waits for the database the peer's frames wait in the
//! kernel's buffers and then at the peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use super::ingest::Ingest;
use super::mailbox::{Frame, Whose};
use super::registry::{Ending, Peer};
use super::{CLOSE_WAIT, Drain, Live, Seat, recheck};
use crate::app::App;
use crate::metrics::sockets::Direction;
use crate::pak::PakHash;

/// Between two pings. A peer of which nothing is heard from one to the next is gone.
const PING: Duration = Duration::from_secs(30);
/// Longest that sending [`BATCH`] frames, or a ping, may take.
const WRITE: Duration = Duration::from_secs(10);
/// Frames sent at once.
const BATCH: usize = 64;

/// Who has been let in.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Whose the socket is to be.
    pub(crate) whose: Whose,
    /// The hash of the PAK that opened it.
    pub(crate) hash: PakHash,
    /// [`Live::deaths`] before that PAK was looked up.
    pub(crate) deaths: u64,
}

/// A socket's entry in the registry, for as long as it lives.
struct Membership {
    live: Live,
    peer: Arc<Peer>,
}

impl Membership {
    fn new(live: &Live, guest: Guest) -> Self {
        let peer = live.0.registry.join(guest.whose, guest.hash);
        let membership = Self {
            live: live.clone(),
            peer,
        };
        live.0.joined.notify_one();
        membership.tell();
        membership
    }

    /// The fleet shows who is connected; its feed begins with its first subscriber.
    fn tell(&self) {
        match self.peer.whose {
            Whose::Agent(id) => self.live.fleet_changed(id),
            Whose::Fleet => self.live.0.feed.subscribed(),
            Whose::Stack(_) => {}
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.live.0.registry.leave(&self.peer);
        self.tell();
    }
}

/// Serves a socket until it ends. Its place among the connections is given back after that.
pub(crate) async fn serve(app: App, socket: WebSocket, guest: Guest, seat: Seat) {
    let deaths = guest.deaths;
    let membership = Membership::new(&app.live, guest);
    let peer = membership.peer.clone();
    // Whoever is revoked from now on is found in the registry. A PAK that died between its look-up and now was not: if any
    // has, it is looked up again.
    if app.live.deaths() != deaths && !recheck::is_alive(&app, &peer).await {
        peer.end(Ending::Revoked);
    }
    let draining = app.live.0.draining.subscribe();
    let reader = match peer.whose {
        Whose::Agent(id) => Reader::Agent(Box::new(Ingest::new(app, peer.clone(), id))),
        Whose::Stack(_) | Whose::Fleet => Reader::Nobody,
    };
    drive(socket, &peer, &membership.live, reader, draining).await;
    drop(membership);
    drop(seat);
}

/// Who takes what the peer sends.
enum Reader {
    Agent(Box<Ingest>),
    Nobody,
}

impl Reader {
    async fn take(&mut self, text: &str) {
        if let Reader::Agent(ingest) = self {
            ingest.take(text).await;
        }
    }
}

/// What the writer knows of the reader.
#[derive(Default)]
struct Heard {
    /// Something came since the last ping.
    anything: AtomicBool,
    /// The reader is at work, so what comes is not seen.
    busy: AtomicBool,
}

async fn drive<S, E>(
    socket: S,
    peer: &Peer,
    live: &Live,
    mut reader: Reader,
    draining: watch::Receiver<Option<Drain>>,
) where
    S: Stream<Item = Result<Message, E>> + Sink<Message, Error = E>,
{
    let (mut sink, mut stream) = socket.split();
    let heard = Heard::default();
    let reading = async {
        loop {
            match stream.next().await {
                Some(Ok(message)) => {
                    heard.anything.store(true, Ordering::Relaxed);
                    if let Message::Text(text) = message {
                        heard.busy.store(true, Ordering::Relaxed);
                        reader.take(text.as_str()).await;
                        heard.busy.store(false, Ordering::Relaxed);
                    }
                }
                // Too large, or no WebSocket frame.
                Some(Err(_)) => return Err(()),
                None => return Ok(()),
            }
        }
    };
    tokio::pin!(reading);
    let told = told(peer.ending(), draining);
    tokio::pin!(told);
    // Not biased: a peer that never pauses must not keep the writer from its turn.
    let (frame, wait) = tokio::select! {
        ended = &mut reading => match ended {
            Ok(()) => return,
            Err(()) => (close_frame(1002, "a frame was not accepted"), Duration::ZERO),
        },
        () = write(&mut sink, peer, live, &heard) => return,
        (ending, wait) = &mut told => (ending.frame(), wait),
    };
    if !matches!(
        timeout(WRITE.min(CLOSE_WAIT), sink.send(frame)).await,
        Ok(Ok(()))
    ) {
        return;
    }
    // What was sent before the peer saw the close is still taken (unless its PAK is dead); then its answer ends it.
    let _ = timeout(wait, reading).await;
}

/// Sends until the peer does not take it or is gone.
async fn write<S>(sink: &mut S, peer: &Peer, live: &Live, heard: &Heard)
where
    S: Sink<Message> + Unpin,
{
    // Somewhere in the first period: sockets that were opened together do not all ping together.
    let first = Instant::now() + PING.mul_f64(fastrand::f64());
    let mut ticks = interval_at(first, PING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = false;
    loop {
        // Both arms are cancel-safe.
        let written = tokio::select! {
            frame = peer.mailbox.next() => timeout(WRITE, send(sink, frame, peer, live)).await,
            _ = ticks.tick() => {
                let silent = !heard.anything.swap(false, Ordering::Relaxed) && !heard.busy.load(Ordering::Relaxed);
                if silent && asked {
                    return;
                }
                asked = true;
                timeout(WRITE, sink.send(Message::Ping(Bytes::new()))).await
            }
        };
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

/// Sends a frame and those that wait behind it.
async fn send<S>(sink: &mut S, first: Frame, peer: &Peer, live: &Live) -> Result<(), S::Error>
where
    S: Sink<Message> + Unpin,
{
    let behind = std::iter::from_fn(|| peer.mailbox.take());
    for frame in std::iter::once(first).chain(behind).take(BATCH) {
        sink.feed(Message::Text(frame.text)).await?;
        peer.sent.fetch_add(1, Ordering::Relaxed);
        live.0.metrics.frame(Direction::Out, frame.kind);
    }
    sink.flush().await
}

/// Waits for a reason to close, and says how long the peer then has. While the spread of a drain is waited out, any other
/// reason still counts at once.
async fn told(
    mut ending: watch::Receiver<Option<Ending>>,
    mut draining: watch::Receiver<Option<Drain>>,
) -> (Ending, Duration) {
    let ended = async move {
        match ending.wait_for(Option::is_some).await.map(|why| *why) {
            Ok(Some(why)) => (why, CLOSE_WAIT),
            // The sender lives as long as the socket.
            _ => std::future::pending().await,
        }
    };
    let drained = async move {
        match draining.wait_for(Option::is_some).await.map(|drain| *drain) {
            Ok(Some(Drain { spread, wait })) => {
                sleep(spread.mul_f64(fastrand::f64())).await;
                (Ending::Draining, wait)
            }
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        told = ended => told,
        told = drained => told,
    }
}

impl Ending {
    fn frame(self) -> Message {
        match self {
            Ending::Revoked => close_frame(1008, "the PAK is no longer valid"),
            Ending::Replaced => close_frame(1000, "the agent has connected anew"),
            Ending::Draining => close_frame(1012, "the broker restarts"),
        }
    }
}

fn close_frame(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame {
        code,
        reason: reason.into(),
    }))
}

#[cfg(test)]
mod tests;
