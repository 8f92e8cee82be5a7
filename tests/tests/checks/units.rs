//! The places of the installed files, and units about which systemd reports nothing.

use brokkr_tests::bin::run_command;
use brokkr_tests::{TestDir, bin, says};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn install(dest: &Path, prefix: &str) {
    let binaries = bin::supervisor().parent().unwrap().display().to_string();
    let mut make = Command::new("make");
    make.arg("--silent")
        .arg("-C")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap())
        .arg("install")
        .arg(format!("BIN={binaries}"))
        .arg(format!("DESTDIR={}", dest.display()))
        .arg(format!("PREFIX={prefix}"))
        // This test may itself run below make.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL");
    run_command(make, Duration::from_secs(60)).ok();
}

#[test]
fn everything_is_installed_in_its_standard_place_and_the_operators_file_is_kept() {
    let place = TestDir::new();
    install(place.path(), "/usr");
    for (name, mode) in [
        ("usr/bin/brokkr-broker", 0o755),
        ("usr/bin/brokkr-supervisor", 0o755),
        ("usr/lib/systemd/system/brokkr-supervisor.service", 0o644),
        ("usr/lib/systemd/system/brokkr-tenants.service", 0o644),
        ("usr/lib/sysusers.d/brokkr.conf", 0o644),
        ("usr/lib/tmpfiles.d/brokkr.conf", 0o644),
        ("usr/share/brokkr/root.conf", 0o644),
        ("etc/needrestart/restart.d/brokkr-supervisor.service", 0o755),
        ("etc/needrestart/restart.d/brokkr-tenants.service", 0o755),
        ("etc/brokkr/supervisor.toml", 0o640),
        ("etc/brokkr/tenants.d", 0o755),
    ] {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(place.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(meta.mode() & 0o7777, mode, "{name}");
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("systemd");
    let unit = "brokkr-supervisor.service";
    assert_eq!(
        fs::read(source.join(unit)).unwrap(),
        fs::read(place.join("usr/lib/systemd/system").join(unit)).unwrap()
    );
    fs::write(place.join("etc/brokkr/supervisor.toml"), "# mine\n").unwrap();
    install(place.path(), "/usr");
    assert_eq!(
        fs::read_to_string(place.join("etc/brokkr/supervisor.toml")).unwrap(),
        "# mine\n"
    );
}

#[test]
fn the_units_of_another_prefix_name_its_binaries_and_systemd_has_nothing_to_say() {
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        assert!(
            !brokkr_tests::test_dir::is_root(),
            "systemd-analyze is missing: make deps"
        );
        println!("skipped: no systemd-analyze");
        return;
    }
    // With a prefix the units' binaries exist, so every report of systemd counts.
    let place = TestDir::new();
    let prefix = place.join("p").display().to_string();
    // Staged below the same folder, and linked from the path in the units.
    install(place.path(), &prefix);
    let staged = place.join(prefix.trim_start_matches('/'));
    std::os::unix::fs::symlink(staged, &prefix).unwrap();
    let folder = place.join("p/lib/systemd/system");
    let unit = folder.join("brokkr-supervisor.service");
    let text = fs::read_to_string(&unit).unwrap();
    says(
        &text,
        &[&format!("ExecStart={prefix}/bin/brokkr-supervisor run")],
    );
    assert!(!text.contains("/usr/bin/brokkr"), "{text}");

    let mut verify = Command::new("systemd-analyze");
    verify
        .arg("verify")
        .arg(&unit)
        .arg(folder.join("brokkr-tenants.service"));
    let ran = run_command(verify, Duration::from_secs(60));
    assert_eq!(
        (ran.code, ran.stderr.as_str(), ran.stdout.as_str()),
        (Some(0), "", "")
    );

    // The exposure level in tenths: 2.0 for the units, 3.0 for the supervisor as root.
    is_secure(&unit, 20);
    is_secure(&folder.join("brokkr-tenants.service"), 20);
    let drop_in = folder.join("brokkr-supervisor.service.d");
    fs::create_dir(&drop_in).unwrap();
    fs::copy(
        place.join("p/share/brokkr/root.conf"),
        drop_in.join("root.conf"),
    )
    .unwrap();
    is_secure(&unit, 30);
}

fn is_secure(unit: &Path, threshold: u32) {
    let mut security = Command::new("systemd-analyze");
    security
        .args(["security", "--offline=true", "--no-pager"])
        .arg(format!("--threshold={threshold}"))
        .arg(unit);
    let ran = run_command(security, Duration::from_secs(60));
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    println!("{}", ran.stdout.lines().last().unwrap_or_default());
}
