//! Two tenants on one server see nothing of each other.

use brokkr_tests::{Addr, Host, http, says};
use serde_json::json;

#[test]
fn an_agent_of_one_tenant_is_not_in_the_other_and_paks_open_only_their_own() {
    let host = Host::new();
    let acme = host.tenant("acme").pool(10).up();
    let globex = host.tenant("globex").pool(10).up();

    let made = acme.api().create(
        "/agents",
        &json!({"name": "edge-1", "cluster_name": "berlin"}),
    );
    let id = made["agent"]["id"].as_str().unwrap().to_owned();
    let agent_pak = made["initial_pak"].as_str().unwrap().to_owned();

    assert!(acme.api().get("/agents").expect(200).text().contains(&id));
    assert!(!globex.api().get("/agents").expect(200).text().contains(&id));
    assert_eq!(globex.api().get(&format!("/agents/{id}")).status, 404);

    for (tenant, strangers_pak) in [
        (&globex, acme.pak()),
        (&acme, globex.pak()),
        (&globex, agent_pak.clone()),
    ] {
        tenant
            .api()
            .with_pak(strangers_pak)
            .get("/agents")
            .expect(401);
    }
    acme.api()
        .with_pak(agent_pak)
        .get(&format!("/agents/{id}"))
        .expect(200);

    // The server has the row in acme's table alone.
    let mut client = host.server().client();
    let count = |client: &mut postgres::Client, schema: &str| -> i64 {
        let ask = format!("SELECT count(*) FROM {schema}.agents WHERE name = 'edge-1'");
        client.query_one(&ask, &[]).unwrap().get(0)
    };
    assert_eq!(count(&mut client, "tenant_acme"), 1);
    assert_eq!(count(&mut client, "tenant_globex"), 0);
    let public: i64 = client
        .query_one(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(public, 0);
}

#[test]
fn a_stopped_supervisor_leaves_no_process_no_session_and_no_socket() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let unix = host.root().join("globex.sock");
    let globex = host
        .tenant("globex")
        .listen(&format!("unix:{}", unix.display()))
        .up();
    assert_eq!(acme.get("/healthz").text(), "OK");
    assert_eq!(
        http::get(&Addr::Unix(unix), "/healthz").unwrap().text(),
        "OK"
    );
    assert_eq!(globex.api().get("/agents").status, 200);
    let addr = acme.addr();

    assert_eq!(host.stop().code(), Some(0));
    assert_eq!(host.leftovers(), [""; 0]);
    assert_eq!(host.server().sessions_of_ours(), [""; 0]);
    assert!(http::get(&addr, "/healthz").is_err());
}

#[test]
fn the_admin_pak_of_the_first_start_is_kept_and_survives_every_later_start() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pak = acme.pak();
    assert!(pak.starts_with("brokkr_BR"), "{pak}");
    host.stop();
    host.up();
    let acme = host.known("acme").is_ready();
    assert_eq!(acme.pak(), pak);
    assert_eq!(acme.api().get("/agents").status, 200);
}

#[test]
fn a_supervisor_with_the_embedded_server_needs_nothing_else() {
    let host = Host::builder().embedded().build();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    acme.api().create(
        "/agents",
        &json!({"name": "edge-1", "cluster_name": "berlin"}),
    );
    assert!(
        !globex
            .api()
            .get("/agents")
            .expect(200)
            .text()
            .contains("edge-1")
    );

    // The server logs a name that is taken as an error too, but it is no failure.
    acme.api()
        .post(
            "/agents",
            &json!({"name": "edge-1", "cluster_name": "berlin"}),
        )
        .expect(409);

    host.stop();
    assert_eq!(host.leftovers(), [""; 0]);
    let log = host.log_lines();
    let of_it = |line: &&serde_json::Value| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("duplicate key value")
    };
    let said: Vec<_> = log.iter().filter(of_it).collect();
    assert!(!said.is_empty(), "{}", host.log());
    assert!(said.iter().all(|line| line["level"] == "INFO"), "{said:?}");
    host.up();
    let acme = host.known("acme").is_ready();
    assert!(
        acme.api()
            .get("/agents")
            .expect(200)
            .text()
            .contains("edge-1")
    );
}

#[test]
fn a_second_supervisor_on_the_same_runtime_folder_ends_at_once_and_says_why() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let second = host.command(&["run"]);
    assert!(matches!(second.code, Some(1 | 78)), "{second:?}");
    says(&second.stderr, &[&host.runtime_dir().display().to_string()]);
    assert_eq!(acme.pid(), pid);
    assert_eq!(acme.get("/healthz").status, 200);
}

#[test]
fn the_next_supervisor_waits_for_the_lock_of_a_dying_supervisor() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    host.kill();
    let lock = host.runtime_dir().join("supervisor.lock");
    let held = std::fs::File::open(lock).unwrap();
    held.try_lock().unwrap();
    // As long as the kernel may take to end a killed process.
    let dying = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(held);
    });
    host.up();
    dying.join().unwrap();
    assert_eq!(acme.becomes("ready").pid, Some(pid));
}
