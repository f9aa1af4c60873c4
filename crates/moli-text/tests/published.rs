//! Published chat templates: the prompt is byte for byte what `transformers` makes of the same messages, and where it
//! refuses, so do we. `fixtures/templates/make.py` wrote the expected ones down.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::Fixture;
use moli_text::{ChatTemplate, Message, RenderOptions, Tool};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Tool>,
    #[serde(default = "yes")]
    add_generation_prompt: bool,
    #[serde(default)]
    extra: Map<String, Value>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct Expected {
    bos: String,
    eos: String,
    /// By the conversation's name; null where the template refuses it.
    expected: BTreeMap<String, Option<String>>,
}

#[test]
fn as_transformers_renders_them() {
    let folder = std::env::var_os("MOLI_TEMPLATE_FIXTURES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates"),
        PathBuf::from,
    );
    let read = |path: PathBuf| std::fs::read_to_string(&path).unwrap();
    let conversations: BTreeMap<String, Conversation> =
        serde_json::from_str(&read(folder.join("conversations.json"))).unwrap();
    let mut wrong = Vec::new();
    let mut templates: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    templates.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    templates.sort();
    assert!(templates.len() >= 12, "{} templates", templates.len());
    for path in templates {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let answers: Expected =
            serde_json::from_str(&read(folder.join("expected").join(format!("{name}.json")))).unwrap();
        let mut fixture = Fixture::byte_level();
        let bos = fixture.tokens.len() as u32;
        fixture = fixture.token(&answers.bos, 3).set("tokenizer.ggml.bos_token_id", bos);
        let eos = fixture.tokens.iter().position(|(token, _)| *token == answers.eos);
        if eos.is_none() {
            fixture = fixture.token(&answers.eos, 3);
        }
        fixture = fixture.set("tokenizer.ggml.eos_token_id", eos.map_or(bos + 1, |id| id as u32));
        let tokenizer = fixture.load().unwrap();
        let template = match ChatTemplate::new(&read(path)) {
            Ok(template) => template,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (what, expected) in &answers.expected {
            let chat = &conversations[what];
            let options = RenderOptions {
                add_generation_prompt: chat.add_generation_prompt,
                now: Some(951_782_400),
                tools: chat.tools.clone(),
                extra: chat.extra.clone(),
            };
            let rendered = template.render(&tokenizer, &chat.messages, &options);
            match (&rendered, expected) {
                (Ok(prompt), Some(expected)) if prompt.text() == expected => {}
                (Err(_), None) => {}
                (Ok(prompt), Some(expected)) => {
                    let same =
                        prompt.text().bytes().zip(expected.bytes()).take_while(|(a, b)| a == b).count();
                    let from = |text: &str| {
                        let bytes = &text.as_bytes()[same.saturating_sub(40)..(same + 80).min(text.len())];
                        String::from_utf8_lossy(bytes).into_owned()
                    };
                    wrong.push(format!(
                        "{name}, {what}: at byte {same}\n  is       {:?}\n  expected {:?}",
                        from(prompt.text()),
                        from(expected)
                    ));
                }
                (Ok(_), None) => wrong.push(format!("{name}, {what}: rendered, where transformers refuses")),
                (Err(error), Some(_)) => wrong.push(format!("{name}, {what}: {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
