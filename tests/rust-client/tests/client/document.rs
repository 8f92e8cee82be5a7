//! Compares our OpenAPI document with the document of the published clients: operation by operation, schema by schema,
//! field by field.

mod dialect;

use std::collections::{BTreeMap, BTreeSet};

use dialect::{Null, differences, same};
use serde_json::Value;

/// Intended differences with their reasons. The place is the beginning of the comparison's line.
const DELIBERATE: &[(&str, &str)] = &[
    (
        "schema DiagnosticResponse.result:",
        "null until the agent has answered",
    ),
    ("schema WebhookResponse.filters:", "null without filters"),
];

#[test]
fn our_document_says_everything_that_the_published_one_says() {
    let theirs = crate::published::document();
    let ours = brokkr_tests::bin::run(brokkr_tests::bin::broker(), ["openapi"]).ok();
    let ours: Value = serde_json::from_str(&ours).unwrap();

    let mut wrong = Vec::new();
    if ours["servers"][0]["url"] != theirs["servers"][0]["url"] {
        wrong.push("servers: another base".to_owned());
    }
    let operations = compare_operations(&theirs, &ours, &mut wrong);
    let schemas = compare_schemas(&theirs, &ours, &mut wrong);

    for (place, reason) in DELIBERATE {
        let before = wrong.len();
        wrong.retain(|line| !line.starts_with(place));
        assert!(
            wrong.len() < before,
            "{place} ({reason}): no longer differs"
        );
    }
    println!("{operations} operations, {schemas} schemas compared");
    assert!(
        operations == 96 && schemas == 83,
        "not the document of 0.10.0"
    );
    assert!(
        wrong.is_empty(),
        "{} differences from the published document:\n  {}",
        wrong.len(),
        wrong.join("\n  ")
    );
}

fn operations(document: &Value) -> BTreeMap<String, &Value> {
    let mut found = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            found.insert(format!("{} {path}", method.to_uppercase()), operation);
        }
    }
    found
}

fn compare_operations(theirs: &Value, ours: &Value, wrong: &mut Vec<String>) -> usize {
    let (theirs, ours) = (operations(theirs), operations(ours));
    for (name, operation) in &theirs {
        match ours.get(name) {
            Some(own) => compare_operation(name, operation, own, wrong),
            None => wrong.push(format!("{name}: missing")),
        }
    }
    for name in ours.keys().filter(|name| !theirs.contains_key(*name)) {
        wrong.push(format!("{name}: theirs has no such operation"));
    }
    theirs.len()
}

fn compare_operation(name: &str, theirs: &Value, ours: &Value, wrong: &mut Vec<String>) {
    same(
        &format!("{name} operationId"),
        &theirs["operationId"],
        &ours["operationId"],
        wrong,
    );
    same(
        &format!("{name} tags"),
        &theirs["tags"],
        &ours["tags"],
        wrong,
    );
    compare_callers(name, theirs, ours, wrong);
    compare_parameters(name, theirs, ours, wrong);
    let place = format!("{name} body");
    let body = |operation: &Value| operation.get("requestBody").cloned().unwrap_or_default();
    let (their_body, our_body) = (body(theirs), body(ours));
    same(
        &format!("{place} required"),
        &their_body["required"],
        &our_body["required"],
        wrong,
    );
    compare_content(&place, &their_body, &our_body, wrong);
    for (status, answer) in theirs["responses"].as_object().unwrap() {
        match ours["responses"].get(status) {
            Some(own) => compare_content(&format!("{name} {status}"), answer, own, wrong),
            None => wrong.push(format!("{name} {status}: missing")),
        }
    }
}

/// Compares the principals whose PAK an operation takes. Their order does not count, because each is an alternative.
fn compare_callers(name: &str, theirs: &Value, ours: &Value, wrong: &mut Vec<String>) {
    let callers = |operation: &Value| -> BTreeSet<String> {
        let named = operation["security"].as_array().into_iter().flatten();
        named
            .flat_map(|one| one.as_object().unwrap().keys().cloned())
            .collect()
    };
    let (theirs, ours) = (callers(theirs), callers(ours));
    if theirs != ours {
        wrong.push(format!("{name} security: {theirs:?}, ours {ours:?}"));
    }
}

fn compare_parameters(name: &str, theirs: &Value, ours: &Value, wrong: &mut Vec<String>) {
    let parameters = |operation: &Value| -> BTreeMap<(String, String), Value> {
        let listed = operation["parameters"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        listed
            .into_iter()
            .map(|one| ((text(&one["in"]), text(&one["name"])), one))
            .collect()
    };
    let (theirs, ours) = (parameters(theirs), parameters(ours));
    for (key, parameter) in &theirs {
        let place = format!("{name} {} parameter {}", key.0, key.1);
        let Some(own) = ours.get(key) else {
            wrong.push(format!("{place}: missing"));
            continue;
        };
        same(
            &format!("{place} required"),
            &parameter["required"],
            &own["required"],
            wrong,
        );
        differences(
            &place,
            &parameter["schema"],
            &own["schema"],
            Null::Never,
            wrong,
        );
    }
    for (place, parameter) in ours.keys().filter(|key| !theirs.contains_key(*key)) {
        wrong.push(format!(
            "{name} {place} parameter {parameter}: theirs has no such parameter"
        ));
    }
}

/// Compares the media types of a body or an answer, and the schema of each.
fn compare_content(place: &str, theirs: &Value, ours: &Value, wrong: &mut Vec<String>) {
    let content = |of: &Value| of["content"].as_object().cloned().unwrap_or_default();
    let (theirs, ours) = (content(theirs), content(ours));
    for (kind, media) in &theirs {
        match ours.get(kind) {
            Some(own) => {
                let place = format!("{place} {kind}");
                differences(&place, &media["schema"], &own["schema"], Null::Never, wrong);
            }
            None => wrong.push(format!("{place} {kind}: missing")),
        }
    }
    for kind in ours.keys().filter(|kind| !theirs.contains_key(*kind)) {
        wrong.push(format!("{place} {kind}: theirs has no such content"));
    }
}

fn compare_schemas(theirs: &Value, ours: &Value, wrong: &mut Vec<String>) -> usize {
    let answered = answered(theirs);
    let schemas = |document: &Value| {
        document["components"]["schemas"]
            .as_object()
            .unwrap()
            .clone()
    };
    let (theirs, ours) = (schemas(theirs), schemas(ours));
    for (name, schema) in &theirs {
        let null = if answered.contains(name) {
            Null::Never
        } else {
            Null::MayBeSent
        };
        match ours.get(name) {
            Some(own) => differences(&format!("schema {name}"), schema, own, null, wrong),
            None => wrong.push(format!("schema {name}: missing")),
        }
    }
    for name in ours.keys().filter(|name| !theirs.contains_key(*name)) {
        wrong.push(format!("schema {name}: theirs has no such schema"));
    }
    theirs.len()
}

/// Returns the schemas that occur in answers.
fn answered(document: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next: Vec<Value> = operations(document)
        .values()
        .map(|operation| operation["responses"].clone())
        .collect();
    while let Some(part) = next.pop() {
        match part {
            Value::Object(fields) => {
                let refers = fields.get("$ref").and_then(Value::as_str);
                if let Some(name) = refers.and_then(|refers| refers.rsplit('/').next())
                    && found.insert(name.to_owned())
                {
                    next.push(document["components"]["schemas"][name].clone());
                }
                next.extend(fields.into_iter().map(|(_, value)| value));
            }
            Value::Array(items) => next.extend(items),
            _ => {}
        }
    }
    found
}
