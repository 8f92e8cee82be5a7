//! The run with fixed seeds.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::{Mutator, TARGETS, Target};
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

fn corpus_of(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Runs a target, and names the input when it panics.
fn run(target: &Target, input: &[u8]) {
    if catch_unwind(|| (target.run)(input)).is_err() {
        let text = input.escape_ascii();
        panic!("{} breaks a rule with this input: b\"{text}\"", target.name);
    }
}

fn holds(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = corpus_of(target);
    assert!(!corpus.is_empty());
    for input in &corpus {
        run(target, input);
    }
    let mut mutator = Mutator::new(&corpus, 1);
    for _ in 0..target.mutations {
        run(target, &mutator.mutation());
    }
}

macro_rules! targets {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })+

        #[test]
        fn every_target_has_its_test() {
            let tested = [$(stringify!($name)),+];
            let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(known, tested);
        }
    };
}

targets! {
    tenant_file
    schema_name
    url
    pak
    websocket_frame
    notify_datagram
    log_line
    control_request
    handover_index
}

#[test]
fn the_same_seed_makes_the_same_mutations_and_another_makes_others() {
    let corpus = [b"READY=1\nSTATUS=up".to_vec(), Vec::new()];
    let made = |seed| -> Vec<Vec<u8>> {
        let mut mutator = Mutator::new(&corpus, seed);
        (0..100).map(|_| mutator.mutation()).collect()
    };
    assert_eq!(made(1), made(1));
    assert_ne!(made(1), made(2));
}
