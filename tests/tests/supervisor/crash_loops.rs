//! A tenant that crashes over and over does not affect the others, and a tenant whose configuration is wrong is not
//! retried in vain.

use brokkr_tests::host::Wrapper;
use brokkr_tests::{Host, Load, Tenant, bin, holds_for, pg, procs, says, until};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Two hundred tenants with the bad tenant.
const GOOD: usize = 199;

#[test]
fn one_crash_loop_among_many_tenants_costs_the_others_nothing() {
    let host = Host::builder()
        .pg(pg::Options::new().max_connections(600))
        // A single slot shows every needless hold of it.
        .set("start.parallelism", "1")
        .build();
    let wrapper = host.wrap_broker();
    let trivial = format!("exec {} serve", bin::trivial_broker().display());
    let good: Vec<Tenant<'_>> = (0..GOOD)
        .map(|n| {
            let name = format!("t{n}");
            wrapper.first(&name, &trivial);
            host.tenant(&name).pool(2).write()
        })
        .collect();
    host.up();
    host.wait(Duration::from_secs(240), "all to be ready", |s| {
        s.tenants.len() == GOOD && s.all("ready")
    });
    let status = host.status();
    let pid_of = |tenant: &Tenant<'_>| status.tenant(tenant.name()).unwrap().pid.unwrap();
    let pids: Vec<i32> = good.iter().map(pid_of).collect();
    let before = procs::figure(host.pid(), "VmRSS");
    let neighbour = Load::start(&good[1].addr(), "/healthz", "", 1, false);

    // The broker crashes at once, with long messages.
    let tries = host.root().join("tries");
    let long = "my configuration was eaten by the dog, ".repeat(10);
    wrapper.first(
        "bad",
        &format!(
            "echo >> {}; yes '{long}' | head -c 3000000 >&2; exit 1",
            tries.display()
        ),
    );
    let bad = host.tenant("bad").pool(2).write();
    let began = Instant::now();
    let used_before = procs::ticks(host.pid());
    bad.wait("in a crash loop", |t| {
        t.state == "backoff" && t.restarts >= 4
    });
    assert!(
        bad.status()
            .last_words
            .iter()
            .any(|w| w.contains("eaten by the dog"))
    );

    // A new tenant and a replacement need the slot.
    let ordered = Instant::now();
    host.command(&["restart", "t0"]).ok();
    wrapper.first("late", &trivial);
    host.tenant("late").pool(2).write().becomes("ready");
    println!(
        "measured: a restart and a newcomer beside a crash loop take {:.2} s together",
        ordered.elapsed().as_secs_f64()
    );
    until(
        Duration::from_secs(30),
        "six seconds of a crash loop",
        || (began.elapsed() > Duration::from_secs(6)).then_some(()),
    );
    let took = began.elapsed();
    let used = Duration::from_millis((procs::ticks(host.pid()) - used_before) * 10);
    let lines = fs::read_to_string(&tries).unwrap().lines().count();
    let seen = neighbour.stop();
    let growth = procs::figure(host.pid(), "VmRSS").saturating_sub(before);
    println!(
        "measured: a crash loop makes {lines} tries in {:.0} s; the supervisor takes {:.1} s of processor time and grows by {growth} KiB; its neighbour answers {} requests, the slowest after {:.2} s",
        took.as_secs_f64(),
        used.as_secs_f64(),
        seen.count(200),
        seen.slowest.as_secs_f64()
    );
    assert!((4..=30).contains(&lines), "{lines} tries");
    assert!(growth < 48 * 1024, "{growth} KiB");
    // The time includes the probes of two hundred brokers and the answers to this test.
    assert!(used < took / 2, "{used:?} of one processor in {took:?}");
    assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");
    assert!(seen.count(200) > 0 && seen.answers.len() == 1, "{seen:?}");

    let status = host.status();
    for (tenant, pid) in good.iter().zip(&pids).skip(1) {
        let shown = status.tenant(tenant.name()).unwrap();
        assert_eq!(
            (shown.state.as_str(), shown.restarts),
            ("ready", 0),
            "{shown:?}"
        );
        assert_eq!(shown.pid, Some(*pid), "{shown:?}");
    }
    assert_eq!(status.tenant("t0").unwrap().restarts, 0);
    // No line of another tenant is dropped.
    let lost = host.log_lines().into_iter().find(|line| {
        line["tenant"] != "bad"
            && line["message"]
                .as_str()
                .is_some_and(|m| m.contains("dropped"))
    });
    assert_eq!(lost, None);
}

/// A tenant whose broker exits with a configuration error and notes each try.
struct Misconfigured<'h> {
    host: &'h Host,
    wrapper: &'h Wrapper,
    tenant: Tenant<'h>,
}

impl Misconfigured<'_> {
    fn tries(&self) -> usize {
        count(&self.host.root().join("tries"))
    }

    /// Checks that `mend` leads to exactly one more try.
    fn is_tried_again(&self, what: &str, mend: impl FnOnce()) {
        let before = self.tries();
        mend();
        until(
            Duration::from_secs(15),
            format!("another try after {what}"),
            || (self.tries() > before).then_some(()),
        );
        self.tenant.becomes("backoff");
        holds_for(
            Duration::from_millis(700),
            format!("one try after {what}"),
            || match self.tries() - before {
                1 => Ok(()),
                tries => Err(format!("{tries} tries")),
            },
        );
    }
}

fn count(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[test]
fn exit_78_is_tried_again_when_something_it_depends_on_changes_or_when_asked_and_not_before() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let script = format!("echo once >> {}/tries; exit 78", host.root().display());
    wrapper.first("acme", &script);
    let secret = host.root().join("url");
    let url = host.server().url("brokkr", "brokkr");
    fs::write(&secret, &url).unwrap();
    brokkr_tests::test_dir::set_mode(&secret, 0o600);
    let draft = host.tenant("acme").unset("database.url").set(
        "database.url_file",
        &format!("{:?}", secret.display().to_string()),
    );
    let text = draft.text();
    let tenant = draft.write();
    host.up();
    tenant.becomes("backoff");
    let acme = Misconfigured {
        host: &host,
        wrapper: &wrapper,
        tenant,
    };
    assert!(acme.tenant.status().reason.unwrap().contains("78"));
    holds_for(Duration::from_secs(3), "it is tried once", || {
        match acme.tries() {
            1 => Ok(()),
            tries => Err(format!("{tries} tries")),
        }
    });

    acme.is_tried_again("a changed file", || {
        acme.tenant
            .replace_file(&format!("{text}\n[log]\nlevel = \"debug\"\n"));
    });
    acme.is_tried_again("a change of what its file refers to", || {
        fs::write(&secret, format!("{url}?connect_timeout=3")).unwrap();
    });
    acme.is_tried_again("a new broker", || acme.wrapper.install_again(": newer"));
    acme.is_tried_again("start", || drop(host.command(&["start", "acme"])));
    acme.is_tried_again("restart", || drop(host.command(&["restart", "acme"])));
    acme.is_tried_again("reload", || drop(host.reload()));
    wrapper.heal("acme");
    host.command(&["start", "acme"]).ok();
    acme.tenant.becomes("ready");
}

#[test]
fn starts_that_wait_for_a_lock_delay_no_other_start_and_are_tried_again() {
    let host = Host::builder()
        .set("start.parallelism", "1")
        .set("start.timeout", "\"15s\"")
        .build();
    let acme = host.tenant("acme").up();
    let old = acme.pid();
    // Holds the lock as another start on the same schema would, longer than any start waits.
    let mut another = host.server().client();
    another
        .batch_execute("CREATE SCHEMA held; CREATE TABLE held.brokkr_lock ()")
        .unwrap();
    another
        .batch_execute(
            "ALTER SCHEMA held OWNER TO brokkr; ALTER TABLE held.brokkr_lock OWNER TO brokkr",
        )
        .unwrap();
    another
        .batch_execute("BEGIN; LOCK TABLE held.brokkr_lock")
        .unwrap();
    let held = host.tenant("held").schema("held").write();
    held.wait("waiting for the lock", |t| {
        t.state == "starting"
            && t.reason
                .as_deref()
                .is_some_and(|why| why.contains("another start"))
    });
    procs::signal(acme.pid(), nix::sys::signal::Signal::SIGKILL);
    acme.replaced(old);
    // The wait is limited: the reason is reported, and the start is tried again.
    let status = held.wait("given up for now", |t| t.state == "backoff");
    let reason = status.reason.unwrap();
    says(&reason, &["not ready within 15s", "another start"]);
    another.batch_execute("ROLLBACK").unwrap();
    held.becomes("ready");
}
