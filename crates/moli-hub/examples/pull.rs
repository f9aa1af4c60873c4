//! Pulls a model and says where it is: `cargo run --release -p moli-hub --example pull -- NAME`.

use std::time::Instant;

use moli_hub::{HubError, Phase, Progress};

struct Lines(Option<Phase>);

impl Progress for Lines {
    fn update(&mut self, phase: Phase, file: &str, done: u64, total: Option<u64>) {
        if self.0.replace(phase) != Some(phase) || Some(done) == total {
            eprintln!("{phase:?} {file}: {done} bytes");
        }
    }

    fn message(&mut self, text: &str) {
        eprintln!("{text}");
    }
}

fn main() -> Result<(), HubError> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let start = Instant::now();
    let path = moli_hub::resolve(&model, &mut Lines(None))?;
    println!("{} in {:.1} s", path.display(), start.elapsed().as_secs_f64());
    Ok(())
}
