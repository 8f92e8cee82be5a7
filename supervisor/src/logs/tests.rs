//! Tests of the hub with real pipes, from the broker's end to the sink.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use super::*;
use nix::fcntl::OFlag;
use proptest::prelude::*;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;
use tracing_subscriber::prelude::*;

fn name(text: &str) -> TenantName {
    TenantName::parse(text).unwrap()
}

fn pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    (File::from(write), read)
}

/// Creates a hub, and a reader of the lines that come out of it.
fn hub(output: fn(OwnedFd) -> Output) -> (Hub, BufReader<File>) {
    let (write, read) = pipe();
    (
        Hub::start(output(write.into())).unwrap(),
        BufReader::new(File::from(read)),
    )
}

fn attach(hub: &Hub, tenant: &str, pid: i32) -> File {
    let (write, read) = pipe();
    hub.attach(name(tenant), pid, read, PartialLine::default())
        .unwrap();
    write
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Reads all lines on a thread of its own.
fn read_all(out: BufReader<File>) -> thread::JoinHandle<Vec<String>> {
    thread::spawn(move || out.lines().map(Result::unwrap).collect())
}

/// Ends the hub and returns the lines that are still coming.
fn rest(hub: &Hub, out: BufReader<File>) -> Vec<String> {
    let reading = read_all(out);
    assert!(hub.flush_and_stop(soon()));
    reading.join().unwrap()
}

fn message(line: &str) -> String {
    json(line)["message"].as_str().unwrap().to_owned()
}

fn all_of(output: fn(OwnedFd) -> Output, bytes: &[u8]) -> Vec<String> {
    let (hub, out) = hub(output);
    let mut acme = attach(&hub, "acme", 4711);
    let bytes = bytes.to_vec();
    let writing = thread::spawn(move || acme.write_all(&bytes).unwrap());
    let reading = read_all(out);
    writing.join().unwrap();
    assert!(hub.flush_and_stop(soon()));
    drop(hub);
    reading.join().unwrap()
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

const LINE: &str =
    r#"{"timestamp":"2026-01-01T00:00:00.000000Z","level":"INFO","target":"t","message":"m"}"#;

#[test]
fn a_brokers_line_keeps_its_own_words_and_gets_tenant_and_pid() {
    let lines = all_of(Output::Json, format!("{LINE}\n").as_bytes());
    assert_eq!(
        lines,
        [
            r#"{"timestamp":"2026-01-01T00:00:00.000000Z","level":"INFO","tenant":"acme","pid":4711,"target":"t","message":"m"}"#
        ]
    );
}

#[test]
fn a_tenant_cannot_speak_for_another() {
    for key in ["tenant", "\\u0074enant", "t\\u0065nant"] {
        let forged = LINE.replace(
            "\"message\"",
            &format!("\"{key}\":\"evil\",\"pid\":1,\"message\""),
        );
        let lines = all_of(Output::Json, format!("{forged}\n").as_bytes());
        assert!(!lines[0].contains("evil"), "{}", lines[0]);
        assert_eq!(lines[0].matches("tenant").count(), 1);
        assert_eq!(json(&lines[0])["tenant"], "acme");
        assert_eq!(json(&lines[0])["pid"], 4711);
        assert_eq!(json(&lines[0])["message"], "m");
    }
}

#[test]
fn what_is_not_json_is_wrapped_and_what_has_no_line_feed_at_the_end_is_a_line() {
    let lines = all_of(
        Output::Json,
        b"thread 'main' panicked\r\n\nno newline \xff\x00 here",
    );
    assert_eq!(lines.len(), 2);
    let first = json(&lines[0]);
    assert_eq!(first["level"], "WARN");
    assert_eq!(first["target"], "stderr");
    assert_eq!(first["message"], "thread 'main' panicked");
    assert_eq!(json(&lines[1])["message"], "no newline \u{fffd}\0 here");
}

#[test]
fn a_line_of_a_megabyte_is_cut_and_marked_and_the_next_is_whole() {
    let mut bytes = vec![b'x'; 1 << 20];
    bytes.extend_from_slice(b"\nnext\n");
    let lines = all_of(Output::Json, &bytes);
    assert_eq!(lines.len(), 2);
    let message = message(&lines[0]);
    assert!(
        message.ends_with("… [line cut: 1048576 bytes]"),
        "{}",
        &message[16_000..]
    );
    assert!(message.starts_with(&"x".repeat(16 * 1024)));
    assert_eq!(json(&lines[1])["message"], "next");
}

#[test]
fn a_line_that_arrives_in_parts_is_one_line() {
    let (hub, mut out) = hub(Output::Json);
    let mut acme = attach(&hub, "acme", 1);
    let mut other = attach(&hub, "other", 2);
    for byte in LINE.as_bytes() {
        acme.write_all(&[*byte]).unwrap();
    }
    other.write_all(b"between\n").unwrap();
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(json(&line)["tenant"], "other");
    acme.write_all(b"\n").unwrap();
    line.clear();
    out.read_line(&mut line).unwrap();
    assert_eq!(json(&line)["message"], "m");
}

#[test]
fn a_forged_line_stays_inside_its_own_in_text() {
    let lines = all_of(Output::Text, b"x\r2026 other INFO forged\x1b[2J\x00\n");
    assert_eq!(lines.len(), 1);
    assert!(
        lines[0].contains(" acme     WARN  stderr: x\\r2026 other INFO forged\\u{1b}[2J\\u{0}")
    );
}

#[test]
fn a_flood_loses_no_line_that_is_not_counted_and_anothers_lines_keep_their_order() {
    const FLOOD: usize = 200_000;
    let (hub, out) = hub(Output::Json);
    let mut flood = attach(&hub, "flood", 1);
    let mut calm = attach(&hub, "calm", 2);
    let flooding = thread::spawn(move || {
        let mut block = Vec::new();
        for number in 0..FLOOD {
            writeln!(block, "{}", LINE.replace("\"m\"", &format!("\"{number}\""))).unwrap();
            if block.len() > 8_000 {
                flood.write_all(&block).unwrap();
                block.clear();
            }
        }
        flood.write_all(&block).unwrap();
    });
    let calmly = thread::spawn(move || {
        for number in 0..500 {
            writeln!(calm, "{number}").unwrap();
            thread::yield_now();
        }
    });
    let reading = thread::spawn(move || {
        let mut next = [0usize; 2];
        let mut dropped = 0;
        for line in out.lines().map(Result::unwrap) {
            let value = json(&line);
            let message = value["message"].as_str().unwrap();
            let lane = usize::from(value["tenant"] == "calm");
            if let Some(count) = message.strip_prefix("dropped ") {
                assert_eq!(lane, 0, "only the flooding tenant loses lines");
                let count: usize = count.split(' ').next().unwrap().parse().unwrap();
                dropped += count;
                next[0] += count;
                continue;
            }
            assert_eq!(
                message.parse::<usize>().unwrap(),
                next[lane],
                "{}",
                value["tenant"]
            );
            next[lane] += 1;
        }
        (next, dropped)
    });
    flooding.join().unwrap();
    calmly.join().unwrap();
    assert!(hub.flush_and_stop(soon()));
    let counted: u64 = hub.dropped().iter().map(|(_, count)| count).sum();
    drop(hub);
    let (next, dropped) = reading.join().unwrap();
    assert_eq!(next, [FLOOD, 500]);
    assert_eq!(dropped as u64, counted);
}

#[test]
fn a_sink_that_reads_nothing_blocks_no_broker_and_costs_counted_lines_of_the_loud_tenant_only() {
    let (hub, out) = hub(Output::Json);
    let mut loud = attach(&hub, "loud", 1);
    let mut calm = attach(&hub, "calm", 2);
    writeln!(calm, "before").unwrap();
    // The flood is far larger than every queue, so these writes would block for ever if the pipe were not read.
    let line = format!("{}\n", "y".repeat(999));
    let block = line.repeat(64);
    for _ in 0..1_000 {
        loud.write_all(block.as_bytes()).unwrap();
    }
    writeln!(calm, "after").unwrap();
    let start = Instant::now();
    let filter = Filter {
        tenants: vec![name("calm")],
        ..Filter::default()
    };
    while hub.tail(&filter, 9).len() < 2 {
        assert!(start.elapsed() < Duration::from_secs(20));
        thread::yield_now();
    }
    let lost = hub.dropped();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].0, Some(name("loud")));
    assert!(
        !hub.flush_and_stop(Instant::now() + Duration::from_millis(50)),
        "nobody reads"
    );

    let lines = rest(&hub, out);
    let of = |tenant: &str| {
        lines
            .iter()
            .map(|l| json(l))
            .filter(|v| v["tenant"] == tenant)
            .collect::<Vec<_>>()
    };
    let calm: Vec<Value> = of("calm").iter().map(|v| v["message"].clone()).collect();
    assert_eq!(calm, ["before", "after"]);
    let loud = of("loud");
    let said: u64 = loud
        .iter()
        .filter_map(|v| {
            v["message"]
                .as_str()
                .unwrap()
                .strip_prefix("dropped ")
                .map(str::to_owned)
        })
        .map(|text| text.split(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    let arrived = loud.iter().filter(|v| v["target"] == "stderr").count() as u64;
    assert_eq!(arrived + said, 64_000);
    assert_eq!(hub.dropped()[0].1, said);
}

#[tokio::test]
async fn last_words_are_those_of_the_instance_even_while_a_grandchild_holds_the_pipe() {
    let (hub, _out) = hub(Output::Json);
    let mut old = attach(&hub, "acme", 1);
    writeln!(old, "old").unwrap();
    let mut acme = attach(&hub, "acme", 2);
    for number in 0..30 {
        writeln!(acme, "{number}").unwrap();
    }
    write!(acme, "{}", LINE.replace("\"m\"", "\"dying\",\"code\":9")).unwrap();
    // `acme` stays open, as if a grandchild held it.
    let words = hub.last_words(&name("acme"), 2).await;
    assert_eq!(words.len(), 20);
    assert_eq!(words[0], "11");
    assert_eq!(words[19], "INFO  t: dying code=9");
    assert_eq!(hub.last_words(&name("acme"), 1).await, ["old"]);
    assert!(hub.last_words(&name("nobody"), 3).await.is_empty());
    hub.forget(&name("acme"));
    assert!(hub.last_words(&name("acme"), 2).await.is_empty());
}

#[tokio::test]
async fn a_follower_gets_the_tail_then_everything_and_a_slow_one_is_told_what_it_lost() {
    let (hub, out) = hub(Output::Json);
    let drain = thread::spawn(move || out.lines().count());
    let mut acme = attach(&hub, "acme", 1);
    let mut other = attach(&hub, "other", 2);
    writeln!(other, "not asked for").unwrap();
    writeln!(acme, "{LINE}\nfirst").unwrap();
    hub.last_words(&name("acme"), 1).await;
    let filter = Filter {
        tenants: vec![name("acme")],
        level: Some(Level::Warn),
        ..Filter::default()
    };
    let (tail, mut follow) = hub.follow(filter, 10);
    assert_eq!(tail.len(), 1, "{tail:?}");
    assert!(tail[0].ends_with(b"\"message\":\"first\"}\n"));

    writeln!(acme, "{LINE}\nsecond").unwrap();
    match follow.next().await {
        Followed::Lines(lines) => {
            assert!(lines.ends_with(b"\"message\":\"second\"}\n"));
            assert_eq!(memchr::memchr_iter(b'\n', &lines).count(), 1);
        }
        lost => panic!("{lost:?}"),
    }

    const LINES: u64 = 20_000;
    let line = format!("{}\n", "z".repeat(999));
    for _ in 0..LINES {
        acme.write_all(line.as_bytes()).unwrap();
    }
    hub.last_words(&name("acme"), 1).await;
    let mut got = 0;
    let lost = loop {
        match follow.next().await {
            Followed::Lines(lines) => got += memchr::memchr_iter(b'\n', &lines).count() as u64,
            Followed::Lost(lost) => break lost,
        }
    };
    assert!(got > 1_000);
    assert_eq!(got + lost, LINES);
    assert!(hub.flush_and_stop(soon()));
    drop(hub);
    drain.join().unwrap();
}

#[test]
fn the_supervisors_own_events_carry_the_tenant_they_are_about() {
    let (hub, out) = hub(Output::Json);
    let subscriber = tracing_subscriber::registry().with(hub.layer());
    tracing::subscriber::with_default(subscriber, || {
        tracing::warn!(
            tenant = "acme",
            pid = 5,
            why = "a \"b\"\n",
            ok = true,
            "it is {}",
            "so"
        );
        tracing::info!("about nobody");
    });
    let lines = rest(&hub, out);
    let first = json(&lines[0]);
    assert_eq!(first["tenant"], "acme");
    assert_eq!(first["pid"], std::process::id());
    assert_eq!(first["of_pid"], "5");
    assert_eq!(first["why"], "a \"b\"\n");
    assert_eq!(first["ok"], true);
    assert_eq!(first["message"], "it is so");
    assert_eq!(json(&lines[1])["tenant"], Value::Null);
}

#[test]
fn journald_gets_a_datagram_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let journald = UnixDatagram::bind(&path).unwrap();
    let hub = Hub::start(Output::Journald(path)).unwrap();
    let mut acme = attach(&hub, "acme", 7);
    writeln!(acme, "{LINE}\nplain").unwrap();
    let receive = || {
        let mut buffer = [0; 4096];
        let length = journald.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let first = receive();
    assert!(
        first.contains("TENANT=acme\n")
            && first.contains("MESSAGE=m\n")
            && first.contains("PRIORITY=6\n"),
        "{first}"
    );
    let second = receive();
    assert!(
        second.contains("MESSAGE=plain\n") && second.contains("PRIORITY=4\n"),
        "{second}"
    );
    assert!(hub.flush_and_stop(soon()));
}

#[test]
fn a_sink_that_has_gone_costs_lines_not_the_supervisor() {
    let (hub, out) = hub(Output::Json);
    drop(out);
    let mut acme = attach(&hub, "acme", 7);
    writeln!(acme, "lost").unwrap();
    assert!(hub.flush_and_stop(soon()));
    assert_eq!(hub.dropped(), [(Some(name("acme")), 1)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn whatever_comes_in_each_line_out_is_one_object_of_the_right_tenant(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            proptest::collection::vec(
                prop_oneof![
                    Just(LINE.to_owned()),
                    Just("\n".to_owned()),
                    Just("\r\n".to_owned()),
                    Just(LINE.replace("{", "{\"tenant\":\"evil\",\"pid\":3,")),
                    Just(LINE.replace("\"m\"", "{\"tenant\":\"evil\"}")),
                    Just(LINE.replace("\"m\"", "\"\\u001b\\n\"")),
                    "[{}\",:a\\\\u0-9\\[\\]\\x00-\\x1f]{0,12}",
                ],
                0..12,
            )
            .prop_map(|parts| parts.concat().into_bytes()),
        ],
        cut in any::<prop::sample::Index>(),
    ) {
        let origin = LineOrigin::new(Some(name("acme")), 4711);
        let mut splitter = line_format::LineSplitter::default();
        let mut out = Vec::new();
        let (before, after) = bytes.split_at(if bytes.is_empty() { 0 } else { cut.index(bytes.len()) });
        let mut count = splitter.feed(&origin, before, "now", &mut out);
        count += splitter.feed(&origin, after, "now", &mut out);
        count += splitter.end(&origin, "now", &mut out);
        let text = String::from_utf8(out).unwrap();
        prop_assert!(text.is_empty() || text.ends_with('\n'));
        prop_assert_eq!(text.lines().count(), count as usize);
        let encoder = TextEncoder::default();
        for line in text.lines() {
            prop_assert!(!line.chars().any(|c| (c as u32) < 0x20));
            let value: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
            prop_assert_eq!(&value["tenant"], "acme");
            prop_assert_eq!(&value["pid"], 4711);
            prop_assert!(value.values().all(|v| !v.is_object() && !v.is_array()));
            let mut shown = Vec::new();
            encoder.encode(line.as_bytes(), &mut shown);
            let shown = String::from_utf8(shown).unwrap();
            prop_assert!(shown.ends_with('\n'));
            prop_assert!(!shown.trim_end_matches('\n').chars().any(char::is_control));
        }
    }
}

#[test]
fn a_pipe_that_is_let_go_in_the_midst_of_a_line_is_read_on_by_another_hub() {
    let (first, out) = hub(Output::Json);
    let (mut acme, read) = pipe();
    let read = Arc::new(read);
    first
        .attach(name("acme"), 7, Arc::clone(&read), PartialLine::default())
        .unwrap();
    acme.write_all(b"whole\nhalf of ").unwrap();
    let seen = Instant::now() + Duration::from_secs(20);
    while first.tail(&Filter::default(), 1).is_empty() {
        assert!(Instant::now() < seen);
        thread::yield_now();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut carries = runtime.block_on(first.release());
    let partial_line = carries.remove(&7).unwrap();
    // These lines are written while no hub reads the pipe.
    acme.write_all(b"a line\nlast\n").unwrap();
    assert!(first.flush(soon()));
    let messages = |lines: Vec<String>| lines.iter().map(|l| message(l)).collect::<Vec<_>>();
    assert_eq!(messages(rest(&first, out)), ["whole"]);

    let (second, out) = hub(Output::Json);
    second.attach(name("acme"), 7, read, partial_line).unwrap();
    drop(acme);
    assert_eq!(messages(rest(&second, out)), ["half of a line", "last"]);
}
