//! Checks that a text is YAML that an agent can read, with at least one document to apply.
//!
//! The check uses libyaml (`libyaml_safer`, its port to safe Rust), because the parsers of kubectl and of the published
//! agent derive from it. The parser looks at most 1,024 characters ahead, so its memory is bounded by the nesting
//! depth, which [`reading`] bounds. A large text is read on a metered thread.

mod reading;

use std::io::{self, BufRead, Read};
use std::sync::LazyLock;
use std::time::Duration;

use libyaml_safer::{Encoding, Parser};
use regex::Regex;

use self::reading::YamlReading;
use crate::template::metered_thread::{self, Interrupted, ThreadLimit};

/// Largest text that is checked on the calling thread, in bytes: it cannot hold memory or a processor for long.
const SMALL: usize = 16 * 1024;
/// Processor time for one text. Sixteen MiB of manifests take a small part of it, also without optimisation.
const PROCESSOR: Duration = Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 4 });
/// Number of bytes that the parser gets between two checks of the processor time.
const PIECE: usize = 256;

static TURNS: ThreadLimit = ThreadLimit::new();

/// Error: no thread became free in time.
#[derive(Debug)]
pub(super) struct YamlBusy;

/// Checks that every document of a stream parses and that at least one is not null. Returns the text unchanged.
///
/// # Errors
/// [`YamlBusy`]; the inner error is a sentence with the problem, and with line and column where they are known.
pub(super) async fn check(text: String) -> Result<Result<String, String>, YamlBusy> {
    // A tag can make the parser panic (see `spaced`), and only the metered thread contains a panic.
    if text.len() <= SMALL && !text.contains('!') {
        return Ok(look(&text, &text).map(|()| text));
    }
    let looked = TURNS
        .take(move || match metered(&text) {
            Ok(looked) => Ok(looked.map(|()| text)),
            Err(stopped) => Err(stopped),
        })
        .await;
    match looked {
        Ok(Ok(looked)) => Ok(looked),
        Err(Interrupted::Busy) | Ok(Err(Interrupted::Busy)) => Err(YamlBusy),
        Err(Interrupted::Limit(_)) | Ok(Err(Interrupted::Limit(_))) => Ok(Err(
            "the YAML takes too long to read; split the bundle into smaller objects".to_owned(),
        )),
        Err(Interrupted::Panicked) | Ok(Err(Interrupted::Panicked)) => {
            Ok(Err("the YAML is beyond what its parser can do".to_owned()))
        }
    }
}

fn metered(text: &str) -> Result<Result<(), String>, Interrupted> {
    match metered_thread::run_for(PROCESSOR, u64::MAX, || look(text, text)) {
        Err(Interrupted::Panicked) => {
            let spaced = spaced(text);
            metered_thread::run_for(PROCESSOR, u64::MAX, || look(text, &spaced))
        }
        looked => looked,
    }
}

/// Puts a space between a tag and the comma after it. libyaml reads both forms; libyaml-safer 0.3 panics without the
/// space.
fn spaced(text: &str) -> String {
    static TAG: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(![^\s,\[\]{}]*),").ok());
    TAG.as_ref().map_or_else(
        || text.to_owned(),
        |tag| tag.replace_all(text, "$1 ,").into_owned(),
    )
}

/// Parses `parsed`, a variant of `text`, and checks its events.
fn look(text: &str, parsed: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("the YAML must not be blank".to_owned());
    }
    let mut parser = Parser::new();
    // With the encoding set, the parser takes U+FEFF for a character of the first line, as the agent's parser does.
    parser.set_encoding(Encoding::Utf8);
    parser.set_input(Pieces {
        rest: parsed.as_bytes(),
        end: b"\n",
    });
    let mut reading = YamlReading::default();
    for event in parser {
        let event = event.map_err(|error| {
            let hint = if text.starts_with('\u{feff}') {
                "; the text begins with a byte order mark (U+FEFF), which agents read only before a comment or an empty line: \
                 save the text without it"
            } else {
                ""
            };
            format!("the YAML does not parse: {error}{hint}")
        })?;
        reading.take(event)?;
    }
    if reading.found_anything() {
        return Ok(());
    }
    Err("the YAML holds no document but null".to_owned())
}

/// Input of the parser: the text in pieces, so that the processor time is checked in between, and a final line break,
/// because libyaml-safer 0.3 panics in a block scalar without it.
struct Pieces<'t> {
    rest: &'t [u8],
    end: &'t [u8],
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        metered_thread::spend(0);
        if self.rest.is_empty() {
            return Ok(self.end);
        }
        Ok(self.rest.get(..PIECE).unwrap_or(self.rest))
    }

    fn consume(&mut self, amount: usize) {
        let part = if self.rest.is_empty() {
            &mut self.end
        } else {
            &mut self.rest
        };
        *part = part.get(amount..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests;
