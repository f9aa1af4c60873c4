//! Layers that carry a state from token to token instead of keys and values.

use moli_kernels::DeltaShape;

use super::keys::Keys;
use super::{MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS};
use crate::ModelError;

/// Taps of a convolution, at most: published ones have 3 and 4.
const MAX_TAPS: usize = 64;
/// Every so manieth layer has attention, where a file with delta rules does not say which.
const FULL_ATTENTION_INTERVAL: usize = 4;

/// The layers that carry a state, and how it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recurrent {
    /// Per layer: whether it carries a state. At least one does not.
    pub layers: Vec<bool>,
    /// What all of them do.
    pub kind: RecurrentKind,
}

/// How a state changes with each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecurrentKind {
    /// A convolution over the latest `taps` tokens, each channel by itself, of an input with a gate before and one behind
    /// (LFM2, arXiv:2511.23404). The state is the inputs of the latest `taps - 1` tokens.
    ShortConv {
        /// Tokens that it looks at, its own included.
        taps: usize,
    },
    /// A matrix of associations for each head, which fades and is corrected by each token (arXiv:2412.06464), behind a
    /// convolution of queries, keys and values.
    DeltaNet {
        /// Tokens that the convolution looks at.
        taps: usize,
        /// The heads.
        shape: DeltaShape,
    },
}

/// How an architecture says which of its layers carry a state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RecurrentFamily {
    None,
    /// Convolutions, in the layers without key heads.
    ShortConv,
    /// Delta rules; whether the heads of values take turns with those of keys.
    DeltaNet {
        tiled: bool,
    },
}

impl Recurrent {
    /// What the file says of `layers` layers that run; `None` if all have attention. `kv_heads`: per layer, where the file has a list of them.
    pub(super) fn read(
        keys: &Keys<'_>,
        family: RecurrentFamily,
        layers: usize,
        kv_heads: Option<&[usize]>,
    ) -> Result<Option<Self>, ModelError> {
        let (which, kind) = match family {
            RecurrentFamily::None => return Ok(None),
            RecurrentFamily::ShortConv => {
                let which = match kv_heads {
                    Some(counts) => counts.iter().map(|&count| count == 0).collect(),
                    None => vec![false; layers],
                };
                let taps = keys.size("shortconv.l_cache", None, MAX_TAPS)?;
                (which, RecurrentKind::ShortConv { taps })
            }
            RecurrentFamily::DeltaNet { tiled } => {
                let mut which = match keys.flag_list("attention.recurrent_layers")? {
                    Some(flags) => flags,
                    None => {
                        let interval = "full_attention_interval";
                        let period = keys.size(interval, Some(FULL_ATTENTION_INTERVAL), MAX_LAYERS)?;
                        (1..=layers).map(|layer| !layer.is_multiple_of(period)).collect()
                    }
                };
                if which.len() < layers {
                    let allowed = format!("at least as long as the {layers} layers");
                    let value = format!("{} long", which.len());
                    return Err(keys.out_of_range("attention.recurrent_layers", value, allowed));
                }
                which.truncate(layers);
                (which, delta_net(keys, tiled)?)
            }
        };
        if !which.contains(&true) {
            return Ok(None);
        }
        if !which.contains(&false) {
            return Err(
                keys.unsupported("block_count", format!("{layers} layers, none of them with attention,"))
            );
        }
        Ok(Some(Self { layers: which, kind }))
    }

    /// Whether this layer carries a state.
    #[must_use]
    pub fn has(&self, layer: usize) -> bool {
        self.layers.get(layer).copied().unwrap_or(false)
    }

    /// Layers that do.
    #[must_use]
    pub fn count(&self) -> usize {
        self.layers.iter().filter(|&&recurrent| recurrent).count()
    }

    /// Bytes of the state of one sequence in all layers, in single precision; `None` if a u64 can't hold them.
    #[must_use]
    pub fn state_bytes(&self, hidden: usize) -> Option<u64> {
        let of_layer =
            self.kind.state(hidden)?.iter().try_fold(0usize, |sum, &part| sum.checked_add(part))?;
        let bytes = of_layer.checked_mul(size_of::<f32>())?.checked_mul(self.count())?;
        u64::try_from(bytes).ok()
    }
}

impl RecurrentKind {
    /// Tokens that the convolution looks at.
    #[must_use]
    pub fn taps(&self) -> usize {
        match *self {
            Self::ShortConv { taps } | Self::DeltaNet { taps, .. } => taps,
        }
    }

    /// Channels of the convolution.
    #[must_use]
    pub fn channels(&self, hidden: usize) -> usize {
        match self {
            Self::ShortConv { .. } => hidden,
            Self::DeltaNet { shape, .. } => shape.mixed(),
        }
    }

    /// Width of what a layer hands on.
    #[must_use]
    pub fn width(&self, hidden: usize) -> usize {
        match self {
            Self::ShortConv { .. } => hidden,
            Self::DeltaNet { shape, .. } => shape.value_heads * shape.value_dim,
        }
    }

    /// Elements of a layer's state: those of the convolution, and those of the heads. `None` if they can't be counted.
    #[must_use]
    pub fn state(&self, hidden: usize) -> Option<[usize; 2]> {
        let conv = (self.taps() - 1).checked_mul(self.channels(hidden))?;
        let heads = match self {
            Self::ShortConv { .. } => 0,
            Self::DeltaNet { shape, .. } => {
                shape.value_heads.checked_mul(shape.key_dim)?.checked_mul(shape.value_dim)?
            }
        };
        Some([conv, heads])
    }
}

fn delta_net(keys: &Keys<'_>, tiled: bool) -> Result<RecurrentKind, ModelError> {
    let key_dim = keys.size("ssm.state_size", None, MAX_HEAD_DIM)?;
    let key_heads = keys.size("ssm.group_count", None, MAX_HEADS)?;
    let value_heads = keys.size("ssm.time_step_rank", None, MAX_HEADS)?;
    if !value_heads.is_multiple_of(key_heads) {
        let allowed = format!("a divisor of ssm.time_step_rank, {value_heads}");
        return Err(keys.out_of_range("ssm.group_count", key_heads, allowed));
    }
    let inner = keys.size("ssm.inner_size", None, MAX_HEADS * MAX_HEAD_DIM)?;
    let value_dim = inner / value_heads;
    if !inner.is_multiple_of(value_heads) || value_dim > MAX_HEAD_DIM {
        let allowed =
            format!("a multiple of ssm.time_step_rank, {value_heads}, at most {MAX_HEAD_DIM} times");
        return Err(keys.out_of_range("ssm.inner_size", inner, allowed));
    }
    let shape = DeltaShape { key_heads, value_heads, key_dim, value_dim, tiled };
    Ok(RecurrentKind::DeltaNet { taps: keys.size("ssm.conv_kernel", None, MAX_TAPS)?, shape })
}
