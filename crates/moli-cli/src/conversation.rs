//! A conversation and its file: JSON with a version, written beside its place and renamed into it.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use moli_text::Message;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

/// What the `format` field of our files says.
const FORMAT: &str = "moli-conversation";
/// The version that this build writes and the only one that it reads.
const VERSION: u32 = 1;
/// Longer files are not read.
const MAX_BYTES: u64 = 64 << 20;
/// The roles that a file may hold; what a template makes of their order is its own affair.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// What was said so far: at most one system message, first, then the turns.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    messages: Vec<Message>,
}

impl Conversation {
    /// All messages, for the chat template.
    pub(crate) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The instructions to the model, if any were given.
    pub(crate) fn system(&self) -> Option<&str> {
        self.messages.first().filter(|m| m.role == "system").map(|m| m.content.as_str())
    }

    /// Messages but for the system message.
    pub(crate) fn turns(&self) -> usize {
        self.messages.len() - usize::from(self.system().is_some())
    }

    /// Sets or replaces the instructions; what was said stays.
    pub(crate) fn set_system(&mut self, text: &str) {
        let message = Message::new("system", text);
        match self.messages.first_mut().filter(|m| m.role == "system") {
            Some(first) => *first = message,
            None => self.messages.insert(0, message),
        }
    }

    pub(crate) fn push_user(&mut self, text: &str) {
        self.messages.push(Message::new("user", text));
    }

    /// The answer to the latest message, which is taken back where there is none.
    pub(crate) fn push_answer(&mut self, text: &str) {
        if text.is_empty() {
            return self.pop();
        }
        self.messages.push(Message::new("assistant", text));
    }

    /// Takes the latest message back.
    pub(crate) fn pop(&mut self) {
        self.messages.pop();
    }

    /// Forgets the turns and keeps the instructions.
    pub(crate) fn clear(&mut self) {
        let keep = usize::from(self.system().is_some());
        self.messages.truncate(keep);
    }

    /// Writes the file beside its place, then renames it: there is never half a conversation. A file that holds
    /// something else is not overwritten.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        match path.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
            Ok(_) => {
                if Self::load(path).is_err() {
                    bail!("{} exists and is not a conversation: choose another name", path.display());
                }
            }
        }
        let saved = SavedRef { format: FORMAT, version: VERSION, messages: &self.messages };
        write_beside(path, &saved).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads what [`Conversation::save`] wrote.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        if path.is_dir() {
            bail!("{shown} is a folder, not a conversation");
        }
        let mut text = String::new();
        let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
        let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
        read.with_context(|| format!("cannot read {shown}"))?;
        if text.len() as u64 > MAX_BYTES {
            bail!("{shown} is longer than {} MiB", MAX_BYTES >> 20);
        }
        Self::parse(&text)
            .with_context(|| format!("{shown} is not a conversation that this version can read"))
    }

    fn parse(text: &str) -> Result<Self> {
        // The version first: the fields of another one may be others.
        let header: Header = serde_json::from_str(text)?;
        if header.format != FORMAT {
            bail!("its format is not `{FORMAT}`");
        }
        if header.version != VERSION {
            bail!("its version is {}, and this build reads version {VERSION}", header.version);
        }
        let saved: Saved = serde_json::from_str(text)?;
        for (index, message) in saved.messages.iter().enumerate() {
            let role = message.role.as_str();
            if !ROLES.contains(&role) || (role == "system" && index > 0) {
                return Err(anyhow!("message {} has the role {role:?}", index + 1));
            }
        }
        Ok(Self { messages: saved.messages })
    }
}

#[derive(Deserialize)]
struct Header {
    format: String,
    version: u32,
}

#[derive(Deserialize)]
struct Saved {
    messages: Vec<Message>,
}

#[derive(Serialize)]
struct SavedRef<'a> {
    format: &'a str,
    version: u32,
    messages: &'a [Message],
}

fn write_beside(path: &Path, value: &impl Serialize) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(folder)?;
    let mut writer = BufWriter::new(file.as_file_mut());
    serde_json::to_writer_pretty(&mut writer, value)?;
    writer.write_all(b"\n")?;
    writer.flush()?;
    drop(writer);
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_message_is_first_and_alone() {
        let mut conversation = Conversation::default();
        conversation.push_user("hi");
        conversation.set_system("one");
        conversation.set_system("two");
        assert_eq!(conversation.system(), Some("two"));
        assert_eq!((conversation.messages().len(), conversation.turns()), (2, 1));
        conversation.clear();
        assert_eq!((conversation.system(), conversation.turns()), (Some("two"), 0));
    }

    #[test]
    fn a_saved_conversation_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.json");
        let mut conversation = Conversation::default();
        conversation.set_system("be brief");
        conversation.push_user("line one\nline \"two\" 中文");
        conversation.push_answer("yes");
        conversation.push_user("what?");
        conversation.push_answer("");
        conversation.save(&path).unwrap();
        conversation.push_user("more");
        conversation.save(&path).unwrap();
        let loaded = Conversation::load(&path).unwrap();
        assert_eq!(loaded.messages().len(), 4);
        assert_eq!(loaded.messages()[1].content, "line one\nline \"two\" 中文");
        // Nothing else is left in the folder.
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn other_files_are_neither_read_nor_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "my notes").unwrap();
        let error = Conversation::default().save(&path).unwrap_err();
        assert!(error.to_string().contains("not a conversation"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "my notes");
        assert!(Conversation::load(&path).is_err());
        assert!(Conversation::load(folder.path()).is_err());
        assert!(Conversation::load(&folder.path().join("none")).is_err());
    }

    #[test]
    fn damaged_files_are_refused_in_words() {
        let cases = [
            ("", "EOF while parsing"),
            (r#"{"format":"other","version":1,"messages":[]}"#, "its format is not"),
            (r#"{"format":"moli-conversation","version":2}"#, "its version is 2"),
            (r#"{"format":"moli-conversation","version":1}"#, "missing field `messages`"),
            (
                r#"{"format":"moli-conversation","version":1,"messages":[{"role":"root","content":""}]}"#,
                "message 1 has the role \"root\"",
            ),
        ];
        for (text, expected) in cases {
            let error = Conversation::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
