//! The published Python client runs unmodified against supervised tenants.

use brokkr_tests::Host;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns the interpreter of the virtual environment in which `make test` installs the client.
fn python() -> PathBuf {
    let python = std::env::var_os("BROKKR_TESTS_PYTHON").map_or_else(
        || {
            let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
                || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
                PathBuf::from,
            );
            target.join("client-brokkr-client-0.10.0/bin/python")
        },
        PathBuf::from,
    );
    assert!(
        python.exists(),
        "there is no {}: `make test` puts the published client there; or name an interpreter that has \
         brokkr-client==0.10.0 in BROKKR_TESTS_PYTHON",
        python.display()
    );
    python
}

#[test]
fn the_published_python_client_walks_two_supervised_tenants_at_once() {
    let host = Host::new();
    let tenants = [
        host.tenant("acme").pool(10).up(),
        host.tenant("globex").pool(10).up(),
    ];
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/walk");
    let walks = tenants.each_ref().map(|tenant| {
        Command::new(python())
            .arg(&script)
            .arg(format!("http://{}", tenant.status().listen.unwrap()))
            .arg(tenant.state_dir().join("admin.pak"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    for walk in walks {
        let ran = walk.wait_with_output().unwrap();
        let (out, err) = (
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr),
        );
        assert!(ran.status.success(), "{out}\n{err}");
        println!("{}", out.lines().last().unwrap_or_default());
        // The number of operations of the client; the walk itself checks that it calls each.
        assert!(out.ends_with("walk: 96 operations\n"), "{out}");
    }
    assert!(tenants.iter().all(|tenant| tenant.status().restarts == 0));
}
