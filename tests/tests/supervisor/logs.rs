//! One log stream: every line names its tenant, and a flood costs only its own tenant.

use brokkr_tests::{Host, says};
use serde_json::Value;
use std::time::Duration;

fn of<'a>(lines: &'a [Value], tenant: &str) -> Vec<&'a str> {
    lines
        .iter()
        .filter(|line| line["tenant"] == tenant)
        .filter_map(|line| line["message"].as_str())
        .collect()
}

/// Returns the number of lines that the stream reports as dropped.
fn dropped(messages: &[&str]) -> u64 {
    messages
        .iter()
        .filter_map(|m| {
            m.strip_prefix("dropped ")?
                .split(' ')
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum()
}

#[test]
fn two_hundred_thousand_lines_of_one_tenant_disturb_no_line_of_another() {
    const FLOOD: u64 = 200_000;
    const TICKS: usize = 300;
    let host = Host::new();
    let wrapper = host.wrap_broker();
    // Both scripts write to the broker's own pipe, and the broker runs beside them.
    wrapper.first(
        "quiet",
        &format!(
            "(i=0; while [ $i -lt {TICKS} ]; do echo tick $i >&2; i=$((i+1)); sleep 0.01; done) &"
        ),
    );
    wrapper.first(
        "noisy",
        // Line by line, because the broker writes to the same pipe.
        &format!(
            "(stdbuf -oL seq -f 'flood %.0f' 0 {last} >&2) &",
            last = FLOOD - 1
        ),
    );
    let quiet = host.tenant("quiet").write();
    let noisy = host.tenant("noisy").write();
    host.up();
    let (quiet, noisy) = (quiet.is_ready(), noisy.is_ready());

    let last = format!("tick {}", TICKS - 1);
    let lines = brokkr_tests::until(Duration::from_secs(60), "both to have written all", || {
        let lines = host.log_lines();
        let whole = {
            let loud = of(&lines, "noisy");
            let written = loud.iter().filter(|m| m.starts_with("flood ")).count() as u64;
            of(&lines, "quiet").contains(&last.as_str()) && written + dropped(&loud) >= FLOOD
        };
        whole.then_some(lines)
    });

    let ticks: Vec<&str> = of(&lines, "quiet")
        .into_iter()
        .filter(|m| m.starts_with("tick "))
        .collect();
    let wanted: Vec<String> = (0..TICKS).map(|i| format!("tick {i}")).collect();
    assert_eq!(ticks, wanted);

    let loud = of(&lines, "noisy");
    let numbers: Vec<u64> = loud
        .iter()
        .filter_map(|m| m.strip_prefix("flood ")?.parse().ok())
        .collect();
    assert!(numbers.is_sorted());
    assert!(numbers.len() as u64 + dropped(&loud) >= FLOOD);
    println!(
        "{} lines of {FLOOD} written, {} dropped and counted",
        numbers.len(),
        dropped(&loud)
    );
    // The flood does not push the other tenant's lines out of `logs`.
    let shown = |args: &[&str]| -> Vec<Value> {
        let logs = ["logs", "-n", "200", "--format", "json"];
        let text = host.command(&[&logs[..], args].concat()).ok();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let both = shown(&[]);
    assert_eq!(both.len(), 200);
    for tenant in ["quiet", "noisy"] {
        let count = of(&both, tenant).len();
        assert!(count >= 50, "{count} lines of {tenant}");
    }
    let without = shown(&["--not", "noisy"]);
    assert!(of(&without, "noisy").is_empty() && of(&without, "quiet").len() > 100);
    assert!(quiet.status().restarts == 0 && noisy.status().restarts == 0);
    assert_eq!(noisy.get("/healthz").status, 200);
}

#[test]
fn what_is_not_json_is_wrapped_and_a_long_line_is_cut() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    wrapper.first(
        "acme",
        "printf 'thread main panicked\\nno newline at the end: ' >&2; head -c 100000 /dev/zero | tr '\\0' x >&2; echo >&2; \
         echo 'to standard output'",
    );
    let acme = host.tenant("acme").up();
    let lines = host.log_lines();
    let panic = lines
        .iter()
        .find(|l| l["message"] == "thread main panicked")
        .unwrap();
    assert_eq!(
        (&panic["tenant"], &panic["level"], &panic["target"]),
        (&"acme".into(), &"WARN".into(), &"stderr".into())
    );
    assert!(panic["timestamp"].is_string() && panic["pid"].is_i64());
    let long = of(&lines, "acme")
        .into_iter()
        .find(|m| m.starts_with("no newline"))
        .unwrap();
    assert!(
        long.len() < 17 * 1024 && long.len() > 1024,
        "{} bytes",
        long.len()
    );
    assert!(of(&lines, "acme").contains(&"to standard output"));

    // A broker's own lines keep their own fields.
    let own = lines
        .iter()
        .find(|l| {
            l["target"]
                .as_str()
                .is_some_and(|target| target.starts_with("brokkr_broker"))
        })
        .unwrap();
    assert_eq!(own["tenant"], "acme");
    assert_eq!(own["pid"], acme.pid());
    assert!(
        own["timestamp"].as_str().is_some_and(|t| t.ends_with('Z')),
        "{own}"
    );
}

#[test]
fn the_logs_command_shows_one_tenants_lines() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    wrapper.first("acme", "echo 'only of acme' >&2");
    wrapper.first("globex", "echo 'only of globex' >&2");
    host.tenant("acme").up();
    host.tenant("globex").up();
    let both = host.command(&["logs", "-n", "1000"]).ok();
    says(&both, &["only of acme", "only of globex"]);
    let one = host
        .command(&["logs", "-t", "acme", "-n", "1000", "--format", "json"])
        .ok();
    assert!(
        one.contains("only of acme") && !one.contains("only of globex"),
        "{one}"
    );
    assert!(
        one.lines()
            .all(|line| serde_json::from_str::<Value>(line).unwrap()["tenant"] == "acme")
    );
}

#[test]
fn the_text_stream_has_the_tenant_on_every_line() {
    let host = Host::builder().set("log.format", "\"text\"").build();
    host.tenant("acme").up();
    host.tenant("globex").up();
    let log = host.log();
    for tenant in ["acme", "globex"] {
        assert!(
            log.lines()
                .any(|line| line.split_whitespace().any(|word| word == tenant)),
            "{log}"
        );
    }
}
