#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
use std::time::Duration;

use super::*;
use crate::{InstanceConfig, SchemaName, TenantName};
use proptest::prelude::*;

const URL: &str = "postgres://brokkr:password@db:5432/brokkr";

fn file(text: &str) -> Layer {
    Layer::from_source(Source::new("t/acme.toml", text), &settings::KEYS)
}

fn env(pairs: &[(&str, &str)]) -> Layer {
    Layer::from_env(
        pairs
            .iter()
            .map(|(name, value)| (name.into(), value.into())),
    )
}

/// Returns a file's text that begins with the URL, in the section `[database]`.
fn with_url(rest: &str) -> String {
    format!("[database]\nurl = \"{URL}\"\n{rest}")
}

fn alone(text: &str) -> Resolved {
    resolve(&[file(text)], Mode::Alone).unwrap()
}

fn configured(layers: &[Layer]) -> BrokerConfig {
    resolve(layers, Mode::Alone).unwrap().config
}

fn supervised(text: &str) -> Diagnostics {
    resolve(&[file(text)], Mode::Supervised).unwrap_err()
}

fn refused(text: &str) -> String {
    supervised(text).to_string()
}

#[test]
fn the_references_single_tenant_file_serves_public_on_port_3000() {
    let config = alone(&with_url("")).config;
    assert!(config.database.schema.is_public());
    assert_eq!(config.database.pool_size.get(), 50);
    assert_eq!(config.database.max_working, 8);
    assert_eq!(config.http.listen.to_string(), "0.0.0.0:3000");
    assert_eq!(config.log.level, LogLevel::Info);
    assert_eq!(config.broker.pak_hash, None);
    assert_eq!(config.telemetry.service_name, "brokkr-broker");
    assert_eq!(config.pak.long_token_length, 24);
    assert_eq!(config.database.acquire_timeout, Duration::from_secs(5));
    assert_eq!(config.state_dir(None), PathBuf::from("./brokkr-state"));
    assert_eq!(
        config.state_dir(Some("/a:/b".as_ref())),
        PathBuf::from("/a")
    );
}

#[test]
fn the_references_multi_tenant_file_and_its_variable_name_the_schema() {
    let config = alone(&with_url("schema = \"tenant_acme\"\n")).config;
    assert_eq!(config.database.schema.as_str(), "tenant_acme");
    let layers = [
        file(&with_url("")),
        env(&[("BROKKR__DATABASE__SCHEMA", "tenant_acme")]),
    ];
    assert_eq!(configured(&layers).database.schema.as_str(), "tenant_acme");
    let only = env(&[("BROKKR__DATABASE__URL", URL)]);
    assert_eq!(configured(&[only]).database.url.expose(), URL);
}

#[test]
fn every_default_of_the_table_is_of_its_kind() {
    // Reading every key reports a mismatch between the table and its readers.
    assert!(Layer::defaults(&settings::KEYS).problems().is_empty());
    assert!(alone(&with_url("")).warnings.is_empty());
}

#[test]
fn the_highest_layer_wins_key_by_key() {
    let defaults = Layer::from_source(
        Source::new(
            "s.toml",
            with_url("pool_size = 20\n[log]\nlevel = \"warn\"\n"),
        ),
        &settings::KEYS,
    );
    let tenant = file("[database]\npool_size = 30\n[http]\nlisten = \"127.0.0.1:1\"\n");
    let resolved = resolve(
        &[defaults, tenant, env(&[("BROKKR__LOG__LEVEL", "debug")])],
        Mode::Supervised,
    )
    .unwrap();
    assert_eq!(resolved.config.database.pool_size.get(), 30);
    assert_eq!(resolved.config.log.level, LogLevel::Debug);
    let origin = |key: &str| resolved.origin(key).unwrap().to_string();
    assert_eq!(origin("database.url"), "s.toml:2:1");
    assert_eq!(origin("database.pool_size"), "t/acme.toml:2:1");
    assert_eq!(origin("log.level"), "BROKKR__LOG__LEVEL");
    assert_eq!(origin("http.listen"), "t/acme.toml:4:1");
    let taken = resolved
        .diagnostic("http.listen", "taken", None)
        .to_string();
    assert!(taken.starts_with("t/acme.toml:4:1: taken\n"), "{taken}");
    // The file does not set the schema, so the error has no key to point at.
    assert!(
        resolved
            .diagnostic("database.schema", "taken", None)
            .to_string()
            .starts_with("t/acme.toml:1:1: taken")
    );
}

#[test]
fn what_is_missing_is_missing_at_the_beginning_of_the_tenants_file() {
    for text in ["", "\n", "# nothing\n"] {
        let shown = refused(text);
        assert!(
            shown.contains("t/acme.toml:1:1: `database.url` is missing"),
            "{shown}"
        );
        assert!(
            shown.contains("t/acme.toml:1:1: `http.listen` is missing"),
            "{shown}"
        );
    }
    let shown = resolve(&[], Mode::Alone).unwrap_err().to_string();
    assert!(
        shown.starts_with("BROKKR__DATABASE__URL: `database.url` is missing"),
        "{shown}"
    );
}

#[test]
fn a_bad_value_is_not_missing_as_well_and_other_problems_are_said_too() {
    for (text, count) in [
        (
            "x = 1\n[database]\nurl = 5\n[http]\nlisten = \"localhost:1\"\n",
            3,
        ),
        ("x = \n", 1),
        (&format!("y = 1\n{}", with_url("")), 2),
    ] {
        let problems = supervised(text);
        assert_eq!(problems.errors().count(), count, "{problems}");
    }
}

#[test]
fn port_0_is_for_a_broker_alone() {
    let text = with_url("[http]\nlisten = \"127.0.0.1:0\"\n");
    assert!(refused(&text).starts_with("t/acme.toml:4:1: `http.listen` is 127.0.0.1:0: port 0"));
    assert_eq!(alone(&text).config.http.listen.to_string(), "127.0.0.1:0");
}

#[test]
fn more_at_work_than_the_pool_holds_is_an_error_at_that_key() {
    let text = with_url("pool_size = 4\nmax_working = 5\n[http]\nlisten = \"127.0.0.1:1\"\n");
    assert!(refused(&text).starts_with("t/acme.toml:4:1: `database.max_working` is 5"));
    let config = alone(&text.replace("max_working = 5", "")).config;
    assert_eq!(config.database.max_working, 4);
}

#[test]
fn the_url_can_be_in_a_file_beside_the_file_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = dir.path().join("acme.toml");
    let secret = dir.path().join("acme.url");
    std::fs::write(&tenant, "[database]\nurl_file = \"acme.url\"\n").unwrap();
    let read = || resolve(&[Layer::from_file(&tenant)], Mode::Alone);

    let missing = read().unwrap_err();
    assert!(missing.to_string().starts_with(&format!(
        "{}:2:1: `database.url_file`: {}",
        tenant.display(),
        secret.display()
    )));
    assert_eq!(missing.files, std::slice::from_ref(&secret));

    std::fs::write(
        &secret,
        format!("{URL}?sslmode=verify-ca&sslrootcert=ca.pem\n"),
    )
    .unwrap();
    let resolved = read().unwrap();
    assert_eq!(
        resolved.config.database.url.password().unwrap().expose(),
        "password"
    );
    assert_eq!(resolved.files, [secret.clone(), dir.path().join("ca.pem")]);
    assert_eq!(resolved.url_key(), "database.url_file");
    let digest = resolved.config.digest();
    assert_eq!(digest, read().unwrap().config.digest());

    std::fs::write(&secret, URL.replace("password", "hunter2")).unwrap();
    assert_ne!(digest, read().unwrap().config.digest());

    // Contents as editors save them, then a content in another encoding.
    for text in [format!("\u{feff}{URL}\r\n"), format!("{URL}\n\n")] {
        std::fs::write(&secret, text).unwrap();
        let url = read().unwrap().config.database.url;
        assert_eq!(url.password().unwrap().expose(), "password");
    }
    std::fs::write(&secret, b"\xff\xfep\0o\0").unwrap();
    let wide = read().unwrap_err().to_string();
    assert!(wide.contains("UTF-16; save it as UTF-8"), "{wide}");

    std::fs::write(&secret, "postgres://u:hunter2@a,b/").unwrap();
    let bad = read().unwrap_err().to_string();
    assert!(
        bad.contains("several hosts") && !bad.contains("hunter2"),
        "{bad}"
    );
}

#[test]
fn a_tenants_own_url_file_stands_above_a_default_url_and_both_in_one_file_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("u");
    std::fs::write(&secret, "postgres://u@own/").unwrap();
    let defaults = Layer::from_pairs("the embedded server", [("database.url", URL)]);
    let tenant = file(&format!(
        "[database]\nurl_file = \"{}\"\n",
        secret.display()
    ));
    let resolved = resolve(&[defaults.clone(), tenant], Mode::Alone).unwrap();
    assert_eq!(
        resolved.config.database.url.host(),
        &crate::Host::Tcp("own".into())
    );
    let resolved = resolve(&[defaults, file("")], Mode::Alone).unwrap();
    assert_eq!(
        resolved.origin("database.url").unwrap().to_string(),
        "the embedded server"
    );
    assert!(
        refused(&with_url("url_file = \"x\"\n"))
            .contains("t/acme.toml:3:1: `database.url_file` and")
    );
}

#[test]
fn relative_paths_are_taken_from_the_folder_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("acme.toml");
    std::fs::write(&path, format!("[database]\nurl = \"{URL}?sslrootcert=ca.pem\"\n[http]\nlisten = \"unix:a.sock\"\n[broker]\nstate_dir = \"s\"\n")).unwrap();
    let config = resolve(&[Layer::from_file(&path)], Mode::Supervised)
        .unwrap()
        .config;
    assert_eq!(config.http.listen, Listen::Unix(dir.path().join("a.sock")));
    assert_eq!(config.broker.state_dir, Some(dir.path().join("s")));
    assert_eq!(
        config.database.url.ssl_root_cert().unwrap(),
        dir.path().join("ca.pem")
    );
}

fn instance(config: BrokerConfig) -> InstanceConfig {
    InstanceConfig {
        version: 1,
        tenant: TenantName::parse("acme").unwrap(),
        instance: 7,
        state_dir: "/var/lib/brokkr/tenants/acme".into(),
        connections: 10,
        grace: std::time::Duration::from_secs(20),
        core: false,
        isolation_required: false,
        config,
    }
}

#[test]
fn an_instance_reads_back_what_the_supervisor_wrote_and_only_the_memfd_holds_secrets() {
    let hash = "AB".repeat(32);
    let text = with_url(&format!(
        "[broker]\npak_hash = \"{hash}\"\nwebhook_encryption_key = \"{}\"\n",
        "12".repeat(32)
    ));
    let instance = instance(alone(&text).config);
    let json = instance.to_json();
    assert!(json.contains(URL) && json.contains(&hash.to_lowercase()));
    assert_eq!(
        InstanceConfig::from_json(json.as_bytes()).unwrap(),
        instance
    );
    for shown in [
        format!("{instance:?}"),
        serde_json::to_string(&instance).unwrap(),
    ] {
        assert!(
            !shown.contains("password@") && !shown.contains("abab") && !shown.contains("1212"),
            "{shown}"
        );
    }
    let other = json.replacen("\"version\":1", "\"version\":2", 1);
    assert!(
        InstanceConfig::from_json(other.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("version 2")
    );
    let broken = InstanceConfig::from_json(json.replace("postgres://", "hunter2://").as_bytes())
        .unwrap_err();
    assert!(!broken.to_string().contains("hunter2"));
}

#[test]
fn where_webhooks_may_go_is_said_in_networks_and_ports() {
    let base = with_url("[http]\nlisten = \"127.0.0.1:9\"\n[webhooks]\n");
    let text = format!(
        "{base}allowed_networks = [\"10.0.0.0/8\", \"::1\"]\nallowed_ports = [443, 8443]\n"
    );
    let config = alone(&text).config;
    let shown: Vec<String> = config
        .webhooks
        .allowed_networks
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(shown, ["10.0.0.0/8", "::1/128"]);
    assert_eq!(config.webhooks.allowed_ports, [443, 8443]);
    let instance = instance(config);
    assert_eq!(
        InstanceConfig::from_json(instance.to_json().as_bytes()).unwrap(),
        instance
    );
    let layers = [
        file(&base),
        env(&[
            ("BROKKR__WEBHOOKS__ALLOWED_NETWORKS", "10.0.0.0/8, fd00::/8"),
            ("BROKKR__WEBHOOKS__ALLOWED_PORTS", "443,80"),
        ]),
    ];
    let config = configured(&layers);
    assert_eq!(config.webhooks.allowed_networks.len(), 2);
    assert_eq!(config.webhooks.allowed_ports, [443, 80]);
    for bad in [
        "allowed_networks = [\"10.0.0.1/8\"]",
        "allowed_networks = [\"internal\"]",
        "allowed_networks = \"10.0.0.0/8\"",
        "allowed_ports = [0]",
        "allowed_ports = [70000]",
        "allowed_ports = [\"443\"]",
        "allowed_ports = 443",
    ] {
        let error = refused(&format!("{base}{bad}\n"));
        let key = bad.split(' ').next().unwrap();
        assert!(error.contains(&format!("webhooks.{key}")), "{bad}: {error}");
    }
}

/// Returns for each key a text other than its default.
fn another(name: &str) -> String {
    match name {
        "database.url" => "\"postgres://u@other/\"".into(),
        "database.schema" => "\"another\"".into(),
        "http.listen" => "\"127.0.0.1:9\"".into(),
        "log.level" => "\"warn\"".into(),
        "log.format" => "\"json\"".into(),
        "limits.memory_max" | "database.work_mem" | "database.temp_file_limit" => "\"7M\"".into(),
        "supervision.enabled" => "false".into(),
        "telemetry.enabled" | "telemetry.broker.enabled" => "true".into(),
        "broker.state_dir" => "\"/elsewhere\"".into(),
        "broker.target_state_default" => "\"incremental\"".into(),
        "broker.pak_hash" | "broker.webhook_encryption_key" => format!("\"{}\"", "cd".repeat(32)),
        name if name.ends_with("timeout") => "\"7s\"".into(),
        name if name.starts_with("cors.allowed") => "[\"X\"]".into(),
        "webhooks.allowed_networks" => "[\"10.0.0.0/8\"]".into(),
        "webhooks.allowed_ports" => "[443]".into(),
        name if name.ends_with("rate") => "0.5".into(),
        "pak.prefix" | "pak.short_token_prefix" => "\"other\"".into(),
        name if name.starts_with("telemetry.") => "\"other\"".into(),
        _ => "17".into(),
    }
}

/// Returns true for the keys that are valid only together and with their files; tests of their own have these.
fn needs_files(name: &str) -> bool {
    ["http.tls_cert", "http.tls_key"].contains(&name)
}

#[test]
fn the_digest_changes_with_every_single_key() {
    let base = format!("database.url = \"{URL}\"\n");
    let plain = alone(&base).config.digest();
    assert_eq!(plain.to_string().len(), 64);
    let mut seen = std::collections::BTreeSet::from([plain]);
    for key in settings::KEYS.list() {
        // These keys are ignored, set the URL in another way, or are overridden by a more specific key.
        if [
            "database.url_file",
            "pak.rng",
            "pak.digest",
            "telemetry.service_name",
        ]
        .contains(&key.name)
            || needs_files(key.name)
        {
            continue;
        }
        let text = match key.name {
            "database.url" => format!("database.url = {}\n", another(key.name)),
            name => format!("{base}{name} = {}\n", another(name)),
        };
        let digest = alone(&text).config.digest();
        let supervision = key.name.starts_with("supervision.");
        let overridden = key.name.starts_with("telemetry.broker.");
        assert!(
            seen.insert(digest) || overridden || supervision,
            "{} does not count",
            key.name
        );
        if supervision {
            assert_eq!(digest, plain, "{} is no broker's business", key.name);
        } else {
            assert_ne!(digest, plain, "{} does not count", key.name);
        }
    }
    assert_ne!(
        plain,
        alone(&base.replace("password", "passwore")).config.digest()
    );
}

#[test]
fn every_key_with_an_effect_is_named_when_its_value_is_another() {
    let base = format!("database.url = \"{URL}\"\n");
    let plain = alone(&base).config;
    assert_eq!(plain.differing(&plain), Vec::<&str>::new());
    for key in settings::KEYS.list() {
        let text = match key.name {
            "database.url" => format!("database.url = {}\n", another(key.name)),
            // This key sets the URL in another way.
            "database.url_file" => continue,
            name if needs_files(name) => continue,
            name => format!("{base}{name} = {}\n", another(name)),
        };
        let named = plain.differing(&alone(&text).config);
        let counts = key.effect && !key.name.starts_with("supervision.");
        assert_eq!(named.contains(&key.name), counts, "{}: {named:?}", key.name);
    }
    let secret = alone(&base.replace("password", "passwore")).config;
    assert_eq!(plain.differing(&secret), ["database.url"]);
}

proptest! {
    #[test]
    fn any_configuration_reads_back_from_its_json(
        schema in "t_[a-z0-9]{0,20}", pool in 2u32..=1000, port in 1u16.., ms in 100u64..3_000_000, rate in 0.0f64..=1.0,
        password in "[^\\pC]{1,12}", origins in proptest::collection::vec("[^\\pC\"\\\\]{0,9}", 0..3), weight in 1u32..=10000,
    ) {
        let text = format!("[limits]\ncpu_weight = {weight}\n[telemetry]\nsampling_rate = {rate:?}\n");
        let mut config = alone(&with_url(&text)).config;
        config.database.url = config.database.url.with_user("u", Some(crate::Secret::new(password)));
        config.database.schema = SchemaName::parse(&schema).unwrap();
        config.database.pool_size = crate::PoolSize::new(pool).unwrap();
        config.database.statement_timeout = Duration::from_millis(ms);
        config.http.listen = Listen::Tcp(([127, 0, 0, 1], port).into());
        config.cors.allowed_origins = origins;
        let instance = instance(config);
        prop_assert_eq!(InstanceConfig::from_json(instance.to_json().as_bytes()).unwrap(), instance);
    }
}

#[test]
fn the_sample_tenants_need_only_a_url_from_elsewhere() {
    let embedded = Layer::from_pairs("the embedded server", [("database.url", URL)]);
    for (name, port) in [("acme", 3001), ("globex", 3002)] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("../tenants.d/{name}.toml"));
        assert_eq!(TenantName::of_file(&path).unwrap().as_str(), name);
        let resolved = resolve(
            &[embedded.clone(), Layer::from_file(&path)],
            Mode::Supervised,
        )
        .unwrap();
        assert_eq!(
            resolved.config.database.schema.as_str(),
            format!("tenant_{name}")
        );
        assert_eq!(
            resolved.config.http.listen.to_string(),
            format!("127.0.0.1:{port}")
        );
        assert!(resolved.warnings.is_empty());
    }
}

#[test]
fn tls_files_are_read_as_a_pair_and_only_their_names_count_in_the_digest() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = dir.path().join("acme.toml");
    let http = |lines: &str| {
        let text = format!("[database]\nurl = \"{URL}\"\n[http]\n{lines}");
        std::fs::write(&tenant, text).unwrap();
    };
    let read = |mode| resolve(&[Layer::from_file(&tenant)], mode);
    let (cert, key) = (dir.path().join("a.pem"), dir.path().join("a.key"));

    http("tls_cert = \"a.pem\"\n");
    let alone = read(Mode::Alone).unwrap_err().to_string();
    assert!(
        alone.starts_with(&format!(
            "{}:4:1: `http.tls_cert` is there without `http.tls_key`",
            tenant.display()
        )) && alone.contains("write tls_key = "),
        "{alone}"
    );
    http("tls_cert = \"a.pem\"\ntls_key = \"a.key\"\n");
    let missing = read(Mode::Alone).unwrap_err();
    let text = missing.to_string();
    for (line, file) in [(4, &cert), (5, &key)] {
        let place = format!("{}:{line}:1: `http.tls_", tenant.display());
        assert!(text.contains(&place), "{text}");
        assert!(text.contains(&file.display().to_string()), "{text}");
    }
    assert_eq!(missing.files, [cert.clone(), key.clone()]);

    std::fs::write(&cert, include_str!("../tls/test-cert.pem")).unwrap();
    std::fs::write(&key, include_str!("../tls/test-other-key.pem")).unwrap();
    let mismatch = read(Mode::Alone).unwrap_err().to_string();
    assert!(mismatch.contains(":5:1: `http.tls_key`"), "{mismatch}");
    assert!(!mismatch.contains("BEGIN EC"), "{mismatch}");

    std::fs::write(&key, include_str!("../tls/test-key.pem")).unwrap();
    let resolved = read(Mode::Alone).unwrap();
    assert_eq!(resolved.files, [cert.clone(), key]);
    let config = resolved.config;
    let back = crate::BrokerConfig::from_json(&config.to_clear_json()).unwrap();
    assert_eq!(back, config);
    assert!(
        !serde_json::to_string(&config)
            .unwrap()
            .contains("PRIVATE KEY")
    );
    let text = format!("{}\n", include_str!("../tls/test-cert.pem"));
    std::fs::write(&cert, text).unwrap();
    let renewed = read(Mode::Alone).unwrap().config;
    assert_ne!(renewed, config);
    assert_eq!(renewed.digest(), config.digest());
    assert_eq!(config.differing(&renewed), [""; 0]);

    std::fs::remove_file(&cert).unwrap();
    let command = read(Mode::Command).unwrap().config.http.tls.unwrap();
    assert!(!command.pair.is_whole());
}
