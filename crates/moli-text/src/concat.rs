//! A bound for the operator `~`.
//!
//! `a ~ b` writes both sides as text before anything is paid for, and a list of a few words can repeat a long text
//! without end. The engine has no hook there, so the source is rewritten before it is compiled: each operand that
//! stands beside a `~` goes through a filter that writes lists and maps within the budget and leaves other values as
//! they are. `a ~ b` becomes `(a)|FILTER ~ (b)|FILTER`; lines stay where they were.
//!
//! An operand of `~` ends where an operator that binds less, a comma, a bracket or a keyword stands.

/// The filter's name. Filters can't be redefined by a template.
pub(crate) const FILTER: &str = "_text";
const CLOSE: &str = ")|_text";

pub(crate) fn bound(source: &str) -> String {
    let mut edits = Vec::new();
    let mut at = 0;
    while let Some(tag) = next_tag(source, at) {
        if source.get(tag..tag + 2) == Some("{#") {
            at = find(source, tag + 2, "#}").map_or(source.len(), |end| end + 2);
            continue;
        }
        let statement = source.get(tag..tag + 2) == Some("{%");
        at = Tag::new(source, tag + 2, statement, &mut edits).scan();
        if statement && name(source, tag) == "raw" {
            at = after_raw(source, at);
        }
    }
    edits.sort_by_key(|&(position, _)| position);
    let mut out = String::with_capacity(source.len() + 4 * edits.len());
    let mut done = 0;
    for (position, text) in edits {
        out.push_str(source.get(done..position).unwrap_or(""));
        out.push_str(text);
        done = position;
    }
    out.push_str(source.get(done..).unwrap_or(""));
    out
}

fn find(source: &str, from: usize, what: &str) -> Option<usize> {
    source.get(from..)?.find(what).map(|at| from + at)
}

fn next_tag(source: &str, from: usize) -> Option<usize> {
    let pairs = source.as_bytes().get(from..)?.windows(2);
    pairs.into_iter().position(|pair| matches!(pair, b"{{" | b"{%" | b"{#")).map(|at| from + at)
}

/// The first word of the tag at a position.
fn name(source: &str, tag: usize) -> &str {
    let inner = source.get(tag + 2..).unwrap_or("");
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_ascii_start();
    inner.get(..inner.bytes().take_while(|&byte| is_word(byte)).count()).unwrap_or("")
}

/// The position of the `{% endraw %}` behind a position: between the two, nothing is a tag.
fn after_raw(source: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(tag) = find(source, at, "{%") {
        let inner = source.get(tag + 2..).unwrap_or("");
        let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_ascii_start();
        let ends = inner.strip_prefix("endraw").is_some_and(|after| {
            let after = after.trim_ascii_start();
            after.strip_prefix(['-', '+']).unwrap_or(after).starts_with("%}")
        });
        if ends {
            return tag;
        }
        at = tag + 2;
    }
    source.len()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// What is read of an operand, at one level of brackets.
#[derive(Clone, Copy, Default)]
struct Operand {
    /// Its first byte, once there is one.
    start: Option<usize>,
    /// Behind its last byte.
    end: usize,
    /// A `~` stands before it.
    behind: bool,
}

/// What the last token was, where it matters for the next.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    /// A value's end: a minus is binary, a keyword a keyword.
    Value,
    /// An operator: a minus is unary.
    Operator,
    /// A dot or a pipe: a word is a name.
    Name,
    /// `is` or `is not`: a word is a test's name.
    Test,
}

struct Tag<'a> {
    source: &'a str,
    at: usize,
    first: bool,
    levels: Vec<Operand>,
    last: Last,
    edits: &'a mut Vec<(usize, &'static str)>,
}

impl<'a> Tag<'a> {
    fn new(source: &'a str, at: usize, statement: bool, edits: &'a mut Vec<(usize, &'static str)>) -> Self {
        Self { source, at, first: statement, levels: vec![Operand::default()], last: Last::Operator, edits }
    }

    /// Ends the operand of this level; a `~` may stand behind it.
    fn close(&mut self, tilde: bool) {
        let Some(operand) = self.levels.last_mut() else { return };
        if let Some(start) = operand.start.filter(|_| operand.behind || tilde) {
            self.edits.push((start, "("));
            self.edits.push((operand.end, CLOSE));
        }
        *operand = Operand { behind: tilde, ..Operand::default() };
        self.last = Last::Operator;
    }

    /// The bytes up to a position belong to the operand of this level.
    fn take(&mut self, end: usize, last: Last) {
        if let Some(operand) = self.levels.last_mut() {
            operand.start.get_or_insert(self.at);
            operand.end = end;
        }
        (self.at, self.last) = (end, last);
    }

    /// Reads the tag to its end: the position behind it.
    fn scan(mut self) -> usize {
        let bytes = self.source.as_bytes();
        if matches!(bytes.get(self.at), Some(b'-' | b'+')) {
            self.at += 1;
        }
        while let Some(&byte) = bytes.get(self.at) {
            let next = bytes.get(self.at + 1).copied();
            match byte {
                byte if is_space(byte) => self.at += 1,
                b'\'' | b'"' => {
                    let end = string_end(bytes, self.at);
                    self.take(end, Last::Value);
                }
                byte if is_word(byte) => self.word(),
                b'%' | b'}' if next == Some(b'}') && self.levels.len() == 1 => {
                    self.close(false);
                    return self.at + 2;
                }
                b'(' | b'[' | b'{' => {
                    self.take(self.at + 1, Last::Operator);
                    self.levels.push(Operand::default());
                }
                b')' | b']' | b'}' => {
                    self.close(false);
                    if self.levels.len() > 1 {
                        self.levels.pop();
                    }
                    self.take(self.at + 1, Last::Value);
                }
                b'~' => {
                    self.close(true);
                    self.at += 1;
                }
                b'.' | b'|' => self.take(self.at + 1, Last::Name),
                b'*' | b'/' | b'%' if self.last == Last::Value => self.take(self.at + 1, Last::Operator),
                // The second character of `**` or `//`, or a sign.
                b'*' | b'/' | b'-' if self.last == Last::Operator => {
                    let unary = byte == b'-' || self.levels.last().is_some_and(|level| level.start.is_some());
                    if unary { self.take(self.at + 1, Last::Operator) } else { self.at += 1 }
                }
                _ => {
                    self.close(false);
                    self.at += 1;
                }
            }
            self.first &= is_space(byte);
        }
        self.close(false);
        bytes.len()
    }

    fn word(&mut self) {
        let bytes = self.source.as_bytes();
        let rest = bytes.get(self.at..).unwrap_or(&[]);
        let mut end = self.at + rest.iter().take_while(|&&byte| is_word(byte)).count();
        let word = self.source.get(self.at..end).unwrap_or("");
        // The sign of an exponent.
        if word.starts_with(|c: char| c.is_ascii_digit())
            && word.ends_with(['e', 'E'])
            && matches!(bytes.get(end), Some(b'-' | b'+'))
        {
            end += 1;
        }
        let keyword = match self.last {
            Last::Name => false,
            Last::Test => {
                let last = if word == "not" { Last::Test } else { Last::Value };
                return self.take(end, last);
            }
            Last::Value if word == "is" => return self.take(end, Last::Test),
            Last::Value => matches!(word, "and" | "or" | "not" | "in" | "if" | "else" | "recursive"),
            Last::Operator => self.first || matches!(word, "not" | "in"),
        };
        if keyword {
            self.close(false);
            self.at = end;
        } else {
            self.take(end, Last::Value);
        }
    }
}

/// Behind the closing quote of the string at a position.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let quote = bytes.get(start).copied();
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at).copied() {
        if byte == b'\\' {
            at += 1;
        } else if Some(byte) == quote {
            return at + 1;
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::bound;

    #[test]
    fn operands_of_concatenations() {
        for (source, expected) in [
            ("a ~ b {{ a }} ~", "a ~ b {{ a }} ~"),
            ("{{ a ~ b }}", "{{ (a)|_text ~ (b)|_text }}"),
            (
                "{{- a.b('~')[0] | f ~ \"}}~\" ~ c -}}",
                "{{- (a.b('~')[0] | f)|_text ~ (\"}}~\")|_text ~ (c)|_text -}}",
            ),
            ("{{ x + a * 2 ~ -b + c }}", "{{ x + (a * 2)|_text ~ (-b)|_text + c }}"),
            (
                "{% set x = [a ~ b, c] ~ {'k': d ~ e} %}",
                "{% set x = ([(a)|_text ~ (b)|_text, c])|_text ~ ({'k': (d)|_text ~ (e)|_text})|_text %}",
            ),
            ("{% if a ~ b is not defined and c %}", "{% if (a)|_text ~ (b is not defined)|_text and c %}"),
            (
                "{% for x in a ~ b if c not in d ~ e recursive %}",
                "{% for x in (a)|_text ~ (b)|_text if c not in (d)|_text ~ (e)|_text recursive %}",
            ),
            ("{{ f(*a, k=b ~ 1e-5 ** -2) }}", "{{ f(*a, k=(b)|_text ~ (1e-5 ** -2)|_text) }}"),
            (
                "{{ a ~ b if c else d ~ e.if }}",
                "{{ (a)|_text ~ (b)|_text if c else (d)|_text ~ (e.if)|_text }}",
            ),
            (
                "{# {{ ' #}{% raw %} endraw {{ ' {% endraw %}{{ a ~ b }}",
                "{# {{ ' #}{% raw %} endraw {{ ' {% endraw %}{{ (a)|_text ~ (b)|_text }}",
            ),
            ("{{ a ~ ", "{{ (a)|_text ~ "),
        ] {
            assert_eq!(bound(source), expected);
        }
    }
}
