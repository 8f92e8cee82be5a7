//! Serves one socket from its upgrade to its end: a reader and a writer in one task.
//!
//! The writer sends the frames of the outbound queue, pings, and closes. No wait for the peer is unbounded: a slow
//! write or an unanswered ping ends the socket. While the reader waits for the database, the peer's frames wait in the
//! kernel's buffers and then at the peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use super::connection_permit::SocketPermit;
use super::credential_recheck;
use super::frames::Frame;
use super::handle::{CLOSE_WAIT, DrainState, WebSockets};
use super::ingest::Ingest;
use super::outbound_queue::QueueOwner;
use super::registry::{CloseReason, Peer};
use crate::app::App;
use crate::metrics::sockets::Direction;
use crate::pak::PakHash;

/// Time between two pings. A peer that sends nothing between two pings is considered gone.
const PING: Duration = Duration::from_secs(30);
/// Longest time to send [`BATCH`] frames or a ping.
const WRITE: Duration = Duration::from_secs(10);
/// Largest number of frames sent before a flush.
const BATCH: usize = 64;

/// An authorised caller whose socket is about to open.
#[derive(Debug)]
pub(crate) struct SocketClient {
    pub(crate) whose: QueueOwner,
    /// Hash of the PAK that opened the socket.
    pub(crate) hash: PakHash,
    /// Value of [`WebSockets::deaths`] before that PAK was looked up.
    pub(crate) deaths: u64,
}

/// A socket's entry in the registry, removed on drop.
struct Membership {
    live: WebSockets,
    peer: Arc<Peer>,
}

impl Membership {
    fn new(live: &WebSockets, guest: SocketClient) -> Self {
        let peer = live.0.registry.join(guest.whose, guest.hash);
        let membership = Self {
            live: live.clone(),
            peer,
        };
        live.0.joined.notify_one();
        membership.tell();
        membership
    }

    /// Wakes the fleet's feed: it shows the connected agents, and runs only while it has subscribers.
    fn tell(&self) {
        match self.peer.whose {
            QueueOwner::Agent(id) => self.live.fleet_changed(id),
            QueueOwner::Fleet => self.live.0.fleet_changes.subscribed(),
            QueueOwner::Stack(_) => {}
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.live.0.registry.leave(&self.peer);
        self.tell();
    }
}

/// Serves a socket until it ends, then releases its slot.
pub(crate) async fn serve(app: App, socket: WebSocket, guest: SocketClient, seat: SocketPermit) {
    let deaths = guest.deaths;
    let membership = Membership::new(&app.live, guest);
    let peer = membership.peer.clone();
    // A revocation from now on finds the socket in the registry. A PAK revoked between its look-up and now did not, so
    // the socket is looked up again if any PAK was revoked since.
    if app.live.deaths() != deaths && !credential_recheck::is_alive(&app, &peer).await {
        peer.end(CloseReason::Revoked);
    }
    let draining = app.live.0.draining.subscribe();
    let reader = match peer.whose {
        QueueOwner::Agent(id) => Reader::Agent(Box::new(Ingest::new(app, peer.clone(), id))),
        QueueOwner::Stack(_) | QueueOwner::Fleet => Reader::Nobody,
    };
    drive(socket, &peer, &membership.live, reader, draining).await;
    drop(membership);
    drop(seat);
}

/// Handler of the frames that the peer sends.
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

/// State of the reader, as the writer sees it.
#[derive(Default)]
struct Heard {
    /// True when a message came since the last ping.
    anything: AtomicBool,
    /// True while the reader handles a frame, because further messages are not seen then.
    busy: AtomicBool,
}

async fn drive<S, E>(
    socket: S,
    peer: &Peer,
    live: &WebSockets,
    mut reader: Reader,
    draining: watch::Receiver<Option<DrainState>>,
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
                // The message is too large or no WebSocket frame.
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
            Err(()) => (close_frame(1002, "a frame was not accepted"), None),
        },
        () = write(&mut sink, peer, live, &heard) => return,
        (ending, wait) = &mut told => (ending.frame(), Some(wait)),
    };
    if !matches!(
        timeout(WRITE.min(CLOSE_WAIT), sink.send(frame)).await,
        Ok(Ok(()))
    ) {
        return;
    }
    // Frames that the peer sent before it saw the close are still handled, unless its PAK is revoked; its answer then
    // ends the socket. After an invalid frame the reader has ended and must not be polled again.
    if let Some(wait) = wait {
        let _ = timeout(wait, reading).await;
    }
}

/// Sends frames and pings until a write fails or a ping is not answered.
async fn write<S>(sink: &mut S, peer: &Peer, live: &WebSockets, heard: &Heard)
where
    S: Sink<Message> + Unpin,
{
    // The first ping comes at a random time in the first period, so that sockets opened together do not ping together.
    let first = Instant::now() + PING.mul_f64(fastrand::f64());
    let mut ticks = interval_at(first, PING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = false;
    loop {
        // Both arms are cancel-safe.
        let written = tokio::select! {
            frame = peer.outbound_queue.next() => timeout(WRITE, send(sink, frame, peer, live)).await,
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

/// Sends a frame and the frames that wait behind it, up to [`BATCH`].
async fn send<S>(sink: &mut S, first: Frame, peer: &Peer, live: &WebSockets) -> Result<(), S::Error>
where
    S: Sink<Message> + Unpin,
{
    let behind = std::iter::from_fn(|| peer.outbound_queue.take());
    for frame in std::iter::once(first).chain(behind).take(BATCH) {
        sink.feed(Message::Text(frame.text)).await?;
        peer.sent.fetch_add(1, Ordering::Relaxed);
        live.0.metrics.frame(Direction::Out, frame.kind);
    }
    sink.flush().await
}

/// Waits for a reason to close, and returns it with the time that the peer has to answer. A revocation or replacement
/// during the spread of a drain takes effect at once.
async fn told(
    mut ending: watch::Receiver<Option<CloseReason>>,
    mut draining: watch::Receiver<Option<DrainState>>,
) -> (CloseReason, Duration) {
    let ended = async move {
        match ending.wait_for(Option::is_some).await.map(|why| *why) {
            Ok(Some(why)) => (why, CLOSE_WAIT),
            // The sender lives as long as the socket.
            _ => std::future::pending().await,
        }
    };
    let drained = async move {
        match draining.wait_for(Option::is_some).await.map(|drain| *drain) {
            Ok(Some(DrainState { spread, wait })) => {
                sleep(spread.mul_f64(fastrand::f64())).await;
                (CloseReason::Draining, wait)
            }
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        told = ended => told,
        told = drained => told,
    }
}

impl CloseReason {
    fn frame(self) -> Message {
        match self {
            CloseReason::Revoked => close_frame(1008, "the PAK is no longer valid"),
            CloseReason::Replaced => close_frame(1000, "the agent has connected anew"),
            CloseReason::Draining => close_frame(1012, "the broker restarts"),
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
