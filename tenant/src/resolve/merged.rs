//! The merged layers: for each key the value of the highest layer that sets it, converted to its type.

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{
    ByteSize, DatabaseUrl, Diagnostic, Diagnostics, Layer, Network, Origin, PoolSize, SchemaName,
    Secret, keys::Keys, value::Value,
};

pub(super) struct Merged<'l> {
    layers: &'l [Layer],
    defaults: Layer,
    /// Keys with a default of the wrong type, which is an error in the table. A test checks the table.
    mismatches: RefCell<Vec<String>>,
}

impl<'l> Merged<'l> {
    pub(super) fn new(keys: &Keys, layers: &'l [Layer]) -> Self {
        let defaults = Layer::defaults(keys);
        let mismatches = RefCell::new(defaults.broken.iter().cloned().collect());
        Self {
            layers,
            defaults,
            mismatches,
        }
    }

    fn entry(&self, key: &str) -> Option<&(Value, Origin)> {
        self.layers
            .iter()
            .rev()
            .chain([&self.defaults])
            .find_map(|layer| layer.entries.get(key))
    }

    pub(super) fn take(&self, key: &str) -> Option<(Value, Origin)> {
        self.entry(key).cloned()
    }

    pub(super) fn origin(&self, key: &str) -> Option<&Origin> {
        self.entry(key).map(|(_, origin)| origin)
    }

    /// Returns true when a layer has the key with a bad value, which is already reported.
    pub(super) fn is_broken(&self, key: &str) -> bool {
        self.layers.iter().any(|layer| layer.broken.contains(key))
    }

    /// Returns the URL or its file from the highest layer that sets either, because both keys set the same thing.
    pub(super) fn url_or_file(
        &self,
        problems: &mut Diagnostics,
    ) -> (Option<DatabaseUrl>, Option<(PathBuf, Origin)>) {
        for layer in self.layers.iter().rev() {
            let (url, file) = (
                layer.entries.get("database.url"),
                layer.entries.get("database.url_file"),
            );
            if let (Some(_), Some((_, origin))) = (url, file) {
                let message = "`database.url_file` and `database.url` are both there";
                problems.push(Diagnostic::at(
                    origin,
                    message,
                    Some("keep one of the two".to_owned()),
                ));
            }
            if layer.broken.contains("database.url") || layer.broken.contains("database.url_file") {
                return (None, None);
            }
            match (url, file) {
                (Some((Value::Url(url), _)), _) => return (Some((**url).clone()), None),
                (None, Some((Value::Path(path), origin))) => {
                    return (None, Some((path.clone(), origin.clone())));
                }
                _ => {}
            }
        }
        (None, None)
    }

    /// Returns the other files that the configuration refers to.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.url_or_file(&mut Diagnostics::default())
            .1
            .map(|(path, _)| path)
            .into_iter()
            .collect()
    }

    /// Returns the origin of every key that has a value. Of `url` and `url_file` it contains only the key in effect.
    pub(super) fn origins(&self) -> BTreeMap<String, Origin> {
        let mut origins = BTreeMap::new();
        for layer in [&self.defaults].into_iter().chain(self.layers) {
            for (key, (_, origin)) in &layer.entries {
                match key.as_str() {
                    "database.url" => origins.remove("database.url_file"),
                    "database.url_file" => origins.remove("database.url"),
                    _ => None,
                };
                origins.insert(key.clone(), origin.clone());
            }
        }
        origins
    }

    pub(super) fn mismatches(&self) -> Vec<Diagnostic> {
        let origin = Origin::Default("built-in default");
        let mismatches = self.mismatches.borrow();
        mismatches
            .iter()
            .map(|key| {
                Diagnostic::at(
                    &origin,
                    format!("`{key}` has a value of the wrong kind"),
                    None,
                )
            })
            .collect()
    }

    fn optional<T>(&self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let (value, _) = self.entry(key)?;
        let read = read(value);
        if read.is_none() {
            self.mismatches.borrow_mut().push(key.to_owned());
        }
        read
    }

    /// Reads a key that has a default. `fallback` is used only with an error in the table, which is then reported.
    fn required<T>(&self, key: &str, fallback: T, read: impl Fn(&Value) -> Option<T>) -> T {
        if self.entry(key).is_none() {
            self.mismatches.borrow_mut().push(key.to_owned());
        }
        self.optional(key, read).unwrap_or(fallback)
    }

    pub(super) fn optional_bool(&self, key: &str) -> Option<bool> {
        self.optional(key, |value| {
            if let Value::Bool(b) = value {
                Some(*b)
            } else {
                None
            }
        })
    }

    pub(super) fn optional_int(&self, key: &str) -> Option<i64> {
        self.optional(key, |value| {
            if let Value::Int(n) = value {
                Some(*n)
            } else {
                None
            }
        })
    }

    pub(super) fn optional_size(&self, key: &str) -> Option<ByteSize> {
        self.optional(key, |value| {
            if let Value::Size(size) = value {
                Some(*size)
            } else {
                None
            }
        })
    }

    pub(super) fn optional_path(&self, key: &str) -> Option<PathBuf> {
        self.optional(key, |value| {
            if let Value::Path(path) = value {
                Some(path.clone())
            } else {
                None
            }
        })
    }

    /// Reads an optional secret. An empty secret counts as none.
    pub(super) fn optional_secret(&self, key: &str) -> Option<Secret> {
        self.optional(key, |value| {
            if let Value::Secret(secret) = value {
                Some(secret.clone())
            } else {
                None
            }
        })
        .filter(|secret| !secret.expose().is_empty())
    }

    pub(super) fn bool(&self, key: &str) -> bool {
        self.required(key, false, |value| {
            if let Value::Bool(b) = value {
                Some(*b)
            } else {
                None
            }
        })
    }

    pub(super) fn int(&self, key: &str) -> i64 {
        self.required(key, 0, |value| {
            if let Value::Int(n) = value {
                Some(*n)
            } else {
                None
            }
        })
    }

    pub(super) fn uint(&self, key: &str) -> u64 {
        self.required(key, 0, |value| {
            if let Value::Int(n) = value {
                u64::try_from(*n).ok()
            } else {
                None
            }
        })
    }

    pub(super) fn size_int(&self, key: &str) -> usize {
        self.required(key, 0, |value| {
            if let Value::Int(n) = value {
                usize::try_from(*n).ok()
            } else {
                None
            }
        })
    }

    pub(super) fn text(&self, key: &str) -> String {
        self.required(key, String::new(), |value| {
            if let Value::Text(text) = value {
                Some(text.clone())
            } else {
                None
            }
        })
    }

    /// Reads the first of these keys that has a value.
    pub(super) fn text_of(&self, keys: &[&str; 2]) -> String {
        self.text(self.first_of(keys))
    }

    /// Reads the first of these keys that has a value.
    pub(super) fn float_of(&self, keys: &[&str; 2]) -> f64 {
        self.required(self.first_of(keys), 0.0, |value| {
            if let Value::Float(n) = value {
                Some(*n)
            } else {
                None
            }
        })
    }

    fn first_of<'k>(&self, keys: &[&'k str; 2]) -> &'k str {
        if self.entry(keys[0]).is_some() {
            keys[0]
        } else {
            keys[1]
        }
    }

    pub(super) fn list(&self, key: &str) -> Vec<String> {
        self.required(key, Vec::new(), |value| {
            if let Value::List(list) = value {
                Some(list.clone())
            } else {
                None
            }
        })
    }

    pub(super) fn networks(&self, key: &str) -> Vec<Network> {
        self.required(key, Vec::new(), |value| {
            if let Value::Networks(networks) = value {
                Some(networks.clone())
            } else {
                None
            }
        })
    }

    pub(super) fn ports(&self, key: &str) -> Vec<u16> {
        self.required(key, Vec::new(), |value| {
            if let Value::Ports(ports) = value {
                Some(ports.clone())
            } else {
                None
            }
        })
    }

    pub(super) fn duration(&self, key: &str) -> Duration {
        self.required(key, Duration::ZERO, |value| {
            if let Value::Duration(d) = value {
                Some(*d)
            } else {
                None
            }
        })
    }

    pub(super) fn pool(&self, key: &str) -> PoolSize {
        self.required(key, PoolSize::DEFAULT, |value| {
            if let Value::Pool(size) = value {
                Some(*size)
            } else {
                None
            }
        })
    }

    pub(super) fn schema(&self, key: &str) -> SchemaName {
        self.required(key, SchemaName::public(), |value| {
            if let Value::Schema(name) = value {
                Some(name.clone())
            } else {
                None
            }
        })
    }
}
