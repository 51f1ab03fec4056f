//! Channel orders from a model's own activations on a text (SPEC §4): all three kinds, summed over blocks of tokens.

use ndarray::Array4;
use tch::Tensor;

use super::llama::{Attention, Dense, Llama};
use super::{Error, Result};
use crate::algorithm::calibrate::{BlockActivations, Importance};
use crate::algorithm::{ChannelFile, ChannelKind, Detail};
use crate::subjects::torch::to_host;

/// Importance of every layer's channels, summed over blocks.
#[derive(Debug)]
pub struct Calibration {
    /// q_proj, k_proj, qk_proj of each layer.
    sums: Vec<[Importance; 3]>,
    blocks: usize,
}

/// Attends densely and sums what it sees.
struct Capture<'a> {
    sums: &'a mut [[Importance; 3]],
}

impl Attention for Capture<'_> {
    fn projected(&mut self, layer: usize, q: &Tensor, k: &Tensor) -> Result<()> {
        self.sums[layer][0].add(&BlockActivations::One(host(q)?))?;
        self.sums[layer][1].add(&BlockActivations::One(host(k)?))?;
        Ok(())
    }

    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.sums[layer][2].add(&BlockActivations::Pair { q: host(q)?, k: host(k)? })?;
        Dense.attend(layer, q, k, v)
    }
}

fn host(x: &Tensor) -> Result<Array4<f32>> {
    Ok(to_host(x)?)
}

impl Calibration {
    /// Nothing summed yet.
    pub fn new(model: &Llama) -> Self {
        let layer = || ChannelKind::ALL.map(Importance::new);
        Self { sums: (0..model.config().layers).map(|_| layer()).collect(), blocks: 0 }
    }

    /// Runs the model on one block of tokens and adds what its channels show. Errors: those of the model.
    pub fn add(&mut self, model: &Llama, block: &[u32]) -> Result<()> {
        let mut cache = model.cache(block.len())?;
        let _ = model.forward(block, &mut cache, &mut Capture { sums: &mut self.sums })?;
        self.blocks += 1;
        Ok(())
    }

    /// How many blocks were summed.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The importance of one layer's channels.
    pub fn importance(&self, kind: ChannelKind, layer: usize) -> Option<&Importance> {
        let kind = ChannelKind::ALL.iter().position(|&other| other == kind)?;
        self.sums.get(layer).map(|kinds| &kinds[kind])
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
