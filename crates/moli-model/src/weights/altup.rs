//! The tensors of streams beside each other.

use super::{Bias, Linear, Loader, Norm};
use crate::{AltUp, Backend, ModelError};

/// The ways from one stream to several, and back.
pub struct Streams<B: Backend> {
    /// From the embeddings to each but the first, `[hidden, hidden]`.
    pub to: Vec<Linear<B>>,
    /// From each but the first to what the head reads, `[hidden, hidden]`.
    pub from: Vec<Linear<B>>,
}

/// What a layer has for them.
pub struct LayerStreams<B: Backend> {
    /// Before the router.
    pub router_norm: Norm<B::Vector>,
    /// What the coefficients are computed of, `[streams, hidden]`.
    pub router: Linear<B>,
    /// Coefficients of predictions: of each stream those of all, `[streams * streams, streams]`.
    pub predict: Linear<B>,
    /// Coefficients of corrections, less one, `[streams, streams]`.
    pub correct: Linear<B>,
    /// Factors on the active stream for what the layer makes of its own vector of a token: a norm that gives them whatever its
    /// input is, `[hidden]`.
    pub scale: Norm<B::Vector>,
    /// A way of low rank around attention: there, `[rank, hidden]`, and back, `[hidden, rank]`.
    pub around: [Linear<B>; 2],
    /// Behind it.
    pub around_norm: Norm<B::Vector>,
}

impl<B: Backend> Loader<'_, B> {
    pub(super) fn streams(&mut self, altup: AltUp) -> Result<Streams<B>, ModelError> {
        let (hidden, others) = (self.config.hidden, altup.streams - 1);
        let mut all = |stem: &str| -> Result<Vec<_>, ModelError> {
            (0..others).map(|i| self.slice(stem, i, hidden, [hidden, hidden, others])).collect()
        };
        Ok(Streams { to: all("altup_proj")?, from: all("altup_unembd_proj")? })
    }

    pub(super) fn layer_streams(&mut self, i: usize, altup: AltUp) -> Result<LayerStreams<B>, ModelError> {
        let (hidden, n) = (self.config.hidden, altup.streams);
        let name = |suffix: &str| format!("blk.{i}.{suffix}");
        let left = name("laurel_l");
        let rank = self.gguf.tensor(&format!("{left}.weight")).map_or(1, moli_format::Tensor::rows);
        // The router reads what is normed divided by the width.
        let mut gain = self.floats(&name("altup_router_norm.weight"), hidden)?;
        gain.iter_mut().for_each(|gain| *gain /= hidden as f32);
        let factors = self.vector(&name("altup_correct_scale.weight"), hidden)?;
        Ok(LayerStreams {
            router_norm: Norm::Rms { gain: self.backend.vector(gain)? },
            router: self.linear(&name("altup_router"), n, hidden, Bias::Optional)?,
            predict: self.linear(&name("altup_predict_coef"), n * n, n, Bias::Optional)?,
            correct: self.linear(&name("altup_correct_coef"), n, n, Bias::Optional)?,
            scale: Norm::Layer { gain: self.backend.vector(vec![0.0; hidden])?, bias: Some(factors) },
            around: [
                self.linear(&left, rank, hidden, Bias::Optional)?,
                self.linear(&name("laurel_r"), hidden, rank, Bias::Optional)?,
            ],
            around_norm: self.norm(&name("laurel_post_norm"), hidden)?,
        })
    }
}
