//! Tenant files are written, changed, broken, repaired and removed in random order.

use brokkr_tests::{Host, Tenant, holds_for, until};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::time::Duration;

const BROKEN: [&str; 4] = [
    "[database\n",
    "[database]\npool_size = \"ten\"\n",
    "[nonsense]\nkey = 1\n",
    "\u{0}",
];

/// The expected state of a tenant: the pool of its last good file, and whether its file is good now.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Model {
    pool: Option<u32>,
    good: bool,
}

#[test]
fn fifty_random_changes_of_files_end_in_the_right_set_of_processes() {
    let mut dice = fastrand::Rng::with_seed(brokkr_tests::seed("BROKKR_TESTS_SEED", 20_261_130));
    let host = Host::builder().set("stop.grace", "\"2s\"").build();
    host.up();
    let listens: BTreeMap<&str, String> = ["a", "b", "c", "d", "e"]
        .into_iter()
        .map(|name| (name, format!("127.0.0.1:{}", brokkr_tests::ports::free())))
        .collect();
    let mut models: BTreeMap<&str, Model> = BTreeMap::new();

    for step in 0..50 {
        let (name, listen) = listens.iter().nth(dice.usize(..5)).unwrap();
        let tenant = host.known(name);
        let pool = dice.u32(3..8);
        let good = host.tenant(name).listen(listen).pool(pool).text();
        match (models.get(name).copied(), dice.u8(..4)) {
            // A good file, new or changed: renamed into place, or written in place.
            (_, 0 | 1) => {
                println!("{step}: {name} has a pool of {pool}");
                if dice.bool() {
                    tenant.replace_file(&good)
                } else {
                    tenant.write_file(&good)
                }
                models.insert(
                    name,
                    Model {
                        pool: Some(pool),
                        good: true,
                    },
                );
            }
            // A broken file; the tenant keeps running if a good file was read before.
            (model, 2) => {
                println!("{step}: {name} is broken");
                if let Some(Model {
                    pool: Some(pool),
                    good: true,
                }) = model
                {
                    tenant.wait("read", |t| t.state == "ready" && t.pool_size == Some(pool));
                }
                tenant.write_file(BROKEN[dice.usize(..BROKEN.len())]);
                models.insert(
                    name,
                    Model {
                        pool: model.and_then(|m| m.pool),
                        good: false,
                    },
                );
            }
            (Some(_), _) => {
                println!("{step}: {name} is removed");
                tenant.remove_file();
                tenant.is_gone();
                models.remove(name);
            }
            (None, _) => {}
        }
    }

    for (name, model) in &models {
        let tenant = host.known(name);
        match model.pool {
            Some(pool) => {
                tenant.wait(&format!("ready with {pool}"), |t| {
                    t.state == "ready" && t.pool_size == Some(pool)
                });
            }
            None => {
                tenant.becomes("refused");
            }
        }
    }
    let wanted = models.values().filter(|model| model.pool.is_some()).count();
    until(
        Duration::from_secs(20),
        "as many brokers as tenants that run, and theirs",
        || {
            let mut pids: Vec<i32> = host.status().tenants.iter().filter_map(|t| t.pid).collect();
            pids.sort_unstable();
            (host.broker_pids() == pids && pids.len() == wanted).then_some(())
        },
    );
    let status = host.status();
    assert_eq!(status.tenants.len(), models.len(), "{status:#?}");
    assert!(
        status.tenants.iter().all(|t| t.restarts == 0),
        "{status:#?}"
    );
    // A tenant that runs on an old file reports it as pending.
    for (name, _) in models.iter().filter(|(_, m)| m.pool.is_some() && !m.good) {
        assert!(
            status.tenant(name).unwrap().pending.is_some(),
            "{status:#?}"
        );
    }
}

#[test]
fn a_file_that_is_briefly_invalid_or_gone_never_stops_a_running_tenant() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let (pid, text) = (acme.pid(), acme.read_file());
    let runs_on = |acme: &Tenant<'_>| {
        let status = acme.status();
        let seen = (status.state.as_str(), status.pid, status.restarts);
        if seen == ("ready", Some(pid), 0) {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    };

    acme.write_file("[data");
    acme.wait("shown to be broken", |t| t.pending.is_some());
    runs_on(&acme).unwrap();
    acme.write_file(&text);
    acme.wait("as before", |t| t.pending.is_none());

    acme.remove_file();
    // Far shorter than the two seconds after which a removal counts, also on a slow machine.
    holds_for(Duration::from_millis(300), "acme runs on", || {
        runs_on(&acme)
    });
    acme.replace_file(&text);
    holds_for(Duration::from_secs(3), "acme runs on", || runs_on(&acme));
}

#[test]
fn a_change_without_effect_replaces_nothing_and_one_with_effect_only_its_own_tenant() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let (acme_pid, globex_pid) = (acme.pid(), globex.pid());
    acme.replace_file(&format!("# a comment\n{}", acme.read_file()));
    assert_eq!(host.reload().ok(), "nothing changed\n");
    assert_eq!(acme.pid(), acme_pid);

    acme.replace_file(&acme.read_file().replace("pool_size = 5", "pool_size = 7"));
    let report = host.reload().ok();
    assert!(
        report.contains("acme") && !report.contains("globex"),
        "{report}"
    );
    let status = acme.replaced(acme_pid);
    assert_eq!((status.pool_size, status.restarts), (Some(7), 0));
    assert_eq!(globex.pid(), globex_pid);

    // A change that concerns only the supervisor replaces no broker and is reported all the same.
    let (acme_pid, text) = (acme.pid(), acme.read_file());
    for (enabled, becomes) in [("false", "stopped"), ("true", "ready")] {
        acme.replace_file(&format!("{text}\n[supervision]\nenabled = {enabled}\n"));
        assert_eq!(host.reload().ok(), "changed acme\n");
        acme.becomes(becomes);
    }
    assert_ne!(acme.pid(), acme_pid);
    assert_eq!(globex.pid(), globex_pid);
}

#[test]
fn a_tenants_dir_that_is_gone_changes_nothing_until_it_is_back() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let aside = host.root().join("aside");
    std::fs::rename(host.tenants_dir(), &aside).unwrap();
    let ran = host.reload();
    assert!(
        format!("{}{}", ran.stdout, ran.stderr).contains("tenants.d"),
        "{ran:?}"
    );
    holds_for(Duration::from_secs(3), "acme runs on", || {
        let status = acme.status();
        if status.pid == Some(pid) && status.state == "ready" {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    });
    std::fs::rename(&aside, host.tenants_dir()).unwrap();
    host.tenant("globex").write();
    host.known("globex").becomes("ready");
    assert_eq!(acme.pid(), pid);
}

#[test]
fn a_file_whose_name_is_no_tenants_is_a_notice_of_one_line() {
    let host = Host::new();
    host.up();
    std::fs::write(host.tenants_dir().join("Bad_Name.toml"), "").unwrap();
    host.wait(Duration::from_secs(60), "the notice", |status| {
        status.notices.iter().any(|n| n.contains("Bad_Name"))
    });
    let shown = host.command(&["status"]).stdout;
    let notice = shown.lines().find(|line| line.contains("Bad_Name"));
    let notice = notice.expect(&shown);
    assert!(notice.starts_with("notice: "), "{shown}");
    assert!(notice.contains("(rename the file: "), "{shown}");
    assert!(!notice.contains("\\n"), "{shown}");
}

#[test]
fn removing_most_files_at_once_is_held_until_it_is_confirmed() {
    let host = Host::new();
    let tenants: Vec<_> = ["a", "b", "c", "d", "e"]
        .into_iter()
        .map(|name| host.tenant(name).pool(2).up())
        .collect();
    let pids: Vec<i32> = tenants.iter().map(Tenant::pid).collect();
    let aside = host.root().join("aside");
    std::fs::create_dir(&aside).unwrap();
    // In one scan: the folder is moved away as a whole and comes back with one file.
    std::fs::rename(host.tenants_dir(), aside.join("old")).unwrap();
    std::fs::create_dir(host.tenants_dir()).unwrap();
    std::fs::copy(aside.join("old/a.toml"), host.tenants_dir().join("a.toml")).unwrap();
    let ran = host.reload();
    assert!(
        format!("{}{}", ran.stdout, ran.stderr).contains("confirm-removals"),
        "{ran:?}"
    );
    assert_eq!(tenants.iter().map(Tenant::pid).collect::<Vec<_>>(), pids);
    host.command(&["reload", "--confirm-removals"]);
    let status = host.wait(Duration::from_secs(20), "only a to be left", |s| {
        s.tenants.len() == 1
    });
    assert_eq!(status.tenants[0].pid, Some(pids[0]));
}

#[test]
fn files_of_tenants_that_never_ran_may_go_however_many_they_are() {
    let host = Host::new();
    let tenants: Vec<_> = ["a", "b", "c", "d", "e"]
        .into_iter()
        .map(|name| host.tenant(name).pool(2).up())
        .collect();
    let kept: Vec<i32> = tenants[1..].iter().map(Tenant::pid).collect();
    let never = ["v", "w", "x", "y", "z"].map(|name| host.known(name));
    for tenant in &never {
        tenant.write_file(BROKEN[0]);
    }
    for tenant in &never {
        tenant.becomes("refused");
    }
    for tenant in &never {
        tenant.remove_file();
    }
    tenants[0].remove_file();
    let report = host.reload().ok();
    assert!(!report.contains("confirm-removals"), "{report}");
    let status = host.wait(Duration::from_secs(60), "four to be left", |s| {
        s.tenants.len() == 4
    });
    let pids: Vec<i32> = status.tenants.iter().filter_map(|t| t.pid).collect();
    assert_eq!(pids, kept);
}

#[test]
fn a_tenant_that_has_gone_has_no_admin_pak_to_show_but_a_folder_that_is_named() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pak = host.command(&["pak", "acme"]).ok();
    acme.remove_file();
    host.reload().ok();
    acme.is_gone();
    let gone = host.command(&["pak", "acme"]);
    assert_eq!((gone.code, gone.stdout.as_str()), (Some(1), ""), "{gone:?}");
    assert!(
        gone.stderr.contains("no tenant acme any more") && gone.stderr.contains("tenants/acme"),
        "{gone:?}"
    );
    // A tenant that comes back has its old data.
    host.tenant("acme").up();
    assert_eq!(host.command(&["pak", "acme"]).ok(), pak);
    let never = host.command(&["pak", "nobody"]);
    assert!(!never.stderr.contains("any more"), "{never:?}");
}

/// Changes a tenant's pool by `write`, and waits until the supervisor notices the change without a command.
fn noticed(tenant: &Tenant<'_>, pool: u32, write: impl FnOnce(&str)) {
    let old = tenant.pid();
    let text = tenant.read_file();
    let line = text.lines().find(|l| l.starts_with("pool_size")).unwrap();
    write(&text.replace(line, &format!("pool_size = {pool}")));
    tenant.wait(&format!("ready with a pool of {pool}"), |t| {
        t.state == "ready" && t.pool_size == Some(pool) && t.pid != Some(old)
    });
}

#[test]
fn a_change_behind_a_link_is_noticed_whichever_part_of_the_way_to_it_changes() {
    let host = Host::new();
    let store = host.root().join("store");
    for folder in ["", "..1", "..2"] {
        std::fs::create_dir(store.join(folder)).unwrap();
    }
    let acme = host.tenant("acme").write();
    let globex = host.tenant("globex").write();
    let initech = host.tenant("initech").write();
    // A plain link, a link through a folder that is itself a link as in Kubernetes, and a hard link.
    std::fs::rename(acme.file(), store.join("l.toml")).unwrap();
    symlink("../store/l.toml", acme.file()).unwrap();
    std::fs::rename(globex.file(), store.join("..1/g.toml")).unwrap();
    symlink("..1", store.join("..data")).unwrap();
    symlink("../store/..data/g.toml", globex.file()).unwrap();
    std::fs::hard_link(initech.file(), store.join("other-name")).unwrap();
    host.up();
    for tenant in [&acme, &globex, &initech] {
        tenant.becomes("ready");
    }

    noticed(&acme, 6, |text| {
        std::fs::write(store.join("new"), text).unwrap();
        std::fs::rename(store.join("new"), store.join("l.toml")).unwrap();
    });
    noticed(&acme, 7, |text| {
        std::fs::write(store.join("l.toml"), text).unwrap()
    });
    noticed(&globex, 6, |text| {
        std::fs::write(store.join("..2/g.toml"), text).unwrap();
        symlink("..2", store.join("..tmp")).unwrap();
        std::fs::rename(store.join("..tmp"), store.join("..data")).unwrap();
    });
    noticed(&initech, 6, |text| {
        std::fs::write(store.join("other-name"), text).unwrap();
    });
    // A dangling link becomes a tenant when its target appears.
    symlink("../later/h.toml", host.known("hooli").file()).unwrap();
    let hooli = host.known("hooli");
    hooli.becomes("refused");
    let text = host.tenant("hooli").text();
    std::fs::create_dir(host.root().join("later")).unwrap();
    std::fs::write(host.root().join("later/h.toml"), text).unwrap();
    hooli.becomes("ready");
}

#[test]
fn a_renamed_tenant_keeps_its_schema_and_so_its_admin_pak() {
    let host = Host::new();
    let old = host.tenant("oldco").up();
    let pak = old.pak();
    let new = host.known("newco");
    std::fs::rename(old.file(), new.file()).unwrap();
    new.becomes("ready");
    assert_eq!(new.pak(), pak);
    assert!(!old.state_dir().exists(), "it belongs to newco now");

    // When the state folder cannot be identified as the tenant's own, the likely folder is named.
    std::fs::create_dir(old.state_dir()).unwrap();
    std::fs::rename(
        new.state_dir().join("admin.pak"),
        old.state_dir().join("admin.pak"),
    )
    .unwrap();
    let none = host.command(&["pak", "newco"]);
    assert_eq!(none.code, Some(1), "{none:?}");
    for part in ["tenants/oldco/admin.pak", "rotate admin"] {
        assert!(none.stderr.contains(part), "{none:?}");
    }
    assert!(!none.stderr.contains("first becomes ready"), "{none:?}");
}

#[test]
fn a_runtime_folder_too_deep_for_sockets_costs_no_tenant_anything() {
    // So deep that neither the control socket nor a tenant's socket fits into an address of 107 bytes.
    let deep = "d".repeat(60);
    let host = Host::builder()
        .set("runtime_dir", &format!("\"run/{deep}/{deep}\""))
        .build();
    let name = "n".repeat(47);
    host.command(&["check"]).ok();
    let tenant = host.tenant(&name).up();
    let pid = tenant.pid();
    // This supervisor and the next reach the broker over its socket.
    host.kill();
    host.up();
    tenant.becomes("ready");
    assert_eq!(tenant.pid(), pid);
    host.command(&["restart", &name]).ok();
    assert_eq!(tenant.replaced(pid).restarts, 0);
}

#[test]
fn a_file_name_that_is_not_utf_8_is_said_once() {
    let host = Host::new();
    let name = std::ffi::OsStr::from_bytes(b"acm\xe9.toml");
    std::fs::write(host.tenants_dir().join(name), "").unwrap();
    let said = host.command(&["check"]).stderr;
    assert!(said.contains("the file name is not UTF-8"), "{said}");
    assert_eq!(said.matches("rename the file").count(), 1, "{said}");
}
