//! Probes an instance over its private socket, and repeats orders until the instance has taken them.

use super::events::{EventKind, EventSender};
use crate::lifecycle::Event;
use crate::lifecycle::InstanceId;
use brokkr_tenant::instance_protocol::{
    Isolation, Maps, ServerOutage, SetPassword, SetPool, SetServer,
};
use brokkr_tenant::{Secret, SocketPath, TenantName, TlsPair};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// `[health] interval` and `timeout`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ProbeTimes {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

/// The state that an instance must be told; only the latest counts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InstanceSettings {
    /// The largest number of connections it may hold; `None` leaves the number as it is.
    pub(crate) connections: Option<u32>,
    /// The prober's verdict on its server; `None` until there is one.
    pub(crate) server: Option<Result<(), ServerOutage>>,
    /// The password of its role, if that has changed since its start.
    pub(crate) password: Option<Secret>,
    /// The certificate and key of its listener; `None` without TLS, and while the supervisor does not know them.
    pub(crate) tls: Option<Arc<TlsPair>>,
}

/// The longest time between probes of an instance that is not ready for a reason of its own, so that its recovery is
/// seen soon. A recovery of the server is told to the instance at once.
const SOONER: Duration = Duration::from_millis(500);

/// Time between two checks for executed files that are no longer on disk. The first check is at the start, because a
/// supervisor restarted after an upgrade of libraries adopts older brokers.
const MAPS: Duration = Duration::from_secs(600);

/// Time between two checks of an instance's sandbox, which stands between the instance and a file that is replaced on
/// disk.
const ISOLATION: Duration = Duration::from_secs(60);

/// The largest answer in bytes that is read.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The task that probes one instance and tells it the supervisor's wishes.
#[derive(Clone)]
pub(crate) struct ProbeTask {
    pub(crate) id: InstanceId,
    pub(crate) path: PathBuf,
    pub(crate) times: ProbeTimes,
    pub(crate) wishes: watch::Receiver<InstanceSettings>,
    /// The largest number of connections it was told, if known; only a different number is sent.
    pub(crate) told_connections: Option<u32>,
    /// The last verdict on its server that it was told. Without a verdict it would ask the server at every probe.
    pub(crate) told_server: Option<Result<(), ServerOutage>>,
    pub(crate) told_password: Option<Secret>,
    /// The last certificate and key that it was told, or was started with.
    pub(crate) told_tls: Option<Arc<TlsPair>>,
    pub(crate) reporter: EventSender,
}

impl ProbeTask {
    /// Runs until reports are no longer received. After a panic the task starts again, so that only a probe is lost.
    pub(crate) async fn run(self) {
        let tenant = self.reporter.tenant().clone();
        let pause = self.times.interval;
        again_after_a_panic(&tenant, pause, || self.clone().talk()).await;
    }

    async fn talk(mut self) {
        let mut client = ProbeClient::new(self.path.clone());
        // A random first delay, so that a thousand brokers are not asked in the same millisecond.
        let first = self.times.interval.mul_f64(fastrand::f64());
        let mut next = Instant::now() + first;
        let mut last = None;
        let mut maps = SlowLook::new("/maps", MAPS);
        let mut isolation = SlowLook::new("/isolation", ISOLATION);
        self.tell(&mut client).await;
        loop {
            // Both arms are cancel-safe: the next `changed` sees a change that this call missed.
            let changed = tokio::select! {
                changed = self.wishes.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
                () = tokio::time::sleep_until(next) => false,
            };
            let began = Instant::now();
            let late = began.saturating_duration_since(next);
            self.tell(&mut client).await;
            let event = self.probe(&mut client, late).await;
            // A repeated answer is not reported; a miss always is, because misses are counted.
            let news = matches!(event, Event::ProbeMissed { .. }) || last.as_ref() != Some(&event);
            let sooner = matches!(
                event,
                Event::ProbeAnswered {
                    not_ready: Some(_),
                    ..
                }
            ) && !matches!(self.wishes.borrow().server, Some(Err(_)));
            if news && matches!(event, Event::OutOfReach(_)) {
                let tenant = self.reporter.tenant();
                let path = self.path.display();
                tracing::warn!(%tenant, %path, "its private socket has gone: it is replaced");
            }
            if news && !self.reporter.life(event.clone()).await {
                return;
            }
            if matches!(event, Event::ProbeAnswered { .. }) {
                let timeout = self.times.timeout;
                let mut news = Vec::new();
                // An older broker knows neither.
                let deleted: Option<Maps> = maps.look(&mut client, timeout).await;
                news.extend(deleted.map(|maps| {
                    EventKind::DeletedMaps(self.id, maps.deleted.into_iter().collect())
                }));
                let sandbox: Option<Isolation> = isolation.look(&mut client, timeout).await;
                news.extend(sandbox.map(|state| EventKind::Isolation(self.id, state)));
                for kind in news {
                    if !self.reporter.send(kind).await {
                        return;
                    }
                }
            }
            last = Some(event);
            if !changed || late > Duration::ZERO {
                // The interval runs from start to start. Otherwise a probe that waits for its timeout would delay the
                // next, and a hung broker would be found later than configured.
                next = (began + self.times.interval).max(Instant::now());
            }
            if sooner {
                next = next.min(Instant::now() + SOONER);
            }
        }
    }

    async fn tell(&mut self, client: &mut ProbeClient) {
        let wishes = self.wishes.borrow_and_update().clone();
        if let Some(server) = wishes.server
            && self.told_server.as_ref() != Some(&server)
        {
            let body = SetServer::from(server.clone());
            if client.put("/server", &body, self.times.timeout).await {
                self.told_server = Some(server);
            }
        }
        if let Some(password) = wishes.password
            && self.told_password.as_ref() != Some(&password)
        {
            let body = SetPassword::new(&password);
            if client.put("/password", &body, self.times.timeout).await {
                self.told_password = Some(password);
            }
        }
        if let Some(pair) = wishes.tls
            && self.told_tls.as_ref() != Some(&pair)
        {
            self.tell_tls(client, pair).await;
        }
        if let Some(connections) = wishes.connections
            && self.told_connections != Some(connections)
        {
            let body = SetPool { connections };
            if client.put("/pool", &body, self.times.timeout).await {
                self.told_connections = Some(connections);
            }
        }
    }

    /// Gives the instance its certificate and key. A refusal is not tried again, because it would be the same.
    async fn tell_tls(&mut self, client: &mut ProbeClient, pair: Arc<TlsPair>) {
        let body = pair.to_clear_json().to_string().into();
        let told = client.request(Method::PUT, "/tls", body, self.times.timeout);
        let Some((status, reason)) = told.await else {
            return;
        };
        if !status.is_success() {
            let tenant = self.reporter.tenant();
            tracing::error!(%tenant, "its broker keeps its old TLS certificate: {status}: {reason}");
        }
        self.told_tls = Some(pair);
    }

    async fn probe(&self, client: &mut ProbeClient, late: Duration) -> Event {
        let started = Instant::now();
        let id = self.id;
        // `/readyz` may take a second to open a connection to the server; `/healthz` never does.
        let alive = client.get("/healthz", self.times.timeout).await;
        if alive.is_none() {
            if !self.path.exists() {
                return Event::OutOfReach(id);
            }
            let ours = client.failed_here();
            let overrun = started.elapsed().saturating_sub(self.times.timeout);
            let slack = self.times.timeout / 2;
            return Event::ProbeMissed {
                id,
                on_time: late < slack && overrun < slack && !ours,
            };
        }
        let not_ready = match client.get("/readyz", self.times.timeout * 2).await {
            Some((StatusCode::OK, _)) => None,
            Some((_, body)) => Some(body.trim().chars().take(200).collect()),
            None => Some("no answer to /readyz".into()),
        };
        Event::ProbeAnswered { id, not_ready }
    }
}

/// A question about something that rarely changes.
struct SlowLook<T> {
    path: &'static str,
    every: Duration,
    due: Instant,
    last: Option<T>,
}

impl<T: DeserializeOwned + Clone + PartialEq> SlowLook<T> {
    fn new(path: &'static str, every: Duration) -> Self {
        Self {
            path,
            every,
            due: Instant::now(),
            last: None,
        }
    }

    /// Asks, if it is time, and returns an answer that differs from the last one.
    async fn look(&mut self, client: &mut ProbeClient, timeout: Duration) -> Option<T> {
        if self.due > Instant::now() {
            return None;
        }
        self.due = Instant::now() + self.every;
        let seen: Option<T> = client.get_json(self.path, timeout).await;
        let news = seen.filter(|seen| self.last.as_ref() != Some(seen))?;
        self.last = Some(news.clone());
        Some(news)
    }
}

/// Runs the future that `make` returns, and again after each panic, `pause` later. Dropping this aborts it.
async fn again_after_a_panic<F>(tenant: &TenantName, pause: Duration, mut make: impl FnMut() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut running = JoinSet::new();
    loop {
        running.spawn(make());
        match running.join_next().await {
            Some(Err(panic)) if panic.is_panic() => {
                tracing::error!(%tenant, "the supervisor failed at talking to its broker, and begins anew: {panic}");
                tokio::time::sleep(pause).await;
            }
            _ => return,
        }
    }
}

/// A kept-alive connection, opened again after any failure.
pub(super) struct ProbeClient {
    path: PathBuf,
    sender: Option<http1::SendRequest<Full<Bytes>>>,
    /// True when the last connect failed because this process lacked a resource.
    failed_here: bool,
}

impl ProbeClient {
    /// Makes a client of the private socket at `path`, not connected yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            sender: None,
            failed_here: false,
        }
    }

    /// Returns true when the last request failed because this process lacked descriptors or memory.
    fn failed_here(&self) -> bool {
        self.failed_here
    }

    /// Sends a GET; `None` when there is no complete answer in time.
    pub(super) async fn get(
        &mut self,
        path: &str,
        timeout: Duration,
    ) -> Option<(StatusCode, String)> {
        self.request(Method::GET, path, Bytes::new(), timeout).await
    }

    /// Sends a GET and parses the answer; `None` also when the answer is an error or not of this form.
    pub(super) async fn get_json<T: DeserializeOwned>(
        &mut self,
        path: &str,
        timeout: Duration,
    ) -> Option<T> {
        let (status, body) = self.get(path, timeout).await?;
        status.is_success().then_some(())?;
        serde_json::from_str(&body).ok()
    }

    async fn put(&mut self, path: &str, body: &impl Serialize, timeout: Duration) -> bool {
        let Ok(body) = serde_json::to_vec(body) else {
            return false;
        };
        let answer = self.request(Method::PUT, path, body.into(), timeout).await;
        answer.is_some_and(|(status, _)| status.is_success())
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Option<(StatusCode, String)> {
        let answer = tokio::time::timeout(timeout, self.exchange(method, path, body)).await;
        if !matches!(answer, Ok(Some(_))) {
            self.sender = None;
        }
        answer.ok().flatten()
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Option<(StatusCode, String)> {
        if self
            .sender
            .as_ref()
            .is_none_or(http1::SendRequest::is_closed)
        {
            let connected = match SocketPath::of(&self.path) {
                Ok(path) => UnixStream::connect(path.as_path()).await,
                Err(error) => Err(error),
            };
            self.failed_here = connected.as_ref().is_err_and(is_want);
            let stream = connected.ok()?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
            // The task ends once the sender is dropped or the instance has gone.
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        let sender = self.sender.as_mut()?;
        sender.ready().await.ok()?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "instance")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .ok()?;
        let response = sender.send_request(request).await.ok()?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER)
            .collect()
            .await
            .ok()?;
        Some((
            status,
            String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        ))
    }
}

/// Returns true when the error means that descriptors, buffers or memory ran out.
fn is_want(error: &std::io::Error) -> bool {
    use nix::errno::Errno::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    let code = error.raw_os_error();
    [EMFILE, ENFILE, ENOBUFS, ENOMEM]
        .map(|errno| Some(errno as i32))
        .contains(&code)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_panic_while_talking_to_a_broker_is_followed_by_a_new_beginning() {
        let tenant = TenantName::parse("acme").unwrap();
        let begun = Arc::new(AtomicU32::new(0));
        let counted = begun.clone();
        let pause = Duration::from_secs(2);
        let start = Instant::now();
        again_after_a_panic(&tenant, pause, move || {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                assert!(number >= 2, "a mistake of ours");
            }
        })
        .await;
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        assert_eq!(start.elapsed(), 2 * pause);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_run_ends_with_its_keeper() {
        let tenant = TenantName::parse("acme").unwrap();
        let alive = Arc::new(());
        let held = alive.clone();
        let keeper = tokio::spawn(async move {
            again_after_a_panic(&tenant, Duration::from_secs(1), || {
                let held = held.clone();
                async move {
                    let _held = held;
                    std::future::pending::<()>().await;
                }
            })
            .await;
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(Arc::strong_count(&alive), 3);
        keeper.abort();
        let _ = keeper.await;
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
