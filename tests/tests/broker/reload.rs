//! The configuration is read again while the broker runs: by request, after a change of the file, and never under a
//! supervisor.

use brokkr_tests::api_fixture::{World, server, unique};
use brokkr_tests::{Api, Broker, Host, response_schema, says, until};
use serde_json::{Value, json};
use std::time::Duration;

fn reload(api: &Api) -> Value {
    api.call("POST", "/admin/config/reload", None)
        .expect(200)
        .json()
}

/// Returns the changes in an answer to a reload: key, old value, new value.
fn changes(answer: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    answer["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| {
            (
                text(&change["key"]),
                text(&change["old_value"]),
                text(&change["new_value"]),
            )
        })
        .collect()
}

fn change(key: &str, old: &str, new: &str) -> (String, String, String) {
    (key.to_owned(), old.to_owned(), new.to_owned())
}

/// Returns true when the log has a line for this path, as it does at `debug`.
fn tells_of(broker: &Broker, path: &str) -> bool {
    let told = format!("path=/api/v1{path}");
    broker.log().lines().any(|line| line.contains(&told))
}

#[test]
fn what_can_change_changes_and_what_cannot_is_named() {
    let mut world = World::with(&[("log.level", "\"info\"")]);
    let answer = reload(&world.admin);
    response_schema::check("ConfigReloadResponse", &answer);
    assert_eq!(
        (&answer["changes"], &answer["success"]),
        (&json!([]), &json!(true))
    );
    for (key, toml) in [
        ("log.level", "\"debug\""),
        ("broker.diagnostic_cleanup_interval_seconds", "60"),
        ("broker.diagnostic_max_age_hours", "2"),
        ("broker.webhook_delivery_interval_seconds", "7"),
        ("broker.webhook_delivery_batch_size", "8"),
        ("broker.webhook_cleanup_retention_days", "9"),
        (
            "cors.allowed_origins",
            "[\"https://a.example\", \"https://b.example\"]",
        ),
        ("cors.allowed_methods", "[\"GET\"]"),
        ("cors.allowed_headers", "[]"),
        ("cors.max_age_seconds", "10"),
        ("database.pool_size", "6"),
        ("broker.audit_log_retention_days", "1"),
    ] {
        world.broker.change(key, toml);
    }
    let answer = reload(&world.admin);
    let wanted = [
        change("log.level", "info", "debug"),
        change("broker.diagnostic_cleanup_interval_seconds", "900", "60"),
        change("broker.diagnostic_max_age_hours", "1", "2"),
        change("broker.webhook_delivery_interval_seconds", "5", "7"),
        change("broker.webhook_delivery_batch_size", "50", "8"),
        change("broker.webhook_cleanup_retention_days", "7", "9"),
        change(
            "cors.allowed_origins",
            "http://localhost:3001",
            "https://a.example, https://b.example",
        ),
        change(
            "cors.allowed_methods",
            "GET, POST, PUT, PATCH, DELETE, OPTIONS",
            "GET",
        ),
        change("cors.allowed_headers", "Authorization, Content-Type", ""),
        change("cors.max_age_seconds", "3600", "10"),
    ];
    assert_eq!(changes(&answer), wanted);
    let message = answer["message"].as_str().unwrap();
    for key in ["database.pool_size", "broker.audit_log_retention_days"] {
        assert!(message.contains(key), "{message}");
    }
    let log = world.get_json("/admin/audit-logs?action=config.reloaded");
    let entry = &log["logs"][0];
    assert_eq!(log["total"], 2);
    assert_eq!(
        (
            &entry["actor_type"],
            &entry["resource_type"],
            &entry["resource_id"],
            &entry["details"]["changes"]
        ),
        (
            &json!("admin"),
            &json!("config"),
            &Value::Null,
            &answer["changes"]
        )
    );
    let again = reload(&world.admin);
    assert_eq!(changes(&again), []);
    assert!(
        again["message"]
            .as_str()
            .unwrap()
            .contains("database.pool_size"),
        "until it is restarted: {again}"
    );
}

#[test]
fn fault_47_a_changed_log_level_is_the_one_in_effect() {
    let mut world = World::with(&[("log.level", "\"info\"")]);
    // Lines come in order: after the second request's line, the first request's line can no longer come.
    for (level, path) in [("debug", "/stacks"), ("trace", "/agents")] {
        world.get("/paks").expect(200);
        world.broker.change("log.level", &format!("\"{level}\""));
        let _ = reload(&world.admin);
        world.get(path).expect(200);
        until(Duration::from_secs(20), "the request to be told of", || {
            tells_of(&world.broker, path).then_some(())
        });
        assert!(!tells_of(&world.broker, "/paks"), "{}", world.broker.log());
        world.broker.change("log.level", "\"warn\"");
        let _ = reload(&world.admin);
    }
}

#[test]
fn rust_log_decides_over_the_file_and_the_answer_says_so() {
    let schema = format!("tenant_{}", unique());
    let mut broker = Broker::on(server())
        .schema(&schema)
        .env("RUST_LOG", "warn")
        .start();
    broker.change("log.level", "\"debug\"");
    let answer = reload(&broker.api());
    assert_eq!(changes(&answer), [change("log.level", "info", "debug")]);
    assert!(
        answer["message"].as_str().unwrap().contains("RUST_LOG"),
        "{answer}"
    );
    broker.api().get("/paks").expect(200);
    let _ = broker.stop();
    assert!(!tells_of(&broker, "/paks"), "{}", broker.log());
}

#[test]
fn the_environment_is_above_the_file_on_reload_too() {
    let schema = format!("tenant_{}", unique());
    let mut broker = Broker::on(server())
        .schema(&schema)
        .env("BROKKR__CORS__MAX_AGE_SECONDS", "5")
        .start();
    broker.change("cors.max_age_seconds", "6");
    broker.change("broker.diagnostic_max_age_hours", "6");
    assert_eq!(
        changes(&reload(&broker.api())),
        [change("broker.diagnostic_max_age_hours", "1", "6")]
    );
}

#[test]
fn a_file_with_an_error_changes_nothing_and_the_answer_says_where_and_what_to_write() {
    let mut world = World::new();
    world.broker.change("cors.max_age_seconds", "1");
    let good = std::fs::read_to_string(world.broker.config_file()).unwrap();
    let bad = format!("{good}allowed_origin = [\"x\"]\n")
        .replace("[cors]\n", "[cors]\nmax_age_second = 3\n");
    world.broker.write_config(&bad);
    let answer = world.call("POST", "/admin/config/reload", None);
    answer.refused(500, "config_reload_failed");
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    let line = 1 + bad
        .lines()
        .position(|l| l.starts_with("max_age_second "))
        .unwrap();
    says(
        &message,
        &[&format!("broker.toml:{line}:1: "), "`max_age_seconds`"],
    );
    world.broker.write_config("this is no TOML");
    world
        .call("POST", "/admin/config/reload", None)
        .refused(500, "config_reload_failed");
    std::fs::remove_file(world.broker.config_file()).unwrap();
    world
        .call("POST", "/admin/config/reload", None)
        .refused(500, "config_reload_failed");
    world.broker.write_config(&good);
    assert_eq!(
        changes(&reload(&world.admin)),
        [change("cors.max_age_seconds", "3600", "1")]
    );
    let log = world.get_json("/admin/audit-logs?action=config.reloaded");
    assert_eq!(log["total"], 1, "what was refused did not happen");
}

#[test]
fn a_change_behind_a_link_is_read_by_itself_and_variables_may_end_with_a_line_end() {
    let schema = format!("tenant_{}", unique());
    let url = server().url("brokkr", "brokkr");
    let broker = Broker::on(server())
        .unset("database.url")
        .schema(&schema)
        .env("BROKKR__DATABASE__URL", &format!("{url}\n"))
        .env("BROKKR__LOG__LEVEL", "INFO\n")
        .env("BROKKR_CONFIG_WATCHER_DEBOUNCE_SECONDS", "0\n")
        .start();
    let file = broker.config_file();
    let text = std::fs::read_to_string(&file).unwrap();
    let (store, beside) = (file.with_file_name("store"), file.with_extension("link"));
    for version in ["1", "2"] {
        std::fs::create_dir_all(store.join(version)).unwrap();
        let age = format!("{text}\n[cors]\nmax_age_seconds = {version}\n");
        std::fs::write(store.join(version).join("broker.toml"), age).unwrap();
    }
    let point = |name: &std::path::Path, target: &str| {
        std::os::unix::fs::symlink(target, &beside).unwrap();
        std::fs::rename(&beside, name).unwrap();
    };
    let said = |what: &str| {
        until(Duration::from_secs(20), what, || {
            broker.log().contains(what).then_some(())
        });
    };
    // As Kubernetes mounts a file: a link to a file in a folder that is itself a link.
    point(&store.join("..data"), "1");
    point(&file, "store/..data/broker.toml");
    said("new_value=1 old_value=3600");
    point(&store.join("..data"), "2");
    said("new_value=2 old_value=1");
    let new = store.join("2/new");
    std::fs::write(&new, format!("{text}\n[cors]\nmax_age_seconds = 3\n")).unwrap();
    std::fs::rename(new, store.join("2/broker.toml")).unwrap();
    said("new_value=3 old_value=2");
}

#[test]
fn a_changed_file_is_read_by_itself_unless_it_is_not_to_be_watched() {
    let start = |watched: &str| {
        let schema = format!("tenant_{}", unique());
        Broker::on(server())
            .schema(&schema)
            .env("BROKKR_CONFIG_WATCHER_DEBOUNCE_SECONDS", "0")
            .env("BROKKR_CONFIG_WATCHER_ENABLED", watched)
            .start()
    };
    let (mut watched, mut unwatched) = (start("true"), start("false"));
    unwatched.change("cors.max_age_seconds", "1");
    for (value, said) in [
        ("1", "new_value=1 old_value=3600"),
        ("2", "new_value=2 old_value=1"),
    ] {
        watched.change("cors.max_age_seconds", value);
        until(Duration::from_secs(20), said, || {
            watched.log().contains(said).then_some(())
        });
    }
    assert_eq!(changes(&reload(&watched.api())), []);
    watched.change("cors.max_age_seconds", "\"never\"");
    until(Duration::from_secs(20), "the error to be told", || {
        let log = watched.log();
        (log.contains("broker.toml:") && log.contains("is not used")).then_some(())
    });
    watched.change("cors.max_age_seconds", "2");
    watched.change("database.pool_size", "9");
    until(Duration::from_secs(20), "the restart to be told", || {
        watched
            .log()
            .contains("needs a restart: database.pool_size")
            .then_some(())
    });
    let log = watched
        .api()
        .get_json("/admin/audit-logs?action=config.reloaded");
    assert_eq!(log["total"], 1, "the one that was asked for");
    assert_eq!(
        changes(&reload(&unwatched.api())),
        [change("cors.max_age_seconds", "3600", "1")]
    );
}

#[test]
fn under_a_supervisor_a_reload_reads_nothing_and_says_who_does() {
    let host = Host::new();
    let acme = host.tenant("acme").pool(10).up();
    let answer = reload(&acme.api());
    assert_eq!(
        (&answer["success"], &answer["changes"]),
        (&json!(true), &json!([]))
    );
    assert!(
        answer["message"].as_str().unwrap().contains("supervisor"),
        "{answer}"
    );
}
