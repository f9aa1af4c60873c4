//! What a model is told from others by.

use std::fmt::Write as _;

use moli_format::{Gguf, Tensor};
use moli_model::Config;
use moli_text::Tokenizer;
use sha2::{Digest as _, Sha256};

/// A sha256.
pub(crate) type Digest = [u8; 32];

/// As people write a digest.
pub(crate) fn hex(digest: &Digest) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes at the beginning, in the middle and at the end of a tensor.
const SAMPLE: usize = 4096;

/// The sha256 of a model's configuration, its vocabulary, and of each tensor's name, type, shape and 12 KiB of its bytes.
///
/// Gigabytes of weights are thus told apart by a few megabytes. Another model has other weights almost everywhere; a file in
/// which somebody has changed a few bytes on purpose may go unnoticed.
pub(crate) fn fingerprint(config: &Config, tokenizer: &Tokenizer, weights: &[Tensor]) -> Digest {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| add_sized(&mut hash, bytes);
    add(format!("{config:?}").as_bytes());
    for id in 0..tokenizer.vocab_size() as u32 {
        add(&tokenizer.token_bytes(id).unwrap_or_default());
    }
    weights.iter().for_each(|tensor| add_tensor(tensor, &mut add));
    hash.finalize().into()
}

/// The sha256, in hexadecimal, of each tensor's name, type, shape and 12 KiB of its bytes: what tells a file's weights from
/// others' where nothing else of it is loaded.
pub fn weights_fingerprint(gguf: &Gguf) -> String {
    let mut hash = Sha256::new();
    gguf.tensors().for_each(|tensor| add_tensor(tensor, &mut |bytes| add_sized(&mut hash, bytes)));
    hex(&hash.finalize().into())
}

/// Bytes with their length, so that what ends where is part of it.
fn add_sized(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn add_tensor(tensor: &Tensor, add: &mut impl FnMut(&[u8])) {
    add(tensor.name.as_bytes());
    add(tensor.ttype.name().as_bytes());
    tensor.dims.iter().for_each(|dim| add(&dim.to_le_bytes()));
    let data = tensor.data.as_slice();
    let last = data.len().saturating_sub(SAMPLE);
    for start in [0, last / 2, last] {
        add(data.get(start..data.len().min(start + SAMPLE)).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use moli_format::{Bytes, TensorType};

    use super::*;
    use crate::testing::{config, tokenizer};

    #[test]
    fn every_part_counts() {
        let tensor = |name: &str, dims: &[u64], data: Vec<u8>| Tensor {
            name: name.to_owned(),
            ttype: TensorType::F32,
            dims: dims.to_vec(),
            data: Bytes::from_vec(data),
        };
        let of = |config: &Config, weights: &[Tensor]| fingerprint(config, &tokenizer(), weights);
        let small = config(300, 64);
        let data = vec![7; 5 * SAMPLE];
        let weights = [tensor("a", &[5, 1024], data.clone())];
        let all = [
            of(&small, &[]),
            of(&Config { norm_eps: 1e-3, ..small.clone() }, &[]),
            of(&small, &weights),
            of(&small, &[tensor("b", &[5, 1024], data.clone())]),
            of(&small, &[tensor("a", &[1024, 5], data.clone())]),
            of(&small, &[weights[0].clone(), tensor("b", &[5, 1024], data.clone())]),
        ];
        for (index, digest) in all.iter().enumerate() {
            assert!(!all[..index].contains(digest), "{index}");
        }
        for at in [0, SAMPLE - 1, 2 * SAMPLE, 3 * SAMPLE - 1, 4 * SAMPLE, 5 * SAMPLE - 1] {
            let mut changed = data.clone();
            changed[at] ^= 1;
            assert_ne!(of(&small, &[tensor("a", &[5, 1024], changed)]), of(&small, &weights), "{at}");
        }
        assert_eq!(of(&small.clone(), &weights.clone()), of(&small, &weights));
        assert_eq!(hex(&all[0]).len(), 64);
    }
}
