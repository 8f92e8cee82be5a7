//! Two dialects: the published document is OpenAPI 3.0 (`nullable`), ours 3.1 (`type: [.., "null"]`, `oneOf` with
//! `null`). Both are brought into one form and compared.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// States where null may replace an optional object that is given by a reference.
///
/// OpenAPI 3.0 cannot say that a reference may be null, and the published document was converted to 3.0. In a request
/// null equals absence. In an answer it does not: the published Python client accepts an absent object and fails at
/// null.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Null {
    MayBeSent,
    Never,
}

/// A schema in a form with one way to say each thing, without texts for people.
#[derive(Debug, Default, PartialEq)]
struct Form {
    /// The name of the referenced component; nothing else counts then.
    refers: Option<String>,
    kind: Option<String>,
    nullable: bool,
    /// `format`, `minimum`, `enum` and every other restriction of the values.
    narrowed: BTreeMap<String, Value>,
}

/// Keys that are texts for people, always true of JSON, or compared separately.
const APART: [&str; 12] = [
    "$ref",
    "type",
    "nullable",
    "description",
    "title",
    "example",
    "examples",
    "propertyNames",
    "properties",
    "required",
    "items",
    "additionalProperties",
];

fn form(schema: &Value) -> Form {
    let mut form = Form::default();
    let Some(object) = schema.as_object() else {
        return form;
    };
    if let Some(name) = schema["$ref"].as_str() {
        form.refers = name.rsplit('/').next().map(str::to_owned);
        return form;
    }
    match &schema["type"] {
        Value::String(kind) => form.kind = Some(kind.clone()),
        Value::Array(kinds) => {
            form.nullable = kinds.iter().any(|kind| kind == "null");
            form.kind = kinds
                .iter()
                .filter_map(Value::as_str)
                .find(|kind| *kind != "null")
                .map(str::to_owned);
        }
        _ => {}
    }
    form.nullable |= schema["nullable"] == true;
    for (key, value) in object {
        if !APART.contains(&key.as_str()) && key != "allOf" {
            form.narrowed.insert(key.clone(), value.clone());
        }
    }
    form
}

/// Returns X of `oneOf: [null, X]` and true, or else the schema itself and false.
fn or_null(schema: &Value) -> (&Value, bool) {
    let Some([one, other]) = schema["oneOf"].as_array().map(Vec::as_slice) else {
        return (schema, false);
    };
    match (one["type"] == "null", other["type"] == "null") {
        (true, false) => (other, true),
        (false, true) => (one, true),
        _ => (schema, false),
    }
}

/// Notes every difference between two schemas, each with its place.
pub(crate) fn differences(
    place: &str,
    theirs: &Value,
    ours: &Value,
    null: Null,
    wrong: &mut Vec<String>,
) {
    let (ours, or_null) = or_null(ours);
    let (their_form, mut our_form) = (form(theirs), form(ours));
    let tolerated = their_form.refers.is_some() && null == Null::MayBeSent;
    our_form.nullable |= or_null && !tolerated;
    if their_form != our_form {
        wrong.push(format!(
            "{place}: {}, ours {}",
            shown(&their_form),
            shown(&our_form)
        ));
    }
    fields(place, theirs, ours, null, wrong);
    for key in ["items", "additionalProperties"] {
        // `true` allows any value, as absence does.
        let said = |schema: &Value| {
            schema
                .get(key)
                .filter(|s| **s != Value::Bool(true))
                .cloned()
        };
        let anything = Value::Object(serde_json::Map::new());
        let (their_part, our_part) = (said(theirs), said(ours));
        if their_part.is_some() || our_part.is_some() {
            differences(
                &format!("{place} {key}"),
                their_part.as_ref().unwrap_or(&anything),
                our_part.as_ref().unwrap_or(&anything),
                Null::Never,
                wrong,
            );
        }
    }
    let parts = |schema: &Value| schema["allOf"].as_array().cloned().unwrap_or_default();
    let (their_parts, our_parts) = (parts(theirs), parts(ours));
    same(
        &format!("{place} parts"),
        &their_parts.len().into(),
        &our_parts.len().into(),
        wrong,
    );
    for (number, (their_part, our_part)) in their_parts.iter().zip(&our_parts).enumerate() {
        differences(
            &format!("{place} part {number}"),
            their_part,
            our_part,
            Null::Never,
            wrong,
        );
    }
}

/// Compares the properties of two objects.
fn fields(place: &str, theirs: &Value, ours: &Value, null: Null, wrong: &mut Vec<String>) {
    let required = |schema: &Value| -> BTreeSet<String> {
        let names = schema["required"].as_array().into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (they_require, we_require) = (required(theirs), required(ours));
    if they_require != we_require {
        let only = |one: &BTreeSet<String>, other: &BTreeSet<String>| -> Vec<String> {
            one.difference(other).cloned().collect()
        };
        wrong.push(format!(
            "{place}: only theirs requires {:?}, only ours {:?}",
            only(&they_require, &we_require),
            only(&we_require, &they_require)
        ));
    }
    let none = serde_json::Map::new();
    let (their_fields, our_fields) = (
        theirs["properties"].as_object().unwrap_or(&none),
        ours["properties"].as_object().unwrap_or(&none),
    );
    for (name, field) in their_fields {
        let place = format!("{place}.{name}");
        let null = if they_require.contains(name) {
            Null::Never
        } else {
            null
        };
        match our_fields.get(name) {
            Some(own) => differences(&place, field, own, null, wrong),
            None => wrong.push(format!("{place}: missing")),
        }
    }
    for name in our_fields
        .keys()
        .filter(|name| !their_fields.contains_key(*name))
    {
        wrong.push(format!("{place}.{name}: theirs has no such field"));
    }
}

pub(crate) fn same(place: &str, theirs: &Value, ours: &Value, wrong: &mut Vec<String>) {
    if theirs != ours {
        wrong.push(format!("{place}: {theirs}, ours {ours}"));
    }
}

fn shown(form: &Form) -> String {
    if let Some(name) = &form.refers {
        return format!("a {name}{}", if form.nullable { " or null" } else { "" });
    }
    let mut shown = form.kind.clone().unwrap_or_else(|| "anything".to_owned());
    for (key, value) in &form.narrowed {
        shown.push_str(&format!(" {key}={value}"));
    }
    if form.nullable {
        shown.push_str(" or null");
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compared(theirs: &Value, ours: &Value) -> Vec<String> {
        let mut wrong = Vec::new();
        differences("x", theirs, ours, Null::Never, &mut wrong);
        wrong
    }

    #[test]
    fn an_optional_object_may_be_null_in_a_request_but_not_in_an_answer() {
        let theirs =
            json!({"type": "object", "properties": {"f": {"$ref": "#/components/schemas/F"}}});
        let ours = json!({"type": "object", "properties": {
            "f": {"oneOf": [{"type": "null"}, {"$ref": "#/components/schemas/F"}]},
        }});
        let mut wrong = Vec::new();
        differences("x", &theirs, &ours, Null::MayBeSent, &mut wrong);
        assert_eq!(wrong, Vec::<String>::new());
        differences("x", &theirs, &ours, Null::Never, &mut wrong);
        assert_eq!(wrong, ["x.f: a F, ours a F or null"]);
    }

    #[test]
    fn what_both_dialects_say_in_their_own_way_is_the_same() {
        for (theirs, ours) in [
            (
                json!({"type": "string", "format": "uuid", "nullable": true}),
                json!({"type": ["string", "null"], "format": "uuid", "description": "whose"}),
            ),
            (
                json!({"type": "object", "additionalProperties": {}}),
                json!({"type": "object", "additionalProperties": true, "propertyNames": {"type": "string"}}),
            ),
        ] {
            assert_eq!(compared(&theirs, &ours), Vec::<String>::new());
        }
    }

    #[test]
    fn every_kind_of_difference_is_seen() {
        let object = |field: Value, required: Value| json!({"type": "object", "properties": {"f": field}, "required": required});
        let text = json!({"type": "string"});
        for (theirs, ours) in [
            (text.clone(), json!({"type": "integer"})),
            (text.clone(), json!({"type": ["string", "null"]})),
            (json!({"type": "string", "nullable": true}), text.clone()),
            (text.clone(), json!({"type": "string", "format": "uuid"})),
            (text.clone(), json!({"type": "string", "enum": ["a"]})),
            (text.clone(), json!({})),
            (
                json!({"$ref": "#/components/schemas/A"}),
                json!({"$ref": "#/components/schemas/B"}),
            ),
            (
                json!({"$ref": "#/components/schemas/A"}),
                json!({"oneOf": [{"type": "null"}, {"$ref": "#/components/schemas/A"}]}),
            ),
            (
                json!({"type": "array", "items": text}),
                json!({"type": "array", "items": {}}),
            ),
            (json!({"allOf": [text]}), json!({"allOf": []})),
            (
                object(text.clone(), json!(["f"])),
                object(text.clone(), json!([])),
            ),
            (object(text.clone(), json!([])), json!({"type": "object"})),
            (json!({"type": "object"}), object(text.clone(), json!([]))),
        ] {
            assert!(!compared(&theirs, &ours).is_empty(), "{theirs} and {ours}");
        }
    }
}
