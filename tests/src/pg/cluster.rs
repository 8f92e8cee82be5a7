//! The server's programs, and the data folder from which every server of a test is copied.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{own, postgres_user};
use crate::bin::run_command;
use crate::test_dir::{AtDeath, TestDir, mortal, set_mode};

pub(super) fn as_postgres(program: &Path) -> Command {
    let mut command = mortal(program, AtDeath::Kill, postgres_user());
    command.env("LC_ALL", "C").current_dir("/");
    command
}

/// Returns the folder of the server binaries: the first on PATH that is complete, else the newest of Debian's.
pub fn bin_dir() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find(|folder| is_complete(folder));
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .filter(|(_, folder)| is_complete(folder))
        .collect();
    debian.sort();
    on_path
        .or_else(|| debian.pop().map(|(_, folder)| folder))
        .expect("no PostgreSQL server binaries: install Debian's postgresql-15, or run `make deps`")
}

fn is_complete(folder: &Path) -> bool {
    ["initdb", "postgres", "pg_basebackup"]
        .iter()
        .all(|name| folder.join(name).exists())
}

/// Returns a data folder, made once by initdb, to be copied.
pub(super) fn template() -> PathBuf {
    let bin = bin_dir();
    let version = crate::bin::run(bin.join("postgres"), ["--version"]).ok();
    let version: String = version
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '.')
        .collect();
    let own_uid = nix::unistd::getuid();
    let folder = std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .join(format!("pg-{version}-{own_uid}"));
    // Locked until the template is complete, because several test programs may need it at once.
    let lock = File::create(folder.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if folder.exists() {
        return folder;
    }
    let place = TestDir::new();
    own(place.path());
    let data = place.join("data");
    let mut initdb = as_postgres(&bin.join("initdb"));
    initdb
        .args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
            "-D",
        ])
        .arg(&data);
    run_command(initdb, Duration::from_secs(120)).ok();
    let mut conf = fs::read_to_string(data.join("postgresql.conf")).unwrap();
    // A test never waits for the disk. A test's own settings come by command line and override these.
    conf.push_str(
        "\nfsync = off\nsynchronous_commit = off\nfull_page_writes = off\nshared_buffers = 16MB\n\
         listen_addresses = '127.0.0.1'\nlog_line_prefix = '%m [%p] %a '\nautovacuum_naptime = 5min\n",
    );
    fs::write(data.join("postgresql.conf"), conf).unwrap();
    let mut single = as_postgres(Path::new("sh"));
    single.arg("-c").arg(format!(
        "printf '%s\\n' 'CREATE ROLE brokkr LOGIN;' 'CREATE DATABASE brokkr OWNER brokkr;' | '{}' --single -D '{}' postgres",
        bin.join("postgres").display(),
        data.display()
    ));
    run_command(single, Duration::from_secs(60)).ok();
    let partial = folder.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    copy(&data, &partial);
    fs::rename(&partial, &folder).unwrap();
    folder
}

/// Copies with owners and modes (`cp -a`).
pub(super) fn copy(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    cp.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    run_command(cp, Duration::from_secs(60)).ok();
    set_mode(to, 0o700);
}
