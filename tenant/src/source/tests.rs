#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

fn error(path: &Path) -> String {
    Source::read(path).unwrap_err().to_string()
}

#[test]
fn what_is_not_a_regular_file_is_refused_at_once_at_its_first_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("dir.toml")).unwrap();
    std::os::unix::fs::symlink("nowhere", path("dangling.toml")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", path("device.toml")).unwrap();
    std::os::unix::fs::symlink("loop.toml", path("loop.toml")).unwrap();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(path("fifo.toml"))
            .status()
            .unwrap()
            .success()
    );
    let _socket = std::os::unix::net::UnixListener::bind(path("socket.toml")).unwrap();
    for (name, says) in [
        ("dir.toml", "a directory"),
        ("dangling.toml", "does not exist"),
        ("device.toml", "a device"),
        ("loop.toml", "cannot read it"),
        ("fifo.toml", "a FIFO"),
        ("socket.toml", "a socket"),
        ("absent.toml", "cannot read it"),
    ] {
        let error = error(&path(name));
        assert!(
            error.starts_with(&format!("{}:1:1: ", path(name).display())),
            "{error}"
        );
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_file_of_ten_megabytes_is_refused_and_one_of_one_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.toml");
    std::fs::write(&path, vec![b'#'; 10_000_000]).unwrap();
    assert!(error(&path).contains("larger than"));
    std::fs::write(&path, vec![b'#'; 1 << 20]).unwrap();
    assert_eq!(Source::read(&path).unwrap().text().len(), 1 << 20);
}

#[test]
fn a_byte_that_is_not_utf_8_is_named_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.toml");
    std::fs::write(&path, b"a = 1\nb = \"\xe4\"\n").unwrap();
    let shown = error(&path);
    assert!(
        shown.starts_with(&format!(
            "{}:2:6: the file is not UTF-8: byte 0xE4",
            path.display()
        )),
        "{shown}"
    );
    std::fs::write(&path, b"\xff\xfea\0").unwrap();
    assert!(error(&path).contains("UTF-16"));
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.toml");
    std::fs::write(&path, "\u{feff}a = 1\n").unwrap();
    assert_eq!(Source::read(&path).unwrap().text(), "a = 1\n");
}
