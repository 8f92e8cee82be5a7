//! Uses the OpenAPI document as a client's author would. `rust-client` compares it with the published document,
//! `api/schemathesis.rs` checks answers against it.

use brokkr_tests::api_fixture::World;
use brokkr_tests::{http, response_schema};
use serde_json::Value;

#[test]
fn the_document_is_served_without_a_pak_and_is_what_the_command_prints() {
    let world = World::new();
    let served = http::get(&world.broker.addr(), "/docs/openapi.json")
        .unwrap()
        .expect(200);
    assert_eq!(served.header("content-type"), Some("application/json"));
    let printed = world.broker.run(&["openapi"]).ok();
    assert_eq!(
        served.json(),
        serde_json::from_str::<Value>(&printed).unwrap()
    );
    // No page shows the document.
    for path in ["/swagger-ui", "/docs", "/docs/"] {
        let nothing = http::get(&world.broker.addr(), path).unwrap().expect(404);
        assert_eq!(nothing.json()["code"], "not_found", "{path}");
    }
}

#[test]
fn the_document_is_printed_without_any_configuration() {
    let asked = brokkr_tests::bin::run(
        brokkr_tests::bin::broker(),
        ["openapi", "--config", "/nowhere/broker.toml"],
    );
    let document: Value = serde_json::from_str(&asked.ok()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
}

/// The only keys that an answer may lack; every other optional key is null.
const MAY_BE_ABSENT: [&str; 7] = [
    "AuditLog.ip_address",
    "AuditLog.user_agent",
    "ConfigReloadResponse.message",
    "ErrorResponse.details",
    "HealthSummary.resources",
    "ResourceHealth.message",
    "WebhookFilters.*",
];

#[test]
fn every_documented_key_is_checked_in_answers() {
    let printed = brokkr_tests::bin::run(brokkr_tests::bin::broker(), ["openapi"]).ok();
    let document: Value = serde_json::from_str(&printed).unwrap();
    let mut compared = 0;
    for (name, mut checked) in response_schema::all() {
        // The document's name of an entry.
        let name = if name == "AuditLogEntry" {
            "AuditLog"
        } else {
            name
        };
        let Some(properties) = document["components"]["schemas"][name]["properties"].as_object()
        else {
            continue;
        };
        let mut documented: Vec<&str> = properties.keys().map(String::as_str).collect();
        documented.retain(|key| !MAY_BE_ABSENT.contains(&format!("{name}.{key}").as_str()));
        checked.retain(|key| name != "AuditLog" || *key != "actor_name");
        documented.sort_unstable();
        checked.sort_unstable();
        assert_eq!(documented, checked, "{name}");
        compared += 1;
    }
    assert!(compared > 30, "{compared} shapes are in the document");
}

#[test]
fn every_documented_operation_is_there_and_answers_as_documented() {
    let world = World::new();
    let document = http::get(&world.broker.addr(), "/docs/openapi.json")
        .unwrap()
        .expect(200)
        .json();
    let mut wrong = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        assert!(!path.starts_with("/internal"), "{path} is not for clients");
        for (method, operation) in methods.as_object().unwrap() {
            let nobodys = path
                .split('/')
                .map(|part| match part.starts_with('{') {
                    true => "00000000-0000-4000-8000-000000000000",
                    false => part,
                })
                .collect::<Vec<_>>()
                .join("/");
            let documented = &operation["responses"];
            // Without a PAK, and then as admin with ids that do not exist.
            for (api, pak) in [
                (world.anonymous(), "no PAK"),
                (world.admin.clone(), "admin"),
            ] {
                let answer = api.call(&method.to_uppercase(), &nobodys, None);
                if documented.get(answer.status.to_string()).is_none() {
                    let text = answer.text();
                    wrong.push(format!(
                        "{method} {path} with {pak}: {} {text}",
                        answer.status
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
