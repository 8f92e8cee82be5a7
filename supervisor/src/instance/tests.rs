//! A panic in a task of one tenant fails that tenant's instance and no other.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::zombie_processes,
    reason = "tests; the process is waited for by its number"
)]

use super::*;
use crate::config::ConfigSummary;
use crate::instance::events::EventKind;
use crate::logs::{Output, OutputFormat};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::process::Command;
use std::time::Duration;

fn manager(folder: &std::path::Path) -> (InstanceManager, mpsc::Receiver<InstanceEvent>) {
    let settings = Settings {
        provisioner: None,
        program: "/bin/false".into(),
        folder: folder.to_owned(),
        times: ProbeTimes {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
        },
        open_files: (256, 1024),
        groups: CgroupTree::default(),
        uids: None,
    };
    let null = std::fs::File::create("/dev/null").unwrap();
    let hub = Hub::start(Output::choose(OutputFormat::Json, null.into())).unwrap();
    let (reports, reported) = mpsc::channel(16);
    (InstanceManager::new(settings, hub, reports), reported)
}

#[tokio::test]
async fn a_task_that_panics_is_its_tenants_failure_and_its_process_is_not_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, mut reported) = manager(folder.path());
    let tenant = TenantName::parse("acme").unwrap();
    let id = InstanceId(1);
    let files = InstanceFiles::new(folder.path(), &tenant, id);
    // A process that holds the instance's lock, as if the task had started it.
    let lock = lock::create(&files.lock()).unwrap();
    let child = Command::new("sleep")
        .arg("1000")
        .stdin(lock.try_clone().unwrap())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    let what = ConfigSummary::listening(Listen::parse("127.0.0.1:1").unwrap());
    lock::sign(
        &files.lock(),
        &lock::LockHolder::of(pid.as_raw()).unwrap(),
        &what,
    )
    .unwrap();
    drop(lock);

    let task = tokio::spawn(async { panic!("a mistake of ours") });
    manager.watch(tenant.clone(), id, files.clone(), task);
    let report = reported.recv().await.unwrap();
    assert_eq!(report.tenant, tenant);
    match report.what {
        EventKind::Life(Event::Exited {
            id: ended, reason, ..
        }) => {
            assert_eq!(ended, id);
            assert!(reason.contains("a mistake of ours"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let status = tokio::task::spawn_blocking(move || waitpid(pid, None).unwrap());
    assert!(matches!(
        status.await.unwrap(),
        WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGKILL, _)
    ));
    assert!(!files.lock().exists());
    // The task of another tenant is not affected.
    let task = tokio::spawn(async {});
    manager.watch(TenantName::parse("globex").unwrap(), id, files, task);
    assert!(reported.try_recv().is_err());
}
