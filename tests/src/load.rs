//! Clients that repeat one request until they are stopped, and count the results.

use crate::http::{Addr, Connection};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The results of the clients of a [`Load`].
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Number of answers by status.
    pub answers: BTreeMap<u16, u64>,
    /// Number of refused connections.
    pub refused: u64,
    /// Reasons of the requests on a fresh connection that got no complete answer.
    pub lost: Vec<String>,
    /// The duration of the slowest answer.
    pub slowest: Duration,
}

impl Seen {
    /// Returns the number of answers with this status.
    pub fn count(&self, status: u16) -> u64 {
        self.answers.get(&status).copied().unwrap_or(0)
    }

    fn add(&mut self, other: Self) {
        for (status, count) in other.answers {
            *self.answers.entry(status).or_default() += count;
        }
        self.refused += other.refused;
        self.lost.extend(other.lost);
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Running clients.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Seen>>,
}

impl Load {
    /// Starts `clients` clients that send `GET path`, on a kept connection or on a new connection for each request.
    pub fn start(addr: &Addr, path: &str, pak: &str, clients: usize, keep_alive: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients)
            .map(|_| {
                let (addr, path, pak, stop) = (
                    addr.clone(),
                    path.to_owned(),
                    pak.to_owned(),
                    Arc::clone(&stop),
                );
                std::thread::spawn(move || client(&addr, &path, &pak, keep_alive, &stop))
            })
            .collect();
        Self { stop, clients }
    }

    /// Ends the clients and returns their results.
    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = Seen::default();
        for client in self.clients {
            seen.add(client.join().unwrap());
        }
        seen
    }
}

fn client(addr: &Addr, path: &str, pak: &str, keep_alive: bool, stop: &AtomicBool) -> Seen {
    let bearer = format!("Bearer {pak}");
    let mut headers = Vec::new();
    if !pak.is_empty() {
        headers.push(("Authorization", bearer.as_str()));
    }
    if !keep_alive {
        headers.push(("Connection", "close"));
    }
    let mut seen = Seen::default();
    let mut kept: Option<Connection> = None;
    while !stop.load(Ordering::Relaxed) {
        let fresh = kept.is_none();
        let mut connection = match kept.take().map_or_else(|| Connection::open(addr), Ok) {
            Ok(connection) => connection,
            Err(e) => {
                seen.refused += 1;
                if seen.lost.len() < 20 {
                    seen.lost.push(format!("cannot connect: {e}"));
                }
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
        };
        let start = Instant::now();
        match connection.request("GET", path, &headers, None) {
            Ok(answer) => {
                *seen.answers.entry(answer.status).or_default() += 1;
                seen.slowest = seen.slowest.max(start.elapsed());
                if keep_alive && !answer.closes() {
                    kept = Some(connection);
                }
            }
            // HTTP allows a server to close an idle connection: the client sends the request again.
            Err(_) if !fresh => {}
            Err(e) => seen
                .lost
                .push(format!("no answer after {:?}: {e}", start.elapsed())),
        }
    }
    seen
}
