//! A tenant's schema. Only this module turns a text into a name that is put into SQL.

mod reserved;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Invalid, invalid::shown};

/// The longest name, in bytes. PostgreSQL silently cuts longer names, so two tenants could share a schema.
pub const MAX_SCHEMA: usize = 63;

/// The name of a schema, folded to lower case when it is parsed and quoted in every statement.
///
/// Letters, digits and underscores; first a letter; 1 to 63 bytes; no reserved word of PostgreSQL 14 to 18, no name
/// that begins with `pg_`, not `information_schema`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SchemaName(String);

impl SchemaName {
    /// Parses a schema's name and folds its ASCII letters to lower case, as PostgreSQL folds unquoted names.
    ///
    /// # Errors
    /// When the name breaks a rule of this type. The hint suggests a valid name where possible.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        Self::check(text).map_err(|why| {
            let error = Invalid::new(format!("{} is not a schema's name: {why}", shown(text)));
            match suggestion(text) {
                Some(better) => error.hint(format!("for example \"{better}\"")),
                None => error.hint(
                    "letters, digits and underscores, first a letter, for example \"tenant_acme\"",
                ),
            }
        })
    }

    fn check(text: &str) -> Result<Self, String> {
        let Some(first) = text.chars().next() else {
            return Err(
                "it is empty; leave it out for the single-tenant default `public`".to_owned(),
            );
        };
        if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
            return Err(format!(
                "it holds {}; only letters a to z, digits and underscores are allowed",
                shown(&bad.to_string())
            ));
        }
        if !first.is_ascii_alphabetic() {
            return Err("it must begin with a letter".to_owned());
        }
        if text.len() > MAX_SCHEMA {
            return Err(format!(
                "it has {} bytes, {MAX_SCHEMA} are allowed",
                text.len()
            ));
        }
        let folded = text.to_ascii_lowercase();
        if folded.starts_with("pg_") {
            return Err("names that begin with `pg_` belong to PostgreSQL".to_owned());
        }
        if folded == "information_schema" {
            return Err("that schema belongs to PostgreSQL".to_owned());
        }
        if reserved::RESERVED.binary_search(&folded.as_str()).is_ok() {
            return Err("it is a reserved word of SQL".to_owned());
        }
        Ok(Self(folded))
    }

    /// Returns `public`, the default of a single tenant.
    pub fn public() -> Self {
        Self("public".to_owned())
    }

    /// Returns true for `public`.
    pub fn is_public(&self) -> bool {
        self.0 == "public"
    }

    /// Returns the folded name, unquoted.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name as a quoted SQL identifier: `"tenant_acme"`.
    pub fn quoted(&self) -> String {
        // A valid name has no character that needs escaping.
        format!("\"{}\"", self.0)
    }
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Returns a valid name similar to `text`.
fn suggestion(text: &str) -> Option<String> {
    let mut better = String::new();
    for c in text.chars().take(4 * MAX_SCHEMA) {
        if c.is_ascii_alphanumeric() {
            better.push(c.to_ascii_lowercase());
        } else if !better.ends_with('_') {
            better.push('_');
        }
    }
    let better = better.trim_matches('_');
    let better = match SchemaName::check(better) {
        Ok(_) => better.to_owned(),
        Err(_) if better.is_empty() => return None,
        Err(_) if better.len() > MAX_SCHEMA => better[..MAX_SCHEMA].to_owned(),
        Err(_) => format!("tenant_{better}"),
    };
    SchemaName::check(&better).ok().map(|name| name.0)
}

impl Default for SchemaName {
    fn default() -> Self {
        Self::public()
    }
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

crate::text_conversions::text_conversions!(SchemaName);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_references_valid_examples_are_accepted() {
        for name in ["tenant_acme", "org_12345", "production_v2"] {
            assert_eq!(SchemaName::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn the_references_invalid_examples_are_refused_with_a_better_name() {
        for (name, better) in [
            ("tenant-acme", "tenant_acme"),
            ("drop table;", "drop_table"),
            ("my schema", "my_schema"),
        ] {
            let error = SchemaName::parse(name).unwrap_err();
            assert_eq!(error.hint.unwrap(), format!("for example \"{better}\""));
        }
    }

    #[test]
    fn names_of_postgresql_and_words_of_sql_are_refused_in_any_case() {
        for name in [
            "pg_catalog",
            "PG_x",
            "pg_",
            "information_schema",
            "Information_Schema",
            "user",
            "SELECT",
            "system_user",
            "left",
            "verbose",
        ] {
            assert!(SchemaName::parse(name).is_err(), "{name}");
        }
        for name in ["pgx", "public", "between", "users", "p"] {
            assert!(SchemaName::parse(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn the_form_is_a_letter_then_letters_digits_underscores_within_63_bytes() {
        for name in [
            "", "_a", "1a", "a-b", "a b", "a\"b", "a;b", "a.b", "a\0", "ä", "ａ", "a\n", " a", "a ",
        ] {
            assert!(SchemaName::parse(name).is_err(), "{name:?}");
        }
        assert!(SchemaName::parse(&"a".repeat(63)).is_ok());
        assert!(SchemaName::parse(&"a".repeat(64)).is_err());
    }

    #[test]
    fn the_list_of_words_is_sorted_and_whole() {
        assert!(reserved::RESERVED.is_sorted());
        // 77 reserved words and 23 that can be functions or types in 15, and `system_user`.
        assert_eq!(reserved::RESERVED.len(), 101);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_an_accepted_name_needs_no_escaping(text in ".*") {
            if let Ok(name) = SchemaName::parse(&text) {
                prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            }
        }

        #[test]
        fn parsing_twice_is_parsing_once(text in "[A-Za-z][A-Za-z0-9_]{0,62}") {
            if let Ok(name) = SchemaName::parse(&text) {
                prop_assert_eq!(name.as_str(), text.to_ascii_lowercase());
                prop_assert_eq!(SchemaName::parse(name.as_str()).unwrap(), name);
            } else {
                let folded = text.to_ascii_lowercase();
                prop_assert!(folded.starts_with("pg_") || folded == "information_schema" || reserved::RESERVED.contains(&folded.as_str()));
            }
        }

        #[test]
        fn the_quoted_form_is_the_name_in_quotes(text in "[a-z_][a-z0-9_]{0,70}") {
            if let Ok(name) = SchemaName::parse(&text) {
                let quoted = name.quoted();
                prop_assert_eq!(quoted.strip_prefix('"').and_then(|q| q.strip_suffix('"')), Some(text.as_str()));
            }
        }

        #[test]
        fn a_suggestion_is_accepted(text in ".*|[0-9_-]{1,70}|pg_[a-z]*") {
            if let Some(better) = suggestion(&text) {
                prop_assert!(SchemaName::parse(&better).is_ok());
            }
        }
    }
}
