//! One case: an instance, one call of it, and what some source says the answer is (SPEC §6); what implementations answer.

use super::recipe::Recipe;
use super::rounding_model::RoundingModel;
use super::sequence::{Call, Instance, Sequence};
use crate::algorithm::calibrate::BlockActivations;
use crate::algorithm::{ChannelKind, ChannelOrder, Dims, Error, Inputs, LabelBits, Mask, Storage};
use std::sync::Arc;

use ndarray::{Array2, Array3, Array4};

/// One call to be answered, with what some source says the answer is.
#[derive(Debug, Clone)]
pub struct Case {
    /// The file's path below its folder, or how the case was made.
    pub name: String,
    /// What is configured.
    pub instance: Instance,
    /// What is asked.
    pub call: Call,
    /// How the inputs were made, where the file holds no tensors.
    pub recipe: Option<Recipe>,
    /// What some source says the answer is.
    pub expectation: Option<Expectation>,
    /// Settings of its file that this version does not know: reported, not used.
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

impl Case {
    /// The sizes.
    pub fn dims(&self) -> Dims {
        self.call.inputs.dims()
    }

    /// C of the call's layer. Errors: those of [`Instance::channels`].
    pub fn channels(&self) -> Result<&ChannelOrder, Error> {
        self.instance.channels(self.call.layer)
    }

    /// The case with other rows of C, and without the recipe that made it.
    #[must_use]
    pub fn with_channels(&self, channels: ChannelOrder) -> Self {
        let selection = self.instance.selection;
        let rows = Instance::of_layer(selection, channels, &self.dims());
        let instance = Instance {
            channel_selection: rows.channel_selection,
            channel_file: rows.channel_file,
            ..self.instance.clone()
        };
        let call = Call { layer: 0, ..self.call.clone() };
        Self { instance, call, recipe: None, ..self.clone() }
    }

    /// The case with other inputs, and without the recipe that made it.
    #[must_use]
    pub fn with_inputs(&self, inputs: Inputs) -> Self {
        let call = Call { inputs: Arc::new(inputs), ..self.call.clone() };
        Self { call, recipe: None, ..self.clone() }
    }

    /// The mask that Double Sparsity starts from: P and what earlier maskers added. Errors: those of the maskers.
    pub fn before(&self) -> Result<Mask, Error> {
        self.instance.before(&self.call)
    }

    /// The case as a sequence of one call.
    pub fn sequence(&self) -> Sequence {
        let (name, instance) = (self.name.clone(), self.instance.clone());
        Sequence { name, instance, calls: vec![self.call.clone()] }
    }
}

/// What a case file says the answer is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Expectation {
    /// [b, h, m, ·]: ascending key indices, −1 pads.
    pub selected: Option<Array4<i32>>,
    /// [b, h, m, n]: 1 attended, 0 not.
    pub mask: Option<Array4<u8>>,
    /// [b, h, m, dv].
    pub output: Option<Array4<f32>>,
    /// Where it came from.
    pub source: String,
    /// How that source rounds; `None` means as the author's code does.
    pub model: Option<RoundingModel>,
    /// For recorded faults, the row of SPEC §3 for which this expectation must diverge from the SPEC.
    pub known_divergence: Option<String>,
}

impl Expectation {
    /// An answer as an expectation: ascending key indices, padded with −1 to the longest row.
    pub fn from_answer(answer: &Answer, source: String) -> Self {
        let weights = answer.mask.weights();
        let (b, h, m, _) = weights.dim();
        let rows: Vec<Vec<usize>> = ndarray::indices((b, h, m))
            .into_iter()
            .map(|row| answer.mask.row(row).map(|(key, _)| key).collect())
            .collect();
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        let selected = Array4::from_shape_fn((b, h, m, width), |(b, head, i, position)| {
            rows[(b * h + head) * m + i].get(position).map_or(-1, |&key| key as i32)
        });
        Self {
            selected: Some(selected),
            mask: None,
            output: answer.output.clone(),
            source,
            model: None,
            known_divergence: None,
        }
    }

    /// The expectation as an answer. `selected` is taken together with the keys attended before, as sources differ in
    /// whether they list those again; `mask` is taken as it is. Keys attended before keep their weight. `None` where
    /// the file holds no mask.
    ///
    /// Errors: a sentence saying which stored value is no possible answer.
    pub fn answer(&self, before: &Mask) -> Option<Result<Answer, String>> {
        let attended = match (&self.selected, &self.mask) {
            (None, None) => return None,
            (Some(selected), None) => selected_mask(selected, before),
            (None, Some(mask)) => stored_mask(mask, before),
            (Some(selected), Some(mask)) => selected_mask(selected, before).and_then(|attended| {
                let agree = stored_mask(mask, before)? == attended;
                if agree { Ok(attended) } else { Err("selected and mask name different keys".into()) }
            }),
        };
        Some(attended.map(|mask| Answer::new(mask, self.output.clone())))
    }
}

pub(super) fn selected_mask(selected: &Array4<i32>, before: &Mask) -> Result<Mask, String> {
    let (b, h, m, keys) = before.weights().dim();
    let mut attended = before.clone();
    for row @ (b, head, i) in ndarray::indices((b, h, m)) {
        let (mut last, mut padded) = (-1, false);
        for (position, &key) in selected.slice(ndarray::s![b, head, i, ..]).iter().enumerate() {
            let fits = key == -1 || (!padded && key > last && (key as usize) < keys);
            if !fits {
                return Err(format!(
                    "selected[{b}, {head}, {i}, {position}]: found {key} after {last}, expected ascending indices \
                     below {keys}, padded with -1 at the end"
                ));
            }
            if key == -1 {
                padded = true;
            } else if !before.attends(b, head, i, key as usize) {
                attended.add(row, [key as usize]);
            }
            last = key;
        }
    }
    Ok(attended)
}

fn stored_mask(mask: &Array4<u8>, before: &Mask) -> Result<Mask, String> {
    let mut attended = before.clone();
    for ((b, head, i, key), &value) in mask.indexed_iter() {
        match value {
            0 => attended.remove((b, head, i), key),
            1 if before.attends(b, head, i, key) => {}
            1 => attended.add((b, head, i), [key]),
            _ => return Err(format!("mask[{b}, {head}, {i}, {key}]: found {value}, expected 0 or 1")),
        }
    }
    Ok(attended)
}

/// Why an implementation gives no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It refuses the case.
    #[error(transparent)]
    Refused(#[from] Error),
    /// It refuses the case without naming one of the kinds of [`Error`]: right wherever the case must be refused.
    #[error("{0}")]
    Declined(String),
    /// It broke: out of memory, a library's error, a lost process.
    #[error("failed: {0}")]
    Failed(String),
}

/// What an implementation answers to a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// [b, h, m, n]: the weights of all attended keys, including those of the earlier mask and of earlier maskers.
    pub mask: Mask,
    /// [b, h, m, dv], where the implementation computes attention.
    pub output: Option<Array4<f32>>,
    /// The labels, where the implementation gives them.
    pub labels: Option<AnsweredLabels>,
    /// [b, h, m, n]: the scores by which keys were ranked, after the head rule and A, where the implementation gives them.
    pub scores: Option<Array4<f32>>,
    /// [b, h, m]: log Σ exp(w) / weight over attended keys, where the implementation gives it.
    pub lse: Option<Array3<f32>>,
}

/// The labels of every query head (SPEC §2.4, §2.5) by which an implementation ranked keys.
#[derive(Debug, Clone, PartialEq)]
pub struct AnsweredLabels {
    /// [b, h, m, r]
    pub q: Array4<f32>,
    /// [b, h, n, r]
    pub k: Array4<f32>,
}

impl Answer {
    /// A mask and, where the implementation computes attention, an output.
    pub fn new(mask: Mask, output: Option<Array4<f32>>) -> Self {
        Self { mask, output, labels: None, scores: None, lse: None }
    }

    /// Whether mask and output have the shapes that a case of these sizes asks for.
    pub fn fits(&self, dims: &Dims) -> bool {
        let output = self.output.as_ref().is_none_or(|output| output.dim() == dims.output_shape());
        let scores = self.scores.as_ref().is_none_or(|scores| scores.dim() == dims.mask_shape());
        let rows = (dims.batch, dims.heads, dims.queries);
        let lse = self.lse.as_ref().is_none_or(|lse| lse.dim() == rows);
        output && scores && lse && self.labels_fit(dims) && self.mask.weights().dim() == dims.mask_shape()
    }

    fn labels_fit(&self, dims: &Dims) -> bool {
        self.labels.as_ref().is_none_or(|labels| {
            let (b, h, m, n) = dims.mask_shape();
            let channels = labels.q.dim().3;
            labels.q.dim() == (b, h, m, channels) && labels.k.dim() == (b, h, n, channels)
        })
    }
}

/// Rows to be quantised and the labels some source gives for them.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelCase {
    /// Display name.
    pub name: String,
    /// The type of rows and labels.
    pub storage: Storage,
    /// B.
    pub bits: LabelBits,
    /// [rows, r]
    pub rows: Array2<f32>,
    /// [rows, r]; `None` where every row must be refused (SPEC D9).
    pub labels: Option<Array2<f32>>,
    /// Where the labels came from.
    pub source: String,
}

/// Activations and the channel order some source gives for them.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibrationCase {
    /// Display name.
    pub name: String,
    /// Which importance.
    pub kind: ChannelKind,
    /// In the order in which they were seen.
    pub blocks: Vec<BlockActivations>,
    /// The order expected.
    pub channels: ChannelOrder,
    /// Where it came from.
    pub source: String,
    /// For recorded faults, the row of SPEC §3 for which the expectation must diverge from the SPEC.
    pub known_divergence: Option<String>,
}
