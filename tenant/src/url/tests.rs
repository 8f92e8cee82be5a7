#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use proptest::prelude::*;

fn url(text: &str) -> DatabaseUrl {
    DatabaseUrl::parse(text).unwrap()
}

#[test]
fn the_parts_of_a_url_are_read_as_libpq_reads_them() {
    let u = url(
        "postgres://brokkr:p%40ss%3A@db.internal:5433/main?sslmode=verify-full&connect_timeout=4",
    );
    assert_eq!(u.host(), &Host::Tcp("db.internal".into()));
    assert_eq!((u.port(), u.user(), u.dbname()), (5433, "brokkr", "main"));
    assert_eq!(u.password().unwrap().expose(), "p@ss:");
    assert_eq!(u.ssl_mode(), SslMode::VerifyFull);
    assert_eq!(u.connect_timeout(), Some(Duration::from_secs(4)));
    let u = url("postgresql://a@[::1]/");
    assert_eq!(
        (u.host(), u.port(), u.dbname()),
        (&Host::Tcp("::1".into()), 5432, "a")
    );
    for unix in [
        "postgres://a@/db?host=/run/pg&port=6000",
        "postgres://a@%2Frun%2Fpg:6000/db",
        "postgres:///db?host=/run/pg&user=a&port=6000",
    ] {
        let u = url(unix);
        assert_eq!(
            (u.host(), u.port(), u.user(), u.dbname()),
            (&Host::Unix("/run/pg".into()), 6000, "a", "db")
        );
    }
}

#[test]
fn an_option_that_is_left_out_has_libpqs_default() {
    let u = url("postgres://");
    assert_eq!(
        (u.host(), u.port()),
        (&Host::Unix("/var/run/postgresql".into()), 5432)
    );
    assert_eq!(u.user(), u.dbname());
    assert!(!u.user().is_empty() && u.password().is_none());
    assert_eq!(u.ssl_mode(), SslMode::Prefer);
}

#[test]
fn the_password_is_in_no_printed_form() {
    let u = url("postgres://brokkr:hunter2@db/main");
    for shown in [
        format!("{u}"),
        format!("{u:?}"),
        u.redacted(),
        serde_json::to_string(&u).unwrap(),
    ] {
        assert!(
            !shown.contains("hunter2") && shown.contains("postgres://brokkr:***@db:5432/main"),
            "{shown}"
        );
    }
    assert_eq!(
        url("postgres://brokkr@db/main").to_string(),
        "postgres://brokkr@db:5432/main"
    );
}

#[test]
fn what_is_wrong_is_named_and_the_password_is_not() {
    for (bad, says) in [
        ("", "empty"),
        ("mysql://u:hunter2@h/d", "postgres://"),
        ("host=h password=hunter2", "keyword form"),
        ("postgres://u:hunter2@ss@h/d", "%40"),
        ("postgres://u:hunter2@a,b/d", "several hosts"),
        ("postgres://u:hunter2@a/d?host=a,b", "several hosts"),
        (
            "postgres://u:hunter2@a/d?options=-csearch_path%3Dx",
            "`options`",
        ),
        ("postgres://u:hunter2@a/d?sslcert=x", "sslcert"),
        ("postgres://u:hunter2@a/d?ssl_mode=require", "`sslmode`"),
        ("postgres://u:hunter2@a/d?sslmode=on", "sslmode"),
        (
            "postgres://u:hunter2@a/d?target_session_attrs=standby",
            "writes",
        ),
        (
            "postgres://u:hunter2@a/d?connect_timeout=x",
            "connect_timeout",
        ),
        ("postgres://u:hunter2%@a/d", "%25"),
        ("postgres://u:hunter2%00@a/d", "NUL"),
        ("postgres://u:hunter2%ff@a/d", "UTF-8"),
        ("postgres://u:hunter2@a:0/d", "port"),
        ("postgres://u:hunter2@a:99999/d", "port"),
        ("postgres://u:hunter2@a:+1/d", "port"),
        ("postgres://u:hun/ter2@a/d", "port"),
        ("postgres://u:hunter2@[::1/d", "bracket"),
        ("postgres://u:hunter2@[x]/d", "IPv6"),
        ("postgres://u:hunter2@::1/d", "brackets"),
        ("postgres://u:hunter2@a b/d", "host name"),
        ("postgres://u:hunter2@a/d?host=relative/dir", "absolute"),
        ("postgres://u:hunter2@a/d?x", "no value"),
        (
            "postgres://u:hunter2@a/d?sslrootcert=system&sslmode=require",
            "verify-full",
        ),
        ("postgres://u:hunter2@a/d\n", "control"),
    ] {
        let error = DatabaseUrl::parse(bad).unwrap_err().to_string();
        assert!(error.contains(says), "{bad:?}: {error}");
        assert!(!error.contains("hun"), "{error}");
    }
}

#[test]
fn a_relative_root_certificate_is_taken_from_the_folder_of_the_file() {
    let u = url("postgres://u@h/d?sslrootcert=ca.pem&sslmode=verify-ca")
        .within(Path::new("/etc/brokkr"));
    assert_eq!(u.ssl_root_cert(), Some(Path::new("/etc/brokkr/ca.pem")));
}

proptest! {
    #[test]
    fn no_text_panics(text in "(postgres://)?.*") {
        let _ = DatabaseUrl::parse(&text);
    }

    #[test]
    fn what_is_exposed_reads_back_as_the_same_url(
        user in "[^\\pC]{1,8}", password in proptest::option::of("[^\\pC]{1,8}"), host in "[a-z0-9.-]{1,8}|/[a-z/ ]{1,8}",
        port in 1..=u16::MAX, dbname in "[^\\pC]{1,8}", mode in 0..5usize, idle in 0..3u64, name in proptest::option::of("[^\\pC]{0,4}"),
    ) {
        let u = DatabaseUrl {
            host: if host.starts_with('/') { Host::Unix(host.into()) } else { Host::Tcp(host) },
            port, user, password: password.map(Secret::new), dbname,
            ssl_mode: [SslMode::Disable, SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull][mode],
            ssl_root_cert: None, ssl_client: None, channel_binding: None, application_name: name, connect_timeout: None,
            tcp_user_timeout: Some(Duration::from_millis(5)),
            keepalives: Keepalives { idle: Some(Duration::from_secs(idle + 1)), ..Keepalives::default() },
        };
        prop_assert_eq!(DatabaseUrl::parse(&u.expose()).unwrap(), u);
    }
}

#[test]
fn a_host_with_colons_is_an_ipv6_address_however_it_is_written() {
    for url in [
        "postgres://u@[::1]/d",
        "postgres://u@%3A%3A1/d",
        "postgres://u@/d?host=::1",
    ] {
        let parsed = DatabaseUrl::parse(url).unwrap();
        assert_eq!(
            DatabaseUrl::parse(&parsed.expose()).unwrap(),
            parsed,
            "{url}"
        );
    }
    for url in [
        "postgres://u@a%3Ab/d",
        "postgres://u@/d?host=fe80::1%25eth0",
    ] {
        let error = DatabaseUrl::parse(url).unwrap_err();
        assert!(error.message.contains("has a colon"), "{error:?}");
    }
}
