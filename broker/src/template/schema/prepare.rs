//! The preparation of a schema before it is compiled: refuses endless schemas, and adds a counting keyword to every
//! subschema.
//!
//! This module follows references, so it accepts only `#`, `#/a/pointer` and `#anchor`. References and keywords for the
//! same value (`allOf` and the like) may lead a subschema to itself without end, or to thousands of subschemas: both
//! are refused. A subschema may lead to itself through a value's members, as in schemas of trees, because that ends
//! with the value.

use std::collections::HashMap;

use jsonschema::Draft;
use serde_json::{Map, Value, json};

use crate::template::{regex_cost, value_size};

/// The counting keyword. Its value holds the weight of a subschema's own keywords, and the largest number of errors
/// that they can cause.
pub(super) const COUNT: &str = " ";

/// The deepest nesting of subschemas.
const DEPTH: usize = 50;
/// The largest number of subschemas that may apply to one value.
const APPLIED: u64 = 1000;
/// The longest chain of references and the like for one value.
const STEPS: u64 = 50;

/// The type of a keyword's value.
#[derive(Clone, Copy, PartialEq)]
enum Holds {
    /// A subschema.
    One,
    /// A list of subschemas.
    List,
    /// An object of subschemas.
    Named,
}

/// The keywords with subschemas. The flag is true when they apply to the same value, and false when they apply to its
/// members or, for definitions, to no value.
const KEYWORDS: [(&str, Holds, bool); 23] = [
    ("not", Holds::One, true),
    ("if", Holds::One, true),
    ("then", Holds::One, true),
    ("else", Holds::One, true),
    ("allOf", Holds::List, true),
    ("anyOf", Holds::List, true),
    ("oneOf", Holds::List, true),
    ("dependentSchemas", Holds::Named, true),
    ("dependencies", Holds::Named, true),
    ("additionalProperties", Holds::One, false),
    ("additionalItems", Holds::One, false),
    ("contains", Holds::One, false),
    ("propertyNames", Holds::One, false),
    ("unevaluatedItems", Holds::One, false),
    ("unevaluatedProperties", Holds::One, false),
    ("contentSchema", Holds::One, false),
    ("items", Holds::One, false),
    ("items", Holds::List, false),
    ("prefixItems", Holds::List, false),
    ("properties", Holds::Named, false),
    ("patternProperties", Holds::Named, false),
    ("definitions", Holds::Named, false),
    ("$defs", Holds::Named, false),
];

/// Refuses a schema that may not end or that refers outside; puts [`COUNT`] into every subschema.
pub(super) fn prepare(schema: &mut Value, draft: Draft) -> Result<(), String> {
    let mut walk = Walk {
        draft,
        found: Vec::new(),
        pointers: HashMap::new(),
        anchors: HashMap::new(),
    };
    walk.visit(schema, "", 0)?;
    walk.resolve(schema)?;
    let mut seen = vec![Seen::Not; walk.found.len()];
    for start in 0..walk.found.len() {
        walk.applied(start, &mut seen)?;
    }
    Ok(())
}

/// Removes from a library's text the keywords that [`prepare`] added.
pub(super) fn without_counts(text: &str) -> String {
    let begin = format!("\"{COUNT}\":[");
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(&begin) {
        kept.push_str(before);
        let after = after.split_once(']').map_or("", |(_, after)| after);
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    kept + rest
}

struct Walk {
    draft: Draft,
    found: Vec<Subschema>,
    pointers: HashMap<String, usize>,
    anchors: HashMap<String, usize>,
}

#[derive(Default)]
struct Subschema {
    /// The subschemas that also apply to the same value.
    same: Vec<usize>,
    reference: Option<String>,
}

#[derive(Clone, Copy)]
enum Seen {
    Not,
    Within,
    /// The number of subschemas that apply, and the length of the longest chain.
    Done(u64, u64),
}

impl Walk {
    /// Visits a subschema and its subschemas. Returns its number.
    fn visit(&mut self, schema: &mut Value, pointer: &str, depth: usize) -> Result<usize, String> {
        if depth > DEPTH {
            return Err(format!("subschemas are nested more than {DEPTH} deep"));
        }
        let number = self.found.len();
        self.found.push(Subschema::default());
        self.pointers.insert(pointer.to_owned(), number);
        let Value::Object(keywords) = schema else {
            // True and false are schemas too; the compiler refuses other values.
            return Ok(number);
        };
        self.names(keywords, number, depth)?;
        patterns_of(keywords)?;
        let (mut own, mut errors) = (0, 0);
        for (keyword, value) in keywords.iter_mut() {
            let mut inside = false;
            for (_, holds, same) in KEYWORDS.iter().filter(|known| known.0 == keyword) {
                let pointer = format!("{pointer}/{}", escaped(keyword));
                let members = self.members(*holds, value, &pointer, depth + 1)?;
                inside |= !members.is_empty();
                if *same {
                    self.found[number].same.extend(members);
                }
            }
            errors += 1 + names_in(keyword, value);
            if !inside {
                own += value_size::weigh(value);
            }
        }
        keywords.insert(COUNT.to_owned(), json!([own, errors]));
        Ok(number)
    }

    /// Visits the subschemas of a keyword.
    fn members(
        &mut self,
        holds: Holds,
        value: &mut Value,
        pointer: &str,
        depth: usize,
    ) -> Result<Vec<usize>, String> {
        match (holds, value) {
            (Holds::One, value @ (Value::Object(_) | Value::Bool(_))) => {
                Ok(vec![self.visit(value, pointer, depth)?])
            }
            (Holds::List, Value::Array(items)) => items
                .iter_mut()
                .enumerate()
                .map(|(at, item)| self.visit(item, &format!("{pointer}/{at}"), depth))
                .collect(),
            (Holds::Named, Value::Object(entries)) => entries
                .iter_mut()
                // `dependencies` may hold lists of names as well.
                .filter(|(_, item)| !item.is_array())
                .map(|(name, item)| {
                    self.visit(item, &format!("{pointer}/{}", escaped(name)), depth)
                })
                .collect(),
            _ => Ok(Vec::new()),
        }
    }

    /// Notes the names of a subschema, and its reference.
    fn names(
        &mut self,
        keywords: &Map<String, Value>,
        number: usize,
        depth: usize,
    ) -> Result<(), String> {
        if keywords.contains_key(COUNT) {
            return Err("there is no keyword of a single space".to_owned());
        }
        for keyword in ["$dynamicRef", "$recursiveRef"] {
            if keywords.contains_key(keyword) {
                return Err(format!("`{keyword}` cannot be used here"));
            }
        }
        if depth > 0 && keywords.get("$schema").is_some_and(Value::is_string) {
            return Err("only the whole schema may have a `$schema`".to_owned());
        }
        let id = if self.draft == Draft::Draft4 {
            "id"
        } else {
            "$id"
        };
        if let (1.., Some(id)) = (depth, keywords.get(id).and_then(Value::as_str)) {
            let Some(anchor) = id.strip_prefix('#') else {
                return Err("only the whole schema may have an id".to_owned());
            };
            self.anchors.insert(anchor.to_owned(), number);
        }
        for keyword in ["$anchor", "$dynamicAnchor"] {
            if let Some(anchor) = keywords.get(keyword).and_then(Value::as_str) {
                self.anchors.insert(anchor.to_owned(), number);
            }
        }
        let Some(reference) = keywords.get("$ref") else {
            return Ok(());
        };
        let own = reference.as_str().and_then(|text| text.strip_prefix('#'));
        let Some(fragment) = own else {
            return Err(format!(
                "a schema may refer to its own subschemas only (`#…`), not to {reference}"
            ));
        };
        let fragment = percent_encoding::percent_decode_str(fragment)
            .decode_utf8()
            .map_err(|_| format!("{reference} is not UTF-8"))?;
        self.found[number].reference = Some(fragment.into_owned());
        Ok(())
    }

    /// Resolves every reference. A target that was not visited yet becomes a subschema here.
    fn resolve(&mut self, schema: &mut Value) -> Result<(), String> {
        let mut number = 0;
        while number < self.found.len() {
            if let Some(reference) = self.found[number].reference.take() {
                let target = self.target(schema, &reference)?;
                self.found[number].same.push(target);
            }
            number += 1;
        }
        Ok(())
    }

    fn target(&mut self, schema: &mut Value, reference: &str) -> Result<usize, String> {
        let named = if reference.is_empty() || reference.starts_with('/') {
            self.pointers.get(reference)
        } else {
            self.anchors.get(reference)
        };
        if let Some(target) = named {
            return Ok(*target);
        }
        match schema.pointer_mut(reference) {
            Some(other) => self.visit(other, reference, 1),
            None => Err(format!("`#{reference}` is not in this schema")),
        }
    }

    /// Counts the subschemas that apply to a value together with this subschema, and the length of their longest chain.
    fn applied(&self, number: usize, seen: &mut [Seen]) -> Result<(u64, u64), String> {
        match seen[number] {
            Seen::Done(count, row) => return Ok((count, row)),
            Seen::Within => {
                return Err("a subschema leads to itself without end".to_owned());
            }
            Seen::Not => seen[number] = Seen::Within,
        }
        let (mut count, mut row) = (1_u64, 0);
        for next in &self.found[number].same {
            let (further, steps) = self.applied(*next, seen)?;
            count = count.saturating_add(further);
            row = row.max(steps + 1);
            if count > APPLIED || row > STEPS {
                return Err("too many subschemas apply to one value".to_owned());
            }
        }
        seen[number] = Seen::Done(count, row);
        Ok((count, row))
    }
}

/// Counts the names that a keyword requires, because each missing name is an error.
fn names_in(keyword: &str, value: &Value) -> usize {
    let listed = |value: &Value| value.as_array().map_or(0, Vec::len);
    match (keyword, value) {
        ("required", names) => listed(names),
        ("dependencies" | "dependentRequired", Value::Object(entries)) => {
            entries.values().map(listed).sum()
        }
        _ => 0,
    }
}

/// Refuses expressions whose text is too long, because translating them takes quadratic time.
fn patterns_of(keywords: &Map<String, Value>) -> Result<(), String> {
    let pattern = keywords.get("pattern").and_then(Value::as_str);
    let names = keywords
        .get("patternProperties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::keys);
    if pattern
        .into_iter()
        .chain(names.map(String::as_str))
        .any(|pattern| pattern.len() > regex_cost::TEXT)
    {
        return Err(format!(
            "a pattern may have at most {} bytes",
            regex_cost::TEXT
        ));
    }
    Ok(())
}

/// Escapes a member's name for a JSON pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
