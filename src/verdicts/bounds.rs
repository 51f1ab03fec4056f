//! Error bounds of floating-point arithmetic (SPEC §5), the only source of tolerances in this crate.
//!
//! With unit roundoff u (2^-24 in f32, 2^-11 in f16, 2^-8 in bf16, 2^-53 in f64), one operation gives the exact result
//! times (1 + δ) plus η, |δ| ≤ u, |η| at most the smallest normal number (so that flushing subnormals to zero is
//! covered). A sum of k products gives, for *every* order of summation, with or without fused operations,
//!
//! > |computed − Σ xᵢyᵢ| ≤ γ_k Σ |xᵢyᵢ|, γ_k = k·u / (1 − k·u)
//!
//! (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., §3.1, lemma 3.1 and eq. 3.5.) From these two:
//!
//! * **score** (SPEC §2.6): the sum over r products under γ_r of the accumulation type; rounding of the sum to the kept
//!   type; √r, its reciprocal and the product, or one division, under γ_3 of f32; rounding to the kept type; A rounded
//!   to the kept type, the addition, rounding. Where A is 0 nothing is added.
//! * **labels off by ρ**: |q̃k̃ − qk| ≤ |q|ρ_k + ρ_q|k| + ρ_qρ_k for each product.
//! * **head sum** (SPEC §2.7): sums of h terms in f32 at least under γ_{h+2} (the two more allow a mean), rounded to the
//!   kept type.
//!
//! A value whose magnitude can exceed the largest number of the kept type may be an infinity: its radius is infinite.

use crate::algorithm::Storage;
use crate::cases::{Accumulation, Kept, RoundingModel};

/// u of f32.
pub const U32: f64 = 1.0 / (1u64 << 24) as f64;
/// u of f64.
pub const U64: f64 = 1.0 / (1u64 << 53) as f64;

/// γ_k: the relative error bound of k roundings; infinite where k·u reaches 1.
pub fn gamma(operations: usize, unit_roundoff: f64) -> f64 {
    let ku = operations as f64 * unit_roundoff;
    if ku < 1.0 { ku / (1.0 - ku) } else { f64::INFINITY }
}

/// A number known up to a radius.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Approximate {
    /// Recomputed in f64.
    pub value: f64,
    /// How far a conforming implementation may be from it.
    pub radius: f64,
}

impl Approximate {
    /// What A excludes.
    pub const EXCLUDED: Self = Self { value: f64::NEG_INFINITY, radius: 0.0 };

    /// A number without error.
    pub fn exact(value: f64) -> Self {
        Self { value, radius: 0.0 }
    }

    /// The smallest value that an implementation may have.
    pub fn low(self) -> f64 {
        if self.radius == f64::INFINITY { f64::NEG_INFINITY } else { self.value - self.radius }
    }

    /// The largest value that an implementation may have.
    pub fn high(self) -> f64 {
        self.value + self.radius
    }

    fn magnitude(self) -> f64 {
        self.value.abs() + self.radius
    }

    fn widen(self, by: f64) -> Self {
        Self { value: self.value, radius: self.radius + by }
    }
}

/// A rounding model at work on values of one storage type.
#[derive(Debug, Clone, Copy)]
pub struct Arithmetic {
    /// Unit roundoff of sums of products.
    pub accumulation: f64,
    /// The type that scores and weights are rounded to.
    pub kept: Storage,
}

impl Arithmetic {
    /// The arithmetic that a model allows for a storage type.
    pub fn new(model: RoundingModel, storage: Storage) -> Self {
        let accumulation = match model.accumulation {
            Accumulation::F32 => U32,
            Accumulation::F64 => U64,
        };
        let kept = match model.kept {
            Kept::F32 => Storage::F32,
            Kept::Storage => storage,
        };
        Self { accumulation, kept }
    }

    /// Unit roundoff of the kept type.
    pub fn u(&self) -> f64 {
        self.kept.unit_roundoff()
    }

    /// The absolute error that an underflow of the kept type can add.
    pub fn underflow(&self) -> f64 {
        match self.kept {
            // No processor flushes subnormal f16 numbers, so the error is half their spacing.
            Storage::F16 => self.kept.smallest_subnormal() / 2.0,
            Storage::F32 | Storage::Bf16 => self.kept.smallest_normal(),
        }
    }

    /// One rounding to the kept type.
    pub fn round(&self, x: Approximate) -> Approximate {
        let rounded = x.widen(self.u() * x.magnitude() + self.underflow());
        if rounded.magnitude() < self.kept.largest() {
            rounded
        } else {
            Approximate { value: x.value, radius: f64::INFINITY }
        }
    }

    /// A sum of `terms` products, `value` in f64, the sum of their magnitudes, and the error they carry already.
    pub fn sum_of_products(&self, terms: usize, value: f64, magnitude: f64, carried: f64) -> Approximate {
        let exactness = gamma(terms + 1, U64);
        let relative = gamma(terms, self.accumulation) + exactness;
        let underflow = terms as f64 * Storage::F32.smallest_normal();
        let radius = carried + relative * (magnitude + carried) + underflow;
        self.round(Approximate { value, radius })
    }

    /// Multiplication or division by a number that is itself known up to rounding to f32.
    pub fn scale(&self, x: Approximate, factor: f64) -> Approximate {
        let scaled = Approximate { value: x.value * factor, radius: x.radius * factor.abs() };
        self.round(scaled.widen(gamma(3, U32) * scaled.magnitude()))
    }

    /// Addition of A at one key.
    pub fn add_mask(&self, x: Approximate, mask: f32) -> Approximate {
        if mask == f32::NEG_INFINITY {
            return Approximate::EXCLUDED;
        }
        if mask == 0.0 {
            return x;
        }
        let stored = f64::from(self.kept.round(mask));
        let mask = f64::from(mask);
        let cast = if stored == mask { 0.0 } else { (stored - mask).abs() };
        self.round(Approximate { value: x.value + mask, radius: x.radius + cast })
    }

    /// A sum over heads, in f32 at least.
    pub fn sum_over_heads(&self, parts: &[Approximate]) -> Approximate {
        if parts.iter().any(|part| part.value == f64::NEG_INFINITY) {
            return Approximate::EXCLUDED;
        }
        let value = parts.iter().map(|part| part.value).sum();
        let magnitude: f64 = parts.iter().map(|part| part.magnitude()).sum();
        let carried: f64 = parts.iter().map(|part| part.radius).sum();
        let rounding = gamma(parts.len() + 2, U32) * magnitude;
        self.round(Approximate { value, radius: carried + rounding })
    }
}
