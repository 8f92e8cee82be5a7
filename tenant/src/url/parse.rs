//! Parses the text of a URL. Messages name the wrong part and never its text, because it could be the password.

use std::net::Ipv6Addr;
use std::path::PathBuf;

use super::parts::{Parts, decode};
use super::{DEFAULT_PORT, DatabaseUrl, Host, SslMode, options};
use crate::{Invalid, Secret};

/// The folder in which the servers of Debian, Fedora and Arch put their socket.
const DEFAULT_SOCKET_DIR: &str = "/var/run/postgresql";

const EXAMPLE: &str = "for example \"postgres://brokkr@db.internal:5432/brokkr\"";

pub(super) fn parse(text: &str) -> Result<DatabaseUrl, Invalid> {
    let rest = text
        .strip_prefix("postgres://")
        .or_else(|| text.strip_prefix("postgresql://"))
        .ok_or_else(|| {
            if text.is_empty() {
                Invalid::new("the database URL is empty").hint(EXAMPLE)
            } else if text.contains('=') && !text.contains("://") {
                Invalid::new("the database URL is in libpq's keyword form")
                    .hint(format!("write it as a URL, {EXAMPLE}"))
            } else {
                Invalid::new("the database URL does not begin with postgres:// or postgresql://")
                    .hint(EXAMPLE)
            }
        })?;
    if text.chars().any(char::is_control) {
        return Err(Invalid::new("the database URL holds a control character"));
    }
    let mut parts = Parts::default();
    let (head, query) = match rest.split_once('?') {
        Some((head, query)) => (head, Some(query)),
        None => (rest, None),
    };
    // As in libpq, credentials end at the first @ before a slash.
    let rest = match head.find(['@', '/']) {
        Some(at) if head.as_bytes()[at] == b'@' => {
            credentials(&head[..at], &mut parts)?;
            &head[at + 1..]
        }
        _ => head,
    };
    let (address, dbname) = match rest.split_once('/') {
        Some((address, dbname)) => (address, Some(dbname)),
        None => (rest, None),
    };
    host_and_port(address, &mut parts)?;
    if let Some(dbname) = dbname.filter(|name| !name.is_empty()) {
        parts.dbname = Some(decode(dbname, "database name")?);
    }
    if let Some(query) = query {
        options::read(query, &mut parts)?;
    }
    build(parts)
}

fn credentials(text: &str, parts: &mut Parts) -> Result<(), Invalid> {
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (text, None),
    };
    if !user.is_empty() {
        parts.user = Some(decode(user, "user")?);
    }
    if let Some(password) = password.filter(|password| !password.is_empty()) {
        parts.password = Some(decode(password, "password")?);
    }
    Ok(())
}

fn host_and_port(text: &str, parts: &mut Parts) -> Result<(), Invalid> {
    if text.contains('@') {
        return Err(
            Invalid::new("the database URL has more than one @ before the host")
                .hint("write an @ in the user or password as %40, a slash as %2F, a colon as %3A"),
        );
    }
    if text.contains(',') {
        return Err(several_hosts());
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((host, after)) = rest.split_once(']') else {
            return Err(Invalid::new(
                "the IPv6 address of the database URL has no closing bracket",
            )
            .hint("for example [::1]:5432"));
        };
        if host.parse::<Ipv6Addr>().is_err() {
            return Err(Invalid::new(
                "what is in brackets in the database URL is not an IPv6 address",
            )
            .hint("for example [::1]:5432"));
        }
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => {
                return Err(Invalid::new(
                    "after the IPv6 address of the database URL comes neither a port nor a slash",
                ));
            }
        }
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(Invalid::new("the host of the database URL holds more than one colon")
                    .hint("write an IPv6 address in brackets, [::1]:5432; a password with special characters percent-encoded"));
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if !host.is_empty() {
        parts.host = Some(decode(host, "host")?);
    }
    if let Some(port) = port.filter(|port| !port.is_empty()) {
        parts.port = Some(decode(port, "port")?);
    }
    Ok(())
}

pub(super) fn several_hosts() -> Invalid {
    Invalid::new("the database URL names several hosts").hint(
        "one URL is one server here: its connections are counted per server; name one host, or a name that follows the primary",
    )
}

fn build(parts: Parts) -> Result<DatabaseUrl, Invalid> {
    let host = match parts.host.filter(|host| !host.is_empty()) {
        None => Host::Unix(PathBuf::from(DEFAULT_SOCKET_DIR)),
        Some(host) if host.contains(',') => return Err(several_hosts()),
        Some(host) if host.starts_with('/') => Host::Unix(PathBuf::from(host)),
        Some(host) if host.starts_with('@') => {
            return Err(
                Invalid::new("the host of the database URL is an abstract Unix socket")
                    .hint("use one with a path"),
            );
        }
        Some(host)
            if host.contains(|c: char| {
                c.is_whitespace() || c.is_control() || "/\\\"'@?#[]".contains(c)
            }) =>
        {
            return Err(Invalid::new("the host of the database URL is not a host name").hint(
                "a Unix socket's folder is absolute, ?host=/run/postgresql; in the password write @ as %40, / as %2F, ? as %3F",
            ));
        }
        // Only an IPv6 address has colons: another host, with its colon written as %3A, could not be written in a URL
        // again.
        Some(host) if host.contains(':') && host.parse::<Ipv6Addr>().is_err() => {
            return Err(Invalid::new(
                "the host of the database URL has a colon and is not an IPv6 address",
            )
            .hint("for example [::1]:5432"));
        }
        Some(host) => Host::Tcp(host),
    };
    let port = match parts.port.filter(|port| !port.is_empty()) {
        None => DEFAULT_PORT,
        Some(port) if port.contains(',') => return Err(several_hosts()),
        Some(port) => match port.parse::<u16>() {
            // `u16::parse` alone would accept a plus sign.
            Ok(number) if number != 0 && port.bytes().all(|b| b.is_ascii_digit()) => number,
            _ => {
                return Err(Invalid::new(
                    "the port of the database URL is not a number from 1 to 65535",
                )
                .hint("in the password write : as %3A, @ as %40, / as %2F"));
            }
        },
    };
    let user = match parts.user.filter(|user| !user.is_empty()).or_else(os_user) {
        Some(user) => user,
        None => return Err(Invalid::new("the database URL names no user").hint(EXAMPLE)),
    };
    let (ssl_mode, ssl_root_cert) = match parts.ssl_root_cert.as_deref() {
        // libpq's word for the system's roots; as in libpq, it requires the full check.
        Some("system") => match parts.ssl_mode {
            None | Some(SslMode::VerifyFull) => (SslMode::VerifyFull, None),
            Some(_) => {
                return Err(Invalid::new(
                    "sslrootcert=system needs sslmode=verify-full, as in libpq",
                ));
            }
        },
        Some(path) => (
            parts.ssl_mode.unwrap_or(SslMode::Prefer),
            Some(PathBuf::from(path)),
        ),
        None => (parts.ssl_mode.unwrap_or(SslMode::Prefer), None),
    };
    let ssl_client = match (parts.ssl_cert, parts.ssl_key) {
        (Some(cert), Some(key)) => Some(Box::new((cert.into(), key.into()))),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(
                Invalid::new("the database URL has one of sslcert and sslkey")
                    .hint("a certificate needs its key: write both, or neither"),
            );
        }
    };
    Ok(DatabaseUrl {
        dbname: parts
            .dbname
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| user.clone()),
        host,
        port,
        user,
        password: parts.password.map(Secret::new),
        ssl_mode,
        ssl_root_cert,
        ssl_client,
        channel_binding: parts.channel_binding,
        application_name: parts.application_name,
        connect_timeout: parts.connect_timeout,
        tcp_user_timeout: parts.tcp_user_timeout,
        keepalives: parts.keepalives,
    })
}

/// Returns the name of the user that this program runs as, which is libpq's default; `None` if /etc/passwd does not
/// list it.
fn os_user() -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    // The owner of /proc/self is the effective user; asking the C library would need unsafe code.
    let uid = std::fs::metadata("/proc/self").ok()?.uid().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid && !name.is_empty()).then(|| name.to_owned())
    })
}
