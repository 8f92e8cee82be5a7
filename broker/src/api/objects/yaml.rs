//! Whether a text is YAML and holds anything to apply.

//!
//! The parser keeps every token of a flow collection (`[…]`, `{…}`) until it ends, because the whole may turn out to be a
//! key. What it holds is therefore counted where it reads, and a large text is read on a metered thread.

use std::cell::Cell;
use std::time::Duration;

use saphyr_parser::input::SkipTabs;
use saphyr_parser::{Event, Input, Parser, ScalarStyle, StrInput};

use crate::template::bounded::{self, Stopped, Turns};

/// A text up to this size is looked at where it is: it can hold neither memory nor a processor for long.
const SMALL: usize = 64 * 1024;
/// What the parser may hold besides the text and a copy of it.
const MEMORY: usize = 64 * 1024 * 1024;
/// What a token takes, spare room of the parser's queue included.
const TOKEN: usize = 192;
/// What a level of nesting takes; as many tokens may end it at once.
const LEVEL: usize = 256;
/// What an anchor takes until its document ends.
const ANCHOR: usize = 128;
/// Tokens between two looks at the processor time.
const TOKENS_UNWATCHED: usize = 16;
/// Processor time for one text. Sixteen MiB of manifests take a small part of it, optimised or not.
const PROCESSOR: Duration = Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 4 });

const TOO_MUCH: &str = "the YAML takes too much memory to read: a collection in [] or {} is too large, or it has too many \
    anchors or levels; split the bundle into smaller objects or use block style";

static TURNS: Turns = Turns::new();

/// No turn came in time.
#[derive(Debug)]
pub(super) struct Busy;

/// Checks that every document of a stream parses and that at least one is not null. The text itself is kept as it came.
///
/// # Errors
/// [`Busy`]; inside, a sentence that says what is wrong, with line and column where they are known.
pub(super) async fn check(text: String) -> Result<Result<String, String>, Busy> {
    if text.len() <= SMALL {
        return Ok(look(&text).map(|()| text));
    }
    let looked = TURNS
        .take(move || match metered(&text) {
            Ok(looked) => Ok(looked.map(|()| text)),
            Err(stopped) => Err(stopped),
        })
        .await;
    match looked {
        Ok(Ok(looked)) => Ok(looked),
        Err(Stopped::Busy) | Ok(Err(Stopped::Busy)) => Err(Busy),
        Err(Stopped::Limit(_)) | Ok(Err(Stopped::Limit(_))) => Ok(Err(
            "the YAML takes too long to read; split the bundle into smaller objects".to_owned(),
        )),
        Err(Stopped::Panicked) | Ok(Err(Stopped::Panicked)) => {
            Ok(Err("the YAML is beyond what its parser can do".to_owned()))
        }
    }
}

fn metered(text: &str) -> Result<Result<(), String>, Stopped> {
    match bounded::run_for(PROCESSOR, u64::MAX, || look(text)) {
        Err(Stopped::Limit(TOO_MUCH)) => Ok(Err(TOO_MUCH.to_owned())),
        looked => looked,
    }
}

fn look(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("the YAML must not be blank".to_owned());
    }
    let held = Held::default();
    let mut anything = false;
    let mut levels = 0_usize;
    let mut anchors = 0_usize;
    for event in Parser::new(Counted::new(text, &held)) {
        let (event, _) = event.map_err(|error| format!("the YAML does not parse: {error}"))?;
        match &event {
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                levels += 1;
                anchors += usize::from(*anchor > 0);
            }
            Event::SequenceEnd | Event::MappingEnd => levels = levels.saturating_sub(1),
            Event::Scalar(_, _, anchor, _) => anchors += usize::from(*anchor > 0),
            Event::DocumentEnd => anchors = 0,
            _ => {}
        }
        held.handed_out(levels * LEVEL + anchors * ANCHOR);
        anything |= match event {
            // What has no tag and no quotes and reads as nothing is null.
            Event::Scalar(value, ScalarStyle::Plain, _, None) => {
                !matches!(&*value, "" | "~" | "null" | "Null" | "NULL")
            }
            Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) => true,
            _ => false,
        };
    }
    if anything {
        return Ok(());
    }
    Err("the YAML holds no document but null".to_owned())
}

/// What the parser holds.
#[derive(Default)]
struct Held {
    /// Tokens in its queue, or a few more.
    tokens: Cell<usize>,
    /// Bytes of all else.
    rest: Cell<usize>,
    /// Tokens since the processor time was looked at.
    unwatched: Cell<usize>,
}

impl Held {
    fn token(&self) {
        self.tokens.set(self.tokens.get() + 1);
        if self.tokens.get() * TOKEN + self.rest.get() > MEMORY {
            bounded::stop(TOO_MUCH);
        }
        self.unwatched.set(self.unwatched.get() + 1);
        if self.unwatched.get() >= TOKENS_UNWATCHED {
            self.unwatched.set(0);
            bounded::spend(0);
        }
    }

    /// An event came out: the scanner has settled what its oldest token is, and reads no further before it has handed out
    /// all that hung on that.
    fn handed_out(&self, rest: usize) {
        self.tokens.set(0);
        self.rest.set(rest);
    }
}

/// The text as the parser reads it. Before each token the scanner asks for four characters, and then looks at the second
/// before it moves on; nothing else in it does that.
struct Counted<'t> {
    text: StrInput<'t>,
    held: &'t Held,
    asked: Cell<bool>,
}

impl<'t> Counted<'t> {
    fn new(text: &'t str, held: &'t Held) -> Self {
        Self {
            text: StrInput::new(text),
            held,
            asked: Cell::new(false),
        }
    }
}

impl Input for Counted<'_> {
    fn lookahead(&mut self, count: usize) {
        self.asked.set(count == 4);
        self.text.lookahead(count);
    }

    fn peek_nth(&self, n: usize) -> char {
        if n == 1 && self.asked.take() {
            self.held.token();
        }
        self.text.peek_nth(n)
    }

    fn skip(&mut self) {
        self.asked.set(false);
        self.text.skip();
    }

    fn skip_n(&mut self, count: usize) {
        self.asked.set(false);
        self.text.skip_n(count);
    }

    fn buflen(&self) -> usize {
        self.text.buflen()
    }

    fn bufmaxlen(&self) -> usize {
        self.text.bufmaxlen()
    }

    fn raw_read_ch(&mut self) -> char {
        self.text.raw_read_ch()
    }

    fn raw_read_non_breakz_ch(&mut self) -> Option<char> {
        self.text.raw_read_non_breakz_ch()
    }

    fn peek(&self) -> char {
        self.text.peek()
    }

    fn next_is_document_indicator(&self) -> bool {
        self.text.next_is_document_indicator()
    }

    fn next_is_document_start(&self) -> bool {
        self.text.next_is_document_start()
    }

    fn next_is_document_end(&self) -> bool {
        self.text.next_is_document_end()
    }

    fn next_is_blank_or_break(&self) -> bool {
        self.text.next_is_blank_or_break()
    }

    fn next_is_blank_or_breakz(&self) -> bool {
        self.text.next_is_blank_or_breakz()
    }

    fn next_is_blank(&self) -> bool {
        self.text.next_is_blank()
    }

    fn next_is_break(&self) -> bool {
        self.text.next_is_break()
    }

    fn next_is_breakz(&self) -> bool {
        self.text.next_is_breakz()
    }

    fn next_is_z(&self) -> bool {
        self.text.next_is_z()
    }

    fn next_is_flow(&self) -> bool {
        self.text.next_is_flow()
    }

    fn next_is_digit(&self) -> bool {
        self.text.next_is_digit()
    }

    fn next_is_alpha(&self) -> bool {
        self.text.next_is_alpha()
    }

    fn next_can_be_plain_scalar(&self, in_flow: bool) -> bool {
        self.text.next_can_be_plain_scalar(in_flow)
    }

    fn skip_ws_to_eol(&mut self, skip_tabs: SkipTabs) -> (usize, Result<SkipTabs, &'static str>) {
        self.text.skip_ws_to_eol(skip_tabs)
    }

    fn skip_while_non_breakz(&mut self) -> usize {
        self.text.skip_while_non_breakz()
    }

    fn skip_while_blank(&mut self) -> usize {
        self.text.skip_while_blank()
    }

    fn fetch_while_is_alpha(&mut self, out: &mut String) -> usize {
        self.text.fetch_while_is_alpha(out)
    }
}
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{TOO_MUCH, metered};

    fn check(text: &str) -> Result<(), String> {
        metered(text).unwrap()
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
    fn a_large_text_in_one_scalar_is_no_large_collection() {
        let words = "a, b: [c] ".repeat(1024 * 1024);
        check(&format!("a: \"{words}\"\n")).unwrap();
        check(&format!("a: |\n{}", "  a, [b]\n".repeat(1024 * 1024))).unwrap();
    }

    #[test]
    fn what_the_parser_would_have_to_hold_is_bounded() {
        for text in [
            format!("[{}]", "a,".repeat(8_388_598)),
            "- ".repeat(4_000_000),
            "- &a b\n".repeat(2_000_000),
        ] {
            assert_eq!(check(&text).unwrap_err(), TOO_MUCH, "{:?}", &text[..8]);
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
            "---\n---\n",
            "~",
            "null",
            "a: [",
            "a: *nothing",
            "a:\n\t- b",
            "}",
        ] {
            assert!(check(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn deep_nesting_neither_crashes_nor_hangs() {
        let _ = check(&"[".repeat(1_000_000));
        let _ = check(&"- ".repeat(100_000));
        let _ = check(&"{a: ".repeat(100_000));
    }
}
