//! A broker that does nothing, for tests of many brokers. It reports READY, answers on its private socket and its
//! tenant's, and ends when it is told to. With `TRIVIAL=deaf` in its environment it becomes ready and never answers,
//! like a broker whose event loop has died. With `TRIVIAL=shut-out` it says that its sandbox keeps it from a file.
#![allow(
    clippy::unwrap_used,
    reason = "a test's program ends when something is wrong"
)]

use listenfd::ListenFd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK";
const SHUT_OUT: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 47\r\n\r\n\
    {\"layers\":[],\"unreadable\":[\"/etc/resolv.conf\"]}";
const LAST_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nOK";

fn main() {
    let mut told = SigSet::empty();
    told.add(Signal::SIGTERM);
    told.thread_block().unwrap();
    let told = SignalFd::new(&told).unwrap();
    let mut passed = ListenFd::from_env();
    let public: TcpListener = passed.take_tcp_listener(0).unwrap().unwrap();
    let private: UnixListener = passed.take_unix_listener(1).unwrap().unwrap();
    let notify = std::env::var_os("NOTIFY_SOCKET").unwrap();
    let socket = UnixDatagram::unbound().unwrap();
    socket.send_to(b"READY=1\nSTATUS=ready", &notify).unwrap();
    drop(socket);
    if std::env::var_os("TRIVIAL").is_some_and(|what| what == "deaf") {
        loop {
            std::thread::park();
        }
    }
    let mut asking: Vec<UnixStream> = Vec::new();
    loop {
        let mut polled: Vec<PollFd<'_>> = asking
            .iter()
            .map(AsFd::as_fd)
            .chain([private.as_fd(), public.as_fd(), told.as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        if poll(&mut polled, PollTimeout::NONE).is_err() {
            continue;
        }
        let ready: Vec<bool> = polled.iter().map(|p| p.any().unwrap_or(false)).collect();
        drop(polled);
        let mut of = ready.into_iter();
        asking.retain_mut(|stream| !of.next().unwrap_or(false) || answer(stream, ANSWER));
        if of.next().unwrap_or(false)
            && let Ok((stream, _)) = private.accept()
            && stream.set_nonblocking(false).is_ok()
        {
            asking.push(stream);
        }
        if of.next().unwrap_or(false)
            && let Ok((mut stream, _)) = public.accept()
            && stream.set_nonblocking(false).is_ok()
        {
            answer(&mut stream, LAST_ANSWER);
        }
        if of.next().unwrap_or(false) {
            // Reports that it leaves no connection on any server, and ends.
            let socket = UnixDatagram::unbound().unwrap();
            socket.send_to(b"X_CONNECTIONS=0", &notify).unwrap();
            return;
        }
    }
}

/// Reads a request and answers it; returns false when the connection has ended.
fn answer<S: Read + Write>(stream: &mut S, with: &[u8]) -> bool {
    let mut request = Vec::new();
    let mut block = [0; 4096];
    loop {
        match stream.read(&mut block) {
            Ok(0) | Err(_) => return false,
            Ok(read) => request.extend_from_slice(&block[..read]),
        }
        if whole(&request) {
            let shut_out = std::env::var_os("TRIVIAL").is_some_and(|what| what == "shut-out");
            if shut_out && request.starts_with(b"GET /isolation ") {
                return stream.write_all(SHUT_OUT).is_ok();
            }
            return stream.write_all(with).is_ok();
        }
    }
}

fn whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length:")?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0);
    body.len() >= length
}
