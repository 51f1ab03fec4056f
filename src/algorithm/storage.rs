//! The three storage types of SPEC §2.5. Values live in `f32` here and are rounded to the storage type after
//! each operation. For f16 and bf16 that gives the same bits as arithmetic in the type itself: f32 has at
//! least twice their significant bits plus two, so rounding twice cannot differ from rounding once
//! (Figueroa, "When is double rounding innocuous?", 1995), and it is what PyTorch does.

use serde::{Deserialize, Serialize};

/// The type that q, k, v and labels are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// IEEE 754 binary32.
    #[serde(alias = "F32", alias = "float32")]
    F32,
    /// IEEE 754 binary16.
    #[serde(alias = "F16", alias = "float16")]
    F16,
    /// The upper half of binary32.
    #[serde(alias = "BF16", alias = "bfloat16")]
    Bf16,
}

/// The type of scores and weights between operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 or wider.
    F32,
    /// Rounded to f16 after each operation, whatever the storage type.
    F16,
    /// Rounded to the storage type after each operation.
    Storage,
}

impl Precision {
    /// The type of scores and weights where q, k and v have the type `storage`.
    pub fn of(self, storage: Storage) -> Storage {
        match self {
            Self::F32 => Storage::F32,
            Self::F16 => Storage::F16,
            Self::Storage => storage,
        }
    }
}

impl Storage {
    /// All three, narrowest significand last.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// `x` rounded to this type, ties to even; beyond the largest value it becomes an infinity.
    #[inline]
    pub fn round(self, x: f32) -> f32 {
        // f32 is tested here, so that the common case is inlined into loops.
        if self == Self::F32 { x } else { self.round_to_half(x) }
    }

    fn round_to_half(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => round_to_f16(x),
            Self::Bf16 => without_low_bits::<16>(x),
        }
    }

    /// Half the distance from 1 to the next larger number: the largest relative error of one rounding.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::F32 => f64::powi(2.0, -24),
            Self::F16 => f64::powi(2.0, -11),
            Self::Bf16 => f64::powi(2.0, -8),
        }
    }

    /// The smallest positive normal number.
    pub fn smallest_normal(self) -> f64 {
        match self {
            Self::F32 | Self::Bf16 => f64::from(f32::MIN_POSITIVE),
            Self::F16 => f64::powi(2.0, -14),
        }
    }

    /// The smallest positive number.
    pub fn smallest_subnormal(self) -> f64 {
        match self {
            Self::F32 => f64::powi(2.0, -149),
            Self::F16 => f64::powi(2.0, -24),
            Self::Bf16 => f64::powi(2.0, -133),
        }
    }

    /// The largest finite number.
    pub fn largest(self) -> f64 {
        match self {
            Self::F32 => f64::from(f32::MAX),
            Self::F16 => 65_504.0,
            Self::Bf16 => f64::powi(2.0, 128) - f64::powi(2.0, 120),
        }
    }

    /// The name used in case files: `f32`, `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

fn round_to_f16(x: f32) -> f32 {
    let magnitude = x.abs();
    let rounded = if f64::from(magnitude) < Storage::F16.smallest_normal() {
        // Neighbouring f32 between 1/2 and 1 are as far apart as neighbouring subnormal f16.
        (magnitude + 0.5) - 0.5
    } else {
        without_low_bits::<13>(magnitude)
    };
    let finite = f64::from(rounded) <= Storage::F16.largest() || rounded.is_nan();
    if finite { rounded.copysign(x) } else { f32::INFINITY.copysign(x) }
}

/// `x` rounded to a significand that is `DROPPED` bits shorter, ties to even.
#[inline]
fn without_low_bits<const DROPPED: u32>(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let bits = x.to_bits();
    let below_half = (1 << (DROPPED - 1)) - 1;
    let odd = (bits >> DROPPED) & 1;
    // A carry out of the significand makes the exponent one larger, as it should be.
    f32::from_bits((bits + below_half + odd) >> DROPPED << DROPPED)
}

impl std::fmt::Display for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// Each number of the type, the middle to the next one, and their neighbours in f32, against the `half` crate.
    #[test]
    fn rounding_is_that_of_the_half_crate() {
        fn compare(storage: Storage, number: impl Fn(u16) -> f32, round: impl Fn(f32) -> f32) {
            let check = |x: f32| {
                let [found, expected] = [storage.round(x), round(x)];
                let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
                assert!(same, "{storage} of {x:e}: {found:e}, expected {expected:e}");
            };
            for bits in 0..u16::MAX {
                let [from, to] = [number(bits), number(bits + 1)];
                let middle = from / 2.0 + to / 2.0;
                [from, middle].into_iter().flat_map(|x| [x.next_down(), x, x.next_up()]).for_each(check);
            }
            (0..u32::MAX).step_by(1021).map(f32::from_bits).for_each(check);
        }
        compare(Storage::F16, |bits| f16::from_bits(bits).to_f32(), |x| f16::from_f32(x).to_f32());
        compare(Storage::Bf16, |bits| bf16::from_bits(bits).to_f32(), |x| bf16::from_f32(x).to_f32());
    }

    #[test]
    fn rounding_is_idempotent_and_ties_to_even() {
        assert_eq!(Storage::F16.round(2049.0), 2048.0);
        assert_eq!(Storage::F16.round(2051.0), 2052.0);
        assert_eq!(Storage::Bf16.round(257.0), 256.0);
        assert_eq!(Storage::Bf16.round(259.0), 260.0);
        for storage in Storage::ALL {
            for x in [0.1f32, -3.7, 1e-6, 12345.678] {
                assert_eq!(storage.round(storage.round(x)), storage.round(x));
            }
        }
    }

    #[test]
    fn constants_are_those_of_the_types() {
        for storage in Storage::ALL {
            assert_eq!(f64::from(storage.round(storage.largest() as f32)), storage.largest());
            let just_above_one = (1.0 + 2.0 * storage.unit_roundoff()) as f32;
            assert_eq!(storage.round(just_above_one), just_above_one);
            let tie = (1.0 + storage.unit_roundoff()) as f32;
            assert_eq!(storage.round(tie), 1.0);
            let tiny = storage.smallest_subnormal() as f32;
            assert_eq!(storage.round(tiny), tiny);
            assert_eq!(storage.round(tiny / 2.0), 0.0);
        }
    }
}
