//! Adapters as a person names them.

use clap::Args;
use moli_engine::AdapterFile;

/// The adapters that everything is computed with.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Model and memory")]
pub(crate) struct LoraArgs {
    /// Compute with this LoRA adapter, a GGUF file or a folder of peft's, scaled by SCALE, 1 unless given (repeatable)
    #[arg(long = "lora", value_name = "FILE[=SCALE]", value_parser = scaled)]
    files: Vec<(String, f32)>,
}

impl LoraArgs {
    /// As an engine loads them: each is called by its path.
    pub(crate) fn adapters(&self) -> Vec<AdapterFile> {
        let of = |(path, scale): &(String, f32)| AdapterFile {
            name: path.clone(),
            path: path.into(),
            scale: *scale,
        };
        self.files.iter().map(of).collect()
    }
}

/// Parses `FILE[=SCALE]`: what is behind the last `=` is a scale if it is a number.
pub(crate) fn scaled(text: &str) -> Result<(String, f32), String> {
    let (path, scale) = match text.rsplit_once('=').map(|(path, scale)| (path, scale.parse::<f32>())) {
        Some((path, Ok(scale))) => (path, scale),
        _ => (text, 1.0),
    };
    if path.is_empty() {
        return Err("FILE or FILE=SCALE is needed".to_owned());
    }
    if !(scale.is_finite() && scale >= 0.0) {
        return Err(format!("the scale is {scale}, but must be finite and at least 0"));
    }
    Ok((path.to_owned(), scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_scales() {
        assert_eq!(scaled("a.gguf"), Ok(("a.gguf".to_owned(), 1.0)));
        assert_eq!(scaled("a=b.gguf=0.5"), Ok(("a=b.gguf".to_owned(), 0.5)));
        assert_eq!(scaled("a=b.gguf"), Ok(("a=b.gguf".to_owned(), 1.0)));
        assert_eq!(scaled("folder/=0"), Ok(("folder/".to_owned(), 0.0)));
        for text in ["", "=1", "a=-1", "a=nan", "a=inf", "a=1e40"] {
            assert!(scaled(text).is_err(), "{text}");
        }
    }
}
