//! A folder with tiny models in it, and the `moli` command run beside it with a cache and a configuration of its own.

// Clippy takes helpers of tests for code outside tests.
#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use moli_testkit::{TinyFile, TinyModel};
use tempfile::TempDir;

/// What the models were trained for, in tokens.
pub(crate) const CONTEXT: u32 = 65_536;
pub(crate) const BOS: u32 = 256;
pub(crate) const IM_START: u32 = 257;
pub(crate) const IM_END: u32 = 258;

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A temporary folder that the command takes for its whole world.
pub(crate) struct World {
    folder: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file and gives its path as an argument.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        argument(&path)
    }

    /// A model with a chat template.
    pub(crate) fn chat_model(&self) -> String {
        self.model("chat.gguf", |file| file.meta("tokenizer.chat_template", TEMPLATE))
    }

    /// A model without one.
    pub(crate) fn base_model(&self) -> String {
        self.model("base.gguf", |_| {})
    }

    /// A model with changes of the test's own.
    pub(crate) fn model(&self, name: &str, change: impl FnOnce(&mut TinyFile)) -> String {
        let path = self.path(name);
        let mut file = tiny();
        change(&mut file);
        file.write(&path).unwrap();
        argument(&path)
    }

    /// The command, before it is run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moli"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("MOLI_HOME", self.path("cache"))
            .env("MOLI_CONFIG", self.path("config"))
            .env("MOLI_OFFLINE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the command with nothing on standard input.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::new(self.command(arguments).output().unwrap())
    }

    /// Runs the command with these bytes on standard input.
    pub(crate) fn run_with(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        // A command that fails early closes its end.
        let _ = child.stdin.take().unwrap().write_all(input);
        Ran::new(child.wait_with_output().unwrap())
    }
}

/// What a command left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn new(output: Output) -> Self {
        let ran = Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
        assert!(!ran.stderr.contains('\u{1b}') && !ran.stderr.contains("RUST_BACKTRACE"), "{ran:?}");
        ran
    }

    /// Standard output of a command that succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Standard output as JSON: one object on one line.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        let text = self.ok();
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Standard error of a command that failed with this code, printing nothing else and naming all of these.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, names: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert_eq!(self.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{self:?}");
        for name in names {
            assert!(self.stderr.contains(name), "{name:?} is not in {self:?}");
        }
        self.stderr
    }
}

fn argument(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A `llama` model of two layers and random weights; its 259 tokens are the bytes and three control tokens.
fn tiny() -> TinyFile {
    let model = TinyModel {
        hidden: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 128,
        context: CONTEXT as usize,
        ..TinyModel::new("llama")
    };
    let mut file = model.file().unwrap();
    file.meta("tokenizer.ggml.bos_token_id", BOS);
    file.meta("tokenizer.ggml.eos_token_id", IM_END);
    file.meta("tokenizer.ggml.add_bos_token", true);
    file
}
