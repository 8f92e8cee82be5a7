//! Finds PostgreSQL's programs.

use std::path::{Path, PathBuf};

/// Paths of the PostgreSQL programs that the supervisor runs.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) initdb: PathBuf,
    pub(super) postgres: PathBuf,
}

/// Folder where Debian installs PostgreSQL, with a subfolder per version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Looks in the folder that the operator named, else along PATH, else in Debian's folders, the newest first.
pub(super) fn find(bin_dir: Option<&Path>) -> Result<Programs, String> {
    if let Some(folder) = bin_dir {
        return both(folder).ok_or_else(|| {
            format!(
                "[postgres] bin_dir = {:?} has no initdb and postgres in it; on Debian they are in {DEBIAN}/VERSION/bin",
                folder.display().to_string()
            )
        });
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    along(std::env::split_paths(&path)).or_else(|| newest(Path::new(DEBIAN))).ok_or_else(|| {
        format!(
            "[postgres] embedded = true needs PostgreSQL 14 or later, and there is none in PATH or {DEBIAN}: \
             `apt-get install postgresql` (to keep Debian from starting a server of its own, first install \
             postgresql-common and put create_main_cluster = false into /etc/postgresql-common/createcluster.conf), \
             or name its folder as [postgres] bin_dir"
        )
    })
}

/// Returns the programs of the first folder in PATH that leads to both. Links are resolved, because the libraries and
/// the other program are beside the real file.
fn along(folders: impl Iterator<Item = PathBuf>) -> Option<Programs> {
    folders
        .filter_map(|folder| std::fs::canonicalize(folder.join("initdb")).ok())
        .find_map(|initdb| both(initdb.parent()?))
}

fn newest(versions: &Path) -> Option<Programs> {
    let mut found: Vec<(u32, Programs)> = std::fs::read_dir(versions)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, both(&entry.path().join("bin"))?))
        })
        .collect();
    found.sort_by_key(|(version, _)| *version);
    found.pop().map(|(_, programs)| programs)
}

fn both(folder: &Path) -> Option<Programs> {
    let (initdb, postgres) = (folder.join("initdb"), folder.join("postgres"));
    (initdb.is_file() && postgres.is_file()).then_some(Programs { initdb, postgres })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn install(folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("initdb"), "").unwrap();
        std::fs::write(folder.join("postgres"), "").unwrap();
    }

    #[test]
    fn the_newest_of_debians_is_taken_by_number() {
        let root = tempfile::tempdir().unwrap();
        for version in ["9.6", "14", "100", "15"] {
            install(&root.path().join(version).join("bin"));
        }
        std::fs::create_dir_all(root.path().join("200/bin")).unwrap();
        assert_eq!(
            newest(root.path()).unwrap().postgres,
            root.path().join("100/bin/postgres")
        );
    }

    #[test]
    fn a_link_in_path_leads_to_the_folder_with_both() {
        let root = tempfile::tempdir().unwrap();
        let (real, links) = (root.path().join("15/bin"), root.path().join("links"));
        install(&real);
        std::fs::create_dir_all(&links).unwrap();
        std::os::unix::fs::symlink(real.join("initdb"), links.join("initdb")).unwrap();
        let found = along([root.path().join("none"), links].into_iter()).unwrap();
        assert_eq!(
            found.postgres,
            std::fs::canonicalize(real).unwrap().join("postgres")
        );
    }

    #[test]
    fn a_folder_without_them_is_an_error_that_names_it() {
        let root = tempfile::tempdir().unwrap();
        let error = find(Some(root.path())).unwrap_err();
        assert!(
            error.contains(&root.path().display().to_string()) && error.contains("bin_dir"),
            "{error}"
        );
    }
}
