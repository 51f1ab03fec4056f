//! Safetensors containers, as case files (SPEC §6) and messages of the process protocol hold them: reading tensors with
//! errors that name field, found and expected, and writing the same bytes for the same tensors.

use std::collections::{BTreeMap, HashMap};

use half::{bf16, f16};
use ndarray::{Array2, Array3, Array4, ArrayView};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::error::{Error, Result};
use crate::algorithm::{ChannelOrder, Detail, Storage};

/// Types that hold numbers.
pub(crate) const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16];

/// A safetensors file: its tensors and its metadata.
pub(crate) struct Tensors<'a> {
    tensors: HashMap<String, TensorView<'a>>,
    pub(crate) metadata: HashMap<String, String>,
}

impl<'a> Tensors<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let wrong = |error| Error::Format(Detail::new("file", error, "a safetensors file"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(wrong)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(wrong)?.tensors().into_iter().collect();
        Ok(Self { tensors, metadata: header.metadata().clone().unwrap_or_default() })
    }

    /// Tensors that are in memory already: name, type, shape, and their numbers as little-endian bytes.
    ///
    /// Errors: numbers that do not fill the shape.
    #[cfg(feature = "process")]
    pub(crate) fn of(tensors: &[(&str, Dtype, &[usize], &'a [u8])]) -> Result<Self> {
        let view = |&(name, dtype, shape, data): &(&str, Dtype, &[usize], &'a [u8])| {
            let view = TensorView::new(dtype, shape.to_vec(), data);
            let wrong = |error| Error::Tensor(Detail::new(name, error, "numbers that fill its shape"));
            Ok((name.to_owned(), view.map_err(wrong)?))
        };
        let tensors = tensors.iter().map(view).collect::<Result<_>>()?;
        Ok(Self { tensors, metadata: HashMap::new() })
    }

    pub(crate) fn optional(&self, name: &str) -> Result<Option<NamedView<'_>>> {
        Ok(self.tensors.get(name).map(|view| NamedView { name: name.to_owned(), view: view.clone() }))
    }

    pub(crate) fn required(&self, name: &str) -> Result<NamedView<'_>> {
        self.optional(name)?
            .ok_or_else(|| Error::Tensor(Detail::new(name, "nothing", "a tensor of this name")))
    }
}

pub(crate) struct NamedView<'a> {
    name: String,
    pub(crate) view: TensorView<'a>,
}

impl NamedView<'_> {
    pub(crate) fn check(&self, dtypes: &[Dtype], dimensions: usize) -> Result<()> {
        let (dtype, shape) = (self.view.dtype(), self.view.shape());
        if dtypes.contains(&dtype) && shape.len() == dimensions {
            return Ok(());
        }
        let found = format!("{dtype:?} {shape:?}");
        let names: Vec<_> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
        let expected = format!("{} with {dimensions} dimensions", names.join(", "));
        Err(Error::Tensor(Detail::new(self.name.clone(), found, expected)))
    }

    /// Errors: an empty dimension. Without numbers there may be any number of rows.
    fn check_rows(&self) -> Result<()> {
        let shape = self.view.shape();
        if !shape.contains(&0) {
            return Ok(());
        }
        let found = format!("{:?} {shape:?}", self.view.dtype());
        Err(Error::Tensor(Detail::new(self.name.clone(), found, "no empty dimension")))
    }

    pub(crate) fn elements<const N: usize, T>(&self, read: impl Fn([u8; N]) -> T) -> Vec<T> {
        let (chunks, _) = self.view.data().as_chunks::<N>();
        chunks.iter().map(|&bytes| read(bytes)).collect()
    }

    pub(crate) fn float_elements(&self) -> Vec<f32> {
        match self.view.dtype() {
            Dtype::F16 => self.elements(|bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => self.elements(|bytes| bf16::from_le_bytes(bytes).to_f32()),
            _ => self.elements(f32::from_le_bytes),
        }
    }

    pub(crate) fn array4<T: Clone>(&self, elements: Vec<T>) -> Result<Array4<T>> {
        let shape = [0, 1, 2, 3].map(|axis| self.view.shape()[axis]);
        Array4::from_shape_vec(shape, elements)
            .map_err(|error| Error::Tensor(Detail::new(self.name.clone(), error, "a possible shape")))
    }

    fn array2<T: Clone>(&self, elements: Vec<T>) -> Result<Array2<T>> {
        let shape = [0, 1].map(|axis| self.view.shape()[axis]);
        Array2::from_shape_vec(shape, elements)
            .map_err(|error| Error::Tensor(Detail::new(self.name.clone(), error, "a possible shape")))
    }
}

pub(crate) fn floats(view: &NamedView, dtypes: &[Dtype]) -> Result<Array4<f32>> {
    view.check(dtypes, 4)?;
    view.array4(view.float_elements())
}

/// The shape of a tensor of four dimensions.
pub(crate) fn shape4(view: &NamedView) -> Result<[usize; 4]> {
    <[usize; 4]>::try_from(view.view.shape()).map_err(|_| {
        let found = format!("shape {:?}", view.view.shape());
        Error::Tensor(Detail::new(view.name.clone(), found, "4 dimensions"))
    })
}

/// Packed rows.
pub(crate) fn floats3(view: &NamedView, dtypes: &[Dtype]) -> Result<Array3<f32>> {
    view.check(dtypes, 3)?;
    let shape = [0, 1, 2].map(|axis| view.view.shape()[axis]);
    Array3::from_shape_vec(shape, view.float_elements())
        .map_err(|error| Error::Tensor(Detail::new(view.name.clone(), error, "a possible shape")))
}

/// A tensor of at most four dimensions; leading dimensions that are missing count as 1.
pub(crate) fn broadcastable(view: &NamedView) -> Result<Array4<f32>> {
    let dimensions = view.view.shape().len();
    view.check(&[Dtype::F32], dimensions.min(4))?;
    let mut shape = [1; 4];
    shape[4 - dimensions..].copy_from_slice(view.view.shape());
    Array4::from_shape_vec(shape, view.float_elements())
        .map_err(|error| Error::Tensor(Detail::new(view.name.clone(), error, "a possible shape")))
}

pub(crate) fn float_rows(view: &NamedView, storage: Storage) -> Result<Array2<f32>> {
    view.check(&[dtype(storage)], 2)?;
    view.check_rows()?;
    view.array2(view.float_elements())
}

pub(crate) fn integers(view: &NamedView) -> Result<Array4<i32>> {
    view.check(&[Dtype::I32], 4)?;
    view.array4(view.elements(i32::from_le_bytes))
}

pub(crate) fn bytes(view: &NamedView) -> Result<Array4<u8>> {
    view.check(&[Dtype::U8], 4)?;
    view.array4(view.view.data().to_vec())
}

pub(crate) fn channels(view: &NamedView) -> Result<ChannelOrder> {
    view.check(&[Dtype::I64], 2)?;
    view.check_rows()?;
    let rows = view.array2(view.elements(i64::from_le_bytes))?;
    let row = |(index, row): (usize, ndarray::ArrayView1<i64>)| {
        let channel = |(position, &channel): (usize, &i64)| {
            usize::try_from(channel).map_err(|_| {
                let field = format!("channels[{index}, {position}]");
                Error::Tensor(Detail::new(field, channel, "a channel index of at least 0"))
            })
        };
        row.iter().enumerate().map(channel).collect::<Result<Vec<usize>>>()
    };
    let rows = rows.outer_iter().enumerate().map(row).collect::<Result<Vec<_>>>()?;
    Ok(ChannelOrder::new(rows)?)
}

fn dtype(storage: Storage) -> Dtype {
    match storage {
        Storage::F32 => Dtype::F32,
        Storage::F16 => Dtype::F16,
        Storage::Bf16 => Dtype::BF16,
    }
}

/// The safetensors format is small, and the crate's own writer orders metadata at random; goldens need the same
/// bytes each time: 8 bytes of little-endian header length, a JSON header, the data.
#[derive(Default)]
pub(crate) struct Writer {
    metadata: BTreeMap<String, String>,
    tensors: serde_json::Map<String, serde_json::Value>,
    data: Vec<u8>,
}

impl Writer {
    pub(crate) fn metadata(&mut self, key: &str, value: String) {
        self.metadata.insert(key.to_owned(), value);
    }

    pub(crate) fn tensor(&mut self, name: &str, dtype: &str, shape: &[usize], data: Vec<u8>) {
        let start = self.data.len();
        self.data.extend(data);
        self.entry(name, dtype, shape, start);
    }

    pub(crate) fn floats(&mut self, name: &str, storage: Storage, values: ArrayView<f32, ndarray::IxDyn>) {
        let start = self.data.len();
        let dtype = match storage {
            Storage::F32 => self.numbers("F32", &values, f32::to_le_bytes),
            Storage::F16 => self.numbers("F16", &values, |x| f16::from_f32(x).to_le_bytes()),
            Storage::Bf16 => self.numbers("BF16", &values, |x| bf16::from_f32(x).to_le_bytes()),
        };
        self.entry(name, dtype, values.shape(), start);
    }

    /// Adds numbers to the data, written in place: questions of the process protocol hold many. Returns their type.
    fn numbers<const N: usize>(
        &mut self,
        dtype: &'static str,
        values: &ArrayView<f32, ndarray::IxDyn>,
        bytes: impl Fn(f32) -> [u8; N],
    ) -> &'static str {
        let start = self.data.len();
        self.data.resize(start + N * values.len(), 0);
        let (places, _) = self.data[start..].as_chunks_mut::<N>();
        match values.as_slice() {
            Some(values) => places.iter_mut().zip(values).for_each(|(place, &x)| *place = bytes(x)),
            None => places.iter_mut().zip(values).for_each(|(place, &x)| *place = bytes(x)),
        }
        dtype
    }

    fn entry(&mut self, name: &str, dtype: &str, shape: &[usize], start: usize) {
        let entry = serde_json::json!({
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [start, self.data.len()],
        });
        self.tensors.insert(name.to_owned(), entry);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let header = self.header();
        let mut file = Vec::with_capacity(8 + header.len() + self.data.len());
        self.append(&header, &mut file);
        file
    }

    /// The file after its length, as the process protocol sends it, in one piece.
    #[cfg(feature = "process")]
    pub(crate) fn frame(mut self) -> Vec<u8> {
        let header = self.header();
        let length = 8 + header.len() + self.data.len();
        let mut frame = Vec::with_capacity(8 + length);
        frame.extend((length as u64).to_le_bytes());
        self.append(&header, &mut frame);
        frame
    }

    fn header(&mut self) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::json!(self.metadata));
        header.extend(std::mem::take(&mut self.tensors));
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        header
    }

    fn append(&self, header: &[u8], file: &mut Vec<u8>) {
        file.extend((header.len() as u64).to_le_bytes());
        file.extend(header);
        file.extend(&self.data);
    }
}
