//! What people call a test (`pp512`, `b8 tg128 @ d4096`), and names that can be shown.

use std::fmt;

use crate::report::{Case, Test, Through};

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let depth = match *self {
            Self::Prefill { tokens, depth } => {
                write!(f, "pp{tokens}")?;
                depth
            }
            Self::Decode { tokens, depth, batch } => {
                if batch != 1 {
                    write!(f, "b{batch} ")?;
                }
                write!(f, "tg{tokens}")?;
                depth
            }
            Self::EndToEnd { through, prompt, tokens, clients } => {
                if clients != 1 {
                    write!(f, "c{clients} ")?;
                }
                return write!(f, "pp{prompt}+tg{tokens} {through}");
            }
        };
        if depth == 0 { Ok(()) } else { write!(f, " @ d{depth}") }
    }
}

impl fmt::Display for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Engine => "engine",
            Self::Server => "server",
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, work, threads, kv_type, context } = self;
        write!(f, "{model} {work}, threads {threads}, kv {kv_type}, context {context}")
    }
}

/// Text without the characters that move a cursor.
pub(crate) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            control if control.is_control() => printable.extend(control.escape_default()),
            other => printable.push(other),
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_called_as_people_call_them() {
        let decode = |batch, depth| Test::Decode { tokens: 128, depth, batch }.to_string();
        assert_eq!(Test::Prefill { tokens: 512, depth: 0 }.to_string(), "pp512");
        assert_eq!(Test::Prefill { tokens: 512, depth: 4096 }.to_string(), "pp512 @ d4096");
        assert_eq!([decode(1, 0), decode(8, 4096)], ["tg128", "b8 tg128 @ d4096"]);
        let through = Through::Server;
        let test = |clients| Test::EndToEnd { through, prompt: 64, tokens: 32, clients }.to_string();
        assert_eq!([test(1), test(4)], ["pp64+tg32 server", "c4 pp64+tg32 server"]);
    }
}
