//! The tensors of layers that carry a state.

use moli_format::{Bytes, Tensor};
use moli_kernels::DeltaShape;

use super::{Bias, Linear, Loader, Mixer, rows};
use crate::{Backend, ModelError, Recurrent, RecurrentKind};

/// A short convolution between two gates.
pub struct ShortConv<B: Backend> {
    /// The gate before, the gate behind and what they gate, `[hidden, hidden]` each.
    pub inputs: [Linear<B>; 3],
    /// `[taps, hidden]`.
    pub taps: B::Vector,
}

/// A gated delta rule.
pub struct DeltaNet<B: Backend> {
    /// Queries, keys and values of all heads, `[shape.mixed(), hidden]`.
    pub mixed: Linear<B>,
    /// The gate of what a head finds, `[value_heads * value_dim, hidden]`.
    pub gate: Linear<B>,
    /// How strongly a token corrects the state, before a sigmoid, `[value_heads, hidden]`.
    pub rate: Linear<B>,
    /// How fast the state fades, before a softplus, `[value_heads, hidden]`.
    pub decay: Linear<B>,
    /// `[taps, shape.mixed()]`.
    pub taps: B::Vector,
    /// What the softplus is multiplied by, below 0, and what is added before it, `[value_heads]`.
    pub slope: B::Vector,
    /// See [`slope`](Self::slope).
    pub bias: B::Vector,
    /// Gain of the norm of what a head finds, `[value_dim]`.
    pub norm: B::Vector,
}

impl<B: Backend> Loader<'_, B> {
    /// What mixes tokens in a layer that carries a state.
    pub(super) fn recurrent(&mut self, i: usize, recurrent: &Recurrent) -> Result<Mixer<B>, ModelError> {
        match recurrent.kind {
            RecurrentKind::ShortConv { taps } => self.short_conv(i, taps),
            RecurrentKind::DeltaNet { taps, shape } => self.delta_net(i, taps, &shape),
        }
    }

    fn short_conv(&mut self, i: usize, taps: usize) -> Result<Mixer<B>, ModelError> {
        let hidden = self.config.hidden;
        let name = |suffix: &str| format!("blk.{i}.shortconv.{suffix}");
        let mut input = |part: usize| {
            let rows = part * hidden..(part + 1) * hidden;
            self.rows_of(&name("in_proj"), rows, 3 * hidden, hidden, Bias::Optional)
        };
        let inputs = [input(0)?, input(1)?, input(2)?];
        Ok(Mixer::ShortConv(Box::new(ShortConv {
            inputs,
            taps: self.taps(&name("conv.weight"), hidden, taps)?,
        })))
    }

    fn delta_net(&mut self, i: usize, taps: usize, shape: &DeltaShape) -> Result<Mixer<B>, ModelError> {
        let hidden = self.config.hidden;
        let DeltaShape { value_heads, value_dim, .. } = *shape;
        let name = |suffix: &str| format!("blk.{i}.{suffix}");
        let [rate, decay] = if self.has(&name("ssm_ba.weight")) {
            self.rate_and_decay(&name("ssm_ba.weight"), shape)?
        } else {
            let mut linear = |stem| self.linear(&name(stem), value_heads, hidden, Bias::Optional);
            [linear("ssm_beta")?, linear("ssm_alpha")?]
        };
        let slope = self.floats(&name("ssm_a"), value_heads)?;
        if let Some(index) = slope.iter().position(|&slope| slope > 0.0) {
            return Err(ModelError::OutOfRange {
                key: format!("{}[{index}]", name("ssm_a")),
                value: slope[index].to_string(),
                allowed: "at most 0".to_owned(),
            });
        }
        Ok(Mixer::DeltaNet(Box::new(DeltaNet {
            mixed: self.linear(&name("attn_qkv"), shape.mixed(), hidden, Bias::Optional)?,
            gate: self.linear(&name("attn_gate"), value_heads * value_dim, hidden, Bias::Optional)?,
            rate,
            decay,
            taps: self.taps(&name("ssm_conv1d.weight"), shape.mixed(), taps)?,
            slope: self.backend.vector(slope)?,
            bias: self.vector(&name("ssm_dt.bias"), value_heads)?,
            norm: self.vector(&name("ssm_norm.weight"), value_dim)?,
        })))
    }

    /// The taps of a convolution, which files have channel by channel, `[channels, taps]`, as `[taps, channels]`.
    fn taps(&mut self, name: &str, channels: usize, taps: usize) -> Result<B::Vector, ModelError> {
        self.tensor(name, &[taps, channels])?;
        let values = self.all_floats(name)?;
        let mut turned = Vec::with_capacity(values.len());
        for tap in 0..taps {
            turned.extend(values.iter().skip(tap).step_by(taps));
        }
        self.backend.vector(turned)
    }

    /// Both out of one matrix: of each key head the rates of its value heads, then their decays.
    fn rate_and_decay(&mut self, name: &str, shape: &DeltaShape) -> Result<[Linear<B>; 2], ModelError> {
        let tensor = self.tensor(name, &[self.config.hidden, 2 * shape.value_heads])?;
        let each = shape.value_heads / shape.key_heads;
        let part = |behind: usize| {
            let mut data = Vec::with_capacity(tensor.data.len() / 2);
            for head in 0..shape.key_heads {
                let first = (2 * head + behind) * each;
                data.extend_from_slice(&rows(tensor, first..first + each)?.data);
            }
            let dims = vec![tensor.cols() as u64, shape.value_heads as u64];
            let all =
                Tensor { name: name.to_owned(), ttype: tensor.ttype, dims, data: Bytes::from_vec(data) };
            let weight = self.backend.matrix(&all)?;
            Ok::<_, ModelError>(Linear { weight, bias: None, scale: None, adapters: Vec::new() })
        };
        Ok([part(0)?, part(1)?])
    }
}
