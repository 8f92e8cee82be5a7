//! `make run` after the build, as the person at the terminal sees it.

use brokkr_tests::test_dir::{AtDeath, TestDir, mortal, spawn};
use brokkr_tests::{Addr, Api, alone, bin, ports, procs, says, until};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

#[test]
fn the_demo_says_what_to_try_and_ctrl_c_leaves_no_process_and_no_socket() {
    let _alone = alone();
    // A copy of the checkout with ports of its own.
    let place = TestDir::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for folder in ["tests/demo", "tenants.d"] {
        let to = place.join(folder);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(source.join(folder)).unwrap().flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    let mut tenants = Vec::new();
    for entry in fs::read_dir(place.join("tenants.d")).unwrap().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap();
        let listen = text.lines().find(|l| l.starts_with("listen = ")).unwrap();
        let port = ports::free();
        let text = text.replace(listen, &format!("listen = \"127.0.0.1:{port}\""));
        fs::write(entry.path(), text).unwrap();
        tenants.push((
            entry
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned(),
            port,
        ));
    }
    assert_eq!(tenants.len(), 2, "the demo has two tenants");

    let said = place.join("said");
    let out = File::create(&said).unwrap();
    let mut command = mortal(&place.join("tests/demo/run.sh"), AtDeath::Term, None);
    command
        .arg(bin::supervisor().parent().unwrap())
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .process_group(0);
    let mut demo = spawn(command);
    let group = Pid::from_raw(i32::try_from(demo.id()).unwrap());
    let text = || String::from_utf8_lossy(&fs::read(&said).unwrap()).into_owned();
    until(Duration::from_secs(60), "a line to try", || {
        if let Some(status) = demo.try_wait().unwrap() {
            panic!("the demo ended ({status}):\n{}", text());
        }
        text().contains("end with Ctrl-C").then_some(())
    });

    let shown = text();
    for (name, port) in &tenants {
        let pak_file = place.join(format!("target/demo/state/tenants/{name}/admin.pak"));
        let line = format!(
            "tenant {name}: http://127.0.0.1:{port}, admin PAK in {}",
            pak_file.display()
        );
        assert!(shown.contains(&line), "{line}\nis not in\n{shown}");
        let pak = fs::read_to_string(pak_file).unwrap();
        Api::new(Addr::port(*port), pak.trim())
            .get("/agents")
            .expect(200);
    }
    says(&shown, &["curl -s -H \"Authorization: Bearer "]);

    // Ctrl-C reaches every process in the foreground.
    killpg(group, Signal::SIGINT).unwrap();
    let status = until(Duration::from_secs(60), "the demo to end", || {
        demo.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(0), "{}", text());
    let left: Vec<String> = procs::naming(&format!("{}/", place.path().display()))
        .into_iter()
        .map(procs::describe)
        .collect();
    assert_eq!(left, [""; 0]);
    let mut find = std::process::Command::new("find");
    find.arg(place.path()).args(["-type", "s"]);
    assert_eq!(bin::run_command(find, Duration::from_secs(10)).ok(), "");
}
