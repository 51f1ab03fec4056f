//! Keys and values of one KV head as they arrive (SPEC §1): each position's key and value lie side by side, in the
//! storage type, in chunks that are never moved, so that growing costs nothing but the new rows.

use std::sync::Arc;

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
    /// Shared with the caches that this one was copied from or to, until one of them writes.
    chunks: Vec<Arc<Chunk>>,
}

impl Rows {
    /// No rows yet, each `width` numbers wide.
    pub fn new(storage: Storage, width: usize) -> Self {
        Self { storage, width, len: 0, chunks: Vec::new() }
    }

    /// Adds a key [d] and a value [dv] of the storage type.
    pub fn push(&mut self, key: &[f32], value: &[f32]) {
        if self.len.is_multiple_of(CHUNK) {
            self.chunks.push(Arc::new(match self.storage {
                Storage::F32 => Chunk::F32(Vec::new()),
                Storage::F16 => Chunk::F16(Vec::new()),
                Storage::Bf16 => Chunk::Bf16(Vec::new()),
            }));
        }
        for part in [key, value] {
            match self.chunks.last_mut().map(Arc::make_mut) {
                Some(Chunk::F32(numbers)) => numbers.extend_from_slice(part),
                Some(Chunk::F16(numbers)) => numbers.extend(part.iter().map(|&x| f16::from_f32(x))),
                Some(Chunk::Bf16(numbers)) => numbers.extend(part.iter().map(|&x| bf16::from_f32(x))),
                None => {}
            }
        }
        self.len += 1;
    }

    /// Takes back all rows but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.len = len;
        self.chunks.truncate(len.div_ceil(CHUNK));
        let numbers = len % CHUNK * self.width;
        if let Some(chunk) = self.chunks.last_mut().filter(|_| numbers > 0) {
            match Arc::make_mut(chunk) {
                Chunk::F32(rows) => rows.truncate(numbers),
                Chunk::F16(rows) => rows.truncate(numbers),
                Chunk::Bf16(rows) => rows.truncate(numbers),
            }
        }
    }

    /// The memory of the rows so far, in bytes.
    pub fn bytes(&self) -> usize {
        let chunk = |chunk: &Arc<Chunk>| match &**chunk {
            Chunk::F32(numbers) => size_of_val(&numbers[..]),
            Chunk::F16(numbers) => size_of_val(&numbers[..]),
            Chunk::Bf16(numbers) => size_of_val(&numbers[..]),
        };
        self.chunks.iter().map(chunk).sum()
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
        match &*self.chunks[position / CHUNK] {
            Chunk::F32(numbers) => return &numbers[part],
            Chunk::F16(numbers) => widen(scratch, &numbers[part], f16_to_f32),
            Chunk::Bf16(numbers) => widen(scratch, &numbers[part], bf16_to_f32),
        }
        scratch
    }

    /// Some numbers of one row.
    pub fn gather(&self, position: usize, channels: &[usize], numbers: &mut [f32]) {
        let row = position % CHUNK * self.width;
        let channels = channels.iter().map(|channel| row + channel);
        match &*self.chunks[position / CHUNK] {
            Chunk::F32(row) => numbers.iter_mut().zip(channels).for_each(|(x, at)| *x = row[at]),
            Chunk::F16(row) => numbers.iter_mut().zip(channels).for_each(|(x, at)| *x = f16_to_f32(row[at])),
            Chunk::Bf16(row) => {
                numbers.iter_mut().zip(channels).for_each(|(x, at)| *x = bf16_to_f32(row[at]))
            }
        }
    }
}

#[inline(always)]
fn widen<T: Copy>(wide: &mut [f32], numbers: &[T], convert: impl Fn(T) -> f32) {
    for (wide, &number) in wide.iter_mut().zip(numbers) {
        *wide = convert(number);
    }
}

/// A finite number, without the branches of a conversion that allows for others: exponent and significand moved to their
/// place, and the difference of the exponents' biases multiplied in, which is exact.
#[inline(always)]
fn f16_to_f32(half: f16) -> f32 {
    const BIASES: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(half.to_bits());
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * BIASES;
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// A finite number: the upper half of an f32.
#[inline(always)]
fn bf16_to_f32(half: bf16) -> f32 {
    f32::from_bits(u32::from(half.to_bits()) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (short, brief) = (f16::from_bits(bits), bf16::from_bits(bits));
            if short.is_finite() {
                assert_eq!(f16_to_f32(short).to_bits(), short.to_f32().to_bits());
            }
            if brief.is_finite() {
                assert_eq!(bf16_to_f32(brief).to_bits(), brief.to_f32().to_bits());
            }
        }
    }
}
