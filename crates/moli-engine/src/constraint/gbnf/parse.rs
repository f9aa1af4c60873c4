//! From text to rules.

use std::collections::HashMap;

use super::{CharSet, KIND, Node, NodeId, Rules};
use crate::EngineError;
use crate::constraint::at_most;
use crate::constraint::compiler::invalid;

/// How deep groups may be nested.
const MAX_DEPTH: usize = 64;

/// Most references, sequences, choices and repetitions: the compiler recurses from one to the other.
const MAX_PARTS: usize = 10_000;

/// Most characters and classes.
const MAX_CHARACTERS: usize = 100_000;

/// Most times that something may be repeated, where there is a bound.
const MAX_REPEAT: u32 = 2_000;

pub(super) fn parse(text: &str) -> Result<Rules, EngineError> {
    let mut parser = Parser {
        rest: text,
        line: 1,
        column: 1,
        depth: 0,
        nodes: Vec::new(),
        characters: 0,
        names: HashMap::new(),
        rules: Vec::new(),
    };
    parser.space(true);
    while !parser.rest.is_empty() {
        parser.rule()?;
    }
    let mut bodies = Vec::with_capacity(parser.rules.len());
    for rule in &parser.rules {
        let Some(body) = rule.body else {
            let (line, column) = rule.place;
            let reason = format!("the rule {:?} is not defined", rule.name);
            return Err(EngineError::GrammarSyntax { kind: KIND, line, column, reason });
        };
        bodies.push(body);
    }
    let root = parser.names.get("root").and_then(|&rule| bodies.get(rule)).copied();
    let root = root.ok_or_else(|| invalid(KIND, "it has no rule \"root\""))?;
    Ok(Rules { nodes: parser.nodes, rules: bodies, root })
}

struct Rule<'a> {
    name: &'a str,
    body: Option<NodeId>,
    /// Line and column of where it is first named.
    place: (usize, usize),
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
    column: usize,
    depth: usize,
    nodes: Vec<Node>,
    /// How many of the nodes are of characters.
    characters: usize,
    names: HashMap<&'a str, usize>,
    rules: Vec<Rule<'a>>,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        if c == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(c)
    }

    fn skip(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.next();
        }
        found
    }

    fn error<T>(&self, reason: impl Into<String>) -> Result<T, EngineError> {
        self.error_at((self.line, self.column), reason)
    }

    fn error_at<T>(
        &self,
        (line, column): (usize, usize),
        reason: impl Into<String>,
    ) -> Result<T, EngineError> {
        Err(EngineError::GrammarSyntax { kind: KIND, line, column, reason: reason.into() })
    }

    fn node(&mut self, node: Node) -> Result<NodeId, EngineError> {
        if matches!(node, Node::Chars(_)) {
            self.characters += 1;
            at_most(KIND, "characters and classes", self.characters, MAX_CHARACTERS)?;
        }
        self.nodes.push(node);
        at_most(KIND, "parts", self.nodes.len() - self.characters, MAX_PARTS)?;
        Ok(self.nodes.len() - 1)
    }

    /// Skips blanks and comments, and line ends if they mean nothing here.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => {}
                '\r' | '\n' if lines => {}
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.next();
                    }
                    continue;
                }
                _ => return,
            }
            self.next();
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let end = self.rest.find(|c| !word(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.column += end;
        (!name.is_empty()).then_some(name)
    }

    fn rule_index(&mut self, name: &'a str, place: (usize, usize)) -> usize {
        let rules = &mut self.rules;
        *self.names.entry(name).or_insert_with(|| {
            rules.push(Rule { name, body: None, place });
            rules.len() - 1
        })
    }

    fn rule(&mut self) -> Result<(), EngineError> {
        let place = (self.line, self.column);
        let Some(name) = self.name() else { return self.error("a rule's name is expected") };
        self.space(false);
        let Some(rest) = self.rest.strip_prefix("::=") else { return self.error("\"::=\" is expected") };
        self.rest = rest;
        self.column += 3;
        self.space(true);
        let index = self.rule_index(name, place);
        let body = self.choice()?;
        match self.rules.get_mut(index) {
            Some(Rule { body: slot @ None, .. }) => *slot = Some(body),
            _ => return self.error_at(place, format!("the rule {name:?} is defined twice")),
        }
        if !matches!(self.peek(), None | Some('\r' | '\n')) {
            return self.error("the end of the line is expected");
        }
        self.space(true);
        Ok(())
    }

    fn choice(&mut self) -> Result<NodeId, EngineError> {
        let mut options = vec![self.sequence()?];
        loop {
            // Nothing but a further alternative begins with a bar, so it may stand on a line of its own.
            let (rest, line, column) = (self.rest, self.line, self.column);
            self.space(true);
            if !self.skip('|') {
                (self.rest, self.line, self.column) = (rest, line, column);
                break;
            }
            self.space(true);
            options.push(self.sequence()?);
        }
        match <[NodeId; 1]>::try_from(options) {
            Ok([only]) => Ok(only),
            Err(options) => self.node(Node::Choice(options)),
        }
    }

    fn sequence(&mut self) -> Result<NodeId, EngineError> {
        let mut items = Vec::new();
        loop {
            let node = match self.peek() {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.next();
                    self.node(Node::Chars(CharSet::all()))?
                }
                Some('(') => self.group()?,
                Some('<' | '!') => return self.error("tokens can't be named, only text"),
                Some(c) if c.is_ascii_alphanumeric() || c == '-' || c == '_' => {
                    let place = (self.line, self.column);
                    let name = self.name().unwrap_or_default();
                    let rule = self.rule_index(name, place);
                    self.node(Node::Rule(rule))?
                }
                _ => break,
            };
            items.push(self.repeats(node)?);
            self.space(self.depth > 0);
        }
        match <[NodeId; 1]>::try_from(items) {
            Ok([only]) => Ok(only),
            Err(items) => self.node(Node::Sequence(items)),
        }
    }

    fn group(&mut self) -> Result<NodeId, EngineError> {
        let open = (self.line, self.column);
        self.next();
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.error_at(open, format!("groups are nested deeper than {MAX_DEPTH}"));
        }
        self.space(true);
        let node = self.choice()?;
        self.space(true);
        self.depth -= 1;
        if !self.skip(')') {
            return self.error(format!("the group of line {}, column {} is not closed", open.0, open.1));
        }
        Ok(node)
    }

    /// The repetitions that follow an item, each of what is before it.
    fn repeats(&mut self, mut node: NodeId) -> Result<NodeId, EngineError> {
        for _ in 0..MAX_DEPTH {
            self.space(self.depth > 0);
            let (least, most) = match self.peek() {
                Some('{') => self.bounds()?,
                Some(sign @ ('*' | '+' | '?')) => {
                    self.next();
                    (u32::from(sign == '+'), (sign == '?').then_some(1))
                }
                _ => return Ok(node),
            };
            node = self.node(Node::Repeat { node, least, most })?;
        }
        self.error(format!("{MAX_DEPTH} repetitions of repetitions"))
    }

    /// `{m}`, `{m,}` or `{m,n}`.
    fn bounds(&mut self) -> Result<(u32, Option<u32>), EngineError> {
        let open = (self.line, self.column);
        self.next();
        self.space(false);
        let least = self.number()?;
        self.space(false);
        let mut most = Some(least);
        if self.skip(',') {
            self.space(false);
            most = if self.peek() == Some('}') { None } else { Some(self.number()?) };
            self.space(false);
        }
        if !self.skip('}') {
            return self.error("\"}\" is expected");
        }
        match most {
            Some(most) if most < least => {
                self.error_at(open, format!("at least {least} and at most {most} times is never"))
            }
            _ => Ok((least, most)),
        }
    }

    fn number(&mut self) -> Result<u32, EngineError> {
        let place = (self.line, self.column);
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.column += end;
        if digits.is_empty() {
            return self.error("a number is expected");
        }
        match digits.parse() {
            Ok(number) if number <= MAX_REPEAT => Ok(number),
            _ => self.error_at(place, format!("a repetition of {digits} is more than {MAX_REPEAT}")),
        }
    }

    fn literal(&mut self) -> Result<NodeId, EngineError> {
        let open = (self.line, self.column);
        self.next();
        let mut text = Vec::new();
        while !self.skip('"') {
            match self.peek() {
                None | Some('\n') => return self.error_at(open, "the text is not closed"),
                _ => {
                    let c = self.character()?;
                    text.push(self.node(Node::Chars(CharSet::one(c)))?);
                }
            }
        }
        match text.as_slice() {
            [one] => Ok(*one),
            _ => self.node(Node::Sequence(text)),
        }
    }

    fn class(&mut self) -> Result<NodeId, EngineError> {
        let open = (self.line, self.column);
        self.next();
        let negated = self.skip('^');
        let mut ranges = Vec::new();
        while !self.skip(']') {
            if matches!(self.peek(), None | Some('\n')) {
                return self.error_at(open, "the class is not closed");
            }
            let first = self.character()?;
            let mut last = first;
            if self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                self.next();
                last = self.character()?;
            }
            if last < first {
                return self.error(format!("the range from {first:?} to {last:?} is empty"));
            }
            ranges.push((first, last));
        }
        let set = CharSet::ranges(&ranges);
        let set = if negated { set.not() } else { set };
        if set.is_empty() {
            return self.error_at(open, "the class has no characters");
        }
        self.node(Node::Chars(set))
    }

    /// One character of a literal or a class, which may be escaped.
    fn character(&mut self) -> Result<char, EngineError> {
        let place = (self.line, self.column);
        let digits = match self.next() {
            None | Some('\n') => return self.error_at(place, "a character is expected"),
            Some('\\') => match self.next() {
                Some('n') => return Ok('\n'),
                Some('r') => return Ok('\r'),
                Some('t') => return Ok('\t'),
                Some(c @ ('\\' | '"' | '[' | ']' | '-' | '^' | '/')) => return Ok(c),
                Some('x') => 2,
                Some('u') => 4,
                Some('U') => 8,
                _ => return self.error_at(place, "no such escape"),
            },
            Some(c) => return Ok(c),
        };
        let code = self.rest.get(..digits).filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()));
        let c = code.and_then(|code| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
        let Some(c) = c else {
            return self.error_at(place, format!("{digits} hexadecimal digits of a character are expected"));
        };
        self.rest = self.rest.get(digits..).unwrap_or_default();
        self.column += digits;
        Ok(c)
    }
}
