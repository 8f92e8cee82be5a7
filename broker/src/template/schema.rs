//! JSON Schema validation that fetches nothing and ends in time.
//!
//! Three kinds of work could take long. References can apply many subschemas to one value: [`prepare`] counts them
//! before the schema is compiled. Many values can each be checked many times: every subschema gets a keyword that
//! counts while it is checked ([`Count`]). And a match against a long text cannot be interrupted: that keyword pays for
//! it ahead.

mod prepare;

use jsonschema::paths::{LazyLocation, Location};
use jsonschema::{Draft, Keyword, PatternOptions, Retrieve, Uri, ValidationError, Validator};
use serde_json::{Map, Value};

use super::message::cut;
use super::{metered_thread, regex_cost, value_size};
use prepare::COUNT;

/// The largest compiled pattern, in bytes.
const PATTERN: usize = 512 * 1024;
/// The largest number of listed problems.
const PROBLEMS: usize = 50;
/// The memory of one problem in bytes, besides its path.
const PROBLEM: usize = 512;

/// Compiles a schema. `$schema` names the draft, otherwise draft 7; `format` is asserted where that draft does.
pub(super) fn compile(text: &str) -> Result<Validator, String> {
    let mut schema: Value =
        serde_json::from_str(text).map_err(|error| format!("the schema is not JSON: {error}"))?;
    let draft = Draft::Draft7.detect(&schema);
    if draft == Draft::Unknown {
        return Err("`$schema` is none of the drafts 4, 6, 7, 2019-09, 2020-12".to_owned());
    }
    prepare::prepare(&mut schema, draft)?;
    jsonschema::options()
        .with_draft(draft)
        .with_retriever(Nowhere)
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN))
        .with_format("regex", |text: &str| regex_cost::compile(text).is_ok())
        .with_keyword(COUNT, Count::of)
        .build(&schema)
        .map_err(|error| within(&error))
}

/// Checks the parameters. Returns a validator for [`problems`] when they break the schema.
pub(super) fn check(text: &str, parameters: &Value) -> Result<Option<Validator>, String> {
    if !value_size::fits(parameters) {
        return Err("the parameters are too large or too deeply nested".to_owned());
    }
    let validator = compile(text)?;
    Ok((!validator.is_valid(parameters)).then_some(validator))
}

/// Lists the problems of the parameters, each with its place.
pub(super) fn problems(validator: &Validator, parameters: &Value) -> Vec<String> {
    validator
        .iter_errors(parameters)
        .take(PROBLEMS)
        .map(|error| cut(&within(&error)))
        .collect()
}

/// Formats an error with its place.
fn within(error: &ValidationError<'_>) -> String {
    let text = prepare::without_counts(&error.to_string());
    match error.instance_path().as_str() {
        "" => text,
        path => format!("{path}: {text}"),
    }
}

/// Refuses every retrieval of a file or a page.
struct Nowhere;

impl Retrieve for Nowhere {
    fn retrieve(&self, _: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        Err("a schema may refer to its own subschemas only".into())
    }
}

/// The keyword put into every subschema: it always holds, and spends the cost of the check. Its name sorts before all
/// others, so that it runs before them.
struct Count {
    /// The weight of the subschema's own keywords: values are compared with them, and errors quote them.
    own: usize,
    /// The largest number of errors that these keywords can cause.
    errors: usize,
    /// The compiled size of `pattern`.
    pattern: usize,
    /// The sum of the compiled sizes of `patternProperties`.
    names: usize,
}

impl Count {
    fn of<'a>(
        subschema: &'a Map<String, Value>,
        counted: &'a Value,
        _: Location,
    ) -> Result<Box<dyn Keyword>, ValidationError<'a>> {
        let number = |at| {
            let number = counted.get(at).and_then(Value::as_u64);
            number.map_or(0, |number| usize::try_from(number).unwrap_or(usize::MAX))
        };
        let (own, errors) = (number(0), number(1));
        let size = |pattern: &str| {
            // Use the ASCII classes of JSON Schema, which is close enough to estimate the size.
            let ascii = pattern
                .replace("\\w", "[0-9A-Za-z_]")
                .replace("\\d", "[0-9]");
            regex_cost::compile(&ascii).map_or(PATTERN, |(_, size)| size)
        };
        let pattern = subschema.get("pattern").and_then(Value::as_str);
        let names = subschema
            .get("patternProperties")
            .and_then(Value::as_object);
        metered_thread::spend(PROBLEM + own);
        Ok(Box::new(Self {
            own,
            errors,
            pattern: pattern.map_or(0, size),
            names: names.map_or(0, |names| names.keys().map(|name| size(name)).sum()),
        }))
    }

    fn pay(&self, value: &Value) {
        // Comparing costs an eighth, because it is quicker than copying.
        metered_thread::spend(value_size::NODE + self.own / 8);
        match value {
            Value::String(text) => regex_cost::pay(self.pattern, text.len()),
            Value::Object(entries) => {
                regex_cost::pay(self.names, entries.keys().map(String::len).sum());
            }
            _ => {}
        }
    }
}

impl Keyword for Count {
    fn validate<'i>(
        &self,
        value: &'i Value,
        location: &LazyLocation,
    ) -> Result<(), ValidationError<'i>> {
        self.pay(value);
        let path = Location::from(location).as_str().len();
        metered_thread::spend(self.own + self.errors.saturating_mul(PROBLEM + path));
        Ok(())
    }

    fn is_valid(&self, value: &Value) -> bool {
        self.pay(value);
        true
    }
}
