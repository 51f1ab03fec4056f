//! Tensors between Rust and numpy. What a kernel is given is its own: it is copied once, in the type in which it is asked, so that
//! nothing that a kernel does to it changes what its answer is judged by. Answers are read where they are.

use doublecheck::algorithm::{Lengths, Storage};
use doublecheck::cases::{Call, ScoresCall, SelectionCall, Step};
use doublecheck::subjects::process::direct::Tensor;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ndarray::ArrayView;
use numpy::{
    PyArray, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods, ToPyArray,
};
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};
use rayon::prelude::*;

/// A message of the process protocol without its id, and its tensors by name.
pub type Question<'py> = (Bound<'py, PyDict>, Bound<'py, PyDict>);

/// How tensors of f16 and bf16 are given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Halves {
    /// As f32 that hold the same values.
    Widened,
    /// As they are: the bits of each, as u16.
    Bits,
}

/// Collects the tensors of one question.
struct Tensors<'py> {
    py: Python<'py>,
    halves: Halves,
    found: Bound<'py, PyDict>,
}

impl<'py> Tensors<'py> {
    fn new(py: Python<'py>, halves: Halves) -> Self {
        Self { py, halves, found: PyDict::new(py) }
    }

    fn floats<D: ndarray::Dimension>(
        &self,
        name: &Bound<'py, PyString>,
        storage: Storage,
        values: ArrayView<f32, D>,
    ) -> PyResult<()> {
        let values = values.as_standard_layout();
        let bits: Option<fn(f32) -> u16> = match (self.halves, storage) {
            (Halves::Widened, _) | (_, Storage::F32) => None,
            (Halves::Bits, Storage::F16) => Some(|x| f16::from_f32(x).to_bits()),
            (Halves::Bits, Storage::Bf16) => Some(|x| bf16::from_f32(x).to_bits()),
        };
        match bits {
            None => self.found.set_item(name, values.to_pyarray(self.py)),
            Some(bits) => {
                let array = PyArray::<u16, D>::zeros(self.py, values.raw_dim(), false);
                let numbers = values.as_slice().ok_or_else(|| {
                    PyTypeError::new_err(format!("{name}: found gaps between numbers, expected none"))
                })?;
                convert(numbers, array.readwrite().as_slice_mut()?, bits);
                self.found.set_item(name, array)
            }
        }
    }

    fn lengths(&self, lengths: Option<&Lengths>) -> PyResult<()> {
        let Some(lengths) = lengths else { return Ok(()) };
        let numbers: Vec<i32> = lengths.keys().iter().map(|&length| length as i32).collect();
        self.found.set_item(intern!(self.py, "lengths"), PyArray1::from_vec(self.py, numbers))
    }
}

/// Writes the bits of numbers; many on all cores.
fn convert(numbers: &[f32], places: &mut [u16], bits: fn(f32) -> u16) {
    const PIECE: usize = 1 << 16;
    let piece = |(places, numbers): (&mut [u16], &[f32])| {
        places.iter_mut().zip(numbers).for_each(|(place, &x)| *place = bits(x));
    };
    if numbers.len() <= PIECE {
        return piece((places, numbers));
    }
    places.par_chunks_mut(PIECE).zip(numbers.par_chunks(PIECE)).for_each(piece);
}

/// A `mask` question.
pub fn mask<'py>(py: Python<'py>, call: &Call, halves: Halves) -> PyResult<Question<'py>> {
    let (inputs, parts) = (&call.inputs, call.inputs.parts());
    let message = PyDict::new(py);
    message.set_item(intern!(py, "type"), intern!(py, "mask"))?;
    message.set_item(intern!(py, "layer"), call.layer)?;
    message.set_item(intern!(py, "causal"), parts.causal)?;
    message.set_item(intern!(py, "dtype"), parts.storage.name())?;
    message.set_item(intern!(py, "scaling"), inputs.scaling())?;
    let tensors = Tensors::new(py, halves);
    tensors.floats(intern!(py, "q"), parts.storage, parts.q.view())?;
    tensors.floats(intern!(py, "k"), parts.storage, inputs.padded_keys().view())?;
    tensors.floats(intern!(py, "v"), parts.storage, inputs.padded_values().view())?;
    tensors.lengths(inputs.lengths())?;
    if let Some(additive) = &parts.attention_mask {
        tensors.floats(intern!(py, "attention_mask"), Storage::F32, additive.view())?;
    }
    if let Some(previous) = &call.previous {
        tensors.floats(intern!(py, "previous"), Storage::F32, previous.weights().view())?;
    }
    if let Some(weights) = inputs.head_weights() {
        tensors.floats(intern!(py, "head_weights"), Storage::F32, weights.view())?;
    }
    Ok((message, tensors.found))
}

/// A `select` question.
pub fn select<'py>(py: Python<'py>, call: &ScoresCall, halves: Halves) -> PyResult<Question<'py>> {
    let message = PyDict::new(py);
    message.set_item(intern!(py, "type"), intern!(py, "select"))?;
    message.set_item(intern!(py, "heavy_size"), call.heavy_size().get())?;
    message.set_item(intern!(py, "dtype"), call.storage().name())?;
    let tensors = Tensors::new(py, halves);
    tensors.floats(intern!(py, "scores"), call.storage(), call.padded_scores().view())?;
    tensors.lengths(call.lengths())?;
    Ok((message, tensors.found))
}

/// An `attend` question.
pub fn attend<'py>(py: Python<'py>, call: &SelectionCall, halves: Halves) -> PyResult<Question<'py>> {
    let (inputs, parts) = (&call.inputs, call.inputs.parts());
    let message = PyDict::new(py);
    message.set_item(intern!(py, "type"), intern!(py, "attend"))?;
    message.set_item(intern!(py, "dtype"), parts.storage.name())?;
    message.set_item(intern!(py, "scaling"), inputs.scaling())?;
    let tensors = Tensors::new(py, halves);
    tensors.floats(intern!(py, "q"), parts.storage, parts.q.view())?;
    tensors.floats(intern!(py, "k"), parts.storage, inputs.padded_keys().view())?;
    tensors.floats(intern!(py, "v"), parts.storage, inputs.padded_values().view())?;
    tensors.lengths(inputs.lengths())?;
    let selected = call.selected();
    let shape = selected.shape().to_vec();
    let numbers = PyArray1::from_vec(py, selected.into_raw_vec_and_offset().0);
    tensors.found.set_item(intern!(py, "selected"), numbers.reshape(shape)?)?;
    Ok((message, tensors.found))
}

/// A step of a session whose tensors have this type.
pub fn step<'py>(py: Python<'py>, step: &Step, storage: Storage, halves: Halves) -> PyResult<Question<'py>> {
    let (message, tensors) = (PyDict::new(py), Tensors::new(py, halves));
    message.set_item(intern!(py, "type"), step.name())?;
    message.set_item(intern!(py, "dtype"), storage.name())?;
    match step {
        Step::Append { layer, parts, k, v } => {
            message.set_item(intern!(py, "layer"), layer)?;
            message.set_item(intern!(py, "requests"), parts)?;
            tensors.floats(intern!(py, "k"), storage, k.view())?;
            tensors.floats(intern!(py, "v"), storage, v.view())?;
        }
        Step::Attend { layer, parts, q } => {
            message.set_item(intern!(py, "layer"), layer)?;
            message.set_item(intern!(py, "requests"), parts)?;
            tensors.floats(intern!(py, "q"), storage, q.view())?;
        }
        Step::Fork { from, to, length } => {
            message.set_item(intern!(py, "from"), from)?;
            message.set_item(intern!(py, "to"), to)?;
            message.set_item(intern!(py, "length"), length)?;
        }
        Step::Truncate { request, length } => {
            message.set_item(intern!(py, "request"), request)?;
            message.set_item(intern!(py, "length"), length)?;
        }
        Step::Free { request } => message.set_item(intern!(py, "request"), request)?,
    }
    Ok((message, tensors.found))
}

/// An array of an answer, which nothing writes to while it is read.
enum Numbers<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    I64(PyReadonlyArrayDyn<'py, i64>),
    I32(PyReadonlyArrayDyn<'py, i32>),
    F16(PyReadonlyArrayDyn<'py, f16>),
    Bf16(PyReadonlyArrayDyn<'py, u16>),
    U8(PyReadonlyArrayDyn<'py, u8>),
}

impl Numbers<'_> {
    fn bytes(&self) -> PyResult<&[u8]> {
        Ok(match self {
            Self::F32(array) => bytemuck::cast_slice(array.as_slice()?),
            Self::I64(array) => bytemuck::cast_slice(array.as_slice()?),
            Self::I32(array) => bytemuck::cast_slice(array.as_slice()?),
            Self::F16(array) => bytemuck::cast_slice(array.as_slice()?.reinterpret_cast()),
            Self::Bf16(array) => bytemuck::cast_slice(array.as_slice()?),
            Self::U8(array) => array.as_slice()?,
        })
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::F32(array) => array.shape(),
            Self::I64(array) => array.shape(),
            Self::I32(array) => array.shape(),
            Self::F16(array) => array.shape(),
            Self::Bf16(array) => array.shape(),
            Self::U8(array) => array.shape(),
        }
    }
}

/// The tensors of an answer.
pub struct Given<'py>(Vec<(String, String, Numbers<'py>)>);

impl<'py> Given<'py> {
    /// From a list of name, type as in safetensors, and row-major array: numbers of bf16 as u16.
    ///
    /// Errors: another list.
    pub fn new(list: &Bound<'py, PyList>) -> PyResult<Self> {
        let tensor = |entry: Bound<'py, PyAny>| {
            let (name, dtype, array): (String, String, Bound<'py, PyAny>) = entry.extract()?;
            let numbers = match dtype.as_str() {
                "F32" => Numbers::F32(array.cast::<PyArrayDyn<f32>>()?.try_readonly()?),
                "I64" => Numbers::I64(array.cast::<PyArrayDyn<i64>>()?.try_readonly()?),
                "I32" => Numbers::I32(array.cast::<PyArrayDyn<i32>>()?.try_readonly()?),
                "F16" => Numbers::F16(array.cast::<PyArrayDyn<f16>>()?.try_readonly()?),
                "BF16" => Numbers::Bf16(array.cast::<PyArrayDyn<u16>>()?.try_readonly()?),
                "U8" => Numbers::U8(array.cast::<PyArrayDyn<u8>>()?.try_readonly()?),
                other => {
                    let expected = "F32, F16, BF16, I64, I32 or U8";
                    return Err(PyTypeError::new_err(format!("{name}: found {other}, expected {expected}")));
                }
            };
            Ok((name, dtype, numbers))
        };
        list.iter().map(tensor).collect::<PyResult<_>>().map(Self)
    }

    /// The tensors as the library reads them. Errors: an array that is not row-major.
    pub fn tensors(&self) -> PyResult<Vec<Tensor<'_>>> {
        self.0
            .iter()
            .map(|(name, dtype, numbers)| {
                Ok(Tensor { name, dtype, shape: numbers.shape(), bytes: numbers.bytes()? })
            })
            .collect()
    }
}
