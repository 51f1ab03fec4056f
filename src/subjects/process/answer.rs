//! The tensors of an `answer` (`docs/PROTOCOL.md`): a mask in any of its forms, the output, labels.

use half::{bf16, f16};
use ndarray::{Array3, Array4, ArrayView1, Axis};
use safetensors::Dtype;

use crate::algorithm::{Detail, Dims, Mask};
use crate::cases::tensors::{FLOATS, NamedView, Tensors, floats, integers};
use crate::cases::{Answer, AnsweredLabels, Call, Error as FileError, Expectation, Instance};

/// Each row of indices in ascending order, −1 last.
pub(super) fn sort(selected: &mut Array4<i32>) {
    for mut row in selected.lanes_mut(Axis(3)) {
        let mut keys = row.to_vec();
        keys.sort_by_key(|&key| (key == -1, key));
        row.assign(&ArrayView1::from(&keys));
    }
}

/// Reads the tensors of an `answer`; every error is a sentence naming field, found and expected.
pub(super) struct AnswerReader<'a> {
    pub(super) tensors: &'a Tensors<'a>,
    pub(super) instance: &'a Instance,
    pub(super) call: &'a Call,
    /// Whether `selected` may list keys in any order, with −1 anywhere.
    pub(super) any_order: bool,
}

impl AnswerReader<'_> {
    pub(super) fn answer(&self) -> Result<Answer, String> {
        Ok(Answer {
            mask: self.mask()?,
            output: self.output()?,
            labels: self.labels()?,
            scores: self.scores()?,
            lse: read_lse(self.tensors, &self.call.inputs.dims())?,
        })
    }

    /// The tensor `selected`, as it was sent.
    pub(super) fn as_sent(&self) -> Result<Option<Array4<i32>>, String> {
        self.optional("selected")?.map(|view| self.listed(&view)).transpose()
    }

    fn optional(&self, name: &str) -> Result<Option<NamedView<'_>>, String> {
        self.tensors.optional(name).map_err(FileError::sentence)
    }

    fn mask(&self) -> Result<Mask, String> {
        let mask = self.optional("mask")?.map(|view| self.weights(&view)).transpose()?;
        let selected = self.optional("selected")?.map(|view| self.selected(&view)).transpose()?;
        match (mask, selected) {
            (Some(mask), Some(selected)) if attended(&mask) != attended(&selected) => {
                Err(Detail::new("selected", "other keys than in mask", "the same keys, or one of the two")
                    .to_string())
            }
            (Some(mask), _) => Ok(mask),
            (None, Some(mask)) => Ok(mask),
            (None, None) => Err(Detail::new("mask", "nothing", "a tensor mask or selected").to_string()),
        }
    }

    /// A mask with weights, or one that only says which keys are attended: then those attended before keep
    /// their weight.
    fn weights(&self, view: &NamedView) -> Result<Mask, String> {
        let dtype = view.view.dtype();
        view.check(&[Dtype::U8, Dtype::BOOL, Dtype::F32, Dtype::F16, Dtype::BF16], 4)
            .map_err(FileError::sentence)?;
        let dims = self.call.inputs.dims();
        check_shape("mask", view, dims.mask_shape())?;
        if matches!(dtype, Dtype::U8 | Dtype::BOOL) {
            let mask = view.array4(view.view.data().to_vec()).map_err(FileError::sentence)?;
            return self.expected(Expectation { mask: Some(mask), ..Expectation::default() });
        }
        let mut weights = floats(view, FLOATS).map_err(FileError::sentence)?;
        if let Some(round) = narrow(dtype) {
            self.restore_weights(&mut weights, round);
        }
        Mask::from_weights(weights, &dims).map_err(|error| error.to_string())
    }

    /// In a type narrower than f32, weights of keys attended before can only come back rounded.
    fn restore_weights(&self, weights: &mut Array4<f32>, round: fn(f32) -> f32) {
        let before = self.before();
        weights.zip_mut_with(before.weights(), |weight, &before| {
            if *weight == round(before) {
                *weight = before;
            }
        });
    }

    fn selected(&self, view: &NamedView) -> Result<Mask, String> {
        let mut selected = self.listed(view)?;
        if self.any_order {
            sort(&mut selected);
        }
        self.expected(Expectation { selected: Some(selected), ..Expectation::default() })
    }

    fn listed(&self, view: &NamedView) -> Result<Array4<i32>, String> {
        view.check(&[Dtype::I32, Dtype::I64], 4).map_err(FileError::sentence)?;
        let (b, h, m, _) = self.call.inputs.dims().mask_shape();
        if view.view.shape()[..3] != [b, h, m] {
            let expected = format!("[{b}, {h}, {m}, ·]");
            return Err(
                Detail::new("selected", format!("shape {:?}", view.view.shape()), expected).to_string()
            );
        }
        read_integers(view)
    }

    /// The mask of an answer that says which keys are attended.
    fn expected(&self, expectation: Expectation) -> Result<Mask, String> {
        match expectation.answer(&self.before()) {
            Some(answer) => answer.map(|answer| answer.mask),
            None => Err("found no mask".into()),
        }
    }

    /// The mask that Double Sparsity adds to. Where that is refused the call must be refused too, whatever the answer.
    fn before(&self) -> Mask {
        self.instance.before(self.call).unwrap_or_else(|_| self.instance.start(self.call))
    }

    fn output(&self) -> Result<Option<Array4<f32>>, String> {
        let shape = self.call.inputs.dims().output_shape();
        self.optional("output")?.map(|view| shaped_floats("output", &view, shape)).transpose()
    }

    fn scores(&self) -> Result<Option<Array4<f32>>, String> {
        let shape = self.call.inputs.dims().mask_shape();
        self.optional("scores")?.map(|view| shaped_floats("scores", &view, shape)).transpose()
    }

    fn labels(&self) -> Result<Option<AnsweredLabels>, String> {
        let (q, k) = match (self.optional("q_labels")?, self.optional("k_labels")?) {
            (Some(q), Some(k)) => (q, k),
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(one_of_two("k_labels", "q_labels")),
            (None, Some(_)) => return Err(one_of_two("q_labels", "k_labels")),
        };
        let (b, h, m, n) = self.call.inputs.dims().mask_shape();
        // The verdict judges how many channels labels have.
        let channels = q.view.shape().last().copied().unwrap_or(0);
        Ok(Some(AnsweredLabels {
            q: shaped_floats("q_labels", &q, (b, h, m, channels))?,
            k: shaped_floats("k_labels", &k, (b, h, n, channels))?,
        }))
    }
}

/// I32 or I64 with four dimensions.
pub(super) fn read_integers(view: &NamedView) -> Result<Array4<i32>, String> {
    view.check(&[Dtype::I32, Dtype::I64], 4).map_err(FileError::sentence)?;
    match view.view.dtype() {
        Dtype::I64 => narrow_integers(view),
        _ => integers(view).map_err(FileError::sentence),
    }
}

/// `lse`, where there is one: F32 [b, h, m].
pub(super) fn read_lse(tensors: &Tensors, dims: &Dims) -> Result<Option<Array3<f32>>, String> {
    let Some(view) = tensors.optional("lse").map_err(FileError::sentence)? else {
        return Ok(None);
    };
    view.check(&[Dtype::F32], 3).map_err(FileError::sentence)?;
    let expected = [dims.batch, dims.heads, dims.queries];
    if view.view.shape() != expected {
        let found = format!("shape {:?}", view.view.shape());
        return Err(Detail::new("lse", found, format!("{expected:?}")).to_string());
    }
    Array3::from_shape_vec(expected, view.float_elements()).map(Some).map_err(|error| error.to_string())
}

pub(super) fn attended(mask: &Mask) -> Array4<bool> {
    mask.weights().mapv(|weight| weight != 0.0)
}

/// How a type narrower than f32 rounds; `None` for f32.
fn narrow(dtype: Dtype) -> Option<fn(f32) -> f32> {
    match dtype {
        Dtype::F16 => Some(|x| f16::from_f32(x).to_f32()),
        Dtype::BF16 => Some(|x| bf16::from_f32(x).to_f32()),
        _ => None,
    }
}

fn narrow_integers(view: &NamedView) -> Result<Array4<i32>, String> {
    let wide = view.array4(view.elements(i64::from_le_bytes)).map_err(FileError::sentence)?;
    let wrong = wide.indexed_iter().find(|(_, key)| i32::try_from(**key).is_err());
    if let Some(((b, head, i, position), key)) = wrong {
        let field = format!("selected[{b}, {head}, {i}, {position}]");
        return Err(Detail::new(field, key, "a key index, or -1").to_string());
    }
    Ok(wide.mapv(|key| key as i32))
}

pub(super) fn shaped_floats(
    name: &str,
    view: &NamedView,
    shape: (usize, usize, usize, usize),
) -> Result<Array4<f32>, String> {
    view.check(FLOATS, 4).map_err(FileError::sentence)?;
    check_shape(name, view, shape)?;
    floats(view, FLOATS).map_err(FileError::sentence)
}

pub(super) fn check_shape(
    name: &str,
    view: &NamedView,
    shape: (usize, usize, usize, usize),
) -> Result<(), String> {
    let expected = <[usize; 4]>::from(shape);
    if view.view.shape() == expected {
        return Ok(());
    }
    let found = format!("shape {:?}", view.view.shape());
    Err(Detail::new(name, found, format!("{expected:?}")).to_string())
}

fn one_of_two(missing: &str, present: &str) -> String {
    Detail::new(missing, "nothing", format!("a tensor, as there is {present}")).to_string()
}
