//! The Tera engine, without functions that reach beyond a template, and with every call metered.

use std::collections::HashMap;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock};

use serde_json::Value;
use tera::{Context, Error, Filter, Function, Template, Tera, Test};
use unicode_segmentation::UnicodeSegmentation;

use super::instrument::{self, EACH, TICK, WEIGH};
use super::value_size::{self, NODE, VALUE};
use super::{filters, metered_thread, regex_cost, syntax_limits};

/// The largest rendered text, in bytes.
const OUTPUT: usize = 4 * 1024 * 1024;

/// The template's name in Tera's messages, without a suffix for which Tera escapes.
const NAME: &str = "template";

/// The largest number of steps of Tera's parser, which tries a nested call four times per level. Text takes 5 steps per
/// byte, usual tags about 30. This many steps take half a second and some 20 MiB.
const STEPS: usize = 10_000_000;

type Outcome<T> = tera::Result<T>;

/// Tera with everything but the template.
static ENGINE: LazyLock<Tera> = LazyLock::new(|| {
    let mut tera = Tera::default();
    for filter in std::mem::take(&mut tera.filters) {
        let (name, filter) = filter;
        tera.register_filter(&name.clone(), CountedFilter { name, filter });
    }
    for tester in std::mem::take(&mut tera.testers) {
        let (name, test) = tester;
        tera.register_tester(&name, CountedTest(test));
    }
    tera.register_tester("matching", matching);
    let mut functions = std::mem::take(&mut tera.functions);
    for name in ["now", "throw", "get_random"] {
        if let Some(function) = functions.remove(name) {
            tera.register_function(name, CountedFunction(function));
        }
    }
    tera.register_function("range", range);
    tera.register_function(TICK, tick);
    tera.register_filter(WEIGH, weigh);
    tera.register_filter(EACH, each);
    tera
});

/// Parses a template and prepares it for [`render`].
pub(super) fn parse(content: &str) -> Result<Template, String> {
    if content.trim().is_empty() {
        return Err("the template must not be blank".to_owned());
    }
    syntax_limits::check(content)?;
    // The limit holds for the whole process, but only Tera parses with pest.
    pest::set_call_limit(NonZeroUsize::new(STEPS));
    let mut template =
        Template::new(NAME, None, content).map_err(|error| where_and_why(&say(&error)))?;
    instrument::instrument(&mut template)?;
    Ok(template)
}

/// Renders a template with these parameters.
pub(super) fn render(content: &str, parameters: &Value) -> Result<String, String> {
    let template = parse(content)?;
    let mut tera = ENGINE.clone();
    tera.templates.insert(NAME.to_owned(), template);
    tera.build_inheritance_chains()
        .map_err(|error| say(&error))?;
    let context = match parameters {
        Value::Object(_) => Context::from_value(parameters.clone()).map_err(|error| say(&error))?,
        _ => Context::new(),
    };
    let mut output = Output(Vec::new());
    tera.render_to(NAME, &context, &mut output)
        .map_err(|error| say(&error))?;
    String::from_utf8(output.0).map_err(|error| error.to_string())
}

/// Formats an error with its causes in one line, without the name of the template.
fn say(error: &Error) -> String {
    let mut said = Vec::new();
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if text != format!("Failed to render '{NAME}'") {
            said.push(text);
        }
        next = error.source();
    }
    said.join(": ")
}

/// Shortens a message of Tera's parser by the line it quotes, which may be the whole template.
fn where_and_why(said: &str) -> String {
    let part = |sign: &str| {
        said.lines()
            .find_map(|line| line.trim_start().strip_prefix(sign))
    };
    match (part("--> "), part("= ")) {
        (Some(place), Some(reason)) if reason.ends_with("limit reached") => {
            format!("at {place}: too large, or too deeply nested")
        }
        (Some(place), Some(reason)) => format!("at {place}: {reason}"),
        _ => said.to_owned(),
    }
}

/// Rendered text, up to [`OUTPUT`] bytes.
struct Output(Vec<u8>);

impl Write for Output {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.0.len() + text.len() > OUTPUT {
            metered_thread::stop("the rendered text is too large");
        }
        self.0.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A metered filter of Tera.
struct CountedFilter {
    name: String,
    filter: Arc<dyn Filter>,
}

impl Filter for CountedFilter {
    fn filter(&self, value: &Value, args: &HashMap<String, Value>) -> Outcome<Value> {
        pay([value].into_iter().chain(args.values()));
        filters::foresee(&self.name, value, args)?;
        let result = self.filter.filter(value, args)?;
        value_size::spend(&result);
        Ok(result)
    }
}

/// A metered test of Tera.
struct CountedTest(Arc<dyn Test>);

impl Test for CountedTest {
    fn test(&self, value: Option<&Value>, args: &[Value]) -> Outcome<bool> {
        pay(value.into_iter().chain(args));
        self.0.test(value, args)
    }
}

/// A metered function of Tera.
struct CountedFunction(Arc<dyn Function>);

impl Function for CountedFunction {
    fn call(&self, args: &HashMap<String, Value>) -> Outcome<Value> {
        pay(args.values());
        let result = self.0.call(args)?;
        value_size::spend(&result);
        Ok(result)
    }
}

/// Spends the weight of a call's arguments.
fn pay<'a>(given: impl Iterator<Item = &'a Value>) {
    metered_thread::spend(NODE + given.map(value_size::weigh).sum::<usize>());
}

fn tick(args: &HashMap<String, Value>) -> Outcome<Value> {
    let text = args.get("text").and_then(Value::as_u64).unwrap_or(0);
    metered_thread::spend(NODE + usize::try_from(text).unwrap_or(usize::MAX));
    Ok(Value::Null)
}

fn weigh(value: &Value, _: &HashMap<String, Value>) -> Outcome<Value> {
    value_size::spend(value);
    Ok(value.clone())
}

/// Prepares the value of a loop. A string becomes the list of its letters, because Tera would search for each letter
/// from the string's beginning.
fn each(value: &Value, _: &HashMap<String, Value>) -> Outcome<Value> {
    let Value::String(text) = value else {
        value_size::spend(value);
        return Ok(value.clone());
    };
    // A letter has at least one byte.
    if text.len().saturating_mul(NODE) > VALUE {
        metered_thread::stop("a string is too long to be looped over");
    }
    let letters = text.graphemes(true).map(Value::from).collect();
    let letters = Value::Array(letters);
    value_size::spend(&letters);
    Ok(letters)
}

/// Replaces Tera's `range`, which has no bound and does not end with a step of zero.
fn range(args: &HashMap<String, Value>) -> Outcome<Value> {
    let number = |name: &str, otherwise| match args.get(name) {
        None => Ok(otherwise),
        Some(value) => value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| {
                Error::msg(format!(
                    "Function `range` received {name}={value} but `{name}` can only be a number"
                ))
            }),
    };
    let start = number("start", Some(0))?.unwrap_or(0);
    let step = number("step_by", Some(1))?.unwrap_or(1);
    let end = number("end", None)?
        .ok_or_else(|| Error::msg("Function `range` was called without a `end` argument"))?;
    if start > end {
        return Err(Error::msg(
            "Function `range` was called with a `start` argument greater than the `end` one",
        ));
    }
    if step == 0 {
        return Err(Error::msg(
            "Function `range` was called with a step of zero",
        ));
    }
    if ((end - start) / step).saturating_mul(NODE) >= VALUE {
        metered_thread::stop("a range is too long");
    }
    let numbers = Value::Array((start..end).step_by(step).map(Value::from).collect());
    value_size::spend(&numbers);
    Ok(numbers)
}

/// Replaces Tera's `matching`, whose expressions may be of any size.
fn matching(value: Option<&Value>, args: &[Value]) -> Outcome<bool> {
    pay(value.into_iter().chain(args));
    let (Some(Value::String(text)), [Value::String(pattern)]) = (value, args) else {
        return Err(Error::msg(
            "Tester `matching` is for a string and takes a string",
        ));
    };
    let (regex, size) = regex_cost::compile(pattern).map_err(|error| {
        Error::msg(format!(
            "Tester `matching`: Invalid regular expression: {error}"
        ))
    })?;
    regex_cost::pay(size, text.len());
    Ok(regex.is_match(text))
}
