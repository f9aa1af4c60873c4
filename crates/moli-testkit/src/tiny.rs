//! Models of a few hundred kilobytes with random weights and a byte-level vocabulary, in any architecture and format.

use std::path::Path;

use moli_format::{FormatError, GgufWriter, TensorType, Value};
use moli_kernels::KernelError;
use moli_synthetic::{byte_level, stream_of};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A tiny model: the shape of a real one, every dimension small, weights drawn from a seed.
#[derive(Debug, Clone)]
pub struct TinyModel {
    /// One of [`ARCHITECTURES`](Self::ARCHITECTURES).
    pub architecture: &'static str,
    /// Type of the matrices.
    pub matrix: TensorType,
    /// Type of the embeddings, which are also the output head.
    pub embedding: TensorType,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; of the layers with global attention of gemma4 half of theirs.
    pub head_dim: usize,
    /// Width inside the feed-forward network.
    pub ffn: usize,
    /// Experts of each layer (qwen3moe), or of every other (gemma4); they are as wide as the network of others.
    pub experts: usize,
    /// Experts that a token goes through.
    pub experts_used: usize,
    /// Context in the metadata, in tokens.
    pub context: usize,
    /// Sliding window (gemma3, gemma3n, gemma4), in tokens.
    pub window: usize,
    /// Taps of the convolutions (lfm2, qwen35).
    pub taps: usize,
    /// Heads of keys and of values, and elements of a key and of a value, of a layer's state (qwen35).
    pub state: [usize; 4],
    /// Where the weights come from.
    pub seed: u64,
}

/// A model file's metadata and tensors, to be changed before it is written.
#[derive(Debug, Clone, Default)]
pub struct TinyFile {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, TensorType, Vec<u64>, Vec<u8>)>,
}

impl TinyFile {
    /// Sets a key.
    pub fn meta(&mut self, key: &str, value: impl Into<Value>) {
        self.remove(key);
        self.metadata.push((key.to_owned(), value.into()));
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(name, _)| name != key);
    }

    /// Sets a tensor; `dims[0]` is the contiguous dimension.
    pub fn tensor(&mut self, name: &str, ttype: TensorType, dims: &[u64], data: Vec<u8>) {
        self.tensors.retain(|(other, ..)| other != name);
        self.tensors.push((name.to_owned(), ttype, dims.to_vec(), data));
    }

    /// The bytes of a tensor.
    pub fn tensor_data(&self, name: &str) -> Option<&[u8]> {
        self.tensors.iter().find(|(other, ..)| other == name).map(|(.., data)| data.as_slice())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it would not be readable or can't be written.
    pub fn write(&self, path: &Path) -> Result<(), FormatError> {
        let mut writer = GgufWriter::new();
        for (key, value) in &self.metadata {
            writer.meta(key, value.clone());
        }
        for (name, ttype, dims, data) in &self.tensors {
            writer.tensor(name, *ttype, dims.as_slice(), data.clone());
        }
        writer.write_file(path)
    }
}

/// A chat template, ChatML with tools in the manner of Hermes; [`TinyModel`] has none of its own.
pub const CHAT_TEMPLATE: &str = "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>\n\
    {\"name\": …, \"arguments\": …} inside <tool_call></tool_call><|im_end|>\n{% endif %}\
    {% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}\
    {% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The same of a model that thinks, unless it is told not to.
pub fn thinking_template() -> String {
    let thought = "<|im_start|>assistant\n<think>\n\
        {% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}";
    let end = "<|im_start|>assistant\n{% endif %}";
    CHAT_TEMPLATE.strip_suffix(end).unwrap_or(CHAT_TEMPLATE).to_owned() + thought
}

/// Control tokens behind the 256 bytes: end of text, start and end of a message.
pub const CONTROL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

impl TinyModel {
    /// Those that it can be.
    pub const ARCHITECTURES: [&str; 9] =
        ["llama", "qwen2", "qwen3", "qwen3moe", "gemma3", "gemma3n", "gemma4", "lfm2", "qwen35"];
    /// Streams beside each other of gemma3n.
    const STREAMS: usize = 4;
    /// Those whose layers take turns between attention and a state, attention first.
    pub const RECURRENT: [&str; 2] = ["lfm2", "qwen35"];

    /// A model of the architecture with Q8_0 weights; 256 columns, so that every format fits.
    pub fn new(architecture: &'static str) -> Self {
        Self {
            architecture,
            matrix: TensorType::Q8_0,
            embedding: TensorType::Q8_0,
            layers: 2,
            hidden: 256,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            ffn: 512,
            experts: 4,
            experts_used: 2,
            context: 2048,
            window: 24,
            taps: 3,
            state: [2, 4, 32, 64],
            seed: 1,
        }
    }

    /// Tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        256 + CONTROL_TOKENS.len()
    }

    /// The whole file, ready to be written; a test may add to it or damage it.
    ///
    /// # Errors
    /// When the dimensions don't fit the formats.
    pub fn file(&self) -> Result<TinyFile, KernelError> {
        let mut file = self.metadata();
        for (name, ttype, rows, cols) in self.tensors() {
            let data = self.weights(&name, ttype, rows, cols)?;
            let (cols, rows, experts) = (cols as u64, rows as u64, self.experts as u64);
            let dims = match rows {
                1 => vec![cols],
                _ if name.ends_with("_exps.weight") => vec![cols, rows / experts, experts],
                _ if name.starts_with("altup_") => vec![cols, cols, rows / cols],
                _ => vec![cols, rows],
            };
            file.tensor(&name, ttype, &dims, data);
        }
        Ok(file)
    }

    /// Writes the model.
    ///
    /// # Errors
    /// When the dimensions don't fit the formats or the file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.file()?.write(path)?)
    }

    fn metadata(&self) -> TinyFile {
        let mut file = TinyFile::default();
        let key = |suffix: &str| format!("{}.{suffix}", self.architecture);
        file.meta("general.architecture", self.architecture);
        file.meta("general.name", "Tiny");
        for (suffix, value) in [
            ("block_count", self.layers),
            ("context_length", self.context),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
        ] {
            file.meta(&key(suffix), value as u32);
        }
        file.meta(&key("attention.layer_norm_rms_epsilon"), 1e-6f32);
        if self.architecture == "qwen3moe" {
            file.meta(&key("expert_count"), self.experts as u32);
            file.meta(&key("expert_used_count"), self.experts_used as u32);
        }
        if self.architecture == "gemma3" {
            file.meta(&key("attention.sliding_window"), self.window as u32);
            // Otherwise the first global layer would be the sixth.
            file.meta(&key("attention.sliding_window_pattern"), 2u32);
        }
        if self.architecture == "gemma4" {
            let layers = || 0..self.layers;
            let heads = |layer| if self.is_global(layer) { 1 } else { self.kv_heads as u32 };
            let width = |layer| if self.shares(layer) { 2 } else { 1 } * self.ffn as u32;
            file.meta(&key("attention.head_count_kv"), layers().map(heads).collect::<Vec<u32>>());
            file.meta(&key("feed_forward_length"), layers().map(width).collect::<Vec<u32>>());
            let local = layers().map(|layer| !self.is_global(layer)).collect::<Vec<bool>>();
            file.meta(&key("attention.sliding_window_pattern"), local);
            for (suffix, value) in [
                ("attention.sliding_window", self.window),
                ("attention.key_length", 2 * self.head_dim),
                ("attention.value_length", 2 * self.head_dim),
                ("attention.key_length_swa", self.head_dim),
                ("attention.value_length_swa", self.head_dim),
                ("rope.dimension_count_swa", self.head_dim),
                ("attention.shared_kv_layers", layers().filter(|&layer| self.shares(layer)).count()),
                ("embedding_length_per_layer_input", self.hidden),
                ("expert_count", self.experts),
                ("expert_used_count", self.experts_used),
                ("expert_feed_forward_length", self.ffn),
            ] {
                file.meta(&key(suffix), value as u32);
            }
            file.meta(&key("final_logit_softcapping"), 30.0f32);
        }
        if self.architecture == "gemma3n" {
            let layers = || 0..self.layers;
            let local = layers().map(|layer| !self.is_global(layer)).collect::<Vec<bool>>();
            file.meta(&key("attention.sliding_window_pattern"), local);
            for (suffix, value) in [
                ("attention.sliding_window", self.window),
                ("attention.shared_kv_layers", layers().filter(|&layer| self.shares(layer)).count()),
                ("embedding_length_per_layer_input", self.hidden),
                ("altup.num_inputs", Self::STREAMS),
                ("altup.active_idx", 0),
            ] {
                file.meta(&key(suffix), value as u32);
            }
            let cutoffs = layers().map(|layer| if layer == 0 { 0.5 } else { f32::NEG_INFINITY });
            file.meta(&key("activation_sparsity_scale"), cutoffs.collect::<Vec<f32>>());
        }
        let recurrent: Vec<bool> = (0..self.layers).map(|layer| self.is_recurrent(layer)).collect();
        if self.architecture == "lfm2" {
            let heads = |&recurrent: &bool| if recurrent { 0 } else { self.kv_heads as i32 };
            file.meta(&key("attention.head_count_kv"), recurrent.iter().map(heads).collect::<Vec<i32>>());
            file.meta(&key("shortconv.l_cache"), self.taps as u32);
        }
        if self.architecture == "qwen35" {
            let [key_heads, value_heads, key_dim, value_dim] = self.state.map(|n| n as u32);
            file.meta(&key("attention.recurrent_layers"), recurrent);
            file.meta(&key("ssm.conv_kernel"), self.taps as u32);
            file.meta(&key("ssm.state_size"), key_dim);
            file.meta(&key("ssm.group_count"), key_heads);
            file.meta(&key("ssm.time_step_rank"), value_heads);
            file.meta(&key("ssm.inner_size"), value_heads * value_dim);
            // As published: a quarter of the head.
            file.meta(&key("rope.dimension_count"), self.head_dim as u32 / 4);
        }

        let mut tokens: Vec<String> = (0..=255).map(byte_level).map(String::from).collect();
        tokens.extend(CONTROL_TOKENS.map(String::from));
        let mut kinds = vec![1i32; 256];
        kinds.extend(CONTROL_TOKENS.map(|_| 3));
        file.meta("tokenizer.ggml.model", "gpt2");
        file.meta("tokenizer.ggml.pre", "gpt-2");
        file.meta("tokenizer.ggml.tokens", tokens);
        file.meta("tokenizer.ggml.token_type", kinds);
        file.meta("tokenizer.ggml.merges", Vec::<String>::new());
        file.meta("tokenizer.ggml.eos_token_id", 256u32);
        file
    }

    /// Whether a layer carries a state instead of keys and values.
    fn is_recurrent(&self, layer: usize) -> bool {
        Self::RECURRENT.contains(&self.architecture) && layer % 2 == 1
    }

    /// Whether it is one whose layers have vectors for tokens.
    fn has_layer_inputs(&self) -> bool {
        matches!(self.architecture, "gemma3n" | "gemma4")
    }

    /// What the layers of gemma3n have in the place of others' tensors, and more.
    fn gemma3n(&self, layer: usize, mut add: impl FnMut(&str, TensorType, usize, usize)) {
        let (hidden, float, n) = (self.hidden, TensorType::F32, Self::STREAMS);
        add("attn_q.weight", self.matrix, self.heads * self.head_dim, hidden);
        add("attn_q_norm.weight", float, 1, self.head_dim);
        if !self.shares(layer) {
            add("attn_k.weight", self.matrix, self.kv_heads * self.head_dim, hidden);
            add("attn_v.weight", self.matrix, self.kv_heads * self.head_dim, hidden);
            add("attn_k_norm.weight", float, 1, self.head_dim);
        }
        add("attn_output.weight", self.matrix, hidden, self.heads * self.head_dim);
        add("ffn_gate.weight", self.matrix, self.ffn, hidden);
        add("ffn_up.weight", self.matrix, self.ffn, hidden);
        add("ffn_down.weight", self.matrix, hidden, self.ffn);
        add("altup_router.weight", float, n, hidden);
        add("altup_predict_coef.weight", float, n * n, n);
        add("altup_correct_coef.weight", float, n, n);
        for square in ["inp_gate", "proj", "laurel_l", "laurel_r"] {
            add(&format!("{square}.weight"), self.matrix, hidden, hidden);
        }
        for gain in [
            "attn_norm",
            "ffn_norm",
            "post_attention_norm",
            "post_ffw_norm",
            "post_norm",
            "laurel_post_norm",
            "altup_router_norm",
            "altup_correct_scale",
        ] {
            add(&format!("{gain}.weight"), float, 1, hidden);
        }
    }

    /// Whether a layer of gemma3n or gemma4 has global attention.
    fn is_global(&self, layer: usize) -> bool {
        layer % 2 == 1
    }

    /// Whether a layer of these sees the keys of another: the last two, if there are others.
    fn shares(&self, layer: usize) -> bool {
        self.layers > 3 && layer + 2 >= self.layers
    }

    /// What the layers of gemma4 have in the place of others' tensors, and more.
    fn gemma4(&self, layer: usize, mut add: impl FnMut(&str, TensorType, usize, usize)) {
        let (hidden, float) = (self.hidden, TensorType::F32);
        let (head, kv_heads) =
            if self.is_global(layer) { (2 * self.head_dim, 1) } else { (self.head_dim, self.kv_heads) };
        let ffn = if self.shares(layer) { 2 * self.ffn } else { self.ffn };
        add("attn_q.weight", self.matrix, self.heads * head, hidden);
        add("attn_q_norm.weight", float, 1, head);
        if !self.shares(layer) {
            add("attn_k.weight", self.matrix, kv_heads * head, hidden);
            add("attn_k_norm.weight", float, 1, head);
            // Others' values are what their keys are made of.
            if !self.is_global(layer) {
                add("attn_v.weight", self.matrix, kv_heads * head, hidden);
            }
        }
        add("attn_output.weight", self.matrix, hidden, self.heads * head);
        add("ffn_gate.weight", self.matrix, ffn, hidden);
        add("ffn_up.weight", self.matrix, ffn, hidden);
        add("ffn_down.weight", self.matrix, hidden, ffn);
        add("inp_gate.weight", self.matrix, hidden, hidden);
        add("proj.weight", self.matrix, hidden, hidden);
        add("layer_output_scale.weight", float, 1, 1);
        for norm in ["attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "post_norm"] {
            add(&format!("{norm}.weight"), float, 1, hidden);
        }
        if layer.is_multiple_of(2) {
            add("ffn_gate_inp.weight", float, self.experts, hidden);
            add("ffn_gate_inp.scale", float, 1, hidden);
            add("ffn_gate_exps.weight", self.matrix, self.experts * self.ffn, hidden);
            add("ffn_up_exps.weight", self.matrix, self.experts * self.ffn, hidden);
            add("ffn_down_exps.weight", self.matrix, self.experts * hidden, self.ffn);
            add("ffn_down_exps.scale", float, 1, self.experts);
            for norm in ["post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"] {
                add(&format!("{norm}.weight"), float, 1, hidden);
            }
        }
    }

    /// Name, type, rows and columns of every tensor; one row: a vector.
    fn tensors(&self) -> Vec<(String, TensorType, usize, usize)> {
        let (hidden, ffn) = (self.hidden, self.ffn);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let float = TensorType::F32;
        let (lfm2, qwen35) = (self.architecture == "lfm2", self.architecture == "qwen35");
        let last_norm = if lfm2 { "token_embd_norm.weight" } else { "output_norm.weight" };
        let mut tensors = vec![
            ("token_embd.weight".to_owned(), self.embedding, self.vocab(), hidden),
            (last_norm.to_owned(), float, 1, hidden),
        ];
        if self.architecture == "gemma3n" {
            for way in ["altup_proj.weight", "altup_unembd_proj.weight"] {
                tensors.push((way.to_owned(), self.matrix, (Self::STREAMS - 1) * hidden, hidden));
            }
        }
        if self.has_layer_inputs() {
            let width = self.layers * hidden;
            tensors.push(("per_layer_token_embd.weight".to_owned(), self.embedding, self.vocab(), width));
            tensors.push(("per_layer_model_proj.weight".to_owned(), self.matrix, width, hidden));
            tensors.push(("per_layer_proj_norm.weight".to_owned(), float, 1, hidden));
        }
        for layer in 0..self.layers {
            let recurrent = self.is_recurrent(layer);
            let mut add = |suffix: &str, ttype, rows, cols| {
                tensors.push((format!("blk.{layer}.{suffix}"), ttype, rows, cols));
            };
            match self.architecture {
                "gemma3n" => {
                    self.gemma3n(layer, add);
                    continue;
                }
                "gemma4" => {
                    self.gemma4(layer, add);
                    continue;
                }
                _ => {}
            }
            add("attn_norm.weight", float, 1, hidden);
            if recurrent && lfm2 {
                add("shortconv.in_proj.weight", self.matrix, 3 * hidden, hidden);
                add("shortconv.conv.weight", float, hidden, self.taps);
                add("shortconv.out_proj.weight", self.matrix, hidden, hidden);
            } else if recurrent {
                let [key_heads, value_heads, key_dim, value_dim] = self.state;
                let (mixed, values) =
                    (2 * key_heads * key_dim + value_heads * value_dim, value_heads * value_dim);
                add("attn_qkv.weight", self.matrix, mixed, hidden);
                add("attn_gate.weight", self.matrix, values, hidden);
                add("ssm_beta.weight", self.matrix, value_heads, hidden);
                add("ssm_alpha.weight", self.matrix, value_heads, hidden);
                add("ssm_conv1d.weight", float, mixed, self.taps);
                add("ssm_a", float, 1, value_heads);
                add("ssm_dt.bias", float, 1, value_heads);
                add("ssm_norm.weight", float, 1, value_dim);
                add("ssm_out.weight", self.matrix, hidden, values);
            } else {
                // Each query with its gate.
                add("attn_q.weight", self.matrix, if qwen35 { 2 * q } else { q }, hidden);
                add("attn_k.weight", self.matrix, kv, hidden);
                add("attn_v.weight", self.matrix, kv, hidden);
                add("attn_output.weight", self.matrix, hidden, q);
            }
            add(if qwen35 { "post_attention_norm.weight" } else { "ffn_norm.weight" }, float, 1, hidden);
            if self.architecture == "qwen3moe" {
                add("ffn_gate_inp.weight", float, self.experts, hidden);
                add("ffn_gate_exps.weight", self.matrix, self.experts * ffn, hidden);
                add("ffn_up_exps.weight", self.matrix, self.experts * ffn, hidden);
                add("ffn_down_exps.weight", self.matrix, self.experts * hidden, ffn);
            } else {
                add("ffn_gate.weight", self.matrix, ffn, hidden);
                add("ffn_up.weight", self.matrix, ffn, hidden);
                add("ffn_down.weight", self.matrix, hidden, ffn);
            }
            if self.architecture == "qwen2" {
                add("attn_q.bias", float, 1, q);
                add("attn_k.bias", float, 1, kv);
                add("attn_v.bias", float, 1, kv);
            }
            if !recurrent && !matches!(self.architecture, "llama" | "qwen2") {
                add("attn_q_norm.weight", float, 1, self.head_dim);
                add("attn_k_norm.weight", float, 1, self.head_dim);
            }
            if self.architecture == "gemma3" {
                add("post_attention_norm.weight", float, 1, hidden);
                add("post_ffw_norm.weight", float, 1, hidden);
            }
        }
        tensors
    }

    /// Random weights, scaled so that activations keep their size; gains of norms are near 1.
    fn weights(
        &self,
        name: &str,
        ttype: TensorType,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<u8>, KernelError> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ stream_of(name));
        let scale = 1.7 / (cols as f32).sqrt();
        let values: Vec<f32> = (0..rows * cols)
            .map(|_| {
                let uniform = random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0;
                match name {
                    // There is no other factor on the scores.
                    name if self.has_layer_inputs()
                        && name.ends_with("_norm.weight")
                        && (name.contains("attn_q") || name.contains("attn_k")) =>
                    {
                        0.3 + uniform / 8.0
                    }
                    name if name.contains("norm") || name.contains("scale") => 1.0 + uniform / 4.0,
                    // How fast states fade.
                    name if name.ends_with("ssm_a") => (uniform - 1.5) / 4.0,
                    _ => uniform * scale,
                }
            })
            .collect();
        let mut bytes = Vec::new();
        moli_kernels::quantize(ttype, &values, &mut bytes)?;
        Ok(bytes)
    }
}
