//! What `/proc` says of processes.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;

/// Sends `signal`; a process that is gone already is no failure.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Whether it runs: there, and not a zombie.
pub fn alive(pid: i32) -> bool {
    state(pid).is_some_and(|s| s != 'Z' && s != 'X')
}

/// The letter of its state: R, S, D, T, Z.
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// A figure of `/proc/PID/status`: `VmRSS` in KiB, `Threads`.
///
/// # Panics
/// When it has gone, or there is no such figure.
pub fn figure(pid: i32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines()
        .find_map(|line| {
            let value = line.strip_prefix(key)?.strip_prefix(':')?;
            value.split_whitespace().next()?.parse().ok()
        })
        .unwrap_or_else(|| panic!("no {key} in /proc/{pid}/status"))
}

/// Processor time it has used, in hundredths of a second.
///
/// # Panics
/// When it has gone.
pub fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (_, fields) = stat
        .rsplit_once(')')
        .unwrap_or_else(|| panic!("no process {pid}"));
    // Fields 14 and 15 of the whole line.
    fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum()
}

/// Its parent.
pub fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Its argument vector.
pub fn arguments(pid: i32) -> Vec<String> {
    split_nul(format!("/proc/{pid}/cmdline"))
}

/// Its environment, where it may be read.
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

/// Every process there is.
pub fn all() -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Its children.
pub fn children(pid: i32) -> Vec<i32> {
    all()
        .into_iter()
        .filter(|child| parent(*child) == Some(pid))
        .collect()
}

/// Processes that run and name `needle` in their arguments, their environment or an open file: everything that was
/// started for one folder, whoever is its parent now.
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

/// What its descriptors lead to, where that may be read.
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

/// One line that tells a person which process this is.
pub fn describe(pid: i32) -> String {
    format!(
        "{pid} ({}) {}",
        state(pid).unwrap_or('?'),
        arguments(pid).join(" ")
    )
}

/// Whether every thread of it is stopped: it does nothing more until it is continued.
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
