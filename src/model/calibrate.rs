//! Channel orders from a model's own activations on a text (SPEC §4): all three kinds, summed over blocks of tokens.

use ndarray::Array4;
use tch::Tensor;

use super::llama::{Attention, Dense, Llama};
use super::{Error, Result};
use crate::algorithm::calibrate::{BlockActivations, Importance};
use crate::algorithm::{ChannelFile, ChannelKind, ChannelOrder, Detail};
use crate::subjects::torch::to_host;

/// Importance of every layer's channels, summed over blocks.
#[derive(Debug)]
pub struct Calibration {
    /// q_proj, k_proj, qk_proj of each layer.
    sums: Vec<[Importance; 3]>,
    /// The same of the last block alone, which is what the author's code keeps (SPEC D10).
    last: Vec<[Importance; 3]>,
    blocks: usize,
}

/// How two channel orders of the same rows agree in their leading r channels.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Agreement {
    /// Rows compared.
    pub rows: usize,
    /// Rows that lead with the same r channels in the same order.
    pub same_order: usize,
    /// Rows that lead with the same r channels.
    pub same_channels: usize,
    /// Channels that both lead with, summed over rows.
    pub shared: usize,
    /// Leading channels in all rows.
    pub channels: usize,
    /// Over rows that lead with other channels, the widest gap between the importance of one that is missing and one that is there
    /// instead, as a share of the larger: small where the two were close to a tie.
    pub widest_gap: f64,
}

/// Attends densely and sums what it sees.
struct Capture<'a> {
    sums: [&'a mut [[Importance; 3]]; 2],
}

impl Capture<'_> {
    fn add(&mut self, layer: usize, kind: usize, block: &BlockActivations) -> Result<()> {
        for sums in &mut self.sums {
            sums[layer][kind].add(block)?;
        }
        Ok(())
    }
}

impl Attention for Capture<'_> {
    fn projected(&mut self, layer: usize, q: &Tensor, k: &Tensor) -> Result<()> {
        self.add(layer, 0, &BlockActivations::One(host(q)?))?;
        self.add(layer, 1, &BlockActivations::One(host(k)?))
    }

    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.add(layer, 2, &BlockActivations::Pair { q: host(q)?, k: host(k)? })?;
        Dense.attend(layer, q, k, v)
    }
}

fn host(x: &Tensor) -> Result<Array4<f32>> {
    Ok(to_host(x)?)
}

impl Calibration {
    /// Nothing summed yet.
    pub fn new(model: &Llama) -> Self {
        let layers = model.config().layers;
        Self { sums: nothing(layers), last: nothing(layers), blocks: 0 }
    }

    /// Runs the model on one block of tokens and adds what its channels show. Errors: those of the model.
    pub fn add(&mut self, model: &Llama, block: &[u32]) -> Result<()> {
        let mut cache = model.cache(block.len())?;
        self.last = nothing(self.last.len());
        let mut capture = Capture { sums: [&mut self.sums, &mut self.last] };
        let _hidden = model.forward(block, &mut cache, &mut capture)?;
        self.blocks += 1;
        Ok(())
    }

    /// How many blocks were summed.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The importance of one layer's channels.
    pub fn importance(&self, kind: ChannelKind, layer: usize) -> Option<&Importance> {
        self.sums.get(layer).map(|kinds| &kinds[kind as usize])
    }

    /// How orders that keep the last block only (SPEC D10) agree with the sums in the leading `label_channels` of all layers.
    ///
    /// Errors: [`Error::Algorithm`] before the first block.
    pub fn last_block_only(&self, kind: ChannelKind, label_channels: usize) -> Result<Agreement> {
        let mut agreement = Agreement::default();
        let place = kind as usize;
        for (sum, last) in self.sums.iter().zip(&self.last) {
            agreement.add(&sum[place], &sum[place].order()?, &last[place].order()?, label_channels);
        }
        Ok(agreement)
    }

    /// How another channel file agrees with the sums in the leading `label_channels` of the layers it holds; none where it does not
    /// hold the kind.
    ///
    /// Errors: [`Error::Algorithm`] before the first block; [`Error::Model`] for a layer or a number of rows that the model does not
    /// have.
    pub fn compare(
        &self,
        file: &ChannelFile,
        kind: ChannelKind,
        label_channels: usize,
    ) -> Result<Option<Agreement>> {
        let mut agreement = Agreement::default();
        for (layer, theirs) in file.layers(kind) {
            let field = || format!("{} of layer {layer}", kind.name());
            let sum = self.importance(kind, layer).ok_or_else(|| {
                let expected = format!("none beyond the model's {} layers", self.sums.len());
                Error::Model(Detail::new(field(), "a layer", expected))
            })?;
            let ours = if theirs.rows().len() == 1 { sum.shared_order()? } else { sum.order()? };
            if ours.rows().len() != theirs.rows().len() {
                let expected = format!("{}, as the model has", ours.rows().len());
                return Err(Error::Model(Detail::new(
                    field(),
                    format!("{} rows", theirs.rows().len()),
                    expected,
                )));
            }
            agreement.add(sum, &ours, theirs, label_channels);
        }
        Ok((agreement.rows > 0).then_some(agreement))
    }

    /// The channel orders, one row per head, or one for all heads where `shared`. Errors: [`Error::Tokens`] before the first block.
    pub fn channel_file(&self, shared: bool) -> Result<ChannelFile> {
        if self.blocks == 0 {
            return Err(Error::Tokens(Detail::new("blocks", 0, "at least one block of tokens")));
        }
        let mut file = ChannelFile::default();
        for (layer, kinds) in self.sums.iter().enumerate() {
            for (kind, sum) in ChannelKind::ALL.into_iter().zip(kinds) {
                file.insert(kind, layer, if shared { sum.shared_order()? } else { sum.order()? });
            }
        }
        Ok(file)
    }
}

fn nothing(layers: usize) -> Vec<[Importance; 3]> {
    (0..layers).map(|_| ChannelKind::ALL.map(Importance::new)).collect()
}

impl Agreement {
    /// Compares the rows of one layer whose channels have this importance.
    fn add(
        &mut self,
        importance: &Importance,
        ours: &ChannelOrder,
        theirs: &ChannelOrder,
        label_channels: usize,
    ) {
        let Some(sum) = importance.sum() else { return };
        let shared = ours.rows().len() == 1;
        for (index, (ours, theirs)) in ours.rows().iter().zip(theirs.rows()).enumerate() {
            let r = label_channels.min(ours.len()).min(theirs.len());
            let (ours, theirs) = (&ours[..r], &theirs[..r]);
            // A shared row's importance is summed over heads.
            let of = |channel: usize| match shared {
                _ if channel >= sum.ncols() => 0.0,
                true => sum.column(channel).sum(),
                false => sum[[index, channel]],
            };
            let missing: Vec<usize> =
                ours.iter().copied().filter(|channel| !theirs.contains(channel)).collect();
            let instead = theirs.iter().copied().filter(|channel| !ours.contains(channel));
            let largest = missing.iter().map(|&channel| of(channel)).fold(0.0, f64::max);
            let smallest = instead.map(of).fold(f64::INFINITY, f64::min);
            self.rows += 1;
            self.channels += r;
            self.shared += r - missing.len();
            self.same_order += usize::from(ours == theirs);
            self.same_channels += usize::from(missing.is_empty());
            if !missing.is_empty() {
                self.widest_gap = self.widest_gap.max((largest - smallest) / largest);
            }
        }
    }
}
