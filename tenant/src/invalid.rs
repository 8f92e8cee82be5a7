//! Why a text is not the value it should be. One type for every value of this crate: a place in a file is added
//! by [`crate::Diagnostic`], and the two parts are kept apart so that the hint gets its own line there.

use std::fmt;

/// A value refused: the broken rule, and what to write instead where that can be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The rule that is broken, naming the value unless it is a secret.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Invalid {
    /// A refusal without advice.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    /// The same refusal with advice.
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

/// `text` as it may be shown in a message: quoted with backticks, control characters escaped, cut after 80.
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
