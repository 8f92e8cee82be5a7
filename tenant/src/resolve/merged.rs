//! The merged layers: for each key the value of the highest layer that sets it, converted to its type.

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf};

use crate::{
    DatabaseUrl, Diagnostic, Diagnostics, Layer, Origin, Secret,
    keys::Keys,
    value::{FromValue, Value},
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

    /// Returns the path that a key names, with its origin.
    pub(super) fn path(&self, key: &str) -> Option<(PathBuf, Origin)> {
        match self.entry(key)? {
            (Value::Path(path), origin) => Some((path.clone(), origin.clone())),
            _ => None,
        }
    }

    /// Returns the files of `http.tls_cert` and `http.tls_key`.
    pub(super) fn tls_files(&self) -> impl Iterator<Item = PathBuf> {
        let keys = ["http.tls_cert", "http.tls_key"];
        keys.into_iter()
            .filter_map(|key| self.path(key))
            .map(|(path, _)| path)
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

    /// Reads a key that may be absent.
    pub(super) fn optional<T: FromValue>(&self, key: &str) -> Option<T> {
        let (value, _) = self.entry(key)?;
        let read = T::from_value(value);
        if read.is_none() {
            self.mismatches.borrow_mut().push(key.to_owned());
        }
        read
    }

    /// Reads an optional secret. An empty secret counts as none.
    pub(super) fn optional_secret(&self, key: &str) -> Option<Secret> {
        let secret: Option<Secret> = self.optional(key);
        secret.filter(|secret| !secret.expose().is_empty())
    }

    /// Reads a key that has a default. The default of the type is used only with an error in the table, which is then
    /// reported.
    pub(super) fn required<T: FromValue + Default>(&self, key: &str) -> T {
        if self.entry(key).is_none() {
            self.mismatches.borrow_mut().push(key.to_owned());
        }
        self.optional(key).unwrap_or_default()
    }

    /// Reads the first of these keys that has a value.
    pub(super) fn first_of<T: FromValue + Default>(&self, keys: [&str; 2]) -> T {
        let [first, second] = keys;
        match self.entry(first) {
            Some(_) => self.required(first),
            None => self.required(second),
        }
    }
}
