//! Client of the control socket.

use super::Failure;
use super::interrupt::Interrupt;
use crate::control::{GROUP, SOCKET};
use crate::servers::event_loop;
use brokkr_tenant::SocketPath;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// Time within which a live supervisor begins to answer, unless the request waits until all has settled.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct ControlClient {
    socket: PathBuf,
    runtime: Runtime,
}

impl ControlClient {
    pub(super) fn new(runtime_dir: &Path) -> Result<Self, Failure> {
        let runtime = event_loop()
            .map_err(|error| Failure::Problem(format!("cannot make the event loop: {error}")))?;
        Ok(Self {
            socket: runtime_dir.join(SOCKET),
            runtime,
        })
    }

    /// Returns true when a supervisor listens on the socket, or when this user may not find out.
    pub(super) fn is_there(&self) -> bool {
        let connected = SocketPath::of(&self.socket)
            .and_then(|socket| std::os::unix::net::UnixStream::connect(socket.as_path()));
        match connected {
            Ok(_) => true,
            Err(error) => !matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ),
        }
    }

    /// Returns the whole answer to a GET.
    pub(super) fn get(&self, path: &str) -> Result<Bytes, Failure> {
        self.runtime.block_on(async {
            let asking = async {
                let answer = self.ask(Method::GET, path, Bytes::new()).await?;
                self.whole(answer).await
            };
            timeout(PATIENCE, asking)
                .await
                .unwrap_or_else(|_| Err(self.busy()))
        })
    }

    /// Passes each piece of the answer to a GET to `take` as it comes, until the supervisor ends the answer.
    pub(super) fn stream(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let asking = self.ask(Method::GET, path, Bytes::new());
            let mut answer = timeout(PATIENCE, asking)
                .await
                .unwrap_or_else(|_| Err(self.busy()))?;
            while let Some(frame) = answer.body_mut().frame().await {
                let frame = frame.map_err(|error| self.lost(&error))?;
                if let Some(piece) = frame.data_ref() {
                    take(piece)?;
                }
            }
            Ok(())
        })
    }

    /// Returns the answer to a POST, however long it takes, unless a signal ends the wait.
    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Failure::Problem(error.to_string()))?;
        let answer = self.runtime.block_on(async {
            let mut interrupt = Interrupt::new()
                .map_err(|error| Failure::Problem(format!("cannot take signals: {error}")))?;
            let asking = async {
                let answer = self.ask(Method::POST, path, body.into()).await?;
                self.whole(answer).await
            };
            tokio::select! {
                biased;
                answer = asking => answer,
                () = interrupt.wait() => Err(Failure::Interrupted),
            }
        })?;
        parse(&answer)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let socket = SocketPath::of(&self.socket).map_err(|error| self.unreachable(&error))?;
        let stream = UnixStream::connect(socket.as_path())
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.lost(&error))?;
        // The task ends with the runtime, or when the answer has been read.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "brokkr-supervisor")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::Problem(error.to_string()))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| self.lost(&error))?;
        if answer.status() == StatusCode::OK {
            return Ok(answer);
        }
        let status = answer.status();
        let body = self.whole(answer).await?;
        #[derive(Deserialize)]
        struct Problem {
            error: String,
        }
        Err(Failure::Problem(
            match serde_json::from_slice::<Problem>(&body) {
                Ok(problem) => super::harmless(&problem.error),
                Err(_) => format!("the supervisor answered {status}"),
            },
        ))
    }

    async fn whole(&self, answer: Response<Incoming>) -> Result<Bytes, Failure> {
        let body = answer
            .into_body()
            .collect()
            .await
            .map_err(|error| self.lost(&error))?;
        Ok(body.to_bytes())
    }

    fn not_running(&self) -> Failure {
        if let Some(folder) = self.socket.parent().filter(|folder| !folder.exists()) {
            return Failure::NotRunning(format!(
                "brokkr-supervisor cannot be reached: there is no {}. A supervisor that runs makes it again within seconds, so try once more; where none runs, start it (systemctl start brokkr-supervisor, or brokkr-supervisor run)",
                folder.display()
            ));
        }
        Failure::NotRunning(format!(
            "brokkr-supervisor is not running: no answer on {} (start it: systemctl start brokkr-supervisor, or brokkr-supervisor run)",
            self.socket.display()
        ))
    }

    /// Reports a busy supervisor; the advice to start another supervisor would be wrong here.
    fn busy(&self) -> Failure {
        Failure::NotRunning(format!(
            "brokkr-supervisor does not answer on {} within {PATIENCE:?}: it is busy, or all its control connections are taken",
            self.socket.display()
        ))
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => self.not_running(),
            ErrorKind::PermissionDenied => Failure::Problem(format!(
                "you may not use {socket}: be root or a member of group {GROUP}"
            )),
            _ => Failure::Problem(format!("cannot connect to {socket}: {error}")),
        }
    }

    fn lost(&self, error: &hyper::Error) -> Failure {
        let socket = self.socket.display();
        Failure::NotRunning(format!(
            "brokkr-supervisor has closed the connection on {socket}: {error}"
        ))
    }
}

/// Parses an answer. A supervisor of another version may give answers that this program does not know.
pub(super) fn parse<T: DeserializeOwned>(answer: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(answer).map_err(|error| {
        Failure::Problem(format!(
            "the supervisor's answer is not understood: {error}"
        ))
    })
}
