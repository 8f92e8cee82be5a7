//! Whether a text is YAML and holds anything to apply.

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Checks that every document of a stream parses and that at least one is not null. The text itself is kept as it came.
///
/// # Errors
/// A sentence that says what is wrong, with line and column where they are known.
pub(super) fn check(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("the YAML must not be blank".to_owned());
    }
    let mut anything = false;
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| format!("the YAML does not parse: {error}"))?;
        anything |= match event {
            // What has no tag and no quotes and reads as nothing is null.
            Event::Scalar(value, ScalarStyle::Plain, _, None) => {
                !matches!(&*value, "" | "~" | "null" | "Null" | "NULL")
            }
            Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) => true,
            _ => false,
        };
    }
    if anything {
        return Ok(());
    }
    Err("the YAML holds no document but null".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::check;

    #[test]
    fn what_holds_a_document_is_accepted() {
        for text in [
            "a: 1",
            "just text",
            "---\na: 1\n---\nb: 2\n",
            "---\n# nothing\n---\nb: 2\n",
            "[]",
            "\"\"",
            "kind: List\nitems: [a, {b: c}]\n",
            "%YAML 1.2\n---\na: &x 1\nb: *x\n",
            "text: |\n  many\n  lines\n",
        ] {
            check(text).unwrap();
        }
    }

    #[test]
    fn what_holds_none_or_does_not_parse_is_refused() {
        for text in [
            "",
            " \n",
            "# only words",
            "---\n---\n",
            "~",
            "null",
            "a: [",
            "a: *nothing",
            "a:\n\t- b",
            "}",
        ] {
            assert!(check(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn deep_nesting_neither_crashes_nor_hangs() {
        let _ = check(&"[".repeat(1_000_000));
        let _ = check(&"- ".repeat(100_000));
        let _ = check(&"{a: ".repeat(100_000));
    }
}
