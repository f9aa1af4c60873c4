//! Models in the shapes and quantisation mixtures of published ones, with random weights: what a benchmark reads, without a
//! download. Speed depends on shapes and formats and hardly on values, so these stand in for the real files wherever only
//! time is measured.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use moli_format::{GgufWriter, TensorType};
use moli_kernels::KernelError;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::tiny::{byte_level, stream_of};

/// Weights that are quantised and drawn together: whole blocks of every format.
const UNIT: usize = 256;
/// Units of a format that are really quantised. Tensors draw from these, because quantising billions of weights one by one
/// takes minutes; a power of two, so that drawing is fair.
const POOL: usize = 4096;
/// Units that go to the file in one piece.
const CHUNK: usize = 1024;
/// Standard deviation of weights and biases, as models are usually initialised.
const DEVIATION: f32 = 0.02;

/// The dimensions of a published model and what its file says beside them.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// As it is asked for.
    pub name: &'static str,
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width inside the feed-forward network.
    pub ffn: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Whether the embeddings are the output head too.
    pub tied: bool,
    /// Context in tokens.
    pub context: usize,
    /// Base of the rotary embedding.
    pub rope_base: f32,
    /// Added to the mean square in RMS norm.
    pub norm_eps: f32,
    /// `tokenizer.ggml.pre`.
    pub pre: &'static str,
    /// Control tokens, at the end of the vocabulary.
    pub control: &'static [&'static str],
    /// Which of `control` begins and which ends a text.
    pub bos_eos: [usize; 2],
}

const QWEN2: Shape = Shape {
    name: "",
    architecture: "qwen2",
    hidden: 0,
    layers: 28,
    heads: 0,
    kv_heads: 0,
    ffn: 0,
    vocab: 151_936,
    tied: false,
    context: 32_768,
    rope_base: 1e6,
    norm_eps: 1e-6,
    pre: "qwen2",
    control: &["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    bos_eos: [0, 2],
};

/// The shapes that there are.
pub const SHAPES: [Shape; 5] = [
    Shape { name: "qwen2.5-0.5b", hidden: 896, layers: 24, heads: 14, kv_heads: 2, ffn: 4864, ..QWEN2 },
    Shape { name: "qwen2.5-1.5b", hidden: 1536, heads: 12, kv_heads: 2, ffn: 8960, ..QWEN2 },
    Shape { name: "qwen2.5-7b", hidden: 3584, heads: 28, kv_heads: 4, ffn: 18_944, vocab: 152_064, ..QWEN2 },
    Shape {
        name: "llama3-8b",
        architecture: "llama",
        hidden: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        ffn: 14_336,
        vocab: 128_256,
        tied: false,
        context: 8192,
        rope_base: 5e5,
        norm_eps: 1e-5,
        pre: "llama-bpe",
        control: &["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        bos_eos: [0, 1],
    },
    Shape {
        name: "smollm2-135m",
        architecture: "llama",
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        ffn: 1536,
        vocab: 49_152,
        tied: true,
        context: 8192,
        rope_base: 1e5,
        norm_eps: 1e-5,
        pre: "smollm",
        control: &["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        bos_eos: [1, 2],
    },
];

/// Which matrix is stored in which format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixture {
    /// All in one.
    Pure(TensorType),
    /// llama.cpp's Q4_K_M: Q4_K, with Q6_K for the output head and for half of the value and down projections.
    Q4KM,
}

impl Mixture {
    /// By llama.cpp's name (`q4_k_m`), or that of a single format (`q8_0`).
    pub fn named(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("q4_k_m") {
            return Some(Self::Q4KM);
        }
        moli_kernels::QUANTIZABLE
            .into_iter()
            .find(|ttype| ttype.name().eq_ignore_ascii_case(name))
            .map(Self::Pure)
    }

    /// The format of a matrix with rows of `cols`; `layer` only counts for tensors of a block.
    fn of(self, name: &str, layer: usize, cols: usize, shape: &Shape) -> TensorType {
        let head = if shape.tied { "token_embd.weight" } else { "output.weight" };
        let sensitive = name.ends_with("attn_v.weight") || name.ends_with("ffn_down.weight");
        let wanted = match self {
            Self::Pure(ttype) => ttype,
            Self::Q4KM if name == head || sensitive && more_bits(layer, shape.layers) => TensorType::Q6K,
            Self::Q4KM => TensorType::Q4K,
        };
        if cols.is_multiple_of(wanted.block_len()) {
            return wanted;
        }
        match wanted {
            TensorType::Q4K => TensorType::Q5_0,
            TensorType::Q5K => TensorType::Q5_1,
            TensorType::Q6K => TensorType::Q8_0,
            _ => TensorType::Q4_0,
        }
    }
}

/// llama.cpp's choice of the layers that get more bits: the first and the last eighth and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// A model to be written.
#[derive(Debug, Clone, Copy)]
pub struct Synthetic {
    /// Its dimensions.
    pub shape: Shape,
    /// Its formats.
    pub mixture: Mixture,
}

impl Synthetic {
    /// By the names of a shape and a mixture.
    ///
    /// # Errors
    /// One line with the names that there are.
    pub fn named(shape: &str, mixture: &str) -> Result<Self, String> {
        let found = SHAPES.into_iter().find(|known| known.name == shape);
        let names = || SHAPES.map(|known| known.name).join(", ");
        let shape = found.ok_or_else(|| format!("no shape {shape}; there are {}", names()))?;
        let types = || moli_kernels::QUANTIZABLE.map(|ttype| ttype.name().to_lowercase()).join(", ");
        let mixture = Mixture::named(mixture)
            .ok_or_else(|| format!("no mixture {mixture}; there are q4_k_m, {}", types()))?;
        Ok(Self { shape, mixture })
    }

    /// Writes the model, the same bytes each time.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.file()?.write_file(path)?)
    }

    fn file(&self) -> Result<GgufWriter, KernelError> {
        let mut writer = GgufWriter::new();
        self.metadata(&mut writer);
        self.tokenizer(&mut writer);
        self.tensors(&mut writer)?;
        Ok(writer)
    }

    fn metadata(&self, writer: &mut GgufWriter) {
        let shape = &self.shape;
        writer.meta("general.architecture", shape.architecture);
        writer.meta("general.name", format!("{} with random weights", shape.name));
        writer.meta("general.quantization_version", 2u32);
        let key = |suffix: &str| format!("{}.{suffix}", shape.architecture);
        for (suffix, value) in [
            ("block_count", shape.layers),
            ("context_length", shape.context),
            ("embedding_length", shape.hidden),
            ("feed_forward_length", shape.ffn),
            ("attention.head_count", shape.heads),
            ("attention.head_count_kv", shape.kv_heads),
            ("rope.dimension_count", shape.hidden / shape.heads),
            ("vocab_size", shape.vocab),
        ] {
            writer.meta(key(suffix), value as u32);
        }
        writer.meta(key("attention.layer_norm_rms_epsilon"), shape.norm_eps);
        writer.meta(key("rope.freq_base"), shape.rope_base);
    }

    /// A byte-level vocabulary of the real size: bytes, then all strings of two, three and four common characters as far as
    /// they are needed, each merged from the string before its last character and that character. So there are as many
    /// merges to load as in the real one, and English comes out in words' pieces.
    fn tokenizer(&self, writer: &mut GgufWriter) {
        let Shape { vocab, control, bos_eos: [bos, eos], pre, .. } = self.shape;
        let ordinary = vocab - control.len();
        let common: Vec<String> =
            " etaoinshrdlcumwfgypbvkjxqz".bytes().map(|b| byte_level(b).into()).collect();
        let mut tokens: Vec<String> = (0..=255).map(|byte| byte_level(byte).into()).collect();
        let mut merges = Vec::with_capacity(ordinary);
        // Strings that are still to be made longer: the single characters, then those made here in their order.
        let mut longer = common.clone();
        let mut next = 0;
        while tokens.len() < ordinary {
            let prefix = longer[next].clone();
            for last in common.iter().take(ordinary - tokens.len()) {
                merges.push(format!("{prefix} {last}"));
                tokens.push(format!("{prefix}{last}"));
                longer.push(format!("{prefix}{last}"));
            }
            next += 1;
        }
        let mut kinds = vec![1i32; tokens.len()];
        tokens.extend(control.iter().map(|&token| token.to_owned()));
        kinds.resize(tokens.len(), 3);
        writer.meta("tokenizer.ggml.model", "gpt2");
        writer.meta("tokenizer.ggml.pre", pre);
        writer.meta("tokenizer.ggml.tokens", tokens);
        writer.meta("tokenizer.ggml.token_type", kinds);
        writer.meta("tokenizer.ggml.merges", merges);
        writer.meta("tokenizer.ggml.bos_token_id", (ordinary + bos) as u32);
        writer.meta("tokenizer.ggml.eos_token_id", (ordinary + eos) as u32);
    }

    fn tensors(&self, writer: &mut GgufWriter) -> Result<(), KernelError> {
        let Shape { hidden, layers, heads, kv_heads, ffn, vocab, tied, .. } = self.shape;
        let kv = hidden / heads * kv_heads;
        let mut tensors = Tensors { writer, model: self, pools: HashMap::new() };
        tensors.matrix("token_embd.weight", 0, vocab, hidden)?;
        for layer in 0..layers {
            let name = |suffix: &str| format!("blk.{layer}.{suffix}");
            tensors.vector(&name("attn_norm.weight"), hidden);
            tensors.vector(&name("ffn_norm.weight"), hidden);
            for (suffix, rows, cols) in [
                ("attn_q.weight", hidden, hidden),
                ("attn_k.weight", kv, hidden),
                ("attn_v.weight", kv, hidden),
                ("attn_output.weight", hidden, hidden),
                ("ffn_gate.weight", ffn, hidden),
                ("ffn_up.weight", ffn, hidden),
                ("ffn_down.weight", hidden, ffn),
            ] {
                tensors.matrix(&name(suffix), layer, rows, cols)?;
            }
            if self.shape.architecture == "qwen2" {
                for (suffix, len) in [("attn_q.bias", hidden), ("attn_k.bias", kv), ("attn_v.bias", kv)] {
                    tensors.vector(&name(suffix), len);
                }
            }
        }
        tensors.vector("output_norm.weight", hidden);
        if !tied {
            tensors.matrix("output.weight", 0, vocab, hidden)?;
        }
        Ok(())
    }
}

/// Adds tensors to a file.
struct Tensors<'a> {
    writer: &'a mut GgufWriter,
    model: &'a Synthetic,
    /// [`POOL`] quantised units of each format that has been needed.
    pools: HashMap<TensorType, Arc<Vec<u8>>>,
}

impl Tensors<'_> {
    /// Units drawn at random. Rows may begin inside a unit, never inside a block.
    fn matrix(&mut self, name: &str, layer: usize, rows: usize, cols: usize) -> Result<(), KernelError> {
        let ttype = self.model.mixture.of(name, layer, cols, &self.model.shape);
        let pool = match self.pools.get(&ttype) {
            Some(pool) => Arc::clone(pool),
            None => {
                let pool = Arc::new(pool(ttype)?);
                self.pools.insert(ttype, Arc::clone(&pool));
                pool
            }
        };
        let (seed, units) = (stream_of(name), rows * cols / UNIT);
        self.writer
            .tensor_from(name, ttype, [cols as u64, rows as u64], move |out| draw(&pool, seed, units, out));
        Ok(())
    }

    /// Gains near 1, or biases.
    fn vector(&mut self, name: &str, len: usize) {
        let mean = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let mut random = ChaCha8Rng::seed_from_u64(stream_of(name));
        let data: Vec<u8> =
            (0..len).flat_map(|_| (mean + DEVIATION * normal(&mut random)).to_le_bytes()).collect();
        self.writer.tensor(name, TensorType::F32, [len as u64], data);
    }
}

fn pool(ttype: TensorType) -> Result<Vec<u8>, KernelError> {
    let mut random = ChaCha8Rng::seed_from_u64(stream_of(ttype.name()));
    let values: Vec<f32> = (0..POOL * UNIT).map(|_| DEVIATION * normal(&mut random)).collect();
    let mut bytes = Vec::new();
    moli_kernels::quantize(ttype, &values, &mut bytes)?;
    Ok(bytes)
}

fn draw(pool: &[u8], seed: u64, units: usize, out: &mut dyn Write) -> io::Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let unit = pool.len() / POOL;
    let mut chunk = Vec::with_capacity(CHUNK * unit);
    let mut left = units;
    while left > 0 {
        chunk.clear();
        for _ in 0..left.min(CHUNK) {
            let start = random.next_u32() as usize % POOL * unit;
            chunk.extend_from_slice(&pool[start..start + unit]);
        }
        out.write_all(&chunk)?;
        left -= left.min(CHUNK);
    }
    Ok(())
}

/// Nearly normal, with variance 1: the sum of eight uniform numbers, which is the same on every machine, as the logarithm of
/// the textbook's method is not.
fn normal(random: &mut ChaCha8Rng) -> f32 {
    let halves = |bits: u64| [bits, bits >> 16, bits >> 32, bits >> 48].map(|half| i64::from(half as u16));
    let sum: i64 = [random.next_u64(), random.next_u64()].into_iter().flat_map(halves).sum();
    let mean = 4 * 65_535;
    let deviation = 65_536.0 * (8.0f32 / 12.0).sqrt();
    (sum - mean) as f32 / deviation
}

#[cfg(test)]
mod tests {
    use super::*;
    use moli_format::{Bytes, Gguf};
    use std::collections::HashSet;

    fn small(mixture: &str) -> Gguf {
        let mut model = Synthetic::named("llama3-8b", mixture).unwrap();
        model.shape = Shape { hidden: 320, layers: 8, heads: 10, ffn: 512, vocab: 2560, ..model.shape };
        model.shape.kv_heads = 2;
        let mut file = Vec::new();
        model.file().unwrap().write(&mut file).unwrap();
        let mut again = Vec::new();
        model.file().unwrap().write(&mut again).unwrap();
        assert!(file == again);
        Gguf::from_bytes(&Bytes::from_vec(file)).unwrap()
    }

    /// The published Q4_K_M files have 491 and 1117 MB; their vocabularies hold longer strings.
    #[test]
    fn the_size_is_that_of_the_published_file() {
        for (shape, published) in [("qwen2.5-0.5b", 491e6), ("qwen2.5-1.5b", 1117e6)] {
            let model = Synthetic::named(shape, "q4_k_m").unwrap();
            let mut counted = Counter(0);
            model.file().unwrap().write(&mut counted).unwrap();
            let ratio = counted.0 as f64 / published;
            assert!((0.99..1.01).contains(&ratio), "{shape}: {ratio}");
        }
    }

    struct Counter(usize);

    impl Write for Counter {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0 += data.len();
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_mixture_has_weights_of_the_right_size() {
        for name in ["q4_k_m"].into_iter().chain(moli_kernels::QUANTIZABLE.map(TensorType::name)) {
            let gguf = small(name);
            for tensor in gguf.tensors().filter(|tensor| tensor.dims.len() == 2) {
                let mut values = vec![0.0; tensor.elements()];
                moli_kernels::dequantize(tensor.ttype, &tensor.data, &mut values).unwrap();
                let square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
                let deviation = square.sqrt() / DEVIATION;
                // Two bits a weight lose some of it.
                assert!((0.9..1.1).contains(&deviation), "{name} {}: {deviation}", tensor.name);
            }
        }
    }

    #[test]
    fn the_mixture_is_that_of_llama_cpp() {
        let gguf = small("q4_k_m");
        let ttype = |name: &str| gguf.tensor(name).unwrap().ttype;
        // Rows of 320 are no whole super-blocks, rows of 512 are.
        assert_eq!(ttype("token_embd.weight"), TensorType::Q5_0);
        assert_eq!(ttype("output.weight"), TensorType::Q8_0);
        let more: Vec<usize> = (0..8)
            .filter(|layer| ttype(&format!("blk.{layer}.ffn_down.weight")) == TensorType::Q6K)
            .collect();
        assert_eq!(more, [0, 3, 6, 7]);
        assert_eq!(ttype("blk.3.attn_v.weight"), TensorType::Q8_0);
        assert_eq!(ttype("blk.4.attn_v.weight"), TensorType::Q5_0);
        assert_eq!(ttype("blk.4.ffn_down.weight"), TensorType::Q4K);
    }

    #[test]
    fn every_token_is_a_byte_a_merge_or_control() {
        let gguf = small("q4_0");
        let tokens: Vec<&str> = gguf.metadata().strings("tokenizer.ggml.tokens").unwrap().iter().collect();
        let merges = gguf.metadata().strings("tokenizer.ggml.merges").unwrap();
        assert_eq!(tokens.len(), 2560);
        assert_eq!(tokens.len(), 256 + merges.len() + 3);
        let mut known: HashSet<String> = tokens[..256].iter().map(|&token| token.to_owned()).collect();
        for (token, merge) in tokens[256..].iter().zip(merges.iter()) {
            let (left, right) = merge.split_once(' ').unwrap();
            assert!(known.contains(left) && known.contains(right), "{merge}");
            assert_eq!(*token, format!("{left}{right}"));
            assert!(known.insert((*token).to_owned()), "{token} twice");
        }
        assert_eq!(gguf.metadata().u64("tokenizer.ggml.bos_token_id").unwrap(), 2557);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        assert!(Synthetic::named("gpt-5", "q4_0").unwrap_err().contains("llama3-8b"));
        assert!(Synthetic::named("llama3-8b", "q9_0").unwrap_err().contains("q4_k_m, f32"));
    }
}
