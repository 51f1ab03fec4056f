//! SPEC §2.1: how many keys a row may select. An integer is a count, a fraction is a share of the keys, and
//! `1` (one key) is not `1.0` (every key): the JSON type decides and survives a round trip.

use std::fmt;
use std::num::NonZeroUsize;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::{Detail, Error, Result};

/// How many keys each row may select; also the size of sink and local windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeavySize {
    /// That many keys.
    Count(NonZeroUsize),
    /// That share of all keys.
    Fraction(Fraction),
}

/// A number in (0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fraction(f64);

impl Fraction {
    /// The number itself.
    pub fn get(self) -> f64 {
        self.0
    }
}

const EXPECTED: &str = "an integer of at least 1, or a fraction above 0 and at most 1.0";

impl HeavySize {
    /// A count of keys. Errors: [`Error::HeavySize`] for 0.
    pub fn count(keys: usize) -> Result<Self> {
        NonZeroUsize::new(keys)
            .map(Self::Count)
            .ok_or_else(|| Error::HeavySize(Detail::new("heavy_size", keys, EXPECTED)))
    }

    /// A share of all keys. Errors: [`Error::HeavySize`] for NaN and for anything outside (0, 1].
    pub fn fraction(share: f64) -> Result<Self> {
        if share > 0.0 && share <= 1.0 {
            Ok(Self::Fraction(Fraction(share)))
        } else {
            let found = format!("{share:?}");
            Err(Error::HeavySize(Detail::new("heavy_size", found, EXPECTED)))
        }
    }

    /// H for `keys` keys: floor(f · n) in f64 for a fraction, then at least 1 and at most `keys`.
    pub fn resolve(self, keys: usize) -> usize {
        let wanted = match self {
            Self::Count(count) => count.get(),
            Self::Fraction(share) => (share.0 * keys as f64).floor() as usize,
        };
        wanted.max(1).min(keys)
    }
}

impl fmt::Display for HeavySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => f.pad(&count.to_string()),
            Self::Fraction(share) => f.pad(&format!("{:?}", share.0)),
        }
    }
}

impl Serialize for HeavySize {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => serializer.serialize_u64(count.get() as u64),
            Self::Fraction(share) => serializer.serialize_f64(share.0),
        }
    }
}

impl<'de> Deserialize<'de> for HeavySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct CountOrFraction;

        impl Visitor<'_> for CountOrFraction {
            type Value = HeavySize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> std::result::Result<HeavySize, E> {
                usize::try_from(count)
                    .map_err(E::custom)
                    .and_then(|count| HeavySize::count(count).map_err(|_| wrong(count)))
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> std::result::Result<HeavySize, E> {
                Err(wrong(count))
            }

            fn visit_f64<E: de::Error>(self, share: f64) -> std::result::Result<HeavySize, E> {
                HeavySize::fraction(share).map_err(|_| wrong(share))
            }
        }

        fn wrong<E: de::Error>(found: impl fmt::Debug) -> E {
            E::custom(format!("found {found:?}, expected {EXPECTED}"))
        }

        deserializer.deserialize_any(CountOrFraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_round_down_and_never_below_one() {
        assert_eq!(HeavySize::fraction(0.1).unwrap().resolve(5), 1);
        assert_eq!(HeavySize::fraction(0.1).unwrap().resolve(29), 2);
        assert_eq!(HeavySize::fraction(1.0).unwrap().resolve(29), 29);
        assert_eq!(HeavySize::count(100).unwrap().resolve(29), 29);
        // 0.29 · 100 is 28.999999999999996 in f64, so floor gives 28.
        assert_eq!(HeavySize::fraction(0.29).unwrap().resolve(100), 28);
    }

    #[test]
    fn one_key_and_every_key_keep_their_types_in_json() {
        for text in ["1", "1.0", "64", "0.1"] {
            let size: HeavySize = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&size).unwrap(), text);
        }
        assert_eq!(serde_json::from_str::<HeavySize>("1").unwrap().resolve(9), 1);
        assert_eq!(serde_json::from_str::<HeavySize>("1.0").unwrap().resolve(9), 9);
    }
}
