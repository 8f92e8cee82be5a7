//! The receiving end of the supervisor's `NOTIFY_SOCKET`, in place of systemd.

use crate::Host;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Interval at which the listener checks for its end.
const STEP: Duration = Duration::from_millis(20);

/// Everything that the supervisor has notified, with its time.
#[derive(Debug, Clone)]
pub struct NotifyListener {
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
    deaf: Arc<AtomicBool>,
}

impl NotifyListener {
    /// Listens to `host`, whose supervisor is not started yet. `watchdog` is the interval of `WATCHDOG_USEC`.
    pub fn to(host: &Host, watchdog: Option<Duration>) -> Self {
        let path = host.root().join("systemd");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(STEP)).unwrap();
        host.environment("NOTIFY_SOCKET", &path.display().to_string());
        if let Some(watchdog) = watchdog {
            host.environment("WATCHDOG_USEC", &watchdog.as_micros().to_string());
        }
        let listener = Self {
            heard: Arc::default(),
            deaf: Arc::default(),
        };
        let listening = listener.clone();
        // A thread reads all the time, otherwise the socket could fill and lose messages.
        std::thread::spawn(move || listening.listen(&socket));
        listener
    }

    fn listen(&self, socket: &UnixDatagram) {
        let mut datagram = [0; 4096];
        while !self.deaf.load(Ordering::Relaxed) {
            let Ok(length) = socket.recv(&mut datagram) else {
                continue;
            };
            let text = String::from_utf8_lossy(&datagram[..length]).into_owned();
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.extend(text.lines().map(|line| (Instant::now(), line.to_owned())));
        }
    }

    /// Returns every line that begins with `key`, without the key: `heard("STATUS=")`.
    pub fn heard(&self, key: &str) -> Vec<(Instant, String)> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard
            .iter()
            .filter_map(|(at, line)| Some((*at, line.strip_prefix(key)?.to_owned())))
            .collect()
    }

    /// Stops listening.
    pub fn end(&self) {
        self.deaf.store(true, Ordering::Relaxed);
    }
}
