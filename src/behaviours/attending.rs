//! The attention of a behaviour as plain attention (SPEC §2.11) over other inputs and another mask than it shows.

use std::sync::Arc;

use ndarray::{Array4, Axis, concatenate};

use super::Prediction;
use crate::algorithm::{Detail, Error, InputParts, Inputs, Mask, Row, Storage};

/// The plain attention that gives a behaviour's output: some behaviours attend with inputs and a mask other than those they
/// show.
#[derive(Debug, Clone)]
pub struct AttentionView {
    /// Inputs of the attention.
    pub inputs: Arc<Inputs>,
    /// Its mask.
    pub mask: Mask,
    shape: (usize, usize, usize, usize),
    /// Rows whose output is NaN.
    pub nan: Vec<Row>,
    /// Rows whose output is half of what the view computes.
    pub halved: Vec<Row>,
    /// How many numbers of an output row are those that the view computes, where others may be anything.
    pub written: Option<usize>,
    /// What the natural log-sum-exp is multiplied by.
    pub lse_factor: f64,
    /// Inputs and mask of the log-sum-exp, where these are others than those of the output.
    pub lse_of: Option<(Arc<Inputs>, Mask)>,
}

impl AttentionView {
    /// The attention of a behaviour over the mask it shows. Errors: none for checked inputs.
    pub fn new(prediction: &Prediction, mask: &Mask) -> Result<Self, Error> {
        let behaviour = &prediction.behaviour;
        let inputs = &prediction.attending;
        let dims = inputs.dims();
        let mut view = Self {
            inputs: inputs.clone(),
            mask: mask.clone(),
            shape: dims.output_shape(),
            nan: nan_rows(prediction, mask),
            halved: Vec::new(),
            written: None,
            lse_factor: 1.0,
            lse_of: None,
        };
        if behaviour.multiplies_weights {
            let inverse = view.mask.weights().mapv(|weight| if weight == 0.0 { 0.0 } else { 1.0 / weight });
            view.mask = Mask::from_weights(inverse, &dims)?;
        }
        if behaviour.ignores_weights {
            let ones = view.mask.weights().mapv(|weight| if weight == 0.0 { 0.0 } else { 1.0 });
            view.mask = Mask::from_weights(ones, &dims)?;
        }
        if behaviour.shifts_weights {
            let storage = inputs.storage();
            let shifted = |weight: f32| if weight == 0.0 { 0.0 } else { storage.round(weight + 1e-6) };
            view.mask = Mask::from_weights(view.mask.weights().mapv(shifted), &dims)?;
        }
        let missing = prediction.wanted_keys.saturating_sub(dims.keys);
        if behaviour.attends_unwritten && missing > 0 && prediction.ranked.is_some() {
            view = view.with_unwritten(missing)?;
        }
        if behaviour.softmax_over_all {
            view = view.over_all(true)?;
        }
        let Some(change) = behaviour.attention else { return Ok(view) };
        let expected = "an attention that can be computed";
        change
            .apply(view, prediction)
            .ok_or_else(|| Error::Shape(Detail::new("attention", change.words(), expected)))
    }

    /// An output [·, ·, ·, dv] of the view, as the behaviour shows it: [b, h, m, dv].
    pub fn output(&self, output: Array4<f32>) -> Array4<f32> {
        let shape = self.shape;
        let mut output = output.into_shape_with_order(shape).unwrap_or_else(|_| Array4::zeros(shape));
        for &(b, head, i) in &self.nan {
            output.slice_mut(ndarray::s![b, head, i, ..]).fill(f32::NAN);
        }
        for &(b, head, i) in &self.halved {
            output.slice_mut(ndarray::s![b, head, i, ..]).mapv_inplace(|x| x / 2.0);
        }
        output
    }

    /// A subject's output in the shape of the view, its NaN rows replaced by what the view computes, halved ones doubled; `None`
    /// where a row that must be NaN is not.
    pub fn shown(&self, output: &Array4<f32>, computed: &Array4<f32>) -> Option<Array4<f32>> {
        let mut shown = output.clone();
        let computed = computed.view().into_shape_with_order(self.shape).ok()?;
        for &(b, head, i) in &self.nan {
            let row = ndarray::s![b, head, i, ..];
            if !shown.slice(row).iter().all(|x| x.is_nan()) {
                return None;
            }
            shown.slice_mut(row).assign(&computed.slice(row));
        }
        for &(b, head, i) in &self.halved {
            shown.slice_mut(ndarray::s![b, head, i, ..]).mapv_inplace(|x| 2.0 * x);
        }
        let (b, h, m, _) = self.inputs.dims().output_shape();
        shown.into_shape_with_order((b, h, m, self.shape.3)).ok()
    }

    /// Whether some rows are shown otherwise than they are computed.
    pub fn changes_rows(&self) -> bool {
        !(self.nan.is_empty() && self.halved.is_empty())
    }

    /// Keys of zeros, attended to, after the others.
    fn with_unwritten(self, missing: usize) -> Result<Self, Error> {
        let parts = self.inputs.parts();
        let dims = self.inputs.dims();
        let zeros = |tensor: &Array4<f32>| {
            let (b, heads, _, size) = tensor.dim();
            let slots = Array4::zeros((b, heads, missing, size));
            concatenate(Axis(2), &[tensor.view(), slots.view()]).map_err(shape_error)
        };
        let (b, h, m, n) = dims.mask_shape();
        let additive = Array4::from_shape_fn((b, h, m, n + missing), |(b, head, i, key)| {
            if key < n { self.inputs.additive(b, head, i).at(key) } else { 0.0 }
        });
        let slots = Array4::ones((b, h, m, missing));
        let weights =
            concatenate(Axis(3), &[self.mask.weights().view(), slots.view()]).map_err(shape_error)?;
        let inputs = Inputs::new(InputParts {
            k: zeros(&parts.k)?,
            v: zeros(&parts.v)?,
            attention_mask: Some(additive),
            causal: false,
            ..parts.clone()
        })?;
        let mask = Mask::from_weights(weights, &inputs.dims())?;
        Ok(Self { inputs: Arc::new(inputs), mask, ..self })
    }

    /// Every row a batch entry of its own, attending to everything, with values of 0 where the mask attends to nothing. Weights
    /// divide what is summed for the softmax, too, or else values alone. Errors: none for checked inputs.
    pub fn over_all(self, in_sum: bool) -> Result<Self, Error> {
        let (inputs, dims) = (&self.inputs, self.inputs.dims());
        let rows: Vec<Row> = dims.rows().collect();
        let (n, d, dv) = (dims.keys, dims.head_dim, dims.value_dim);
        let at = |index: usize| rows[index];
        let inputs = Inputs::new(InputParts {
            q: Array4::from_shape_fn((rows.len(), 1, 1, d), |(index, _, _, c)| {
                let (b, head, i) = at(index);
                inputs.queries(b, head)[[i, c]]
            }),
            k: Array4::from_shape_fn((rows.len(), 1, n, d), |(index, _, key, c)| {
                let (b, head, _) = at(index);
                inputs.keys(b, head)[[key, c]]
            }),
            v: Array4::from_shape_fn((rows.len(), 1, n, dv), |(index, _, key, c)| {
                let (b, head, i) = at(index);
                match self.mask.weight(b, head, i, key) {
                    0.0 => 0.0,
                    weight => inputs.values(b, head)[[key, c]] / if in_sum { 1.0 } else { weight },
                }
            }),
            attention_mask: Some(Array4::from_shape_fn((rows.len(), 1, 1, n), |(index, _, _, key)| {
                let (b, head, i) = at(index);
                inputs.additive(b, head, i).at(key)
            })),
            causal: false,
            ..inputs.parts().clone()
        })?;
        let weights = Array4::from_shape_fn((rows.len(), 1, 1, n), |(index, _, _, key)| {
            let (b, head, i) = at(index);
            match self.mask.weight(b, head, i, key) {
                weight if weight != 0.0 && in_sum => weight,
                _ => 1.0,
            }
        });
        let mask = Mask::from_weights(weights, &inputs.dims())?;
        Ok(Self { inputs: Arc::new(inputs), mask, ..self })
    }
}

fn shape_error(error: ndarray::ShapeError) -> Error {
    Error::Shape(Detail::new("attention", error, "tensors that can be joined"))
}

fn nan_rows(prediction: &Prediction, mask: &Mask) -> Vec<Row> {
    let behaviour = &prediction.behaviour;
    let inputs = &prediction.attending;
    let half = behaviour.nan_in_f16 && inputs.storage() == Storage::F16;
    let keys = inputs.dims().keys;
    let is_nan = |&row @ (b, head, i): &Row| {
        let additive = inputs.additive(b, head, i);
        let empty = !mask.row(row).any(|(key, _)| additive.at(key) > f32::NEG_INFINITY);
        let leaves_out = (0..keys).any(|key| !mask.attends(b, head, i, key));
        (half && leaves_out) || (behaviour.nan_in_empty_rows && empty)
    };
    if !half && !behaviour.nan_in_empty_rows {
        return Vec::new();
    }
    inputs.dims().rows().filter(is_nan).collect()
}
