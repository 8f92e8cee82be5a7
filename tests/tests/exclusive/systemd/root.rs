//! The supervisor runs as root under systemd, and each tenant's broker as a user of its own.

use crate::systemd::booted::{Booted, impossible};
use crate::systemd::{pids, tenant};
use brokkr_tests::{Addr, Api, Load, alone};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The URL of a server beside the supervisor, because an embedded server would have to be stopped for the switch.
const SUPERVISOR: &str = r#"
tenants_dir = "/etc/brokkr/tenants.d"
state_dir   = "/var/lib/brokkr"
runtime_dir = "/run/brokkr"

[defaults.database]
url = "postgres://brokkr@127.0.0.1:5432/brokkr"
"#;

/// Runs a PostgreSQL of this machine until the machine ends.
const SERVER: &str = r#"bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1) && mkdir -p /run/pg && chown nobody /run/pg &&
setpriv --reuid=nobody --clear-groups $bin/initdb -D /run/pg/data -U postgres -A trust -E UTF8 --locale=C --no-sync >/dev/null &&
systemd-run --quiet --unit=pg -p User=nobody $bin/postgres -D /run/pg/data -k /run/pg -c listen_addresses=127.0.0.1 -c fsync=off &&
until $bin/pg_isready -q -h 127.0.0.1; do sleep 0.1; done &&
$bin/createuser -h 127.0.0.1 -U postgres brokkr && $bin/createdb -h 127.0.0.1 -U postgres -O brokkr brokkr"#;

/// The steps in the comment of the drop-in.
const SWITCH: &str = r#"install -D -m 644 /usr/share/brokkr/root.conf /etc/systemd/system/brokkr-supervisor.service.d/root.conf &&
printf '[isolation]\nuids = "60600-61183"\n' >>/etc/brokkr/supervisor.toml &&
systemctl daemon-reload && systemctl restart brokkr-supervisor"#;

/// Orders a stop from within the control group of a broker.
const FROM_INSIDE: &str = r#"cd /sys/fs/cgroup/brokkr.slice/brokkr-tenants.service/run-brokkr/acme.2 &&
echo $$ >cgroup.procs && exec setsid --wait brokkr-supervisor stop globex"#;

/// Returns the user and the capabilities of a process of the machine, with the bounding set.
fn credentials(machine: &Booted, pid: i32) -> String {
    let fields = "/^(Uid|Gid|Groups|CapEff|CapBnd):/ {print $1, $2}";
    let path = format!("/proc/{pid}/status");
    machine.ok(&["awk", fields, &path]).replace('\n', " ")
}

#[test]
fn the_supervisor_runs_as_root_and_each_broker_as_its_own_user_and_no_request_is_lost_on_the_way() {
    let _alone = alone();
    if let Some(reason) = impossible() {
        println!("skipped: {reason}");
        return;
    }
    let acme = tenant("acme", "unix:/run/brokkr/acme.sock");
    let globex = tenant("globex", "127.0.0.1:3002");
    let machine = Booted::boot(&[
        ("supervisor.toml", SUPERVISOR),
        ("tenants.d/acme.toml", &acme),
        ("tenants.d/globex.toml", &globex),
    ]);
    machine.installed();
    machine.ok(&["sh", "-c", SERVER]);
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    let before = pids(&machine.ready(2));
    let addr = Addr::Unix(machine.path("/run/brokkr/acme.sock"));
    let pak = machine.ok(&["brokkr-supervisor", "pak", "acme"]);

    // Root takes over from user brokkr, and every broker is replaced by overlap.
    let kept = Load::start(&addr, "/healthz", "", 2, false);
    machine.ok(&["sh", "-c", SWITCH]);
    let root = machine.wait(60, "brokers with users of their own", || {
        let status = machine.ready(2);
        let uids: Vec<_> = status.tenants.iter().map(|t| t.uid).collect();
        match uids.as_slice() {
            [Some(60_600), Some(60_601)] | [Some(60_601), Some(60_600)] => Ok(status),
            other => Err(format!("{other:?}")),
        }
    });
    let seen = kept.stop();
    assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");
    let brokers = pids(&root);
    assert!(brokers.iter().all(|pid| !before.contains(pid)), "{root:?}");
    assert!(root.tenants.iter().all(|t| t.restarts == 0), "{root:?}");
    assert_eq!(
        machine.broker_count(),
        0,
        "of user brokkr: {}",
        machine.processes()
    );

    // The users are the kernel's, and so is what the supervisor may do.
    for tenant in &root.tenants {
        let uid = tenant.uid.unwrap();
        let nothing = "0000000000000000";
        let own = format!("Uid: {uid} Gid: {uid} Groups:  CapEff: {nothing} CapBnd: {nothing} ");
        assert_eq!(credentials(&machine, tenant.pid.unwrap()), own);
        let state = machine.path(&format!("/var/lib/brokkr/tenants/{}", tenant.name));
        for path in [
            state.clone(),
            state.join("admin.pak"),
            state.join("webhook.key"),
        ] {
            assert_eq!(fs::metadata(&path).unwrap().uid(), uid, "{path:?}");
        }
        let group = machine.ok(&["cat", &format!("/proc/{}/cgroup", tenant.pid.unwrap())]);
        let own = "0::/brokkr.slice/brokkr-tenants.service/run-brokkr/";
        assert!(group.contains(&format!("{own}{}.", tenant.name)), "{group}");
    }
    let main: i32 = machine.main_pid().parse().unwrap();
    let credentials = credentials(&machine, main);
    assert!(credentials.starts_with("Uid: 0 "), "{credentials}");
    let bounding = credentials.trim().rsplit(' ').next().unwrap();
    let bounding = u64::from_str_radix(bounding, 16).unwrap();
    assert_eq!(bounding >> 21 & 1, 0, "CAP_SYS_ADMIN: {bounding:x}");
    // Every broker is in every layer under this unit's restrictions too.
    let layers = machine.wait(60, "the layers of every broker", || {
        let status = machine.ready(2);
        let layers = status.tenants.iter().map(|t| t.isolation.clone());
        layers.collect::<Option<Vec<_>>>().ok_or("not known")
    });
    for layers in layers {
        let on = |name: &str| layers.iter().any(|l| l["name"] == name && l["on"] == true);
        assert!(
            on("user") && on("seccomp") && on("capabilities"),
            "{layers:?}"
        );
    }
    let socket = ["stat", "-c", "%A %U:%G", "/run/brokkr/control.sock"];
    assert_eq!(machine.ok(&socket).trim(), "srw-rw---- root:brokkr");
    assert_eq!(machine.ok(&["brokkr-supervisor", "pak", "acme"]), pak);
    let api = Api::new(addr.clone(), pak.trim());
    api.get("/agents").expect(200);

    // The log names the program behind an order. A process in a broker's control group gives none, although it is root's
    // and has a session of its own.
    machine.journal_says("/usr/bin/brokkr-supervisor, user 0, process ");
    let order = machine.run(&["sh", "-c", FROM_INSIDE]);
    assert_eq!(order.code, Some(1), "{order:?}");
    let refusal = "this process belongs to the broker of tenant acme";
    assert!(order.stderr.contains(refusal), "{order:?}");
    assert_eq!(pids(&machine.ready(2)), brokers);

    // A kill and a restart of the supervisor end no broker, and a broker that dies has a successor with its user.
    let main = machine.main_pid();
    machine.ok(&["kill", "-9", &main]);
    machine.another_main_pid(&main);
    assert_eq!(pids(&machine.ready(2)), brokers, "{}", machine.journal());
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    assert_eq!(pids(&machine.ready(2)), brokers, "{}", machine.journal());
    let victim = root.tenant("acme").unwrap();
    machine.ok(&["kill", "-9", &victim.pid.unwrap().to_string()]);
    machine.wait(60, "a successor", || {
        let status = machine.ready(2);
        let acme = status.tenant("acme").unwrap();
        let again = acme.pid != victim.pid && acme.uid == victim.uid && acme.restarts == 1;
        if again {
            Ok(())
        } else {
            Err(format!("{acme:?}"))
        }
    });
    api.get("/agents").expect(200);

    // A stop leaves no broker of any user.
    machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(machine.run(&["pgrep", "-a", "brokkr-broker"]).stdout, "");
    let result = machine.ok(&["systemctl", "show", "-P", "Result", "brokkr-supervisor"]);
    assert_eq!(result.trim(), "success");

    for threshold in ["--threshold=30", "--threshold=20"] {
        let unit = match threshold {
            "--threshold=30" => "brokkr-supervisor.service",
            _ => "brokkr-tenants.service",
        };
        let security = ["systemd-analyze", "security", "--no-pager", threshold, unit];
        println!(
            "{}",
            machine.ok(&security).lines().last().unwrap_or_default()
        );
    }
}
