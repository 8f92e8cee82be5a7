//! The command `reload`.

use super::client::ControlClient;
use super::{EXIT_PROBLEM, Failure, complain, harmless, say};
use crate::control::ReloadRequest;
use crate::fleet::handle::ReloadReport;

pub(super) fn reload(client: &ControlClient, confirm_removals: bool) -> Result<(), Failure> {
    tell(&ask(client, confirm_removals)?)
}

/// Reloads without printing, and returns when all has settled.
pub(super) fn ask(client: &ControlClient, confirm_removals: bool) -> Result<ReloadReport, Failure> {
    client.post("/v1/reload", &ReloadRequest { confirm_removals })
}

/// Prints the changes and every problem.
fn tell(report: &ReloadReport) -> Result<(), Failure> {
    say(changes(report).as_bytes())?;
    complain_of(&report.problems)
}

/// Prints the problems; fails if there are any.
pub(super) fn complain_of(problems: &[String]) -> Result<(), Failure> {
    if problems.is_empty() {
        return Ok(());
    }
    for problem in problems {
        // A problem may have several lines: the place, the source line, a hint.
        let lines: Vec<String> = problem.lines().map(harmless).collect();
        complain(&lines.join("\n"), EXIT_PROBLEM);
    }
    Err(Failure::Told)
}

fn changes(report: &ReloadReport) -> String {
    let lines = |what: &'static str, names: &[String]| {
        names
            .iter()
            .map(|name| format!("{what} {name}\n"))
            .collect::<String>()
    };
    let all = lines("added", &report.added)
        + &lines("changed", &report.changed)
        + &lines("removed", &report.removed);
    if all.is_empty() {
        "nothing changed\n".to_owned()
    } else {
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_a_line_each() {
        let mut report = ReloadReport::default();
        assert_eq!(changes(&report), "nothing changed\n");
        report.added = vec!["a".into(), "b".into()];
        report.removed = vec!["c".into()];
        assert_eq!(changes(&report), "added a\nadded b\nremoved c\n");
    }
}
