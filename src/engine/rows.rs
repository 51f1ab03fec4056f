//! Keys and values of one KV head as they arrive (SPEC §1): each position's key and value lie side by side, in the
//! storage type, in chunks that are never moved, so that growing costs nothing but the new rows.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::algorithm::Storage;

/// Positions in one chunk.
const CHUNK: usize = 4096;

/// Numbers of one chunk, in the storage type.
#[derive(Debug, Clone)]
enum Chunk {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Rows [n, d + dv]: a key and its value.
#[derive(Debug, Clone)]
pub struct Rows {
    storage: Storage,
    width: usize,
    len: usize,
    chunks: Vec<Chunk>,
}

impl Rows {
    /// No rows yet, each `width` numbers wide.
    pub fn new(storage: Storage, width: usize) -> Self {
        Self { storage, width, len: 0, chunks: Vec::new() }
    }

    /// Adds a key [d] and a value [dv] of the storage type.
    pub fn push(&mut self, key: &[f32], value: &[f32]) {
        if self.len.is_multiple_of(CHUNK) {
            self.chunks.push(match self.storage {
                Storage::F32 => Chunk::F32(Vec::new()),
                Storage::F16 => Chunk::F16(Vec::new()),
                Storage::Bf16 => Chunk::Bf16(Vec::new()),
            });
        }
        for part in [key, value] {
            match self.chunks.last_mut() {
                Some(Chunk::F32(numbers)) => numbers.extend_from_slice(part),
                Some(Chunk::F16(numbers)) => numbers.extend(part.iter().map(|&x| f16::from_f32(x))),
                Some(Chunk::Bf16(numbers)) => numbers.extend(part.iter().map(|&x| bf16::from_f32(x))),
                None => {}
            }
        }
        self.len += 1;
    }

    /// Part of one row; numbers of half precision are widened into `scratch`, which is as long as the part.
    #[inline(always)]
    pub fn part<'a>(
        &'a self,
        position: usize,
        part: std::ops::Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let start = position % CHUNK * self.width;
        let part = start + part.start..start + part.end;
        match &self.chunks[position / CHUNK] {
            Chunk::F32(numbers) => &numbers[part],
            Chunk::F16(numbers) => {
                numbers[part].convert_to_f32_slice(scratch);
                scratch
            }
            Chunk::Bf16(numbers) => {
                scratch.iter_mut().zip(&numbers[part]).for_each(|(x, half)| *x = half.to_f32());
                scratch
            }
        }
    }
}
