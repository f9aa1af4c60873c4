//! Perplexity by llama.cpp's method, against llama.cpp's figures on the same texts.

use moli_engine::{Engine, perplexity};
use moli_text::EncodeOptions;

use crate::{Outcome, model_of};

const ENGLISH: &str = include_str!("../golden/text-en.txt");
const CHINESE: &str = include_str!("../golden/text-zh.txt");

/// The perplexity of one text, context 512.
struct Reference {
    text: &'static str,
    /// llama.cpp's.
    llama_cpp: f64,
    /// That of the same weights in exact arithmetic: dequantised, f32 throughout (`scripts/exact-perplexity.py`).
    exact: f64,
}

fn references(model: &str) -> [Reference; 2] {
    let [english, chinese] = match model {
        "smollm2-135m-instruct" => [(18.3746, 18.2312), (13.6612, 13.5747)],
        _ => [(14.9187, 14.8116), (60.4315, 59.5177)],
    };
    [(ENGLISH, english), (CHINESE, chinese)].map(|(text, (llama_cpp, exact))| Reference {
        text,
        llama_cpp,
        exact,
    })
}

/// Within 1% of exact arithmetic, and within 1% of llama.cpp wherever llama.cpp is itself that close to it.
///
/// It is not on the Chinese text with Gemma: 1.5% away on 510 scored tokens. There nothing that computes the file's weights
/// right can be within 1% of it.
pub(crate) fn within_1_percent(engine: &Engine, golden: &str) -> Outcome {
    let apart = |a: f64, b: f64| (a / b - 1.0).abs();
    for Reference { text, llama_cpp, exact } in references(model_of(golden)) {
        let options = EncodeOptions { add_special: true, parse_special: false };
        let ids = engine.tokenizer().encode(text, options).map_err(|error| error.to_string())?;
        let found = perplexity(engine, &ids, 512).map_err(|error| error.to_string())?.perplexity;
        println!("  perplexity {found:.4}, exact {exact:.4}, llama.cpp {llama_cpp:.4}");
        if apart(found, exact) > 0.01 {
            return Err(format!("perplexity {found:.4}, in exact arithmetic it is {exact:.4}"));
        }
        if apart(found, llama_cpp) > 0.01 && apart(llama_cpp, exact) <= 0.01 {
            return Err(format!("perplexity {found:.4}, llama.cpp's is {llama_cpp:.4}"));
        }
    }
    Ok(())
}
