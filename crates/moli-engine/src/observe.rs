//! What a model's weights are multiplied with while it reads a text.

use moli_format::Gguf;
use moli_model::{ActivationSquares, Batch, LoadOptions, pages_of};

use crate::EngineError;

/// Reads a text in pieces of `options.context` tokens that know nothing of each other, and adds up the squares of what the model's
/// weights are multiplied with. What is left over is not read.
///
/// `ids` are the text's, `bos` what each piece begins with in place of its first token. `progress` gets the pieces that are done and
/// that there are; `false` ends the work, and what was read until then is the result, with the number of pieces.
///
/// # Errors
/// [`EngineError::TextTooShort`] for less than a piece, and whatever loading and computing say.
pub fn observe(
    gguf: &Gguf,
    ids: &[u32],
    bos: Option<u32>,
    options: &LoadOptions,
    mut progress: impl FnMut(usize, usize) -> bool,
) -> Result<(ActivationSquares, usize), EngineError> {
    let context = options.context.max(1);
    if ids.len() < context {
        return Err(EngineError::TextTooShort { tokens: ids.len(), needed: context });
    }
    let squares = ActivationSquares::new(gguf);
    let mut runtime = moli_model::load_observed(gguf, options, &squares)?;
    let pages: Vec<u32> = (0..pages_of(context) as u32).collect();
    let all = ids.len() / context;
    let mut tokens = Vec::with_capacity(context);
    for (done, piece) in ids.chunks_exact(context).enumerate() {
        if !progress(done, all) {
            return Ok((squares, done));
        }
        tokens.clear();
        tokens.extend_from_slice(piece);
        if let (Some(first), Some(bos)) = (tokens.first_mut(), bos) {
            *first = bos;
        }
        let mut position = 0;
        for tokens in tokens.chunks(runtime.max_rows()) {
            let positions: Vec<u32> = (position..).take(tokens.len()).collect();
            position += tokens.len() as u32;
            let sequences = vec![0; tokens.len()];
            runtime.forward(&Batch {
                tokens,
                positions: &positions,
                sequences: &sequences,
                types: &[],
                tables: &[&pages],
                adapters: &[],
                recurrent: &[],
                outputs: &[],
                states: &[],
            })?;
        }
    }
    progress(all, all);
    Ok((squares, all))
}
