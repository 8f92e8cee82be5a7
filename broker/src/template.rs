//! Templates and their parameters: bounded parsing, validation and rendering of untrusted text.
//!
//! The code is pure: no database and no HTTP, and no template or schema reaches environment, files or network. The
//! libraries `tera` and `jsonschema` do the work, but neither bounds it. So each piece of work runs on its own thread
//! with a meter (`metered_thread`), and calls in both libraries feed that meter:
//!
//! - Before Tera parses a template, `syntax_limits` checks for deep recursion, and the parser has a step limit of its
//!   own. Then `instrument` inserts calls that count, at the start of every body and at every value. Tera's functions,
//!   filters and tests are wrapped; those that could grow without bound are checked ahead or replaced (`engine`,
//!   `filters`).
//! - Before a schema is compiled, `schema` walks it: only references to its own subschemas, a bounded number of
//!   applications to one value, and patterns of the linear-time engine. Every subschema gets a keyword that counts.
//!
//! The meter counts bytes of values and text, and processor time. Bytes usually end a hostile template, and then always
//! at the same place; processor time covers work that allocates no bytes.

mod engine;
mod filters;
mod instrument;
mod message;
pub(crate) mod metered_thread;
mod regex_cost;
mod schema;
mod syntax_limits;
mod value_size;

use serde_json::Value;

use message::cut;
pub(crate) use metered_thread::THREAD;
use metered_thread::{Interrupted, ThreadLimit};

/// The largest template, in bytes.
pub const CONTENT: usize = 512 * 1024;
/// The largest schema, in bytes.
pub const SCHEMA: usize = 128 * 1024;
/// The largest sum of bytes of values and text in one piece of work.
const ALLOWANCE: u64 = 64 * 1024 * 1024;

/// Reason why a template was not accepted or not rendered. Texts are for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateError {
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

static TURNS: ThreadLimit = ThreadLimit::new();

/// Runs work on templates when its turn comes. Call [`check`], [`validate`] and [`render`] inside it.
///
/// # Errors
/// The error of the work, or [`TemplateError::Busy`] when no turn came.
pub async fn in_turn<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TemplateError> + Send + 'static,
) -> Result<T, TemplateError> {
    match TURNS.take(work).await {
        Ok(done) => done,
        Err(Interrupted::Busy) => Err(TemplateError::Busy),
        Err(_) => Err(TemplateError::Rendering(
            "this is beyond what the library behind it can do".to_owned(),
        )),
    }
}

/// Checks a template and its schema.
///
/// # Errors
/// [`TemplateError::Syntax`], [`TemplateError::Schema`] or [`TemplateError::Busy`].
pub fn check(content: &str, schema: &str) -> Result<(), TemplateError> {
    let parsed = metered_thread::run(ALLOWANCE, || engine::parse(content).map(drop));
    settle(parsed, TemplateError::Syntax)?;
    let compiled = metered_thread::run(ALLOWANCE, || schema::compile(schema).map(drop));
    settle(compiled, TemplateError::Schema)
}

/// Checks parameters against an accepted schema.
///
/// # Errors
/// [`TemplateError::Parameters`] or [`TemplateError::Busy`].
pub fn validate(schema: &str, parameters: &Value) -> Result<(), TemplateError> {
    let problem = |text| TemplateError::Parameters(vec![text]);
    let found = metered_thread::run(ALLOWANCE, || schema::check(schema, parameters));
    let Some(validator) = settle(found, problem)? else {
        return Ok(());
    };
    // The list of problems has a smaller allowance, because all of it is held in memory.
    match metered_thread::run(ALLOWANCE / 2, || schema::problems(&validator, parameters)) {
        Ok(problems) => Err(TemplateError::Parameters(problems)),
        Err(Interrupted::Busy) => Err(TemplateError::Busy),
        Err(_) => Err(problem("too much is wrong to be listed".to_owned())),
    }
}

/// Renders an accepted template. Parameters that are no object leave every variable undefined.
///
/// # Errors
/// [`TemplateError::Rendering`] or [`TemplateError::Busy`].
pub fn render(content: &str, parameters: &Value) -> Result<String, TemplateError> {
    let rendered = metered_thread::run(ALLOWANCE, || engine::render(content, parameters));
    settle(rendered, TemplateError::Rendering)
}

/// Returns the result of bounded work; maps errors and limits to this kind of refusal.
fn settle<T>(
    outcome: Result<Result<T, String>, Interrupted>,
    refusal: impl Fn(String) -> TemplateError,
) -> Result<T, TemplateError> {
    match outcome {
        Ok(done) => done.map_err(|text| refusal(cut(&text))),
        Err(Interrupted::Limit(text)) => Err(refusal(text.to_owned())),
        Err(Interrupted::Panicked) => Err(refusal(
            "this is beyond what the library behind it can do".to_owned(),
        )),
        Err(Interrupted::Busy) => Err(TemplateError::Busy),
    }
}

#[cfg(test)]
mod tests;
