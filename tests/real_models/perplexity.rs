//! Perplexity by llama.cpp's method, against llama.cpp's figures on the same texts.

use moli_engine::{Engine, perplexity};
use moli_text::EncodeOptions;

use crate::{Outcome, model_of};

const ENGLISH: &str = include_str!("../golden/text-en.txt");
const CHINESE: &str = include_str!("../golden/text-zh.txt");

/// llama.cpp's perplexity of the English and the Chinese text, context 512.
fn reference(model: &str) -> [f64; 2] {
    match model {
        "smollm2-135m-instruct" => [18.3746, 13.6612],
        _ => [14.9187, 60.4315],
    }
}

pub fn within_1_percent(engine: &Engine, golden: &str) -> Outcome {
    for (text, expected) in [ENGLISH, CHINESE].into_iter().zip(reference(model_of(golden))) {
        let options = EncodeOptions { add_special: true, parse_special: false };
        let ids = engine.tokenizer().encode(text, options).map_err(|error| error.to_string())?;
        let found = perplexity(engine, &ids, 512).map_err(|error| error.to_string())?.perplexity;
        println!("  perplexity {found:.4}, llama.cpp {expected:.4}");
        if (found / expected - 1.0).abs() > 0.01 {
            return Err(format!("perplexity {found:.4}, llama.cpp's is {expected:.4}"));
        }
    }
    Ok(())
}
