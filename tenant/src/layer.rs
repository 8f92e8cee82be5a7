//! One source of settings: a file, the environment, or the program itself.
//!
//! A layer exists even where its source has errors: it keeps the readable settings and the problems. [`crate::resolve`]
//! reports the problems of all layers together.

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
    /// Keys that are present with a bad value, so that they are not reported as missing.
    pub(crate) broken: BTreeSet<String>,
    pub(crate) problems: Diagnostics,
    pub(crate) source: Option<Arc<Source>>,
    /// True when the source could not be read, so that no key is reported as missing.
    pub(crate) unreadable: bool,
}

impl Layer {
    /// Reads the file of a tenant or of a broker that runs alone; both have the same keys.
    pub fn from_file(path: &Path) -> Self {
        Self::from_file_with(path, &settings::KEYS)
    }

    /// Reads a file with another table of keys.
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

    /// Reads a source that is already in memory.
    pub fn from_source(source: Source, keys: &Keys) -> Self {
        file::read(Arc::new(source), keys)
    }

    /// Reads `BROKKR__SECTION__KEY` variables and ignores all others.
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

    /// Makes a layer of settings that the program decides, each written as in the environment; messages name `who` as
    /// the source. An example is the embedded server's URL, below every file.
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

    /// Returns the built-in defaults of a table.
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

    /// Returns the settings under `prefix` as a layer: `defaults` of the supervisor's file, for its tenants. The
    /// problems stay with the file's own layer.
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
            // The layer has no source, because a key that a tenant lacks is missing in the tenant's own file.
            source: None,
            unreadable: false,
        }
    }

    /// Returns the value of a key, if this layer has a good value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// Returns the origin of a key's value.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.entries.get(key).map(|(_, origin)| origin)
    }

    /// Returns the problems of this source. Missing keys are known only after the layers are merged.
    pub fn problems(&self) -> &Diagnostics {
        &self.problems
    }

    /// Returns the file, if the layer is a file that could be read.
    pub fn source(&self) -> Option<&Arc<Source>> {
        self.source.as_ref()
    }

    /// Returns the file's path.
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
                // Adds the key's name, because the message of a kind calls the value only "it".
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

/// The warning about all such keys of one source together.
pub(crate) const FOREIGN: &str = "settings of another program, not used here";
/// The warning about all such keys of one source together.
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
