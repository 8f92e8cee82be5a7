//! The error of a refused value, shared by all values of this crate. [`crate::Diagnostic`] adds the place in a file,
//! and prints the hint on a line of its own.

use std::fmt;

/// A refused value: the broken rule, and a hint where possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The broken rule. Names the value unless it is a secret.
    pub message: String,
    /// The text to write instead.
    pub hint: Option<String>,
}

impl Invalid {
    /// Makes a refusal without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Invalid {}

/// Quotes `text` for a message: in backticks, control characters escaped, cut after 80 characters.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::from("`");
    for (n, c) in text.chars().enumerate() {
        if n == 80 {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out.push('`');
    out
}
