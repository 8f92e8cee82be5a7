//! Tests of `drive` on an in-memory socket with a paused clock.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use uuid::Uuid;

use super::*;
use crate::metrics::Metrics;
use crate::metrics::frame_kind::FrameKind;

/// One end of an in-memory socket.
struct End {
    incoming: mpsc::UnboundedReceiver<Message>,
    outgoing: mpsc::UnboundedSender<Message>,
    /// True when a flush never completes.
    stuck: bool,
}

impl Stream for End {
    type Item = Result<Message, ()>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.incoming
            .poll_recv(cx)
            .map(|message| message.map(Ok::<_, ()>))
    }
}

impl Sink<Message> for End {
    type Error = ();
    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), ()>> {
        Poll::Ready(Ok(()))
    }
    fn start_send(self: Pin<&mut Self>, message: Message) -> Result<(), ()> {
        self.outgoing.send(message).map_err(drop)
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), ()>> {
        if self.stuck {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        self.poll_flush(cx)
    }
}

/// A driven socket, with the peer's end of it.
struct Scene {
    live: WebSockets,
    peer: Arc<Peer>,
    to: mpsc::UnboundedSender<Message>,
    from: mpsc::UnboundedReceiver<Message>,
    began: Instant,
    driven: tokio::task::JoinHandle<()>,
}

fn scene(stuck: bool) -> Scene {
    let live = WebSockets::new(Metrics::new().unwrap().sockets);
    let hash = PakHash::of("a_b_c").unwrap();
    let peer = live.0.registry.join(QueueOwner::Stack(Uuid::nil()), hash);
    let (to, incoming) = mpsc::unbounded_channel();
    let (outgoing, from) = mpsc::unbounded_channel();
    let end = End {
        incoming,
        outgoing,
        stuck,
    };
    let (driving, driven_live) = (peer.clone(), live.clone());
    let driven = tokio::spawn(async move {
        let draining = driven_live.0.draining.subscribe();
        drive(end, &driving, &driven_live, Reader::Nobody, draining).await;
    });
    Scene {
        live,
        peer,
        to,
        from,
        began: Instant::now(),
        driven,
    }
}

fn frame(text: &str) -> Frame {
    Frame {
        kind: FrameKind::PodLogLine,
        text: text.into(),
    }
}

#[tokio::test(start_paused = true)]
async fn fault_59_a_peer_that_answers_no_ping_is_gone_within_two_periods() {
    let scene = scene(false);
    scene.driven.await.unwrap();
    let took = scene.began.elapsed();
    assert!(took >= PING && took <= 2 * PING, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_stays() {
    let mut scene = scene(false);
    for _ in 0..10 {
        let Some(Message::Ping(_)) = scene.from.recv().await else {
            panic!("no ping");
        };
        scene.to.send(Message::Pong(Bytes::new())).unwrap();
    }
    assert!(scene.began.elapsed() > 8 * PING && !scene.driven.is_finished());
    drop(scene.to);
    scene.driven.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_dropped() {
    let scene = scene(true);
    scene.peer.outbound_queue.put(frame("x"));
    scene.driven.await.unwrap();
    assert!(scene.began.elapsed() <= WRITE + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn frames_are_sent_in_order_and_counted() {
    let mut scene = scene(false);
    (0..200).for_each(|n| scene.peer.outbound_queue.put(frame(&n.to_string())));
    for n in 0..200 {
        let Some(Message::Text(text)) = scene.from.recv().await else {
            panic!("no text");
        };
        assert_eq!(text.as_str(), n.to_string());
    }
    assert_eq!(scene.peer.sent.load(Ordering::Relaxed), 200);
}

#[tokio::test(start_paused = true)]
async fn a_drain_closes_within_its_share_whether_or_not_the_peer_answers() {
    let mut scene = scene(false);
    scene.live.drain(Duration::from_secs(10));
    let Some(Message::Close(Some(close))) = scene.from.recv().await else {
        panic!("no close");
    };
    assert_eq!(close.code, 1012);
    scene.driven.await.unwrap();
    assert!(scene.began.elapsed() <= Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_the_close_ends_at_once() {
    let mut scene = scene(false);
    scene.peer.end(CloseReason::Replaced);
    let Some(Message::Close(Some(close))) = scene.from.recv().await else {
        panic!("no close");
    };
    assert_eq!(close.code, 1000);
    drop(scene.to);
    scene.driven.await.unwrap();
    assert!(scene.began.elapsed() < Duration::from_secs(1));
}
