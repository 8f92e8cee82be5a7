//! Reads a TOML file into a layer, with every problem at its key.

use std::{ops::Range, path::PathBuf, sync::Arc};

use toml::de::{DeTable, DeValue};

use super::{FOREIGN, IDLE, Layer};
use crate::{
    Diagnostic, Invalid, Origin, Source,
    invalid::shown,
    keys::{Keys, split},
    value::Raw,
};

pub(super) fn read(source: Arc<Source>, keys: &Keys) -> Layer {
    let mut layer = Layer {
        source: Some(source.clone()),
        ..Layer::default()
    };
    let (document, errors) = DeTable::parse_recoverable(source.text());
    let mut only_duplicates = true;
    for error in &errors {
        let (message, hint) = syntax(error.message());
        only_duplicates &= error.message() == DUPLICATE;
        let end = source.text().len();
        layer
            .problems
            .push(source.diagnostic(error.span().unwrap_or(end..end), message, hint));
    }
    // After any other syntax error the parser guesses the rest of the file, so keys would be reported wrongly.
    if only_duplicates {
        let mut walk = Walk {
            base: source.folder(),
            source: source.clone(),
            keys,
            layer,
            foreign: Vec::new(),
            idle: Vec::new(),
        };
        walk.table(document.get_ref(), "");
        layer = walk.finish();
    } else {
        layer.unreadable = true;
    }
    layer
        .problems
        .list
        .sort_by_key(|problem| (problem.line, problem.column));
    layer
}

/// The parser's message for a duplicate key.
const DUPLICATE: &str = "duplicate key";

fn syntax(message: &str) -> (String, Option<String>) {
    match message {
        DUPLICATE => (
            "this key or section is there twice".to_owned(),
            Some("keep one of the two".to_owned()),
        ),
        _ => (format!("not TOML: {message}"), None),
    }
}

struct Walk<'k> {
    base: PathBuf,
    source: Arc<Source>,
    keys: &'k Keys,
    layer: Layer,
    foreign: Vec<(String, Range<usize>)>,
    idle: Vec<(String, Range<usize>)>,
}

impl Walk<'_> {
    fn table(&mut self, table: &DeTable<'_>, prefix: &str) {
        for (key, value) in table {
            let name = if prefix.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{prefix}.{}", key.get_ref())
            };
            self.entry(name, key.get_ref(), key.span(), value.get_ref());
        }
    }

    fn entry(&mut self, name: String, own: &str, span: Range<usize>, value: &DeValue<'_>) {
        let origin = Origin::File(self.source.clone(), span.clone());
        // A quoted key with a dot is not a dotted path.
        let known = if own.contains('.') {
            None
        } else {
            self.keys.find(&name)
        };
        if let Some(known) = known {
            let raw = raw(value);
            let read = match raw {
                Raw::Section => Err(Invalid::new("must be a value, not a section")
                    .hint(format!("write `{own} = …`"))),
                raw => known.kind.read(&raw, &self.base),
            };
            if !known.effect && read.is_ok() {
                self.idle.push((name.clone(), span));
            }
            self.layer.put(name, read, origin);
        } else if self.keys.is_foreign(&name) {
            self.foreign.push((name, span));
        } else if self.keys.is_section(&name) && !own.contains('.') {
            match value {
                DeValue::Table(table) => self.table(table, &name),
                _ => {
                    let hint = Some(format!(
                        "write [{name}] on a line of its own and its keys below"
                    ));
                    self.layer.problems.push(Diagnostic::at(
                        &origin,
                        format!("`{name}` is a section, not a value"),
                        hint,
                    ));
                }
            }
        } else {
            let what = if matches!(value, DeValue::Table(_)) {
                "section"
            } else {
                "key"
            };
            let place = match split(&name).0 {
                section if section.is_empty() || own.contains('.') => String::new(),
                section => format!(" in [{section}]"),
            };
            let message = format!("unknown {what} {}{place}", shown(own));
            self.layer.problems.push(Diagnostic::at(
                &origin,
                message,
                Some(self.keys.advice(&name)),
            ));
        }
    }

    fn finish(mut self) -> Layer {
        for (found, why) in [(&mut self.foreign, FOREIGN), (&mut self.idle, IDLE)] {
            found.sort_by_key(|(_, span)| span.start);
            if let Some((_, span)) = found.first() {
                let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
                let message = format!("{why}: {}", names.join(", "));
                self.layer.problems.push(
                    self.source
                        .diagnostic(span.clone(), message, None)
                        .warning(),
                );
            }
        }
        self.layer
    }
}

fn raw<'t>(value: &'t DeValue<'_>) -> Raw<'t> {
    match value {
        DeValue::String(text) => Raw::Text(text),
        DeValue::Integer(number) => {
            Raw::Int(i64::from_str_radix(number.as_str(), number.radix()).ok())
        }
        DeValue::Float(number) => Raw::Float(number.as_str().parse().ok()),
        DeValue::Boolean(value) => Raw::Bool(*value),
        DeValue::Datetime(_) => Raw::Date,
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Table(_) => Raw::Section,
    }
}
