//! GGUF files, by candle's reader: typed metadata, and tensors dequantised to f32.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use tch::{Device, Tensor};

use super::{Error, Result};
use crate::algorithm::Detail;
use crate::cases::gguf_header;
use crate::checksum::sha256;

/// An open file.
#[derive(Debug)]
pub struct Gguf {
    content: Content,
    bytes: Vec<u8>,
    sha256: String,
    /// Names of tensors that were read.
    used: BTreeSet<String>,
}

fn wrong(field: &str, found: impl std::fmt::Display, expected: impl Into<String>) -> Error {
    Error::Model(Detail::new(field, found, expected))
}

impl Gguf {
    /// Reads a file whole. Errors: [`Error::Access`]; [`Error::Model`] for anything but a GGUF file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Access { path: path.to_owned(), source })?;
        let name = path.display().to_string();
        // The reader allocates by what the header says.
        gguf_header::check(&bytes).map_err(|detail| wrong(&name, detail, "a whole GGUF file"))?;
        let content = Content::read(&mut Cursor::new(&bytes))
            .map_err(|error| wrong(&name, error, "a whole GGUF file of version 1 to 3"))?;
        let sha256 = sha256(&bytes);
        Ok(Self { content, bytes, sha256, used: BTreeSet::new() })
    }

    /// SHA-256 of the file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Whether there is such metadata.
    pub fn has(&self, key: &str) -> bool {
        self.content.metadata.contains_key(key)
    }

    /// Whether there is such a tensor.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    fn value<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let value = self.content.metadata.get(key).ok_or_else(|| wrong(key, "nothing", expected))?;
        read(value).ok_or_else(|| wrong(key, format!("{:?}", value.value_type()), expected))
    }

    /// Text metadata. Errors: [`Error::Model`] where it is missing or of another type; likewise for the functions below.
    pub fn text(&self, key: &str) -> Result<&str> {
        let value = self.content.metadata.get(key).ok_or_else(|| wrong(key, "nothing", "text"))?;
        match value {
            Value::String(text) => Ok(text),
            other => Err(wrong(key, format!("{:?}", other.value_type()), "text")),
        }
    }

    /// A whole number of at least 0.
    pub fn number(&self, key: &str) -> Result<usize> {
        self.value(key, "a whole number", |value| match *value {
            Value::U8(x) => Some(usize::from(x)),
            Value::U16(x) => Some(usize::from(x)),
            Value::U32(x) => usize::try_from(x).ok(),
            Value::U64(x) => usize::try_from(x).ok(),
            Value::I32(x) => usize::try_from(x).ok(),
            Value::I64(x) => usize::try_from(x).ok(),
            _ => None,
        })
    }

    /// A number with a fraction.
    pub fn real(&self, key: &str) -> Result<f64> {
        self.value(key, "a number", |value| match *value {
            Value::F32(x) => Some(f64::from(x)),
            Value::F64(x) => Some(x),
            _ => None,
        })
    }

    /// True or false.
    pub fn flag(&self, key: &str) -> Result<bool> {
        self.value(key, "true or false", |value| value.to_bool().ok())
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        self.value(key, "a list of texts", |value| {
            value.to_vec().ok()?.iter().map(|text| text.to_string().ok().cloned()).collect()
        })
    }

    /// A list of numbers with a fraction.
    pub fn reals(&self, key: &str) -> Result<Vec<f64>> {
        self.value(key, "a list of numbers", |value| {
            value.to_vec().ok()?.iter().map(|x| x.to_f32().ok().map(f64::from)).collect()
        })
    }

    /// A list of whole numbers.
    pub fn numbers(&self, key: &str) -> Result<Vec<i64>> {
        self.value(key, "a list of whole numbers", |value| {
            value.to_vec().ok()?.iter().map(|x| x.to_i32().ok().map(i64::from)).collect()
        })
    }

    /// A tensor in f32, of the given shape, on the CPU. Errors: [`Error::Model`] where it is missing, broken or of another shape.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let expected = format!("a tensor {shape:?}");
        let info =
            self.content.tensor_infos.get(name).ok_or_else(|| wrong(name, "nothing", expected.clone()))?;
        if info.shape.dims() != shape {
            return Err(wrong(name, format!("{:?}", info.shape.dims()), expected));
        }
        let read = || -> candle_core::Result<Vec<f32>> {
            let device = candle_core::Device::Cpu;
            let tensor = self.content.tensor(&mut Cursor::new(&self.bytes), name, &device)?;
            tensor.dequantize(&device)?.flatten_all()?.to_vec1()
        };
        let numbers = read().map_err(|error| wrong(name, error, expected))?;
        self.used.insert(name.to_owned());
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        Ok(Tensor::f_from_slice(&numbers)?.f_reshape(shape)?.f_to_device(Device::Cpu)?)
    }

    /// Refuses tensors that nobody read: they would be left out of the computation. Errors: [`Error::Model`].
    pub fn all_used(&self) -> Result<()> {
        let unused = self.content.tensor_infos.keys().filter(|name| !self.used.contains(*name)).min();
        match unused {
            None => Ok(()),
            Some(name) => Err(wrong(name, "a tensor", "none but those of the Llama architecture")),
        }
    }
}
