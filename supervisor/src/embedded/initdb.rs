//! Creates a data folder under a temporary name beside its place, and renames it when complete. An interruption
//! therefore leaves nothing that looks like a cluster.

use super::ownership;
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

/// Suffix of the temporary name.
const SUFFIX: &str = ".initdb-unfinished";
/// Time limit for an `initdb` of an earlier supervisor to end, and the interval between two checks.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_millis(50));

/// Returns true when the folder holds a whole cluster. `PG_VERSION` alone is no proof, because `initdb` writes it
/// early.
pub(super) fn is_made(data: &Path) -> bool {
    data.join("PG_VERSION").exists() && data.join("global/pg_control").exists()
}

/// Creates a cluster in `data`, which holds none yet. `init` gets the folder to fill and a lock on it, which its
/// processes must hold as long as they run. Blocks.
pub(super) fn make(
    data: &Path,
    user: Option<(u32, u32)>,
    init: impl FnOnce(&Path, OwnedFd) -> Result<(), String>,
) -> Result<(), String> {
    // Resolve a link first, because the temporary folder must be beside the real folder.
    let data = &fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let said = |error: io::Error| format!("{}: {error}", data.display());
    let above = data.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(above).map_err(said)?;
    let in_place = data.is_dir() && !can_be_replaced(data, above).map_err(said)?;
    let new = if in_place { data.clone() } else { beside(data) };
    let lock = lock(&new, data, user)?;
    // The former holder of the lock may have finished the cluster.
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
    // `initdb` has synced the folder's content; the rename must be synced here.
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

/// Returns true when another folder can replace this folder: nothing is mounted there, and the folder above is
/// writable.
fn can_be_replaced(data: &Path, above: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mounted = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|at| Path::new(at) == data);
    let other = fs::metadata(data)?.dev() != fs::metadata(above)?.dev();
    Ok(!mounted && !other && access(above, AccessFlags::W_OK).is_ok())
}

/// Creates the folder if it is missing and locks it, which waits for an `initdb` at work there. The processes of
/// `initdb` inherit the lock, so it lasts as long as they do, even if their supervisor has ended.
fn lock(new: &Path, data: &Path, user: Option<(u32, u32)>) -> Result<File, String> {
    let at_work = || [new, data].iter().any(|folder| !remains(folder).is_empty());
    let said = |error: io::Error| format!("{}: {error}", new.display());
    let deadline = Instant::now() + PATIENCE.0;
    loop {
        ownership::own(new, user)?;
        let folder = File::open(new).map_err(said)?;
        match folder.try_lock() {
            // An `initdb` without this lock, started by an older supervisor, is found by its processes. A folder that
            // was renamed meanwhile is no longer at `new`.
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

/// Removes the temporary folder, which is no longer needed, if it is empty.
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

/// State of the place where the cluster will be.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Only files that an interrupted `initdb` leaves, and no file of any table.
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
    // Files in `pg_wal` until `initdb` writes `pg_control`, which comes before the first table.
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

/// Returns the names in a folder; none where there is no folder.
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

    /// Stands in for `initdb`: creates the files that make a cluster.
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
        // The other `initdb` finishes its work and releases the lock.
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
