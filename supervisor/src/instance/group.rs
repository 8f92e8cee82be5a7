//! A control group for each instance, in the subtree that systemd keeps for us.
//!
//! `brokkr-tenants.service` holds the subtree and nothing else (see its comment); it is found beside our own unit's group.
//! A group bounds its instance (`[limits]`) and ends it with everything it has started, whatever that did to get away.
//! Where there is no such subtree, or we may not use it, instances run without: their session stands in for the group, and
//! `status` says which limits are not enforced.

use crate::lifecycle::InstanceId;
use brokkr_tenant::{LimitsConfig, TenantName};
use nix::unistd::geteuid;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The unit that holds the subtree.
const HOLDER: &str = "brokkr-tenants.service";
/// Controllers that `[limits]` needs.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Where instances get their groups.
#[derive(Debug, Clone, Default)]
pub(crate) struct Groups {
    /// The holder's group; `None`: instances run without.
    root: Option<PathBuf>,
    /// Controllers that can be set in groups below it.
    controllers: Vec<String>,
    /// Why there is no subtree, where one was to be expected.
    problem: Option<String>,
}

impl Groups {
    /// Looks for the subtree, and turns the controllers on in it.
    pub(crate) fn detect() -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (Some(mount), Some(own)) = (unified(&mounts), own_group(&own)) else {
            return Self::default();
        };
        match own
            .parent()
            .map(|parent| join(&mount, &parent.join(HOLDER)))
        {
            Some(root) if root.is_dir() => Self::at(root),
            _ => Self::default(),
        }
    }

    fn at(root: PathBuf) -> Self {
        // To move a process takes the right to write both where it goes and where the two ways part.
        let parent = root.parent().unwrap_or(&root).to_owned();
        for folder in [&root, &parent] {
            let procs = folder.join("cgroup.procs");
            if !may_write(&procs) {
                return Self {
                    problem: Some(format!("{} is not ours to write", procs.display())),
                    ..Self::default()
                };
            }
        }
        let there = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let turned_on = |controller: &&&str| {
            there.split_whitespace().any(|there| there == **controller)
                && write(
                    &root.join("cgroup.subtree_control"),
                    &format!("+{controller}"),
                )
                .is_ok()
        };
        Self {
            controllers: CONTROLLERS
                .iter()
                .filter(turned_on)
                .map(|controller| (*controller).to_owned())
                .collect(),
            root: Some(root),
            problem: None,
        }
    }

    /// What keeps instances from having groups, where they should.
    pub(crate) fn problem(&self) -> Option<String> {
        let problem = self.problem.as_ref()?;
        Some(format!(
            "brokers have no control groups of their own ({problem}): [limits] is not enforced"
        ))
    }

    /// Which of these limits are not enforced, and why.
    pub(crate) fn unenforced(&self, limits: &LimitsConfig) -> Option<String> {
        let asked = [
            ("memory_max", "memory", limits.memory_max.is_some()),
            ("cpu_weight", "cpu", limits.cpu_weight.is_some()),
            ("pids_max", "pids", limits.pids_max.is_some()),
        ];
        let missing: Vec<&str> = asked
            .iter()
            .filter(|(_, controller, asked)| {
                *asked && !self.controllers.iter().any(|c| c == controller)
            })
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

    /// The group of one instance, whether it is there or not; `None` where instances have none.
    pub(crate) fn of(&self, tenant: &TenantName, id: InstanceId) -> Option<Group> {
        let path = self.root.as_ref()?.join(format!("{tenant}.{}", id.0));
        Some(Group {
            path,
            controllers: self.controllers.clone(),
        })
    }

    /// Removes groups in which nothing is left: of instances that ended while nobody looked.
    pub(crate) fn tidy(&self) {
        let entries = self
            .root
            .iter()
            .filter_map(|root| std::fs::read_dir(root).ok());
        for entry in entries.flatten().flatten() {
            // Refused as long as a process is in it.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = std::fs::remove_dir(entry.path());
            }
        }
    }

    /// Ends everything in every group.
    pub(crate) fn end_all(&self) {
        let entries = self
            .root
            .iter()
            .filter_map(|root| std::fs::read_dir(root).ok());
        for entry in entries.flatten().flatten() {
            let _ = write(&entry.path().join("cgroup.kill"), "1");
        }
        self.tidy();
    }
}

/// The group of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    path: PathBuf,
    controllers: Vec<String>,
}

impl Group {
    /// Makes it, with these limits.
    ///
    /// # Errors
    /// Which file could not be written.
    pub(crate) fn create(&self, limits: &LimitsConfig) -> io::Result<()> {
        match DirBuilder::new().mode(0o755).create(&self.path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(said(&self.path, error));
            }
            // Of an instance of this number that left something behind; limits are set anew.
            _ => {}
        }
        // Without this it would go on in the host's swap: slow, past its limit, its tenant's secrets on disk. A kernel without
        // swap has no such file.
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
            // One process out of memory is the whole instance's end: half a broker is worse than none.
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
                && self.controllers.iter().any(|there| there == controller)
            {
                write(&self.path.join(file), &value)?;
            }
        }
        Ok(())
    }

    /// Puts a process into it.
    ///
    /// # Errors
    /// When that may not be.
    pub(crate) fn enter(&self, pid: i32) -> io::Result<()> {
        write(&self.path.join("cgroup.procs"), &pid.to_string())
    }

    /// Ends everything in it; false where it is not there or cannot be (Linux before 5.14).
    pub(crate) fn end(&self) -> bool {
        write(&self.path.join("cgroup.kill"), "1").is_ok()
    }

    /// Whether the kernel ended it because it was out of its memory.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        let events = std::fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let count = |key: &str| {
            let line = events.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|count| count.trim().parse::<u64>().ok())
        };
        count("oom_kill ").is_some_and(|count| count > 0)
    }

    /// Removes it; what is still in it, dying, is tidied up later.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// By its owner and mode alone: where two ways part nothing is written, so it may well be mounted read-only for us.
fn may_write(path: &Path) -> bool {
    let us = geteuid();
    us.is_root()
        || std::fs::metadata(path).is_ok_and(|m| m.uid() == us.as_raw() && m.mode() & 0o200 != 0)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // Never created: on a file system that is no cgroup it would only look as if it worked.
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

/// Our group in the unified hierarchy.
fn own_group(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.into())
}

/// Where the unified hierarchy is mounted.
fn unified(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next()? == "cgroup2").then_some(())?;
        Some(mount.split(' ').nth(4)?.into())
    })
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
    fn limits_are_written_for_controllers_that_are_there_and_named_where_they_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let limits = LimitsConfig {
            memory_max: Some(ByteSize::bytes(256 << 20)),
            cpu_weight: Some(50),
            pids_max: None,
        };
        let groups = Groups {
            root: Some(folder.path().into()),
            controllers: vec!["memory".into()],
            problem: None,
        };
        let unenforced = groups.unenforced(&limits).unwrap();
        assert!(unenforced.contains("cpu_weight") && !unenforced.contains("memory_max"));
        assert!(
            Groups::default()
                .unenforced(&limits)
                .unwrap()
                .contains("memory_max, cpu_weight")
        );
        assert!(
            Groups::default()
                .unenforced(&LimitsConfig::default())
                .is_none()
        );

        let group = groups
            .of(&TenantName::parse("acme").unwrap(), InstanceId(7))
            .unwrap();
        // Files are never made: the kernel makes those of a real group.
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
