//! One target under libFuzzer: the target that `FUZZ_TARGET` names.
#![no_main]

use brokkr_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        match TARGETS.iter().find(|target| target.name == name) {
            Some(target) => drop(TARGET.set(*target)),
            None => {
                let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
                #[allow(clippy::panic, reason = "libFuzzer has no other way to end before the first input")]
                {
                    panic!("set FUZZ_TARGET to one of: {}", names.join(", "));
                }
            }
        }
    },
    |data: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(data);
        }
    }
);
