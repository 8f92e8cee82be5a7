//! The parts of a URL's text.

use std::time::Duration;

use super::{ChannelBinding, Keepalives, SslMode};
use crate::Invalid;

/// The parts read so far; `None` marks a part that is not set.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) host: Option<String>,
    pub(super) port: Option<String>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) dbname: Option<String>,
    pub(super) ssl_mode: Option<SslMode>,
    pub(super) ssl_root_cert: Option<String>,
    pub(super) ssl_cert: Option<String>,
    pub(super) ssl_key: Option<String>,
    pub(super) channel_binding: Option<ChannelBinding>,
    pub(super) application_name: Option<String>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) tcp_user_timeout: Option<Duration>,
    pub(super) keepalives: Keepalives,
}

/// Percent-decodes one part.
pub(super) fn decode(text: &str, what: &str) -> Result<String, Invalid> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |n: usize| tail.get(n).and_then(|b| char::from(*b).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(Invalid::new(format!(
                "in the {what} of the database URL a % is not followed by two hexadecimal digits"
            ))
            .hint("write a % itself as %25"));
        };
        // Two hexadecimal digits fit a byte.
        bytes.push((high * 16 + low) as u8);
        rest = &tail[2..];
    }
    if bytes.contains(&0) {
        return Err(Invalid::new(format!(
            "the {what} of the database URL holds a NUL"
        )));
    }
    String::from_utf8(bytes).map_err(|_| {
        Invalid::new(format!(
            "the {what} of the database URL is not UTF-8 once decoded"
        ))
    })
}
