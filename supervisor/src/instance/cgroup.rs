//! Gives each instance a cgroup in the subtree that systemd delegates to the supervisor.
//!
//! `brokkr-tenants.service` holds the subtree and runs nothing else (see its comment); it stands beside the
//! supervisor's own unit. Several supervisors of a host may share it, so each keeps its cgroups in a folder named after
//! its runtime folder, and changes nothing outside: `brokkr-tenants.service/run-brokkr/acme.7`. A cgroup bounds its
//! instance (`[limits]`) and ends it with all its descendants. Without a usable subtree, instances run without cgroups:
//! only their session is ended, and `status` says which limits are not enforced.

use crate::lifecycle::InstanceId;
use brokkr_tenant::{BrokerConfig, LimitsConfig, TenantName};
use nix::unistd::geteuid;
use sha2::{Digest, Sha256};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// `pids.max` unless `[limits] pids_max` is set: enough for a broker of the usual size, and too few to harm the host.
const PIDS: u32 = 64;
/// The most threads of a broker besides those that work on the database.
const OTHER_THREADS: u32 = 40;

/// Returns the limits of a tenant's instances.
pub(crate) fn limits_of(config: &BrokerConfig) -> LimitsConfig {
    let pids = PIDS.max(config.database.max_working + OTHER_THREADS);
    LimitsConfig {
        pids_max: config.limits.pids_max.or(Some(pids)),
        ..config.limits
    }
}

/// The unit that holds the subtree.
const HOLDER: &str = "brokkr-tenants.service";
/// Controllers that `[limits]` needs.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// The longest folder name in bytes, below the limit of 255; a longer name is cut and made unique by a hash.
const LONGEST_NAME: usize = 200;
/// The longest wait for killed processes to leave their cgroup.
const DYING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

/// The cgroups of all instances.
#[derive(Debug, Clone, Default)]
pub(crate) struct CgroupTree {
    /// This supervisor's folder in the holder's cgroup; `None` when instances have no cgroups.
    root: Option<PathBuf>,
    /// The mount point of the hierarchy.
    mount: PathBuf,
    /// Controllers that can be set in the instances' cgroups.
    controllers: Vec<&'static str>,
    /// Reason why the holder's subtree cannot be used.
    problem: Option<String>,
}

/// The instance in whose cgroup a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InstanceGroup {
    /// An instance of this tenant.
    Ours(String),
    /// An instance of another supervisor of this host.
    Others,
}

impl CgroupTree {
    /// Finds the subtree, creates this supervisor's folder in it, and enables the controllers in both.
    pub(crate) fn detect(runtime_dir: &Path) -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (Some(mount), Some(own)) = (unified(&mounts), own_group(&own)) else {
            return Self::default();
        };
        let holder = own.parent().map(|parent| parent.join(HOLDER));
        match holder.map(|holder| join(&mount, &holder)) {
            Some(holder) if holder.is_dir() => Self::at(mount, &holder, runtime_dir),
            _ => Self::default(),
        }
    }

    fn at(mount: PathBuf, holder: &Path, runtime_dir: &Path) -> Self {
        let without = |problem: String| Self {
            problem: Some(problem),
            ..Self::default()
        };
        // Moving a process needs write permission at its destination and at the common ancestor.
        let parent = holder.parent().unwrap_or(holder);
        for folder in [holder, parent] {
            let procs = folder.join("cgroup.procs");
            if !may_write(&procs) {
                return without(format!("{} is not ours to write", procs.display()));
            }
        }
        let root = holder.join(folder_name(runtime_dir));
        if let Err(error) = make(&root) {
            return without(error.to_string());
        }
        let there = std::fs::read_to_string(holder.join("cgroup.controllers")).unwrap_or_default();
        let turned_on = |controller: &&str| {
            there.split_whitespace().any(|there| there == *controller)
                && [holder, &root].into_iter().all(|folder| {
                    let control = folder.join("cgroup.subtree_control");
                    write(&control, &format!("+{controller}")).is_ok()
                })
        };
        Self {
            controllers: CONTROLLERS.into_iter().filter(turned_on).collect(),
            root: Some(root),
            mount,
            problem: None,
        }
    }

    /// Describes why instances have no cgroups although the subtree exists, or existed.
    pub(crate) fn problem(&self) -> Option<String> {
        // Inside the unit's mount namespace, a holder's cgroup that was created again is read-only.
        let gone = self.root.as_ref().filter(|root| !root.is_dir());
        let gone = gone.map(|root| {
            format!(
                "{} has gone; `systemctl restart brokkr-supervisor` makes it again, puts every broker back and ends none",
                root.display()
            )
        });
        let problem = self.problem.clone().or(gone)?;
        Some(format!(
            "brokers have no control groups of their own ({problem}): [limits] is not enforced"
        ))
    }

    /// Names the limits that are not enforced, and the reason.
    pub(crate) fn unenforced(&self, limits: &LimitsConfig) -> Option<String> {
        let asked = [
            ("memory_max", "memory", limits.memory_max.is_some()),
            ("cpu_weight", "cpu", limits.cpu_weight.is_some()),
            ("pids_max", "pids", limits.pids_max.is_some()),
        ];
        let missing: Vec<&str> = asked
            .iter()
            .filter(|(_, controller, asked)| *asked && !self.controllers.contains(controller))
            .map(|(key, _, _)| *key)
            .collect();
        if missing.is_empty() {
            return None;
        }
        let why = match (&self.root, &self.problem) {
            (Some(_), _) => "the controller is not there".to_owned(),
            (None, Some(problem)) => problem.clone(),
            (None, None) => format!("there is no {HOLDER} beside this supervisor"),
        };
        Some(format!(
            "[limits] {}: not enforced: {why}",
            missing.join(", ")
        ))
    }

    /// Moves an adopted instance into its own cgroup. Returns true when it was elsewhere: an older version used another
    /// name, and a cgroup can be lost while its broker runs.
    pub(crate) fn put_back(
        &self,
        tenant: &TenantName,
        id: InstanceId,
        pid: i32,
        limits: &LimitsConfig,
    ) -> io::Result<bool> {
        let Some(group) = self.of(tenant, id) else {
            return Ok(false);
        };
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let is_in = own_group(&text).map(|own| join(&self.mount, &own));
        if is_in.as_ref() == Some(&group.path) {
            return Ok(false);
        }
        group.create(limits)?;
        group.enter(pid)?;
        self.remove_older(tenant, id);
        Ok(true)
    }

    /// Returns the instance in whose cgroup a process is; `None` when the process is in none.
    pub(crate) fn instance_of(&self, pid: i32) -> Option<InstanceGroup> {
        let root = self.root.as_deref()?;
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        instance_at(root, &join(&self.mount, &own_group(&text)?))
    }

    /// Removes the cgroup that an older version made for this instance, once it is empty.
    pub(crate) fn remove_older(&self, tenant: &TenantName, id: InstanceId) {
        if let Some(holder) = self.root.as_deref().and_then(Path::parent) {
            let _ = std::fs::remove_dir(holder.join(group_name(tenant, id)));
        }
    }

    /// Returns the cgroup of one instance, which may not exist yet; `None` when instances have no cgroups.
    pub(crate) fn of(&self, tenant: &TenantName, id: InstanceId) -> Option<Cgroup> {
        let path = self.root.as_ref()?.join(group_name(tenant, id));
        Some(Cgroup {
            path,
            controllers: self.controllers.clone(),
        })
    }

    /// Removes the empty cgroups of this supervisor.
    pub(crate) fn tidy(&self) {
        let entries = self
            .root
            .iter()
            .filter_map(|root| std::fs::read_dir(root).ok());
        for entry in entries.flatten().flatten() {
            // Fails while a process is in the cgroup.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = std::fs::remove_dir(entry.path());
            }
        }
    }

    /// Removes this supervisor's cgroups and its folder, if empty. Returns true when the folder is gone.
    pub(crate) fn remove(&self) -> bool {
        let Some(root) = &self.root else { return true };
        self.tidy();
        match std::fs::remove_dir(root) {
            Ok(()) => true,
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    }

    /// Kills every process in the cgroups of this supervisor, and removes them. Blocks.
    pub(crate) fn end_all(&self) {
        let Some(root) = &self.root else { return };
        let _ = write(&root.join("cgroup.kill"), "1");
        let began = Instant::now();
        while !self.remove() && began.elapsed() < DYING {
            std::thread::sleep(LOOK);
        }
    }
}

/// The cgroup of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    path: PathBuf,
    controllers: Vec<&'static str>,
}

impl Cgroup {
    /// Creates the cgroup with these limits.
    pub(crate) fn create(&self, limits: &LimitsConfig) -> io::Result<()> {
        // The cgroup may exist already, from an instance of this number that left a process behind.
        make(&self.path)?;
        // Otherwise a broker over its limit would swap: slow, unbounded, and with its tenant's secrets on disk. A
        // kernel without swap has no such file.
        let swap = self.path.join("memory.swap.max").exists();
        let settings = [
            (
                "memory",
                "memory.max",
                limits.memory_max.map(|max| max.get().to_string()),
            ),
            (
                "memory",
                "memory.swap.max",
                limits.memory_max.filter(|_| swap).map(|_| "0".to_owned()),
            ),
            // When one process runs out of memory, the kernel kills the whole instance; otherwise part of a broker
            // would go on.
            (
                "memory",
                "memory.oom.group",
                limits.memory_max.map(|_| "1".to_owned()),
            ),
            (
                "cpu",
                "cpu.weight",
                limits.cpu_weight.map(|weight| weight.to_string()),
            ),
            (
                "pids",
                "pids.max",
                limits.pids_max.map(|max| max.to_string()),
            ),
        ];
        for (controller, file, value) in settings {
            if let Some(value) = value
                && self.controllers.contains(&controller)
            {
                write(&self.path.join(file), &value)?;
            }
        }
        Ok(())
    }

    /// Moves a process into the cgroup.
    pub(crate) fn enter(&self, pid: i32) -> io::Result<()> {
        write(&self.path.join("cgroup.procs"), &pid.to_string())
    }

    /// Kills every process in the cgroup. Returns false when it does not exist, or on Linux before 5.14.
    pub(crate) fn end(&self) -> bool {
        write(&self.path.join("cgroup.kill"), "1").is_ok()
    }

    /// Returns true when the kernel killed a process of the cgroup for want of memory.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        let events = std::fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let count = |key: &str| {
            let line = events.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|count| count.trim().parse::<u64>().ok())
        };
        count("oom_kill ").is_some_and(|count| count > 0)
    }

    /// Removes the cgroup if it is empty; otherwise it is removed later.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// Judges by owner and mode alone: the common ancestor is never written, so its mount may be read-only.
fn may_write(path: &Path) -> bool {
    let us = geteuid();
    us.is_root()
        || std::fs::metadata(path).is_ok_and(|m| m.uid() == us.as_raw() && m.mode() & 0o200 != 0)
}

/// Creates a cgroup, unless it exists.
fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(said(path, error)),
        _ => Ok(()),
    }
}

fn group_name(tenant: &TenantName, id: InstanceId) -> String {
    format!("{tenant}.{}", id.0)
}

/// Names a supervisor's folder after its runtime folder, as systemd names units after paths. Different paths give
/// different names, and no name looks like an instance's cgroup, which has a dot in it.
fn folder_name(runtime_dir: &Path) -> String {
    let path = std::fs::canonicalize(runtime_dir);
    let path = path.as_deref().unwrap_or(runtime_dir);
    let mut name = String::new();
    for byte in path.as_os_str().as_bytes().iter().skip(1) {
        match byte {
            b'/' => name.push('-'),
            b'_' => name.push('_'),
            byte if byte.is_ascii_alphanumeric() => name.push(char::from(*byte)),
            byte => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    if name.is_empty() {
        name.push('-');
    }
    if name.len() > LONGEST_NAME {
        let hash = Sha256::digest(name.as_bytes());
        name.truncate(LONGEST_NAME / 2);
        name.push_str("\\x00");
        hash.iter()
            .for_each(|byte| name.push_str(&format!("{byte:02x}")));
    }
    name
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // Never creates a file: on a file system other than cgroup2 that would only look like success.
    let mut file: File = OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(|error| said(path, error))?;
    file.write_all(text.as_bytes())
        .map_err(|error| said(path, error))
}

fn said(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Returns the cgroup of a process in the unified hierarchy, from its `/proc/PID/cgroup`.
fn own_group(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.into())
}

/// Returns the mount point of the unified hierarchy.
fn unified(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next()? == "cgroup2").then_some(())?;
        Some(mount.split(' ').nth(4)?.into())
    })
}

/// Returns the instance of a cgroup, for a supervisor whose folder is `root`.
fn instance_at(root: &Path, group: &Path) -> Option<InstanceGroup> {
    let below = group.strip_prefix(root.parent()?).ok()?;
    // A descendant may be in a cgroup below its instance's.
    let own = group
        .strip_prefix(root)
        .ok()
        .and_then(|own| own.iter().next());
    match own.and_then(|name| name.to_str()?.rsplit_once('.')) {
        Some((tenant, _)) => Some(InstanceGroup::Ours(tenant.to_owned())),
        None => (below.components().next().is_some()).then_some(InstanceGroup::Others),
    }
}

fn join(mount: &Path, group: &Path) -> PathBuf {
    mount.join(group.strip_prefix("/").unwrap_or(group))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use brokkr_tenant::ByteSize;

    #[test]
    fn the_subtree_is_looked_for_beside_our_own_unit_in_the_unified_hierarchy() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 23 0:27 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            unified(mounts).unwrap(),
            Path::new("/sys/fs/cgroup/unified")
        );
        let own = own_group("4:memory:/x\n0::/brokkr.slice/brokkr-supervisor.service\n").unwrap();
        assert_eq!(
            join(Path::new("/m"), &own.parent().unwrap().join(HOLDER)),
            Path::new("/m/brokkr.slice/brokkr-tenants.service")
        );
        assert_eq!(unified("1 2 3:4 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn a_process_is_an_instances_in_its_cgroup_and_below_it_and_nowhere_else() {
        let holder = "/m/brokkr.slice/brokkr-tenants.service";
        let root = format!("{holder}/run-brokkr");
        let at = |group: &str| instance_at(Path::new(&root), Path::new(group));
        let acme = Some(InstanceGroup::Ours("acme".to_owned()));
        assert_eq!(at(&format!("{root}/acme.7")), acme);
        assert_eq!(at(&format!("{root}/acme.7/below")), acme);
        let others = format!("{holder}/run-other/globex.1");
        assert_eq!(at(&others), Some(InstanceGroup::Others));
        for group in [
            holder,
            "/m/brokkr.slice/brokkr-supervisor.service",
            "/m/user.slice",
        ] {
            assert_eq!(at(group), None, "{group}");
        }
    }

    #[test]
    fn two_runtime_folders_never_share_a_name_and_none_looks_like_an_instances_group() {
        let name = |path: &str| folder_name(Path::new(path));
        assert_eq!(name("/run/nowhere"), "run-nowhere");
        assert_eq!(name("/run-nowhere"), "run\\x2dnowhere");
        assert_eq!(name("/acme.1"), "acme\\x2e1");
        assert_eq!(name("/"), "-");
        let long = |end: &str| name(&format!("/{}{end}", "é".repeat(60)));
        assert_ne!(long("a"), long("b"));
        assert!(long("a").len() < 255);
    }

    #[test]
    fn limits_are_written_for_controllers_that_are_there_and_named_where_they_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let limits = LimitsConfig {
            memory_max: Some(ByteSize::bytes(256 << 20)),
            cpu_weight: Some(50),
            pids_max: None,
        };
        let groups = CgroupTree {
            root: Some(folder.path().into()),
            controllers: vec!["memory"],
            ..CgroupTree::default()
        };
        let unenforced = groups.unenforced(&limits).unwrap();
        assert!(unenforced.contains("cpu_weight") && !unenforced.contains("memory_max"));
        assert!(
            CgroupTree::default()
                .unenforced(&limits)
                .unwrap()
                .contains("memory_max, cpu_weight")
        );
        assert!(
            CgroupTree::default()
                .unenforced(&LimitsConfig::default())
                .is_none()
        );

        let group = groups
            .of(&TenantName::parse("acme").unwrap(), InstanceId(7))
            .unwrap();
        // `create` makes no files, because the kernel makes those of a real cgroup.
        assert!(
            group
                .create(&limits)
                .unwrap_err()
                .to_string()
                .contains("memory.max")
        );
        let made = folder.path().join("acme.7");
        for file in ["memory.max", "memory.oom.group", "cgroup.procs"] {
            std::fs::write(made.join(file), "").unwrap();
        }
        group.create(&limits).unwrap();
        group.enter(4711).unwrap();
        let read = |file: &str| std::fs::read_to_string(made.join(file)).unwrap();
        assert_eq!(read("memory.max"), "268435456");
        assert_eq!(read("memory.oom.group"), "1");
        assert_eq!(read("cgroup.procs"), "4711");
        std::fs::write(made.join("memory.swap.max"), "").unwrap();
        group.create(&limits).unwrap();
        assert_eq!(read("memory.swap.max"), "0");
        assert!(!group.end() && !group.was_out_of_memory());
        std::fs::write(made.join("memory.events"), "low 0\noom 1\noom_kill 1\n").unwrap();
        assert!(group.was_out_of_memory());
    }
}
