//! The maskers and their composition: sink, local, exact top-k ("oracle") and Double Sparsity, each adding to the
//! mask of the one before, over an attention with layers that stay dense. Early outs follow SPEC §2.2, the rest
//! SPEC §2.7 to §2.10.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ndarray::Array4;

use super::attention::{attention, logits};
use super::channels::{ChannelFile, ChannelOrder};
use super::config::{AttentionConfig, ChannelKind, HeadMode, MaskerConfig, Selection};
use super::error::Result;
use super::heavy_size::HeavySize;
use super::inputs::{Dims, Inputs, Row};
use super::labels::labels_of;
use super::mask::Mask;
use super::rules::is_default;
use super::scores::{Scores, check_head_mode};
use super::select::{select, select_with};
use crate::compute;

/// Something that adds attended keys to a mask.
pub trait Masker: std::fmt::Debug + Send + Sync {
    /// The mask of one layer: all of `previous`, and the keys this masker adds.
    ///
    /// Errors: those of the end of SPEC §2 that concern this masker's settings.
    fn add_mask(&self, inputs: &Inputs, layer: usize, previous: &Mask) -> Result<Mask>;
}

/// The first keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sink {
    /// How many.
    pub size: HeavySize,
}

impl Masker for Sink {
    fn add_mask(&self, inputs: &Inputs, _layer: usize, previous: &Mask) -> Result<Mask> {
        let size = self.size.resolve(inputs.dims().keys);
        Ok(add_rows(&inputs.dims(), previous, |_| 0..size))
    }
}

/// The last keys up to and including the query's own absolute position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Local {
    /// How many.
    pub size: HeavySize,
}

impl Masker for Local {
    fn add_mask(&self, inputs: &Inputs, _layer: usize, previous: &Mask) -> Result<Mask> {
        let dims = inputs.dims();
        let size = self.size.resolve(dims.keys);
        Ok(add_rows(&dims, previous, |(_, _, query)| {
            let end = dims.position(query) + 1;
            end.saturating_sub(size)..end
        }))
    }
}

/// Adds keys to each row where they are not attended yet, so that earlier weights stay.
fn add_rows<K: IntoIterator<Item = usize>>(dims: &Dims, previous: &Mask, keys: impl Fn(Row) -> K) -> Mask {
    let mut mask = previous.clone();
    for row in dims.rows() {
        let new = keys(row).into_iter().filter(|&key| !previous.attends(row.0, row.1, row.2, key));
        mask.add(row, new);
    }
    mask
}

/// The keys with the largest exact scores q·k·scaling + A, each head alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Oracle {
    /// H.
    pub heavy_size: HeavySize,
}

impl Masker for Oracle {
    fn add_mask(&self, inputs: &Inputs, _layer: usize, previous: &Mask) -> Result<Mask> {
        let dims = inputs.dims();
        let heavy_size = self.heavy_size.resolve(dims.keys);
        let rows: Vec<_> = dims.rows().collect();
        let selected = compute::map(rows, dims.operations(), |row @ (b, h, i)| {
            let scores = logits(inputs, row, 0..dims.keys);
            (row, select(&scores, |key| previous.attends(b, h, i, key), heavy_size))
        });
        Ok(with_rows(previous, selected))
    }
}

fn with_rows(previous: &Mask, rows: Vec<(Row, Vec<usize>)>) -> Mask {
    let mut mask = previous.clone();
    for (row, keys) in rows {
        mask.add(row, keys);
    }
    mask
}

/// Where the channel order of a layer comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum ChannelSource {
    /// One order, whatever the layer.
    Order(ChannelOrder),
    /// A channel file and a kind, looked up anew for each layer.
    File(Arc<ChannelFile>, ChannelKind),
}

impl ChannelSource {
    /// The order of one layer. Errors: those of [`ChannelFile::order`].
    pub fn order(&self, layer: usize) -> Result<&ChannelOrder> {
        match self {
            Self::Order(order) => Ok(order),
            Self::File(file, kind) => file.order(*kind, layer),
        }
    }
}

/// The Double Sparsity masker.
#[derive(Debug, Clone, PartialEq)]
pub struct DoubleSparsity {
    /// H, G, B, the head mode and the dense fallback.
    pub selection: Selection,
    /// C, per layer.
    pub channels: ChannelSource,
}

impl Masker for DoubleSparsity {
    fn add_mask(&self, inputs: &Inputs, layer: usize, previous: &Mask) -> Result<Mask> {
        let channels = self.channels.order(layer)?;
        double_sparsity(inputs, channels, &self.selection, previous)
    }
}

/// SPEC §2.1 to §2.10 for one layer: `previous` with weight 1 written at the selected keys.
///
/// Errors: G not dividing d, channels that do not fit the heads or the head dimension, `summed-labels` without
/// shared channels, labels that leave the storage type.
pub fn double_sparsity(
    inputs: &Inputs,
    channels: &ChannelOrder,
    selection: &Selection,
    previous: &Mask,
) -> Result<Mask> {
    let dims = inputs.dims();
    let label_channels = selection.group_factor.label_channels(dims.head_dim)?;
    channels.check(&dims, label_channels)?;
    check_head_mode(inputs, channels, label_channels, selection)?;
    let heavy_size = selection.heavy_size.resolve(dims.keys);
    selection.rules.forced.check(&dims, heavy_size)?;
    if previous.is_full() {
        return Ok(previous.clone());
    }
    if selection.dense_fallback && dims.keys - dims.queries <= heavy_size {
        return Ok(previous.filled());
    }
    let sharing = selection.heads.sharing(&dims);
    // What is ranked together: the heads that read one KV head, or all heads.
    let together = sharing.max(dims.group_size());
    let groups = (0..dims.batch)
        .flat_map(|b| (0..dims.heads).step_by(together).map(move |first| (b, first..first + together)));
    let selected = compute::map(groups.collect(), dims.operations(), |group: (usize, Range<usize>)| {
        let labels = labels_of(inputs, channels, label_channels, selection.bits(), group.clone())?;
        let scores = Scores::new(inputs, group.0, &labels, channels, selection);
        Ok(select_group(&scores, &dims, selection, previous, group))
    });
    let mut selected: Vec<_> = selected.into_iter().collect::<Result<Vec<_>>>()?.concat();
    if sharing > 1 {
        selected = for_every_head(selected, sharing);
    }
    Ok(with_rows(previous, selected))
}

/// The keys that each row of some heads selects. Heads that share a selection have one entry, under the first of them.
fn select_group(
    scores: &Scores,
    dims: &Dims,
    selection: &Selection,
    previous: &Mask,
    (batch, heads): (usize, Range<usize>),
) -> Vec<(Row, Vec<usize>)> {
    let heavy_size = selection.heavy_size.resolve(dims.keys);
    let (ranked, excluding) = match selection.heads {
        HeadMode::PerHead => (heads, 1),
        _ => (heads.start..heads.start + 1, heads.len()),
    };
    let forced = selection.rules.forced;
    let rows: Vec<_> = ranked.flat_map(|head| (0..dims.queries).map(move |i| (head, i))).collect();
    compute::map(rows, dims.operations(), |(head, i)| {
        let earlier: Vec<_> =
            (head..head + excluding).map(|head| previous.row_weights((batch, head, i))).collect();
        let excluded = |key: usize| earlier.iter().any(|row| row[key] != 0.0);
        let scores = scores.row(head, i);
        if is_default(&forced) {
            return ((batch, head, i), select(&scores, excluded, heavy_size));
        }
        let forced = |key: usize| forced.holds(key, dims.position(i));
        ((batch, head, i), select_with(&scores, excluded, forced, heavy_size))
    })
}

/// Copies the keys of the first of the heads that share a selection to all of them.
fn for_every_head(selected: Vec<(Row, Vec<usize>)>, sharing: usize) -> Vec<(Row, Vec<usize>)> {
    let copies = |((b, first, i), keys): (Row, Vec<usize>)| {
        (first..first + sharing).map(move |head| ((b, head, i), keys.clone()))
    };
    selected.into_iter().flat_map(copies).collect()
}

/// Maskers in order, over an attention whose dense layers get a full mask.
#[derive(Debug)]
pub struct SparseAttention {
    maskers: Vec<Box<dyn Masker>>,
    dense_layers: Vec<usize>,
}

impl SparseAttention {
    /// An attention with these maskers and dense layers.
    pub fn new(maskers: Vec<Box<dyn Masker>>, dense_layers: Vec<usize>) -> Self {
        Self { maskers, dense_layers }
    }

    /// Builds the maskers of a configuration; relative paths of channel files start at `folder`.
    ///
    /// Errors: those of [`ChannelFile::read`].
    pub fn create_from_config(config: &AttentionConfig, folder: &Path) -> Result<Self> {
        let maskers = config.maskers.iter().map(|masker| create_masker(masker, folder));
        Ok(Self::new(maskers.collect::<Result<_>>()?, config.dense_layers.clone()))
    }

    /// The mask of one layer, starting from an empty mask. Errors: those of the maskers.
    pub fn mask(&self, inputs: &Inputs, layer: usize) -> Result<Mask> {
        self.extend_mask(inputs, layer, Mask::empty(&inputs.dims()))
    }

    /// The mask of one layer, starting from an earlier mask. Errors: those of the maskers.
    pub fn extend_mask(&self, inputs: &Inputs, layer: usize, previous: Mask) -> Result<Mask> {
        if self.dense_layers.contains(&layer) {
            return Ok(previous.filled());
        }
        self.maskers.iter().try_fold(previous, |mask, masker| masker.add_mask(inputs, layer, &mask))
    }

    /// The output of one layer, [b, h, m, dv]. Errors: those of the maskers.
    pub fn attend(&self, inputs: &Inputs, layer: usize) -> Result<Array4<f32>> {
        attention(inputs, &self.mask(inputs, layer)?)
    }
}

/// Builds one masker; a relative path of a channel file starts at `folder`. Errors: those of [`ChannelFile::read`].
pub fn create_masker(config: &MaskerConfig, folder: &Path) -> Result<Box<dyn Masker>> {
    Ok(match config {
        MaskerConfig::Sink(sink) => Box::new(Sink { size: sink.size }),
        MaskerConfig::Local(local) => Box::new(Local { size: local.size }),
        MaskerConfig::Oracle(oracle) => Box::new(Oracle { heavy_size: oracle.heavy_size }),
        MaskerConfig::DoubleSparsity(config) => {
            let file = ChannelFile::read(&folder.join(&config.sorted_channel_file))?;
            Box::new(DoubleSparsity {
                selection: config.selection,
                channels: ChannelSource::File(Arc::new(file), config.channel_selection),
            })
        }
    })
}
