#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use serde::Deserialize;

use super::reading::TOO_MUCH;
use super::{look, metered};
use crate::template::metered_thread::{self, Interrupted};

fn check(text: &str) -> Result<(), String> {
    metered(text).unwrap()
}

/// Reads a text with the published agent's parser: libyaml with the rules of an object tree on top.
fn as_the_agent(text: &str) -> Result<(), String> {
    for document in serde_yaml::Deserializer::from_str(text) {
        serde_yaml::Value::deserialize(document).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn agrees(text: &str) {
    let (ours, agents) = (check(text), as_the_agent(text));
    let reads = match &ours {
        Ok(()) => true,
        Err(why) => why.contains("holds no document but null"),
    };
    assert_eq!(
        reads,
        agents.is_ok(),
        "{text:?}\n ours: {ours:?}\n the agent's: {agents:?}"
    );
}

/// Typical shapes of real manifests.
const SHAPES: [&str; 12] = [
    "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  labels: {app: web, \"tier\": 'front'}\ndata:\n  a.json: |-\n    {\"a\": [1, 2]}\n  b: >+\n    folded\n    text\n\n  c: \"quoted \\\n    on\"\n",
    "---\nkind: Service\nspec:\n  ports: [\n    {port: 80, name: http},\n    {port: 443}\n  ]\n  selector: {\n    app: web\n  }\n---\nkind: Pod\n",
    "spec:\n  args: [\n  \"--a=b\",\n  '--c'\n]\n  b: {\n}\n",
    "kind: Role\nrules:\n- apiGroups: [\"\"]\n  verbs:\n  - get\n  -   list # words\n- nonResourceURLs: ['*', \"/healthz\"]\n",
    "a: &base\n  x: 1\n  y: &deep [1, *none]\nb: *base\nc:\n  <<: *base\n  z: *deep\n",
    "a: &base {x: 1}\nb: *base\nc: [*base, *base]\n---\n# next\na: &other 2\nb: *other\n",
    "description: \"first\nsecond\n  third\"\nother: 'it''s\n  here'\nplain: one\n  two\n",
    "a:\tb\nc:\t\"d\"\ne: \"x\"#c\nf: x #c\n",
    "\u{feff}# saved by an editor\nkind: Namespace\nmetadata:\n  name: a\n",
    "? long key\n: value\n? [a, b]\n: {c: d}\nlist:\n- - a\n  - b\n-\n  - c\n",
    "%YAML 1.1\n%TAG !k! tag:example.org,2000:\n---\na: !k!x {b: !!str 1}\nc: !local y\n...\n---\nd: ~\n",
    "metadata:\n  annotations:\n    a: |2\n      indented\n    b: |\n\n      blank before\n    \"c/d\": \"\\u00e9\\x41\\t\\/\\e\"\nempty:\nnull: null\n",
];

/// Fragments that decide how a line is parsed; the mutations insert them anywhere.
const PIECES: [&str; 52] = [
    " ", "  ", "\t", "\n", "\n\t\n", "\n \t\n", "\r\n", "\r", ":", ": ", ":\t", "- ", "-", "-\t",
    "? ", ",", "[", "]", "{", "}", "\"", "'", "#", " #", "#c", "|", "|-\n", ">", "&a ", "*a",
    "*a ", "&a", "!", "!x ", "!x,", "!!str ", "%", "@", "`", "---", "\n---\n", "\n...\n",
    "\u{feff}", "\u{1}", "\u{7f}", "\u{85}", "\u{2028}", "é", "😀", "\\", "a: 1\n", "<<: *a\n",
];

/// Pseudo-random generator of texts, with the same texts in each run.
struct Deal(u64);

impl Deal {
    fn next(&mut self, below: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % below
    }

    /// Returns a shape with one to three mutations: a part removed or copied, or a fragment inserted.
    fn mutated(&mut self) -> String {
        let mut text: Vec<char> = SHAPES[self.next(SHAPES.len())].chars().collect();
        for _ in 0..=self.next(3) {
            let at = self.next(text.len() + 1);
            let until = (at + 1 + self.next(4)).min(text.len());
            match self.next(4) {
                0 => drop(text.drain(at..until)),
                1 => {
                    let again: Vec<char> = text[at..until].to_vec();
                    let at = self.next(text.len() + 1);
                    text.splice(at..at, again);
                }
                _ => {
                    let piece = PIECES[self.next(PIECES.len())].chars();
                    text.splice(at..at, piece);
                }
            }
        }
        text.into_iter().collect()
    }

    /// Returns a sequence of fragments.
    fn soup(&mut self) -> String {
        (0..2 + self.next(9))
            .map(|_| match self.next(4) {
                0 => ["a", "b", "1", "null", "x y"][self.next(5)],
                _ => PIECES[self.next(PIECES.len())],
            })
            .collect()
    }
}

/// Returns true when the agent refuses a text for equal keys that are not text, which the check leaves to the cluster.
fn has_an_odd_key(text: &str) -> bool {
    as_the_agent(text)
        .is_err_and(|why| why.contains("duplicate entry") && !why.contains("with key \""))
}

/// Returns true when the check refuses a key that is twice only in JSON form, which the agent accepts.
fn is_twice_only_in_json(text: &str) -> bool {
    check(text).is_err_and(|why| why.contains("is there twice")) && as_the_agent(text).is_ok()
}

#[test]
fn what_the_agents_parser_reads_is_accepted_and_nothing_else() {
    let mut deal = Deal(0x0b2e_55ed);
    let mut read = 0;
    for n in 0..12_000 {
        let text = if n % 3 == 0 {
            deal.soup()
        } else {
            deal.mutated()
        };
        if text.trim().is_empty() || has_an_odd_key(&text) || is_twice_only_in_json(&text) {
            continue;
        }
        agrees(&text);
        read += usize::from(as_the_agent(&text).is_ok());
    }
    assert!(
        read > 1_500,
        "{read} of the texts can be read: too few to tell much"
    );
}

#[test]
fn keys_that_are_one_in_json_are_twice_and_others_are_not() {
    for text in [
        "true: a\nTrue: b\n",
        "~: a\nnull: b\n",
        "0x10: a\n16: b\n",
        "-0b11: a\n\"-3\": b\n",
        "+7: a\n7: b\n",
    ] {
        let why = check(text).unwrap_err();
        assert!(why.contains("is there twice"), "{text:?}: {why}");
    }
    for text in [
        "007: a\n7: b\n",
        "\"True\": a\ntrue: b\n",
        "-7: a\n7: b\n",
        "0x: a\n0: b\n",
        "-: a\n",
    ] {
        if as_the_agent(text).is_ok() {
            check(text).unwrap();
        }
    }
}

#[test]
fn what_editors_and_templates_write_is_accepted() {
    for text in [
        "a: [\n  b\n]\nc: {\n  d: e\n}\n",
        "spec:\n  a: [\n  b\n  ]\n  c: {\n  }\n",
        "a: \"x\ny\"\nb: 'x\ny'\n",
        "a:\n  b: \"x\n  y\"\n",
        "a:\tb\n",
        "a: \"x\"#c\n",
        "a: [!x, b]\nb: {c: !!str, d: e}\n",
        "a: |\n  no line break at the end",
        "\u{feff}# a comment\n---\na: 1\nb: 2\n",
        "\u{feff}\na: 1\nb: 2\n",
    ] {
        check(text).unwrap();
        agrees(text);
    }
}

#[test]
fn what_no_agent_can_read_is_refused_with_the_place_and_the_reason() {
    let deep = format!("{}{}", "[".repeat(129), "]".repeat(129));
    let deep_alias = format!(
        "a: &a {}{}\nb: {}*a{}\n",
        "[".repeat(64),
        "]".repeat(64),
        "[".repeat(64),
        "]".repeat(64)
    );
    let bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned()
        + &('b'..='i')
            .zip('a'..)
            .map(|(name, of)| {
                format!(
                    "{name}: &{name} [{}]\n",
                    vec![format!("*{of}"); 10].join(", ")
                )
            })
            .collect::<String>();
    for (text, why) in [
        (
            "a: &x 1\n---\nb: *x\n",
            "line 3 column 4: the alias *x has no anchor &x before it in its document",
        ),
        (
            "a: &x [*x]\n",
            "line 1 column 8: the alias *x stands for what it is in",
        ),
        ("a: \u{1}\n", "control characters are not allowed"),
        ("a: 1\n\t\nb: 2\n", "line 2 column 1: found a tab character"),
        (
            "a: 1\nb: 2\na: 3\n",
            "line 3 column 1: the key \"a\" is there twice",
        ),
        (
            "a: {b: 1, \"b\": 2}\n",
            "line 1 column 11: the key \"b\" is there twice",
        ),
        ("- a: 1\n  'a': 2\n", "the key \"a\" is there twice"),
        (
            "a: 1\n---\nb: &k x\nc: {*k : 1, x: 2}\n",
            "the key \"x\" is there twice",
        ),
        (
            "a: &a {}\n<<: *a\n<<: *a\n",
            "the key \"<<\" is there twice",
        ),
        (
            &deep,
            "line 1 column 129: it nests more than 128 levels deep",
        ),
        (&deep_alias, "it nests more than 128 levels deep"),
        (&bomb, "the document's aliases stand for too much"),
        ("\u{feff}a: 1\nb: 2\n", "byte order mark"),
        ("\u{feff}---\na: 1\n", "byte order mark"),
    ] {
        let error = check(text).unwrap_err();
        assert!(error.contains(why), "{text:?}: {error}");
        agrees(text);
    }
}

#[test]
fn a_key_may_be_in_each_of_many_mappings() {
    for text in [
        "a: {b: 1}\nb: {b: 1}\n",
        "- a: 1\n- a: 1\n",
        "a: 1\n---\na: 1\n",
        "a: b\nb: a\n",
        "a: [a, a]\n? [a]\n: a\n",
        "b: {a: {a: a}}\na: a\n",
    ] {
        check(text).unwrap();
        agrees(text);
    }
    assert!(
        check("1: a\n\"1\": b\n").is_err(),
        "these are one key in JSON"
    );
}

#[test]
fn a_full_bundle_of_manifests_is_read_within_its_time() {
    let mut text = String::new();
    while text.len() < 16 * 1024 * 1024 - 1024 {
        text.push_str(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\n  labels: {app: web, tier: front}\n\
             spec:\n  replicas: 3\n  selector:\n    matchLabels: {app: web}\n  template:\n    spec:\n      \
             containers:\n      - name: web\n        image: \"registry.example/web:1.0\"\n        args: [\"-a\", b]\n\
             ---\nkind: ConfigMap\ndata:\n  a.json: |\n    {\"a\": [1, 2, 3], \"b\": {}}\n  b: \"many, [short] words: here\"\n",
        );
    }
    let began = std::time::Instant::now();
    check(&text).unwrap();
    println!("{:?}", began.elapsed());
}

#[test]
fn a_large_text_in_one_scalar_or_collection_is_accepted() {
    let words = "a, b: [c] ".repeat(1024 * 1024);
    check(&format!("a: \"{words}\"\n")).unwrap();
    check(&format!("a: |\n{}", "  a, [b]\n".repeat(1024 * 1024))).unwrap();
    check(&format!("[{}]", "a,".repeat(500_000))).unwrap();
}

#[test]
fn what_would_have_to_be_held_is_bounded() {
    let keys: String = (0..700_000).map(|n| format!("k{n}:\n")).collect();
    let anchors: String = (0..400_000).map(|n| format!("- &a{n} b\n")).collect();
    for text in [keys, anchors] {
        assert_eq!(check(&text).unwrap_err(), TOO_MUCH, "{:?}", &text[..8]);
    }
}

#[test]
fn a_text_made_to_take_long_is_given_up_in_time() {
    for text in [
        format!("{}{}", "[".repeat(120), "a,".repeat(2 << 20)),
        (0..200_000).map(|n| format!("%TAG !a{n}! b\n")).collect(),
    ] {
        let outcome =
            metered_thread::run_for(Duration::from_millis(200), u64::MAX, || look(&text, &text));
        assert!(
            matches!(outcome, Err(Interrupted::Limit(_))),
            "{:?}",
            &text[..8]
        );
    }
}

#[test]
fn deep_nesting_is_refused_at_once() {
    for text in ["? ", "[", "- ", "{a: "] {
        let error = check(&text.repeat(4 << 20)).unwrap_err();
        assert!(error.contains("levels deep"), "{text:?}: {error}");
    }
}

#[test]
fn what_holds_a_document_is_accepted() {
    for text in [
        "a: 1",
        "just text",
        "---\na: 1\n---\nb: 2\n",
        "---\n# nothing\n---\nb: 2\n",
        "[]",
        "\"\"",
        "kind: List\nitems: [a, {b: c}]\n",
        "%YAML 1.2\n---\na: &x 1\nb: *x\n",
        "text: |\n  many\n  lines\n",
    ] {
        check(text).unwrap();
    }
}

#[test]
fn what_holds_none_or_does_not_parse_is_refused() {
    for text in [
        "",
        " \n",
        "# only words",
        "\u{feff}",
        "---\n---\n",
        "~",
        "null",
        "a: [",
        "a: *nothing",
        "a:\n\t- b",
        "a: \"\\",
        "}",
    ] {
        assert!(check(text).is_err(), "{text:?}");
    }
}
