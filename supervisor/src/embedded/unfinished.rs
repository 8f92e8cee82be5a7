//! A data folder in the making: beside its place under another name, and renamed when it is whole, so that whatever
//! interrupts it leaves nothing that could be taken for a cluster.

use super::data::is_made;
use super::folder;
use crate::instance::postgres::remains;
use nix::unistd::{AccessFlags, access};
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What the name of the folder in the making ends with.
const SUFFIX: &str = ".initdb-unfinished";
/// What an `initdb` that an earlier supervisor left gets to end, and how often that is looked at.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_millis(50));

/// Makes a cluster in `data`, which is none yet: `init` is given the folder to make it in, and the lock of whoever
/// works there, to be held as long as any of its processes runs. Blocks.
///
/// # Errors
/// What is in the way.
pub(super) fn make(
    data: &Path,
    user: Option<(u32, u32)>,
    init: impl FnOnce(&Path, OwnedFd) -> Result<(), String>,
) -> Result<(), String> {
    // A link leads to where it really is, and there is what is beside it.
    let data = &fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let said = |error: io::Error| format!("{}: {error}", data.display());
    let above = data.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(above).map_err(said)?;
    let in_place = data.is_dir() && !can_be_replaced(data, above).map_err(said)?;
    let new = if in_place { data.clone() } else { beside(data) };
    let lock = lock(&new, data, user)?;
    // Who held it may have finished.
    if is_made(data) {
        return forget(data, &new);
    }
    match found(data).map_err(said)? {
        Found::Nothing => {}
        Found::Unfinished => {
            tracing::warn!(target: "postgres", "{}: initdb was interrupted there before there was a cluster: it is made anew", data.display());
            clear(data).map_err(said)?;
        }
        Found::Something => {
            forget(data, &new)?;
            return Err(format!(
                "{}: is not empty, and no data folder of PostgreSQL's, which has PG_VERSION and global/pg_control: put back what is \
                 missing, from a backup, or move it away, and an empty cluster is made",
                data.display()
            ));
        }
    }
    if in_place {
        return init(data, lock.into());
    }
    clear(&new).map_err(|error| format!("{}: {error}", new.display()))?;
    init(&new, lock.into())?;
    // What is below has been written to disk by initdb; the name is ours to write.
    fs::rename(&new, data)
        .and_then(|()| File::open(above)?.sync_all())
        .map_err(|error| {
            format!(
                "{} cannot become {}: {error}",
                new.display(),
                data.display()
            )
        })
}

fn beside(data: &Path) -> PathBuf {
    let mut name = data.file_name().unwrap_or(OsStr::new("data")).to_owned();
    name.push(SUFFIX);
    data.with_file_name(name)
}

/// Whether another folder can take the place of this one: not when something is mounted there, or when we may not write above it.
fn can_be_replaced(data: &Path, above: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mounted = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|at| Path::new(at) == data);
    let other = fs::metadata(data)?.dev() != fs::metadata(above)?.dev();
    Ok(!mounted && !other && access(above, AccessFlags::W_OK).is_ok())
}

/// Makes the folder unless it is there, and takes it, which waits for an `initdb` at work in it. Its processes inherit the
/// lock, so it lasts as long as they do, whatever has become of their supervisor.
fn lock(new: &Path, data: &Path, user: Option<(u32, u32)>) -> Result<File, String> {
    let at_work = || [new, data].iter().any(|folder| !remains(folder).is_empty());
    let said = |error: io::Error| format!("{}: {error}", new.display());
    let deadline = Instant::now() + PATIENCE.0;
    loop {
        folder::own(new, user)?;
        let folder = File::open(new).map_err(said)?;
        match folder.try_lock() {
            // One made by a supervisor from before this lock is told by its processes. One that is renamed meanwhile is another.
            Ok(()) if !at_work() && is_at(&folder, new) => return Ok(folder),
            Ok(()) | Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(said(error)),
        }
        if Instant::now() > deadline {
            return Err(format!(
                "{}: an initdb that an earlier supervisor started is still at work there",
                new.display()
            ));
        }
        sleep(PATIENCE.1);
    }
}

fn is_at(folder: &File, path: &Path) -> bool {
    folder.metadata().is_ok_and(|held| {
        fs::metadata(path).is_ok_and(|at| (at.dev(), at.ino()) == (held.dev(), held.ino()))
    })
}

/// Removes the folder in the making, which nobody needs; only while it is empty.
fn forget(data: &Path, new: &Path) -> Result<(), String> {
    match fs::remove_dir(new) {
        Err(error) if new != data && error.kind() != ErrorKind::DirectoryNotEmpty => {
            Err(format!("{}: {error}", new.display()))
        }
        _ => Ok(()),
    }
}

fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// What is where the cluster is to be.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// What an interrupted `initdb` leaves, and certainly nothing else: no file of any table.
    Unfinished,
    Something,
}

fn found(data: &Path) -> io::Result<Found> {
    let names = names(data)?;
    if names.is_empty() {
        return Ok(Found::Nothing);
    }
    let of_initdb = |name: &String| {
        name.starts_with("pg_")
            || [
                "PG_VERSION",
                "base",
                "global",
                "postgresql.conf",
                "postgresql.auto.conf",
            ]
            .contains(&name.as_str())
    };
    // Until pg_control is there, which comes before the first table.
    let first_wal = |name: &String| {
        ["archive_status", "summaries", "000000010000000000000001"].contains(&name.as_str())
            || name.starts_with("xlogtemp.")
    };
    let unfinished = names.iter().all(of_initdb)
        && self::names(&data.join("global"))?.is_empty()
        && self::names(&data.join("base"))?.iter().all(|n| n == "1")
        && self::names(&data.join("base/1"))?
            .iter()
            .all(|n| n == "PG_VERSION")
        && self::names(&data.join("pg_tblspc"))?.is_empty()
        && self::names(&data.join("pg_wal"))?.iter().all(first_wal);
    Ok(match unfinished {
        true => Found::Unfinished,
        false => Found::Something,
    })
}

/// What is in a folder; nothing where there is none.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// What stands for initdb: makes what makes a cluster.
    fn init(folder: &Path, _held: OwnedFd) -> Result<(), String> {
        assert!(names(folder).unwrap().is_empty());
        write(folder, "PG_VERSION");
        write(folder, "global/pg_control");
        Ok(())
    }

    fn write(folder: &Path, name: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    #[test]
    fn a_cluster_is_made_beside_its_place_and_nothing_else_is_left() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("state/postgres");
        write(&beside(&data), "base/1/1259");
        make(&data, None, |folder, held| {
            assert_eq!(folder, beside(&data));
            assert!(!data.exists());
            init(folder, held)
        })
        .unwrap();
        assert!(is_made(&data));
        assert_eq!(names(data.parent().unwrap()).unwrap(), ["postgres"]);
    }

    #[test]
    fn a_folder_an_initdb_is_at_work_in_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("postgres");
        let new = beside(&data);
        fs::create_dir(&new).unwrap();
        let held = File::open(&new).unwrap();
        held.try_lock().unwrap();
        let other = std::thread::spawn({
            let data = data.clone();
            move || make(&data, None, |_, _| Err("made twice".to_owned()))
        });
        // It finishes what it is at, and lets go.
        init(&new, held.try_clone().unwrap().into()).unwrap();
        fs::rename(&new, &data).unwrap();
        drop(held);
        other.join().unwrap().unwrap();
        assert_eq!(names(root.path()).unwrap(), ["postgres"]);
    }

    #[test]
    fn what_an_interrupted_initdb_left_is_made_anew_and_anything_more_is_not_touched() {
        for (extra, again) in [
            ("PG_VERSION", true),
            ("base/1/PG_VERSION", true),
            ("pg_wal/000000010000000000000001", true),
            ("base/1/1259", false),
            ("base/16384/PG_VERSION", false),
            ("global/1260", false),
            ("pg_tblspc/16385", false),
            ("pg_wal/000000010000000000000007", false),
            ("notes.txt", false),
        ] {
            let root = tempfile::tempdir().unwrap();
            let data = root.path().join("postgres");
            write(&data, "PG_VERSION");
            write(&data, "postgresql.conf");
            write(&data, extra);
            let made = make(&data, None, init);
            assert_eq!(made.is_ok(), again, "{extra}: {made:?}");
            assert_eq!(is_made(&data), again, "{extra}");
            assert_eq!(
                data.join(extra).exists(),
                !again || extra == "PG_VERSION",
                "{extra}"
            );
            if let Err(error) = made {
                assert!(error.contains("from a backup"), "{error}");
            }
            assert_eq!(names(root.path()).unwrap(), ["postgres"]);
        }
    }

    #[test]
    fn an_empty_folder_or_a_link_to_one_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let (data, link) = (root.path().join("there"), root.path().join("link"));
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, &link).unwrap();
        make(&link, None, init).unwrap();
        assert!(is_made(&data));
    }
}
