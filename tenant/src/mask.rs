//! Masks a line of a configuration file for display: every part that could be secret becomes `***`.
//!
//! The line contains an error and may not parse, so the mask looks at the text only, and hides too much rather than too
//! little.

use crate::secret::REDACTED;

/// Keys with a secret value.
const SECRET_KEYS: &[&str] = &[
    "password",
    "pak",
    "secret",
    "token",
    "encryption_key",
    "hash",
];

/// The characters of a line, each with a flag that is true when the character is hidden.
pub(crate) struct Mask(Vec<(char, bool)>);

impl Mask {
    /// Masks `line`. `before` is the text before the line, in which a string of several lines may have begun.
    pub(crate) fn of_line(line: &str, before: &str) -> Self {
        let mut chars: Vec<(char, bool)> = line.chars().map(|c| (c, false)).collect();
        // Hides all of the line inside a string of several lines, because its content is unknown there.
        let open = |quotes: &str| before.matches(quotes).count() % 2 == 1;
        if open("\"\"\"") || open("'''") {
            chars.iter_mut().for_each(|c| c.1 = true);
            return Self(chars);
        }
        let lower: Vec<char> = chars.iter().map(|(c, _)| c.to_ascii_lowercase()).collect();
        let find = |needle: &str, from: usize| {
            let needle: Vec<char> = needle.chars().collect();
            (from..lower.len()).find(|n| lower[*n..].starts_with(&needle))
        };
        // Hides everything after the first equals sign of a secret key.
        if let Some(equals) = find("=", 0) {
            let key: String = lower[..equals].iter().collect();
            // An invalid URL (without `://`) may hold its password anywhere.
            let broken_url =
                key.contains("url") && !key.contains("url_file") && find("://", equals).is_none();
            if broken_url || SECRET_KEYS.iter().any(|secret| key.contains(secret)) {
                chars[equals + 1..]
                    .iter_mut()
                    .filter(|c| !c.0.is_whitespace())
                    .for_each(|c| c.1 = true);
            }
        }
        // Hides a URL's credentials: from the colon after the user to the last @ of the line, or to the end of the line
        // where no @ follows (a URL cut off inside its password).
        let mut from = 0;
        while let Some(scheme) = find("://", from) {
            let start = scheme + 3;
            from = start;
            let end = lower
                .iter()
                .rposition(|c| *c == '@')
                .filter(|at| *at >= start);
            let Some(colon) = (start..end.unwrap_or(lower.len())).find(|n| lower[*n] == ':') else {
                continue;
            };
            let end = match end {
                Some(end) => end,
                // Shows `host:port` of a URL without credentials.
                None if lower[colon + 1..]
                    .iter()
                    .take_while(|c| c.is_ascii_digit())
                    .count()
                    > 0
                    && lower[colon + 1..]
                        .iter()
                        .find(|c| !c.is_ascii_digit())
                        .is_none_or(|c| "/\"'?, \t".contains(*c)) =>
                {
                    continue;
                }
                None => lower.len(),
            };
            chars[colon + 1..end].iter_mut().for_each(|c| c.1 = true);
        }
        let mut from = 0;
        while let Some(start) = find("passw", from)
            .and_then(|n| find("=", n))
            .map(|n| n + 1)
        {
            from = start;
            let end = (start..lower.len())
                .find(|n| "&\"' ".contains(lower[*n]))
                .unwrap_or(lower.len());
            chars[start..end].iter_mut().for_each(|c| c.1 = true);
        }
        Self(chars)
    }

    /// Returns the characters to show, each with the number (from 0) of its character in the line.
    pub(crate) fn shown(&self) -> Vec<(char, usize)> {
        let mut out = Vec::with_capacity(self.0.len());
        let mut hidden = false;
        for (n, (c, hide)) in self.0.iter().enumerate() {
            if !hide {
                out.push((*c, n));
            } else if !hidden {
                out.extend(REDACTED.chars().map(|c| (c, n)));
            }
            hidden = *hide;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(line: &str) -> String {
        Mask::of_line(line, "")
            .shown()
            .into_iter()
            .map(|(c, _)| c)
            .collect()
    }

    #[test]
    fn what_could_be_a_secret_is_hidden_and_the_rest_is_shown() {
        for (line, shown) in [
            (
                "url = \"postgres://u:hunter2@h/d\"",
                "url = \"postgres://u:***@h/d\"",
            ),
            (
                "url = \"postgres://u:hun@ter2@h/d\"",
                "url = \"postgres://u:***@h/d\"",
            ),
            ("url = \"postgres://u:hunter2", "url = \"postgres://u:***"),
            (
                "url = \"postgres://h:5432/d\"",
                "url = \"postgres://h:5432/d\"",
            ),
            (
                "url = \"postgres://u@h:5432/d\"",
                "url = \"postgres://u@h:5432/d\"",
            ),
            (
                "url = \"postgres:///d?password=hunter2&user=u\"",
                "url = \"postgres:///d?password=***&user=u\"",
            ),
            ("url = \"host=h password=hunter2\"", "url = *** ***"),
            ("url = \"postgres//u:hunter2@h/x\"", "url = ***"),
            (
                "url = \"postgres://h/x?user=u&passwd=hunter2\"",
                "url = \"postgres://h/x?user=u&passwd=***\"",
            ),
            ("pak_hash = \"abc\"", "pak_hash = ***"),
            (
                "webhook_encryption_key = abc",
                "webhook_encryption_key = ***",
            ),
            ("schema = \"x\"", "schema = \"x\""),
        ] {
            assert_eq!(masked(line), shown);
        }
        let inside = Mask::of_line("hunter2", "url = \"\"\"\n").shown();
        assert_eq!(
            inside.into_iter().map(|(c, _)| c).collect::<String>(),
            "***"
        );
    }

    proptest! {
        #[test]
        fn a_password_in_a_url_is_never_shown(before in "[a-z =\"]{0,9}", tail in "[^@\\pC]{0,9}", host in "[a-z/:?\"]{0,9}") {
            let line = format!("{before}postgres://u:hunter2{tail}@{host}");
            prop_assert!(!masked(&line).contains("hunter2"));
        }
    }
}
