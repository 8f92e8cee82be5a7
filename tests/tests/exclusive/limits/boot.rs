//! A machine for one test, in which the same program runs that test again.

use crate::limits::INSIDE;
use brokkr_tests::PgServer;
use brokkr_tests::systemd_host::stage;
use brokkr_tests::test_dir::{AtDeath, TestDir, mortal, set_mode, spawn};
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Limit of the whole test on a loaded host.
const PATIENCE: Duration = Duration::from_secs(8 * 60);

/// Boots a machine, runs this test in it and returns the output.
pub(crate) fn on_a_machine_of_its_own(test: &str) -> String {
    let place = TestDir::new();
    stage(&place, &[]);
    let job = place.folder("job", 0o755);
    fs::copy(std::env::current_exe().unwrap(), job.join("test")).unwrap();
    PgServer::provide(&job);
    let run = format!(
        "#!/bin/sh\nexport {INSIDE}=1 RUST_BACKTRACE=0\nexec ./test --exact {test} --nocapture\n"
    );
    fs::write(job.join("run"), run).unwrap();
    set_mode(&job.join("run"), 0o755);

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/uml");
    let messages = File::create(place.join("messages")).unwrap();
    let mut boot = mortal(Path::new("unshare"), AtDeath::Kill, None);
    // Every process of the machine ends with this process, and its mounts too.
    boot.args(["--mount", "--pid", "--kill-child"])
        .arg(script)
        .arg(place.path())
        .stdin(Stdio::null())
        .stdout(messages.try_clone().unwrap())
        .stderr(messages);
    let mut uml = spawn(boot);
    let start = Instant::now();
    let status = loop {
        if let Some(status) = uml.try_wait().unwrap() {
            break Some(status);
        }
        if start.elapsed() > PATIENCE {
            uml.kill().unwrap();
            uml.wait().unwrap();
            break None;
        }
        sleep(Duration::from_millis(20));
    };
    let read = |name: &str| {
        let bytes = fs::read(place.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?} after {:?}\n{}\n{}\n{}",
        start.elapsed(),
        read("messages"),
        read("console"),
        read("out")
    );
    println!(
        "measured: machine of its own: {:.1?} in all",
        start.elapsed()
    );
    read("out")
}
