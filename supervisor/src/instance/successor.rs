//! Replaces this process by the program on disk, after asking it whether it understands the state. Brokers stay
//! children of this process, descriptors stay open, and every socket keeps listening.

use super::reaper;
use crate::handover::inherited::{self, LOCK, VARIABLE};
use crate::handover::{HandoverIndex, HandoverState};
use crate::memfd;
use crate::sys::{self, SpawnPlan};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The line by which a program confirms that it understands the state; exit code 0 alone does not show that it read it.
pub(crate) const UNDERSTOOD: &str = "brokkr-state understood";
/// The longest wait for a program to say whether it understands.
const PATIENCE: Duration = Duration::from_secs(20);
/// The largest number of bytes of its output that is shown.
const LONGEST_COMPLAINT: usize = 4096;
/// Variables that describe the descriptors this process was started with, which are no longer open.
const STALE: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", VARIABLE];

/// The program that replaces this process.
#[derive(Debug, Clone)]
pub(crate) struct Successor {
    program: PathBuf,
    /// The supervisor's configuration file.
    config: PathBuf,
}

impl Successor {
    /// Finds the program at the path this process was started from; a package may have replaced it.
    pub(crate) fn find(config: &Path) -> Result<Self, String> {
        let first = std::env::args_os().next().unwrap_or_default();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let ours = std::fs::read_link("/proc/self/exe").ok();
        let program = locate(&first, &path, ours.as_deref())
            .ok_or("there is no program where this one was started from")?;
        Ok(Self {
            program,
            config: config.to_owned(),
        })
    }

    /// Returns the path of the program.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Asks the program (`run --check-state`) whether it understands this state. Blocks.
    ///
    /// # Errors
    /// Reason why the program must not be executed, in words for the operator.
    pub(crate) fn understands(self, state: &[u8]) -> Result<Self, String> {
        let shown = self.program.display().to_string();
        let said = self
            .ask(state)
            .map_err(|error| format!("{shown} cannot be asked: {error}"))?;
        match said {
            (Some(WaitStatus::Exited(_, 0)), said)
                if said.lines().any(|line| line.trim() == UNDERSTOOD) =>
            {
                Ok(self)
            }
            (Some(WaitStatus::Exited(_, 0)), _) => Err(format!(
                "{shown} does not say that it understands what it would be handed"
            )),
            (Some(status), complaint) => {
                let how = match status {
                    WaitStatus::Exited(_, code) => format!("exit code {code}"),
                    WaitStatus::Signaled(_, signal, _) => signal.to_string(),
                    other => format!("{other:?}"),
                };
                let complaint = match complaint.trim().replace('\n', "; ") {
                    silence if silence.is_empty() => "it says nothing".to_owned(),
                    said => said,
                };
                Err(format!(
                    "{shown} cannot take over what it would be handed ({how}): {complaint}"
                ))
            }
            (None, _) => Err(format!("{shown} says nothing within {PATIENCE:?}")),
        }
    }

    fn ask(&self, state: &[u8]) -> io::Result<(Option<WaitStatus>, String)> {
        let state = memfd::sealed("brokkr-state", state)?;
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let plan = SpawnPlan {
            program: text(self.program.as_os_str())?,
            arguments: vec![
                c"brokkr-supervisor".into(),
                c"run".into(),
                c"--check-state".into(),
                c"--config".into(),
                text(self.config.as_os_str())?,
            ],
            // The same environment as when it is executed, so that it finds the same configuration.
            environment: kept(std::env::vars_os())
                .map(text_of)
                .collect::<Result<_, _>>()?,
            standard: [state.as_fd(), write.as_fd(), write.as_fd()],
            passed: vec![],
            open_files: (256, 1024),
            user: None,
        };
        let mut registered = None;
        let spawned = sys::spawn(&plan, |pid| {
            registered = Some(reaper::register(pid));
            Ok(())
        })?;
        drop(write);
        let deadline = Instant::now() + PATIENCE;
        let complaint = listen(&read, deadline)?;
        let in_time = wait_readable(&spawned.pidfd, deadline)?;
        if !in_time {
            sys::pidfd_send_signal(spawned.pidfd.as_fd(), Signal::SIGKILL as i32)?;
        }
        let status = waitid(Id::PIDFd(spawned.pidfd.as_fd()), WaitPidFlag::WEXITED)?;
        drop(registered);
        Ok((in_time.then_some(status), complaint))
    }

    /// Executes the program in place of this process. Returns only when that failed; then nothing has changed.
    pub(crate) fn execute(&self, handover_state: &mut HandoverState, lock: &File) -> io::Error {
        self.try_execute(handover_state, lock)
            .err()
            .unwrap_or_else(|| io::Error::other("it came back"))
    }

    fn try_execute(&self, handover_state: &mut HandoverState, lock: &File) -> io::Result<()> {
        let numbers = handover_state
            .descriptors
            .iter()
            .map(|(n, fd)| (n.to_string(), fd.as_raw_fd()));
        handover_state.index.descriptors = numbers.collect();
        handover_state
            .index
            .descriptors
            .insert(LOCK.to_owned(), lock.as_raw_fd());
        let state = memfd::sealed("brokkr-state", &handover_state.index.encode())?;
        let arguments: Vec<CString> = std::env::args_os()
            .map(|argument| text(&argument))
            .collect::<Result<_, _>>()?;
        let environment = environment(std::env::vars_os(), state.as_raw_fd())?;
        let program = text(self.program.as_os_str())?;
        // SIGCHLD must wait until the new program listens for it. All other handled signals are blocked in every thread
        // already, and the mask is inherited.
        let child = SigSet::from(Signal::SIGCHLD);
        let mask = child.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        let passed = || {
            let descriptors = handover_state.descriptors.values().map(|fd| fd.as_fd());
            descriptors.chain([lock.as_fd(), state.as_fd()])
        };
        let failed = passed()
            .try_for_each(|fd| fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop))
            .and_then(|()| nix::unistd::execve(&program, &arguments, &environment).map(drop));
        for fd in passed() {
            // Restores the flag.
            let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
        mask.thread_set_mask()?;
        Ok(failed?)
    }
}

/// Reads the state from standard input, for `run --check-state`.
pub(crate) fn read_state() -> Result<HandoverIndex, String> {
    let stdin = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| error.to_string())?;
    inherited::read(&stdin)
}

/// Finds the program named `first` as a shell would, or else at the path this process was executed from.
fn locate(first: &OsStr, path: &OsStr, ours: Option<&Path>) -> Option<PathBuf> {
    let is_file = |path: &PathBuf| path.is_file();
    let named = if first.as_bytes().contains(&b'/') {
        Some(PathBuf::from(first)).filter(is_file)
    } else {
        std::env::split_paths(path)
            .map(|folder| folder.join(first))
            .find(is_file)
            .filter(|_| !first.is_empty())
    };
    named.or_else(|| {
        // The kernel appends this to the path of a file that was deleted.
        let ours = ours?.as_os_str().as_bytes();
        let ours = ours.strip_suffix(b" (deleted)").unwrap_or(ours);
        Some(PathBuf::from(OsStr::from_bytes(ours))).filter(is_file)
    })
}

fn environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
    state: i32,
) -> io::Result<Vec<CString>> {
    kept(variables)
        .chain([format!("{VARIABLE}={state}").into_bytes()])
        .map(text_of)
        .collect()
}

/// Returns the environment without stale variables, for another program.
fn kept(variables: impl Iterator<Item = (OsString, OsString)>) -> impl Iterator<Item = Vec<u8>> {
    let kept = variables.filter(|(name, _)| STALE.iter().all(|stale| name != *stale));
    kept.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
}

fn text_of(variable: Vec<u8>) -> io::Result<CString> {
    text(&OsString::from_vec(variable))
}

fn text(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// Reads the program's output until it closes the pipe.
fn listen(read: &OwnedFd, deadline: Instant) -> io::Result<String> {
    let mut said = Vec::new();
    let mut block = [0; 4096];
    while wait_readable(read, deadline)? {
        let count = nix::unistd::read(read, &mut block)?;
        if count == 0 {
            break;
        }
        said.extend_from_slice(&block[..count]);
        said.truncate(LONGEST_COMPLAINT);
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn wait_readable(fd: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(count) => return Ok(count > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn script(folder: &Path, text: &str) -> Successor {
        let program = folder.join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Successor {
            program,
            config: "/etc/brokkr/supervisor.toml".into(),
        }
    }

    #[test]
    fn a_program_is_looked_for_where_this_one_was_started_from() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(folder.path(), "").program;
        let path = folder.path().as_os_str();
        let nowhere = OsStr::new("/no/such/program");
        let nothing = OsStr::new("");
        assert_eq!(
            locate(program.as_os_str(), nothing, None),
            Some(program.clone())
        );
        assert_eq!(
            locate(OsStr::new("program"), path, None),
            Some(program.clone())
        );
        assert_eq!(locate(nowhere, path, None), None);
        assert_eq!(locate(nothing, path, None), None);
        let mut deleted = program.clone().into_os_string();
        deleted.push(" (deleted)");
        assert_eq!(
            locate(nowhere, path, Some(Path::new(&deleted))),
            Some(program)
        );
    }

    #[test]
    fn a_program_that_does_not_understand_is_refused_with_what_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let understands = "test \"$*\" = 'run --check-state --config /etc/brokkr/supervisor.toml' && grep -q version && echo 'brokkr-state understood'";
        assert!(
            script(folder.path(), understands)
                .understands(br#"{"version":1}"#)
                .is_ok()
        );
        assert!(
            script(folder.path(), understands)
                .understands(b"nothing")
                .is_err()
        );
        let old = "echo 'error: unexpected argument' >&2; exit 2";
        let refused = script(folder.path(), old).understands(b"{}").unwrap_err();
        assert!(refused.contains("unexpected argument"), "{refused}");
        let another = script(folder.path(), "exit 0").understands(b"{}");
        assert!(another.unwrap_err().contains("does not say"));
        let mut gone = script(folder.path(), "");
        gone.program = "/no/such/program".into();
        assert!(
            gone.understands(b"{}")
                .unwrap_err()
                .contains("cannot be asked")
        );
    }

    #[test]
    fn the_environment_speaks_of_the_new_state_and_of_no_old_descriptor() {
        let variables = [
            ("LISTEN_PID", "1"),
            ("NOTIFY_SOCKET", "/n"),
            (VARIABLE, "3"),
        ];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let made = environment(variables.into_iter(), 9).unwrap();
        assert_eq!(
            made,
            [
                c"NOTIFY_SOCKET=/n".into(),
                CString::new(format!("{VARIABLE}=9")).unwrap()
            ]
        );
    }
}
