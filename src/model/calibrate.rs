//! Channel orders from a model's own activations on a text (SPEC §4): all three kinds, summed over blocks of tokens.

use std::path::PathBuf;

use tch::Tensor;

use super::llama::{Attention, Dense, Llama};
use super::{Error, Model, Result, text};
use crate::algorithm::calibrate::{BlockActivations, Importance};
use crate::algorithm::{ChannelFile, ChannelKind, ChannelOrder, Detail};
use crate::torch::to_host;

/// Importance of every layer's channels, summed over blocks.
#[derive(Debug)]
pub struct Calibrator {
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
        self.add(layer, 0, &BlockActivations::One(to_host(q)?))?;
        self.add(layer, 1, &BlockActivations::One(to_host(k)?))
    }

    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.add(layer, 2, &BlockActivations::Pair { q: to_host(q)?, k: to_host(k)? })?;
        Dense.attend(layer, q, k, v)
    }
}

impl Calibrator {
    /// Nothing summed yet.
    pub fn new(model: &Llama) -> Self {
        let layers = model.config().layers;
        Self { sums: nothing(layers), last: nothing(layers), blocks: 0 }
    }

    /// Runs the model on blocks of tokens that are spread evenly over texts, from beginning to end. `tick` is called for each.
    ///
    /// Errors: [`Error::Tokens`] for no blocks, and for texts that are too short; those of the texts and of the model.
    pub fn of_texts(
        model: &Model,
        files: &[PathBuf],
        [blocks, length]: [usize; 2],
        tick: &mut dyn FnMut(),
    ) -> Result<Self> {
        let mut tokens = Vec::new();
        for file in files {
            tokens.extend(model.tokenizer.encode(&text::read(file)?)?);
        }
        let needed = blocks.saturating_mul(length);
        if needed == 0 || tokens.len() < needed {
            let expected = format!("{blocks} blocks of {length}, at least one");
            return Err(Error::Tokens(Detail::new("--text", format!("{} tokens", tokens.len()), expected)));
        }
        let mut calibrator = Self::new(&model.llama);
        for block in 0..blocks {
            let start = block * (tokens.len() - length) / (blocks - 1).max(1);
            calibrator.add(&model.llama, &tokens[start..start + length])?;
            tick();
        }
        Ok(calibrator)
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

    /// How the sums agree with the last block alone, where there are several, and with another file, in the leading `label_channels`:
    /// a line for each kind.
    ///
    /// Errors: those of [`Calibrator::compare`].
    pub fn summary(&self, file: Option<&ChannelFile>, label_channels: usize) -> Result<String> {
        let mut lines = Vec::new();
        if self.blocks > 1 {
            for kind in ChannelKind::ALL {
                let last = self.last_block_only(kind, label_channels)?;
                lines.push(format!("{}, last block only (D10): {last}", kind.name()));
            }
        }
        if let Some(file) = file {
            for kind in ChannelKind::ALL {
                let found = self.compare(file, kind, label_channels)?;
                let found = found.map_or("it holds no such rows".into(), |found| found.to_string());
                lines.push(format!("{}, the other file: {found}", kind.name()));
            }
        }
        Ok(lines.join("\n"))
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

impl std::fmt::Display for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rows, same_channels, same_order, .. } = *self;
        let share = 100.0 * self.shared as f64 / self.channels.max(1) as f64;
        write!(
            f,
            "{same_channels} of {rows} rows lead with the same channels ({same_order} in the same order), {share:.1} % of channels \
             in common"
        )?;
        if same_channels < rows {
            let gap = 100.0 * self.widest_gap;
            write!(f, "; where they differ, importance does by up to {gap:.1} %")?;
        }
        Ok(())
    }
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
