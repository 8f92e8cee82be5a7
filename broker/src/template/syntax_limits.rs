//! A check of a template's text before Tera parses it, for causes of recursion: nested blocks, nested brackets, and
//! chains of operators, which become trees as deep as they are long.
//!
//! The scan follows Tera's grammar for text, comments and strings, and stops at invalid syntax, which Tera will refuse.
//! It accepts much that Tera refuses, but nothing that is too deep for Tera.

/// The deepest nesting of blocks.
const BLOCKS: usize = 50;
/// The deepest nesting of brackets in one tag.
const BRACKETS: usize = 30;
/// The largest number of operators in one tag.
const OPERATORS: usize = 200;

/// Checks the whole text.
pub(super) fn check(content: &str) -> Result<(), String> {
    let mut rest = content;
    let mut open = 0_usize;
    while let Some((kind, inside)) = next_start(rest) {
        rest = match kind {
            b'#' => after(inside, "#}"),
            b'{' => tag(inside, "}}")?,
            _ => {
                let word = first_word(inside);
                match word {
                    "if" | "for" | "block" | "macro" | "filter" => open += 1,
                    "raw" => {
                        rest = after_raw(inside);
                        continue;
                    }
                    _ if word.starts_with("end") => open = open.saturating_sub(1),
                    _ => {}
                }
                if open > BLOCKS {
                    return Err(format!("more than {BLOCKS} blocks within each other"));
                }
                tag(inside, "%}")?
            }
        };
    }
    Ok(())
}

/// Returns the kind of the next `{{`, `{%` or `{#`, and the text after it.
fn next_start(text: &str) -> Option<(u8, &str)> {
    let bytes = text.as_bytes();
    let at = bytes
        .windows(2)
        .position(|two| two[0] == b'{' && matches!(two[1], b'{' | b'%' | b'#'))?;
    Some((bytes[at + 1], &text[at + 2..]))
}

/// Returns the text after the next `end`, or an empty text when there is none.
fn after<'a>(text: &'a str, end: &str) -> &'a str {
    text.split_once(end).map_or("", |(_, after)| after)
}

/// White space in Tera's grammar.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Returns the first word of a tag.
fn first_word(inside: &str) -> &str {
    let word = inside.strip_prefix('-').unwrap_or(inside);
    let word = word.trim_start_matches(SPACE);
    let end = word
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(word.len());
    &word[..end]
}

/// Returns the text after `{% endraw %}`, without checking the text before it.
fn after_raw(inside: &str) -> &str {
    let mut rest = after(inside, "%}");
    loop {
        rest = after(rest, "{%");
        let word = first_word(rest);
        if rest.is_empty() {
            return rest;
        }
        if word == "endraw" {
            // The tag must hold nothing else, because `{% endraw x %}` is text.
            let (_, tail) = rest.split_once(word).unwrap_or_default();
            let tail = tail.trim_start_matches(SPACE);
            let end = tail.strip_prefix('-').unwrap_or(tail);
            if let Some(after) = end.strip_prefix("%}") {
                return after;
            }
        }
    }
}

/// Checks a tag from after its start, and returns the text after its end.
fn tag<'a>(inside: &'a str, end: &str) -> Result<&'a str, String> {
    let bytes = inside.as_bytes();
    let (mut at, mut depth, mut operators) = (0, 0_usize, 0_usize);
    while at < bytes.len() {
        if bytes[at..].starts_with(end.as_bytes()) {
            return Ok(&inside[at + end.len()..]);
        }
        match bytes[at] {
            quote @ (b'"' | b'\'' | b'`') => {
                // Tera has no escapes: a string ends at the next quote of its kind.
                match bytes[at + 1..].iter().position(|byte| *byte == quote) {
                    Some(length) => at += 1 + length,
                    None => return Ok(""),
                }
            }
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'+' | b'-' | b'*' | b'/' | b'%' => operators += 1,
            b'a' if is_word(bytes, at, b"and") => operators += 1,
            b'o' if is_word(bytes, at, b"or") => operators += 1,
            _ => {}
        }
        if depth > BRACKETS {
            return Err(format!("more than {BRACKETS} brackets within each other"));
        }
        if operators > OPERATORS {
            return Err(format!("more than {OPERATORS} operators in one tag"));
        }
        at += 1;
    }
    Ok("")
}

/// Returns true when this word begins here. Tera's grammar demands white space after the word, but not before it.
fn is_word(bytes: &[u8], at: usize, word: &[u8]) -> bool {
    bytes[at..].starts_with(word)
        && bytes
            .get(at + word.len())
            .is_some_and(u8::is_ascii_whitespace)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_is_nested_too_deeply_is_refused_wherever_it_hides() {
        let ifs = "{% if a %}".repeat(BLOCKS + 1);
        let brackets = format!("{{{{ {}", "(".repeat(BRACKETS + 1));
        let sum = format!("{{{{ 1{} }}}}", "+1".repeat(OPERATORS + 1));
        let logic = format!("{{% if a{} %}}", " and a".repeat(OPERATORS + 1));
        for bad in [&ifs, &brackets, &sum, &logic] {
            for before in [
                "",
                "{# }} #}",
                "{% raw %}{{ \"{% x %}{%- endraw -%}",
                "{{ \"}}{%\" }}",
                "{ { {{ '' }} é",
                "{%- raw -%}{{ `{% endraw %}",
                "{% raw %}{% endraw x %}{{ ` {%\u{a0}endraw %} {{ ` {% endraw %}",
            ] {
                check(&format!("{before}{bad}")).unwrap_err();
            }
        }
    }

    #[test]
    fn what_is_text_is_not_counted() {
        let brackets = "([".repeat(100) + &"+".repeat(1000);
        for good in [
            brackets.clone(),
            format!("{{# {{{{ {brackets} #}}"),
            format!("{{% raw %}}{{{{ {brackets} {{% endraw %}}"),
            format!("{{{{ \"{brackets}\" }}}}"),
            "{% if a %}x{% endif %}".repeat(1000),
            "{{ a + 1 }}".repeat(1000),
        ] {
            check(&good).unwrap();
        }
    }

    #[test]
    fn what_tera_will_refuse_ends_the_look() {
        for odd in [
            "{{",
            "{%",
            "{#",
            "{{ \"",
            "{% raw %}",
            "{% raw %}{%",
            "{%-",
            "{",
            "{% endif %}",
        ] {
            check(odd).unwrap();
        }
    }
}
