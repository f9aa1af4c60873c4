//! What the benches ask alike.

use clap::Args;

/// Options of every bench that has others beside Moli.
#[derive(Args)]
pub(crate) struct Shared {
    /// Times that everything is measured.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Threads of every model.
    #[arg(long, default_value_t = moli_kernels::default_threads())]
    pub(crate) threads: usize,
    /// A llama-bench beside Moli, with a name where there are several.
    #[arg(long, value_name = "[NAME=]PATH")]
    pub(crate) llama_bench: Vec<String>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}
