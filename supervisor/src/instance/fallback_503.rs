//! Answers 503 for a tenant without a running broker; otherwise clients would hang and stale POSTs would run late.
//!
//! A TLS client could not read the answer, so its connection is closed at once. It has sent no request yet, and tries
//! again or another address.

use brokkr_tenant::Listen;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

/// The largest number of connections answered at once; more wait in the backlog.
const AT_ONCE: usize = 64;
/// The longest time to read the request's head, and again to write the answer and wait for the client to close.
const PATIENCE: Duration = Duration::from_secs(2);
/// Second try to read the head, because a process that was stopped finds its timer expired before it has read.
const ONCE_MORE: Duration = Duration::from_millis(100);
/// The largest request head that is read.
const LONGEST_HEAD: usize = 16 * 1024;
/// The body of every answer, the same as a broker's when its database is unreachable.
const BODY: &str = r#"{"code":"database_unavailable","message":"this tenant's broker is not running; try again shortly"}"#;

/// Counts the unanswered connections of all stand-ins; the process must not end before all are answered.
#[derive(Debug)]
pub(crate) struct UnansweredCount {
    /// Each answer holds a copy until it is complete.
    begun: mpsc::Sender<Infallible>,
    ended: mpsc::Receiver<Infallible>,
}

impl UnansweredCount {
    pub(crate) fn new() -> Self {
        let (begun, ended) = mpsc::channel(1);
        Self { begun, ended }
    }

    /// Waits until every accepted connection is answered; must be called after the last stand-in was dropped. Bounded,
    /// because each answer is.
    pub(crate) async fn finish(mut self) {
        drop(self.begun);
        // Nothing is ever sent: the channel closes with the last copy.
        let _ = self.ended.recv().await;
    }
}

/// A stand-in that accepts until it is dropped; connections accepted by then are still answered.
#[derive(Debug)]
pub(crate) struct Fallback {
    task: JoinHandle<()>,
}

impl Drop for Fallback {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fallback {
    /// Starts to answer on the socket `listener` of `listen`, which stays the tenant's. Where clients speak `tls`, starts
    /// to close their connections.
    pub(crate) fn start(
        listen: &Listen,
        listener: &OwnedFd,
        tls: bool,
        answering: &UnansweredCount,
    ) -> io::Result<Self> {
        let copy = listener.try_clone()?;
        let begun = answering.begun.clone();
        let task = match listen {
            Listen::Tcp(_) => {
                let listener = TcpListener::from_std(copy.into())?;
                let accept = async move || Ok(listener.accept().await?.0);
                tokio::spawn(answer_all(accept, tls, begun))
            }
            Listen::Unix(_) => {
                let listener = UnixListener::from_std(copy.into())?;
                let accept = async move || Ok(listener.accept().await?.0);
                tokio::spawn(answer_all(accept, tls, begun))
            }
        };
        Ok(Self { task })
    }
}

async fn answer_all<S>(
    accept: impl AsyncFn() -> io::Result<S>,
    tls: bool,
    begun: mpsc::Sender<Infallible>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let room = Arc::new(Semaphore::new(AT_ONCE));
    while let Ok(permit) = room.clone().acquire_owned().await {
        match accept().await {
            Ok(connection) if tls => drop(connection),
            Ok(connection) => {
                let begun = begun.clone();
                tokio::spawn(async move {
                    // An error means that the client has gone.
                    let _ = answer(connection).await;
                    drop((permit, begun));
                });
            }
            // The process is most likely out of descriptors; the backlog holds the connections meanwhile.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Reads to the end of the head, answers, then waits for the client to close, because closing first with unread bytes
/// would reset the connection and lose the answer. A client that is late with its head is answered too; a client that
/// has sent nothing is not.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut connection: S) -> io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    for patience in [PATIENCE, ONCE_MORE] {
        let read = tokio::time::timeout(patience, read_head(&mut connection, &mut head)).await;
        if let Ok(read) = read {
            read?;
            break;
        }
    }
    if head.is_empty() {
        return Ok(());
    }
    tokio::time::timeout(PATIENCE, refuse(connection)).await?
}

/// Reads into `head` until its end. Cancel-safe: bytes read so far are in `head`.
async fn read_head(
    connection: &mut (impl AsyncRead + Unpin),
    head: &mut Vec<u8>,
) -> io::Result<()> {
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < LONGEST_HEAD {
        if connection.read_buf(head).await? == 0 {
            return Ok(());
        }
    }
    Ok(())
}

async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut connection: S) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 2\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    connection.write_all(answer.as_bytes()).await?;
    connection.shutdown().await?;
    tokio::io::copy(&mut connection, &mut tokio::io::sink()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Starts a stand-in on a socket of its own and connects a client.
    async fn met(
        tls: bool,
        answering: &UnansweredCount,
    ) -> (Fallback, OwnedFd, tokio::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let fd = OwnedFd::from(listener);
        let fallback = Fallback::start(&Listen::Tcp(address), &fd, tls, answering).unwrap();
        let client = tokio::net::TcpStream::connect(address).await.unwrap();
        (fallback, fd, client)
    }

    #[tokio::test]
    async fn a_request_gets_503_and_the_socket_is_the_tenants_again_afterwards() {
        let answering = UnansweredCount::new();
        let (fallback, fd, mut client) = met(false, &answering).await;
        let address = client.peer_addr().unwrap();
        client
            .write_all(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
            .await
            .unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert!(
            text.starts_with("HTTP/1.1 503 ") && text.contains("Retry-After: "),
            "{text}"
        );
        assert!(
            text.contains("Connection: close") && text.contains("database_unavailable"),
            "{text}"
        );
        drop(fallback);
        let listener = TcpListener::from_std(fd.into()).unwrap();
        let (client, server) =
            tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        client.unwrap();
        server.unwrap();
    }

    #[tokio::test]
    async fn a_tls_clients_connection_is_closed_at_once() {
        let answering = UnansweredCount::new();
        let (_fallback, _fd, mut client) = met(true, &answering).await;
        let mut text = String::new();
        // The client has sent nothing, so only the closing ends the reading.
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "");
    }

    /// Returns the answer to a client that sends this and then nothing more.
    async fn answer_to(sent: &[u8]) -> String {
        let (mut client, ours) = tokio::io::duplex(4096);
        client.write_all(sent).await.unwrap();
        let task = tokio::spawn(answer(ours));
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        drop(client);
        let _ = task.await.unwrap();
        text
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_with_his_head_is_answered_and_who_says_nothing_is_not() {
        let slow = answer_to(b"POST /x HTT").await;
        assert!(slow.starts_with("HTTP/1.1 503 "), "{slow}");
        assert_eq!(answer_to(b"").await, "");
    }

    #[tokio::test]
    async fn every_accepted_connection_is_answered_before_the_fallback_has_ended() {
        let answering = UnansweredCount::new();
        let (fallback, _socket, mut client) = met(false, &answering).await;
        client.write_all(b"GET / HT").await.unwrap();
        // The connection is accepted once a third copy exists, beside those of `answering` and the stand-in.
        while answering.begun.strong_count() < 3 {
            tokio::task::yield_now().await;
        }
        drop(fallback);
        let mut text = String::new();
        let read = async {
            client.read_to_string(&mut text).await.unwrap();
            drop(client);
        };
        tokio::join!(answering.finish(), read);
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    }
}
