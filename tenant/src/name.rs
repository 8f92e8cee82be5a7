//! A tenant's name, which is the stem of its file.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

use crate::{Diagnostic, Invalid, invalid::shown};

/// The longest name, in bytes: `brokkr:` + 8 hex digits + `:` + name must fit the 63 bytes of an `application_name`.
pub const MAX_NAME: usize = 47;

/// The name of a tenant: `[a-z0-9][a-z0-9-]{0,46}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantName(String);

impl TenantName {
    /// Parses a tenant's name.
    ///
    /// # Errors
    /// When the text is empty, too long, begins with a hyphen, or has other characters than lower-case letters, digits
    /// and hyphens.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: &str| {
            let error = Invalid::new(format!("{} is not a tenant's name: {why}", shown(text)));
            match suggestion(text) {
                Some(better) => error.hint(format!("for example {}", shown(&better))),
                None => error
                    .hint("lower-case letters, digits and hyphens, at most 47, for example `acme`"),
            }
        };
        if text.is_empty() {
            return Err(refuse("it is empty"));
        }
        if text.starts_with('-') {
            return Err(refuse("it must begin with a letter or a digit"));
        }
        if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
            return Err(refuse(&format!("it holds {}", shown(&bad.to_string()))));
        }
        if text.len() > MAX_NAME {
            return Err(refuse(&format!(
                "it has {} bytes, {MAX_NAME} are allowed",
                text.len()
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the name of the tenant whose file is at `path`: the file name without `.toml`.
    ///
    /// # Errors
    /// A diagnostic at `PATH:1:1` when the stem is not a tenant's name.
    pub fn of_file(path: &Path) -> Result<Self, Diagnostic> {
        let stem = path.file_stem().unwrap_or_default();
        let name = match stem.to_str() {
            Some(stem) => Self::parse(stem),
            None => Err(
                Invalid::new("the file name is not UTF-8, so it is not a tenant's name")
                    .hint("lower-case letters, digits and hyphens, then `.toml`"),
            ),
        };
        name.map_err(|error| {
            let hint = error.hint.map(|hint| format!("rename the file: {hint}"));
            Diagnostic::at_start(path, error.message, hint)
        })
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn allowed(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

fn suggestion(text: &str) -> Option<String> {
    let replaced: String = text
        .to_ascii_lowercase()
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .take(MAX_NAME)
        .collect();
    let better = replaced.trim_matches('-');
    (!better.is_empty() && better != text).then(|| better.to_owned())
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for TenantName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for TenantName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

crate::text_conversions::text_conversions!(TenantName);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    #[test]
    fn the_stem_of_a_file_is_the_tenants_name() {
        assert_eq!(
            TenantName::of_file(Path::new("tenants.d/acme.toml"))
                .unwrap()
                .as_str(),
            "acme"
        );
        let error = TenantName::of_file(Path::new("tenants.d/Acme Inc.toml")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("tenants.d/Acme Inc.toml:1:1: "),
            "{error}"
        );
        assert!(error.to_string().contains("acme-inc"), "{error}");
        let strange = OsStr::from_bytes(b"tenants.d/acm\xe9.toml");
        let error = TenantName::of_file(Path::new(strange)).unwrap_err();
        let hint = error.hint.unwrap();
        assert_eq!(hint.matches("rename the file").count(), 1, "{hint}");
    }

    #[test]
    fn names_that_would_not_fit_an_application_name_are_refused() {
        assert!(TenantName::parse(&"a".repeat(47)).is_ok());
        assert!(TenantName::parse(&"a".repeat(48)).is_err());
        for bad in ["", "-a", "a_b", "A", "a.b", "a/b", "ä", "a b", "a\0"] {
            assert!(TenantName::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_suggestion_is_itself_a_name(text in ".*") {
            if let Some(better) = suggestion(&text) {
                prop_assert!(TenantName::parse(&better).is_ok(), "{better:?}");
            }
        }

        #[test]
        fn every_name_of_the_documented_form_is_accepted(text in "[a-z0-9][a-z0-9-]{0,46}") {
            let name = TenantName::parse(&text).unwrap();
            prop_assert_eq!(name.as_str(), text);
        }
    }
}
