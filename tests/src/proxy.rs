//! A network between the programs and their server that misbehaves as networks do.
//!
//! It is a TCP proxy on a loopback port. It can *hold* (everything is acknowledged and nothing forwarded, as by a load
//! balancer that has lost its other side), be a *black hole* (no packet arrives or is acknowledged, for new connections
//! too, as with a pulled cable), or *cut* (every connection is reset). The black hole is a packet filter on the proxy's
//! own sockets: the peer's kernel sees exactly such a network, and neither root nor a namespace is needed.

use crate::ports;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Interval at which an idle proxy checks for its end.
const STEP: Duration = Duration::from_millis(20);
/// `BPF_RET | BPF_K` with 0: drop every packet.
const TAKE_NOTHING: (u16, u32) = (0x06, 0);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forward,
    Hold,
    BlackHole,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// Every connection that has not ended.
    open: Vec<Open>,
    opened: Vec<Instant>,
    to: SocketAddr,
}

#[derive(Debug)]
struct Open {
    client: Socket,
    server: Option<TcpStream>,
    mute: bool,
}

impl Open {
    /// Returns true when `end` is one of the connection's two ends.
    fn is(&self, end: &TcpStream) -> bool {
        let peer = end.peer_addr().ok();
        let of = |socket: socket2::SockRef<'_>| socket.peer_addr().ok()?.as_socket();
        let server = self.server.as_ref().and_then(|s| {
            // Compare the local address, because all connections have the same server address.
            (s.local_addr().ok() == end.local_addr().ok()).then_some(())
        });
        (peer.is_some() && of((&self.client).into()) == peer) || server.is_some()
    }
}

impl State {
    fn is_mute(&self, ends: &[&TcpStream]) -> bool {
        let mut mute = self.open.iter().filter(|open| open.mute);
        mute.any(|open| ends.iter().any(|end| open.is(end)))
    }

    /// Drops an ended connection, because its descriptors here are the last that keep it open.
    fn forget(&mut self, client: &TcpStream) {
        self.open.retain(|open| !open.is(client));
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    listener: Socket,
    ending: AtomicBool,
}

/// The proxy; it ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts a proxy on a free port, which forwards to `port` of this host.
    pub fn to(port: u16) -> Self {
        let own = ports::free();
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        listener.set_reuse_address(true).unwrap();
        listener
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, own)).into())
            .unwrap();
        listener.listen(1024).unwrap();
        listener.set_read_timeout(Some(STEP)).unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                mode: Mode::Forward,
                open: Vec::new(),
                opened: Vec::new(),
                to: (Ipv4Addr::LOCALHOST, port).into(),
            }),
            changed: Condvar::new(),
            listener,
            ending: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || accept(&accepting));
        Self { port: own, shared }
    }

    /// Returns the proxy's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns a URL that leads through the proxy.
    pub fn url(&self, database: &str, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// Acknowledges everything and forwards nothing from now on.
    pub fn hold(&self) {
        self.enter(Mode::Hold);
    }

    /// Loses every packet from now on.
    pub fn black_hole(&self) {
        self.enter(Mode::BlackHole);
    }

    /// Forwards everything again, held bytes included.
    pub fn forward(&self) {
        self.enter(Mode::Forward);
    }

    /// Resets every connection; new connections work as before.
    pub fn cut(&self) {
        let all = std::mem::take(&mut self.shared.lock().open);
        for open in all {
            let _ = open.client.set_linger(Some(Duration::ZERO));
            let _ = open.client.shutdown(Shutdown::Both);
            if let Some(server) = open.server {
                let _ = server.shutdown(Shutdown::Both);
            }
        }
    }

    /// Silences every present connection for good: it stays open and is acknowledged, as by a load balancer that has
    /// forgotten its other side.
    pub fn forget(&self) {
        for open in &mut self.shared.lock().open {
            open.mute = true;
        }
    }

    /// Leads new connections to another port of this host, as after a failover; open connections stay.
    pub fn lead_to(&self, port: u16) {
        self.shared.lock().to = (Ipv4Addr::LOCALHOST, port).into();
    }

    /// Returns the number of connections opened since `since`.
    pub fn opened_since(&self, since: Instant) -> usize {
        let state = self.shared.lock();
        state.opened.iter().filter(|at| **at >= since).count()
    }

    /// Returns the number of connections opened from `since` on and before `before`.
    pub fn opened_between(&self, since: Instant, before: Instant) -> usize {
        let state = self.shared.lock();
        let opened = state.opened.iter();
        opened.filter(|at| (since..before).contains(at)).count()
    }

    fn enter(&self, mode: Mode) {
        let mut state = self.shared.lock();
        state.mode = mode;
        let swallow = mode == Mode::BlackHole;
        // The listener first, because a connection that it accepts inherits its filter.
        filter(&self.shared.listener, swallow);
        for open in &state.open {
            filter(&open.client, swallow);
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        self.forward();
        self.cut();
    }
}

fn filter(socket: &Socket, swallow: bool) {
    if swallow {
        let (code, k) = TAKE_NOTHING;
        socket
            .attach_filter(&[SockFilter::new(code, 0, 0, k)])
            .unwrap();
    } else {
        // Fails where there is no filter.
        let _ = socket.detach_filter();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Waits until bytes may be forwarded between these ends; returns false when the proxy ends.
    fn may_pass(&self, ends: &[&TcpStream]) -> bool {
        let mut state = self.lock();
        while (state.mode != Mode::Forward || state.is_mute(ends)) && !self.ending() {
            state = self
                .changed
                .wait_timeout(state, STEP)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        !self.ending()
    }
}

fn accept(shared: &Arc<Shared>) {
    while !shared.ending() {
        let Ok((client, _)) = shared.listener.accept() else {
            continue;
        };
        let mut state = shared.lock();
        filter(&client, state.mode == Mode::BlackHole);
        // The timeout is inherited from the listener.
        let _ = client.set_read_timeout(None);
        state.opened.push(Instant::now());
        let Ok(kept) = client.try_clone() else {
            continue;
        };
        state.open.push(Open {
            client: kept,
            server: None,
            mute: false,
        });
        drop(state);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || serve(&shared, client));
    }
}

fn serve(shared: &Arc<Shared>, client: Socket) {
    let client: TcpStream = client.into();
    if !shared.may_pass(&[&client]) {
        return;
    }
    let to = shared.lock().to;
    let Ok(server) = TcpStream::connect(to) else {
        // No server behind the proxy: reset the connection, the nearest that a proxy can come to refusing.
        let _ = socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO));
        shared.lock().forget(&client);
        return;
    };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let mut state = shared.lock();
    let known = state.open.iter_mut().find(|o| o.is(&client));
    match (known, server.try_clone()) {
        (Some(known), Ok(kept)) => known.server = Some(kept),
        // The connection was cut meanwhile.
        _ => return,
    }
    drop(state);
    let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    let there = {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || copy(&shared, from_client, to_server))
    };
    let (Ok(from_server), Ok(to_client)) = (server.try_clone(), client.try_clone()) else {
        return;
    };
    copy(shared, from_server, to_client);
    let _ = there.join();
    shared.lock().forget(&client);
}

fn copy(shared: &Shared, mut from: TcpStream, mut to: TcpStream) {
    let mut block = [0; 16 * 1024];
    loop {
        let read = from.read(&mut block).unwrap_or(0);
        if !shared.may_pass(&[&from, &to]) || read == 0 || to.write_all(&block[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
