//! The key that encrypts the secrets of subscriptions.

use crate::webhooks::{audited, create};
use brokkr_tests::api_fixture::{World, id, server};
use brokkr_tests::{Broker, says, until};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

#[test]
fn the_key_is_the_tenants_own_made_at_the_first_start_and_never_shown() {
    let world = World::with(&[("log.level", "\"trace\"")]);
    let file = world.broker.state_dir().join("webhook.key");
    assert!(file.exists());
    create(&world, &json!({ "auth_header": "Bearer hidden-token" }));
    let key = fs::read_to_string(&file).unwrap();
    assert_eq!(key.trim().len(), 64);
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    let log = world.broker.log();
    for secret in [key.trim(), "secret-path", "hidden-token"] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[test]
fn a_broker_whose_webhook_key_is_gone_says_so_and_does_not_start() {
    let world = World::new();
    create(&world, &json!({}));
    // The schema without the state folder, as on another host.
    let other = Broker::on(server()).schema(&world.schema).run(&["serve"]);
    assert_eq!(other.code, Some(78), "{}", other.stderr);
    says(&other.stderr, &["webhook.key", "webhook_encryption_key"]);
    let key = fs::read_to_string(world.broker.state_dir().join("webhook.key")).unwrap();
    let told = Broker::on(server())
        .schema(&world.schema)
        .set(
            "broker.webhook_encryption_key",
            &format!("{:?}", key.trim()),
        )
        .start();
    assert!(!told.log().contains("sealed with another key"));
    let malformed = Broker::on(server())
        .schema(&world.schema)
        .set("broker.webhook_encryption_key", "\"abc\"")
        .run(&["serve"]);
    assert_eq!(malformed.code, Some(78), "{}", malformed.stderr);
    assert!(!malformed.stderr.contains("abc\""), "{}", malformed.stderr);
}

#[test]
fn a_key_file_that_is_none_is_a_configuration_error() {
    let draft = Broker::on(server()).schema("tenant_badkey");
    let broker = draft.start();
    let state = broker.state_dir();
    assert!(broker.stop().success());
    fs::write(state.join("webhook.key"), "no key\n").unwrap();
    let ran = broker.run(&["serve"]);
    assert_eq!(ran.code, Some(78), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("webhook.key") && !ran.stderr.contains("no key"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_broker_with_another_key_says_so_in_log_metric_last_error_and_audit() {
    let world = World::new();
    let webhook = create(&world, &json!({ "auth_header": "Bearer x" }));
    let other = Broker::on(server())
        .schema(&world.schema)
        .set(
            "broker.webhook_encryption_key",
            &format!("{:?}", "ab".repeat(32)),
        )
        .start();
    says(&other.log(), &["sealed with another key"]);
    // Stop the broker that has the right key, so that it does not deliver.
    assert!(world.broker.stop().success());
    let api = brokkr_tests::Api::new(other.addr(), world.admin.pak.clone());
    let path = format!("/webhooks/{}", id(&webhook));
    api.call("POST", &format!("{path}/test"), None)
        .refused(400, "webhook_test_failed");
    let generator = api.create("/generators", &json!({ "name": "g" }));
    let stack = json!({ "name": "s", "generator_id": id(&generator["generator"]) });
    api.create("/stacks", &stack);
    let dead = until(Duration::from_secs(20), "a dead delivery", || {
        let list = api.get_json(&format!("{path}/deliveries?status=dead"));
        list.get(0).cloned()
    });
    assert!(
        dead["last_error"].as_str().unwrap().contains("decrypt"),
        "{dead}"
    );
    let entries = audited(&world, "webhook.delivery_failed");
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].0, id(&webhook));
    assert_eq!(entries[0].1["delivery_id"], dead["id"]);
    let metrics = brokkr_tests::http::get(&other.addr(), "/metrics")
        .unwrap()
        .text();
    let line = "brokkr_webhook_decrypt_failures_total{field=\"url\",path=\"broker\"}";
    let count = metrics
        .lines()
        .find_map(|l| l.strip_prefix(line))
        .unwrap_or_else(|| panic!("{metrics}"));
    assert!(count.trim().parse::<u32>().unwrap() >= 2, "{count}");
}
