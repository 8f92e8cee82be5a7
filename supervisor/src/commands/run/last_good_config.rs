//! Loads the supervisor's own file, or its last good copy, because a supervisor that holds tenants must not exit for a
//! mistake in a file.
//!
//! The copy is in `state_dir`. It is used only where an earlier supervisor left something to hold; a supervisor that
//! starts afresh reports the problem and exits.

use crate::atomic_file;
use crate::config::{self, SupervisorConfig};
use crate::handover::inherited::{HandoverSource, InheritedFds};
use brokkr_tenant::{Diagnostics, Source};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Name of the copy in `state_dir`.
const COPY: &str = "supervisor.last-good.toml";
/// Beginning of the copy's first line; the path of the file follows, and its content comes on the next lines.
const HEAD: &str = "# The last good ";

/// Returns the configuration to run with, and the file's problems if the configuration comes from the last good copy.
///
/// # Errors
/// Every problem of the file, when there is no copy to run with.
pub(super) fn load(
    path: &Path,
    inherited: &InheritedFds,
) -> Result<(SupervisorConfig, Option<String>), String> {
    match read(path) {
        Ok((config, source)) => {
            // A failure is ignored, because the copy is needed only if the file becomes bad later.
            let _ = keep(&config.state_dir, &source);
            Ok((config, None))
        }
        Err(problems) => instead(path, inherited, problems.to_string()),
    }
}

/// Does the same as `load`, but keeps no copy.
pub(super) fn look(path: &Path, inherited: &InheritedFds) -> Result<SupervisorConfig, String> {
    match read(path) {
        Ok((config, _)) => Ok(config),
        Err(problems) => instead(path, inherited, problems.to_string()).map(|(config, _)| config),
    }
}

fn instead(
    path: &Path,
    inherited: &InheritedFds,
    problems: String,
) -> Result<(SupervisorConfig, Option<String>), String> {
    if inherited.handover_source == HandoverSource::Nothing {
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

fn read(path: &Path) -> Result<(SupervisorConfig, Source), Diagnostics> {
    let source = Source::read(path)?;
    let config = config::of(source.clone())?;
    match config.uids_need_root {
        Some(problem) => Err(problem.into()),
        None => Ok((config, source)),
    }
}

fn keep(state_dir: &Path, source: &Source) -> io::Result<()> {
    let copy = state_dir.join(COPY);
    let text = format!("{HEAD}{}\n{}", source.path().display(), source.text());
    if atomic_file::read(&copy)? == text {
        return Ok(());
    }
    std::fs::create_dir_all(state_dir)?;
    // Create the file with its mode before it has content, because the text may hold passwords.
    let new = state_dir.join(format!("{COPY}.new"));
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    atomic_file::replace(&copy, text.as_bytes())
}

/// Reads the copy as if it were at the file's place, so that relative paths are resolved from there.
pub(super) fn last_good(state_dir: &Path, path: &Path) -> Option<SupervisorConfig> {
    let copy = atomic_file::read(&state_dir.join(COPY)).ok()?;
    let (head, text) = copy.split_once('\n')?;
    // The copy may come from another supervisor on this host, with another file.
    (head.strip_prefix(HEAD)? == path.display().to_string()).then_some(())?;
    config::of(Source::new(path, text)).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::handover::{HandoverIndex, VERSION};

    fn left(state_dir: &Path) -> InheritedFds {
        let json = format!(r#"{{"version":{VERSION},"state_dir":{:?}}}"#, state_dir);
        InheritedFds {
            handover_source: HandoverSource::Systemd,
            index: Some(HandoverIndex::decode(json.as_bytes()).unwrap()),
            ..InheritedFds::default()
        }
    }

    #[test]
    fn a_bad_file_ends_a_supervisor_that_starts_afresh_and_not_one_that_holds_tenants() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("supervisor.toml");
        let good = "state_dir = \"state\"\ntenants_dir = \"here.d\"\n[stop]\ngrace = \"7s\"\n";
        std::fs::write(&path, good).unwrap();
        assert!(load(&path, &InheritedFds::default()).unwrap().1.is_none());
        let state = folder.path().join("state");
        let mode = std::fs::metadata(state.join(COPY))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);

        std::fs::write(&path, "state_dri = 3\n").unwrap();
        assert!(load(&path, &InheritedFds::default()).is_err());
        let (config, problem) = load(&path, &left(&state)).unwrap();
        assert_eq!(config.stop.grace.as_secs(), 7);
        assert_eq!(config.tenants_dir, folder.path().join("here.d"));
        let problem = problem.unwrap();
        assert!(
            problem.contains("supervisor.toml:1:1") && problem.contains("last good"),
            "{problem}"
        );
        // A missing file is a mistake too, and another supervisor's copy must not be used.
        std::fs::remove_file(&path).unwrap();
        assert!(load(&path, &left(&state)).is_ok());
        assert!(load(&folder.path().join("other.toml"), &left(&state)).is_err());
    }
}
