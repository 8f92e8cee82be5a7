//! Values as read from a source, and as their key's kind converts them.

use std::{path::Path, path::PathBuf, time::Duration};

use crate::{
    ByteSize, DatabaseUrl, Invalid, Listen, Network, PoolSize, SchemaName, Secret, invalid::shown,
    keys::Kind, parse_duration,
};

/// A value that its key's kind has accepted.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each is the kind of the same name")]
pub enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<String>),
    Networks(Vec<Network>),
    Ports(Vec<u16>),
    Duration(Duration),
    Size(ByteSize),
    Path(PathBuf),
    Schema(SchemaName),
    Url(Box<DatabaseUrl>),
    Listen(Listen),
    Pool(PoolSize),
    Secret(Secret),
    /// A value that is set but not used.
    Ignored,
}

/// A type that the value of a key is read as.
pub trait FromValue: Sized {
    /// Returns `None` when the value is of another kind.
    fn from_value(value: &Value) -> Option<Self>;
}

macro_rules! from_value {
    ($($type:ty: $kind:ident,)*) => {$(
        impl FromValue for $type {
            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    Value::$kind(value) => value.clone().try_into().ok(),
                    _ => None,
                }
            }
        }
    )*};
}

from_value! {
    bool: Bool,
    i64: Int,
    u64: Int,
    u32: Int,
    usize: Int,
    f64: Float,
    String: Text,
    Box<DatabaseUrl>: Url,
    Vec<String>: List,
    Vec<Network>: Networks,
    Vec<u16>: Ports,
    Duration: Duration,
    ByteSize: Size,
    PathBuf: Path,
    Listen: Listen,
    SchemaName: Schema,
    PoolSize: Pool,
    Secret: Secret,
}

/// A value in a file or in the environment.
#[derive(Clone)]
pub(crate) enum Raw<'t> {
    Text(&'t str),
    /// A value from the environment, where all values are text.
    Env(&'t str),
    Bool(bool),
    Int(Option<i64>),
    Float(Option<f64>),
    List(Vec<Raw<'t>>),
    Date,
    Section,
}

impl Raw<'_> {
    fn what(&self) -> &'static str {
        match self {
            Raw::Text(_) | Raw::Env(_) => "a text",
            Raw::Bool(_) => "true or false",
            Raw::Int(_) => "a whole number",
            Raw::Float(_) => "a number with a fraction",
            Raw::List(_) => "a list",
            Raw::Date => "a date or time",
            Raw::Section => "a section",
        }
    }
}

impl Kind {
    /// Converts `raw` to this kind; relative paths start at `base`.
    pub(crate) fn read(self, raw: &Raw<'_>, base: &Path) -> Result<Value, Invalid> {
        let wrong = |wanted: &str, example: &str| {
            let what = if matches!(raw, Raw::Env(_)) {
                "something else"
            } else {
                raw.what()
            };
            Err(Invalid::new(format!("must be {wanted}, not {what}"))
                .hint(format!("for example {example}")))
        };
        let text = match raw {
            Raw::Text(text) => Some(*text),
            // Kubernetes and shells fill variables from files, which may end with an editor's line end.
            Raw::Env(text) => Some(text.trim_end_matches(['\r', '\n'])),
            _ => None,
        };
        let env = match raw {
            Raw::Env(text) => Some(text.trim()),
            _ => None,
        };
        match self {
            Self::Bool => match (raw, env) {
                (Raw::Bool(value), _) => Ok(Value::Bool(*value)),
                (_, Some(text)) if text == "1" || text.eq_ignore_ascii_case("true") => {
                    Ok(Value::Bool(true))
                }
                (_, Some(text)) if text == "0" || text.eq_ignore_ascii_case("false") => {
                    Ok(Value::Bool(false))
                }
                _ => wrong("true or false", "true"),
            },
            Self::Int(min, max) => match self.integer(raw, env) {
                Some(number) => number
                    .filter(|n| (min..=max).contains(n))
                    .map(Value::Int)
                    .ok_or_else(|| out_of(min, max)),
                None => wrong("a whole number", &min.max(1).to_string()),
            },
            Self::Pool => match self.integer(raw, env) {
                Some(number) => {
                    let number = number.unwrap_or(i64::MAX);
                    match u32::try_from(number) {
                        Ok(number) => PoolSize::new(number).map(Value::Pool),
                        Err(_) => Err(out_of(PoolSize::MIN.into(), PoolSize::MAX.into())),
                    }
                }
                None => wrong("a whole number", "10"),
            },
            Self::Float(min, max) => {
                let number = match (raw, env) {
                    (Raw::Float(number), _) => *number,
                    // The conversion is exact for all numbers within the limits in use.
                    (Raw::Int(number), _) => number.map(|n| n as f64),
                    (_, Some(text)) => text.parse().ok(),
                    _ => return wrong("a number", "0.1"),
                };
                number
                    .filter(|n| (min..=max).contains(n))
                    .map(Value::Float)
                    .ok_or_else(|| {
                        Invalid::new("is out of range")
                            .hint(format!("write a number from {min} to {max}"))
                    })
            }
            Self::List => match (raw, env) {
                (_, Some(text)) => Ok(Value::List(
                    text.split(',')
                        .map(str::trim)
                        .filter(|t| !t.is_empty())
                        .map(str::to_owned)
                        .collect(),
                )),
                (Raw::List(items), _) => items
                    .iter()
                    .map(|item| match item {
                        Raw::Text(text) => Ok((*text).to_owned()),
                        other => Err(Invalid::new(format!(
                            "must be a list of texts; one of them is {}",
                            other.what()
                        ))),
                    })
                    .collect::<Result<_, _>>()
                    .map(Value::List),
                _ => wrong("a list of texts", "[\"GET\", \"POST\"]"),
            },
            Self::Networks => match Self::List.read(raw, base) {
                Ok(Value::List(texts)) => texts
                    .iter()
                    .map(|text| Network::parse(text))
                    .collect::<Result<_, _>>()
                    .map(Value::Networks),
                _ => wrong("a list of networks, each in quotes", "[\"10.0.0.0/8\"]"),
            },
            Self::Ports => {
                let numbers: Option<Vec<Option<i64>>> = match (raw, env) {
                    (Raw::List(items), _) => {
                        items.iter().map(|item| self.integer(item, None)).collect()
                    }
                    (_, Some(text)) => Some(
                        text.split(',')
                            .map(str::trim)
                            .filter(|t| !t.is_empty())
                            .map(|t| t.parse().ok())
                            .collect(),
                    ),
                    _ => None,
                };
                let Some(numbers) = numbers else {
                    return wrong("a list of port numbers", "[443, 8443]");
                };
                numbers
                    .into_iter()
                    .map(|number| {
                        number
                            .and_then(|n| u16::try_from(n).ok())
                            .filter(|port| *port > 0)
                            .ok_or_else(|| {
                                Invalid::new("holds what is no port").hint("ports are 1 to 65535")
                            })
                    })
                    .collect::<Result<_, _>>()
                    .map(Value::Ports)
            }
            Self::Ignored => Ok(Value::Ignored),
            Self::Duration(..) | Self::Size if matches!(raw, Raw::Int(_)) => {
                let (what, example) = if self == Self::Size {
                    ("size", "\"256M\"")
                } else {
                    ("duration", "\"5s\"")
                };
                wrong(&format!("a {what} with its unit, in quotes"), example)
            }
            _ => match text {
                Some(text) => self.read_text(text, base),
                None => wrong("a text in quotes", self.example()),
            },
        }
    }

    fn integer(self, raw: &Raw<'_>, env: Option<&str>) -> Option<Option<i64>> {
        match (raw, env) {
            (Raw::Int(number), _) => Some(*number),
            (_, Some(text)) => text.parse().ok().map(Some),
            _ => None,
        }
    }

    fn read_text(self, text: &str, base: &Path) -> Result<Value, Invalid> {
        match self {
            // Ignores case, because other programs write levels in capitals.
            Self::Choice(words) => match words
                .iter()
                .find(|word| word.eq_ignore_ascii_case(text.trim()))
            {
                Some(word) => Ok(Value::Text((*word).to_owned())),
                None => Err(Invalid::new(format!("cannot be {}", shown(text)))
                    .hint(format!("one of {}", words.join(", ")))),
            },
            Self::NoUnderscore => {
                if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                {
                    return Err(Invalid::new("must be letters, digits and hyphens, without an underscore: underscores part a PAK").hint("for example \"brokkr\""));
                }
                Ok(Value::Text(text.to_owned()))
            }
            Self::Duration(min, max) => {
                let duration = parse_duration(text)?;
                let (min, max) = (Duration::from_millis(min), Duration::from_millis(max));
                if (min..=max).contains(&duration) {
                    Ok(Value::Duration(duration))
                } else {
                    Err(
                        Invalid::new(format!("{} is out of range", shown(text))).hint(format!(
                            "write a duration from {} to {}",
                            crate::format_duration(min),
                            crate::format_duration(max)
                        )),
                    )
                }
            }
            Self::Size => ByteSize::parse(text).map(Value::Size),
            Self::Path => {
                let directory = credentials_directory();
                path(text, base, directory.as_deref()).map(Value::Path)
            }
            Self::Schema => SchemaName::parse(text).map(Value::Schema),
            Self::Url => DatabaseUrl::parse(text).map(|url| Value::Url(Box::new(url.within(base)))),
            Self::Listen => Listen::parse(text)?.within(base).map(Value::Listen),
            Self::SecretHex(digits) => {
                // No message holds the text, because it is a secret.
                if text.is_empty()
                    || (text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit()))
                {
                    // Lower case, because hashes are compared as lower-case text.
                    Ok(Value::Secret(Secret::new(text.to_ascii_lowercase())))
                } else {
                    Err(
                        Invalid::new(format!("must be exactly {digits} hexadecimal digits"))
                            .hint("leave it out to have one made"),
                    )
                }
            }
            _ => Ok(Value::Text(text.to_owned())),
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Duration(..) => "\"5s\"",
            Self::Size => "\"256M\"",
            Self::Path => "\"/etc/brokkr/database-url\"",
            Self::Schema => "\"tenant_acme\"",
            Self::Url => "\"postgres://brokkr@db.internal:5432/brokkr\"",
            Self::Listen => "\"127.0.0.1:3001\"",
            Self::Choice(words) => words.first().copied().unwrap_or("\"…\""),
            _ => "\"…\"",
        }
    }
}

fn out_of(min: i64, max: i64) -> Invalid {
    let hint = if max == i64::MAX {
        format!("write a number of at least {min}")
    } else {
        format!("write a number from {min} to {max}")
    };
    Invalid::new("is out of range").hint(hint)
}

/// Returns the folder of credentials that systemd gave to this service. In a shell it is the folder of the supervisor's
/// unit, so that `check` reads the same files as the service.
fn credentials_directory() -> Option<PathBuf> {
    const OF_THE_UNIT: &str = "/run/credentials/brokkr-supervisor.service";
    let named = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(OF_THE_UNIT)).filter(|folder| folder.is_dir()))
}

fn path(text: &str, base: &Path, credentials: Option<&Path>) -> Result<PathBuf, Invalid> {
    const VARIABLE: &str = "${CREDENTIALS_DIRECTORY}";
    if text.is_empty() || text.contains('\0') {
        return Err(Invalid::new("is not a path"));
    }
    if let Some(rest) = text.strip_prefix(VARIABLE) {
        let Some(folder) = credentials else {
            return Err(Invalid::new(format!("names {VARIABLE}, which is not set"))
                .hint("the unit needs LoadCredential= for it; in a shell, the credentials of brokkr-supervisor.service are read while that runs"));
        };
        return Ok(folder.join(rest.trim_start_matches('/')));
    }
    if text.contains("${") {
        return Err(
            Invalid::new(format!("names a variable other than {VARIABLE}"))
                .hint(format!("only {VARIABLE} is expanded, at the beginning")),
        );
    }
    Ok(base.join(text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_path_is_taken_from_its_file_or_from_the_credentials() {
        let base = Path::new("/etc/brokkr");
        assert_eq!(path("x", base, None).unwrap(), Path::new("/etc/brokkr/x"));
        assert_eq!(path("/x", base, None).unwrap(), Path::new("/x"));
        assert_eq!(
            path(
                "${CREDENTIALS_DIRECTORY}/x",
                base,
                Some(Path::new("/run/c"))
            )
            .unwrap(),
            Path::new("/run/c/x")
        );
        for bad in [
            "",
            "${CREDENTIALS_DIRECTORY}/x",
            "${HOME}/x",
            "a/${CREDENTIALS_DIRECTORY}",
        ] {
            assert!(path(bad, base, None).is_err());
        }
    }

    #[test]
    fn a_number_in_the_environment_is_text_and_in_a_file_it_is_not() {
        let read = |raw: Raw<'_>| Kind::Int(0, 9).read(&raw, Path::new("/"));
        assert_eq!(read(Raw::Env("7")).unwrap(), Value::Int(7));
        assert_eq!(read(Raw::Int(Some(7))).unwrap(), Value::Int(7));
        for bad in [
            Raw::Text("7"),
            Raw::Int(Some(10)),
            Raw::Int(None),
            Raw::Env("x"),
            Raw::Float(Some(1.0)),
            Raw::Bool(true),
        ] {
            assert!(read(bad).is_err());
        }
    }

    #[test]
    fn a_variable_may_end_with_a_line_end_and_a_word_may_be_in_capitals() {
        let base = Path::new("/");
        for end in ["", "\n", "\r\n", "\n\n"] {
            let read = |kind: Kind, text: &str| kind.read(&Raw::Env(&format!("{text}{end}")), base);
            let url = read(Kind::Url, "postgres://u:p@h/d").unwrap();
            assert!(matches!(url, Value::Url(url) if url.dbname() == "d"));
            assert_eq!(
                read(Kind::Path, "/url").unwrap(),
                Value::Path("/url".into())
            );
            assert!(read(Kind::Listen, "127.0.0.1:1").is_ok());
            assert!(read(Kind::Schema, "acme").is_ok());
            assert!(read(Kind::Size, "1M").is_ok());
            assert!(read(Kind::Duration(0, 9000), "5s").is_ok());
            assert!(read(Kind::SecretHex(4), "00FF").is_ok());
            assert_eq!(read(Kind::Bool, "True").unwrap(), Value::Bool(true));
            let level = read(Kind::Choice(&["info", "warn"]), "INFO").unwrap();
            assert_eq!(level, Value::Text("info".into()));
        }
        let file = |text| Kind::Choice(&["info", "warn"]).read(&Raw::Text(text), base);
        assert_eq!(file("WARN").unwrap(), Value::Text("warn".into()));
        assert!(file("WARM").is_err());
        // In a file a line end is part of the value.
        let in_file = Kind::Url.read(&Raw::Text("postgres://u@h/d\n"), base);
        assert!(in_file.is_err());
    }

    #[test]
    fn a_secret_that_is_refused_is_not_in_the_message() {
        let error = Kind::SecretHex(64)
            .read(&Raw::Text("hunter2"), Path::new("/"))
            .unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
