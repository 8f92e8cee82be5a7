//! Each tenant's broker runs as a user of its own (`[isolation] uids`), whose files no other tenant reaches.

use brokkr_tests::test_dir::{is_root, set_mode};
use brokkr_tests::{Host, Tenant, bin, until};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Returns false, and says so, where the test cannot give processes other users.
fn as_root() -> bool {
    if !is_root() {
        println!("skipped: only root gives tenants user ids of their own");
    }
    is_root()
}

fn host_with(uids: &str) -> Host {
    Host::builder()
        .set("isolation.uids", &format!("\"{uids}\""))
        .build()
}

fn owner(path: &Path) -> (u32, u32, u32) {
    let found = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (found.uid(), found.gid(), found.mode() & 0o777)
}

/// Returns the values of a field of the process's status.
fn field(pid: i32, name: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let words = line.unwrap().trim_start_matches(':').split_whitespace();
    words.map(str::to_owned).collect()
}

/// Checks the user of a tenant's broker and of its files, and returns the user id.
fn runs_as_its_own_user(tenant: &Tenant<'_>) -> u32 {
    let status = tenant.status();
    let (pid, uid) = (status.pid.unwrap(), status.uid.unwrap());
    let four = |id: u32| vec![id.to_string(); 4];
    assert_eq!(field(pid, "Uid"), four(uid));
    assert_eq!(field(pid, "Gid"), four(uid));
    assert_eq!(field(pid, "Groups"), [""; 0]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(pid, set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field(pid, "NoNewPrivs"), ["1"]);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max processes"));
    assert!(
        limit.unwrap().split_whitespace().any(|word| word == "128"),
        "{limits}"
    );
    let state = tenant.state_dir();
    assert_eq!(owner(&state), (uid, uid, 0o700));
    for file in fs::read_dir(&state).unwrap().flatten() {
        assert_eq!(owner(&file.path()), (uid, uid, 0o600), "{file:?}");
    }
    assert!(state.join("admin.pak").exists() && state.join("webhook.key").exists());
    uid
}

/// The attacks on another tenant. The program prints for each attack the kernel's error, or `open` when it succeeds.
const ATTACKS: &str = r#"
import os, socket, sys, signal
instances, victim_state, own_state, victim, tenants = sys.argv[1:6]
pid = int(sys.argv[6])
def say(name, attack):
    try:
        attack()
        print(name, "open")
    except OSError as error:
        print(name, error.strerror)
def connect(path):
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(path)
def send(path):
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", path)
say("own state", lambda: os.listdir(own_state))
say("list state", lambda: os.listdir(victim_state))
say("read pak", lambda: open(victim_state + "/admin.pak").read())
say("read key", lambda: open(victim_state + "/webhook.key").read())
say("write state", lambda: open(victim_state + "/new", "w"))
say("list tenants", lambda: os.listdir(os.path.dirname(victim_state)))
say("list instances", lambda: os.listdir(instances))
say("write instances", lambda: open(instances + "/new", "w"))
say("read lock", lambda: open(instances + "/" + victim + ".lock").read())
say("private socket", lambda: connect(instances + "/" + victim + ".sock"))
say("notify socket", lambda: send(instances + "/" + victim + ".notify"))
say("control socket", lambda: connect(os.path.dirname(instances) + "/control.sock"))
say("tenant files", lambda: open(tenants).read())
say("environment", lambda: open("/proc/%d/environ" % pid).read())
say("maps", lambda: open("/proc/%d/maps" % pid).read())
say("memory", lambda: open("/proc/%d/mem" % pid).read())
say("descriptors", lambda: os.listdir("/proc/%d/fd" % pid))
say("memfd", lambda: open("/proc/%d/fd/5" % pid).read())
say("folder", lambda: os.readlink("/proc/%d/cwd" % pid))
say("signal", lambda: os.kill(pid, 0))
say("end", lambda: os.kill(pid, signal.SIGKILL))
say("priority", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
"#;

#[test]
fn each_tenant_runs_as_its_own_user_and_reaches_no_other_ones_files_processes_or_sockets() {
    if !as_root() {
        return;
    }
    let host = host_with("61000-61009");
    let wrapper = host.wrap_broker();
    let see_memfd = "echo \"memfd: $(stat -Lc '%u %g %a' /proc/self/fd/0 <&5)\" >&2";
    wrapper.first("acme", see_memfd);
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let (one, other) = (runs_as_its_own_user(&acme), runs_as_its_own_user(&globex));
    assert_eq!((one, other), (61_000, 61_001));
    let record = fs::read_to_string(host.state_dir().join("uids")).unwrap();
    assert_eq!(record, "61000 acme\n61001 globex\n");
    until(Duration::from_secs(30), "the memfd's owner", || {
        (host.said("memfd: 61000 61000 400") == 1).then_some(())
    });
    let instances = host.runtime_dir().join("instances");
    assert_eq!(owner(&instances), (0, 0, 0o711));
    assert_eq!(
        owner(&instances.join("globex.1.notify")),
        (other, other, 0o600)
    );
    for extension in ["sock", "lock"] {
        let file = instances.join(format!("globex.1.{extension}"));
        assert_eq!(owner(&file), (0, 0, 0o600));
    }

    // Each attack is made as the first tenant's user, outside any sandbox, so that only the user stops it.
    let named = |path: &Path| path.display().to_string();
    let mut attacker = Command::new("setpriv");
    let user = [format!("--reuid={one}"), format!("--regid={one}")];
    attacker
        .args(user)
        .args([
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--",
        ])
        .args(["/usr/bin/python3", "-c", ATTACKS])
        .args([
            named(&instances),
            named(&globex.state_dir()),
            named(&acme.state_dir()),
        ])
        .args(["globex.1".to_owned(), named(&globex.file())])
        .arg(globex.pid().to_string());
    let said = bin::run_command(attacker, Duration::from_secs(30)).ok();
    let open: Vec<&str> = said
        .lines()
        .filter(|line| line.ends_with(" open"))
        .collect();
    assert_eq!(open, ["own state open"], "{said}");
    assert_eq!(said.lines().count(), 22, "{said}");
    println!(
        "measured: {} attacks as another tenant's user are stopped",
        said.lines().count() - 1
    );

    // The supervisor keeps no right of root that it does not use: CAP_SYS_ADMIN is number 21, CAP_SETUID 7.
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let rights = u64::from_str_radix(&field(host.pid(), set)[0], 16).unwrap();
        assert_eq!(
            (rights >> 21 & 1, rights >> 7 & 1),
            (0, 1),
            "{set}: {rights:x}"
        );
        assert!(rights.count_ones() <= 9, "{set}: {rights:x}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(field(host.pid(), set), ["0000000000000000"], "{set}");
    }

    // The operator sees the users, and gets the PAKs.
    globex.wait("its layers", |t| t.isolation.is_some());
    let told = host.command(&["status", "globex"]).ok();
    assert!(told.contains("uid        61001\n"), "{told}");
    assert!(
        told.contains("isolation  user: 61001, of this tenant alone"),
        "{told}"
    );
    assert_eq!(globex.status().restarts, 0);
    globex.api().get("/agents").expect(200);
    assert!(acme.pak().starts_with("brokkr_"));
}

#[test]
fn a_tenant_keeps_its_user_over_restarts_and_a_return_and_its_folder_takes_the_user_along() {
    if !as_root() {
        return;
    }
    let host = host_with("61000-61009");
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let pak = acme.pak();
    let users = |tenants: [&Tenant<'_>; 2]| tenants.map(runs_as_its_own_user);
    let before = users([&acme, &globex]);
    host.command(&["restart", "--all"]).ok();
    assert_eq!(users([&acme, &globex]), before);
    // Another supervisor, by the locks: the brokers and their sockets are taken over.
    let pids = (acme.pid(), globex.pid());
    host.kill();
    host.up();
    let (acme, globex) = (acme.is_ready(), globex.is_ready());
    assert_eq!((acme.pid(), globex.pid()), pids);
    assert_eq!(users([&acme, &globex]), before);
    let notify = host.runtime_dir().join("instances/acme.2.notify");
    assert_eq!(owner(&notify), (before[0], before[0], 0o600));
    // A supervisor that executes its program anew takes them over too, and hears them at their sockets.
    let (taken_over, before_it) = (
        "taken over as they are",
        host.said("taken over as they are"),
    );
    host.succeed();
    until(Duration::from_secs(30), "the next program", || {
        (host.said(taken_over) > before_it).then_some(())
    });
    let (acme, globex) = (acme.is_ready(), globex.is_ready());
    assert_eq!((acme.pid(), globex.pid()), pids);
    acme.api().get("/agents").expect(200);
    // And one with new brokers, and without the record.
    host.stop();
    fs::remove_file(host.state_dir().join("uids")).unwrap();
    host.up();
    let (acme, globex) = (acme.is_ready(), globex.is_ready());
    assert_eq!(users([&acme, &globex]), before);

    // A tenant that returns has its user, and meanwhile no other tenant had it.
    let text = acme.read_file();
    acme.remove_file();
    host.reload().ok();
    acme.is_gone();
    let initech = host.tenant("initech").up();
    let third = runs_as_its_own_user(&initech);
    assert!(third != before[0] && third != before[1], "{third}");
    acme.replace_file(&text);
    let acme = acme.is_ready();
    assert_eq!(users([&acme, &globex]), before);

    // Under another name the schema keeps its folder, and the folder its user.
    acme.remove_file();
    host.reload().ok();
    acme.is_gone();
    let renamed = host.tenant("renamed").schema("tenant_acme").up();
    assert_eq!(runs_as_its_own_user(&renamed), before[0]);
    assert_eq!(renamed.pak(), pak);
    renamed.api().get("/agents").expect(200);
}

#[test]
fn a_tenant_without_a_user_id_left_is_refused_with_what_to_write_and_started_once_there_is_one() {
    if !as_root() {
        return;
    }
    // No other test has this range: an id that any process has is not given out again.
    let host = host_with("61700-61700");
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").write();
    let refused = globex.wait("a refusal", |t| {
        t.state == "refused" && t.words().contains("user id")
    });
    let reason = refused.reason.unwrap();
    for part in ["uids = \"61700-61700\"", "larger range", "start globex"] {
        assert!(reason.contains(part), "{reason}");
    }
    acme.get("/healthz").expect(200);
    // The files of a removed tenant keep their user.
    acme.remove_file();
    // Not a success, because a tenant is still refused.
    assert_eq!(host.reload().code, Some(1));
    acme.is_gone();
    globex.wait("a refusal", |t| {
        t.state == "refused" && t.words().contains("user id")
    });
    fs::remove_dir_all(acme.state_dir()).unwrap();
    host.command(&["start", "globex"]).ok();
    assert_eq!(runs_as_its_own_user(&globex.is_ready()), 61_700);
}

#[test]
fn an_installation_gets_user_ids_and_loses_them_by_overlap() {
    if !as_root() {
        return;
    }
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let (first, pak) = (acme.pid(), acme.pak());
    assert_eq!(acme.status().uid, Some(0));
    let told = host.command(&["status", "acme"]).ok();
    assert!(
        told.contains("uid        0, the supervisor's and every tenant's"),
        "{told}"
    );
    assert_eq!(owner(&host.runtime_dir().join("instances")), (0, 0, 0o700));

    host.kill();
    host.set("isolation.uids", "\"61000-61009\"").up();
    let second = acme.replaced(first);
    assert_eq!(second.restarts, 0);
    assert_eq!(runs_as_its_own_user(&acme), 61_000);
    assert_eq!(acme.pak(), pak);
    acme.api().get("/agents").expect(200);

    host.kill();
    host.set("isolation.uids", "\"61500-61509\"").up();
    acme.replaced(second.pid.unwrap());
    assert_eq!(runs_as_its_own_user(&acme), 61_500);

    let third = acme.pid();
    host.kill();
    host.unset("isolation.uids").up();
    acme.replaced(third);
    assert_eq!(acme.status().uid, Some(0));
    assert_eq!(owner(&acme.state_dir()), (0, 0, 0o700));
    assert_eq!(owner(&acme.state_dir().join("admin.pak")), (0, 0, 0o600));
    acme.api().get("/agents").expect(200);
}

#[test]
fn a_tenant_with_a_user_of_its_own_serves_and_connects_by_unix_sockets() {
    if !as_root() {
        return;
    }
    let host = host_with("61200-61209");
    let socket = host.root().join("acme.sock");
    let acme = host
        .tenant("acme")
        .listen(&format!("unix:{}", socket.display()))
        .url(&host.server().unix_url("brokkr", "brokkr"))
        .up();
    assert_eq!(runs_as_its_own_user(&acme), 61_200);
    // The socket is the supervisor's, and as open as a port.
    assert_eq!(owner(&socket), (0, 0, 0o666));
    acme.api().get("/agents").expect(200);
    let killed = acme.pid();
    acme.signal(nix::sys::signal::Signal::SIGKILL);
    acme.replaced(killed);
    acme.api().get("/agents").expect(200);
}

#[test]
fn user_ids_without_root_are_an_error_of_the_configuration() {
    if !as_root() {
        return;
    }
    let host = host_with("61300-61309");
    // Another user can read the file and make the folders.
    set_mode(&host.config(), 0o644);
    let user = 61_399;
    std::os::unix::fs::chown(host.root(), Some(user), None).unwrap();
    let mut run = Command::new("setpriv");
    run.args([&format!("--reuid={user}"), "--clear-groups", "--"])
        .arg(bin::supervisor())
        .args(["run", "--config"])
        .arg(host.config());
    let ran = bin::run_command(run, Duration::from_secs(30));
    assert_eq!(ran.code, Some(78), "{ran:?}");
    let file = fs::read_to_string(host.config()).unwrap();
    let line = 1 + file.lines().position(|l| l.starts_with("uids")).unwrap();
    let place = format!("{}:{line}:", host.config().display());
    for part in [&*place, "only root", "root.conf"] {
        assert!(ran.stderr.contains(part), "{ran:?}");
    }
}

#[test]
fn tenants_with_users_of_their_own_use_the_embedded_server_by_a_password() {
    if !as_root() {
        return;
    }
    let host = Host::builder().embedded().build();
    let acme = host.tenant("acme").up();
    let first = acme.pid();
    acme.api().get("/agents").expect(200);
    let folder = host.runtime_dir().join("postgres");
    assert_eq!(owner(&folder).2, 0o700);

    // The server takes the tenants' new way to log in, with the data that it has.
    host.stop();
    host.set("isolation.uids", "\"61400-61409\"").up();
    acme.replaced(first);
    assert_eq!(runs_as_its_own_user(&acme), 61_400);
    acme.api().get("/agents").expect(200);
    let password = host.state_dir().join("postgres.password");
    assert_eq!(owner(&password), (0, 0, 0o600));
    let password = fs::read_to_string(password).unwrap();
    assert!(!host.log().contains(&password));
    assert_eq!(owner(&folder).2, 0o711);

    // A restarted server does so too, and a user without the password cannot log in.
    host.stop();
    host.up();
    let globex = host.tenant("globex").up();
    assert_eq!(runs_as_its_own_user(&globex), 61_401);
    globex.api().get("/agents").expect(200);
    let mut stranger = Command::new("setpriv");
    stranger
        .args([
            "--reuid=61400",
            "--regid=61400",
            "--clear-groups",
            "psql",
            "--no-password",
        ])
        .args(["-c", "SELECT 1", "-U", "brokkr", "-d", "brokkr", "-h"])
        .arg(&folder);
    let refused = bin::run_command(stranger, Duration::from_secs(30));
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(
        refused.stderr.contains("no password supplied"),
        "{refused:?}"
    );
}
