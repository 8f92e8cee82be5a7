//! Rewords parser errors of JSON and queries for callers, because the parsers name Rust's types.

/// Rust's names of expected types, with the words for callers.
const TYPES: [(&str, &str); 15] = [
    ("u8", "a whole number, not below zero"),
    ("u16", "a whole number, not below zero"),
    ("u32", "a whole number, not below zero"),
    ("u64", "a whole number, not below zero"),
    ("usize", "a whole number, not below zero"),
    ("i8", "a whole number"),
    ("i16", "a whole number"),
    ("i32", "a whole number"),
    ("i64", "a whole number"),
    ("f32", "a number"),
    ("f64", "a number"),
    ("a sequence", "a list"),
    ("a map", "an object"),
    ("unit", "null"),
    ("a formatted UUID string", "a UUID"),
];

/// Serde's names of found values, with the words for callers. The value itself stays, because the caller sent it.
const FOUND: [(&str, &str); 7] = [
    ("map", "an object"),
    ("sequence", "a list"),
    ("unit", "null"),
    ("string ", "the text "),
    ("integer ", "the number "),
    ("floating point ", "the number "),
    ("boolean ", ""),
];

/// Returns the error of a body in words for callers.
pub(super) fn of_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // A value that was parsed from memory has no line and column.
    let at = match (error.line(), error.column()) {
        (0, _) => String::new(),
        (line, column) => format!(" at line {line} column {column}"),
    };
    let what = text.strip_suffix(&at).unwrap_or(&text);
    format!("{}{at}", plain(what))
}

/// Returns the error of a query in words for callers.
pub(super) fn of_query(text: &str) -> String {
    let text = text
        .strip_prefix("Failed to deserialize query string: ")
        .unwrap_or(text);
    let (key, what) = text.split_once(": ").unwrap_or(("", text));
    let what = match what {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "a whole number is expected"
        }
        "number too large to fit in target type" => "the number is too large",
        "number too small to fit in target type" => "the number is too small",
        "provided string was not `true` or `false`" => "true or false is expected",
        _ => return format!("the query: {}", plain(text)),
    };
    format!("`{key}` in the query: {what}")
}

fn plain(text: &str) -> String {
    if let Some(field) = text.strip_prefix("missing field ") {
        return format!("{field} is missing");
    }
    if let Some(field) = text.strip_prefix("duplicate field ") {
        return format!("{field} is there twice");
    }
    let mismatch = ["invalid type: ", "invalid value: ", "invalid length "]
        .iter()
        .find_map(|kind| text.strip_prefix(kind))
        .and_then(|rest| rest.rsplit_once(", expected "));
    match mismatch {
        Some((is, expected)) => {
            format!("{} where {} is expected", found(is), wanted(expected))
        }
        None => text.to_owned(),
    }
}

fn wanted(name: &str) -> &str {
    // `struct CreateAgentRequest`, `tuple struct X with 2 elements`: callers need not know the broker's type names.
    if name.contains("struct ") {
        return "an object";
    }
    TYPES
        .iter()
        .find(|(rust, _)| *rust == name)
        .map_or(name, |(_, people)| people)
}

fn found(is: &str) -> String {
    for (rust, people) in FOUND {
        if let Some(rest) = is.strip_prefix(rust)
            && (rust.ends_with(' ') || rest.is_empty())
        {
            return format!("{people}{rest}");
        }
    }
    is.to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "only read")]
    struct Thing {
        name: String,
        size: Option<u64>,
        on: Option<bool>,
        tags: Option<Vec<String>>,
    }

    #[test]
    fn what_is_wrong_is_said_without_names_of_types() {
        for (body, words) in [
            ("{}", "`name` is missing at line 1 column 2"),
            (
                r#"{"name":1}"#,
                "the number `1` where a string is expected at line 1 column 9",
            ),
            (
                r#"{"name":"a","size":"x, expected y"}"#,
                "the text \"x, expected y\" where a whole number, not below zero is expected at line 1 column 34",
            ),
            (
                r#"{"name":"a","size":-1}"#,
                "the number `-1` where a whole number, not below zero is expected at line 1 column 21",
            ),
            (
                r#"{"name":"a","on":null,"tags":{}}"#,
                "an object where a list is expected at line 1 column 29",
            ),
            (
                "7",
                "the number `7` where an object is expected at line 1 column 1",
            ),
            (
                r#"{"name":"a","name":"b"}"#,
                "`name` is there twice at line 1 column 18",
            ),
        ] {
            let error = serde_json::from_str::<Thing>(body).unwrap_err();
            assert_eq!(of_json(&error), words, "{body}");
        }
    }

    #[test]
    fn a_value_in_memory_has_no_place() {
        let value = serde_json::json!({ "name": true });
        let error = serde_json::from_value::<Thing>(value).unwrap_err();
        assert_eq!(of_json(&error), "`true` where a string is expected");
    }

    #[test]
    fn a_query_is_told_by_its_key() {
        let said = "Failed to deserialize query string: limit: invalid digit found in string";
        assert_eq!(
            of_query(said),
            "`limit` in the query: a whole number is expected"
        );
        let said = "Failed to deserialize query string: missing field `name`";
        assert_eq!(of_query(said), "the query: `name` is missing");
    }
}
