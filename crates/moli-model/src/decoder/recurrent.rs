//! Layers that carry a state from token to token: their states, and a forward pass through one of them.
//!
//! A state is read from one slot and written to another, or to the same. Who has which slots is a matter of the caller, as it
//! is with pages; the decoder knows how many tokens a slot's state is of, and refuses to go on from another place.

use moli_kernels::StateRun;

use crate::adapter::Adapters;
use crate::backend::DeltaInputs;
use crate::weights::{DeltaNet, ShortConv};
use crate::{Activation, Backend, Batch, Config, ModelError, RecurrentKind, StateSlots};

/// The states of all layers, and what a batch needs to go through them.
pub(super) struct Recurrence<B: Backend> {
    /// Of each layer with a state: that of its convolution and that of its heads, `[slots, elements]`.
    states: Vec<[B::Buffer; 2]>,
    /// Elements of both.
    sizes: [usize; 2],
    /// Of each slot: the tokens that its state is of; `None`: there is nothing in it.
    tokens: Vec<Option<u32>>,
    /// What the current batch does with each slot.
    uses: Vec<Use>,
    /// The sequences of the current batch.
    runs: Vec<StateRun>,
    scratch: Scratch<B>,
    /// One state of a layer, on its way to the host.
    one: [B::Buffer; 2],
    downloaded: Vec<f32>,
}

#[derive(Clone, Copy, PartialEq)]
enum Use {
    None,
    Read,
    Written,
}

/// Activations of one batch, `[rows, …]`.
struct Scratch<B: Backend> {
    /// What goes into the convolution, `[channels]`, and what comes of it.
    mixed: B::Buffer,
    convolved: B::Buffer,
    /// A gate, `[width]`.
    gate: B::Buffer,
    /// Of each head how strongly it corrects its state, and how fast that fades, `[heads]`.
    rate: B::Buffer,
    decay: B::Buffer,
    /// What the layer found, `[width]`; before, another gate.
    out: B::Buffer,
}

/// Elements of a row of [`Scratch`].
pub(crate) fn row(kind: &RecurrentKind, hidden: usize) -> usize {
    2 * kind.channels(hidden) + 2 * kind.width(hidden) + 2 * heads(kind)
}

fn heads(kind: &RecurrentKind) -> usize {
    match kind {
        RecurrentKind::ShortConv { .. } => 0,
        RecurrentKind::DeltaNet { shape, .. } => shape.value_heads,
    }
}

impl<B: Backend> Recurrence<B> {
    /// With one slot; `None` where all layers have attention.
    pub(super) fn new(backend: &B, config: &Config, max_rows: usize) -> Result<Option<Self>, ModelError> {
        let Some(recurrent) = &config.recurrent else { return Ok(None) };
        let (kind, hidden) = (&recurrent.kind, config.hidden);
        let bytes = u128::MAX;
        let sizes = kind.state(hidden).ok_or(ModelError::TooLarge { what: "a recurrent state", bytes })?;
        let buffer = |cols| backend.buffer(max_rows, cols);
        let mut recurrence = Self {
            states: Vec::new(),
            sizes,
            tokens: Vec::new(),
            uses: Vec::new(),
            runs: Vec::with_capacity(max_rows),
            scratch: Scratch {
                mixed: buffer(kind.channels(hidden))?,
                convolved: buffer(kind.channels(hidden))?,
                gate: buffer(kind.width(hidden))?,
                rate: buffer(heads(kind))?,
                decay: buffer(heads(kind))?,
                out: buffer(kind.width(hidden))?,
            },
            one: [backend.states(1, sizes[0])?, backend.states(1, sizes[1])?],
            downloaded: Vec::new(),
        };
        recurrence.reserve(backend, recurrent.count(), 1)?;
        Ok(Some(recurrence))
    }

    /// Makes room for so many states of `layers` layers.
    pub(super) fn reserve(&mut self, backend: &B, layers: usize, slots: usize) -> Result<(), ModelError> {
        // What was there is gone before more is allocated.
        self.states.clear();
        self.tokens = vec![None; slots];
        self.uses = vec![Use::None; slots];
        for _ in 0..layers {
            let [conv, heads] = self.sizes;
            self.states.push([backend.states(slots, conv)?, backend.states(slots, heads)?]);
        }
        Ok(())
    }

    pub(super) fn layers(&self) -> usize {
        self.states.len()
    }

    pub(super) fn slots(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn state_bytes(&self) -> usize {
        self.sizes.iter().sum::<usize>() * size_of::<f32>() * self.states.len()
    }

    pub(super) fn check_slot(&self, state: u32) -> Result<(), ModelError> {
        let states = self.slots();
        if (state as usize) < states { Ok(()) } else { Err(ModelError::State { state, states }) }
    }

    /// Appends a state: of each layer that of the convolution, then that of the heads, little-endian.
    pub(super) fn read(&mut self, backend: &mut B, slot: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        for parts in &self.states {
            for ((part, one), &size) in parts.iter().zip(&mut self.one).zip(&self.sizes) {
                if size > 0 {
                    backend.select(part, &[slot], one)?;
                    let values = backend.download(one, &mut self.downloaded)?;
                    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                }
            }
        }
        Ok(())
    }

    /// The inverse of [`read`](Self::read), of as many bytes as it gives.
    pub(super) fn write(
        &mut self,
        backend: &mut B,
        slot: u32,
        tokens: u32,
        bytes: &[u8],
    ) -> Result<(), ModelError> {
        let mut values = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        self.set(slot, None);
        for parts in &mut self.states {
            for (part, &size) in parts.iter_mut().zip(&self.sizes) {
                if size > 0 {
                    self.downloaded.clear();
                    self.downloaded.extend(values.by_ref().take(size));
                    backend.upload(&self.downloaded, slot as usize, part)?;
                }
            }
        }
        self.set(slot, Some(tokens));
        Ok(())
    }

    fn set(&mut self, slot: u32, tokens: Option<u32>) {
        if let Some(known) = self.tokens.get_mut(slot as usize) {
            *known = tokens;
        }
    }

    /// Refuses a batch whose sequences are not in one piece each, don't go on where their states end, or share slots; finds where
    /// they are.
    pub(super) fn check(&mut self, batch: &Batch<'_>) -> Result<(), ModelError> {
        let bad = |what, actual, allowed: String| Err(ModelError::Batch { what, actual, allowed });
        let (given, tables) = (batch.recurrent.len(), batch.tables.len());
        if ![0, tables].contains(&given) {
            return bad("recurrent", given, format!("as long as tables, {tables}, or empty"));
        }
        self.runs.clear();
        self.uses.fill(Use::None);
        let mut last = None;
        for (row, (&sequence, &position)) in batch.sequences.iter().zip(batch.positions).enumerate() {
            if let (Some(run), Some((same, before))) = (self.runs.last_mut(), last)
                && same == sequence
            {
                if u64::from(position) != u64::from(before) + 1 {
                    let allowed = format!("{}: a sequence with a state goes on", u64::from(before) + 1);
                    return bad("position", position as usize, allowed);
                }
                run.rows += 1;
                last = Some((sequence, position));
                continue;
            }
            last = Some((sequence, position));
            let own = StateSlots { from: (position > 0).then_some(sequence), to: sequence };
            let StateSlots { from, to } = batch.recurrent.get(sequence as usize).copied().unwrap_or(own);
            match from {
                None if position > 0 => {
                    return bad("position", position as usize, "0, without a state".to_owned());
                }
                Some(from) => {
                    let known = self.tokens.get(from as usize).copied().flatten();
                    if known != Some(position) {
                        let allowed = format!("of the {position} tokens before the row");
                        return bad("state", known.unwrap_or(0) as usize, allowed);
                    }
                }
                None => {}
            }
            self.claim(from.filter(|&from| from != to), Use::Read)?;
            self.claim(Some(to), Use::Written)?;
            self.runs.push(StateRun { first: row, rows: 1, from, to });
        }
        Ok(())
    }

    /// Notes what is done with a slot, which nothing else may be done with but that several read it.
    fn claim(&mut self, slot: Option<u32>, wanted: Use) -> Result<(), ModelError> {
        let (Some(slot), slots) = (slot, self.uses.len()) else { return Ok(()) };
        let bad = |allowed| Err(ModelError::Batch { what: "state", actual: slot as usize, allowed });
        match self.uses.get_mut(slot as usize) {
            None => bad(format!("below the {slots} states")),
            Some(used) if *used == Use::None || *used == Use::Read && wanted == Use::Read => {
                *used = wanted;
                Ok(())
            }
            Some(_) => bad("that of one sequence".to_owned()),
        }
    }

    /// The batch that was checked begins: what it writes is of no use until it ends well.
    pub(super) fn begin(&mut self) {
        for run in &self.runs {
            if let Some(known) = self.tokens.get_mut(run.to as usize) {
                *known = None;
            }
        }
    }

    /// It ended well.
    pub(super) fn end(&mut self, positions: &[u32]) {
        for run in &self.runs {
            let last = positions.get(run.first + run.rows - 1);
            if let Some(known) = self.tokens.get_mut(run.to as usize) {
                *known = last.map(|last| last + 1);
            }
        }
    }

    /// The input of a layer through its convolution; `index`: which of the layers with a state it is.
    pub(super) fn short_conv(
        &mut self,
        (b, a): (&mut B, &mut Adapters<B>),
        w: &ShortConv<B>,
        x: &B::Buffer,
        index: usize,
    ) -> Result<&B::Buffer, ModelError> {
        let Scratch { mixed, convolved, gate, out: before, .. } = &mut self.scratch;
        let [before_conv, behind_conv, gated] = &w.inputs;
        let into = &mut [(before_conv, &mut *before), (behind_conv, &mut *gate), (gated, &mut *mixed)];
        a.project(b, x, None, into)?;
        b.multiply(mixed, before)?;
        b.short_conv(mixed, &w.taps, &mut self.states[index][0], &self.runs, convolved)?;
        b.multiply(convolved, gate)?;
        Ok(convolved)
    }

    /// The same through its delta rule.
    pub(super) fn delta_net(
        &mut self,
        (b, a): (&mut B, &mut Adapters<B>),
        config: &Config,
        w: &DeltaNet<B>,
        x: &B::Buffer,
        index: usize,
    ) -> Result<&B::Buffer, ModelError> {
        let Scratch { mixed, convolved, gate, rate, decay, out } = &mut self.scratch;
        let Some(RecurrentKind::DeltaNet { shape, .. }) = config.recurrent.as_ref().map(|r| r.kind) else {
            return Ok(out);
        };
        let into = &mut [
            (&w.mixed, &mut *mixed),
            (&w.gate, &mut *gate),
            (&w.rate, &mut *rate),
            (&w.decay, &mut *decay),
        ];
        a.project(b, x, None, into)?;
        let [conv, heads] = &mut self.states[index];
        b.short_conv(mixed, &w.taps, conv, &self.runs, convolved)?;
        b.activate(convolved, Activation::Silu)?;
        let inputs = DeltaInputs { mixed: convolved, decay, rate, slope: &w.slope, bias: &w.bias };
        b.delta_rule(&shape, inputs, heads, &self.runs, out)?;
        b.rms_norm_heads(out, &w.norm, config.norm_eps)?;
        b.gated(gate, out, Activation::Silu)?;
        Ok(gate)
    }
}
