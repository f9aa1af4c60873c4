//! A model as a Hugging Face folder and as a GGUF file again.

use std::path::Path;
use std::sync::Arc;

use moli_convert::{Dtype, Options, Output, to_folder, to_gguf};
use moli_engine::{Engine, EngineOptions, KvType};
use moli_format::{Gguf, ReadMode};
use moli_text::EncodeOptions;

use crate::golden::Golden;
use crate::{Outcome, load_path};

/// Logits, ids, chat template and the tokens that end an answer are the same in all three forms. In half precision: a third
/// form of the same size, and no rounding between them.
pub(crate) fn a_folder_and_back(model: &Path, golden: &str) -> Outcome {
    let golden = Golden::parse(golden)?;
    let place = tempfile::tempdir().map_err(|error| error.to_string())?;
    let [file, folder, again] = ["half.gguf", "folder", "again.gguf"].map(|name| place.path().join(name));
    let convert = |from: &Path, to: &Path, dtype| -> Outcome {
        let text = |error: &dyn std::fmt::Display| format!("{} to {}: {error}", from.display(), to.display());
        let gguf = Gguf::open(from, ReadMode::Map).map_err(|error| text(&error))?;
        let output = Output::new(to, &[from], false).map_err(|error| text(&error))?;
        let convert = if to.extension().is_some() { to_gguf } else { to_folder };
        let options = Options { dtype, tokenizer: true };
        let report = convert(&gguf, &output, &options, Arc::new(|_| true)).map_err(|error| text(&error))?;
        if report.notes.is_empty() { Ok(()) } else { Err(text(&report.notes.join("; "))) }
    };
    convert(model, &file, Some(Dtype::F16))?;
    convert(&file, &folder, None)?;
    convert(&folder, &again, None)?;
    let [expected, found, back] = [&file, &folder, &again].map(|path| Form::of(path, &golden));
    let expected = expected?;
    for (name, form) in [("the folder", found?), ("the file again", back?)] {
        for (what, same) in [
            ("ids", form.ids == expected.ids),
            ("logits", form.logits == expected.logits),
            ("the chat template", form.template == expected.template),
            ("the ends of an answer", form.ends == expected.ends),
        ] {
            if !same {
                return Err(format!("{what} of {name} are others"));
            }
        }
    }
    if expected.logits.len() < 1_000_000 {
        return Err(format!("only {} logits were compared", expected.logits.len()));
    }
    Ok(())
}

/// What is compared.
struct Form {
    ids: Vec<Vec<u32>>,
    /// The bits of the logits behind each token of the recorded prompts.
    logits: Vec<u32>,
    template: Option<String>,
    ends: Vec<u32>,
}

impl Form {
    fn of(path: &Path, golden: &Golden) -> Result<Self, String> {
        let options = EngineOptions { kv_type: Some(KvType::F32), ..EngineOptions::default() };
        let engine = load_path(path, &options)?;
        let encode = |text: &String| {
            let options = EncodeOptions { add_special: true, parse_special: true };
            engine.tokenizer().encode(text, options).map_err(|error| error.to_string())
        };
        let ids = golden.tokenize.iter().map(|case| encode(&case.text)).collect::<Result<_, _>>()?;
        let mut logits = Vec::new();
        for case in golden.greedy.iter().chain(&golden.chat) {
            logits.extend(bits(&engine, &encode(&case.prompt)?)?);
        }
        let template = engine.chat_template().map_err(|error| error.to_string())?;
        Ok(Self {
            ids,
            logits,
            template: template.map(|template| template.source().to_owned()),
            ends: engine.tokenizer().end_of_generation_ids().collect(),
        })
    }
}

fn bits(engine: &Engine, ids: &[u32]) -> Result<Vec<u32>, String> {
    let places: Vec<usize> = (0..ids.len()).collect();
    let rows = engine.session().score(ids, &places).map_err(|error| error.to_string())?;
    Ok(rows.iter().flatten().map(|logit| logit.to_bits()).collect())
}
