//! Writes models of a megabyte for trying a server: `tiny.gguf` chats in noise, `tiny-thinking.gguf` thinks
//! before it does, `tiny-embedding.gguf` makes vectors.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use moli_format::TensorType;
use moli_testkit::{CHAT_TEMPLATE, TinyModel, thinking_template};

/// How the format says that a text's vector is the last token's.
const LAST_TOKEN: u32 = 3;
const EMBEDDINGS: &str = "token_embd.weight";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.as_slice() {
        [folder] => write(Path::new(folder)).map_err(|error| format!("{folder}: {error}")),
        _ => Err("usage: tiny FOLDER".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    let model = TinyModel::new("llama");
    let mut chat = model.file()?;
    chat.meta("tokenizer.chat_template", CHAT_TEMPLATE);
    // A token's embedding is its row of the output head too, so that noise likes to repeat itself: JSON may have any white
    // space between its parts, and an answer that has to be JSON would never come out of it.
    let mut embeddings = chat.tensor_data(EMBEDDINGS).ok_or("no embeddings")?.to_vec();
    let row = embeddings.len() / model.vocab();
    for byte in b"\t\n\r " {
        embeddings.chunks_mut(row).nth(usize::from(*byte)).ok_or("no such row")?.fill(0);
    }
    let dims = [model.hidden as u64, model.vocab() as u64];
    chat.tensor(EMBEDDINGS, TensorType::Q8_0, &dims, embeddings);
    chat.write(&folder.join("tiny.gguf"))?;
    chat.meta("tokenizer.chat_template", thinking_template().as_str());
    chat.write(&folder.join("tiny-thinking.gguf"))?;
    let mut embedding = TinyModel::new("qwen3").file()?;
    embedding.meta("qwen3.pooling_type", LAST_TOKEN);
    embedding.write(&folder.join("tiny-embedding.gguf"))?;
    Ok(())
}
