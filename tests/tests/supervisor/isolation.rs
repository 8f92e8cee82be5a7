//! A broker that an attacker has taken over reaches neither another tenant nor the supervisor.
//!
//! The attacker is code inside a real broker: `tests/attacker/attacker.c`, loaded by the dynamic linker, which begins
//! after the broker has entered its sandbox. The same attacks are then made from outside a sandbox, which shows that
//! their targets are there.

use brokkr_tests::test_dir::is_root;
use brokkr_tests::{Host, attacker, bin, until};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Attacks that would harm the machine of the test when made from outside a sandbox.
const SPARED: &[&str] = &[
    "executes",
    "executes_memory",
    "names_host",
    "mounts",
    "changes_root",
    "unlink_pak",
    "unlink_socket",
    "rename_pak",
    "truncate_pak",
    "chown_state",
    "sets_clock",
    "shared_memory",
    "semaphores",
    "messages",
    "message_queue",
    "kill_all",
    "trace_victim",
    "trace_supervisor",
    "false_datagram",
];

/// Returns the result of each attack by its name.
fn results<'l>(lines: impl Iterator<Item = &'l str>) -> BTreeMap<&'l str, &'l str> {
    lines
        .filter_map(|line| line.strip_prefix("attack ")?.split_once(": "))
        .collect()
}

#[test]
fn a_broker_that_an_attacker_has_taken_over_reaches_no_other_tenant() {
    if attacker::has_whole_landlock() {
        every_attack_is_stopped(&Host::new());
    }
}

#[test]
fn nor_does_one_that_runs_as_a_user_of_its_own() {
    if !is_root() {
        println!("skipped: only root gives tenants user ids of their own");
    } else if attacker::has_whole_landlock() {
        let builder = Host::builder().set("isolation.uids", "\"61100-61109\"");
        every_attack_is_stopped(&builder.build());
    }
}

fn every_attack_is_stopped(host: &Host) {
    let wrapper = host.wrap_broker();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let before = globex.status();
    let key = fs::read(globex.state_dir().join("webhook.key")).unwrap();

    let instances = host.runtime_dir().join("instances");
    let abstract_name = format!("brokkr-attack-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
    let _listener = UnixDatagram::bind_addr(&address).unwrap();
    let named = |path: PathBuf| path.display().to_string();
    let victim = |extension: &str| named(instances.join(format!("globex.1.{extension}")));
    let variables = [
        ("VICTIM_PID", globex.pid().to_string()),
        ("VICTIM_SUPERVISOR", host.pid().to_string()),
        ("VICTIM_STATE", named(globex.state_dir())),
        ("VICTIM_OWN_STATE", named(acme.state_dir())),
        ("VICTIM_STATE_DIR", named(host.state_dir())),
        ("VICTIM_FILE", named(globex.file())),
        ("VICTIM_TENANTS", named(host.tenants_dir())),
        ("VICTIM_CONFIG", named(host.config())),
        ("VICTIM_RUNTIME", named(host.runtime_dir())),
        ("VICTIM_LOCK", victim("lock")),
        ("VICTIM_PRIVATE", victim("sock")),
        ("VICTIM_NOTIFY", victim("notify")),
        (
            "VICTIM_CONTROL",
            named(host.runtime_dir().join("control.sock")),
        ),
        ("VICTIM_ABSTRACT", abstract_name),
    ];
    let library = attacker::compile(host.root().join("attacker.so"), &["-shared", "-fPIC"]);
    let library = named(library);
    let exports = variables
        .iter()
        .map(|(name, value)| format!("export {name}={value}\n"));
    wrapper.first(
        "acme",
        &format!("{}export LD_PRELOAD={library}", exports.collect::<String>()),
    );
    host.command(&["restart", "acme"]).ok();
    until(Duration::from_secs(60), "the attacks to end", || {
        (host.said("attacks: done") == 1).then_some(())
    });
    let lines = host.log_lines();
    let attacks = results(lines.iter().filter_map(|line| line["message"].as_str()));
    let succeeded: Vec<&str> = attacks
        .iter()
        .filter(|(_, result)| **result == "SUCCEEDED")
        .map(|(name, _)| *name)
        .collect();
    for (name, result) in &attacks {
        println!("{name:<24} {result}");
    }
    println!(
        "measured: {} of {} attacks are stopped",
        attacks.len() - succeeded.len(),
        attacks.len()
    );
    assert_eq!(succeeded, [""; 0]);
    assert_eq!(attacks.len(), 120);

    // The victim has noticed nothing, and the attacked broker serves in its sandbox.
    let after = globex.status();
    assert_eq!(
        (after.pid, after.restarts, after.state.as_str()),
        (before.pid, 0, "ready")
    );
    assert_eq!(
        fs::read(globex.state_dir().join("webhook.key")).unwrap(),
        key
    );
    globex.api().get("/agents").expect(200);
    let killed = globex.pid();
    globex.signal(Signal::SIGKILL);
    let again = globex.replaced(killed);
    assert_eq!(again.last_exit.as_deref(), Some("killed by SIGKILL"));
    acme.is_ready().api().get("/agents").expect(200);
    let told = host.command(&["status", "acme"]).ok();
    for layer in [
        "isolation  landlock: version ",
        "isolation  seccomp: no exec",
    ] {
        assert!(told.contains(layer), "{told}");
    }

    // Outside a sandbox the same attacks succeed, as far as root may do them here at all.
    let program = attacker::compile(host.root().join("attacker"), &[]);
    let mut outside = Command::new(program);
    outside
        .envs(variables)
        .env("VICTIM_PID", globex.pid().to_string());
    outside.env("VICTIM_SPARED", format!(",{},", SPARED.join(",")));
    let text = bin::run_command(outside, Duration::from_secs(60)).stderr;
    let _ = fs::remove_file("/tmp/brokkr-attack");
    let outside = results(text.lines());
    let real = outside.values().filter(|r| **r == "SUCCEEDED").count();
    println!(
        "measured: outside a sandbox {real} of {} succeed",
        outside.len()
    );
    assert!(real > 45, "{outside:#?}");
}

#[test]
fn a_broker_whose_sandbox_keeps_it_from_a_replaced_file_is_replaced() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let program = bin::trivial_broker();
    wrapper.first(
        "acme",
        &format!("TRIVIAL=shut-out exec {} serve", program.display()),
    );
    let acme = host.tenant("acme").write();
    host.up();
    let said = "its sandbox keeps it from /etc/resolv.conf";
    until(Duration::from_secs(30), "the file to be missed", || {
        (host.said(said) > 0).then_some(())
    });
    wrapper.heal("acme");
    acme.wait("a real broker", |t| {
        let layers = t.isolation.as_ref();
        t.state == "ready" && layers.is_some_and(|layers| !layers.is_empty())
    });
    acme.api().get("/agents").expect(200);
}

#[test]
fn a_tenant_may_be_required_to_run_in_every_layer() {
    if !attacker::has_whole_landlock() {
        return;
    }
    let host = Host::builder().set("isolation.required", "true").build();
    let acme = host.tenant("acme").up();
    let layers = acme.wait("its layers", |t| t.isolation.is_some()).isolation;
    assert!(layers.unwrap().iter().all(|layer| layer["on"] == true));
}

#[test]
fn a_process_of_a_tenants_broker_gives_the_supervisor_no_orders() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let refused = host.root().join("refused");
    let ask = format!(
        "{} stop globex --config {}",
        bin::supervisor().display(),
        host.config().display()
    );
    // The supervisor knows the broker's process only after the script has begun.
    let script = format!(
        "(until {ask} 2>&1 | grep 'belongs to the broker of tenant acme' > {out}; do sleep 0.05; done) &",
        out = refused.display()
    );
    wrapper.first("acme", &script);
    let acme = host.tenant("acme").up();
    until(Duration::from_secs(30), "the order to be refused", || {
        let text = fs::read_to_string(&refused).unwrap_or_default();
        (!text.is_empty()).then_some(())
    });
    acme.get("/healthz").expect(200);
}

#[test]
fn a_broker_that_may_not_write_its_emptied_state_folder_is_replaced_by_one_that_may() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let first = acme.pid();
    // The second instance finds everything there, and so may write nothing.
    host.command(&["restart", "acme"]).ok();
    let old = acme.replaced(first).pid.unwrap();
    fs::remove_file(acme.state_dir().join("webhook.key")).unwrap();
    // The next supervisor asks at once, and this one within a minute.
    host.succeed();
    acme.wait_within(Duration::from_secs(90), "another broker", |t| {
        t.state == "ready" && t.pid.is_some_and(|pid| pid != old)
    });
    assert!(acme.state_dir().join("webhook.key").exists());
    assert_eq!(acme.status().restarts, 0);
}
