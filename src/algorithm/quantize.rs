//! SPEC §2.5: labels of B < 16 bits, over the r channels of one (batch, head, position). Every operation rounds
//! once to the storage type, in the order PyTorch runs them, so that labels are bit-equal to the author's
//! `pseudo_quantize`. The one place where that order is not the formula's: PyTorch evaluates a number divided by
//! a tensor as reciprocal times number, so scale = round(round(1 / range) · (2^B − 1)), two roundings, and the
//! clamp's upper end is 2^B − 1 rounded to the storage type (512 for nine bits in bf16).

use super::config::LabelBits;
use super::error::{Detail, Error, Result};
use super::storage::Storage;
use crate::compute::vectorised;

/// Codes of one row and what turns them back into labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// Whole numbers in [0, 2^B − 1].
    pub codes: Vec<f32>,
    /// The row's smallest value.
    pub lo: f32,
    /// Codes per unit.
    pub scale: f32,
}

/// The steps of SPEC §2.5 up to the codes. `row` holds values of the storage type, at least one.
///
/// Errors: [`Error::NotFinite`]; [`Error::LabelRange`] where the range, its reciprocal or the scale overflows the storage type, so that
/// the author's code would produce NaN labels (SPEC D9).
pub fn quantize(row: &[f32], bits: LabelBits, storage: Storage) -> Result<Quantised> {
    let (lo, scale) = scale(row, bits, storage)?;
    let largest_code = storage.round(bits.largest_code());
    let code = |&x: &f32| code(x, lo, scale, largest_code, storage);
    Ok(Quantised { codes: row.iter().map(code).collect(), lo, scale })
}

/// lo and scale of a row. Errors: [`Error::NotFinite`], [`Error::LabelRange`].
fn scale(row: &[f32], bits: LabelBits, storage: Storage) -> Result<(f32, f32)> {
    if let Some(x) = row.iter().find(|x| !x.is_finite()) {
        return Err(Error::NotFinite(Detail::new("label row", format!("{x:?}"), "finite numbers")));
    }
    let lo = row.iter().copied().fold(f32::INFINITY, f32::min);
    let hi = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = scale_between(lo, hi, bits.largest_code(), storage);
    if is_usable(lo, hi, scale, storage.round(bits.largest_code()), storage) {
        return Ok((lo, scale));
    }
    let range = range(lo, hi, storage);
    let found = format!("range {range:e} with {} bits, scale {scale:e}", bits.get());
    let expected = format!("a range whose scale and labels are finite numbers in {storage}");
    Err(Error::LabelRange(Detail::new("label row", found, expected)))
}

#[inline(always)]
fn range(lo: f32, hi: f32, storage: Storage) -> f32 {
    let range = storage.round(hi - lo);
    if range == 0.0 { 1.0 } else { range }
}

#[inline(always)]
fn scale_between(lo: f32, hi: f32, codes: f32, storage: Storage) -> f32 {
    storage.round(storage.round(1.0 / range(lo, hi, storage)) * codes)
}

/// Whether a scale gives finite labels. One of 0 comes from a range whose reciprocal underflows: dividing by it gives NaN.
/// One that is subnormal can be so coarse that the largest label overflows.
#[inline(always)]
fn is_usable(lo: f32, hi: f32, scale: f32, largest_code: f32, storage: Storage) -> bool {
    let largest = label(code(hi, lo, scale, largest_code, storage), lo, scale, storage);
    range(lo, hi, storage).is_finite() & scale.is_finite() & (scale > 0.0) & largest.is_finite()
}

#[inline(always)]
fn code(x: f32, lo: f32, scale: f32, largest_code: f32, storage: Storage) -> f32 {
    let steps = storage.round(storage.round(x - lo) * scale);
    steps.round_ties_even().clamp(0.0, largest_code)
}

#[inline(always)]
fn label(code: f32, lo: f32, scale: f32, storage: Storage) -> f32 {
    storage.round(storage.round(code / scale) + lo)
}

impl Quantised {
    /// label = code / scale + lo, for each code.
    pub fn labels(&self, storage: Storage) -> Vec<f32> {
        let label = |&code: &f32| label(code, self.lo, self.scale, storage);
        self.codes.iter().map(label).collect()
    }
}

/// Replaces a row by its labels; 16 bits leave it as it is. Same errors as [`quantize`].
pub fn quantize_in_place(row: &mut [f32], bits: LabelBits, storage: Storage) -> Result<()> {
    if !bits.quantises() {
        return Ok(());
    }
    let (lo, scale) = scale(row, bits, storage)?;
    let largest_code = storage.round(bits.largest_code());
    for x in row {
        *x = label(code(*x, lo, scale, largest_code, storage), lo, scale, storage);
    }
    Ok(())
}

/// The labels of a row by other operations than those of SPEC §2.5, each rounded once to the storage type: by a scale that is the
/// quotient (2^B − 1) / range, or, with `step`, by the step range / (2^B − 1), by which x − lo is divided and a code is multiplied.
/// They may not be finite where those of [`quantize`] are.
pub fn labels_by_quotient(row: &[f32], bits: LabelBits, storage: Storage, step: bool) -> Vec<f32> {
    let lo = row.iter().copied().fold(f32::INFINITY, f32::min);
    let hi = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (range, codes) = (range(lo, hi, storage), bits.largest_code());
    let largest_code = storage.round(codes);
    let quotient = storage.round(if step { range / codes } else { codes / range });
    let label = |&x: &f32| {
        let moved = storage.round(x - lo);
        let steps = storage.round(if step { moved / quotient } else { moved * quotient });
        let code = steps.round_ties_even().clamp(0.0, largest_code);
        let product = storage.round(if step { code * quotient } else { code / quotient });
        storage.round(product + lo)
    };
    row.iter().map(label).collect()
}

/// Replaces the rows of several positions by their labels. `columns` is [r, positions]: one channel after the other, so
/// that loops run over positions. The operations are those of [`quantize_in_place`]. Returns whether all rows have labels;
/// otherwise the contents of `columns` are meaningless.
#[must_use]
pub fn quantize_columns(columns: &mut [f32], positions: usize, bits: LabelBits, storage: Storage) -> bool {
    // One instance for each type, so that no loop branches on it.
    vectorised(
        #[inline(always)]
        || match storage {
            Storage::F32 => quantize_columns_of(columns, positions, bits, Storage::F32),
            Storage::F16 => quantize_columns_of(columns, positions, bits, Storage::F16),
            Storage::Bf16 => quantize_columns_of(columns, positions, bits, Storage::Bf16),
        },
    )
}

#[inline(always)]
fn quantize_columns_of(columns: &mut [f32], positions: usize, bits: LabelBits, storage: Storage) -> bool {
    let (codes, largest_code) = (bits.largest_code(), storage.round(bits.largest_code()));
    let (mut lo, mut hi) = (vec![f32::INFINITY; positions], vec![f32::NEG_INFINITY; positions]);
    for channel in columns.chunks_exact(positions) {
        for ((&x, lo), hi) in channel.iter().zip(&mut lo).zip(&mut hi) {
            *lo = if x < *lo { x } else { *lo };
            *hi = if x > *hi { x } else { *hi };
        }
    }
    let mut usable = true;
    // From here on `hi` holds the scales in place of the largest values.
    for (&lo, hi) in lo.iter().zip(&mut hi) {
        let scale = scale_between(lo, *hi, codes, storage);
        usable &= is_usable(lo, *hi, scale, largest_code, storage);
        *hi = scale;
    }
    let scales = hi;
    for channel in columns.chunks_exact_mut(positions) {
        for ((x, &lo), &scale) in channel.iter_mut().zip(&lo).zip(&scales) {
            *x = label(code(*x, lo, scale, largest_code, storage), lo, scale, storage);
        }
    }
    usable
}
