//! Implementations that do one stage of the contract only (`docs/PROTOCOL.md`, `takes` and `gives`): a top-k kernel takes
//! scores and gives a selection (SPEC §2.9), a sparse attention kernel takes a selection and gives an output or a
//! log-sum-exp (SPEC §2.11).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use ndarray::{Array3, Array4};
use serde::{Deserialize, Serialize};

use super::domain::Quantity;
use super::sequence::{Call, Instance};
use crate::algorithm::{Detail, Dims, Error, Inputs, Lengths, Mask, Row, Storage};

/// Where an implementation starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Takes {
    /// From q, k and v: all of it.
    #[default]
    Inputs,
    /// From scores: a top-k.
    Scores,
    /// From a selection: sparse attention.
    Selection,
}

impl Takes {
    /// The name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inputs => "inputs",
            Self::Scores => "scores",
            Self::Selection => "selection",
        }
    }
}

/// What an implementation answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Given {
    /// The labels of queries and keys.
    Labels,
    /// The scores by which keys are ranked.
    Scores,
    /// The selected keys, as indices.
    Selected,
    /// The selected keys, as a mask.
    Mask,
    /// The attention output.
    Output,
    /// The log-sum-exp of each row.
    Lse,
}

impl Given {
    /// The name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Labels => "labels",
            Self::Scores => "scores",
            Self::Selected => "selected",
            Self::Mask => "mask",
            Self::Output => "output",
            Self::Lse => "lse",
        }
    }
}

/// Which stages an implementation does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stages {
    /// Where it starts.
    pub takes: Takes,
    /// What each answer holds; empty where it is the default: a mask or a selection, and an output where it is offered.
    pub gives: BTreeSet<Given>,
}

impl Stages {
    /// Stages that start at `takes` and give `gives`; `None` stands for the default: a selection from scores, an output from a
    /// selection.
    ///
    /// Errors: an empty list, something that cannot follow from what is taken, or no selection from inputs or scores.
    pub fn new(takes: Takes, gives: Option<&[Given]>) -> Result<Self, Detail> {
        use Given::{Labels, Lse, Mask, Output, Scores, Selected};
        let possible: &[Given] = match takes {
            Takes::Inputs => &[Labels, Scores, Selected, Mask, Output, Lse],
            Takes::Scores => &[Selected, Mask],
            Takes::Selection => &[Output, Lse],
        };
        let gives: BTreeSet<Given> = match (gives, takes) {
            (Some(gives), _) => gives.iter().copied().collect(),
            (None, Takes::Inputs) => return Ok(Self::default()),
            (None, Takes::Scores) => [Selected].into(),
            (None, Takes::Selection) => [Output].into(),
        };
        let names =
            |list: &mut dyn Iterator<Item = Given>| list.map(Given::name).collect::<Vec<_>>().join(", ");
        let found = || match gives.is_empty() {
            true => "an empty list".to_owned(),
            false => names(&mut gives.iter().copied()),
        };
        let fits = !gives.is_empty() && gives.iter().all(|given| possible.contains(given));
        if !fits {
            let expected = format!(
                "at least one of {}, as {} are taken",
                names(&mut possible.iter().copied()),
                takes.name()
            );
            return Err(Detail::new("gives", found(), expected));
        }
        if takes == Takes::Inputs && !gives.contains(&Selected) && !gives.contains(&Mask) {
            return Err(Detail::new("gives", found(), "selected or mask among it, as inputs are taken"));
        }
        Ok(Self { takes, gives })
    }

    /// Whether anything but the default was declared.
    pub fn is_declared(&self) -> bool {
        *self != Self::default()
    }

    /// Whether every answer is declared to hold this.
    pub fn gives(&self, given: Given) -> bool {
        self.gives.contains(&given)
    }
}

/// Whether keys are ranked at all in a call: not in a dense layer, and not where an early out gives a full mask (SPEC §2.2).
pub fn ranks(instance: &Instance, call: &Call) -> bool {
    if let Some(entries) = call.entries() {
        return entries.iter().flat_map(|entry| &entry.call).any(|call| ranks(instance, call));
    }
    let dims = call.inputs.dims();
    let short = instance.selection.dense_fallback
        && dims.keys - dims.queries <= instance.selection.heavy_size.resolve(dims.keys);
    let full = || instance.before(call).is_ok_and(|before| before.is_full());
    !instance.dense_layers.contains(&call.layer) && !short && !full()
}

/// A question to a top-k: which keys of each row have the largest scores.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoresCall {
    scores: Array4<f32>,
    storage: Storage,
    heavy_size: NonZeroUsize,
    lengths: Option<Lengths>,
}

impl ScoresCall {
    /// Scores [b, h, m, n], rounded to the storage type, and H. A score of −∞ is no candidate.
    ///
    /// Errors: [`Error::Shape`] for an empty dimension, [`Error::NotFinite`] for NaN.
    pub fn new(scores: Array4<f32>, storage: Storage, heavy_size: NonZeroUsize) -> Result<Self, Error> {
        if scores.is_empty() {
            let found = format!("{:?}", scores.shape());
            return Err(Error::Shape(Detail::new("scores", found, "no empty dimension")));
        }
        let scores = scores.mapv(|score| storage.round(score)).as_standard_layout().into_owned();
        if let Some((index, _)) = scores.indexed_iter().find(|(_, score)| score.is_nan()) {
            return Err(Error::NotFinite(Detail::new(format!("scores{index:?}"), "NaN", "a number or -inf")));
        }
        Ok(Self { scores, storage, heavy_size, lengths: None })
    }

    /// The question with entries of unequal lengths (SPEC §2.13): what lies beyond is −∞ here, and what [`Lengths::padding`] says
    /// where it is asked. Errors: [`Error::Shape`], as of [`Inputs::with_lengths`].
    pub fn with_lengths(mut self, lengths: Option<Lengths>) -> Result<Self, Error> {
        if let Some(lengths) = &lengths {
            lengths.check(&self.dims())?;
            for (b, &length) in lengths.keys().iter().enumerate() {
                self.scores.slice_mut(ndarray::s![b, .., .., length..]).fill(f32::NEG_INFINITY);
            }
        }
        self.lengths = lengths;
        Ok(self)
    }

    /// How many keys each entry has, where that was given.
    pub fn lengths(&self) -> Option<&Lengths> {
        self.lengths.as_ref()
    }

    /// The scores as they are asked: with padding, where there is any.
    pub fn padded_scores(&self) -> Cow<'_, Array4<f32>> {
        let Some(lengths) = &self.lengths else { return Cow::Borrowed(&self.scores) };
        let mut padded = self.scores.clone();
        for (b, &length) in lengths.keys().iter().enumerate() {
            for key in length..self.dims().keys {
                let own = ndarray::s![b, .., .., key];
                padded.slice_mut(own).fill(lengths.padding().at(key, self.storage));
            }
        }
        Cow::Owned(padded)
    }

    /// [b, h, m, n]
    pub fn scores(&self) -> &Array4<f32> {
        &self.scores
    }

    /// The type of the scores.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// H.
    pub fn heavy_size(&self) -> NonZeroUsize {
        self.heavy_size
    }

    /// The sizes; each head has keys of its own, and there are no channels.
    pub fn dims(&self) -> Dims {
        let (batch, heads, queries, keys) = self.scores.dim();
        Dims { batch, heads, kv_heads: heads, queries, keys, head_dim: 1, value_dim: 1 }
    }
}

/// A question to a sparse attention: the output over selected keys.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectionCall {
    /// q, k and v without A: the selection says everything.
    pub inputs: Arc<Inputs>,
    /// The attended keys, each with weight 1.
    pub mask: Mask,
}

impl SelectionCall {
    /// The keys of each row as indices: [b, h, m, ·], ascending, padded with −1 to the longest row, at least one wide.
    pub fn selected(&self) -> Array4<i32> {
        let dims = self.inputs.dims();
        let (b, h, m, _) = dims.mask_shape();
        let rows: Vec<Vec<usize>> =
            dims.rows().map(|row| self.mask.row(row).map(|(key, _)| key).collect()).collect();
        let width = rows.iter().map(Vec::len).max().unwrap_or(0).max(1);
        Array4::from_shape_fn((b, h, m, width), |(b, head, i, position)| {
            rows[(b * h + head) * m + i].get(position).map_or(-1, |&key| key as i32)
        })
    }
}

/// A question to an implementation of one stage.
#[derive(Debug, Clone, PartialEq)]
pub enum StageCall {
    /// A question to a top-k.
    Scores(ScoresCall),
    /// A question to a sparse attention.
    Selection(SelectionCall),
}

/// What an implementation of one stage answers.
#[derive(Debug, Clone, PartialEq)]
pub enum StageAnswer {
    /// The selected keys, each with weight 1.
    Selected(Mask),
    /// Output and log-sum-exp.
    Attended(Attended),
}

/// What a sparse attention answers; at least one of the two.
#[derive(Debug, Clone, PartialEq)]
pub struct Attended {
    /// [b, h, m, dv]
    pub output: Option<Array4<f32>>,
    /// [b, h, m]: log Σ exp(w) over attended keys, natural; −∞ for a row that attends to nothing.
    pub lse: Option<Array3<f32>>,
}

impl StageCall {
    /// Where an implementation that is asked this starts.
    pub fn takes(&self) -> Takes {
        match self {
            Self::Scores(_) => Takes::Scores,
            Self::Selection(_) => Takes::Selection,
        }
    }

    /// How many keys each entry has, where that was given.
    pub fn lengths(&self) -> Option<&Lengths> {
        match self {
            Self::Scores(call) => call.lengths(),
            Self::Selection(call) => call.inputs.lengths(),
        }
    }

    /// The question with entries of unequal lengths; a selection holds nothing of the padding then. Errors: [`Error::Shape`].
    pub fn with_lengths(self, lengths: Lengths) -> Result<Self, Error> {
        Ok(match self {
            Self::Scores(call) => Self::Scores(call.with_lengths(Some(lengths))?),
            Self::Selection(call) => {
                let mut weights = call.mask.weights().clone();
                let inputs = Inputs::clone(&call.inputs).with_lengths(Some(lengths.clone()))?;
                for (b, &length) in lengths.keys().iter().enumerate() {
                    weights.slice_mut(ndarray::s![b, .., .., length..]).fill(0.0);
                }
                let mask = Mask::from_weights(weights, &inputs.dims())?;
                Self::Selection(SelectionCall { inputs: Arc::new(inputs), mask })
            }
        })
    }

    /// The sizes; scores have no channels.
    pub fn dims(&self) -> Dims {
        match self {
            Self::Scores(call) => call.dims(),
            Self::Selection(call) => call.inputs.dims(),
        }
    }

    /// The type of scores, or of q, k and v.
    pub fn storage(&self) -> Storage {
        match self {
            Self::Scores(call) => call.storage,
            Self::Selection(call) => call.inputs.storage(),
        }
    }

    /// A factor of q·k other than 1 / √d.
    pub fn scaling(&self) -> Option<f64> {
        match self {
            Self::Scores(_) => None,
            Self::Selection(call) => call.inputs.parts().scaling,
        }
    }

    /// Whether some row has no candidate, or attends to nothing.
    pub fn has_empty_row(&self) -> bool {
        let empty = |(b, head, i): Row| match self {
            Self::Scores(call) => {
                call.scores.slice(ndarray::s![b, head, i, ..]).iter().all(|&score| score == f32::NEG_INFINITY)
            }
            Self::Selection(call) => call.mask.row((b, head, i)).next().is_none(),
        };
        self.dims().rows().any(empty)
    }

    /// The sizes that a domain may constrain.
    pub fn sizes(&self) -> Vec<(Quantity, usize)> {
        let dims = self.dims();
        let mut sizes = vec![
            (Quantity::Batch, dims.batch),
            (Quantity::Heads, dims.heads),
            (Quantity::Queries, dims.queries),
            (Quantity::Keys, dims.keys),
        ];
        match self {
            Self::Scores(call) => sizes.push((Quantity::HeavySize, call.heavy_size.get())),
            Self::Selection(_) => sizes.extend([
                (Quantity::KvHeads, dims.kv_heads),
                (Quantity::Group, dims.group_size()),
                (Quantity::HeadDim, dims.head_dim),
                (Quantity::ValueDim, dims.value_dim),
            ]),
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_that_make_no_sense_are_refused() {
        for (takes, gives) in [
            (Takes::Inputs, &[][..]),
            (Takes::Inputs, &[Given::Scores]),
            (Takes::Scores, &[Given::Scores]),
            (Takes::Scores, &[]),
            (Takes::Selection, &[Given::Selected]),
            (Takes::Selection, &[Given::Output, Given::Mask]),
        ] {
            let error = Stages::new(takes, Some(gives)).unwrap_err().to_string();
            assert!(error.starts_with("gives: found ") && error.contains("expected"), "{error}");
        }
        assert!(!Stages::new(Takes::Inputs, None).unwrap().is_declared());
        assert!(Stages::new(Takes::Scores, None).unwrap().gives(Given::Selected));
        assert!(Stages::new(Takes::Selection, None).unwrap().gives(Given::Output));
    }
}
