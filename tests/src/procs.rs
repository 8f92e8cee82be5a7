//! Reads the state of processes from `/proc`.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;

/// Sends `signal`; it is no failure when the process has ended.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Returns true when the process exists and is not a zombie.
pub fn alive(pid: i32) -> bool {
    state(pid).is_some_and(|s| s != 'Z' && s != 'X')
}

/// Returns the letter of the process's state: R, S, D, T, Z.
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Returns a figure of `/proc/PID/status`: `VmRSS` in KiB, `Threads`.
pub fn figure(pid: i32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines()
        .find_map(|line| {
            let value = line.strip_prefix(key)?.strip_prefix(':')?;
            value.split_whitespace().next()?.parse().ok()
        })
        .unwrap_or_else(|| panic!("no {key} in /proc/{pid}/status"))
}

/// Returns the processor time that the process has used, in hundredths of a second.
pub fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (_, fields) = stat
        .rsplit_once(')')
        .unwrap_or_else(|| panic!("no process {pid}"));
    // Fields 14 and 15 of the whole line: utime and stime.
    fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum()
}

/// Returns the parent's pid.
pub fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Returns the argument vector.
pub fn arguments(pid: i32) -> Vec<String> {
    split_nul(format!("/proc/{pid}/cmdline"))
}

/// Returns the environment, where it may be read.
pub fn environment(pid: i32) -> Vec<String> {
    split_nul(format!("/proc/{pid}/environ"))
}

fn split_nul(path: String) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    bytes
        .split(|b| *b == 0)
        .filter(|part| !part.is_empty())
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect()
}

/// Returns the pids of all processes.
pub fn all() -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Returns the pids of the children.
pub fn children(pid: i32) -> Vec<i32> {
    all()
        .into_iter()
        .filter(|child| parent(*child) == Some(pid))
        .collect()
}

/// Returns the running processes that name `needle` in their arguments, their environment or an open file. These are
/// all processes started for one folder, under any parent.
pub fn naming(needle: &str) -> Vec<i32> {
    let own = std::process::id();
    all()
        .into_iter()
        .filter(|pid| u32::try_from(*pid).is_ok_and(|pid| pid != own) && alive(*pid))
        .filter(|pid| {
            arguments(*pid)
                .iter()
                .chain(&environment(*pid))
                .any(|text| text.contains(needle))
                || open_files(*pid).iter().any(|text| text.contains(needle))
        })
        .collect()
}

/// Returns the targets of the process's descriptors, where they may be read.
pub fn open_files(pid: i32) -> Vec<String> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some(
                fs::read_link(entry.path())
                    .ok()?
                    .to_string_lossy()
                    .into_owned(),
            )
        })
        .collect()
}

/// Returns one line that describes the process to a person.
pub fn describe(pid: i32) -> String {
    format!(
        "{pid} ({}) {}",
        state(pid).unwrap_or('?'),
        arguments(pid).join(" ")
    )
}

/// Returns true when every thread of the process is stopped, so that it does nothing until it is continued.
pub fn stands_still(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    threads.flatten().all(|thread| {
        fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| {
            let state = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.trim_start().chars().next());
            matches!(state, Some('T' | 'Z' | 'X'))
        })
    })
}
