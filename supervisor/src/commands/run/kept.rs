//! The supervisor's own file, and the last good one: a supervisor that holds tenants does not go for a mistake in a file.
//!
//! A copy is kept in `state_dir`. It is used only where an earlier supervisor has left something to hold: one that starts
//! afresh says what is wrong and exits, as any program does.

use crate::config::{self, Supervisor};
use crate::fleet::persist;
use crate::handover::inherited::{Giver, Inherited};
use brokkr_tenant::{Diagnostics, Source};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The copy, in `state_dir`.
const COPY: &str = "supervisor.last-good.toml";
/// How its first line begins; the path follows, and what was in the file stands below.
const HEAD: &str = "# The last good ";

/// The configuration to run with, and what is wrong with the file if it is not the file's.
///
/// # Errors
/// Every problem of the file, when there is nothing else to run with.
pub(super) fn load(
    path: &Path,
    inherited: &Inherited,
) -> Result<(Supervisor, Option<String>), String> {
    match read(path) {
        Ok((config, source)) => {
            // What cannot be kept now is missed only if the file is spoilt later.
            let _ = keep(&config.state_dir, &source);
            Ok((config, None))
        }
        Err(problems) => instead(path, inherited, problems.to_string()),
    }
}

/// The same without keeping anything.
///
/// # Errors
/// The same.
pub(super) fn look(path: &Path, inherited: &Inherited) -> Result<Supervisor, String> {
    match read(path) {
        Ok((config, _)) => Ok(config),
        Err(problems) => instead(path, inherited, problems.to_string()).map(|(config, _)| config),
    }
}

fn instead(
    path: &Path,
    inherited: &Inherited,
    problems: String,
) -> Result<(Supervisor, Option<String>), String> {
    if inherited.giver == Giver::Nobody {
        return Err(problems);
    }
    let given = inherited
        .index
        .as_ref()
        .and_then(|index| index.state_dir.clone());
    let systemds = std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
    for state_dir in [given, systemds, Some(config::default_state_dir())]
        .into_iter()
        .flatten()
    {
        if let Some(config) = last_good(&state_dir, path) {
            let problem = format!("running on the last good configuration: {problems}");
            return Ok((config, Some(problem)));
        }
    }
    Err(problems)
}

fn read(path: &Path) -> Result<(Supervisor, Source), Diagnostics> {
    let source = Source::read(path)?;
    Ok((config::of(source.clone())?, source))
}

fn keep(state_dir: &Path, source: &Source) -> io::Result<()> {
    let copy = state_dir.join(COPY);
    let text = format!("{HEAD}{}\n{}", source.path().display(), source.text());
    if persist::read(&copy)? == text {
        return Ok(());
    }
    std::fs::create_dir_all(state_dir)?;
    // There with its mode before anything is in it: the text may hold passwords.
    let new = state_dir.join(format!("{COPY}.new"));
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    persist::replace(&copy, text.as_bytes())
}

/// The copy, read as if it stood where the file stands: relative paths are taken from there.
pub(super) fn last_good(state_dir: &Path, path: &Path) -> Option<Supervisor> {
    let copy = persist::read(&state_dir.join(COPY)).ok()?;
    let (head, text) = copy.split_once('\n')?;
    // Another supervisor's on this host is not ours.
    (head.strip_prefix(HEAD)? == path.display().to_string()).then_some(())?;
    config::of(Source::new(path, text)).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::handover::{Index, VERSION};

    fn left(state_dir: &Path) -> Inherited {
        let json = format!(r#"{{"version":{VERSION},"state_dir":{:?}}}"#, state_dir);
        Inherited {
            giver: Giver::Systemd,
            index: Some(Index::decode(json.as_bytes()).unwrap()),
            ..Inherited::default()
        }
    }

    #[test]
    fn a_bad_file_ends_a_supervisor_that_starts_afresh_and_not_one_that_holds_tenants() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("supervisor.toml");
        let good = "state_dir = \"state\"\ntenants_dir = \"here.d\"\n[stop]\ngrace = \"7s\"\n";
        std::fs::write(&path, good).unwrap();
        assert!(load(&path, &Inherited::default()).unwrap().1.is_none());
        let state = folder.path().join("state");
        let mode = std::fs::metadata(state.join(COPY))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);

        std::fs::write(&path, "state_dri = 3\n").unwrap();
        assert!(load(&path, &Inherited::default()).is_err());
        let (config, problem) = load(&path, &left(&state)).unwrap();
        assert_eq!(config.stop.grace.as_secs(), 7);
        assert_eq!(config.tenants_dir, folder.path().join("here.d"));
        let problem = problem.unwrap();
        assert!(
            problem.contains("supervisor.toml:1:1") && problem.contains("last good"),
            "{problem}"
        );
        // A file that is not there is a mistake too; another supervisor's copy is none of ours.
        std::fs::remove_file(&path).unwrap();
        assert!(load(&path, &left(&state)).is_ok());
        assert!(load(&folder.path().join("other.toml"), &left(&state)).is_err());
    }
}
