//! Activation files, from which channel files are calibrated (SPEC §4): one safetensors file per layer and block, with
//! the metadata `layer` (a number) and any of the tensors (F32, F16 or BF16)
//!
//! * `q_proj` [b, h, t, d], queries before RoPE: gives kind q_proj;
//! * `k_proj` [b, hk, t, d], keys before RoPE: gives kind k_proj;
//! * `q` [b, h, m, d] and `k` [b, hk, n, d], after RoPE, query i being the token of key n − m + i: give kind qk_proj.
//!
//! Other tensors are ignored. All blocks of a layer must hold the same kinds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::error::{Error, Result};
use super::file::metadata;
use super::memory::Memory;
use super::tensors::{Tensors, floats};
use crate::algorithm::calibrate::{BlockActivations, Importance};
use crate::algorithm::channels::ranges;
use crate::algorithm::{ChannelFile, ChannelKind, Detail};

/// Importance by layer and kind, and how many blocks each was summed over.
#[derive(Debug, Default)]
pub struct Calibration {
    sums: BTreeMap<(usize, ChannelKind), (Importance, usize)>,
}

/// Sums the importance over all files. Errors name the file, the field, what was found and what was expected.
pub fn calibrate(paths: &[PathBuf], memory: Memory) -> Result<Calibration> {
    let mut calibration = Calibration::default();
    for path in paths {
        calibration.add_file(path, memory).map_err(|error| error.in_file(path))?;
    }
    Ok(calibration)
}

impl Calibration {
    fn add_file(&mut self, path: &Path, memory: Memory) -> Result<()> {
        let bytes = memory.read(path)?;
        let file = Tensors::parse(&bytes)?;
        let layer = file.metadata.get("layer").map_or("nothing", String::as_str);
        let layer: usize = layer.parse().map_err(|_| metadata("layer", layer, "the number of a layer"))?;
        let blocks = blocks(&file)?;
        if blocks.is_empty() {
            let expected = "q_proj, k_proj, or q and k";
            return Err(Error::Tensor(Detail::new("activations", "none of the tensors", expected)));
        }
        for (kind, block) in blocks {
            let new = || (Importance::new(kind), 0);
            let (sum, count) = self.sums.entry((layer, kind)).or_insert_with(new);
            sum.add(&block)?;
            *count += 1;
        }
        Ok(())
    }

    /// The channel orders, one row per head, or one for all heads where `shared`.
    ///
    /// Errors: [`Error::Metadata`] where the kinds of a layer come from different numbers of blocks.
    pub fn channel_file(&self, shared: bool) -> Result<ChannelFile> {
        let mut file = ChannelFile::default();
        for (&(layer, kind), (sum, count)) in &self.sums {
            let most = self.sums.range((layer, ChannelKind::QProj)..=(layer, ChannelKind::QkProj));
            let most = most.map(|(_, (_, count))| *count).max().unwrap_or(0);
            if *count != most {
                let field = format!("blocks of layer {layer} with {}", kind.name());
                return Err(metadata(&field, count, &format!("{most}, as other kinds of this layer have")));
            }
            let order = if shared { sum.shared_order()? } else { sum.order()? };
            file.insert(kind, layer, order);
        }
        Ok(file)
    }

    /// One line for each kind: layers and blocks.
    pub fn summary(&self) -> String {
        let line = |kind: ChannelKind| {
            let layers = self.sums.keys().filter(|(_, found)| *found == kind).map(|(layer, _)| *layer);
            let layers: Vec<_> = layers.collect();
            let blocks: usize =
                self.sums.iter().filter(|((_, found), _)| *found == kind).map(|(_, (_, count))| count).sum();
            let text = format!("{}: layers {}, {blocks} blocks", kind.name(), ranges(layers.iter().copied()));
            (!layers.is_empty()).then_some(text)
        };
        ChannelKind::ALL.into_iter().filter_map(line).collect::<Vec<_>>().join("\n")
    }
}

fn blocks(file: &Tensors) -> Result<Vec<(ChannelKind, BlockActivations)>> {
    let tensor = |name: &str| -> Result<Option<ndarray::Array4<f32>>> {
        let view = file.optional(name)?;
        view.map(|view| floats(&view, &[Dtype::F32, Dtype::F16, Dtype::BF16])).transpose()
    };
    let mut blocks = Vec::new();
    if let Some(x) = tensor("q_proj")? {
        blocks.push((ChannelKind::QProj, BlockActivations::One(x)));
    }
    if let Some(x) = tensor("k_proj")? {
        blocks.push((ChannelKind::KProj, BlockActivations::One(x)));
    }
    match (tensor("q")?, tensor("k")?) {
        (Some(q), Some(k)) => blocks.push((ChannelKind::QkProj, BlockActivations::Pair { q, k })),
        (None, None) => {}
        (Some(_), None) => return Err(Error::Tensor(Detail::new("k", "nothing", "k beside q, after RoPE"))),
        (None, Some(_)) => return Err(Error::Tensor(Detail::new("q", "nothing", "q beside k, after RoPE"))),
    }
    Ok(blocks)
}
