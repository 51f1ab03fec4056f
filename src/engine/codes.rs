//! The label cache of one KV head and one row of channels (SPEC §2.4, §2.5): each key is gathered and quantised once,
//! when it is appended. For each key a decode step reads r codes of at most 8 bits, an offset and a step size. Codes of
//! B ≤ 4 bits are packed in pairs (half the bytes, and reading bounds the time), B ≤ 8 are a byte each, and finer labels
//! (9 to 16 bits) are kept as bytes again, as a coarse view of labels that live in the key itself.
//!
//! The view of a label is lo + step·code. How far it may be off is measured when the key is appended, and a score of
//! views carries a bound on its distance from the score of SPEC §2.6, so that selecting by it is exact (`top`).

use std::sync::Arc;

use super::rows::Rows;
use crate::algorithm::error::Result;
use crate::algorithm::quantize::{quantize, quantize_in_place};
use crate::algorithm::{LabelBits, Storage};

/// Keys scored together; each block has one error bound.
pub const BLOCK: usize = 256;
/// Keys in one allocation: a multiple of [`BLOCK`].
pub const CHUNK: usize = 4096;
/// Channels are padded to a multiple of this, with codes of 0.
const TOGETHER: usize = 4;

/// Codes of up to [`CHUNK`] keys.
#[derive(Debug, Clone, Default)]
struct Chunk {
    /// Per block: a row of [`BLOCK`] bytes for each channel, or for each pair of channels.
    codes: Vec<u8>,
    /// Per block: lo of each key, then step of each key.
    views: Vec<f32>,
    bounds: Vec<Bound>,
}

/// What the keys of a block have in common.
#[derive(Debug, Clone, Copy, Default)]
struct Bound {
    /// The largest distance of a label from its view.
    error: f64,
    /// The largest Euclidean norm of a key's distances.
    norm: f64,
    /// The largest |lo| + step · largest code + error.
    size: f64,
}

/// Labels of the keys of one KV head under one row of channels.
#[derive(Debug, Clone)]
pub struct Codes {
    /// The leading r channels of the row.
    pub channels: Vec<usize>,
    bits: LabelBits,
    storage: Storage,
    len: usize,
    /// Shared with the caches that this one was copied from or to, until one of them writes.
    chunks: Vec<Arc<Chunk>>,
    largest: f64,
}

/// What a key's labels look like in the cache.
struct View {
    codes: Vec<u8>,
    lo: f32,
    step: f32,
    error: f64,
    norm: f64,
}

impl Codes {
    /// No keys yet.
    pub fn new(channels: Vec<usize>, bits: LabelBits, storage: Storage) -> Self {
        Self { channels, bits, storage, len: 0, chunks: Vec::new(), largest: 0.0 }
    }

    /// The labels of a key or query, [r], bit for bit those of the reference.
    ///
    /// Errors: [`crate::algorithm::Error::LabelRange`] where labels leave the storage type.
    pub fn labels(&self, row: &[f32]) -> Result<Vec<f32>> {
        let mut labels: Vec<f32> = self.channels.iter().map(|&channel| row[channel]).collect();
        quantize_in_place(&mut labels, self.bits, self.storage)?;
        Ok(labels)
    }

    /// Writes the labels of a key that was appended into `labels`. Errors: those of [`Codes::labels`].
    pub fn write_labels(&self, rows: &Rows, key: usize, labels: &mut [f32]) -> Result<()> {
        rows.gather(key, &self.channels, labels);
        quantize_in_place(labels, self.bits, self.storage)
    }

    /// Adds one key [d] of values of the storage type.
    ///
    /// Errors: those of [`Codes::labels`]; the key is then added without labels.
    pub fn push(&mut self, key: &[f32]) -> Result<()> {
        let view = self.view(key);
        let none = || View { codes: vec![0; self.channels.len()], lo: 0.0, step: 0.0, error: 0.0, norm: 0.0 };
        let (view, outcome) = match view {
            Ok(view) => (view, Ok(())),
            Err(error) => (none(), Err(error)),
        };
        self.write(&view);
        outcome
    }

    fn view(&self, key: &[f32]) -> Result<View> {
        let gathered: Vec<f32> = self.channels.iter().map(|&channel| key[channel]).collect();
        // Codes are whole numbers within the byte; the conversion saturates.
        let byte = |code: f32| code as u8;
        let (codes, lo, step, labels): (Vec<u8>, _, _, _) = if self.bits.get() <= 8 {
            let quantised = quantize(&gathered, self.bits, self.storage)?;
            let codes = quantised.codes.iter().copied().map(byte).collect();
            (codes, quantised.lo, 1.0 / quantised.scale, quantised.labels(self.storage))
        } else {
            let mut labels = gathered;
            quantize_in_place(&mut labels, self.bits, self.storage)?;
            let lo = labels.iter().copied().fold(f32::INFINITY, f32::min);
            let hi = labels.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let step = (hi - lo) / 255.0;
            let code = |&x: &f32| if step > 0.0 { byte(((x - lo) / step).round_ties_even()) } else { 0 };
            (labels.iter().map(code).collect(), lo, step, labels)
        };
        let (wide_lo, wide_step) = (f64::from(lo), f64::from(step));
        let error = |(&label, &code): (&f32, &u8)| {
            let error = (f64::from(label) - (wide_lo + wide_step * f64::from(code))).abs();
            // NaN where lo or step is infinite.
            if error.is_finite() { error * (1.0 + 1e-9) } else { f64::INFINITY }
        };
        let errors = || labels.iter().zip(&codes).map(error);
        let norm = errors().map(|error| error * error).sum::<f64>().sqrt();
        Ok(View { error: errors().fold(0.0, f64::max), norm, codes, lo, step })
    }

    /// Takes back all keys but the first `len`. Bounds stay those of all keys so far, which are wide enough.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        let bytes = self.block_bytes();
        self.len = len;
        self.chunks.truncate(len.div_ceil(CHUNK));
        let Some(chunk) = self.chunks.last_mut().filter(|_| !len.is_multiple_of(CHUNK)) else { return };
        let chunk = Arc::make_mut(chunk);
        let blocks = (len % CHUNK).div_ceil(BLOCK);
        chunk.codes.truncate(blocks * bytes);
        chunk.views.truncate(blocks * 2 * BLOCK);
        chunk.bounds.truncate(blocks);
        // Codes that are packed in pairs are added to what is there.
        if let Some(first) = Some(len % BLOCK).filter(|first| *first > 0) {
            for row in chunk.codes[(blocks - 1) * bytes..].chunks_exact_mut(BLOCK) {
                row[first..].fill(0);
            }
        }
    }

    fn packed(&self) -> bool {
        self.bits.get() <= 4
    }

    /// Bytes of one block.
    fn block_bytes(&self) -> usize {
        let padded = self.channels.len().next_multiple_of(TOGETHER);
        BLOCK * if self.packed() { padded / 2 } else { padded }
    }

    fn write(&mut self, view: &View) {
        let (bytes, packed) = (self.block_bytes(), self.packed());
        if self.len.is_multiple_of(CHUNK) {
            self.chunks.push(Arc::default());
        }
        let (block, lane) = (self.len % CHUNK / BLOCK, self.len % BLOCK);
        self.len += 1;
        let Some(chunk) = self.chunks.last_mut().map(Arc::make_mut) else { return };
        if lane == 0 {
            chunk.codes.resize((block + 1) * bytes, 0);
            chunk.views.resize((block + 1) * 2 * BLOCK, 0.0);
            chunk.bounds.push(Bound::default());
        }
        let codes = &mut chunk.codes[block * bytes..];
        for (channel, &code) in view.codes.iter().enumerate() {
            if packed {
                codes[channel / 2 * BLOCK + lane] |= code << (channel % 2 * 4);
            } else {
                codes[channel * BLOCK + lane] = code;
            }
        }
        chunk.views[block * 2 * BLOCK + lane] = view.lo;
        chunk.views[(block * 2 + 1) * BLOCK + lane] = view.step;
        let largest_code = view.codes.iter().copied().max().unwrap_or(0);
        let size = f64::from(view.lo).abs() + f64::from(view.step) * f64::from(largest_code) + view.error;
        let size = if size.is_nan() { f64::INFINITY } else { size };
        let bound = &mut chunk.bounds[block];
        bound.error = bound.error.max(view.error);
        bound.norm = bound.norm.max(view.norm);
        bound.size = bound.size.max(size);
        self.largest = self.largest.max(size);
    }

    /// The memory of the blocks begun so far, in bytes.
    pub fn bytes(&self) -> usize {
        let chunk = |chunk: &Arc<Chunk>| {
            size_of_val(&chunk.codes[..]) + size_of_val(&chunk.views[..]) + size_of_val(&chunk.bounds[..])
        };
        self.chunks.iter().map(chunk).sum()
    }

    /// The codes of a key as they are kept, [r]; those of SPEC §2.5 where B is at most 8.
    pub fn codes(&self, key: usize) -> Vec<u8> {
        let codes = &self.chunks[key / CHUNK].codes[key % CHUNK / BLOCK * self.block_bytes()..];
        let code = |channel: usize| {
            if self.packed() {
                codes[channel / 2 * BLOCK + key % BLOCK] >> (channel % 2 * 4) & 15
            } else {
                codes[channel * BLOCK + key % BLOCK]
            }
        };
        (0..self.channels.len()).map(code).collect()
    }
}

/// A query's factors for the labels of one [`Codes`].
#[derive(Debug, Clone)]
pub struct Term {
    /// Which codes.
    pub codes: usize,
    /// One factor for each channel, padded as the channels are.
    factors: Vec<f32>,
    /// Their sum.
    sum: f32,
    /// The sum of their magnitudes.
    magnitude: f64,
    /// Their Euclidean norm.
    norm: f64,
    /// Relative error of a score of this term.
    relative: f64,
}

impl Term {
    /// The score of a key is Σ factor · label, summed with those of `terms` − 1 other terms.
    pub fn new(codes: usize, factors: &[f64], terms: usize) -> Self {
        let padded = factors.len().next_multiple_of(TOGETHER);
        // Rounded to f32: one of the roundings that `relative` covers.
        let mut factors: Vec<f32> = factors.iter().map(|&factor| factor as f32).collect();
        factors.resize(padded, 0.0);
        let sum: f64 = factors.iter().copied().map(f64::from).sum();
        let magnitude = factors.iter().map(|&factor| f64::from(factor).abs()).sum();
        let norm = factors.iter().map(|&factor| f64::from(factor).powi(2)).sum::<f64>().sqrt();
        // At most r + 4 roundings in products and sums of codes, `terms` in the sum of the terms, 2 in the factors and
        // their sum, 3 in the interval, and less than one more for the f64 arithmetic of the score itself (Higham, §3.1).
        let roundings =
            f64::from(u32::try_from(padded + terms + 16).unwrap_or(u32::MAX)) * f64::powi(2.0, -24);
        let relative = if roundings < 0.5 { roundings / (1.0 - roundings) } else { f64::INFINITY };
        Self { codes, factors, sum: sum as f32, magnitude, norm, relative }
    }

    /// Whether no score of these keys can overflow and every bound is a number.
    pub fn fits(&self, codes: &Codes) -> bool {
        self.magnitude * codes.largest < 1e30
            && codes.largest < 1e30
            && self.magnitude < 1e30
            && self.relative < 0.5
    }
}

impl Codes {
    /// Adds the scores of one chunk to `scores` and their error bounds to `errors`, one for each block.
    #[inline(always)]
    pub fn add_scores(&self, term: &Term, chunk: usize, scores: &mut [[f32; BLOCK]], errors: &mut [f64]) {
        let chunk = &self.chunks[chunk];
        let blocks =
            chunk.codes.chunks_exact(self.block_bytes()).zip(chunk.views.as_chunks::<{ 2 * BLOCK }>().0);
        for (((codes, views), bound), (scores, error)) in
            blocks.zip(&chunk.bounds).zip(scores.iter_mut().zip(errors))
        {
            let dots =
                if self.packed() { packed_dots(codes, &term.factors) } else { dots(codes, &term.factors) };
            let (lo, step) = views.split_at(BLOCK);
            for (((score, dot), lo), step) in scores.iter_mut().zip(&dots).zip(lo).zip(step) {
                *score += dot * step + lo * term.sum;
            }
            // The error of the labels, by Hölder's or the Cauchy–Schwarz inequality. The last summand covers underflow.
            let labels = (term.magnitude * bound.error).min(term.norm * bound.norm * (1.0 + 1e-9));
            *error += labels
                + term.relative * term.magnitude * bound.size
                + f64::from(f32::MIN_POSITIVE) * (1.0 + bound.size);
        }
    }
}

/// Σ factor · code for each key of a block.
#[inline(always)]
fn dots(codes: &[u8], factors: &[f32]) -> [f32; BLOCK] {
    let mut dots = [0.0; BLOCK];
    let rows = codes.as_chunks::<BLOCK>().0;
    for (rows, factors) in rows.as_chunks::<TOGETHER>().0.iter().zip(factors.as_chunks::<TOGETHER>().0) {
        let [a, b, c, d] = rows;
        for ((((dot, &a), &b), &c), &d) in dots.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *dot += (f32::from(a) * factors[0] + f32::from(b) * factors[1])
                + (f32::from(c) * factors[2] + f32::from(d) * factors[3]);
        }
    }
    dots
}

/// The same for codes in pairs: the lower half of a byte is the channel of even number.
#[inline(always)]
fn packed_dots(codes: &[u8], factors: &[f32]) -> [f32; BLOCK] {
    let mut dots = [0.0; BLOCK];
    let rows = codes.as_chunks::<BLOCK>().0;
    for (rows, factors) in rows.as_chunks::<2>().0.iter().zip(factors.as_chunks::<TOGETHER>().0) {
        let [ab, cd] = rows;
        for ((dot, &ab), &cd) in dots.iter_mut().zip(ab).zip(cd) {
            *dot += (f32::from(ab & 15) * factors[0] + f32::from(ab >> 4) * factors[1])
                + (f32::from(cd & 15) * factors[2] + f32::from(cd >> 4) * factors[3]);
        }
    }
    dots
}
