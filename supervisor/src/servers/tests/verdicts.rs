//! A failure of one URL is not a failure of another.

use super::*;

/// Creates roles and databases of these names; each role owns its database.
fn tenants(server: &PgServer, names: &[&str]) -> Vec<String> {
    for name in names {
        server.role(name, "");
        server.database(name, name);
    }
    names.iter().map(|name| server.url(name, name)).collect()
}

fn probers_of(urls: &[String]) -> Servers {
    probers(&urls.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Polls for a change that wakes no reader, such as a new count.
fn poll(servers: &Servers, what: &str, is: impl Fn(&ServersView) -> bool) -> Arc<ServersView> {
    let view = servers.view();
    brokkr_tests::wait::until(Duration::from_secs(20), what, || {
        Some(view.borrow().clone()).filter(|view| is(view))
    })
}

fn all_judged(view: &ServersView, urls: &[String]) -> bool {
    urls.iter()
        .all(|url| *view.endpoint(&url_of(url)) != Endpoint::Unknown)
}

#[test]
fn a_limit_of_one_role_or_database_concerns_no_other_and_needs_no_language() {
    // A message in another language would have other words but the same function name.
    let server = PgServer::start();
    let urls = tenants(&server, &["a", "b", "c", "d"]);
    server.sql("ALTER ROLE b CONNECTION LIMIT 2; ALTER DATABASE c CONNECTION LIMIT 2");
    let _taken = [
        server.client_as("b", "b"),
        server.client_as("b", "b"),
        server.client_as("c", "c"),
        server.client_as("c", "c"),
    ];
    let servers = probers_of(&urls);
    let (view, _) = wait(&servers, "judged", |view| all_judged(view, &urls));
    assert!(
        ready(&view, &urls[0]) && ready(&view, &urls[3]),
        "{view:#?}"
    );
    for (url, of) in [(&urls[1], "role \"b\""), (&urls[2], "database \"c\"")] {
        let why = problem(&view, url);
        assert!(why.contains("53300") && why.contains(of), "{why}");
    }
    drop(_taken);
    let (_, took) = wait(&servers, "all ready", |view| {
        urls.iter().all(|url| ready(view, url))
    });
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Every kind of failure that a single role, database or URL may have.
#[test]
fn every_kind_of_trouble_stays_with_its_url() {
    let hba = "local all postgres trust\nhost all nobody 127.0.0.1/32 reject\n\
               host all secret 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
    let server = PgServer::with(Options::new().hba(hba));
    let names = [
        "brief", "idle", "locked", "nologin", "expired", "nobody", "secret", "frozen", "path",
        "closed", "latin", "good", "pipe",
    ];
    for name in &names[..12] {
        server.role(name, "");
        if *name != "latin" {
            server.database(name, name);
        }
    }
    server.sql("CREATE DATABASE latin OWNER latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    server.sql(
        "ALTER ROLE brief SET statement_timeout = '1ms'; \
         ALTER ROLE idle SET idle_session_timeout = '300ms'; \
         ALTER ROLE nologin NOLOGIN; \
         ALTER ROLE expired PASSWORD 'x' VALID UNTIL '2001-01-01'; \
         ALTER ROLE secret PASSWORD 'right'; \
         ALTER ROLE frozen SET default_transaction_read_only = on; \
         ALTER ROLE path SET search_path = path, pg_catalog; \
         ALTER DATABASE closed ALLOW_CONNECTIONS false",
    );
    // A role whose own functions stand before the server's in its `search_path`.
    server
        .client_as("path", "postgres")
        .batch_execute(
            "CREATE SCHEMA path AUTHORIZATION path; \
             CREATE FUNCTION path.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'; \
             CREATE FUNCTION path.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT ''7'''",
        )
        .unwrap();
    let mut urls: Vec<String> = names[..12].iter().map(|n| server.url(n, n)).collect();
    let refused = ["nologin", "nobody", "secret", "frozen", "closed", "latin"];
    let roots = tempfile::tempdir().unwrap();
    let pipe = roots.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    urls.push(format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        server.url("good", "good"),
        pipe.display()
    ));
    let servers = probers_of(&urls);
    let (view, took) = wait(&servers, "judged", |view| all_judged(view, &urls));
    assert!(took < Duration::from_secs(10), "{took:?}");
    for (name, url) in names.iter().zip(&urls) {
        let why = problem(&view, url);
        let good = !refused.contains(name) && *name != "pipe";
        assert_eq!(ready(&view, url), good, "{name}: {why}");
    }
    let why = |name: &str| problem(&view, &urls[names.iter().position(|n| *n == name).unwrap()]);
    assert_eq!(
        why("latin"),
        "database \"latin\" has encoding LATIN1; Brokkr needs UTF8: create it with ENCODING 'UTF8' TEMPLATE template0"
    );
    assert!(why("frozen").contains("read-only"), "{}", why("frozen"));
    assert!(why("pipe").contains("no regular file"), "{}", why("pipe"));
    assert_eq!(view.servers.len(), 1);
    let (id, seen) = view.servers.iter().next().unwrap();
    assert_eq!(seen.facts.max_connections, 100, "{seen:#?}");
    // The server stays up, for any URL that the probe may use.
    let since = seen.since;
    let id = id.clone();
    let until = Instant::now() + Duration::from_secs(2);
    let view = poll(&servers, "probed a few times", |view| {
        view.servers[&id].sampled > until || !view.servers[&id].up
    });
    assert_eq!(
        (view.servers[&id].up, view.servers[&id].since),
        (true, since)
    );
}

#[test]
fn a_lost_probe_is_another_urls_to_replace_and_no_server_that_has_gone() {
    let server = PgServer::start();
    let urls = tenants(&server, &["a", "b", "c"]);
    let servers = probers_of(&urls);
    let (view, _) = wait(&servers, "ready", |view| {
        urls.iter().all(|url| ready(view, url))
    });
    let (id, seen) = view.servers.iter().next().unwrap();
    let own = seen.facts.own.clone().unwrap();
    let since = seen.since;
    // Dropping the database ends its sessions, the probe's among them.
    let mut watching = servers.view();
    let down = std::thread::spawn({
        let id = id.clone();
        let others: Vec<String> = urls
            .iter()
            .filter(|url| !url.ends_with(&format!("/{}", own.role)))
            .cloned()
            .collect();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            let gone = watching.wait_for(|view| {
                !view.servers[&id].up || !others.iter().all(|url| ready(view, url))
            });
            runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(3), gone)
                    .await
                    .is_ok()
            })
        }
    });
    server
        .client_as("postgres", "postgres")
        .batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", own.role))
        .unwrap();
    let lost = server.url(&own.role, &own.role);
    let (view, _) = wait(&servers, "the one without a database is refused", |view| {
        matches!(view.endpoint(&url_of(&lost)), Endpoint::Refused { .. })
            && view.servers[id].facts.own != Some(own.clone())
    });
    assert_eq!(view.servers[id].since, since);
    assert!(!down.join().unwrap(), "the server was taken to be down");
}

/// A proxy answers knocks and passes logins on, but lets logins of some roles hang.
#[test]
fn a_hundred_logins_that_hang_do_not_hold_up_the_one_that_works() {
    let server = PgServer::start();
    let (port, to) = (brokkr_tests::ports::free(), server.port());
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            std::thread::spawn(move || pass_on_or_hang(stream, to));
        }
    });
    let at = |user: &str| format!("postgres://{user}@127.0.0.1:{port}/brokkr");
    // This name sorts after all others.
    let good = at("zgood");
    server.role("zgood", "");
    let mut urls: Vec<String> = (0..100).map(|n| at(&format!("hang{n:03}"))).collect();
    urls.push(good.clone());
    let servers = probers_of(&urls);
    let (_, took) = wait(&servers, "the good one is ready", |view| ready(view, &good));
    assert!(took < Duration::from_secs(12), "{took:?}");
    let (view, took) = wait(&servers, "judged", |view| all_judged(view, &urls));
    assert!(took < Duration::from_secs(12), "{took:?}");
    assert!(ready(&view, &good));
    assert!(problem(&view, &urls[0]).contains("took longer than 2 s"));
}

fn pass_on_or_hang(mut client: std::net::TcpStream, to: u16) {
    use std::io::Read;
    let mut first = [0; 8];
    while client.read_exact(&mut first).is_ok() {
        if first[4..] == [0x04, 0xd2, 0x16, 0x2f] {
            client.write_all(b"N").unwrap();
            continue;
        }
        let length = u32::from_be_bytes(first[..4].try_into().unwrap()) as usize;
        let mut rest = vec![0; length - 8];
        client.read_exact(&mut rest).unwrap();
        if rest.windows(4).any(|word| word == b"hang") {
            // Waits until the client gives up.
            let _ = client.read(&mut [0]);
            return;
        }
        let mut server = std::net::TcpStream::connect(("127.0.0.1", to)).unwrap();
        server.write_all(&first).unwrap();
        server.write_all(&rest).unwrap();
        let (mut back, mut there) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let answers = std::thread::spawn(move || std::io::copy(&mut back, &mut there));
        let _ = std::io::copy(&mut client, &mut server);
        let _ = server.shutdown(std::net::Shutdown::Both);
        let _ = answers.join();
        return;
    }
}

#[test]
fn a_full_server_refuses_every_url_and_accepts_all_once_it_has_room() {
    let server = PgServer::with(Options::new().max_connections(20));
    let urls = tenants(&server, &["a", "b", "c"]);
    let mut all: Vec<postgres::Client> = (0..17)
        .map(|_| server.client_as("postgres", "brokkr"))
        .collect();
    let servers = probers_of(&urls);
    let (view, _) = wait(&servers, "judged", |view| all_judged(view, &urls));
    for url in &urls {
        assert!(problem(&view, url).contains("53300"), "{view:#?}");
    }
    // Takes the superuser's connections too; then the failure concerns the whole address.
    while let Ok(one) = server.try_client("postgres", "postgres") {
        all.push(one);
    }
    wait(&servers, "too many clients", |view| {
        urls.iter()
            .all(|url| problem(view, url).contains("too many clients"))
    });
    drop(all);
    let (_, took) = wait(&servers, "ready", |view| {
        urls.iter().all(|url| ready(view, url))
    });
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn an_address_that_one_url_has_identified_is_that_server_for_every_url() {
    for started in ["", ", pg_postmaster_start_time()"] {
        let server = PgServer::start();
        let urls = tenants(&server, &["a", "c"]);
        for database in ["a", "c"] {
            server
                .client_as(database, "postgres")
                .batch_execute(&format!(
                    "REVOKE EXECUTE ON FUNCTION pg_control_system(){started} FROM PUBLIC; \
                     GRANT EXECUTE ON FUNCTION pg_control_system(){started} TO a"
                ))
                .unwrap();
        }
        let place = |view: &ServersView, n: usize| {
            let endpoint = view.endpoint(&url_of(&urls[n]));
            endpoint.place().unwrap().server.clone()
        };
        // First both URLs at once; below the identifying URL comes later.
        let servers = probers_of(&urls);
        let (view, _) = wait(&servers, "ready", |view| {
            urls.iter().all(|url| ready(view, url))
        });
        assert_eq!(view.servers.len(), 1, "{view:#?}");
        assert_eq!(place(&view, 0), place(&view, 1));
        assert!(view.servers[&place(&view, 0)].warnings.is_empty());
        let alone = probers_of(&urls[1..]);
        let (view, _) = wait(&alone, "ready", |view| ready(view, &urls[1]));
        let address = place(&view, 1);
        assert_eq!(address.as_str(), format!("127.0.0.1:{}", server.port()));
        alone.want(wanted(&urls));
        let (view, _) = wait(&alone, "ready", |view| {
            urls.iter().all(|url| ready(view, url))
        });
        assert_eq!(view.servers.len(), 1, "{view:#?}");
        assert_eq!(view.aliases[&address], place(&view, 1));
        // After a restart the URL that may not read the identity may be the first to get an answer.
        let before = place(&view, 1);
        let restarted = Instant::now();
        server.restart();
        let view = poll(&alone, "ready again", |view| {
            let up = urls.iter().all(|url| ready(view, url));
            up && view.servers.values().all(|seen| seen.since > restarted)
        });
        assert_eq!((view.servers.len(), place(&view, 1)), (1, before));
    }
}
