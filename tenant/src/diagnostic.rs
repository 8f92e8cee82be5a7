//! Errors and warnings about a configuration, each with the place, the source line and a hint.
//!
//! ```text
//! tenants.d/acme.toml:3:1: unknown key `shema` in [database]
//!   |
//! 3 | shema = "tenant_acme"
//!   | ^^^^^
//! hint: did you mean `schema`?
//! ```

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use unicode_width::UnicodeWidthChar;

use crate::{Invalid, Source, mask::Mask};

/// The widest piece of a source line that is shown, in columns.
const MAX_SHOWN: usize = 120;

/// The severity of a diagnostic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A setting has no effect; the configuration can be used.
    Warning,
    /// The configuration cannot be used.
    Error,
}

/// The place where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file, and the byte range of the key in it.
    File(Arc<Source>, Range<usize>),
    /// An environment variable.
    Env(String),
    /// A value that no file or variable sets. The text names its source, for example `built-in default`.
    Default(&'static str),
}

impl Origin {
    /// Returns path, line and column of the key; `None` without a file.
    pub fn position(&self) -> Option<(&Path, usize, usize)> {
        match self {
            Self::File(source, span) => {
                let at = source.diagnostic(span.clone(), "", None);
                Some((source.path(), at.line, at.column))
            }
            _ => None,
        }
    }

    /// Returns the file, if the value came from one.
    pub fn source(&self) -> Option<&Arc<Source>> {
        match self {
            Self::File(source, _) => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(..) => match self.position() {
                Some((path, line, column)) => write!(f, "{}:{line}:{column}", path.display()),
                None => Ok(()),
            },
            Self::Env(name) => f.write_str(name),
            Self::Default(who) => f.write_str(who),
        }
    }
}

/// A source line prepared for a terminal: secrets masked, tabs and control characters replaced, cut to a width.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snippet {
    text: String,
    /// The number of terminal columns before the caret.
    indent: usize,
    /// The number of carets; at least one.
    carets: usize,
}

impl Snippet {
    /// Makes the snippet of a line; `start` and `width` count characters of the line in the file.
    pub(crate) fn new(mask: &Mask, start: usize, width: usize) -> Self {
        let (mut text, mut indent, mut carets, mut columns) = (String::new(), 0, 0, 0);
        let shown = mask.shown();
        // Shows a line that is too wide from a little before the marked place.
        let skip = if start > MAX_SHOWN / 2 {
            start - MAX_SHOWN / 4
        } else {
            0
        };
        if skip > 0 {
            text.push('…');
            (indent, columns) = (1, 1);
        }
        for (c, n) in shown.into_iter().filter(|(_, n)| *n >= skip) {
            if columns >= MAX_SHOWN {
                text.push('…');
                break;
            }
            let before = columns;
            match c {
                '\t' => {
                    text.push_str("    ");
                    columns += 4;
                }
                // A file's escape sequences and marks that change the direction of writing must not reach the reader's
                // terminal.
                c if c.is_control()
                    || ('\u{202a}'..='\u{202e}').contains(&c)
                    || ('\u{2066}'..='\u{2069}').contains(&c) =>
                {
                    text.push('\u{fffd}');
                    columns += 1;
                }
                c => {
                    text.push(c);
                    columns += c.width().unwrap_or(0);
                }
            }
            if n < start {
                indent += columns - before;
            } else if n < start + width {
                carets += columns - before;
            }
        }
        Self {
            text,
            indent,
            carets: carets.max(1),
        }
    }
}

/// One error or warning, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The severity.
    pub severity: Severity,
    /// The file; `None` when the value came from elsewhere, which `label` names.
    pub path: Option<PathBuf>,
    /// The text in the place of `PATH:LINE:COLUMN` where there is no file.
    pub label: Box<str>,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// The problem, without a full stop.
    pub message: String,
    /// The text to write instead.
    pub hint: Option<String>,
    // Boxed to keep the type small, because a diagnostic is the error of many functions and is passed by value.
    pub(crate) snippet: Option<Box<Snippet>>,
}

impl Diagnostic {
    /// Makes an error at the place that `origin` names.
    pub fn at(origin: &Origin, message: impl Into<String>, hint: Option<String>) -> Self {
        match origin {
            Origin::File(source, span) => source.diagnostic(span.clone(), message, hint),
            Origin::Env(_) | Origin::Default(_) => Self {
                severity: Severity::Error,
                path: None,
                label: origin.to_string().into(),
                line: 0,
                column: 0,
                message: message.into(),
                hint,
                snippet: None,
            },
        }
    }

    /// Makes an error about a whole file, at `PATH:1:1`, for callers without the file's text.
    pub fn at_start(path: &Path, message: impl Into<String>, hint: Option<String>) -> Self {
        Self {
            severity: Severity::Error,
            path: Some(path.to_owned()),
            label: Box::default(),
            line: 1,
            column: 1,
            message: message.into(),
            hint,
            snippet: None,
        }
    }

    /// Makes an error from a refused value, at the place that `origin` names.
    pub fn invalid(origin: &Origin, invalid: Invalid) -> Self {
        Self::at(origin, invalid.message, invalid.hint)
    }

    /// Lowers the severity to a warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Returns true when the configuration cannot be used.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Returns the first line, `PATH:LINE:COLUMN: message`, for `status` and logs.
    pub fn headline(&self) -> String {
        let warning = if self.is_error() { "" } else { "warning: " };
        match &self.path {
            Some(path) => format!(
                "{}:{}:{}: {warning}{}",
                path.display(),
                self.line,
                self.column,
                self.message
            ),
            None => format!("{}: {warning}{}", self.label, self.message),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.headline())?;
        if let Some(snippet) = &self.snippet {
            let Snippet {
                text,
                indent,
                carets,
            } = &**snippet;
            let line = self.line.to_string();
            let gutter = line.len();
            write!(
                f,
                "\n{:gutter$} |\n{line} | {text}\n{:gutter$} | {:indent$}{}",
                "",
                "",
                "",
                "^".repeat(*carets)
            )?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostic {}

/// All diagnostics of a configuration, and the other files that the configuration refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// Errors and warnings, in the order of the file.
    pub list: Vec<Diagnostic>,
    /// The files beside the configuration that were read or are missing. A change of such a file may remove an error.
    pub files: Vec<PathBuf>,
}

impl Diagnostics {
    /// Iterates over the errors and warnings.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// Iterates over the errors only.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter().filter(|d| d.is_error())
    }

    /// Returns true when there are no errors and no warnings.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns true when the configuration cannot be used.
    pub fn has_errors(&self) -> bool {
        self.errors().next().is_some()
    }

    /// Adds a diagnostic.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.list.push(diagnostic);
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self {
            list: vec![diagnostic],
            files: Vec::new(),
        }
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;
    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, diagnostic) in self.list.iter().enumerate() {
            if n > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_caret_stands_under_the_place_behind_tabs_and_wide_characters() {
        let source = Source::new("a.toml", "x = 1\n\tä = \"日本\" bad # c\n");
        let at = source.text().find("bad").unwrap_or_default();
        let shown = source
            .diagnostic(at..at + 3, "no", Some("yes".into()))
            .to_string();
        assert_eq!(
            shown,
            "a.toml:2:11: no\n  |\n2 |     ä = \"日本\" bad # c\n  |                ^^^\nhint: yes"
        );
    }

    #[test]
    fn a_terminals_escape_sequences_are_not_passed_on() {
        let source = Source::new("a.toml", "\u{1b}[31mred\u{202e}");
        assert!(
            !source
                .diagnostic(0..1, "no", None)
                .to_string()
                .contains(['\u{1b}', '\u{202e}'])
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let source = Source::new(
            "a.toml",
            format!("{}bad{}", "x".repeat(5000), "y".repeat(5000)),
        );
        let shown = source.diagnostic(5000..5003, "no", None).to_string();
        assert!(
            shown.lines().all(|line| line.chars().count() < 140) && shown.contains("bad"),
            "{shown}"
        );
        let (line, caret) = (
            shown.lines().nth(2).unwrap_or_default(),
            shown.lines().nth(3).unwrap_or_default(),
        );
        assert_eq!(
            line.chars().position(|c| c == 'b'),
            caret.chars().position(|c| c == '^')
        );
    }

    proptest! {
        #[test]
        fn any_span_of_any_text_can_be_shown(text in "(?s).*", start in 0..40usize, len in 0..40usize) {
            let shown = Source::new("a.toml", text).diagnostic(start..start + len, "no", None).to_string();
            prop_assert!(shown.starts_with("a.toml:"));
        }
    }
}
