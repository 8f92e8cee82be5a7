//! What systemd would hear: the other end of the supervisor's `NOTIFY_SOCKET`.

use crate::Host;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it looks whether it is to end.
const STEP: Duration = Duration::from_millis(20);

/// Everything the supervisor has said, and when.
#[derive(Debug, Clone)]
pub struct Ear {
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
    deaf: Arc<AtomicBool>,
}

impl Ear {
    /// Listens to `host`, whose supervisor is not started yet. With `watchdog` it wants to hear of it that often.
    ///
    /// # Panics
    /// When the socket cannot be made.
    pub fn to(host: &Host, watchdog: Option<Duration>) -> Self {
        let path = host.root().join("systemd");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(STEP)).unwrap();
        host.environment("NOTIFY_SOCKET", &path.display().to_string());
        if let Some(watchdog) = watchdog {
            host.environment("WATCHDOG_USEC", &watchdog.as_micros().to_string());
        }
        let ear = Self {
            heard: Arc::default(),
            deaf: Arc::default(),
        };
        let listening = ear.clone();
        // A thread, so that the socket never fills and nothing is lost.
        std::thread::spawn(move || listening.listen(&socket));
        ear
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

    /// Every line that begins with `key`, without it: `heard("STATUS=")`.
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
