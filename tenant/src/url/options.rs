//! libpq's options after the question mark: those implemented, and those refused with a reason.

use std::time::Duration;

use super::{
    ChannelBinding, DEFAULT_PORT, DatabaseUrl, Host, SslMode,
    parts::{Parts, decode},
};
use crate::{Invalid, invalid::shown};

/// Options of libpq (to 18) that are not implemented, by the reason, which is given where it helps.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["options"],
        "a pooler refuses it, and search_path is the broker's own; set server settings on the role with ALTER ROLE … SET",
    ),
    (&["hostaddr"], "write the address as the host"),
    (
        &["passfile"],
        "write the password into the URL, or the whole URL into a file named by url_file",
    ),
    (
        &["service", "servicefile"],
        "name host, port, user and database in the URL",
    ),
    (
        &["sslpassword", "sslcertmode"],
        "the key of sslkey must not be encrypted, and a certificate is sent when the server asks for one",
    ),
    (
        &["sslcrl", "sslcrldir"],
        "revocation lists are not supported",
    ),
    (&["load_balance_hosts"], "one URL is one server here"),
    (&["replication"], "a broker does not replicate"),
    (
        &["ssl_min_protocol_version", "ssl_max_protocol_version"],
        "TLS 1.2 and 1.3 are used",
    ),
    (
        &["gsslib", "gssdelegation", "krbsrvname"],
        "GSSAPI is not supported",
    ),
    (
        &["fallback_application_name"],
        "the application_name is set by us",
    ),
    (
        &[
            "sslcompression",
            "sslsni",
            "sslkeylogfile",
            "sslnegotiation",
            "requirepeer",
            "require_auth",
            "scram_client_key",
            "scram_server_key",
            "min_protocol_version",
            "max_protocol_version",
            "tty",
            "authtype",
        ],
        "",
    ),
];

/// The options that [`set`] knows, for the hint about an unknown option.
const KNOWN: &[&str] = &[
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "ssl",
    "channel_binding",
    "application_name",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "target_session_attrs",
    "client_encoding",
    "gssencmode",
];

pub(super) fn read(query: &str, parts: &mut Parts) -> Result<(), Invalid> {
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(Invalid::new("an option of the database URL has no value")
                .hint("options are written ?name=value&name=value"));
        };
        let name = decode(name, "option's name")?;
        let value = decode(value, &format!("option {}", shown(&name)))?;
        set(&name, value, parts)?;
    }
    Ok(())
}

fn set(name: &str, value: String, parts: &mut Parts) -> Result<(), Invalid> {
    let one_of = |allowed: &str| {
        Err(Invalid::new(format!(
            "the option `{name}` of the database URL has a value it cannot have"
        ))
        .hint(format!("one of {allowed}")))
    };
    let number = || {
        value.parse::<u32>().map_err(|_| {
            Invalid::new(format!(
                "the option `{name}` of the database URL is not a whole number"
            ))
            .hint("zero is the default of the system")
        })
    };
    // Zero means the system's default everywhere in libpq.
    let seconds = || Ok(Some(Duration::from_secs(number()?.into())).filter(|d| !d.is_zero()));
    match name {
        "host" => parts.host = Some(value),
        "port" => parts.port = Some(value),
        "user" => parts.user = Some(value),
        "password" => parts.password = Some(value).filter(|password| !password.is_empty()),
        "dbname" => parts.dbname = Some(value),
        "sslmode" => {
            parts.ssl_mode = Some(match value.as_str() {
                "disable" => SslMode::Disable,
                "prefer" => SslMode::Prefer,
                "require" => SslMode::Require,
                "verify-ca" => SslMode::VerifyCa,
                "verify-full" => SslMode::VerifyFull,
                "allow" => {
                    return Err(Invalid::new("sslmode=allow is not supported")
                        .hint("use prefer, which tries TLS first, or disable"));
                }
                _ => return one_of("disable, prefer, require, verify-ca, verify-full"),
            });
        }
        "ssl" => match value.as_str() {
            "true" => parts.ssl_mode = Some(SslMode::Require),
            _ => return one_of("true (sslmode says more)"),
        },
        "sslrootcert" => parts.ssl_root_cert = Some(value).filter(|path| !path.is_empty()),
        "sslcert" => parts.ssl_cert = Some(value).filter(|path| !path.is_empty()),
        "sslkey" => parts.ssl_key = Some(value).filter(|path| !path.is_empty()),
        "channel_binding" => {
            parts.channel_binding = Some(match value.as_str() {
                "disable" => ChannelBinding::Disable,
                "prefer" => ChannelBinding::Prefer,
                "require" => ChannelBinding::Require,
                _ => return one_of("disable, prefer, require"),
            });
        }
        "application_name" => parts.application_name = Some(value),
        "connect_timeout" => parts.connect_timeout = seconds()?,
        "tcp_user_timeout" => {
            parts.tcp_user_timeout =
                Some(Duration::from_millis(number()?.into())).filter(|d| !d.is_zero())
        }
        "keepalives" => match value.as_str() {
            "0" => parts.keepalives.enabled = Some(false),
            "1" => parts.keepalives.enabled = Some(true),
            _ => return one_of("0, 1"),
        },
        "keepalives_idle" => parts.keepalives.idle = seconds()?,
        "keepalives_interval" => parts.keepalives.interval = seconds()?,
        "keepalives_count" => parts.keepalives.count = Some(number()?).filter(|count| *count != 0),
        "target_session_attrs" => match value.as_str() {
            // Accepted and ignored, because every broker asks for a server that takes writes.
            "any" | "read-write" | "primary" => {}
            "read-only" | "standby" | "prefer-standby" => {
                return Err(Invalid::new(
                    "target_session_attrs asks for a server that takes no writes",
                )
                .hint("a tenant's server must take writes: leave the option out"));
            }
            _ => return one_of("any, read-write, primary"),
        },
        "client_encoding"
            if matches!(
                value.to_ascii_lowercase().as_str(),
                "utf8" | "utf-8" | "auto"
            ) => {}
        "client_encoding" => return one_of("UTF8"),
        "gssencmode" if matches!(value.as_str(), "disable" | "prefer") => {}
        "gssencmode" => return one_of("disable, prefer"),
        _ => return Err(unknown(name)),
    }
    Ok(())
}

fn unknown(name: &str) -> Invalid {
    if let Some((_, why)) = REFUSED.iter().find(|(names, _)| names.contains(&name)) {
        let error = Invalid::new(format!(
            "the option `{name}` of the database URL is not supported"
        ));
        return if why.is_empty() {
            error.hint("leave it out")
        } else {
            error.hint(*why)
        };
    }
    let error = Invalid::new(format!(
        "the option {} of the database URL is unknown",
        shown(name)
    ));
    match crate::closest::closest(name, KNOWN.iter().copied()) {
        Some(better) => error.hint(format!("did you mean `{better}`?")),
        None => error.hint("in the password write ? as %3F and & as %26"),
    }
}

impl DatabaseUrl {
    /// Returns every option that the URL needs to parse to an equal URL.
    pub(super) fn options(&self) -> Vec<(&'static str, String)> {
        let mut options = Vec::new();
        if let Host::Unix(folder) = &self.host {
            options.push(("host", folder.display().to_string()));
            if self.port != DEFAULT_PORT {
                options.push(("port", self.port.to_string()));
            }
        }
        if self.ssl_mode != SslMode::Prefer {
            options.push(("sslmode", self.ssl_mode.as_str().to_owned()));
        }
        if let Some(path) = &self.ssl_root_cert {
            options.push(("sslrootcert", path.display().to_string()));
        }
        if let Some((cert, key)) = self.ssl_client.as_deref() {
            options.push(("sslcert", cert.display().to_string()));
            options.push(("sslkey", key.display().to_string()));
        }
        if let Some(binding) = self.channel_binding {
            let word = match binding {
                ChannelBinding::Disable => "disable",
                ChannelBinding::Prefer => "prefer",
                ChannelBinding::Require => "require",
            };
            options.push(("channel_binding", word.to_owned()));
        }
        if let Some(name) = &self.application_name {
            options.push(("application_name", name.clone()));
        }
        let keepalives = &self.keepalives;
        let mut number = |name, value: Option<u128>| {
            if let Some(value) = value {
                options.push((name, value.to_string()));
            }
        };
        number(
            "connect_timeout",
            self.connect_timeout.map(|d| d.as_secs().into()),
        );
        number(
            "tcp_user_timeout",
            self.tcp_user_timeout.map(|d| d.as_millis()),
        );
        number("keepalives", keepalives.enabled.map(u128::from));
        number(
            "keepalives_idle",
            keepalives.idle.map(|d| d.as_secs().into()),
        );
        number(
            "keepalives_interval",
            keepalives.interval.map(|d| d.as_secs().into()),
        );
        number("keepalives_count", keepalives.count.map(u128::from));
        options
    }
}
