//! A new tenant that would take anything from running tenants is refused, with the place in its file and advice;
//! running tenants are unaffected.

mod commands;

use brokkr_tests::host::Status;
use brokkr_tests::{Host, PgServer, Tenant, pg, says};
use std::time::Duration;

/// Checks that `newcomer` is refused and that `runner` is still the same process. The reason must contain all of
/// `words` and begin with a place in the newcomer's file.
fn refused(newcomer: &Tenant<'_>, words: &[&str], runner: &Tenant<'_>, pid: i32) {
    let status = newcomer.becomes("refused");
    let reason = status.reason.unwrap();
    for word in words {
        assert!(reason.contains(word), "{word:?} is not in: {reason}");
    }
    let place = format!("{}:", newcomer.file().display());
    let rest = reason
        .strip_prefix(&place)
        .unwrap_or_else(|| panic!("does not begin with {place} {reason}"));
    let numbers: Vec<&str> = rest.splitn(3, ':').collect();
    assert!(
        numbers[0].parse::<u32>().is_ok() && numbers[1].parse::<u32>().is_ok(),
        "{reason}"
    );
    assert_eq!(status.pid, None);
    let running = runner.status();
    assert_eq!(
        (running.state.as_str(), running.pid, running.restarts),
        ("ready", Some(pid), 0)
    );
}

#[test]
fn fault_02_the_same_schema_in_another_case_is_taken() {
    let host = Host::new();
    let acme = host.tenant("acme").schema("tenant_acme").up();
    let pid = acme.pid();
    let copy = host.tenant("copycat").schema("Tenant_ACME").write();
    refused(&copy, &["tenant_acme", "acme"], &acme, pid);

    // A repaired file is admitted.
    host.tenant("copycat").schema("tenant_copycat").up();
    assert_eq!(acme.pid(), pid);
}

#[test]
fn the_same_schema_by_another_url_to_the_same_database_is_taken() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let url = host.server().unix_url("brokkr", "brokkr");
    let copy = host
        .tenant("copycat")
        .schema("tenant_acme")
        .url(&url)
        .write();
    refused(&copy, &["tenant_acme", "acme"], &acme, pid);

    // The same schema name in another database is another schema.
    host.server().database("second", "brokkr");
    host.tenant("copycat")
        .schema("tenant_acme")
        .url(&host.server().url("second", "brokkr"))
        .up();
}

#[test]
fn the_same_address_is_taken_also_by_every_address() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let listen = acme.addr().to_string();
    let copy = host.tenant("copycat").listen(&listen).write();
    refused(&copy, &[&listen, "acme"], &acme, pid);
    let every = listen.replace("127.0.0.1", "0.0.0.0");
    let copy = host.tenant("copycat").listen(&every).write();
    refused(&copy, &["acme"], &acme, pid);
    assert_eq!(acme.get("/healthz").status, 200);
}

#[test]
fn with_default_pools_on_a_default_server_the_second_tenant_is_refused_with_numbers_and_advice() {
    let host = Host::new();
    let acme = host.tenant("acme").unset("database.pool_size").up();
    let pid = acme.pid();
    assert_eq!(acme.status().pool_size, Some(50));
    let globex = host.tenant("globex").unset("database.pool_size").write();
    refused(
        &globex,
        &["50", "94", "pool_size", "max_connections"],
        &acme,
        pid,
    );

    // A smaller tenant after it is still admitted.
    let small = host.tenant("small").pool(5).up();
    let status = host.status();
    let server = &status.servers[0];
    assert_eq!(
        (
            server.max_connections,
            server.reserved,
            server.headroom,
            server.capacity,
            server.committed
        ),
        (Some(100), Some(3), Some(3), Some(94), 50 + 5 + 4)
    );
    assert_eq!(small.status().server.as_deref(), Some(server.id.as_str()));

    // `check` says the same in its table and reports a problem.
    let check = host.command(&["check"]);
    assert_eq!(check.code, Some(1), "{check:?}");
    let said = format!("{}{}", check.stdout, check.stderr);
    for word in ["globex", "94", "max_connections"] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
    // A pool that fits is admitted as soon as the file is written.
    globex.replace_file(&host.tenant("globex").pool(20).text());
    globex.becomes("ready");
    assert_eq!(acme.pid(), pid);
    assert_eq!(host.command(&["check"]).code, Some(0));
}

#[test]
fn an_admitted_tenant_keeps_its_place_over_a_restart_of_the_supervisor() {
    let host = Host::builder()
        .pg(pg::Options::new().max_connections(40))
        .build();
    // Capacity 34, of which 4 are for replacement, supervisor and command.
    let last_by_name = host.tenant("zulu").pool(20).up();
    host.stop();
    let first_by_name = host
        .tenant("alfa")
        .pool(20)
        .set("supervision.priority", "10")
        .write();
    host.up();
    last_by_name.becomes("ready");
    first_by_name.becomes("refused");

    // The place of a removed file is free.
    last_by_name.remove_file();
    first_by_name.becomes("ready");
    last_by_name.is_gone();
}

#[test]
fn a_pool_raised_beyond_the_budget_is_pending_and_the_old_one_runs_on() {
    let host = Host::builder()
        .pg(pg::Options::new().max_connections(40))
        .build();
    let acme = host.tenant("acme").pool(10).up();
    let globex = host.tenant("globex").pool(10).up();
    let pid = acme.pid();
    let wanted = host
        .tenant("acme")
        .listen(&acme.addr().to_string())
        .pool(25)
        .text();
    acme.replace_file(&wanted);
    let status = acme.wait("pending", |t| t.pending.is_some());
    assert_eq!(
        (status.state.as_str(), status.pid, status.pool_size),
        ("ready", Some(pid), Some(10))
    );
    let pending = status.pending.unwrap();
    assert!(pending.contains("25"), "{pending}");

    // The pending change takes the room as soon as there is some.
    globex.remove_file();
    let status = acme.wait("ready with 25", |t| {
        t.state == "ready" && t.pool_size == Some(25)
    });
    assert_ne!(status.pid, Some(pid));
    assert_eq!((status.pending, status.restarts), (None, 0));
}

#[test]
fn files_that_are_no_tenant_files_are_named_and_affect_no_tenant() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let folder = host.tenants_dir();
    std::fs::create_dir(folder.join("folder.toml")).unwrap();
    std::os::unix::fs::symlink("/nowhere", folder.join("dangling.toml")).unwrap();
    std::fs::write(folder.join("latin1.toml"), b"[log]\nlevel = \"caf\xe9\"\n").unwrap();
    std::fs::write(folder.join("empty.toml"), "").unwrap();
    std::fs::write(folder.join("huge.toml"), vec![b'#'; 10 << 20]).unwrap();
    std::fs::write(
        folder.join("typo.toml"),
        "[database]\nschemma = \"tenant_typo\"\n",
    )
    .unwrap();
    // Files that are not tenants.
    std::fs::write(folder.join(".hidden.toml"), "nonsense").unwrap();
    std::fs::write(folder.join("acme.toml~"), "nonsense").unwrap();
    for name in ["folder", "dangling", "latin1", "empty", "huge", "typo"] {
        let reason = host.known(name).becomes("refused").reason.unwrap();
        assert!(reason.contains(&format!("{name}.toml")), "{reason}");
    }
    let reason = host.known("typo").status().reason.unwrap();
    says(&reason, &["typo.toml:2:1: ", "schemma", "schema"]);
    assert_eq!(host.status().tenants.len(), 7);
    assert_eq!(acme.pid(), pid);
    let check = host.command(&["check"]);
    assert_eq!(check.code, Some(1));
}

#[test]
fn a_crash_hands_neither_schema_nor_address_to_a_tenant_that_wants_them() {
    let host = Host::new();
    let acme = host.tenant("acme").pool(8).up();
    let globex = host.tenant("globex").pool(8).up();
    let before = globex.pid();
    let address = acme.status().listen.unwrap();
    for (key, theirs, ours) in [
        (
            "schema",
            "\"tenant_acme\"".to_owned(),
            "\"tenant_globex\"".to_owned(),
        ),
        (
            "listen",
            format!("\"{address}\""),
            format!("\"{}\"", globex.status().listen.unwrap()),
        ),
    ] {
        let file = globex.read_file();
        assert!(file.contains(&ours), "{key}: {file}");
        globex.replace_file(&file.replace(&ours, &theirs));
        globex.wait("pending", |t| {
            t.pending
                .as_ref()
                .is_some_and(|why| why.contains("taken: tenant acme"))
        });
        for _ in 0..3 {
            let old = acme.pid();
            acme.signal(nix::sys::signal::Signal::SIGKILL);
            acme.wait("another instance of its own", |t| {
                assert_ne!(t.state, "refused", "{:?}", t.reason);
                t.state == "ready" && t.pid.is_some_and(|pid| pid != old)
            });
        }
        assert_eq!(globex.pid(), before, "the {key} was not given away");
        // A new start of the supervisor does not either: acme runs, and globex is refused with the reason.
        if key == "listen" {
            assert!(host.stop().success());
            host.up();
            acme.becomes("ready");
            let reason = globex.becomes("refused").reason.unwrap();
            assert!(reason.contains("taken: tenant acme"), "{reason}");
        }
        globex.replace_file(&file);
        globex.wait("as before", |t| t.state == "ready" && t.pending.is_none());
    }
}

#[test]
fn check_counts_a_tenant_that_runs_on_though_its_file_has_gone_bad() {
    let host = Host::new();
    let acme = host.tenant("acme").pool(50).up();
    let pid = acme.pid();
    host.tenant("globex").pool(5).up();
    acme.write_file("[database]\npool_size = \"ten\"\n");
    acme.wait("shown to be bad", |t| t.pending.is_some());
    host.tenant("new").pool(50).write();
    host.known("new").becomes("refused");

    let check = host.command(&["check"]);
    let said = format!("{}{}", check.stdout, check.stderr);
    assert_eq!(check.code, Some(1), "{said}");
    let acme_said = "acme: its file is bad; it runs on with what it had, and that is counted";
    for words in [acme_said, "refused: over budget", "over budget: tenant new"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let pools = check.stdout.lines().find(|l| l.trim().starts_with("pools"));
    assert!(pools.is_some_and(|l| l.ends_with(" 105")), "{said}");
    assert_eq!(acme.pid(), pid);

    // Without a supervisor it is unknown whether the tenant runs.
    host.known("new").remove_file();
    host.stop();
    let check = host.command(&["check"]);
    let words = "no supervisor says whether it runs, and its pool is not counted";
    assert!(check.stdout.contains(words), "{check:?}");
}

#[test]
fn a_tenant_moved_to_a_full_server_without_a_supervisor_is_refused_and_keeps_its_place() {
    // The tests' servers are copies of one another; two of different origin are needed here.
    let host = Host::builder()
        .embedded()
        .set("postgres.max_connections", "100")
        .build();
    let other = PgServer::start();
    let url = other.url("brokkr", "brokkr");
    let acme = host.tenant("acme").pool(20).up();
    let globex = host.tenant("globex").pool(90).url(&url).up();
    assert!(host.stop().success());
    let good = acme.read_file();
    host.tenant("acme").pool(5).url(&url).write();
    host.up();
    let reason = acme.becomes("refused").reason.unwrap();
    says(
        &reason,
        &["over budget: tenant acme needs 5 and 4 more of 94"],
    );
    globex.becomes("ready");
    // The tenant's place is kept.
    let hopeful = host.tenant("hopeful").pool(75).write();
    let reason = hopeful.becomes("refused").reason.unwrap();
    assert!(reason.contains("70 are free"), "{reason}");
    acme.replace_file(&good);
    acme.becomes("ready");
}

#[test]
fn a_tenant_without_descriptors_blocks_no_other_and_gets_those_of_a_stopped_tenant() {
    // Without a server no tenant has a process, whose end would be one more reason to look again.
    let host = Host::builder().server_down().build();
    // Enough for two tenants: twelve for each, after the supervisor's own.
    host.under(&["prlimit", "--nofile=152:152"]);
    for name in ["t1", "t2", "t3", "t4"] {
        let schema = if name == "t4" {
            "tenant_t3"
        } else {
            &format!("tenant_{name}")
        };
        host.tenant(name).schema(schema).write();
    }
    host.up();
    let bound = Duration::from_secs(30);
    let refused = |s: &Status, name: &str| {
        let reason = s
            .tenant(name)
            .and_then(|t| t.reason.clone())
            .unwrap_or_default();
        s.state(name) == "refused" && reason.contains("out of descriptors")
    };
    host.wait(bound, "two to be refused for one reason", |s| {
        refused(s, "t3") && refused(s, "t4") && s.state("t2") == "waiting"
    });
    host.command(&["stop", "t2"]).ok();
    host.wait(bound, "the next to take its place", |s| {
        s.state("t3") == "waiting" && s.state("t1") == "waiting"
    });
}
