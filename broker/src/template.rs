//! Templates and their parameters: bounded parsing, validation and rendering of untrusted text.
//!
//! The code is pure: no database and no HTTP, and no template or schema reaches environment, files or network. The
//! libraries `tera` and `jsonschema` do the work, but neither bounds it. So each piece of work runs on its own thread
//! with a meter (`bounded`), and calls in both libraries feed that meter:
//!
//! - Before Tera parses a template, `scan` checks for deep recursion, and the parser has a step limit of its own. Then
//!   `weave` inserts calls that count, at the start of every body and at every value. Tera's functions, filters and
//!   tests are wrapped; those that could grow without bound are checked ahead or replaced (`engine`, `filters`).
//! - Before a schema is compiled, `schema` walks it: only references to its own subschemas, a bounded number of
//!   applications to one value, and patterns of the linear-time engine. Every subschema gets a keyword that counts.
//!
//! The meter counts bytes of values and text, and processor time. Bytes usually end a hostile template, and then always
//! at the same place; processor time covers work that allocates no bytes.

pub(crate) mod bounded;
mod engine;
mod filters;
mod patterns;
mod scan;
mod schema;
mod weave;
mod weight;

use serde_json::Value;

pub(crate) use bounded::THREAD;
use bounded::{Stopped, Turns};

/// The largest template, in bytes.
pub const CONTENT: usize = 512 * 1024;
/// The largest schema, in bytes.
pub const SCHEMA: usize = 128 * 1024;
/// The largest value in bytes, parameters included, as [`weight`] counts them.
const VALUE: usize = 1024 * 1024;
/// The largest rendered text, in bytes.
const OUTPUT: usize = 4 * 1024 * 1024;
/// The largest sum of bytes of values and text in one piece of work.
const ALLOWANCE: u64 = 64 * 1024 * 1024;
/// The deepest nesting of values.
const DEPTH: usize = 32;
/// The longest message from a library, in bytes, because it may quote a whole value.
const MESSAGE: usize = 600;

/// Reason why a template was not accepted or not rendered. Texts are for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The template is invalid, or uses a forbidden feature.
    Syntax(String),
    /// The schema is invalid, or uses a forbidden feature.
    Schema(String),
    /// The parameters break the schema; each text is `<json pointer>: <text>`, or just the text at the root.
    Parameters(Vec<String>),
    /// Rendering failed or needed too much.
    Rendering(String),
    /// Too many templates are being worked on; this template may be valid.
    Busy,
}

static TURNS: Turns = Turns::new();

/// Runs work on templates when its turn comes. Call [`check`], [`validate`] and [`render`] inside it.
///
/// # Errors
/// The error of the work, or [`Refusal::Busy`] when no turn came.
pub async fn in_turn<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match TURNS.take(work).await {
        Ok(done) => done,
        Err(Stopped::Busy) => Err(Refusal::Busy),
        Err(_) => Err(Refusal::Rendering(
            "this is beyond what the library behind it can do".to_owned(),
        )),
    }
}

/// Checks a template and its schema.
///
/// # Errors
/// [`Refusal::Syntax`], [`Refusal::Schema`] or [`Refusal::Busy`].
pub fn check(content: &str, schema: &str) -> Result<(), Refusal> {
    let parsed = bounded::run(ALLOWANCE, || engine::parse(content).map(drop));
    settle(parsed, Refusal::Syntax)?;
    let compiled = bounded::run(ALLOWANCE, || schema::compile(schema).map(drop));
    settle(compiled, Refusal::Schema)
}

/// Checks parameters against an accepted schema.
///
/// # Errors
/// [`Refusal::Parameters`] or [`Refusal::Busy`].
pub fn validate(schema: &str, parameters: &Value) -> Result<(), Refusal> {
    let problem = |text| Refusal::Parameters(vec![text]);
    let found = bounded::run(ALLOWANCE, || schema::check(schema, parameters));
    let Some(validator) = settle(found, problem)? else {
        return Ok(());
    };
    // The list of problems has a smaller allowance, because all of it is held in memory.
    match bounded::run(ALLOWANCE / 2, || schema::problems(&validator, parameters)) {
        Ok(problems) => Err(Refusal::Parameters(problems)),
        Err(Stopped::Busy) => Err(Refusal::Busy),
        Err(_) => Err(problem("too much is wrong to be listed".to_owned())),
    }
}

/// Renders an accepted template. Parameters that are no object leave every variable undefined.
///
/// # Errors
/// [`Refusal::Rendering`] or [`Refusal::Busy`].
pub fn render(content: &str, parameters: &Value) -> Result<String, Refusal> {
    let rendered = bounded::run(ALLOWANCE, || engine::render(content, parameters));
    settle(rendered, Refusal::Rendering)
}

/// Returns the result of bounded work; maps errors and limits to this kind of refusal.
fn settle<T>(
    outcome: Result<Result<T, String>, Stopped>,
    refusal: impl Fn(String) -> Refusal,
) -> Result<T, Refusal> {
    match outcome {
        Ok(done) => done.map_err(|text| refusal(cut(&text))),
        Err(Stopped::Limit(text)) => Err(refusal(text.to_owned())),
        Err(Stopped::Panicked) => Err(refusal(
            "this is beyond what the library behind it can do".to_owned(),
        )),
        Err(Stopped::Busy) => Err(Refusal::Busy),
    }
}

/// Cuts a text after at most [`MESSAGE`] bytes, and marks the cut.
fn cut(text: &str) -> String {
    if text.len() <= MESSAGE {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(MESSAGE)])
}

#[cfg(test)]
mod tests;
