//! Templates and their parameters: text that strangers wrote, read and rendered without letting it do harm.
//!
//! Pure: no database, no HTTP, and neither environment, files nor network within a template's or a schema's reach. Two
//! libraries do the work, `tera` and `jsonschema`, and neither bounds it. So each piece of work runs on a thread of its own
//! with a meter (`bounded`), and both are made to feed that meter:
//!
//! - A template is looked at before Tera parses it (`scan`: what recurses), parsed under a limit of the parser's own, and
//!   then woven through with calls that count (`weave`): at the start of every body, at every value. Tera's functions,
//!   filters and tests are wrapped, those that could grow without bound are foreseen or replaced (`engine`, `filters`).
//! - A schema is walked before it is compiled (`schema`): only references to its own subschemas, a bounded number of
//!   applications to one value, patterns of the linear-time engine; and a keyword that counts in every subschema.
//!
//! What is spent is bytes of values and of text, and processor time. The first is what usually ends a hostile template, and
//! the same template with the same parameters then always ends alike; the second covers what counting bytes does not.

mod bounded;
mod engine;
mod filters;
mod patterns;
mod scan;
mod schema;
mod weave;
mod weight;

use serde_json::Value;

use bounded::Stopped;
pub(crate) use bounded::THREAD;

/// Most bytes of a template's text.
pub const CONTENT: usize = 512 * 1024;
/// Most bytes of a schema's text.
pub const SCHEMA: usize = 128 * 1024;
/// Most bytes of one value, parameters included, as [`weight`] counts them.
const VALUE: usize = 1024 * 1024;
/// Most bytes of rendered text.
const OUTPUT: usize = 4 * 1024 * 1024;
/// Most bytes of values and text in one piece of work, all together.
const ALLOWANCE: u64 = 64 * 1024 * 1024;
/// How deep values may be nested.
const DEPTH: usize = 32;
/// Most characters of a message made of what a library says: it may quote a whole value.
const MESSAGE: usize = 600;

/// Why a template was not accepted, or not rendered. Texts are for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The template is none, or uses what templates may not.
    Syntax(String),
    /// The schema is none, or uses what schemas may not.
    Schema(String),
    /// The parameters break the schema; `<json pointer>: <text>`, or just the text at the root.
    Parameters(Vec<String>),
    /// Rendering failed or needed too much.
    Rendering(String),
    /// Too many are being worked on; nothing is wrong with this one.
    Busy,
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

/// Checks parameters against a schema that was accepted once.
///
/// # Errors
/// [`Refusal::Parameters`] or [`Refusal::Busy`].
pub fn validate(schema: &str, parameters: &Value) -> Result<(), Refusal> {
    let problem = |text| Refusal::Parameters(vec![text]);
    let found = bounded::run(ALLOWANCE, || schema::check(schema, parameters));
    let Some(validator) = settle(found, problem)? else {
        return Ok(());
    };
    // Listing what is wrong holds all of it in memory, so it has a smaller allowance.
    match bounded::run(ALLOWANCE / 2, || schema::problems(&validator, parameters)) {
        Ok(problems) => Err(Refusal::Parameters(problems)),
        Err(Stopped::Busy) => Err(Refusal::Busy),
        Err(_) => Err(problem("too much is wrong to be listed".to_owned())),
    }
}

/// Renders a template that was accepted once. Parameters that are no object leave every variable undefined.
///
/// # Errors
/// [`Refusal::Rendering`] or [`Refusal::Busy`].
pub fn render(content: &str, parameters: &Value) -> Result<String, Refusal> {
    let rendered = bounded::run(ALLOWANCE, || engine::render(content, parameters));
    settle(rendered, Refusal::Rendering)
}

/// The outcome of bounded work, with what stopped it as a refusal of this kind.
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

/// The first [`MESSAGE`] bytes or a little less, and a sign that there was more.
fn cut(text: &str) -> String {
    if text.len() <= MESSAGE {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(MESSAGE)])
}

#[cfg(test)]
mod tests;
