//! One source of settings: a file, the environment, or what a program decides.
//!
//! A layer is always made, whatever is wrong with its source: it keeps what could be read and the problems of the
//! rest, and [`crate::resolve`] reports those of all layers together, so that one look shows every error.

mod file;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Diagnostic, Diagnostics, Origin, Source,
    invalid::shown,
    keys::Keys,
    settings,
    value::{Raw, Value},
};

/// Settings from one source, by dotted key, each with its origin.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    pub(crate) entries: BTreeMap<String, (Value, Origin)>,
    /// Keys that are there but bad: not missing, though without a value.
    pub(crate) broken: BTreeSet<String>,
    pub(crate) problems: Diagnostics,
    pub(crate) source: Option<Arc<Source>>,
    /// Nothing in it could be read, so nothing that is missing can be complained about.
    pub(crate) unreadable: bool,
}

impl Layer {
    /// Reads a tenant's file (or a broker's, which is the same).
    pub fn from_file(path: &Path) -> Self {
        Self::from_file_with(path, &settings::KEYS)
    }

    /// Reads a file by another table of keys.
    pub fn from_file_with(path: &Path, keys: &Keys) -> Self {
        match Source::read(path) {
            Ok(source) => Self::from_source(source, keys),
            Err(diagnostic) => Self {
                problems: diagnostic.into(),
                unreadable: true,
                ..Self::default()
            },
        }
    }

    /// Reads a text that is already there.
    pub fn from_source(source: Source, keys: &Keys) -> Self {
        file::read(Arc::new(source), keys)
    }

    /// Takes `BROKKR__SECTION__KEY` variables; all others are passed over.
    pub fn from_env(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut layer = Self::default();
        let base = std::env::current_dir().unwrap_or_default();
        let (mut foreign, mut idle) = (Vec::new(), Vec::new());
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            let Some(rest) = name.strip_prefix("BROKKR__") else {
                continue;
            };
            let dotted = rest.to_ascii_lowercase().replace("__", ".");
            let origin = Origin::Env(name.clone());
            if settings::KEYS.is_foreign(dotted.split('.').next().unwrap_or_default()) {
                foreign.push(name);
                continue;
            }
            let Some(key) = settings::KEYS.find(&dotted) else {
                let hint = variable_advice(&dotted);
                layer.problems.push(
                    Diagnostic::at(&origin, "unknown variable, it has no effect", hint).warning(),
                );
                continue;
            };
            if !key.effect {
                idle.push(name.clone());
            }
            let read = match value.to_str() {
                Some(text) => key.kind.read(&Raw::Env(text), &base),
                None => Err(crate::Invalid::new("is not UTF-8")),
            };
            layer.put(key.name.to_owned(), read, origin);
        }
        for (names, why) in [(foreign, FOREIGN), (idle, IDLE)] {
            if let Some(first) = names.first() {
                let message = format!("{why}: {}", names.join(", "));
                layer
                    .problems
                    .push(Diagnostic::at(&Origin::Env(first.clone()), message, None).warning());
            }
        }
        layer
    }

    /// Settings that a program decides, each as it would be written in the environment; `who` says so in messages.
    /// For example the embedded server's URL, below every file.
    pub fn from_pairs<'p>(
        who: &'static str,
        pairs: impl IntoIterator<Item = (&'p str, &'p str)>,
    ) -> Self {
        let mut layer = Self::default();
        let base = std::env::current_dir().unwrap_or_default();
        for (name, text) in pairs {
            let origin = Origin::Default(who);
            match settings::KEYS.find(name) {
                Some(key) => layer.put(
                    name.to_owned(),
                    key.kind.read(&Raw::Env(text), &base),
                    origin,
                ),
                None => layer.problems.push(Diagnostic::at(
                    &origin,
                    format!("unknown key {}", shown(name)),
                    None,
                )),
            }
        }
        layer
    }

    /// The built-in defaults of a table.
    pub fn defaults(keys: &Keys) -> Self {
        let mut layer = Self::default();
        for key in keys.list() {
            if let Some(text) = key.default {
                layer.put(
                    key.name.to_owned(),
                    key.kind.read(&Raw::Env(text), Path::new("/")),
                    Origin::Default("built-in default"),
                );
            }
        }
        layer
    }

    /// The settings under `prefix` as a layer of their own: `defaults` of the supervisor's file, for its tenants.
    /// The problems stay with the file's own layer.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Self {
        let strip = |name: &String| {
            name.strip_prefix(prefix)
                .and_then(|rest| rest.strip_prefix('.'))
                .map(str::to_owned)
        };
        Self {
            entries: self
                .entries
                .iter()
                .filter_map(|(name, entry)| Some((strip(name)?, entry.clone())))
                .collect(),
            broken: self.broken.iter().filter_map(strip).collect(),
            problems: Diagnostics::default(),
            // It is not the tenant's own file: what a tenant lacks is not missing there.
            source: None,
            unreadable: false,
        }
    }

    /// The value of a key, if this layer has a good one.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// Where the key's value came from.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.entries.get(key).map(|(_, origin)| origin)
    }

    /// Everything wrong with the source so far. What is missing is only known once all layers are together.
    pub fn problems(&self) -> &Diagnostics {
        &self.problems
    }

    /// The file, where the layer is one and it could be read.
    pub fn source(&self) -> Option<&Arc<Source>> {
        self.source.as_ref()
    }

    /// The file's path.
    pub fn path(&self) -> Option<PathBuf> {
        self.source.as_ref().map(|source| source.path().to_owned())
    }

    pub(crate) fn put(
        &mut self,
        name: String,
        read: Result<Value, crate::Invalid>,
        origin: Origin,
    ) {
        match read {
            Ok(value) => {
                self.entries.insert(name, (value, origin));
            }
            Err(mut invalid) => {
                // The message of a kind speaks of "it"; the reader has to know of what.
                invalid.message = if invalid.message.starts_with(['`'])
                    || invalid.message.starts_with("the ")
                    || invalid.message.starts_with("a ")
                {
                    format!("`{name}`: {}", invalid.message)
                } else {
                    format!("`{name}` {}", invalid.message)
                };
                self.problems.push(Diagnostic::invalid(&origin, invalid));
                self.broken.insert(name);
            }
        }
    }
}

/// Said once for all such keys of one source.
pub(crate) const FOREIGN: &str = "settings of another program, not used here";
/// Said once for all such keys of one source.
pub(crate) const IDLE: &str = "known but without effect yet";

fn variable_advice(dotted: &str) -> Option<String> {
    let known = settings::KEYS.list().iter().map(|key| key.name);
    let better = crate::closest::closest(dotted, known)?;
    Some(format!(
        "did you mean BROKKR__{}?",
        better.to_ascii_uppercase().replace('.', "__")
    ))
}

#[cfg(test)]
mod tests;
