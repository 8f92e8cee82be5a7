#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
use super::*;

struct Folder {
    directory: tempfile::TempDir,
    scanner: Scanner,
    now: Instant,
}

impl Folder {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = Layer::from_pairs("test", [("database.url", "postgres://u@h/d")]);
        let scanner = Scanner::new(
            directory.path().join("t.d"),
            directory.path().join("broker"),
            vec![url],
        );
        std::fs::create_dir(directory.path().join("t.d")).unwrap();
        Self {
            directory,
            scanner,
            now: Instant::now(),
        }
    }

    /// Creates a folder with these tenants, at the ports from 1 on, and scans it once.
    fn with(tenants: &[&str]) -> Self {
        let mut folder = Self::new();
        for (port, name) in (1..).zip(tenants) {
            folder.write(name, port);
        }
        folder.after(NOW);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("t.d").join(name)
    }

    fn write(&self, name: &str, port: u16) {
        let text =
            format!("[http]\nlisten = \"127.0.0.1:{port}\"\n[database]\nschema = \"t{port}\"\n");
        std::fs::write(self.path(&format!("{name}.toml")), text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(&format!("{name}.toml"))).unwrap();
    }

    fn run(&mut self, names: &[&str]) {
        let names = names.iter().map(|name| TenantName::parse(name).unwrap());
        self.scanner.take_runners(names.collect());
    }

    fn after(&mut self, time: Duration) -> Scanned {
        self.now += time;
        self.look(ScanMode::default())
    }

    fn look(&mut self, look: ScanMode) -> Scanned {
        self.scanner.scan(self.now, look, &BTreeSet::new())
    }

    fn names(scanned: &Scanned) -> Vec<&str> {
        scanned
            .desired
            .tenants
            .keys()
            .map(TenantName::as_str)
            .collect()
    }
}

const NOW: Duration = Duration::ZERO;
/// The scan of a reload.
const RELOAD: ScanMode = ScanMode {
    removals_at_once: true,
    confirm_removals: false,
};

/// Returns the state of the tenant `acme`.
fn acme(scanned: &Scanned) -> FileState {
    scanned.desired.tenants[&TenantName::parse("acme").unwrap()].clone()
}

#[test]
fn only_toml_files_without_a_leading_dot_are_tenants_and_a_bad_name_is_a_problem() {
    let mut folder = Folder::new();
    folder.write("acme", 1);
    for name in [
        ".acme.toml.swp",
        ".hidden.toml",
        "acme.toml~",
        "notes.txt",
        "Bad_Name.toml",
    ] {
        std::fs::write(folder.path(name), "x").unwrap();
    }
    let scanned = folder.after(NOW);
    assert_eq!(Folder::names(&scanned), ["acme"]);
    assert_eq!(scanned.desired.problems.len(), 1);
    assert!(
        scanned.desired.problems[0].brief.contains("Bad_Name.toml"),
        "{:?}",
        scanned.desired.problems
    );
    let problem = &scanned.desired.problems[0];
    assert!(
        problem.full.contains("\nhint: rename the file: "),
        "{}",
        problem.full
    );
    assert!(
        problem.brief.contains(" (rename the file: ") && !problem.brief.contains('\n'),
        "a notice has one line: {}",
        problem.brief
    );
}

#[test]
fn a_folder_or_dangling_link_named_like_a_tenant_is_a_problem_of_that_tenant_alone() {
    let mut folder = Folder::new();
    folder.write("acme", 1);
    std::fs::create_dir(folder.path("folder.toml")).unwrap();
    std::os::unix::fs::symlink("/no/where", folder.path("link.toml")).unwrap();
    let scanned = folder.after(NOW);
    let state = |name: &str| scanned.desired.tenants[&TenantName::parse(name).unwrap()].as_ref();
    assert!(state("acme").is_ok());
    for name in ["folder", "link"] {
        let problem = &state(name).unwrap_err().full;
        assert!(problem.contains(&format!("{name}.toml:1:1: ")), "{problem}");
    }
}

#[test]
fn a_removal_counts_after_two_seconds_and_a_file_that_comes_back_was_never_gone() {
    let mut folder = Folder::with(&["acme"]);
    folder.remove("acme");
    let scanned = folder.after(NOW);
    assert_eq!(Folder::names(&scanned), ["acme"]);
    assert_eq!(scanned.again_at, Some(folder.now + REMOVAL_AFTER));
    folder.write("acme", 1);
    assert_eq!(folder.after(Duration::from_secs(3)).again_at, None);
    folder.remove("acme");
    folder.after(NOW);
    let scanned = folder.after(REMOVAL_AFTER);
    assert!(Folder::names(&scanned).is_empty());
}

#[test]
fn a_reload_makes_a_removal_count_at_once() {
    let mut folder = Folder::with(&["acme"]);
    folder.remove("acme");
    assert!(Folder::names(&folder.look(RELOAD)).is_empty());
}

#[test]
fn a_folder_that_cannot_be_read_changes_nothing_and_is_a_problem_until_it_is_back() {
    let mut folder = Folder::with(&["acme"]);
    let away = folder.directory.path().join("away");
    std::fs::rename(folder.directory.path().join("t.d"), &away).unwrap();
    let scanned = folder.after(Duration::from_secs(60));
    assert_eq!(Folder::names(&scanned), ["acme"]);
    assert_eq!(scanned.desired.problems.len(), 1);
    std::fs::rename(&away, folder.directory.path().join("t.d")).unwrap();
    assert!(folder.after(NOW).desired.problems.is_empty());
}

#[test]
fn another_folder_in_its_place_changes_nothing_until_a_reload() {
    let mut folder = Folder::with(&["acme"]);
    let place = folder.directory.path().join("t.d");
    std::fs::rename(&place, folder.directory.path().join("away")).unwrap();
    std::fs::create_dir(&place).unwrap();
    let scanned = folder.after(Duration::from_secs(60));
    assert_eq!(Folder::names(&scanned), ["acme"]);
    assert!(
        scanned.desired.problems[0].brief.contains("reload"),
        "{:?}",
        scanned.desired.problems
    );
    assert!(Folder::names(&folder.look(RELOAD)).is_empty());
}

#[test]
fn more_than_half_gone_at_once_is_held_until_confirmed() {
    let all = ["a", "b", "c", "d", "e"];
    let mut folder = Folder::with(&all);
    folder.run(&all);
    for name in ["a", "b", "c"] {
        folder.remove(name);
    }
    folder.after(NOW);
    let scanned = folder.after(Duration::from_secs(9));
    assert_eq!(scanned.desired.tenants.len(), 5);
    assert!(
        scanned.desired.problems[0]
            .brief
            .contains("reload --confirm-removals")
    );
    assert_eq!(
        folder.look(RELOAD).desired.tenants.len(),
        5,
        "a plain reload holds them too"
    );
    folder.write("a", 1);
    let one_back = folder.after(Duration::from_secs(9));
    assert_eq!(
        one_back.desired.tenants.len(),
        5,
        "the others are held still"
    );
    folder.remove("a");
    folder.after(NOW);
    let confirmed = folder.look(ScanMode {
        confirm_removals: true,
        ..RELOAD
    });
    assert_eq!(Folder::names(&confirmed), ["d", "e"]);
}

#[test]
fn those_that_do_not_run_count_neither_among_all_nor_among_the_gone() {
    let mut folder = Folder::with(&["a", "b", "c", "d", "e", "v", "w", "x", "y", "z"]);
    folder.run(&["a", "b", "c", "d", "e"]);
    for name in ["a", "b", "v", "w", "x", "y", "z"] {
        folder.remove(name);
    }
    folder.after(NOW);
    let few = folder.after(REMOVAL_AFTER);
    assert_eq!(Folder::names(&few), ["c", "d", "e"], "two of five");

    for (port, name) in (1..).zip(["a", "b", "v", "w", "x"]) {
        folder.write(name, port);
    }
    folder.after(NOW);
    for name in ["a", "b", "c", "x"] {
        folder.remove(name);
    }
    folder.after(NOW);
    let many = folder.after(REMOVAL_AFTER);
    assert_eq!(
        Folder::names(&many),
        ["a", "b", "c", "d", "e", "v", "w"],
        "three of five are held, and who does not run goes"
    );
    let brief = &many.desired.problems[0].brief;
    assert!(
        brief.contains("the files of 3 of 5 tenants that run"),
        "{brief}"
    );
}

#[test]
fn an_unchanged_file_is_not_read_again_and_a_changed_one_is() {
    let mut folder = Folder::new();
    folder.write("acme", 1);
    let first = acme(&folder.after(NOW)).unwrap();
    let again = acme(&folder.after(NOW)).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    folder.write("acme", 2);
    let changed = acme(&folder.after(NOW)).unwrap();
    assert_ne!(first.digest, changed.digest);
}

#[test]
fn a_change_of_the_url_file_is_a_change_of_the_tenant() {
    let mut folder = Folder::new();
    let url = folder.directory.path().join("url");
    std::fs::write(&url, "postgres://u:one@h/d\n").unwrap();
    let text = "[database]\nurl_file = \"../url\"\n[http]\nlisten = \"127.0.0.1:1\"\n";
    std::fs::write(folder.path("acme.toml"), text).unwrap();
    let scanned = folder.after(NOW);
    let first = acme(&scanned).unwrap();
    assert!(
        scanned
            .referred
            .names
            .contains(&url.canonicalize().unwrap())
    );
    std::fs::write(&url, "postgres://u:two@h/d\n").unwrap();
    let second = acme(&folder.after(NOW)).unwrap();
    assert_ne!(first.digest, second.digest);
    std::fs::remove_file(&url).unwrap();
    assert!(acme(&folder.after(NOW)).is_err());
    std::fs::write(&url, "postgres://u:two@h/d\n").unwrap();
    assert!(acme(&folder.after(NOW)).is_ok());
}

#[test]
fn a_file_that_is_being_written_keeps_its_last_state() {
    let mut folder = Folder::with(&["acme"]);
    std::fs::write(folder.path("acme.toml"), "[http").unwrap();
    let busy = BTreeSet::from([folder.path("acme.toml")]);
    let scanned = folder.scanner.scan(folder.now, ScanMode::default(), &busy);
    assert!(acme(&scanned).is_ok());
    assert!(acme(&folder.after(NOW)).is_err());
}

#[test]
fn a_link_is_followed_to_its_end_and_busy_while_its_target_is() {
    let mut folder = Folder::new();
    let root = folder.directory.path().canonicalize().unwrap();
    std::fs::create_dir_all(root.join("maps/..1")).unwrap();
    std::os::unix::fs::symlink("..1", root.join("maps/..data")).unwrap();
    folder.write("plain", 1);
    let target = root.join("maps/..1/acme.toml");
    std::fs::rename(folder.path("plain.toml"), &target).unwrap();
    std::os::unix::fs::symlink("../maps/..data/acme.toml", folder.path("acme.toml")).unwrap();
    let scanned = folder.after(NOW);
    assert!(acme(&scanned).is_ok());
    for name in ["maps/..data", "maps/..1/acme.toml", "t.d/acme.toml", "t.d"] {
        let names = &scanned.referred.names;
        assert!(names.contains(&root.join(name)), "{name}: {names:?}");
    }
    assert!(scanned.referred.aliased.is_empty());

    std::fs::write(&target, "[http").unwrap();
    let busy = BTreeSet::from([target.clone()]);
    let scanned = folder.scanner.scan(folder.now, ScanMode::default(), &busy);
    assert!(acme(&scanned).is_ok());
    assert!(acme(&folder.after(NOW)).is_err());
    // A second name lets the file change in a folder that is not watched.
    std::fs::hard_link(&target, root.join("other")).unwrap();
    assert!(folder.after(NOW).referred.aliased.contains(&target));
}

/// Scans at each due time until no scan is due, and returns the number of new programs.
fn programs(folder: &mut Folder) -> usize {
    let mut seen = folder.look(ScanMode::default());
    let mut count = 0;
    let mut last = folder.scanner.program.settled.clone();
    for _ in 0..10 {
        let Some(at) = seen.again_at else {
            return count;
        };
        folder.now = at;
        seen = folder.look(ScanMode::default());
        let settled = seen.desired.broker.clone();
        if !last.unwrap().is_same_program(&settled.clone().unwrap()) {
            count += 1;
        }
        last = settled;
    }
    panic!("it is looked at for ever");
}

#[test]
fn a_link_another_owner_and_another_mode_make_no_new_program_and_each_new_file_is_one() {
    use std::os::unix::fs::PermissionsExt;
    let mut folder = Folder::new();
    let broker = folder.directory.path().join("broker");
    let root = folder.directory.path().to_owned();
    let beside = |name: &str| root.join(name);
    let (new, backup) = (beside("broker.dpkg-new"), beside("broker.dpkg-tmp"));
    std::fs::write(&broker, "first").unwrap();
    assert!(folder.look(ScanMode::default()).desired.broker.is_some());
    std::fs::hard_link(&broker, beside("broker.link")).unwrap();
    let mine = std::fs::metadata(&broker).unwrap();
    std::os::unix::fs::chown(&broker, Some(mine.uid()), Some(mine.gid())).unwrap();
    std::fs::set_permissions(&broker, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(programs(&mut folder), 0);

    // The steps of dpkg, with a scan after each: write the new file, link the old file, rename, remove the link.
    std::fs::write(&new, "again").unwrap();
    folder.after(Duration::from_millis(50));
    std::fs::hard_link(&broker, &backup).unwrap();
    folder.after(Duration::from_millis(50));
    std::fs::rename(&new, &broker).unwrap();
    let before = folder.after(Duration::from_millis(50)).desired.broker;
    std::fs::remove_file(&backup).unwrap();
    assert_eq!(
        folder.after(Duration::from_millis(50)).desired.broker,
        before
    );
    assert_eq!(programs(&mut folder), 1);

    // Two writes in place with less than a second between them; then a change of the time alone.
    std::fs::write(&broker, "half").unwrap();
    assert!(folder.after(Duration::from_millis(900)).again_at.is_some());
    std::fs::write(&broker, "half and half").unwrap();
    assert!(folder.after(Duration::from_millis(900)).again_at.is_some());
    assert_eq!(programs(&mut folder), 1);
    let touched = std::time::SystemTime::now() + Duration::from_secs(5);
    std::fs::File::open(&broker)
        .unwrap()
        .set_modified(touched)
        .unwrap();
    assert_eq!(programs(&mut folder), 1);

    // A program that returns unchanged is not new; a reload does not wait for quiet.
    std::fs::rename(&broker, &new).unwrap();
    folder.after(Duration::from_secs(5));
    std::fs::rename(&new, &broker).unwrap();
    assert_eq!(programs(&mut folder), 0);
    std::fs::write(&broker, "another").unwrap();
    let before = folder.after(NOW).desired.broker.unwrap();
    let now = folder.look(RELOAD);
    assert!(now.again_at.is_none() && !before.is_same_program(&now.desired.broker.unwrap()));
}

#[test]
fn a_stamp_of_an_earlier_supervisor_is_read_and_an_earlier_one_reads_ours() {
    let earlier = r#"{"device":1,"inode":2,"size":3,"modified":[4,5],"changed":[6,7]}"#;
    let stamp: Stamp = serde_json::from_str(earlier).unwrap();
    assert_eq!(serde_json::to_string(&stamp).unwrap(), earlier);
    let linked = earlier.replace("[6,7]", "[8,9]");
    assert!(stamp.is_same_program(&serde_json::from_str(&linked).unwrap()));
}
