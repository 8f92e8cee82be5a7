//! The approximate memory of a value.

use serde_json::Value;

use super::metered_thread;

/// The largest value in bytes, parameters included, as [`weigh`] counts them.
pub(super) const VALUE: usize = 1024 * 1024;
/// The deepest nesting of values.
const DEPTH: usize = 32;

/// The bytes of a value itself, without its contents.
pub(super) const NODE: usize = 32;

/// Returns the bytes of a value: 32 for each value and each key in it, plus its texts. Ends the work if the value is
/// nested too deeply, because cloning, printing and dropping it recurse.
pub(super) fn weigh(value: &Value) -> usize {
    weigh_at(value, DEPTH).unwrap_or_else(|| metered_thread::stop("a value is nested too deeply"))
}

/// Spends the weight of a value, and ends the work if the value is too large.
pub(super) fn spend(value: &Value) {
    let weight = weigh(value);
    if weight > VALUE {
        metered_thread::stop("a value is too large");
    }
    metered_thread::spend(weight);
}

/// Returns true when a value from outside is small enough to be used.
pub(super) fn fits(value: &Value) -> bool {
    weigh_at(value, DEPTH).is_some_and(|weight| weight <= VALUE)
}

fn weigh_at(value: &Value, deeper: usize) -> Option<usize> {
    let inside = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => {
            let deeper = deeper.checked_sub(1)?;
            items
                .iter()
                .try_fold(0, |sum, item| Some(sum + weigh_at(item, deeper)?))?
        }
        Value::Object(entries) => {
            let deeper = deeper.checked_sub(1)?;
            entries.iter().try_fold(0, |sum, (key, item)| {
                Some(sum + NODE + key.len() + weigh_at(item, deeper)?)
            })?
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    Some(NODE + inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_value_key_and_text_counts() {
        assert_eq!(weigh(&json!(1)), NODE);
        assert_eq!(weigh(&json!("abc")), NODE + 3);
        assert_eq!(weigh(&json!([1, "abc"])), 3 * NODE + 3);
        assert_eq!(weigh(&json!({ "key": [] })), 3 * NODE + 3);
    }

    #[test]
    fn what_is_nested_deeper_than_allowed_does_not_fit() {
        let nested = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert!(fits(&nested(DEPTH)));
        assert!(!fits(&nested(DEPTH + 1)));
        assert!(!fits(&json!("x".repeat(VALUE))));
    }
}
