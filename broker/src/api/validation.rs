//! Checks of single values. They run after the checks of existence, so that a missing resource is reported first.

use chrono::{DateTime, Utc};

use crate::domain::text;
use crate::error::Error;
use crate::store;

/// Largest number of characters in a name.
pub(super) const NAME: usize = 255;
/// Largest number of characters in a label, or in a key or value of an annotation.
pub(super) const MARK: usize = 64;

/// Refuses a NUL byte or more than `most` characters: 422 `invalid_value`.
pub(super) fn storable(what: &str, value: &str, most: usize) -> Result<(), Error> {
    Ok(text::storable(what, value, most)?)
}

/// Refuses a NUL byte: 422 `invalid_value`.
pub(super) fn no_nul(what: &str, value: &str) -> Result<(), Error> {
    Ok(text::no_nul(what, value)?)
}

/// Refuses a time that no column, or no RFC 3339 text, can hold: 422 `invalid_value`.
pub(super) fn time(what: &str, value: DateTime<Utc>) -> Result<(), Error> {
    if store::storable_time(value) {
        return Ok(());
    }
    Err(Error::invalid_value(format!(
        "{what} must be in the years 1 to 9999"
    )))
}

/// Refuses a value that is empty after trimming: 400 with this code.
pub(super) fn not_blank(what: &str, value: &str, code: &'static str) -> Result<(), Error> {
    if value.trim().is_empty() {
        return Err(Error::bad_request(
            code,
            format!("{what} must not be blank"),
        ));
    }
    Ok(())
}

/// Refuses a blank name with this code, and a name or description that no column holds.
pub(super) fn named(
    name: &str,
    description: Option<&str>,
    code: &'static str,
) -> Result<(), Error> {
    not_blank("`name`", name, code)?;
    storable("`name`", name, NAME)?;
    no_nul("`description`", description.unwrap_or_default())
}

/// Refuses a value that is blank or contains white space: 400 with this code.
fn one_word(what: &str, value: &str, code: &'static str) -> Result<(), Error> {
    not_blank(what, value, code)?;
    if value.contains(char::is_whitespace) {
        return Err(Error::bad_request(
            code,
            format!("{what} must not contain white space"),
        ));
    }
    Ok(())
}

/// Refuses a label that is blank or contains white space: 400 `invalid_label`.
pub(super) fn label(value: &str) -> Result<(), Error> {
    one_word("a label", value, "invalid_label")
}

/// Refuses a value that is blank, longer than 64 bytes or contains white space, with this code.
pub(super) fn short_word(what: &str, value: &str, code: &'static str) -> Result<(), Error> {
    one_word(what, value, code)?;
    if value.len() > MARK {
        return Err(Error::bad_request(
            code,
            format!("{what} may have at most {MARK} bytes"),
        ));
    }
    no_nul(what, value)
}

/// Refuses an invalid key or value of an annotation. A value may be empty and contain white space.
pub(super) fn annotation(key: &str, value: &str) -> Result<(), Error> {
    not_blank("`key`", key, "invalid_annotation")?;
    storable("`key`", key, MARK)?;
    storable("`value`", value, MARK)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_counted_in_characters() {
        storable("x", &"é".repeat(64), 64).unwrap();
        assert_eq!(
            storable("x", &"é".repeat(65), 64).unwrap_err().code(),
            "invalid_value"
        );
        assert_eq!(
            storable("x", "a\0b", 64).unwrap_err().code(),
            "invalid_value"
        );
    }

    #[test]
    fn labels_as_people_write_them_are_labels() {
        for good in ["env:prod", "env=prod", "a/b", "x"] {
            label(good).unwrap();
        }
        for bad in ["", "  ", "a b", "a\tb"] {
            assert_eq!(label(bad).unwrap_err().code(), "invalid_label");
        }
    }
}
