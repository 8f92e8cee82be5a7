//! Finds the supervisor for a client or for `sweep` when its file has become bad, because the supervisor may run on.
//!
//! The last good file holds the whole configuration, but only root and the supervisor's own user may read it. Without
//! it, the folders may still be read from the bad file. No folder is guessed: a bad file outside the usual place is no
//! reason to give orders to the supervisor of the usual folder.

use super::run;
use crate::cli;
use crate::config::{self, SupervisorConfig};
use brokkr_tenant::Source;
use std::path::{Path, PathBuf};

/// Keys that name folders; each is read from its own line, even if other lines are bad.
const FOLDERS: [&str; 3] = ["tenants_dir", "state_dir", "runtime_dir"];

/// The supervisor's configuration, as far as it is known.
#[derive(Debug)]
pub(super) struct SupervisorPaths {
    /// Configuration from the file, from the last good file, or from the folders alone over the defaults.
    pub(super) config: SupervisorConfig,
    /// True when the whole configuration is known, not only the folders.
    pub(super) whole: bool,
    /// Every problem of the file, if there is any.
    pub(super) problems: Option<String>,
}

/// Finds the supervisor's configuration, as far as it can be known.
///
/// # Errors
/// Every problem of the file, when even the runtime folder is unknown.
pub(super) fn find(path: &Path) -> Result<SupervisorPaths, String> {
    let problems = match config::load(path) {
        Ok(config) => {
            return Ok(SupervisorPaths {
                config,
                whole: true,
                problems: None,
            });
        }
        Err(problems) => problems.to_string(),
    };
    let folders = folders(path);
    let ours = folders.as_ref().filter(|folders| folders.has("state_dir"));
    let state_dirs = [
        ours.map(|folders| folders.config.state_dir.clone()),
        std::env::var_os("STATE_DIRECTORY").map(PathBuf::from),
        Some(config::default_state_dir()),
    ];
    let last_good = state_dirs
        .into_iter()
        .flatten()
        .find_map(|state_dir| run::last_good(&state_dir, path));
    let whole = last_good.is_some();
    let usual = path == Path::new(cli::CONFIG);
    let known = folders.filter(|folders| folders.has("runtime_dir") || (usual && folders.sound));
    match last_good.or(known.map(|folders| folders.config)) {
        Some(config) => Ok(SupervisorPaths {
            config,
            whole,
            problems: Some(problems),
        }),
        None => Err(problems),
    }
}

/// Configuration from only those lines of the file that name folders.
struct Folders {
    config: SupervisorConfig,
    named: Vec<&'static str>,
    /// True when none of these lines is bad.
    sound: bool,
}

impl Folders {
    fn has(&self, key: &str) -> bool {
        self.named.contains(&key)
    }
}

fn folders(path: &Path) -> Option<Folders> {
    // A missing file names no folder, like an empty file.
    let text = match Source::read(path) {
        Ok(source) => source.text().to_owned(),
        Err(_) => String::new(),
    };
    let (mut good, mut named, mut sound) = (String::new(), Vec::new(), true);
    // A section begins with a bracket, and the folders stand above every section.
    for line in text
        .lines()
        .take_while(|line| !line.trim_start().starts_with('['))
    {
        let key = line.split('=').next().unwrap_or_default().trim();
        let Some(key) = FOLDERS.into_iter().find(|folder| *folder == key) else {
            continue;
        };
        if config::of(Source::new(path, line)).is_ok() {
            good.push_str(line);
            good.push('\n');
            named.push(key);
        } else {
            sound = false;
        }
    }
    // Fails for a folder that is named twice, because either value may be the intended value.
    let config = config::of(Source::new(path, good)).ok()?;
    Some(Folders {
        config,
        named,
        sound,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_folders_are_read_from_a_file_that_is_bad_elsewhere_and_nothing_is_guessed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("supervisor.toml");
        let here = |text: &str| {
            std::fs::write(&path, text).unwrap();
            find(&path).map(|found| (found.config.runtime_dir, found.whole))
        };
        let run = folder.path().join("run");
        assert_eq!(here("runtime_dir = \"run\"\n"), Ok((run.clone(), true)));
        for bad in [
            "runtime_dir = \"run\"\nnonsense=",
            "nonsense =\n  runtime_dir = 'run' # here\n[start]\nparallelism = 0\n",
            "state_dir = 3\nruntime_dir = \"run\"\n",
        ] {
            assert_eq!(here(bad), Ok((run.clone(), false)), "{bad}");
        }
        for unknown in [
            "nonsense=",
            "runtime_dir = \"run",
            "runtime_dir = \"run\"\nruntime_dir = \"walk\"\n",
            "nonsense =\n[x]\nruntime_dir = \"run\"\n",
        ] {
            let problems = here(unknown).unwrap_err();
            assert!(problems.contains("supervisor.toml:"), "{problems}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(find(&path).is_err());
    }
}
