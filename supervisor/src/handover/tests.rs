//! Tests that the index can be read across versions, and that names stay short.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::fd_names::{FdKind, FdName, Ids, MOST_BYTES, MOST_STORED, fitting};
use super::*;
use serde_json::value::RawValue;
use std::collections::BTreeSet;

fn tenant(n: u32) -> TenantName {
    TenantName::parse(&format!("tenant-with-quite-a-long-name-{n:06}")).unwrap()
}

fn record(n: u32) -> InstanceRecord {
    InstanceRecord {
        id: Some(n),
        tenant: tenant(n),
        instance: 7,
        pid: 4_000_000,
        start_time: u64::from(n),
        files: format!("/run/brokkr/instances/{}.7", tenant(n)).into(),
        what: Some(ConfigSummary {
            digest: "d".repeat(64),
            listen: Listen::parse("127.0.0.1:3001").unwrap(),
            schema: "tenant_acme".into(),
            pool: 10,
            program: None,
            config: serde_json::json!({"database": {"url": "postgres://u:***@h/d"}}),
        }),
        config: Some(SecretConfig(
            RawValue::from_string(r#"{"url":"postgres://u:hunter2@h/d"}"#.into())
                .unwrap()
                .into(),
        )),
        phase: RecordedPhase::Serving,
        connections: 10,
        outdated: false,
        log: PartialLine {
            bytes: b"{\"time".to_vec(),
            beyond: 0,
        },
    }
}

fn index(instances: u32) -> HandoverIndex {
    HandoverIndex {
        version: VERSION,
        serial: 3,
        supervisor: "0.1.0".into(),
        state_dir: Some("/var/lib/brokkr".into()),
        listeners: vec![],
        instances: (1..=instances).map(record).collect(),
        restarts: BTreeMap::from([(tenant(1), 2)]),
        embedded: false,
        open_files: Some((1024, 4096)),
        stored: vec!["1l".into()],
        descriptors: BTreeMap::new(),
    }
}

#[test]
fn an_index_of_a_thousand_instances_reads_back_equal_and_shows_no_secret() {
    let index = index(1000);
    let json = index.encode();
    assert!((json.len() as u64) < LONGEST / 10);
    assert_eq!(HandoverIndex::decode(&json).unwrap(), index);
    assert!(!format!("{index:?}").contains("hunter2"));
}

#[test]
fn another_version_is_known_by_its_number_whatever_else_it_holds() {
    let error =
        HandoverIndex::decode(br#"{"version":2,"tenants":{"acme":"anything"}}"#).unwrap_err();
    assert!(matches!(error, IndexError::Version(2)), "{error}");
    let error = HandoverIndex::decode(br#"{"version":1,"instances":"hunter2"}"#).unwrap_err();
    assert!(!format!("{error:?} {error}").contains("hunter2"));
}

#[test]
fn what_a_later_supervisor_adds_is_passed_over_and_what_it_leaves_out_has_a_default() {
    let mut json: serde_json::Value = serde_json::from_slice(&index(1).encode()).unwrap();
    json["colour"] = "blue".into();
    json["instances"][0]["phase"] = "meditating".into();
    json["instances"][0]["log"] = serde_json::json!({});
    json["instances"][0]
        .as_object_mut()
        .unwrap()
        .remove("config");
    json.as_object_mut().unwrap().remove("restarts");
    let read = HandoverIndex::decode(json.to_string().as_bytes()).unwrap();
    assert_eq!(read.instances[0].phase, RecordedPhase::Unknown);
    assert_eq!(read.instances[0].config, None);
    assert!(read.restarts.is_empty());
}

#[test]
fn names_are_read_back_and_nothing_else_is_taken_for_one() {
    for (id, kind, text) in [
        (17, FdKind::Listener, "17l"),
        (17, FdKind::Log, "17p"),
        (0, FdKind::Death, "0d"),
        (9, FdKind::Notify, "9n"),
    ] {
        assert_eq!(FdName::new(id, kind).to_string(), text);
        assert_eq!(FdName::parse(text), Some(FdName::new(id, kind)));
    }
    for text in [
        "",
        "l",
        "17",
        "17x",
        "x17l",
        "-1l",
        "+1l",
        "17é",
        "99999999999l",
        "stored",
    ] {
        assert_eq!(FdName::parse(text), None, "{text}");
    }
}

#[test]
fn ids_are_given_again_so_that_names_stay_short() {
    let mut ids = Ids::default();
    assert!(ids.claim(2) && !ids.claim(2) && !ids.claim(fd_names::EMBEDDED));
    assert_eq!([ids.take(), ids.take(), ids.take()], [1, 3, 4]);
    ids.free(3);
    assert_eq!(ids.take(), 3);
    for _ in 0..100_000 {
        let id = ids.take();
        assert_eq!(id, 5);
        ids.free(id);
    }
}

/// Returns a group of three names for each of `n` instances.
fn groups(n: u32) -> BTreeMap<u32, Vec<FdName>> {
    (1..=n)
        .map(|id| {
            let kinds = [FdKind::Listener, FdKind::Log, FdKind::Death];
            (id, kinds.map(|kind| FdName::new(id, kind)).to_vec())
        })
        .collect()
}

#[test]
fn a_thousand_overlapping_instances_fit_the_environment_and_what_does_not_is_left_out_whole() {
    let all: BTreeSet<u32> = (1..=2000).collect();
    assert_eq!(fitting(&groups(2000), MOST_STORED), all);
    let many = groups(20_000);
    let stored = fitting(&many, MOST_STORED);
    let names: Vec<String> = stored
        .iter()
        .flat_map(|id| &many[id])
        .map(ToString::to_string)
        .collect();
    assert!(names.len() <= MOST_STORED && names.len() > MOST_STORED - 3);
    let variable = format!("LISTEN_FDNAMES={}", names.join(":"));
    assert!(variable.len() < 128 << 10, "{} bytes", variable.len());
    assert!(names.iter().map(|name| name.len() + 1).sum::<usize>() <= MOST_BYTES);
    assert!(stored.contains(&1) && !stored.contains(&20_000));
}
