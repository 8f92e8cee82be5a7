//! Instrumentation of a parsed template: refuses forbidden features, and inserts calls that count.
//!
//! Every body (of a loop, a macro, a branch) begins with a call of [`TICK`] that pays for its text, so no loop repeats
//! without paying. Every expression that may hold more than a number ends with a call of [`WEIGH`] that pays for its
//! value, so no value is copied, kept or printed without paying. The value of a loop goes through [`EACH`]. No template
//! can write the names of these calls.

use tera::Template;
use tera::ast::{Expr, ExprVal, Forloop, FunctionCall, Node, WS};

/// The name of the call inserted into each body.
pub(super) const TICK: &str = "!tick";
/// The name of the filter added to each value.
pub(super) const WEIGH: &str = "!weigh";
/// The name of the filter added to each looped value.
pub(super) const EACH: &str = "!each";

/// The largest number of operands of one `~`, because all are held at once before their sum is weighed.
const OPERANDS: usize = 16;
/// The largest number of `[` in one name, because Tera looks each up and writes it into a copy of the whole name.
const INDICES: usize = 8;
/// The length up to which strings are not weighed, because the template's own text bounds their number.
const SHORT: usize = 256;

type Checked = Result<(), String>;

/// Checks a template and inserts the calls.
pub(super) fn instrument(template: &mut Template) -> Checked {
    if template.parent.is_some() || !template.imported_macro_files.is_empty() {
        return Err(alone());
    }
    body(&mut template.ast)?;
    for definition in template.macros.values_mut() {
        body(&mut definition.body)?;
    }
    // These are copies of blocks in the tree; rendering uses them.
    for block in template.blocks.values_mut() {
        body(&mut block.body)?;
    }
    Ok(())
}

fn alone() -> String {
    "a template stands alone: no include, no import, no extends".to_owned()
}

fn body(nodes: &mut Vec<Node>) -> Checked {
    let mut text = 0;
    for node in nodes.iter_mut() {
        match node {
            Node::Text(words) | Node::Raw(_, words, _) => text += words.len(),
            other => self::node(other)?,
        }
    }
    nodes.insert(0, tick(text));
    Ok(())
}

fn node(node: &mut Node) -> Checked {
    match node {
        Node::VariableBlock(_, value) => expression(value),
        Node::Set(_, set) => expression(&mut set.value),
        Node::If(choice, _) => {
            for (_, condition, then) in &mut choice.conditions {
                expression(condition)?;
                body(then)?;
            }
            choice
                .otherwise
                .as_mut()
                .map_or(Ok(()), |(_, otherwise)| body(otherwise))
        }
        Node::Forloop(_, each, _) => forloop(each),
        Node::FilterSection(_, section, _) => {
            call(&mut section.filter)?;
            body(&mut section.body)
        }
        Node::Block(_, block, _) => body(&mut block.body),
        Node::MacroDefinition(_, definition, _) => body(&mut definition.body),
        Node::Include(..) | Node::Extends(..) | Node::ImportMacro(..) => Err(alone()),
        Node::Super
        | Node::Text(_)
        | Node::Raw(..)
        | Node::Break(_)
        | Node::Continue(_)
        | Node::Comment(..) => Ok(()),
    }
}

fn forloop(each: &mut Forloop) -> Checked {
    expression(&mut each.container)?;
    each.container.filters.push(instrumented(EACH));
    body(&mut each.body)?;
    each.empty_body.as_mut().map_or(Ok(()), body)
}

fn expression(value: &mut Expr) -> Checked {
    let weighed = match &mut value.val {
        ExprVal::Ident(ident) => {
            name(ident)?;
            true
        }
        ExprVal::String(text) => text.len() > SHORT,
        ExprVal::Int(_) | ExprVal::Float(_) | ExprVal::Bool(_) => false,
        ExprVal::Math(math) => both(&mut math.lhs, &mut math.rhs)?,
        ExprVal::Logic(logic) => both(&mut logic.lhs, &mut logic.rhs)?,
        ExprVal::In(within) => both(&mut within.lhs, &mut within.rhs)?,
        ExprVal::Test(test) => {
            name(&test.ident)?;
            test.args.iter_mut().try_for_each(expression)?;
            false
        }
        ExprVal::MacroCall(macro_call) => {
            macro_call.args.values_mut().try_for_each(expression)?;
            true
        }
        // The called function weighs its result.
        ExprVal::FunctionCall(function) => {
            call(function)?;
            false
        }
        ExprVal::Array(items) => {
            items.iter_mut().try_for_each(expression)?;
            true
        }
        ExprVal::StringConcat(sum) => {
            if sum.values.len() > OPERANDS {
                return Err(format!("more than {OPERANDS} values joined by one `~`"));
            }
            for operand in &mut sum.values {
                match operand {
                    ExprVal::Ident(ident) => name(ident)?,
                    ExprVal::FunctionCall(function) => call(function)?,
                    _ => {}
                }
            }
            true
        }
    };
    value.filters.iter_mut().try_for_each(call)?;
    if weighed {
        // Add the call last, because `default` works only as the first filter.
        value.filters.push(instrumented(WEIGH));
    }
    Ok(())
}

/// Instruments both sides of an operator whose result is a number or a boolean.
fn both(left: &mut Expr, right: &mut Expr) -> Result<bool, String> {
    expression(left)?;
    expression(right)?;
    Ok(false)
}

fn call(function: &mut FunctionCall) -> Checked {
    if function.name == "get_env" {
        return Err(
            "there is no `get_env`: a template sees its parameters and nothing else".into(),
        );
    }
    function.args.values_mut().try_for_each(expression)
}

fn name(ident: &str) -> Checked {
    if ident == "__tera_context" {
        return Err("there is no `__tera_context`".to_owned());
    }
    if ident.matches('[').count() > INDICES {
        return Err(format!("more than {INDICES} indices in one name"));
    }
    Ok(())
}

fn instrumented(name: &str) -> FunctionCall {
    FunctionCall {
        name: name.to_owned(),
        args: Default::default(),
    }
}

/// Returns a call of [`TICK`], which prints nothing.
fn tick(text: usize) -> Node {
    let mut call = instrumented(TICK);
    let text = i64::try_from(text).unwrap_or(i64::MAX);
    call.args
        .insert("text".to_owned(), Expr::new(ExprVal::Int(text)));
    Node::VariableBlock(WS::default(), Expr::new(ExprVal::FunctionCall(call)))
}
