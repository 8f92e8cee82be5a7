//! Choice of the log's sink and format.

use super::encode::Encoder;
use super::journal;
use super::text::TextEncoder;
use super::writer::{ByteSink, Sink};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

/// Value of `log.format`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OutputFormat {
    /// `journald` when standard error is the journal, `text` otherwise.
    #[default]
    Auto,
    /// Text for people, one line each.
    Text,
    /// One JSON object per line.
    Json,
    /// journald's native protocol, with `TENANT=`.
    Journald,
}

/// Destination of the merged log.
#[derive(Debug)]
pub(crate) enum Output {
    /// Text to a file, pipe or terminal.
    Text(OwnedFd),
    /// JSON lines to a file, pipe or terminal.
    Json(OwnedFd),
    /// Datagrams to journald's socket at this path.
    Journald(PathBuf),
}

impl Output {
    /// Returns the output for `format`; text and JSON go to `stdout`.
    pub(crate) fn choose(format: OutputFormat, stdout: OwnedFd) -> Self {
        match format {
            OutputFormat::Text => Output::Text(stdout),
            OutputFormat::Json => Output::Json(stdout),
            OutputFormat::Journald => Output::Journald(journal::SOCKET.into()),
            OutputFormat::Auto if stderr_is_journal() => Output::Journald(journal::SOCKET.into()),
            OutputFormat::Auto => Output::Text(stdout),
        }
    }

    pub(super) fn open(self) -> io::Result<(Encoder, Sink)> {
        Ok(match self {
            Output::Text(fd) => (
                Encoder::Text(TextEncoder::default()),
                Sink::Stream(ByteSink::new(File::from(fd))),
            ),
            Output::Json(fd) => (Encoder::Json, Sink::Stream(ByteSink::new(File::from(fd)))),
            Output::Journald(path) => (
                Encoder::Journal,
                Sink::Journal(UnixDatagram::unbound()?, path),
            ),
        })
    }
}

/// Returns true when standard error has the device and inode that systemd gave in `JOURNAL_STREAM`; otherwise standard
/// error was redirected since.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = nix::sys::stat::fstat(io::stderr()) else {
        return false;
    };
    is_stream(&stream, stat.st_dev, stat.st_ino)
}

fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream
        .split_once(':')
        .is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_error_is_the_journal_only_when_device_and_inode_agree() {
        assert!(is_stream("8:4711", 8, 4711));
        assert!(!is_stream("8:4711", 9, 4711));
        assert!(!is_stream("8", 8, 8));
    }
}
