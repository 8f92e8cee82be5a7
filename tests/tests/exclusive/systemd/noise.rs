//! One tenant's flood of lines, and another tenant's lines in the journal.

use crate::systemd::booted::Booted;
use crate::systemd::lines::Numbered;
use brokkr_tests::alone;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

/// Lines of the noisy tenant in a tenth of a second.
const BURST: usize = 1000;
const BURSTS: u32 = 30;

#[test]
fn ten_thousand_lines_a_second_of_a_tenant_cost_no_line_of_another() {
    let _alone = alone();
    let tenants = [
        ("noisy", "unix:/run/brokkr/noisy.sock"),
        ("quiet", "unix:/run/brokkr/quiet.sock"),
    ];
    let Some(machine) = Booted::with_tenants(&tenants) else {
        return;
    };
    // journald raises its limit with the free disk space, so the limit is a tenth of its default here; otherwise this
    // noise may not reach it. The unit's own limit overrides it.
    let journald = machine.path("/etc/systemd/journald.conf.d");
    fs::create_dir_all(&journald).unwrap();
    fs::write(
        journald.join("tight.conf"),
        "[Journal]\nRateLimitBurst=1000\n",
    )
    .unwrap();
    machine.ok(&["systemctl", "restart", "systemd-journald"]);
    machine.installed();
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    let started = machine.ready(2);
    let pid = |name: &str| started.tenant(name).unwrap().pid.unwrap();
    let pipe = machine.path(&format!("/proc/{}/fd/2", pid("noisy")));
    let mut says = Numbered::of(&machine, "quiet", pid("quiet"));
    thread::scope(|scope| {
        let (sent, bursts) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let mut pipe = OpenOptions::new().write(true).open(pipe).unwrap();
            let burst =
                "flood ......................................................\n".repeat(BURST);
            let start = Instant::now();
            for n in 0..BURSTS {
                // The sleep sets the rate under test.
                let due = start + n * Duration::from_millis(100);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                pipe.write_all(burst.as_bytes()).unwrap();
                sent.send(n).unwrap();
            }
        });
        // More than journald's own limit has been written before the first line.
        for burst in bursts {
            if burst >= BURSTS / 2 && says.said() < 5 {
                says.lines(1);
            }
        }
    });
    assert_eq!(says.said(), 5);
    says.are_in_the_journal();

    // Each line of the noise is in the journal or in the supervisor's count of dropped lines; journald has dropped
    // none.
    let all = BURST * usize::try_from(BURSTS).unwrap();
    machine.wait(60, "every line to be there or counted", || {
        let lines = machine.ok(&["journalctl", "--quiet", "-o", "cat", "TENANT=noisy"]);
        let there = lines.lines().filter(|l| l.starts_with("flood ")).count();
        let dropped = |line: &str| -> Option<usize> {
            let count = line.strip_prefix("dropped ")?.split(' ').next()?;
            count.parse().ok()
        };
        let dropped: usize = lines.lines().filter_map(dropped).sum();
        if there + dropped == all {
            Ok(())
        } else {
            Err(format!("{there} and {dropped} of {all}"))
        }
    });
    let suppressed = machine.run(&[
        "journalctl",
        "--quiet",
        "-o",
        "cat",
        "--grep",
        "^Suppressed ",
    ]);
    assert_eq!(suppressed.stdout, "", "{suppressed:?}");
}
