//! Rules of the source that no compiler checks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

pub(crate) fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Returns numbered lines of code, without comments and test modules.
pub(crate) fn code<'a>(name: &str, text: &'a str) -> Vec<(usize, &'a str)> {
    if name.ends_with("/tests.rs") || name.contains("/tests/") {
        return Vec::new();
    }
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(i, l)| (i + 1, l))
        .collect()
}

#[test]
fn only_instance_spawns_or_kills() {
    // The ways to start or signal a process in the standard library, nix, libc and system calls.
    let words = [
        "Command::new",
        "process::Command",
        "fork(",
        "vfork",
        "posix_spawn",
        "execv",
        "fexecve",
        "SYS_clone",
        "clone3",
        "kill(",
        "killpg",
        "tgkill",
        "SYS_kill",
        "pidfd_send_signal",
        "cgroup.kill",
    ];
    let mut wrong = Vec::new();
    let mut right = 0;
    for (name, text) in sources("supervisor/src") {
        let own =
            name == "supervisor/src/instance.rs" || name.starts_with("supervisor/src/instance/");
        // The simulation's processes are only numbers. The command that drops a tenant's data runs pg_dump, outside of the
        // daemon.
        if name.starts_with("supervisor/src/simulation")
            || name == "supervisor/src/commands/drop_data.rs"
        {
            continue;
        }
        // These files wrap the system calls in safe functions; their callers are checked like all other code.
        let calls = name == "supervisor/src/sys.rs" || name.starts_with("supervisor/src/sys/");
        for (number, line) in code(&name, &text) {
            if words.iter().any(|word| line.contains(word)) {
                if own {
                    right += 1;
                } else if !calls {
                    wrong.push(format!("{name}:{number}: {}", line.trim()));
                }
            }
        }
    }
    // Only instance/ may call the functions of sys.rs that start or signal a process.
    let sys = fs::read_to_string(root().join("supervisor/src/sys.rs")).unwrap();
    let doers: Vec<&str> = sys
        .split("pub(crate) fn ")
        .skip(1)
        .filter(|function| words.iter().any(|word| function.contains(word)))
        .filter_map(|function| function.split(['(', '<']).next())
        .collect();
    for (name, text) in sources("supervisor/src") {
        if name.starts_with("supervisor/src/instance") || name == "supervisor/src/sys.rs" {
            continue;
        }
        for (number, line) in code(&name, &text) {
            if doers
                .iter()
                .any(|doer| line.contains(&format!("sys::{doer}(")))
            {
                wrong.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(
        right > 0 || !doers.is_empty(),
        "instance/ starts processes; this test no longer sees how"
    );
}

#[test]
fn unsafe_code_is_in_sys_alone_and_every_block_has_its_reason() {
    for folder in ["supervisor/src", "broker/src", "tenant/src", "pg/src"] {
        for (name, text) in sources(folder) {
            let lines: Vec<&str> = text.lines().collect();
            for (number, line) in code(&name, &text) {
                if !line.contains("unsafe ")
                    || line.contains("unsafe_code")
                    || line.contains("unsafe_op")
                {
                    continue;
                }
                assert!(name.ends_with("src/sys.rs"), "{name}:{number}: {line}");
                let above = &lines[number.saturating_sub(8)..number];
                assert!(
                    above.iter().any(|l| l.to_uppercase().contains("SAFETY")),
                    "{name}:{number}: no SAFETY reason"
                );
            }
        }
    }
}

#[test]
fn the_pure_parts_know_no_clock_no_input_and_no_async() {
    for (name, text) in sources("supervisor/src") {
        let pure = [
            "supervisor/src/lifecycle",
            "supervisor/src/budget",
            "supervisor/src/fleet/core",
        ]
        .iter()
        .any(|p| name.starts_with(p));
        if !pure {
            continue;
        }
        for (number, line) in code(&name, &text) {
            for word in [
                "Instant::now",
                "SystemTime",
                "std::fs",
                "TcpStream",
                "TcpListener",
                "async ",
                ".await",
                "tokio::",
                "std::thread",
            ] {
                assert!(!line.contains(word), "{name}:{number}: {word}");
            }
        }
    }
}

#[test]
fn the_supervisor_decides_nothing_by_the_time_of_day() {
    // The time of day jumps when the clock is set, and no restart, wait or timeout may depend on it.
    let mut asked = 0;
    for (name, text) in sources("supervisor/src") {
        let says = name.starts_with("supervisor/src/logs");
        for (number, line) in code(&name, &text) {
            for word in [
                "SystemTime",
                "UNIX_EPOCH",
                "Utc::now",
                "Local::now",
                "CLOCK_REALTIME",
            ] {
                let found = line.contains(word);
                asked += usize::from(found);
                assert!(!found || says, "{name}:{number}: {word}");
            }
        }
    }
    assert!(
        asked > 0,
        "log lines have the time of day; this test no longer sees how"
    );
}

#[test]
fn broker_and_supervisor_never_depend_on_each_other_and_tenant_on_nothing_of_ours() {
    let manifest = |name: &str| fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
    let ours = [
        "brokkr-broker",
        "brokkr-supervisor",
        "brokkr-pg",
        "brokkr-tenant",
        "brokkr-tests",
    ];
    let depends = |name: &str| -> Vec<&str> {
        let text = manifest(name);
        let dependencies = text
            .split_once("[dependencies]")
            .map_or("", |(_, d)| d)
            .split("[dev-")
            .next()
            .unwrap()
            .to_owned();
        ours.into_iter()
            .filter(|o| dependencies.lines().any(|l| l.starts_with(o)))
            .collect()
    };
    assert_eq!(depends("tenant"), Vec::<&str>::new());
    for folder in ["broker", "supervisor"] {
        let on = depends(folder);
        assert!(
            on.iter()
                .all(|d| ["brokkr-tenant", "brokkr-pg"].contains(d)),
            "{folder}: {on:?}"
        );
    }
}

#[test]
fn every_declared_dependency_is_used_by_its_member() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, declared) = manifest.split_once("[workspace.dependencies]").unwrap();
    let (declared, _) = declared.split_once("\n[").unwrap();
    let mut unused: Vec<String> = names(declared).collect();
    assert!(unused.len() > 40, "{unused:?}");
    for member in [
        "tenant",
        "pg",
        "broker",
        "supervisor",
        "tests",
        "tests/rust-client",
        "fuzz",
    ] {
        let own = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        let mut text = String::new();
        for (name, source) in sources(member) {
            // The client's crate lies in the tests' folder but is a member of its own.
            if member != "tests" || !name.starts_with("tests/rust-client") {
                text.push_str(&source);
            }
        }
        for section in ["dependencies", "dev-dependencies"] {
            let Some((_, section)) = own.split_once(&format!("\n[{section}]\n")) else {
                continue;
            };
            for name in names(section.split("\n[").next().unwrap()) {
                let path = name.replace('-', "_");
                let used = ["::", ";", "!", " as "]
                    .iter()
                    .any(|end| text.contains(&format!("{path}{end}")));
                assert!(
                    used,
                    "{member}/Cargo.toml names {name}, which its source does not"
                );
                unused.retain(|declared| *declared != name);
            }
        }
    }
    assert_eq!(unused, Vec::<String>::new(), "of no member");
}

/// Returns the names at the beginning of the lines of a dependency list.
fn names(list: &str) -> impl Iterator<Item = String> {
    list.lines().filter_map(|line| {
        let end = line.find(['.', ' ', '='])?;
        let name = &line[..end];
        (!name.is_empty() && !name.starts_with('#')).then(|| name.to_owned())
    })
}

#[test]
fn the_published_client_is_a_dependency_of_its_own_tests_alone() {
    // The client has another licence and brings unwanted dependencies (another HTTP client, OpenSSL).
    for folder in ["broker", "supervisor", "tenant", "pg", "tests"] {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        for name in ["brokkr-client", "brokkr-rust-client-tests", "rust-client"] {
            assert!(!manifest.contains(name), "{folder}/Cargo.toml names {name}");
        }
    }
    // No product crate depends on the client indirectly either, according to the lock file.
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let packages: Vec<&str> = lock.split("[[package]]").collect();
    let named = |name: &str| {
        let line = format!("name = \"{name}\"");
        let found: Vec<&str> = packages
            .iter()
            .copied()
            .filter(|package| package.lines().any(|l| l == line))
            .collect();
        assert!(!found.is_empty(), "Cargo.lock has no {name}");
        found
    };
    let mut seen = BTreeSet::new();
    let mut next = vec!["brokkr-broker".to_owned(), "brokkr-supervisor".to_owned()];
    while let Some(name) = next.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        for package in named(&name) {
            let list = package
                .split_once("dependencies = [")
                .map_or("", |(_, l)| l);
            // A version after the name only separates packages of one name; both are checked.
            next.extend(
                list.split('"')
                    .skip(1)
                    .step_by(2)
                    .filter_map(|entry| entry.split(' ').next())
                    .map(str::to_owned),
            );
        }
    }
    assert!(seen.len() > 100, "{seen:?}");
    assert!(
        !seen.contains("brokkr-client"),
        "a product crate leads to it"
    );
}

#[test]
fn handlers_hold_no_sql_and_stores_know_no_http() {
    for (name, text) in sources("broker/src") {
        for (number, line) in code(&name, &text) {
            if name.starts_with("broker/src/api") || name.starts_with("broker/src/domain") {
                for word in [
                    "\"SELECT ",
                    "\"INSERT ",
                    "\"UPDATE ",
                    "\"DELETE FROM",
                    "\"WITH ",
                ] {
                    assert!(!line.contains(word), "{name}:{number}: {word}");
                }
            }
            if name.starts_with("broker/src/store") {
                for word in ["axum", "hyper::", "StatusCode"] {
                    assert!(!line.contains(word), "{name}:{number}: {word}");
                }
            }
            if name.starts_with("broker/src/domain") {
                for word in ["crate::api", "axum", "hyper::"] {
                    assert!(!line.contains(word), "{name}:{number}: {word}");
                }
            }
        }
    }
}

#[test]
fn handlers_and_tasks_alone_know_the_state_of_the_whole_broker() {
    // The files of websocket/ that are tasks; the others belong to the handle, which the state holds.
    let tasks = [
        "websocket.rs",
        "websocket/credential_recheck.rs",
        "websocket/fleet_feed.rs",
        "websocket/ingest.rs",
        "websocket/socket.rs",
        "websocket/telemetry_writer.rs",
    ];
    for (name, text) in sources("broker/src") {
        let file = name.trim_start_matches("broker/src/");
        let may = ["api", "app.rs", "http", "jobs/"]
            .iter()
            .any(|place| file.starts_with(place))
            && file != "jobs/schedule.rs";
        let knows = code(&name, &text)
            .iter()
            .any(|(_, line)| line.contains("app::"));
        assert!(!knows || may || tasks.contains(&file), "{name} imports App");
    }
}

#[test]
fn the_book_knows_every_key() {
    let table = fs::read_to_string(root().join("tenant/src/settings.rs")).unwrap();
    let page = fs::read_to_string(root().join("docs/src/tenant-file.md")).unwrap();
    let keys: Vec<&str> = table
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|word| {
            word.contains('.')
                && word
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || "._".contains(c))
        })
        .collect();
    assert!(keys.len() > 30, "{keys:?}");
    for key in keys {
        let (section, name) = key.rsplit_once('.').unwrap();
        assert!(page.contains(&format!("[{section}]")), "{key}");
        let (_, after) = page.split_once(&format!("[{section}]")).unwrap();
        assert!(
            section.contains('.') || after.contains(&format!("`{name}`")),
            "{key}"
        );
    }
}

#[test]
fn every_fault_of_upstream_has_a_test_and_every_such_test_its_fault() {
    let listed: BTreeSet<&str> = include_str!("faults.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next())
        .filter(|number| number.starts_with(|first: char| first.is_ascii_digit()))
        .collect();
    let sources: Vec<(String, String)> = ["tests/tests", "broker/tests", "broker/src"]
        .into_iter()
        .flat_map(sources)
        .collect();
    let tested: BTreeSet<&str> = sources
        .iter()
        .flat_map(|(_, text)| text.split("fn fault_").skip(1))
        .filter_map(|name| name.split('_').next())
        .filter(|number| number.starts_with(|first: char| first.is_ascii_digit()))
        .collect();
    assert_eq!(listed, tested);
}

#[test]
fn every_test_of_exclusive_keeps_the_machine_to_itself() {
    let mut tests = 0;
    for (name, text) in sources("tests/tests/exclusive") {
        for test in text.split("#[test]\n").skip(1) {
            let (_, body) = test.split_once("{\n").unwrap();
            assert!(body.starts_with("    let _alone = alone();\n"), "{name}");
            tests += 1;
        }
    }
    assert!(tests > 20, "this test no longer sees them: {tests}");
}
