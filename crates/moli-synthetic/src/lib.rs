//! Models in the shapes and quantisation mixtures of published ones, with random weights: what a benchmark reads, without a
//! download. Speed depends on shapes and formats and hardly on values, so these stand in for the real files wherever only
//! time is measured.
//!
//! - [`Synthetic`] is a model that can be made, in memory or as a file, the same bytes each time;
//! - [`SHAPES`] are the published shapes; any other comes from its `config.json`;
//! - [`Mixture`](moli_convert::Mixture) says which matrix is stored in which format.

mod error;
mod model;
mod shape;
mod tokenizer;
mod weights;

pub use error::SyntheticError;
pub use model::Synthetic;
pub use shape::SHAPES;
pub use tokenizer::byte_level;
pub use weights::stream_of;
