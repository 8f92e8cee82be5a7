//! Numbered lines of a broker, which must be in the journal once and in order.

use crate::systemd::booted::Booted;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of each line, with its end.
const LENGTH: usize = 64;
const BEGIN: &str = "numbered ";

/// The numbered lines of one broker.
pub(crate) struct Numbered<'b> {
    machine: &'b Booted,
    tenant: &'b str,
    pid: i32,
    said: usize,
}

impl<'b> Numbered<'b> {
    pub(crate) fn of(machine: &'b Booted, tenant: &'b str, pid: i32) -> Self {
        Self {
            machine,
            tenant,
            pid,
            said: 0,
        }
    }

    pub(crate) fn said(&self) -> usize {
        self.said
    }

    /// Writes this many more lines into the broker's log pipe, which must have room, because a broker would not wait
    /// either.
    pub(crate) fn lines(&mut self, count: usize) {
        let stderr = format!("/proc/{}/fd/2", self.pid);
        let mut pipe = OpenOptions::new()
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(self.machine.path(&stderr))
            .unwrap();
        for _ in 0..count {
            self.said += 1;
            let mut line = format!("{BEGIN}{:06} ", self.said);
            while line.len() < LENGTH - 1 {
                line.push('.');
            }
            line.push('\n');
            // In one write, so that no line of the broker divides it.
            assert_eq!(pipe.write(line.as_bytes()).unwrap(), LENGTH);
        }
    }

    /// Waits for the last line and checks all of them.
    pub(crate) fn are_in_the_journal(&self) {
        let numbers = || -> Vec<usize> {
            let lines = self.machine.lines_of(self.tenant);
            let numbers = lines.iter().filter_map(|line| line.strip_prefix(BEGIN));
            numbers
                .map(|rest| rest.split(' ').next().unwrap().parse().unwrap())
                .collect()
        };
        let seen = self.machine.wait(60, "the last line", || {
            let seen = numbers();
            if seen.last() == Some(&self.said) {
                Ok(seen)
            } else {
                Err(format!("{} of {}: {seen:?}", seen.len(), self.said))
            }
        });
        assert_eq!(seen, (1..=self.said).collect::<Vec<_>>());
    }
}
