//! PAKs and passwords appear only where they must.

use brokkr_tests::{Host, pg, procs};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

const PASSWORD: &str = "Corr3ct-Horse-Battery";

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}

fn holds(bytes: &[u8], secret: &str) -> bool {
    bytes
        .windows(secret.len())
        .any(|window| window == secret.as_bytes())
}

#[test]
fn paks_and_passwords_are_in_no_environment_argument_log_status_or_file_but_admin_pak() {
    let host = Host::builder().pg(pg::Options::new().hba(
        "local all all scram-sha-256\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
    )).build();
    let server = host.server();
    server.sql(&format!("ALTER ROLE brokkr PASSWORD '{PASSWORD}'"));
    let url = |password: &str| {
        format!(
            "postgres://brokkr:{password}@127.0.0.1:{}/brokkr",
            server.port()
        )
    };
    let acme = host
        .tenant("acme")
        .url(&url(PASSWORD))
        .set("log.level", "\"trace\"")
        .up();
    let globex = host
        .tenant("globex")
        .url(&url(PASSWORD))
        .set("log.level", "\"debug\"")
        .up();
    let made = acme.api().create(
        "/agents",
        &json!({"name": "edge-1", "cluster_name": "berlin"}),
    );
    let agent_pak = made["initial_pak"].as_str().unwrap().to_owned();
    let agent = acme.api().with_pak(&agent_pak);
    let id = made["agent"]["id"].as_str().unwrap();
    agent.post(&format!("/agents/{id}/heartbeat"), &json!({}));
    // A wrong password or PAK is secret too, because it may be right elsewhere.
    let wrong_pak = format!("{}x", acme.pak());
    assert_eq!(acme.api().with_pak(&wrong_pak).get("/agents").status, 401);
    let wrong_password = "Wrong-Horse-Battery";
    let locked_out = host.tenant("lockedout").url(&url(wrong_password)).write();
    let status = locked_out.wait("shown to be locked out", |t| {
        t.reason.is_some() && t.pid.is_none()
    });
    println!("{:?}: {:?}", status.state, status.reason);
    let broken = host.known("broken");
    broken.write_file(&format!(
        "[database]\nurl = \"postgres://brokkr:{PASSWORD}@db:port/x\"\nurll = 1\n"
    ));
    broken.becomes("refused");

    let secrets = [
        PASSWORD.to_owned(),
        wrong_password.to_owned(),
        acme.pak(),
        globex.pak(),
        agent_pak,
        wrong_pak,
    ];
    let check = |place: &str, bytes: &[u8]| {
        for (number, secret) in secrets.iter().enumerate() {
            assert!(!holds(bytes, secret), "secret {number} is in {place}");
        }
    };

    let processes = procs::naming(&host.root().display().to_string());
    assert!(processes.len() >= 3, "{processes:?}");
    for pid in procs::all() {
        for name in ["environ", "cmdline"] {
            let path = format!("/proc/{pid}/{name}");
            // The test's own process is skipped, because its environment has no secret of the host.
            check(&path, &fs::read(&path).unwrap_or_default());
        }
    }
    check("the log", host.log().as_bytes());
    check("the server's log", server.log().as_bytes());
    for args in [
        &["status"][..],
        &["status", "--format", "json"],
        &["check"],
        &["logs", "-n", "10000"],
        &["reload"],
    ] {
        let ran = host.command(args);
        check(
            &format!("{args:?}"),
            format!("{}{}", ran.stdout, ran.stderr).as_bytes(),
        );
    }
    let mut looked = 0;
    for folder in [host.state_dir(), host.runtime_dir()] {
        for path in files(&folder) {
            looked += 1;
            if path.file_name().is_some_and(|name| name == "admin.pak") {
                use std::os::unix::fs::MetadataExt;
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
                continue;
            }
            check(&path.display().to_string(), &fs::read(&path).unwrap());
        }
    }
    assert!(looked >= 2 + 2, "{looked} files");
    assert_eq!(
        fs::read_to_string(acme.state_dir().join("admin.pak"))
            .unwrap()
            .trim(),
        acme.pak()
    );
    // The server's statements and rows have no PAK either, because PAKs are stored as hashes.
    let mut client = server.client();
    for row in client
        .query("SELECT query FROM pg_stat_activity", &[])
        .unwrap()
    {
        check(
            "pg_stat_activity",
            row.get::<_, Option<String>>(0)
                .unwrap_or_default()
                .as_bytes(),
        );
    }
}

#[test]
fn a_broker_is_started_with_one_argument_five_variables_and_no_stray_descriptor() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let arguments = procs::arguments(pid);
    assert_eq!(arguments[1..], ["serve"], "{arguments:?}");
    let mut names: Vec<String> = procs::environment(pid)
        .iter()
        .map(|v| v.split('=').next().unwrap().to_owned())
        .collect();
    names.sort();
    if brokkr_tests::test_dir::is_root() {
        assert_eq!(
            names,
            [
                "BROKKR_CONFIG_FD",
                "LISTEN_FDNAMES",
                "LISTEN_FDS",
                "LISTEN_PID",
                "NOTIFY_SOCKET"
            ]
        );
    }
    let open = procs::open_files(pid);
    assert!(
        !open.iter().any(|file| file.contains("memfd:")),
        "the configuration is closed: {open:?}"
    );
    assert!(
        !open
            .iter()
            .any(|file| file.contains("tenants.d") || file.contains("control.sock")),
        "{open:?}"
    );
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session: i32 = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(session, pid, "a session of its own");
}
