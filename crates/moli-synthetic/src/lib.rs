//! Models in the shapes and quantisation mixtures of published ones, with random weights: what a benchmark reads, without a
//! download.
