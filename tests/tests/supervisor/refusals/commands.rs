//! The reason and the advice of a refusal in the answers of commands.

use brokkr_tests::Host;

#[test]
fn a_tenant_that_is_added_and_refused_leaves_no_file_and_the_reason_is_said() {
    let host = Host::new();
    let acme = host.tenant("acme").pool(50).up();
    let taken = acme.status().listen.unwrap();
    let free = format!("127.0.0.1:{}", brokkr_tests::ports::free());
    let add = |name: &str, listen: &str, pool: &str| {
        host.command(&[
            "tenant",
            "add",
            name,
            "--listen",
            listen,
            "--pool-size",
            pool,
        ])
    };
    for (listen, pool, words) in [
        (&taken, "5", ["not added", "acme"]),
        (&free, "60", ["not added", "over budget"]),
    ] {
        let ran = add("globex", listen, pool);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
        for word in words {
            assert!(ran.stderr.contains(word), "{word}: {ran:?}");
        }
        let files = host.command(&["tenant", "list"]).ok();
        assert_eq!(files, "acme\n", "{ran:?}");
        assert_eq!(host.status().tenants.len(), 1);
    }
    let added = add("globex", &free, "5").ok();
    assert!(added.contains("added globex"), "{added}");
    host.known("globex").becomes("ready");
}

#[test]
fn what_add_and_remove_say_is_of_their_own_tenant() {
    let host = Host::new();
    host.tenant("acme").up();
    // Other tenants that do not run, one for every kind of reason.
    let nowhere = host.server().url("nowhere", "brokkr");
    host.tenant("lost").url(&nowhere).write();
    host.tenant("broken")
        .set("database.pool_size", "\"ten\"")
        .write();
    host.tenant("greedy").pool(95).write();
    host.known("greedy").becomes("refused");
    host.known("lost").becomes("waiting");
    let reload = host.reload();
    assert_eq!(reload.code, Some(1), "{reload:?}");
    for words in ["tenant lost", "nowhere", "greedy", "broken.toml"] {
        assert!(reload.stderr.contains(words), "{words}: {reload:?}");
    }

    let listen = format!("127.0.0.1:{}", brokkr_tests::ports::free());
    let add = [
        "tenant",
        "add",
        "globex",
        "--listen",
        &listen,
        "--pool-size",
        "5",
    ];
    let added = host.command(&add);
    assert_eq!(
        (added.code, added.stdout.as_str(), added.stderr.as_str()),
        (Some(0), "added globex\n", "")
    );
    host.known("globex").becomes("ready");
    let removed = host.command(&["tenant", "remove", "globex"]);
    assert_eq!(
        (
            removed.code,
            removed.stdout.as_str(),
            removed.stderr.as_str()
        ),
        (Some(0), "removed globex\n", "")
    );

    // The command reports faults of its own tenant.
    let add = [&add[..], &["--url", &nowhere]].concat();
    let added = host.command(&add);
    assert_eq!(
        (added.code, added.stdout.as_str()),
        (Some(1), "added globex\n")
    );
    assert!(added.stderr.contains("waiting: ") && added.stderr.contains("nowhere"));
    assert!(!added.stderr.contains("greedy"), "{added:?}");
}

#[test]
fn a_reload_names_every_tenant_that_does_not_run_and_why() {
    let host = Host::new();
    host.tenant("acme").up();
    let server = host.server();
    host.tenant("b1")
        .url(&server.url("nowhere", "brokkr"))
        .write();
    host.tenant("b2")
        .url(&server.url("brokkr", "stranger"))
        .write();
    // The first reload reports them as new, the second as unchanged.
    for _ in 0..2 {
        let ran = host.reload();
        assert_eq!(ran.code, Some(1), "{ran:?}");
        for (tenant, why) in [("b1", "nowhere"), ("b2", "stranger")] {
            let named = format!("(tenant {tenant})");
            let mut lines = ran.stderr.lines();
            let line = lines.find(|line| line.contains(&named));
            let line = line.unwrap_or_else(|| panic!("{tenant} is not in {ran:?}"));
            assert!(line.contains("waiting: ") && line.contains(why), "{line}");
        }
    }
}

/// Returns the advice in a reason or in a line of `check`: the text from `pool_size` or `no pool_size` on.
fn advice(text: &str) -> String {
    let at = text
        .find("pool_size = ")
        .unwrap_or_else(|| panic!("no advice in {text}"));
    text[at..].lines().next().unwrap().trim().to_owned()
}

/// Returns the number after `what` in an advice.
fn number(advice: &str, what: &str) -> u32 {
    let (_, rest) = advice
        .split_once(what)
        .unwrap_or_else(|| panic!("{what} is not in {advice}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn every_command_gives_the_same_advice_and_following_it_helps() {
    let host = Host::new();
    let acme = host.tenant("acme").pool(5).up();
    let taken = acme.status().listen.unwrap();
    // Both run on with their old pools, which count, although their files ask for other values now.
    for name in ["bolt", "core"] {
        let runner = host.tenant(name).pool(7).up();
        let conflicting = host.tenant(name).pool(7).listen(&taken).text();
        runner.replace_file(&conflicting);
        runner.wait("to be in conflict", |t| t.pending.is_some());
    }
    let missing = host.server().url("nowhere", "brokkr");
    host.tenant("lost").pool(3).url(&missing).write();
    host.known("lost").becomes("waiting");
    let big = host.tenant("big").pool(90).write();
    let same = || {
        let said = advice(&big.becomes("refused").reason.unwrap());
        let check = host.command(&["check"]);
        assert_eq!(advice(&check.stdout), said, "{check:?}");
        let problem = check.stderr.lines().find(|l| l.contains("tenant big"));
        assert_eq!(advice(problem.unwrap()), said, "{check:?}");
        assert!(host.reload().stderr.contains(&said));
        assert!(host.log().contains(&said), "{said} is not in the log");
        // The table adds up to the same sum.
        let cell = |what: &str| {
            let mut lines = check.stdout.lines().map(str::trim);
            let line = lines.find(|line| line.starts_with(what)).unwrap();
            line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()
        };
        let more = cell("missing");
        assert_eq!(
            number(&said, "max_connections = "),
            cell("max_connections") + more
        );
        said
    };
    let said = same();
    let pool = number(&said, "pool_size = ");
    big.replace_file(&host.tenant("big").pool(pool).text());
    big.becomes("ready");
    big.replace_file(&host.tenant("big").pool(pool + 1).text());
    big.wait("to ask for too much", |t| t.pending.is_some());

    // The other half of the advice, where more than one limit is reached.
    big.remove_file();
    big.is_gone();
    let server = host.server();
    server.sql("ALTER DATABASE brokkr CONNECTION LIMIT 60");
    server.sql("ALTER ROLE brokkr CONNECTION LIMIT 70");
    let _ = host.reload();
    let big = host.tenant("big").pool(60).write();
    let said = advice(&big.becomes("refused").reason.unwrap());
    let check = host.command(&["check"]);
    assert_eq!(advice(&check.stdout), said, "{check:?}");
    for limit in [
        "ALTER DATABASE brokkr CONNECTION LIMIT ",
        "ALTER ROLE brokkr CONNECTION LIMIT ",
    ] {
        server.sql(&format!("{limit}{}", number(&said, limit)));
    }
    let _ = host.reload();
    big.becomes("ready");
}
