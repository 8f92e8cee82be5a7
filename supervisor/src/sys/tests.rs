//! Checks the environment and descriptors of a child, and the errors of a failed spawn.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use std::io::Read;

/// Plans a shell that runs `script`, with `null` as its input and output.
fn plan<'fd>(script: &str, null: &'fd std::fs::File) -> SpawnPlan<'fd> {
    SpawnPlan {
        program: c"/bin/sh".into(),
        arguments: vec![c"sh".into(), c"-c".into(), CString::new(script).unwrap()],
        environment: vec![c"A=1".into()],
        standard: [null.as_fd(); 3],
        passed: vec![],
        open_files: (256, 1024),
        user: None,
    }
}

fn null() -> std::fs::File {
    std::fs::File::open("/dev/null").unwrap()
}

fn run(script: &str, passed: &[BorrowedFd<'_>]) -> (String, Spawned) {
    let null = null();
    let (read, write) = nix::unistd::pipe().unwrap();
    let plan = SpawnPlan {
        standard: [null.as_fd(), write.as_fd(), write.as_fd()],
        passed: passed.to_vec(),
        ..plan(script, &null)
    };
    let spawned = spawn(&plan, |_| Ok(())).unwrap();
    drop(write);
    let mut text = String::new();
    std::fs::File::from(read).read_to_string(&mut text).unwrap();
    (text, spawned)
}

#[test]
fn a_child_has_its_own_pid_in_listen_pid_its_descriptors_in_order_and_nothing_else() {
    let (a_read, a_write) = nix::unistd::pipe().unwrap();
    nix::unistd::write(&a_write, b"a").unwrap();
    let (b_read, b_write) = nix::unistd::pipe().unwrap();
    nix::unistd::write(&b_write, b"b").unwrap();
    drop((a_write, b_write));
    let script = "test $LISTEN_PID = $$ && echo pid; cat <&3; cat <&4; echo; ls /proc/$$/fd | tr '\\n' ' '; \
                  ulimit -n; env | sort | tr '\\n' ' '; cut -d' ' -f6 /proc/$$/stat; echo $$; grep NoNewPrivs /proc/$$/status";
    let (text, spawned) = run(script, &[b_read.as_fd(), a_read.as_fd()]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "pid");
    assert_eq!(lines[1], "ba");
    assert!(
        lines[2].starts_with("0 1 2 3 4 256") || lines[2].starts_with("0 1 10 2 3 4 256"),
        "{text}"
    );
    assert!(text.contains("A=1 "), "{text}");
    assert!(
        !text.contains("PATH=/root") && !text.contains("CARGO"),
        "inherited: {text}"
    );
    let pid = spawned.pid.to_string();
    assert_eq!(
        lines.iter().filter(|l| l.ends_with(&pid)).count(),
        2,
        "own session: {text}"
    );
    assert!(text.contains("NoNewPrivs:\t1"));
    reap(spawned.pid);
}

#[test]
fn a_program_that_is_not_there_is_an_error_of_the_spawn() {
    let null = null();
    let plan = SpawnPlan {
        program: c"/no/such/program".into(),
        ..plan("", &null)
    };
    let error = spawn(&plan, |_| Ok(())).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_child_whose_parent_gave_up_never_becomes_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("mark");
    let null = null();
    let plan = plan(&format!("touch {}", mark.display()), &null);
    spawn(&plan, |_| Err(io::Error::other("no"))).unwrap_err();
    assert!(!mark.exists());
}

#[test]
fn a_child_starts_though_every_number_within_its_own_limit_is_taken() {
    let null = null();
    // A supervisor of many tenants has raised its own limit and has more descriptors open than a broker may have.
    let taken: Vec<std::fs::File> = (0..64).map(|_| null.try_clone().unwrap()).collect();
    let plan = SpawnPlan {
        passed: vec![taken[63].as_fd()],
        open_files: (32, 64),
        ..plan("exit 0", &null)
    };
    let spawned = spawn(&plan, |_| Ok(())).unwrap();
    reap(spawned.pid);
}

#[test]
fn a_child_that_becomes_another_user_keeps_nothing_of_root() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root may become another user");
        return;
    }
    let null = null();
    let (read, write) = nix::unistd::pipe().unwrap();
    let plan = SpawnPlan {
        standard: [null.as_fd(), write.as_fd(), write.as_fd()],
        user: Some(ChildUser {
            uid: 61_234,
            processes: 7,
        }),
        ..plan(
            "cat /proc/self/status; grep processes /proc/self/limits",
            &null,
        )
    };
    let spawned = spawn(&plan, |_| Ok(())).unwrap();
    drop(write);
    let mut text = String::new();
    std::fs::File::from(read).read_to_string(&mut text).unwrap();
    reap(spawned.pid);
    let has = |line: &str| {
        let line = line.replace(' ', "\t");
        assert!(text.contains(&line), "{line}\n{text}");
    };
    has("Uid: 61234 61234 61234 61234\n");
    has("Gid: 61234 61234 61234 61234\n");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        has(&format!("{set}: 0000000000000000\n"));
    }
    has("NoNewPrivs: 1\n");
    assert!(text.contains("Groups:\t \n"), "{text}");
    let limit = text.lines().last().unwrap_or_default();
    let words: Vec<_> = limit.split_whitespace().collect();
    assert_eq!(words, ["Max", "processes", "7", "7", "processes"]);
}
