//! Connections to a real private server: over its Unix socket, over TCP, and with TLS in every mode.

mod server;

use crate::{Connector, Options, Reason, application_name, connect};
use brokkr_tenant::DatabaseUrl;
use server::Server;

fn url(text: &str) -> DatabaseUrl {
    DatabaseUrl::parse(text).unwrap()
}

fn options() -> Options {
    Options::new(application_name("acme"))
}

fn reason(text: &str) -> (Reason, String) {
    let error = match connect(&url(text), &options().read_write()) {
        Ok(_) => panic!("{text} was let in"),
        Err(error) => error,
    };
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    (error.reason(), shown)
}

fn encrypted(client: &mut postgres::Client) -> bool {
    client
        .query_one(
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
            &[],
        )
        .unwrap()
        .get(0)
}

#[test]
fn a_url_connects_as_itself_and_a_refusal_says_what_it_means() {
    let Some(server) = Server::start(None) else {
        return;
    };
    let (socket, port) = (server.socket.display().to_string(), server.port);
    let mut admin = connect(
        &url(&format!(
            "postgres://postgres@/postgres?host={socket}&port={port}"
        )),
        &options(),
    )
    .unwrap();
    let name: String = admin
        .query_one("SELECT current_setting('application_name')", &[])
        .unwrap()
        .get(0);
    assert_eq!(name, application_name("acme"));
    admin
        .batch_execute(
            "CREATE ROLE tight LOGIN PASSWORD 'p@ss:w/rd' CONNECTION LIMIT 1;
             CREATE ROLE reader LOGIN; ALTER ROLE reader SET default_transaction_read_only = on;",
        )
        .unwrap();

    // Runs alone, because several statements form a transaction, and this statement cannot run in a transaction.
    admin.batch_execute("CREATE DATABASE other").unwrap();

    let tcp = format!("postgres://tight:p%40ss%3Aw%2Frd@127.0.0.1:{port}/other?sslmode=disable");
    // Without TLS on the server, `prefer` connects without it and `require` fails.
    let first = connect(
        &url(&tcp.replace("sslmode=disable", "sslmode=prefer")),
        &options().read_write(),
    )
    .unwrap();
    assert_eq!(reason(&tcp).0, Reason::TooManyConnections);
    drop(first);
    let (why, shown) = reason(&tcp.replace("sslmode=disable", "sslmode=require"));
    assert_eq!(why, Reason::Tls, "{shown}");

    assert_eq!(
        reason(&format!("postgres://postgres@127.0.0.1:{port}/absent")).0,
        Reason::NoDatabase
    );
    assert_eq!(
        reason(&format!("postgres://tight:hunter2@127.0.0.1:{port}/other")).0,
        Reason::Denied
    );
    assert_eq!(
        reason(&format!("postgres://tight@127.0.0.1:{port}/other")).0,
        Reason::Denied
    );
    assert_eq!(
        reason(&format!("postgres://nobody:hunter2@127.0.0.1:{port}/other")).0,
        Reason::Denied
    );
    assert_eq!(
        reason(&format!(
            "postgres://reader@/postgres?host={socket}&port={port}"
        ))
        .0,
        Reason::ReadOnly
    );
    for nowhere in [
        "postgres://u:hunter2@127.0.0.1:1/d",
        "postgres://u:hunter2@host.invalid/d",
        "postgres://u:hunter2@/d?host=/nowhere",
    ] {
        let (why, shown) = reason(nowhere);
        assert_eq!(why, Reason::Unreachable, "{shown}");
    }
    // A Unix socket ignores sslmode.
    connect(
        &url(&format!(
            "postgres://postgres@/postgres?host={socket}&port={port}&sslmode=verify-full"
        )),
        &options(),
    )
    .unwrap();

    server.stop();
    assert_eq!(reason(&tcp).0, Reason::Unreachable);
}

#[test]
fn only_what_the_server_says_to_every_login_concerns_every_login() {
    let Some(server) = Server::start(None) else {
        return;
    };
    let at = |user: &str, database: &str| {
        let (socket, port) = (server.socket.display(), server.port);
        url(&format!(
            "postgres://{user}@/{database}?host={socket}&port={port}"
        ))
    };
    let admin = at("postgres", "postgres");
    connect(&admin, &options())
        .unwrap()
        .batch_execute("CREATE ROLE tight LOGIN CONNECTION LIMIT 0; CREATE ROLE plain LOGIN")
        .unwrap();
    for statement in [
        "CREATE DATABASE small",
        "ALTER DATABASE small CONNECTION LIMIT 0",
    ] {
        let mut client = connect(&admin, &options()).unwrap();
        client.batch_execute(statement).unwrap();
    }
    let refused = |url: &DatabaseUrl| match connect(url, &options()) {
        Ok(_) => panic!("{url:?} was let in"),
        Err(error) => error,
    };
    let mut own = vec![
        refused(&at("tight", "postgres")),
        refused(&at("plain", "small")),
    ];
    let mut all = Vec::new();
    while let Ok(client) = connect(&at("plain", "postgres"), &options()) {
        all.push(client);
    }
    // Only superusers still find a free connection.
    own.push(refused(&at("plain", "postgres")));
    for error in &own {
        assert_eq!(error.reason(), Reason::TooManyConnections, "{error}");
        assert!(!error.concerns_every_login(), "{error}");
    }
    while let Ok(client) = connect(&admin, &options()) {
        all.push(client);
    }
    for error in [refused(&admin), refused(&at("plain", "small"))] {
        assert_eq!(error.reason(), Reason::TooManyConnections, "{error}");
        assert!(error.concerns_every_login(), "{error}");
    }
}

#[test]
fn each_sslmode_accepts_what_libpq_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let Some(certs) = server::certificates(dir.path()) else {
        return;
    };
    let Some(server) = Server::start(Some(&certs)) else {
        return;
    };
    let port = server.port;
    let at = |host: &str, rest: &str| {
        url(&format!(
            "postgres://postgres@{host}:{port}/postgres?{rest}"
        ))
    };
    let (ca, stranger) = (certs.ca.display(), certs.stranger.display());

    for (host, rest, tls) in [
        ("127.0.0.1", "sslmode=disable".to_owned(), false),
        ("127.0.0.1", "sslmode=prefer".to_owned(), true),
        ("127.0.0.1", "sslmode=require".to_owned(), true),
        // The certificate is for `localhost`: the address does not match its name, but its chain is good.
        (
            "127.0.0.1",
            format!("sslmode=verify-ca&sslrootcert={ca}"),
            true,
        ),
        (
            "localhost",
            format!("sslmode=verify-full&sslrootcert={ca}"),
            true,
        ),
        // `require` does not verify, even when a root is given.
        (
            "127.0.0.1",
            format!("sslmode=require&sslrootcert={stranger}"),
            true,
        ),
    ] {
        let mut client = connect(&at(host, &rest), &options())
            .unwrap_or_else(|error| panic!("{host} {rest}: {error}"));
        assert_eq!(encrypted(&mut client), tls, "{host} {rest}");
    }
    for (host, rest) in [
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ca}")),
        (
            "127.0.0.1",
            format!("sslmode=verify-ca&sslrootcert={stranger}"),
        ),
        (
            "localhost",
            format!("sslmode=verify-full&sslrootcert={stranger}"),
        ),
        // The system's roots do not include the test's authority.
        ("localhost", "sslmode=verify-full".to_owned()),
        (
            "localhost",
            "sslmode=verify-ca&sslrootcert=/absent.pem".to_owned(),
        ),
    ] {
        let error = connect(&at(host, &rest), &options())
            .err()
            .unwrap_or_else(|| panic!("{host} {rest} was let in"));
        assert_eq!(error.reason(), Reason::Tls, "{error}");
    }

    // pg_hba.conf admits this role only without TLS: `prefer` falls back, as in libpq, and `require` fails.
    let mut admin = connect(&at("127.0.0.1", "sslmode=require"), &options()).unwrap();
    admin.batch_execute("CREATE ROLE plain LOGIN").unwrap();
    let plain = |mode: &str| {
        url(&format!(
            "postgres://plain@127.0.0.1:{port}/postgres?sslmode={mode}"
        ))
    };
    assert!(!encrypted(
        &mut connect(&plain("prefer"), &options()).unwrap()
    ));
    assert_eq!(
        connect(&plain("require"), &options())
            .err()
            .unwrap()
            .reason(),
        Reason::Denied
    );

    // pg_hba.conf admits this role by its certificate.
    admin.batch_execute("CREATE ROLE certified LOGIN").unwrap();
    let (cert, key) = (certs.client.0.display(), certs.client.1.display());
    let certified = |rest: &str| {
        url(&format!(
            "postgres://certified@127.0.0.1:{port}/postgres?sslmode=require{rest}"
        ))
    };
    let with_both = certified(&format!("&sslcert={cert}&sslkey={key}"));
    assert!(encrypted(&mut connect(&with_both, &options()).unwrap()));
    assert!(connect(&certified(""), &options()).is_err());
    for (rest, file) in [
        (format!("&sslcert={cert}&sslkey=/absent.key"), "/absent.key"),
        (format!("&sslcert={key}&sslkey={key}"), "sslcert"),
    ] {
        let error = connect(&certified(&rest), &options()).err().unwrap();
        assert_eq!(error.reason(), Reason::Tls, "{error}");
        assert!(error.to_string().contains(file), "{error}");
    }

    // One connector opens many connections.
    let connector = Connector::new(
        &at(
            "localhost",
            &format!("sslmode=verify-full&sslrootcert={ca}"),
        ),
        &options(),
    )
    .unwrap();
    let mut both = [connector.connect().unwrap(), connector.connect().unwrap()];
    assert!(both.iter_mut().all(encrypted));
}
