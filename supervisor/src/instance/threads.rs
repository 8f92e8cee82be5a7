//! Describes from `/proc` where each thread of a process is, before a hung broker is killed.

use std::path::Path;

/// Returns one line: `main: S in futex_do_wait; worker: D in …`. Empty when the process has ended.
pub(crate) fn describe(pid: i32) -> String {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return String::new();
    };
    let mut lines: Vec<_> = threads
        .flatten()
        .take(32)
        .map(|thread| one(&thread.path()))
        .collect();
    lines.sort();
    lines.join("; ")
}

fn one(folder: &Path) -> String {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let stat = read("stat");
    let name = read("comm").trim().to_owned();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next())
        .unwrap_or('?');
    let place = match read("wchan").trim() {
        "" | "0" => String::new(),
        place => format!(" in {place}"),
    };
    format!("{name}: {state}{place}")
}
