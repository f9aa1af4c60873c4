//! What a model's weights are multiplied with, for quantisers: an error in a weight counts as much as the squares of what meets it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use moli_format::{Gguf, Tensor};
use moli_kernels::Matrix;

/// Per matrix of a model's blocks and per column, the sum of the squares of the activations that it was multiplied with.
///
/// A product is known by where its weights lie in the file, so a model computes with it as without; matrices that are made while
/// the model is loaded (the halves of latent attention) are not known.
#[derive(Debug, Clone)]
pub struct ActivationSquares {
    tensors: Arc<Mutex<BTreeMap<usize, Squares>>>,
}

/// Of one tensor. A tensor of experts has a matrix for each.
#[derive(Debug, Clone)]
pub struct Squares {
    /// The tensor's name.
    pub name: String,
    /// `[matrices, cols]`.
    pub sums: Vec<f64>,
    /// `[matrices]`: rows of activations that the sums are of.
    pub rows: Vec<u64>,
    cols: usize,
    /// Bytes of one matrix.
    matrix: usize,
}

impl ActivationSquares {
    /// For the matrices of a model's blocks.
    #[must_use]
    pub fn new(gguf: &Gguf) -> Self {
        let of = |tensor: &Tensor| {
            let name = tensor.name.as_str();
            let in_block = name.starts_with("blk.") && name.ends_with(".weight");
            let matrices =
                tensor.dims.iter().skip(2).try_fold(1_usize, |n, &dim| n.checked_mul(dim as usize))?;
            let matrix = tensor.data.len().checked_div(matrices)?;
            let here = in_block && tensor.dims.len() >= 2 && matrix > 0;
            here.then(|| {
                let squares = Squares {
                    name: name.to_owned(),
                    sums: vec![0.0; matrices * tensor.cols()],
                    rows: vec![0; matrices],
                    cols: tensor.cols(),
                    matrix,
                };
                (tensor.data.as_ptr().addr(), squares)
            })
        };
        Self { tensors: Arc::new(Mutex::new(gguf.tensors().filter_map(of).collect())) }
    }

    /// What was seen, by name; tensors that no product used have no rows. Experts in tensors of their own (`blk.0.ffn_up.7.weight`)
    /// are told under the name that they have in one (`blk.0.ffn_up_exps.weight`).
    #[must_use]
    pub fn get(&self) -> Vec<Squares> {
        let tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: BTreeMap<String, BTreeMap<usize, Squares>> = BTreeMap::new();
        for squares in tensors.values() {
            let (name, expert) = expert_of(&squares.name).unwrap_or_else(|| (squares.name.clone(), 0));
            all.entry(name).or_default().insert(expert, squares.clone());
        }
        let join = |(name, experts): (String, BTreeMap<usize, Squares>)| {
            let mut experts = experts.into_values();
            let mut joined = Squares { name, ..experts.next()? };
            experts.for_each(|mut expert| {
                joined.sums.append(&mut expert.sums);
                joined.rows.append(&mut expert.rows);
            });
            Some(joined)
        };
        all.into_iter().filter_map(join).collect()
    }

    /// Adds the rows of `x`, `[rows, weights.cols()]`.
    pub(crate) fn add(&self, weights: &Matrix, x: &[f32]) {
        let mut tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        let at = weights.address();
        let Some((start, squares)) = tensors.range_mut(..=at).next_back() else { return };
        let offset = at - start;
        // What begins inside a matrix (K in a fused QKV) sees what the matrix's first part sees.
        if squares.cols != weights.cols() || !offset.is_multiple_of(squares.matrix) {
            return;
        }
        let matrix = offset / squares.matrix;
        let Some(sums) = squares.sums.chunks_exact_mut(squares.cols).nth(matrix) else { return };
        for row in x.chunks_exact(squares.cols) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        squares.rows[matrix] += (x.len() / squares.cols) as u64;
    }
}

/// The name of the tensor that all of an expert's kind are in, and the expert.
fn expert_of(name: &str) -> Option<(String, usize)> {
    let (stem, expert) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    Some((format!("{stem}_exps.weight"), expert.parse().ok()?))
}
