//! Writes TOML files key by key, each table once.

use std::collections::BTreeMap;

/// Maps `section.key` to its TOML value.
#[derive(Debug, Clone, Default)]
pub struct TomlText {
    tables: BTreeMap<String, BTreeMap<String, String>>,
}

impl TomlText {
    /// Sets `key` (`database.pool_size`; `tenants_dir` at the top) to a TOML value (`10`, `"text"`, `true`).
    pub fn set(&mut self, key: &str, value: impl Into<String>) -> &mut Self {
        let (table, key) = key.rsplit_once('.').unwrap_or(("", key));
        self.tables
            .entry(table.to_owned())
            .or_default()
            .insert(key.to_owned(), value.into());
        self
    }

    /// Sets `key` to a string.
    pub fn text(&mut self, key: &str, value: impl AsRef<str>) -> &mut Self {
        self.set(key, quoted(value.as_ref()))
    }

    /// Removes `key`.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        let (table, key) = key.rsplit_once('.').unwrap_or(("", key));
        if let Some(keys) = self.tables.get_mut(table) {
            keys.remove(key);
        }
        self
    }

    /// Returns the text of the file.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // "" sorts first, as TOML requires of keys without a table.
        for (table, keys) in self.tables.iter().filter(|(_, keys)| !keys.is_empty()) {
            if !table.is_empty() {
                text.push_str(&format!("\n[{table}]\n"));
            }
            for (key, value) in keys {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        text
    }
}

/// Returns a TOML basic string.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
