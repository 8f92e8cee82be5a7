//! Checks ahead of filters whose result or work may be out of proportion to their arguments.

use std::collections::HashMap;

use serde_json::Value;
use tera::Error;

use super::metered_thread;
use super::value_size::{NODE, VALUE, weigh};

/// The longest text for `striptags`, in bytes, because Tera's expression looks ahead to the end of the line at each
/// tag.
const TAGGED: usize = 16 * 1024;
/// The longest attribute name, key or date format, in bytes, because each is read for every item.
const NAME: usize = 256;

/// Ends the work, or refuses, if this filter would do too much with these arguments.
pub(super) fn foresee(
    filter: &str,
    value: &Value,
    args: &HashMap<String, Value>,
) -> tera::Result<()> {
    let text = value.as_str().unwrap_or_default();
    let arg = |name: &str| args.get(name).and_then(Value::as_str).unwrap_or_default();
    let size = match filter {
        "replace" => grown(
            text.len(),
            text.matches(arg("from")).count(),
            arg("to").len(),
        ),
        "indent" => {
            let prefix = args.get("prefix").map_or(4, |_| arg("prefix").len());
            grown(text.len(), text.matches('\n').count() + 1, prefix)
        }
        "join" => {
            let items = value.as_array().map_or(0, Vec::len);
            grown(weigh(value), items, arg("sep").len())
        }
        "split" => {
            let pattern = arg("pat").replace("\\n", "\n").replace("\\t", "\t");
            // Each part is a value with an allocation of its own.
            grown(text.len(), text.matches(&pattern).count() + 1, 2 * NODE)
        }
        "striptags" if text.len() > TAGGED => VALUE + 1,
        _ => 0,
    };
    if size > VALUE {
        metered_thread::stop("a filter would make too large a value, or is given too large a one");
    }
    for name in ["attribute", "key", "format"] {
        if arg(name).len() > NAME {
            return Err(Error::msg(format!(
                "`{name}` may have at most {NAME} bytes"
            )));
        }
    }
    match (filter, args.get("base").and_then(Value::as_u64)) {
        ("int", Some(base)) if !(2..=36).contains(&base) => {
            Err(Error::msg("`base` must be from 2 to 36"))
        }
        _ => Ok(()),
    }
}

/// Returns the size of a text that grows by `more` bytes at each of `times` places.
fn grown(bytes: usize, times: usize, more: usize) -> usize {
    bytes.saturating_add(times.saturating_mul(more))
}
