//! What the tests and benches of several crates share: real models from the catalogue, and tiny ones made on the spot.

mod cuda;
mod tiny;

use std::path::PathBuf;

pub use cuda::{mock_cuda, mock_cuda_folder};
pub use tiny::{CHAT_TEMPLATE, CONTROL_TOKENS, TinyFile, TinyModel, thinking_template};

/// Whether `MOLI_TEST_MODELS=off` asks to leave the tests on real models out.
pub fn real_models_are_off() -> bool {
    std::env::var_os("MOLI_TEST_MODELS").is_some_and(|value| value == "off")
}

/// The file of a catalogue model, pulled into the cache the first time.
///
/// # Errors
/// One line that names the model, the reason and the way around.
pub fn real_model(name: &str) -> Result<PathBuf, String> {
    moli_hub::resolve(name, &mut moli_hub::Quiet).map_err(|error| {
        format!("the test model {name} can't be had ({error}); MOLI_TEST_MODELS=off leaves its tests out")
    })
}
