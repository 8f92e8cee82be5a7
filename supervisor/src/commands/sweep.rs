//! `sweep` ends the brokers that a supervisor has left, if the unit is stopping. The unit calls it (`ExecStopPost=`).
//!
//! A supervisor leaves its brokers when it restarts or is killed. Only systemd knows whether another supervisor will
//! come: a stop may be queued behind a restart.

use super::locate_supervisor::{self, SupervisorPaths};
use super::{EXIT_CONFIGURATION, EXIT_PROBLEM, complain, run, say};
use crate::embedded;
use crate::instance::cgroup::CgroupTree;
use crate::instance::leftover_instances;
use crate::servers::event_loop;
use crate::systemd::job;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Longest time for brokers to drain, because systemd waits `TimeoutStopSec=` for `sweep` and cannot be asked for more.
const LONGEST_GRACE: Duration = Duration::from_secs(45);

/// Ends every broker, and the embedded server last, unless another supervisor will take them over.
pub(crate) fn sweep(path: &Path) -> ExitCode {
    let found = match locate_supervisor::find(path) {
        Ok(found) => found,
        Err(problems) => return complain(&problems, EXIT_CONFIGURATION),
    };
    if let Some(problems) = &found.problems {
        // Brokers are ended even if the file is bad.
        complain(problems, EXIT_CONFIGURATION);
    }
    let runtime = match event_loop() {
        Ok(runtime) => runtime,
        Err(error) => {
            return complain(
                &format!("cannot make the event loop: {error}"),
                EXIT_PROBLEM,
            );
        }
    };
    let outcome = runtime.block_on(async {
        if !is_stop(std::env::var("SERVICE_RESULT").ok(), job::job().await) {
            return Ok(());
        }
        end_all(&found).await
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => complain(&problem, EXIT_PROBLEM),
    }
}

/// Returns true when no supervisor will take over the brokers. Without a service's result a person called `sweep`, and
/// systemd is not asked. If systemd cannot be asked, brokers are left alone unless the supervisor timed out.
fn is_stop(result: Option<String>, job: Result<Option<String>, String>) -> bool {
    match (result, job) {
        (None, _) => true,
        (Some(_), Ok(job)) => job.as_deref() == Some("stop"),
        (Some(result), Err(_)) => result == "timeout",
    }
}

async fn end_all(found: &SupervisorPaths) -> Result<(), String> {
    let config = &found.config;
    // Hold the lock to the end, so that no supervisor starts and takes over what is being ended.
    let _lock = run::take_over_folder(config)
        .map_err(|problem| format!("{problem} (what a supervisor runs is not swept)"))?;
    let grace = config.stop.grace.min(LONGEST_GRACE);
    let folder = run::instances(config);
    let groups = CgroupTree::detect(&config.runtime_dir);
    let swept = leftover_instances::end_all(&folder, grace, &groups)
        .map_err(|error| format!("{}: {error}", folder.display()))?;
    // End also the processes that brokers started, even if they tried to detach.
    groups.end_all();
    // A folder-only configuration does not say whether a server is embedded; a server in our folder is ours.
    let server = (config.postgres.embedded || !found.whole) && embedded::end(config).await?;
    let _ = std::fs::remove_file(config.runtime_dir.join(crate::control::SOCKET));
    say_ended(swept.ended, server);
    let left: Vec<String> = swept.left.iter().map(ToString::to_string).collect();
    if left.is_empty() {
        Ok(())
    } else {
        Err(left.join("\n"))
    }
}

/// Prints what was ended, or nothing, because the unit calls `sweep` after every stop.
fn say_ended(brokers: usize, server: bool) {
    let brokers = match brokers {
        0 => None,
        1 => Some("1 broker".to_owned()),
        n => Some(format!("{n} brokers")),
    };
    let server = server.then(|| "the embedded PostgreSQL".to_owned());
    let all: Vec<String> = brokers.into_iter().chain(server).collect();
    if !all.is_empty() {
        let all = all.join(" and ");
        // A closed standard output is no reason to fail.
        let _ = say(format!("ended {all} that a supervisor had left\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_ended_only_when_no_supervisor_will_take_them_over() {
        let job = |job: &str| Ok(Some(job.to_owned()));
        let result = |result: &str| Some(result.to_owned());
        assert!(is_stop(result("success"), job("stop")));
        assert!(!is_stop(result("success"), job("restart")));
        assert!(!is_stop(result("signal"), job("start")));
        // After a kill systemd starts the supervisor again by itself.
        assert!(!is_stop(result("signal"), Ok(None)));
        assert!(!is_stop(result("signal"), Err("no bus".into())));
        assert!(is_stop(result("timeout"), Err("no bus".into())));
        assert!(is_stop(None, Err("no bus".into())));
    }
}
