//! Tables of known keys, with the kind and the default of each.
//!
//! One table drives reading files, reading the environment, hints for unknown keys, and defaults.

use crate::closest::closest;

/// The kind of a key's value, with its limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number within inclusive limits.
    Int(i64, i64),
    /// A number within inclusive limits.
    Float(f64, f64),
    /// Any text.
    Text,
    /// A non-empty text without underscores (`pak.prefix`).
    NoUnderscore,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of texts; comma-separated in the environment.
    List,
    /// A list of networks (`10.0.0.0/8`); comma-separated in the environment.
    Networks,
    /// A list of TCP ports; comma-separated in the environment.
    Ports,
    /// An integer with `ms`, `s`, `m` or `h`, within inclusive limits in milliseconds.
    Duration(u64, u64),
    /// An integer with `K`, `M` or `G`.
    Size,
    /// A path, relative to the folder of the file that names it. A leading `${CREDENTIALS_DIRECTORY}` is expanded.
    Path,
    /// A schema's name.
    Schema,
    /// A database URL.
    Url,
    /// A listen address.
    Listen,
    /// A pool size.
    Pool,
    /// Secret hexadecimal digits: exactly this many, or none for "not set".
    SecretHex(usize),
    /// A value that is read and ignored.
    Ignored,
}

/// One known key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The dotted name, for example `database.schema`.
    pub name: &'static str,
    /// The kind of its value.
    pub kind: Kind,
    /// The built-in default, written as in the environment; `None` leaves the key unset.
    pub default: Option<&'static str>,
    /// False for a key without effect yet, which gets a warning.
    pub effect: bool,
}

impl Key {
    /// Makes a key with an effect.
    pub const fn new(name: &'static str, kind: Kind, default: Option<&'static str>) -> Self {
        Self {
            name,
            kind,
            default,
            effect: true,
        }
    }

    /// Makes a key of a whole number within inclusive limits.
    pub const fn int(name: &'static str, min: i64, max: i64, default: &'static str) -> Self {
        Self::new(name, Kind::Int(min, max), Some(default))
    }

    /// Makes a key of a duration within inclusive limits in milliseconds.
    pub const fn duration(name: &'static str, min: u64, max: u64, default: &'static str) -> Self {
        Self::new(name, Kind::Duration(min, max), Some(default))
    }

    /// Makes a key that is checked but has no effect yet.
    pub const fn idle(name: &'static str, kind: Kind, default: Option<&'static str>) -> Self {
        Self {
            name,
            kind,
            default,
            effect: false,
        }
    }
}

/// A table of keys, optionally with a second table under a prefix (`[defaults.*]` of the supervisor's file).
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    keys: &'static [Key],
    nested: Option<(&'static str, &'static Keys)>,
    foreign: &'static [&'static str],
}

impl Keys {
    /// Makes a table of these keys.
    pub const fn new(keys: &'static [Key]) -> Self {
        Self {
            keys,
            nested: None,
            foreign: &[],
        }
    }

    /// Adds a second table under `prefix`, for example `defaults`.
    #[must_use]
    pub const fn with_nested(mut self, prefix: &'static str, keys: &'static Keys) -> Self {
        self.nested = Some((prefix, keys));
        self
    }

    /// Adds sections of another program, which are accepted without checks and give one warning.
    #[must_use]
    pub const fn with_foreign(mut self, sections: &'static [&'static str]) -> Self {
        self.foreign = sections;
        self
    }

    /// Returns the keys of the table itself, without the nested table.
    pub fn list(&self) -> &'static [Key] {
        self.keys
    }

    fn inner<'n>(&self, name: &'n str) -> Option<(&'static Keys, &'n str)> {
        let (prefix, keys) = self.nested?;
        Some((keys, name.strip_prefix(prefix)?.strip_prefix('.')?))
    }

    /// Returns the key with that dotted name.
    pub fn find(&self, name: &str) -> Option<&'static Key> {
        match self.inner(name) {
            Some((keys, rest)) => keys.find(rest),
            None => self.keys.iter().find(|key| key.name == name),
        }
    }

    /// Returns true when `name` is a section, that is, a prefix of known keys.
    pub fn is_section(&self, name: &str) -> bool {
        if let Some((keys, rest)) = self.inner(name) {
            return keys.is_section(rest);
        }
        self.nested.is_some_and(|(prefix, _)| prefix == name)
            || self.keys.iter().any(|key| {
                key.name
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('.'))
            })
    }

    /// Returns true when `name` is a section of another program.
    pub fn is_foreign(&self, name: &str) -> bool {
        match self.inner(name) {
            Some((keys, rest)) => keys.is_foreign(rest),
            None => self.foreign.contains(&name),
        }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.keys.iter().map(|key| key.name.to_owned()).collect();
        if let Some((prefix, keys)) = self.nested {
            names.extend(
                keys.names()
                    .into_iter()
                    .map(|name| format!("{prefix}.{name}")),
            );
        }
        names
    }

    /// Returns a hint for the unknown `name`.
    pub(crate) fn advice(&self, name: &str) -> String {
        if let Some((prefix, keys)) = self.nested
            && (keys.is_section(name) || keys.find(name).is_some())
        {
            return format!("did you mean `{prefix}.{name}`?");
        }
        let names = self.names();
        let (section, last) = split(name);
        let children: Vec<&str> = names
            .iter()
            .filter_map(|known| child(known, section))
            .collect();
        if let Some(better) = closest(last, children.iter().copied()) {
            return format!("did you mean `{better}`?");
        }
        let elsewhere: Vec<&String> = names
            .iter()
            .filter(|known| split(known).1 == last)
            .collect();
        // Prefers the key under the fewest sections.
        if let Some(better) = elsewhere
            .iter()
            .min_by_key(|known| known.matches('.').count())
        {
            return match split(better) {
                ("", key) => format!("`{key}` belongs above the first section"),
                (section, key) => format!("did you mean `{key}` in [{section}]?"),
            };
        }
        if let Some(better) = closest(name, names.iter().map(String::as_str)) {
            return format!("did you mean `{better}`?");
        }
        let mut children = children;
        children.dedup();
        if children.is_empty() || children.len() > 24 {
            "remove it".to_owned()
        } else {
            format!("known here: {}", children.join(", "))
        }
    }
}

/// Splits a dotted name into section and last part.
pub(crate) fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

/// Returns the part of `known` directly under `section`.
fn child<'k>(known: &'k str, section: &str) -> Option<&'k str> {
    let rest = if section.is_empty() {
        known
    } else {
        known.strip_prefix(section)?.strip_prefix('.')?
    };
    rest.split('.').next()
}
