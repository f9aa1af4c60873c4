//! A conversation on a terminal.

mod input;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use moli_engine::{Engine, GenerateParams, Session, Summary};
use moli_hub::HubConfig;
use rustyline::completion::Completer;
use rustyline::config::{Behavior, Config};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Editor, Helper};

use crate::cli::Exit;
use crate::conversation::Conversation;
use crate::failure;
use crate::output::{Answers, StdoutError, escape, note};
use crate::reply::{reply, stats};
use crate::saved;
use input::{Command, Entry, HELP};

/// Entries that the history keeps.
const HISTORY: usize = 1000;

/// What a conversation begins with.
pub(crate) struct Options {
    pub(crate) params: GenerateParams,
    pub(crate) system: Option<String>,
    /// Where the conversation is read from, if it is there, and saved at the end.
    pub(crate) session: Option<PathBuf>,
    /// Each entry is continued as it stands, without a template and without what came before.
    pub(crate) raw: bool,
    /// Numbers after each answer.
    pub(crate) stats: bool,
}

/// Talks until the person leaves.
pub(crate) fn run(engine: &Engine, options: Options) -> Result<Exit> {
    let mut lines = Lines::open()?;
    let (mut conversation, session) = saved::load_or_begin(engine, options.session.as_deref())?;
    if let Some(system) = &options.system {
        conversation.set_system(system);
    }
    if conversation.turns() > 0 {
        note!("going on after {} messages", conversation.turns());
    }
    let mut talk = Talk { engine, session, conversation, latest: None, answers: Answers::new(), options };
    note!("{} (/help: commands, Ctrl-D: leave)", escape(&engine.description()));
    loop {
        let entry = match lines.next()? {
            Next::Entry(entry) => entry,
            Next::Leave(exit) => return talk.leave(exit),
        };
        let done = match entry {
            Entry::Empty => Ok(()),
            Entry::Command(Command::Quit) => return talk.leave(Exit::Done),
            Entry::Command(command) => talk.command(command),
            Entry::Message(text) => talk.message(&text),
        };
        if let Err(error) = done {
            // A terminal that has gone ends the conversation; everything else the person may put right.
            if error.is::<StdoutError>() {
                return Err(error);
            }
            failure::tell(&error);
        }
    }
}

struct Talk<'a> {
    engine: &'a Engine,
    session: Session,
    conversation: Conversation,
    latest: Option<Summary>,
    answers: Answers,
    options: Options,
}

impl Talk<'_> {
    fn leave(&self, exit: Exit) -> Result<Exit> {
        if let Some(file) = &self.options.session {
            saved::save(&self.conversation, &self.session, file)?;
        }
        Ok(exit)
    }

    /// Answers a message. When that fails, the conversation is what it was before.
    fn message(&mut self, text: &str) -> Result<()> {
        if self.options.raw {
            let ids = self.engine.encode(text)?;
            return self.answer(&ids).map(drop);
        }
        self.conversation.push_user(text);
        let answered = self.engine.encode_chat(self.conversation.messages());
        let answered = answered.map_err(anyhow::Error::from).and_then(|ids| self.answer(&ids));
        match answered {
            Ok(answer) => self.conversation.push_answer(&answer),
            Err(error) => {
                self.conversation.pop();
                return Err(error);
            }
        }
        Ok(())
    }

    fn answer(&mut self, ids: &[u32]) -> Result<String> {
        let Self { session, answers, options, .. } = self;
        let replied = reply(session, ids, &options.params, |text| answers.stream(text));
        self.answers.end_answer()?;
        let reply = replied?;
        if reply.was_cancelled() {
            note!("(stopped)");
        } else if matches!(reply.summary.finish_reason, moli_engine::FinishReason::Context) {
            note!(
                "the context of {} tokens is full: /reset begins anew, or leave and come back with a larger -c",
                self.engine.context()
            );
        }
        if self.options.stats {
            note!("{}", stats(&reply.summary));
        }
        self.latest = Some(reply.summary);
        Ok(reply.text)
    }

    fn command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Help => note!("{HELP}"),
            Command::System(Some(_)) if self.options.raw => {
                note!("instructions need a chat template, which --raw and base models do without");
            }
            Command::System(Some(text)) => {
                self.conversation.set_system(&text);
                note!("instructions for the answers from here on");
            }
            Command::System(None) => match self.conversation.system() {
                Some(text) => note!("{}", escape(text)),
                None => note!("no instructions; /system TEXT gives some"),
            },
            Command::Save(file) => {
                let path = expand_home(&file);
                let saved = saved::save(&self.conversation, &self.session, &path)?;
                note!("saved {} messages to {}", self.conversation.messages().len(), escape(&file));
                let (beside, size) = (saved::beside(Path::new(&file)), saved.bytes as f64 / 1e6);
                note!(
                    "and what the model has computed of {} tokens to {} ({size:.1} MB)",
                    saved.cached_tokens,
                    escape(&beside.to_string_lossy())
                );
            }
            Command::Load(file) => {
                (self.conversation, self.session) = saved::load(self.engine, &expand_home(&file))?;
                note!("loaded {} messages from {}", self.conversation.messages().len(), escape(&file));
            }
            Command::Reset => {
                self.conversation.clear();
                self.session.reset();
                self.latest = None;
                note!("the conversation is forgotten");
            }
            Command::Stats => {
                if let Some(summary) = &self.latest {
                    note!("{}", stats(summary));
                }
                let (held, context) = (self.session.tokens().len(), self.engine.context());
                note!("context: {held} of {context} tokens, {} messages", self.conversation.turns());
            }
            Command::Incomplete(name, missing) => note!("{name} needs {missing}"),
            Command::Unknown(text) => {
                note!("there is no command {}; /help lists them", escape(&text));
            }
            Command::Quit => {}
        }
        Ok(())
    }
}

/// What comes next.
enum Next {
    Entry(Entry),
    Leave(Exit),
}

/// Keeps the editor in one entry until its lines are complete.
struct WholeEntries;

impl Validator for WholeEntries {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let complete = input::parse(context.input()).is_some();
        Ok(if complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Helper for WholeEntries {}
impl Highlighter for WholeEntries {}
impl Hinter for WholeEntries {
    type Hint = String;
}
impl Completer for WholeEntries {
    type Candidate = String;
}

/// The editor of the line and its history.
struct Lines {
    editor: Editor<WholeEntries, DefaultHistory>,
    history: Option<PathBuf>,
}

impl Lines {
    fn open() -> Result<Self> {
        let config = Config::builder().max_history_size(HISTORY).and_then(|c| c.history_ignore_dups(true));
        // When the answers go into a file, the questions still belong on the terminal.
        let behavior = if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = config.context("cannot set up the line editor")?.behavior(behavior).build();
        let mut editor = Editor::with_config(config).context("cannot set up the line editor")?;
        editor.set_helper(Some(WholeEntries));
        let history = history_file();
        if let Some(path) = &history {
            // The first time there is none; one that cannot be read is only less convenient.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    fn next(&mut self) -> Result<Next> {
        let mut interrupted = false;
        loop {
            match self.editor.readline(">>> ") {
                Ok(typed) => {
                    let Some(entry) = input::parse(&typed) else { continue };
                    if entry != Entry::Empty {
                        self.remember(&typed);
                    }
                    return Ok(Next::Entry(entry));
                }
                Err(ReadlineError::Interrupted) if interrupted => return Ok(Next::Leave(Exit::Interrupted)),
                Err(ReadlineError::Interrupted) => {
                    interrupted = true;
                    note!("(Ctrl-C again or Ctrl-D leaves)");
                }
                Err(ReadlineError::Eof) => return Ok(Next::Leave(Exit::Done)),
                Err(error) => return Err(error).context("cannot read the terminal"),
            }
        }
    }

    /// Adds to the history and its file at once, so that nothing is lost however the process ends.
    fn remember(&mut self, typed: &str) {
        let added = self.editor.add_history_entry(typed).unwrap_or(false);
        if let Some(path) = self.history.as_ref().filter(|_| added) {
            let _ = self.editor.append_history(path);
        }
    }
}

/// Where the history is kept: in the configuration folder, which is made when it is not there.
fn history_file() -> Option<PathBuf> {
    let folder = HubConfig::from_env().ok()?.config_dir;
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

/// `~/` as a shell would read it.
fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => Path::new(path).to_owned(),
    }
}
