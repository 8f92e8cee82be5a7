//! Answers 503 in a tenant's place when nothing accepts, so that nobody hangs and no stale POST runs late.

use brokkr_tenant::Listen;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Connections answered at once; more wait in the backlog.
const AT_ONCE: usize = 64;
/// For reading the request's head and writing the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of a request nobody will look at.
const LONGEST_HEAD: usize = 16 * 1024;
/// The same body a broker gives when its database is away.
const BODY: &str = r#"{"code":"database_unavailable","message":"this tenant's broker is not running; try again shortly"}"#;

/// A stand-in that answers until it is dropped.
#[derive(Debug)]
pub(crate) struct StandIn {
    task: JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StandIn {
    /// Begins to answer on the socket `listener` of `listen`, which stays the tenant's.
    ///
    /// # Errors
    /// When the event loop cannot take the descriptor.
    pub(crate) fn start(listen: &Listen, listener: &OwnedFd) -> io::Result<Self> {
        let copy = listener.try_clone()?;
        let task = match listen {
            Listen::Tcp(_) => {
                let listener = TcpListener::from_std(copy.into())?;
                tokio::spawn(answer_all(async move || Ok(listener.accept().await?.0)))
            }
            Listen::Unix(_) => {
                let listener = UnixListener::from_std(copy.into())?;
                tokio::spawn(answer_all(async move || Ok(listener.accept().await?.0)))
            }
        };
        Ok(Self { task })
    }
}

async fn answer_all<S>(accept: impl AsyncFn() -> io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let room = Arc::new(Semaphore::new(AT_ONCE));
    while let Ok(permit) = room.clone().acquire_owned().await {
        match accept().await {
            Ok(connection) => {
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(PATIENCE, answer(connection)).await;
                    drop(permit);
                });
            }
            // Out of descriptors, most likely; the backlog holds the connections meanwhile.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Reads to the end of the head, answers, then waits for the client to close: closing first with its bytes unread
/// would reset the connection and lose the answer.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut connection: S) -> io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < LONGEST_HEAD {
        if connection.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
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

    #[tokio::test]
    async fn a_request_gets_503_and_the_socket_is_the_tenants_again_afterwards() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let fd = OwnedFd::from(listener);
        let stand_in = StandIn::start(&Listen::Tcp(address), &fd).unwrap();
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
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
        drop(stand_in);
        let listener = TcpListener::from_std(fd.into()).unwrap();
        let (client, server) =
            tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        client.unwrap();
        server.unwrap();
    }
}
