//! A look at a template's shape before it is compiled.
//!
//! The compiler limits nested brackets and blocks by itself, but a chain of operators is a deep tree too (`1+1+1+…`
//! nests once for each sign), and walking or freeing that tree takes stack. So the number of operators within one tag
//! is limited, as is the number of branches of one `if`.

use crate::TextError;

/// The most operators, dots, pipes, brackets and words within one tag. Real templates stay below a few dozen.
const MAX_TAG_PARTS: usize = 2_000;
/// The most `elif` branches of a template.
const MAX_BRANCHES: usize = 500;

pub(crate) fn check(source: &str) -> Result<(), TextError> {
    let mut rest = source;
    let mut branches = 0;
    while let Some(at) = ["{{", "{%", "{#"].into_iter().filter_map(|open| rest.find(open)).min() {
        let tag = rest.get(at + 2..).unwrap_or("");
        if rest.get(at..at + 2) == Some("{#") {
            rest = after(tag, "#}");
            continue;
        }
        let (parts, length) = measure(tag);
        if parts > MAX_TAG_PARTS {
            return Err(TextError::TemplateSyntax { message: "an expression nests too deep".to_owned() });
        }
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        if name.starts_with("elif") {
            branches += 1;
            if branches > MAX_BRANCHES {
                return Err(TextError::TemplateSyntax { message: "too many branches".to_owned() });
            }
        }
        rest = tag.get(length..).unwrap_or("");
        if rest.len() < tag.len() && name.starts_with("raw") {
            rest = after(rest, "endraw");
        }
    }
    Ok(())
}

fn after<'a>(text: &'a str, end: &str) -> &'a str {
    text.find(end).and_then(|at| text.get(at + end.len()..)).unwrap_or("")
}

/// Counts the parts of a tag that can nest, up to its end, and its length in bytes. Text in quotes doesn't count.
fn measure(tag: &str) -> (usize, usize) {
    let (mut parts, mut quote, mut escaped, mut word, mut braces) = (0, None, false, false, 0usize);
    let bytes = tag.as_bytes();
    for (at, &byte) in bytes.iter().enumerate() {
        if let Some(end) = quote {
            if escaped {
                escaped = false;
            } else if byte == b'\\' {
                escaped = true;
            } else if byte == end {
                quote = None;
            }
            continue;
        }
        let next = bytes.get(at + 1).copied();
        match byte {
            b'\'' | b'"' => quote = Some(byte),
            b'%' | b'}' if next == Some(b'}') && braces == 0 => return (parts, at + 2),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | 0x80.. => {
                parts += usize::from(!word);
                word = true;
                continue;
            }
            b' ' | b'\t' | b'\r' | b'\n' | b',' => {}
            b'{' => (parts, braces) = (parts + 1, braces + 1),
            b'}' => braces = braces.saturating_sub(1),
            _ => parts += 1,
        }
        word = false;
    }
    (parts, bytes.len())
}
