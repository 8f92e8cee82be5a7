//! The address that a broker listens on.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Invalid, invalid::shown};

/// The longest path of a Unix socket, in bytes: `sun_path` holds 108, including the final NUL.
pub const MAX_UNIX_PATH: usize = 107;

/// An address to listen on: `IP:port` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// An IP address and a port. Port 0 (any free port) is only for a broker that runs alone.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Listen {
    /// Parses an address.
    ///
    /// # Errors
    /// When the text is neither `IP:port` nor `unix:PATH`. Host names are refused, because their addresses may change.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let refuse =
            |why: &str| Invalid::new(format!("{} is not a listen address: {why}", shown(text)));
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(refuse("the path is missing")
                    .hint("for example \"unix:/run/brokkr/acme.sock\""));
            }
            if path.contains('\0') || path.ends_with('/') {
                return Err(refuse("that is not the path of a socket")
                    .hint("for example \"unix:/run/brokkr/acme.sock\""));
            }
            let listen = Self::Unix(PathBuf::from(path));
            return listen.check().map(|()| listen);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Tcp(address));
        }
        if text.starts_with('/') || text.starts_with("./") {
            return Err(
                refuse("a Unix socket is written with `unix:`").hint(format!("\"unix:{text}\""))
            );
        }
        if let Some(port) = text
            .strip_prefix(':')
            .or(Some(text))
            .filter(|p| p.parse::<u16>().is_ok())
        {
            return Err(refuse("the IP address is missing").hint(format!(
                "\"127.0.0.1:{port}\", or \"0.0.0.0:{port}\" for every address"
            )));
        }
        if text.parse::<std::net::IpAddr>().is_ok() {
            let example = if text.contains(':') {
                format!("\"[{text}]:3000\"")
            } else {
                format!("\"{text}:3000\"")
            };
            return Err(refuse("the port is missing").hint(example));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() && !host.contains(':') => {
                if host.split('.').count() == 4
                    && host.chars().all(|c| c.is_ascii_digit() || c == '.')
                {
                    return Err(refuse("the IP address is not valid")
                        .hint("each of its four numbers is 0 to 255"));
                }
                Err(
                    refuse("host names are not accepted, since what they mean changes").hint(
                        format!("write the IP address, for example \"127.0.0.1:{port}\""),
                    ),
                )
            }
            Some((host, port)) if host.parse::<std::net::Ipv4Addr>().is_ok() => Err(refuse(
                &format!("the port {} is not a number from 1 to 65535", shown(port)),
            )
            .hint(format!("for example \"{host}:3000\""))),
            _ => Err(refuse("it is neither IP:port nor unix:PATH").hint(
                "for example \"127.0.0.1:3001\", \"[::1]:3001\" or \"unix:/run/brokkr/acme.sock\"",
            )),
        }
    }

    /// Resolves a relative Unix path against `base`.
    ///
    /// # Errors
    /// When the resulting path is too long for a socket.
    pub fn within(self, base: &Path) -> Result<Self, Invalid> {
        match self {
            Self::Unix(path) => {
                let listen = Self::Unix(base.join(path));
                listen.check().map(|()| listen)
            }
            tcp @ Self::Tcp(_) => Ok(tcp),
        }
    }

    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Unix(path) if path.as_os_str().len() > MAX_UNIX_PATH => {
                Err(Invalid::new(format!(
                    "the path of the Unix socket has {} bytes, {MAX_UNIX_PATH} are allowed",
                    path.as_os_str().len()
                ))
                .hint("use a shorter folder, for example /run/brokkr"))
            }
            _ => Ok(()),
        }
    }

    /// Returns true when the port is 0, so that the kernel chooses.
    pub fn is_any_port(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.port() == 0)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

crate::text_conversions::text_conversions!(Listen);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_is_an_ip_and_port_or_a_unix_path() {
        for good in [
            "127.0.0.1:3001",
            "0.0.0.0:0",
            "[::1]:80",
            "unix:/run/brokkr/acme.sock",
            "unix:a.sock",
        ] {
            assert_eq!(Listen::parse(good).unwrap().to_string(), good);
        }
    }

    #[test]
    fn a_bad_address_says_what_to_write_instead() {
        for (bad, hint) in [
            ("localhost:3000", "127.0.0.1:3000"),
            (":3000", "127.0.0.1:3000"),
            ("3000", "127.0.0.1:3000"),
            ("127.0.0.1", "127.0.0.1:3000"),
            ("::1", "[::1]:3000"),
            ("/run/x.sock", "unix:/run/x.sock"),
            ("127.0.0.1:70000", "127.0.0.1:3000"),
            ("999.0.0.1:80", "0 to 255"),
            ("unix:", "unix:/"),
            ("", "unix:/"),
            ("http://127.0.0.1:3000", "127.0.0.1"),
        ] {
            let error = Listen::parse(bad).unwrap_err();
            assert!(
                error.hint.as_deref().unwrap().contains(hint),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn a_unix_path_has_at_most_107_bytes() {
        let path = format!("unix:/{}", "a".repeat(106));
        assert!(Listen::parse(&path).is_ok());
        assert!(Listen::parse(&format!("{path}a")).is_err());
        assert!(
            Listen::parse("unix:b.sock")
                .unwrap()
                .within(Path::new(&"/x".repeat(60)))
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_accepted_reads_back(text in "(unix:)?[0-9a-z.:/\\[\\]\\PC]{0,30}") {
            if let Ok(listen) = Listen::parse(&text) {
                prop_assert_eq!(Listen::parse(&listen.to_string()).unwrap(), listen);
            }
        }
    }
}
