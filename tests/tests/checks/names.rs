//! Rules of names and comments: one word has one meaning, and a comment names what it is about.

use crate::structure::{code, root, sources};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const CRATES: [&str; 4] = ["tenant/src", "pg/src", "broker/src", "supervisor/src"];

/// Type names that occur twice in one crate, with the reason.
const TWICE: [(&str, &str, &str); 1] = [(
    "broker/src",
    "Doc",
    "the part that a resource has in the OpenAPI document; always written with its module",
)];

/// Names that said less than the field's own terms, which replaced them. No module and no type has them again.
const REPLACED: [&str; 46] = [
    "aloft",
    "call",
    "carry",
    "ear",
    "edge",
    "emit",
    "enrol",
    "estate",
    "feed",
    "flat",
    "flights",
    "folders",
    "gate",
    "giver",
    "hang",
    "held",
    "hot",
    "judge",
    "judgement",
    "keep",
    "kept",
    "leave",
    "left",
    "left_over",
    "look",
    "mailbox",
    "mortal",
    "orphans",
    "parties",
    "party",
    "patient",
    "patterns",
    "picture",
    "ruling",
    "seat",
    "stake",
    "stall",
    "stand_in",
    "survivors",
    "testament",
    "turn",
    "vital",
    "weave",
    "what",
    "wire",
    "wording",
];

/// Words that leave open who or what is meant.
const VAGUE: [&str; 5] = ["nobody", "somebody", "whoever", "whatever", "one that"];

/// Returns the name of the type that a line declares for its whole crate or for parts of it.
fn visible_type(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("pub")?;
    let rest = match rest.strip_prefix('(') {
        Some(scope) => scope.split_once(')')?.1,
        None => rest,
    };
    let rest = rest.trim_start();
    let name = rest
        .strip_prefix("struct ")
        .or_else(|| rest.strip_prefix("enum "))?;
    // A macro's declaration has a parameter in the place of the name.
    name.split(|c: char| !c.is_alphanumeric())
        .next()
        .filter(|name| !name.is_empty())
}

#[test]
fn a_type_name_means_one_thing_in_its_crate() {
    for folder in CRATES {
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (file, text) in sources(folder) {
            for (number, line) in code(&file, &text) {
                if let Some(name) = visible_type(line) {
                    let place = format!("{file}:{number}");
                    places.entry(name.to_owned()).or_default().push(place);
                }
            }
        }
        places.retain(|name, places| {
            places.len() > 1
                && !TWICE
                    .iter()
                    .any(|(of, known, _)| (*of, *known) == (folder, name))
        });
        assert_eq!(places, BTreeMap::new());
    }
}

#[test]
fn modules_and_types_have_the_fields_terms() {
    let old: BTreeSet<&str> = REPLACED.into();
    for folder in CRATES {
        for (file, text) in sources(folder) {
            let module = file.rsplit('/').next().unwrap().trim_end_matches(".rs");
            assert!(!old.contains(module), "{file}");
            for (number, line) in code(&file, &text) {
                let name = visible_type(line).unwrap_or_default().to_lowercase();
                assert!(!old.contains(name.as_str()), "{file}:{number}: {line}");
            }
        }
    }
}

#[test]
fn a_comment_names_what_it_is_about() {
    let mut seen = 0;
    for folder in ["tenant", "pg", "broker", "supervisor", "tests", "fuzz"] {
        for (file, text) in sources(folder) {
            for (number, line) in text.lines().enumerate() {
                let line = line.trim_start();
                let Some(comment) = line.strip_prefix("//") else {
                    continue;
                };
                seen += 1;
                let place = format!("{file}:{}: {line}", number + 1);
                let words = comment.to_lowercase();
                let words: Vec<&str> = words.split(|c: char| !c.is_alphanumeric()).collect();
                let words = format!(" {} ", words.join(" "));
                for word in VAGUE {
                    assert!(!words.contains(&format!(" {word} ")), "{place}");
                }
                for word in ["What", "Who", "Whether", "How"] {
                    let opens = ["/ ", "! "].map(|slash| format!("{slash}{word} "));
                    assert!(
                        !opens.iter().any(|o| comment.starts_with(o.as_str())),
                        "{place}"
                    );
                }
            }
        }
    }
    assert!(seen > 5000, "{seen}");
}

#[test]
fn every_file_that_the_architecture_names_is_there() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let named = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.ends_with(".rs"));
    let mut found = 0;
    for name in named {
        let places = ["", "supervisor/src/", "broker/src/"];
        let exists = places
            .iter()
            .any(|place| root().join(place).join(name).exists());
        assert!(exists, "ARCHITECTURE.md names {name}");
        found += 1;
    }
    assert!(found > 50, "{found}");
}
