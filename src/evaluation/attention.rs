//! The attention that a model is given: dense, maskers in libtorch operations, or any [`Subject`]; and what it read of the cache.

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::recall::{RecallSums, recall};
use super::steps::StepFault;
use crate::algorithm::config::WindowConfig;
use crate::algorithm::{
    ChannelFile, ChannelKind, Dims, HeadMode, HeavySize, InputParts, Inputs, Selection, Storage,
};
use crate::cases::{Call, EarlierMasker, Instance, NoAnswer};
use crate::model::llama::{Attention, Dense};
use crate::model::{Error, Result};
use crate::subjects::Subject;
use crate::torch::attention::{attention, dense};
use crate::torch::layer::causal;
use crate::torch::{self, Layer, TorchMasker, masker, to_device, to_host};

/// One masker of a list: each adds keys, in the order of the list (SPEC §2.10).
#[derive(Debug, Clone)]
pub enum Stage {
    /// The first keys.
    Sink(HeavySize),
    /// The last keys up to and including the query's own position.
    Local(HeavySize),
    /// The keys with the largest exact scores.
    Oracle(HeavySize),
    /// Keys drawn at random, anew for each layer, head and query.
    Random(HeavySize),
    /// The keys with the largest label scores, with a layer's rows of a channel file.
    DoubleSparsity(Selection, Arc<ChannelFile>, ChannelKind),
}

/// Who selects keys.
pub enum Selector {
    /// Nobody: every key is attended to.
    Dense,
    /// A list of maskers, on libtorch.
    Maskers(Vec<Stage>),
    /// The same with a fault of decode steps.
    Stepwise(&'static StepFault, Vec<Stage>),
    /// An implementation, asked as `check` asks it: one instance for all layers.
    Subject(Box<Instance>, Box<dyn Subject>),
}

/// What a run read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Keys attended to, summed over sparse layers, heads and queries.
    pub read: f64,
    /// Keys that A leaves, summed over the same.
    pub held: f64,
    /// How many (layer, head, query) were summed over.
    pub rows: f64,
    /// What was kept of exact top-k.
    pub recall: RecallSums,
}

/// An [`Attention`] that attends to what a [`Selector`] selects, but for layers that stay dense.
pub struct Sparse {
    selector: Selector,
    dense_layers: Vec<usize>,
    /// The maskers of layers seen so far, by layer and place in the list.
    maskers: HashMap<(usize, usize), TorchMasker>,
    tally: Tally,
}

impl Sparse {
    /// Sparse everywhere but in `dense_layers`.
    pub fn new(selector: Selector, dense_layers: Vec<usize>) -> Self {
        Self { selector, dense_layers, maskers: HashMap::new(), tally: Tally::default() }
    }

    /// Starts a run: a subject is configured anew, random keys begin from `seed`, nothing is read yet.
    ///
    /// Errors: what the subject refuses.
    pub fn begin(&mut self, seed: i64) -> Result<()> {
        self.tally = Tally::default();
        tch::manual_seed(seed);
        match &mut self.selector {
            Selector::Subject(instance, subject) => {
                subject.configure(instance).map_err(|problem| refused(0, &problem))
            }
            _ => Ok(()),
        }
    }

    /// [`Selector::describe`] and the layers that stay dense.
    pub fn describe(&self) -> String {
        format!("{}, dense layers {:?}", self.selector.describe(), self.dense_layers)
    }

    /// See [`Selector::bytes`].
    pub fn bytes(&self, dims: &Dims, keys_read: f64, keys_held: f64) -> f64 {
        self.selector.bytes(dims, keys_read, keys_held)
    }

    /// What was read since the beginning.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}

fn refused(layer: usize, problem: &NoAnswer) -> Error {
    Error::Attention { layer, problem: problem.to_string() }
}

/// The mask of what a list of maskers selects: [1, h, m, n] in f32.
fn listed(
    stages: &[Stage],
    index: usize,
    layer: &Layer,
    maskers: &mut HashMap<(usize, usize), TorchMasker>,
) -> torch::Result<Tensor> {
    let mut mask: Option<Tensor> = None;
    for (place, stage) in stages.iter().enumerate() {
        mask = Some(add(stage, (index, place), layer, mask, maskers)?);
    }
    let empty = || Tensor::f_zeros(layer.mask_shape(), (Kind::Float, layer.device()));
    Ok(mask.map_or_else(empty, Ok)?)
}

/// A layer in which a fault of decode steps has taken the scores of the keys that it loses.
fn narrowed(layer: &Layer, fault: &StepFault) -> torch::Result<Layer> {
    let (dims, device) = (&layer.dims, layer.device());
    let shape = [1, dims.heads as i64, dims.queries as i64, dims.keys as i64];
    let lost = Tensor::f_from_slice(&fault.lost(dims))?.f_reshape(shape)?.f_to_device(device)?;
    let additive = match &layer.additive {
        Some(additive) => additive.f_expand(shape, false)?.f_masked_fill(&lost, fault.score)?,
        None => Tensor::f_zeros(shape, (Kind::Float, device))?.f_masked_fill(&lost, fault.score)?,
    };
    Ok(Layer {
        dims: *dims,
        q: layer.q.shallow_clone(),
        k: layer.k.shallow_clone(),
        v: layer.v.shallow_clone(),
        additive: Some(additive),
        additive_differs: true,
        head_weights: None,
        ..*layer
    })
}

/// The mask with what one masker adds.
fn add(
    stage: &Stage,
    place: (usize, usize),
    layer: &Layer,
    before: Option<Tensor>,
    maskers: &mut HashMap<(usize, usize), TorchMasker>,
) -> torch::Result<Tensor> {
    let device = layer.device();
    let start = || match &before {
        Some(mask) => Ok(mask.shallow_clone()),
        None => Tensor::f_zeros(layer.mask_shape(), (Kind::Float, device)),
    };
    match stage {
        Stage::Sink(size) => masker::sink(layer, *size, &start()?),
        Stage::Local(size) => masker::local(layer, *size, &start()?),
        Stage::Oracle(size) => masker::oracle(layer, *size, before.as_ref())?.mask(layer, before.as_ref()),
        Stage::Random(size) => masker::random(layer, *size, before.as_ref())?.mask(layer, before.as_ref()),
        Stage::DoubleSparsity(selection, file, kind) => {
            let masker = match maskers.entry(place) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let order = file.order(*kind, place.0)?;
                    entry.insert(TorchMasker::new(&layer.dims, order, selection, Storage::F32, device)?)
                }
            };
            masker.add_mask(layer, before.as_ref())
        }
    }
}

/// What a subject answers: the mask [1, h, m, n] in f32, and the output where it computes one.
fn ask(
    subject: &mut dyn Subject,
    layer: usize,
    [q, k, v]: [&Tensor; 3],
    device: Device,
) -> std::result::Result<(Tensor, Option<Tensor>), NoAnswer> {
    let inputs = Inputs::new(InputParts {
        q: to_host(q)?,
        k: to_host(k)?,
        v: to_host(v)?,
        attention_mask: None,
        causal: true,
        storage: Storage::F32,
        scaling: None,
    })?;
    let answer = subject.call(&Call { layer, inputs: Arc::new(inputs), previous: None })?;
    let output = answer.output.as_ref().map(|output| to_device(output, device)).transpose()?;
    Ok((to_device(answer.mask.weights(), device)?, output))
}

impl Attention for Sparse {
    fn attend(&mut self, index: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        // A subject is told which layers stay dense, and may be wrong about it (SPEC D5).
        let dense_layer = self.dense_layers.contains(&index);
        if dense_layer && !matches!(self.selector, Selector::Subject(..)) {
            return Dense.attend(index, q, k, v);
        }
        let (h, m, n) = (q.size()[1], q.size()[2], k.size()[2]);
        let layer = layer(q, k, v)?;
        let selected = match &mut self.selector {
            Selector::Dense => {
                let rows = (h * m) as f64;
                // Query i sees n − m + i + 1 keys.
                let seen = rows * (n as f64 - (m as f64 - 1.0) / 2.0);
                self.tally.read += seen;
                self.tally.held += seen;
                self.tally.rows += rows;
                return Dense.attend(index, q, k, v);
            }
            Selector::Maskers(stages) => {
                let mask = listed(stages, index, &layer, &mut self.maskers);
                mask.map(|mask| (mask, None)).map_err(NoAnswer::from)
            }
            Selector::Stepwise(fault, stages) => {
                let narrowed = narrowed(&layer, fault);
                let mask = narrowed.and_then(|layer| listed(stages, index, &layer, &mut self.maskers));
                mask.map(|mask| (mask, None)).map_err(NoAnswer::from)
            }
            Selector::Subject(_, subject) => ask(subject.as_mut(), index, [q, k, v], q.device()),
        };
        let (mask, output) = selected.map_err(|problem| refused(index, &problem))?;
        let seen = match &layer.additive {
            Some(additive) => additive.f_eq(0.0)?.f_sum(Kind::Double)?.f_double_value(&[])? * h as f64,
            None => (h * n) as f64,
        };
        let read = match &layer.additive {
            Some(additive) => mask.f_ne(0.0)?.f_logical_and(&additive.f_eq(0.0)?)?,
            None => mask.f_ne(0.0)?,
        };
        let count = read.f_sum(Kind::Double)?.f_double_value(&[])?;
        if !(dense_layer && count == seen) {
            self.tally.read += count;
            self.tally.held += seen;
            self.tally.rows += (h * m) as f64;
            self.tally.recall.add(index, &recall(&layer, &read)?);
        }
        let output = match output {
            Some(output) => output,
            // Few queries read the selected keys only; many read all keys once.
            None if m == 1 => attention(&layer, &mask)?,
            None => dense(&layer, &mask)?,
        };
        Ok(output.f_to_kind(q.kind())?)
    }
}

/// q, k and v as the maskers take them, in f32.
fn layer(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Layer> {
    let (q, k, v) = (q.f_to_kind(Kind::Float)?, k.f_to_kind(Kind::Float)?, v.f_to_kind(Kind::Float)?);
    let (m, n, d) = (q.size()[2], k.size()[2], q.size()[3]);
    // One query sees all keys.
    let additive = if m > 1 { Some(causal(m, n, Kind::Float, q.device())?) } else { None };
    Ok(Layer::new(&q, &k, &v, additive, 1.0 / (d as f64).sqrt())?)
}

/// Heads that need labels of their own: query heads, or KV heads where those that share one have the same channels.
fn label_heads(file: &ChannelFile, kind: ChannelKind, dims: &Dims) -> usize {
    let rows = file.layers(kind).next().map_or(dims.heads, |(_, order)| order.rows().len());
    if dims.kv_heads.is_multiple_of(rows) { dims.kv_heads } else { dims.heads }
}

impl Selector {
    /// Bytes that a decode step reads in one sparse layer: labels, and keys and values of what is attended to, at two bytes a
    /// number; labels of B < 16 with two numbers more for each position and head. Heads that rank alone read their own keys each,
    /// but no more than there are; heads that share a selection read those of a KV head once. Exact top-k reads all keys to rank
    /// them.
    pub fn bytes(&self, dims: &Dims, keys_read: f64, keys_held: f64) -> f64 {
        let Dims { heads, kv_heads, head_dim, value_dim, .. } = *dims;
        let (h, hk, d, dv) = (heads as f64, kv_heads as f64, head_dim as f64, value_dim as f64);
        let labels = |selection: &Selection, file: &ChannelFile, kind: ChannelKind| {
            let r = d / selection.group_factor.get() as f64;
            let code = f64::from(selection.label_bits.get()) / 8.0;
            let range = if selection.label_bits.quantises() { 4.0 } else { 0.0 };
            match selection.heads {
                HeadMode::SummedLabels => keys_held * r * 2.0,
                _ => label_heads(file, kind, dims) as f64 * keys_held * (r * code + range),
            }
        };
        let alone = |selection: &Selection| selection.heads == HeadMode::PerHead;
        let (scoring, all_keys, own) = match self {
            Self::Dense => return hk * keys_held * (d + dv) * 2.0,
            Self::Subject(instance, _) => {
                let scoring = labels(&instance.selection, &instance.channel_file, instance.channel_selection);
                (scoring, false, alone(&instance.selection))
            }
            Self::Maskers(stages) | Self::Stepwise(_, stages) => {
                let scoring = stages.iter().map(|stage| match stage {
                    Stage::DoubleSparsity(selection, file, kind) => labels(selection, file, *kind),
                    _ => 0.0,
                });
                let own = |stage: &Stage| match stage {
                    Stage::DoubleSparsity(selection, ..) => alone(selection),
                    Stage::Oracle(_) | Stage::Random(_) => true,
                    Stage::Sink(_) | Stage::Local(_) => false,
                };
                let all_keys = stages.iter().any(|stage| matches!(stage, Stage::Oracle(_)));
                (scoring.sum(), all_keys, stages.iter().any(own))
            }
        };
        let rows = (if own { h } else { hk } * keys_read).min(hk * keys_held);
        let keys = if all_keys { hk * keys_held } else { rows };
        scoring + (keys * d + rows * dv) * 2.0
    }

    /// Everything that decides what is selected, as text.
    pub fn describe(&self) -> String {
        match self {
            Self::Dense => "dense".into(),
            Self::Maskers(stages) => format!("{stages:?}"),
            Self::Stepwise(fault, stages) => format!("{stages:?} with {fault:?}"),
            Self::Subject(instance, subject) => format!("{}: {instance:?}", subject.name()),
        }
    }

    /// The maskers of an instance, on libtorch.
    pub fn of_instance(instance: &Instance) -> Self {
        Self::Maskers(Self::stages(instance))
    }

    /// The list of them.
    pub fn stages(instance: &Instance) -> Vec<Stage> {
        let earlier = instance.earlier_maskers.iter().map(|masker| match *masker {
            EarlierMasker::Sink(WindowConfig { size }) => Stage::Sink(size),
            EarlierMasker::Local(WindowConfig { size }) => Stage::Local(size),
        });
        let double_sparsity = Stage::DoubleSparsity(
            instance.selection,
            instance.channel_file.clone(),
            instance.channel_selection,
        );
        earlier.chain([double_sparsity]).collect()
    }
}
