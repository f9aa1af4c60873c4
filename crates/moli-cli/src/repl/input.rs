//! What a person types, before it means anything to a model: lines become commands or messages.

/// One complete entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A line of spaces, or nothing.
    Empty,
    /// Text for the model.
    Message(String),
    /// Something for this program.
    Command(Command),
}

/// A slash command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    /// New instructions; `None`: show the present ones.
    System(Option<String>),
    Save(String),
    Load(String),
    Reset,
    Stats,
    Quit,
    /// A known command that lacks its argument, with what it is called and what is missing.
    Incomplete(&'static str, &'static str),
    /// As it was typed.
    Unknown(String),
}

/// What `/help` prints.
pub(super) const HELP: &str = r#"  /system TEXT   tell the model how to behave; alone: show what it was told
  /save FILE     write the conversation to a file, and to FILE.kv what the model has computed of it
  /load FILE     go on with a saved conversation
  /reset         forget the conversation
  /stats         tokens, speed and how full the context is
  /quit          leave (also /bye, /exit, Ctrl-D)
  """            begin and end a message of several lines; or end a line with \
  Ctrl-C         stop the answer"#;

const QUOTES: &str = "\"\"\"";

/// The entry that the lines typed so far make, or `None` while it is not complete: three quotation marks begin and end a
/// block, a backslash at the end of a line goes on with the next one.
pub(super) fn parse(typed: &str) -> Option<Entry> {
    let begun = typed.trim_start();
    if let Some(block) = begun.strip_prefix(QUOTES) {
        return Some(message(block.trim_end().strip_suffix(QUOTES)?.trim_matches('\n')));
    }
    if begun.starts_with('/') && !begun.trim_end().contains('\n') {
        return Some(Entry::Command(command(begun.trim_end())));
    }
    if typed.ends_with('\\') {
        return None;
    }
    Some(message(&typed.replace("\\\n", "\n")))
}

fn message(text: &str) -> Entry {
    if text.trim().is_empty() { Entry::Empty } else { Entry::Message(text.to_owned()) }
}

fn command(line: &str) -> Command {
    let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let argument = Some(argument.trim()).filter(|a| !a.is_empty()).map(str::to_owned);
    match (name, argument) {
        ("/help" | "/?", _) => Command::Help,
        ("/system", text) => Command::System(text),
        ("/save", Some(file)) => Command::Save(file),
        ("/save", None) => Command::Incomplete("/save", "FILE"),
        ("/load", Some(file)) => Command::Load(file),
        ("/load", None) => Command::Incomplete("/load", "FILE"),
        ("/reset" | "/clear", None) => Command::Reset,
        ("/stats", None) => Command::Stats,
        ("/quit" | "/bye" | "/exit", None) => Command::Quit,
        _ => Command::Unknown(line.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Option<Entry> {
        Some(Entry::Message(text.to_owned()))
    }

    #[test]
    fn a_line_is_a_message() {
        assert_eq!(parse("hello"), said("hello"));
        assert_eq!(parse(" two words "), said(" two words "));
        assert_eq!([parse(""), parse("  ")], [Some(Entry::Empty), Some(Entry::Empty)]);
        // Pasted lines come at once.
        assert_eq!(parse("one\ntwo"), said("one\ntwo"));
        assert_eq!(parse("/path/one\n/path/two"), said("/path/one\n/path/two"));
    }

    #[test]
    fn a_backslash_goes_on() {
        assert_eq!(parse("one\\"), None);
        assert_eq!(parse("one\\\ntwo\\"), None);
        assert_eq!(parse("one\\\ntwo\\\nthree"), said("one\ntwo\nthree"));
        // What continues a message is text, whatever it begins with.
        assert_eq!(parse("see\\\n/help"), said("see\n/help"));
        assert_eq!(parse("\\\n"), Some(Entry::Empty));
    }

    #[test]
    fn quotes_make_a_block() {
        assert_eq!(parse("\"\"\""), None);
        assert_eq!(parse("\"\"\"one\n\n/two"), None);
        assert_eq!(parse("\"\"\"\none\n\n/two\n\"\"\""), said("one\n\n/two"));
        assert_eq!(parse("\"\"\"one\ntwo\"\"\" "), said("one\ntwo"));
        assert_eq!(parse("\"\"\"one line\"\"\""), said("one line"));
        assert_eq!(parse("\"\"\"\"\"\""), Some(Entry::Empty));
    }

    #[test]
    fn commands() {
        let expected = [
            ("/help", Command::Help),
            ("  /bye ", Command::Quit),
            ("/system be  brief", Command::System(Some("be  brief".to_owned()))),
            ("/system", Command::System(None)),
            ("/save my file.json", Command::Save("my file.json".to_owned())),
            ("/load", Command::Incomplete("/load", "FILE")),
            ("/reset", Command::Reset),
            ("/quit now", Command::Unknown("/quit now".to_owned())),
            ("/nonsense", Command::Unknown("/nonsense".to_owned())),
            ("/", Command::Unknown("/".to_owned())),
        ];
        for (line, command) in expected {
            assert_eq!(parse(line), Some(Entry::Command(command)), "{line}");
        }
    }
}
