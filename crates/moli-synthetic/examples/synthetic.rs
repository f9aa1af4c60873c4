//! Writes a model with random weights in the shape and the formats of a published one.

use std::path::Path;
use std::process::ExitCode;

use moli_synthetic::Synthetic;

const USAGE: &str =
    "usage: synthetic SHAPE:MIXTURE OUT.gguf, for example: synthetic qwen2.5-0.5b:q4_k_m model.gguf";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.as_slice() {
        [asked, out] => Synthetic::parse(asked)
            .and_then(|model| model.write(Path::new(out)))
            .map_err(|error| error.to_string()),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
