//! Follows the events of a YAML stream and refuses streams that parse but that no agent can read.
//!
//! The bounds of nesting and of aliases are those of the published agent's parser. Keys are compared by their JSON
//! form, which the cluster gets: `1` and `"1"` are one key, and so are `true` and `True`, `~` and `null`, `16` and
//! `0x10`.

use std::collections::{HashMap, HashSet};

use libyaml_safer::{Event, EventData, ScalarStyle};

/// Memory for one text besides the parser's own, in bytes.
const MEMORY: usize = 64 * 1024 * 1024;
/// Memory of a key until its mapping ends, besides its text, in bytes.
const KEY: usize = 96;
/// Memory of an anchor until its document ends, besides its name, in bytes.
const ANCHOR: usize = 192;
/// Largest anchored scalar that is stored, in bytes; stored because an alias can stand for a key. libyaml takes no
/// longer key without `?`.
const KEPT: usize = 1024;
/// Largest nesting depth of lists and mappings, including the content of aliases.
const DEEPEST: usize = 128;
/// Largest number of followed aliases per event of a document.
const ALIASES_PER_EVENT: u64 = 100;

pub(super) const TOO_MUCH: &str = "the YAML takes too much memory to read: it has too many keys in one mapping or too many \
    anchors; split the bundle into smaller objects";

/// A list or mapping that has not ended.
struct Open {
    /// Keys so far; `None` for a list.
    keys: Option<HashSet<String>>,
    /// True when the next node is a key.
    at_key: bool,
    anchor: Option<String>,
    height: usize,
    /// Values of the same counters of [`YamlReading`] at the start of this node.
    held_of_keys: usize,
    jumps: u64,
}

/// A node that an alias can stand for.
struct Anchored {
    /// Number of levels in the node; `None` until the node has ended.
    height: Option<usize>,
    /// Number of aliases to follow in the node.
    jumps: u64,
    /// Text of the node, if it is a scalar of at most `KEPT` bytes.
    text: Option<String>,
}

/// State of a stream after the events so far.
#[derive(Default)]
pub(super) struct YamlReading {
    open: Vec<Open>,
    anchors: HashMap<String, Anchored>,
    /// Bytes of the keys and anchors above.
    held_of_keys: usize,
    held_of_anchors: usize,
    /// Numbers of events and of followed aliases of this document.
    events: u64,
    jumps: u64,
    anything: bool,
}

impl YamlReading {
    /// Returns true when a document that is not null was found.
    pub(super) fn found_anything(&self) -> bool {
        self.anything
    }

    /// Takes the next event. The error is a sentence with the problem and its position.
    pub(super) fn take(&mut self, event: Event) -> Result<(), String> {
        self.events += 1;
        let (line, column) = (event.start_mark.line + 1, event.start_mark.column + 1);
        self.follow(event.data).map_err(|why| {
            format!("the YAML cannot be read by an agent: line {line} column {column}: {why}")
        })?;
        if self.held_of_keys + self.held_of_anchors > MEMORY {
            return Err(TOO_MUCH.to_owned());
        }
        Ok(())
    }

    fn follow(&mut self, event: EventData) -> Result<(), String> {
        match event {
            EventData::DocumentStart { .. } => {
                self.anchors.clear();
                (self.held_of_anchors, self.events, self.jumps) = (0, 0, 0);
            }
            EventData::Scalar {
                anchor,
                tag,
                value,
                style,
                ..
            } => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let value = if plain { resolved(value) } else { value };
                self.anything |= !plain || value != NULL;
                self.node(Some(&value), 0)?;
                if let Some(name) = anchor {
                    let text = (value.len() <= KEPT).then_some(value);
                    self.anchor(name, Some(0), text);
                }
            }
            EventData::Alias { anchor } => self.alias(&anchor)?,
            EventData::SequenceStart { anchor, .. } => self.begin(anchor, None)?,
            EventData::MappingStart { anchor, .. } => self.begin(anchor, Some(HashSet::new()))?,
            EventData::SequenceEnd | EventData::MappingEnd => self.end(),
            EventData::DocumentEnd { .. } => {
                if self.jumps > self.events * ALIASES_PER_EVENT {
                    return Err("the document's aliases stand for too much".to_owned());
                }
            }
            EventData::StreamStart { .. } | EventData::StreamEnd => {}
        }
        Ok(())
    }

    /// Adds a node of `height` levels to its parent. `text` is compared with the other keys if the node is a key.
    fn node(&mut self, text: Option<&str>, height: usize) -> Result<(), String> {
        if self.open.len() + height > DEEPEST {
            return Err(format!("it nests more than {DEEPEST} levels deep"));
        }
        let Some(parent) = self.open.last_mut() else {
            return Ok(());
        };
        parent.height = parent.height.max(height + 1);
        let Some(keys) = &mut parent.keys else {
            return Ok(());
        };
        if parent.at_key
            && let Some(text) = text
        {
            if !keys.insert(text.to_owned()) {
                let mut name: String = text.chars().take(80).collect();
                if name.len() < text.len() {
                    name.push('…');
                }
                return Err(format!("the key {name:?} is there twice"));
            }
            self.held_of_keys += KEY + text.len();
        }
        parent.at_key = !parent.at_key;
        Ok(())
    }

    fn alias(&mut self, name: &str) -> Result<(), String> {
        let Some(anchored) = self.anchors.get(name) else {
            return Err(format!(
                "the alias *{name} has no anchor &{name} before it in its document"
            ));
        };
        let Some(height) = anchored.height else {
            return Err(format!("the alias *{name} stands for what it is in"));
        };
        self.jumps = self.jumps.saturating_add(1).saturating_add(anchored.jumps);
        let text = anchored.text.clone();
        self.anything = true;
        self.node(text.as_deref(), height)
    }

    fn begin(
        &mut self,
        anchor: Option<String>,
        keys: Option<HashSet<String>>,
    ) -> Result<(), String> {
        self.anything = true;
        self.node(None, 1)?;
        if let Some(name) = &anchor {
            self.anchor(name.clone(), None, None);
        }
        self.open.push(Open {
            at_key: keys.is_some(),
            keys,
            anchor,
            height: 1,
            held_of_keys: self.held_of_keys,
            jumps: self.jumps,
        });
        Ok(())
    }

    fn end(&mut self) {
        let Some(ended) = self.open.pop() else {
            return;
        };
        if let Some(parent) = self.open.last_mut() {
            parent.height = parent.height.max(ended.height + 1);
        }
        self.held_of_keys = ended.held_of_keys;
        let anchored = ended.anchor.and_then(|name| self.anchors.get_mut(&name));
        // Skipped when an inner anchor of the same name has replaced this anchor.
        if let Some(anchored) = anchored.filter(|anchored| anchored.height.is_none()) {
            anchored.height = Some(ended.height);
            anchored.jumps = self.jumps - ended.jumps;
        }
    }

    fn anchor(&mut self, name: String, height: Option<usize>, text: Option<String>) {
        self.held_of_anchors += ANCHOR + name.len() + text.as_ref().map_or(0, String::len);
        self.anchors.insert(
            name,
            Anchored {
                height,
                jumps: 0,
                text,
            },
        );
    }
}

const NULL: &str = "null";

/// Returns the canonical JSON spelling of a plain, untagged scalar.
fn resolved(text: String) -> String {
    let digits = text.trim_start_matches(['+', '-']);
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', b'b', ..] => (2, &digits[2..]),
        _ => (10, digits),
    };
    let sign = match text.as_bytes() {
        [b'+' | b'-', b'+' | b'-', ..] => return text,
        [b'-', ..] => "-",
        _ => "",
    };
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => NULL.to_owned(),
        "true" | "True" | "TRUE" => "true".to_owned(),
        "false" | "False" | "FALSE" => "false".to_owned(),
        // A number with a leading zero is text.
        _ if radix == 10 && digits.len() > 1 && digits.starts_with('0') => text,
        _ if digits.starts_with(['+', '-']) => text,
        _ => match u64::from_str_radix(digits, radix) {
            Ok(0) => "0".to_owned(),
            Ok(number) => format!("{sign}{number}"),
            Err(_) => text,
        },
    }
}
