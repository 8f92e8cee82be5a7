//! Reads the cgroup of a broker and starts processes in it.

use brokkr_tests::host::TenantStatus;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The limits of a process's cgroup.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    memory: String,
    swap: String,
    whole: String,
    cpu: String,
    pids: String,
}

impl Allowed {
    pub(crate) fn new(memory: &str, swap: &str, whole: &str, cpu: &str, pids: &str) -> Self {
        let [memory, swap, whole, cpu, pids] = [memory, swap, whole, cpu, pids].map(str::to_owned);
        Self {
            memory,
            swap,
            whole,
            cpu,
            pids,
        }
    }

    pub(crate) fn of(group: &Path) -> Self {
        Self::new(
            &read(group, "memory.max"),
            &read(group, "memory.swap.max"),
            &read(group, "memory.oom.group"),
            &read(group, "cpu.weight"),
            &read(group, "pids.max"),
        )
    }
}

pub(crate) fn read(group: &Path, file: &str) -> String {
    let path = group.join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

pub(crate) fn figure(group: &Path, file: &str, key: &str) -> u64 {
    let text = read(group, file);
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().trim().parse().unwrap()
}

/// Returns the cgroup of a tenant's broker, which must be its own.
pub(crate) fn group(tenant: &TenantStatus) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", tenant.pid.unwrap())).unwrap();
    let own = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap();
    let prefix = format!(
        "/brokkr.slice/brokkr-tenants.service/run-brokkr/{}.",
        tenant.name
    );
    assert!(own.starts_with(&prefix), "{own}");
    Path::new("/sys/fs/cgroup").join(own.trim_start_matches('/'))
}

/// Starts a shell that moves into a cgroup and then runs `what`.
pub(crate) fn in_group(group: &Path, what: &str) -> Child {
    Command::new("sh")
        .arg("-c")
        .arg(format!(
            "echo $$ >{}/cgroup.procs && {what}",
            group.display()
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
