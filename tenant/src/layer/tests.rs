#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
use super::*;
use proptest::prelude::*;

fn layer(text: &str) -> Layer {
    Layer::from_source(Source::new("t/acme.toml", text), &settings::KEYS)
}

fn first(text: &str) -> String {
    layer(text).problems().list[0].to_string()
}

/// Mistakes: the text with `\n` for a line end, the place, what the message says, and what its hint says.
const MISTAKES: &str = r#"
[database]\nshema = "x" => 2:1 => unknown key `shema` in [database] => `schema`
[datbase]\nschema = "x" => 1:2 => unknown section `datbase` => `database`
url = "postgres://u@h/d" => 1:1 => unknown key `url` => [database]
[http]\n  schema = "x" => 2:3 => unknown key `schema` in [http] => [database]
[database]\nschema = 5 => 2:1 => must be a text in quotes, not a whole number => tenant_acme
[database]\nschema = "tenant-acme" => 2:1 => holds `-` => tenant_acme
[database]\npool_size = "10" => 2:1 => must be a whole number, not a text => 10
[database]\npool_size = 1 => 2:1 => not possible => 2 to 1000
[database]\npool_size = -1 => 2:1 => out of range => 2 to 1000
[database]\npool_size = 99999999999999999999 => 2:1 => not possible|out of range|not TOML => 1000
[database]\nacquire_timeout = 5 => 2:1 => a duration with its unit => "5s"
[database]\nacquire_timeout = "5" => 2:1 => unit is missing => 500ms
[database]\nacquire_timeout = "9h" => 2:1 => out of range => 10m
[limits]\nmemory_max = "lots" => 2:1 => not a size => 256M
[limits]\nmemory_max = 256 => 2:1 => a size with its unit => 256M
[http]\nlisten = "localhost:3000" => 2:1 => host names => 127.0.0.1:3000
[http]\nlisten = [] => 2:1 => not a list => 127.0.0.1
[log]\nlevel = "loud" => 2:1 => `loud` => error, warn, info
[supervision]\nenabled = "yes" => 2:1 => must be true or false, not a text => true
[cors]\nallowed_origins = "a" => 2:1 => must be a list => [
[cors]\nallowed_origins = [1] => 2:1 => one of them is a whole number =>
database = 5 => 1:1 => is a section => [database]
[database.url]\nx = 1 => 1:11 => must be a value, not a section => `url = …`
[database]\nschema = "a"\nschema = "b" => 3:1 => twice => keep one
[database]\n[database] => 2:2 => twice => keep one
[database]\nschema = x => 2:10 => not TOML =>
[database\nschema = "x" => 1:10 => not TOML =>
[database]\nschema = "x => 2: => not TOML =>
[pak]\nprefix = "a_b" => 2:1 => without an underscore => brokkr
"database.schema" = "x" => 1:1 => unknown key `database.schema` => schema
"#;

#[test]
fn every_kind_of_mistake_shows_its_line_and_what_to_write_instead() {
    for row in MISTAKES.trim().lines() {
        let [text, place, says, hint] = row.split(" =>").collect::<Vec<_>>()[..] else {
            panic!("{row}");
        };
        let text = format!("{}\n", text.replace("\\n", "\n"));
        let (place, says, hint) = (place.trim(), says.trim(), hint.trim());
        let shown = first(&text);
        assert!(
            shown.starts_with(&format!("t/acme.toml:{place}")),
            "{text}{shown}"
        );
        assert!(
            says.split('|').any(|says| shown.contains(says)),
            "{text}{shown}"
        );
        let line: usize = place.split(':').next().unwrap().parse().unwrap();
        assert!(
            shown.contains(&format!("{line} | ")) && shown.contains('^'),
            "{shown}"
        );
        if !hint.is_empty() && !shown.contains("not TOML") {
            assert!(
                shown.lines().last().unwrap().starts_with("hint: ") && shown.contains(hint),
                "{shown}"
            );
        }
    }
}

#[test]
fn the_whole_of_a_diagnostic_reads_like_this() {
    assert_eq!(
        first("[database]\n\tshema = \"tenant_acme\"\n"),
        "t/acme.toml:2:2: unknown key `shema` in [database]\n  |\n2 |     shema = \"tenant_acme\"\n  |     ^^^^^\nhint: did you mean `schema`?"
    );
}

#[test]
fn all_problems_of_a_file_are_said_in_its_order() {
    let layer = layer(
        "x = 1\n[database]\nschema = \"a-b\"\nschema = \"c\"\n[http]\nlisten = 5\nport = 3\n[limits]\ncpu_weight = 0\n",
    );
    let lines: Vec<usize> = layer
        .problems()
        .iter()
        .map(|problem| problem.line)
        .collect();
    assert_eq!(lines, [1, 3, 4, 6, 7, 9], "{}", layer.problems());
}

#[test]
fn a_password_is_not_shown_with_the_line_it_stands_in() {
    for text in [
        "[database]\nurl = \"postgres://u:hunter2@h:x/d\"\n",
        "[database]\nurl = \"mysql://u:hunter2@h/d\"\n",
        "[database]\nurl = \"postgres://u:hunter2@h/d\n",
        "[database]\nulr = \"postgres://u:hunter2@h/d\"\n",
        "[database]\nurl = postgres://u:hunter2@h/d\n",
        "[broker]\npak_hash = \"hunter2\"\n",
        "[broker]\nwebhook_encryption_key = hunter2\n",
        "[database]\nurl = \"\"\"\npostgres://u:hunter2@h/d\n\"\"\" x\n",
    ] {
        let layer = layer(text);
        assert!(layer.problems().has_errors(), "{text}");
        assert!(
            !format!("{} {layer:?}", layer.problems()).contains("hunter2"),
            "{}",
            layer.problems()
        );
    }
}

#[test]
fn what_has_no_effect_gets_one_warning_and_another_programs_section_one() {
    let layer = layer(
        "[agent]\na = 1\nb = 2\n[agent.x]\ny = 1\n[limits]\npids_max = 5\n[telemetry]\nenabled = true\n[pak]\nrng = \"osrng\"\ndigest = 8\n",
    );
    let shown: Vec<String> = layer.problems().iter().map(Diagnostic::headline).collect();
    assert_eq!(
        shown,
        [
            "t/acme.toml:1:2: warning: settings of another program, not used here: agent",
            "t/acme.toml:9:1: warning: known but without effect yet: telemetry.enabled, pak.rng, pak.digest",
        ]
    );
}

#[test]
fn the_environment_is_read_by_the_same_table() {
    let env = |pairs: &[(&str, &str)]| {
        Layer::from_env(
            pairs
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        )
    };
    let layer = env(&[
        ("BROKKR__DATABASE__SCHEMA", "Tenant_Acme"),
        ("BROKKR__DATABASE__POOL_SIZE", "7"),
        ("BROKKR__CORS__ALLOWED_ORIGINS", "http://a, http://b"),
        ("BROKKR__SUPERVISION__ENABLED", "false"),
        ("BROKKR_CONFIG_FILE", "x"),
        ("PATH", "/bin"),
    ]);
    assert!(layer.problems().is_empty(), "{}", layer.problems());
    assert_eq!(
        layer.get("database.schema"),
        Some(&Value::Schema(
            crate::SchemaName::parse("tenant_acme").unwrap()
        ))
    );
    assert_eq!(
        layer.get("cors.allowed_origins"),
        Some(&Value::List(vec!["http://a".into(), "http://b".into()]))
    );
    let layer = env(&[
        ("BROKKR__DATABASE__SHEMA", "x"),
        ("BROKKR__AGENT__PAK", "hunter2"),
        ("BROKKR__DATABASE__POOL_SIZE", "x"),
    ]);
    let shown = layer.problems().to_string();
    assert!(
        shown.contains("BROKKR__DATABASE__SHEMA: warning: unknown variable")
            && shown.contains("BROKKR__DATABASE__SCHEMA?")
    );
    assert!(shown.contains("BROKKR__AGENT__PAK: warning") && !shown.contains("hunter2"));
    assert_eq!(layer.problems().errors().count(), 1);
}

#[test]
fn the_supervisors_file_gives_its_tenants_a_layer_of_defaults() {
    static OWN: Keys = Keys::new(&[crate::Key::new("tenants_dir", crate::Kind::Path, None)])
        .with_nested("defaults", &settings::KEYS);
    let text = "tenants_dir = \"tenants.d\"\n[defaults.database]\nschema = \"x\"\nshema = 1\n[defaults.agent]\na = 1\n[database]\n";
    let layer = Layer::from_source(Source::new("/etc/brokkr/supervisor.toml", text), &OWN);
    assert_eq!(
        layer.get("tenants_dir"),
        Some(&Value::Path("/etc/brokkr/tenants.d".into()))
    );
    let shown: Vec<String> = layer
        .problems()
        .iter()
        .map(|d| format!("{} {}", d.headline(), d.hint.as_deref().unwrap_or_default()))
        .collect();
    assert_eq!(shown.len(), 3, "{shown:?}");
    assert!(
        shown[0].contains("unknown key `shema` in [defaults.database] did you mean `schema`?"),
        "{shown:?}"
    );
    assert!(shown[1].contains("another program"), "{shown:?}");
    assert!(
        shown[2].contains("unknown section `database`") && shown[2].contains("`defaults.database`"),
        "{shown:?}"
    );
    let defaults = layer.under("defaults");
    assert_eq!(
        defaults.origin("database.schema").unwrap().to_string(),
        "/etc/brokkr/supervisor.toml:3:1"
    );
    assert!(defaults.problems().is_empty());
}

proptest! {
    #[test]
    fn no_text_panics_and_every_problem_can_be_shown(text in "(?s)(\\[(database|http|limits)\\]\n)?((schema|url|listen|x) ?= ?(\"[^\"]*\"|[0-9]{1,25}|\\[[0-9,]*\\]|\\PC*)\n)*.{0,20}") {
        for problem in layer(&text).problems() {
            prop_assert!(problem.to_string().starts_with("t/acme.toml:"));
        }
    }
}
