//! Batches of entries of unequal length (SPEC §2.13): entry b has the keys 0..lengths\[b\], and its query i the position
//! lengths\[b\] − m + i. What lies beyond is padding. Each entry is the call of that entry alone, so that nothing here computes
//! anything: `Inputs::entry` is that call.

use ndarray::{Array4, s};
use serde::{Deserialize, Serialize};

use super::error::{Detail, Error, Result};
use super::inputs::Dims;
use super::storage::Storage;

/// What padding of k and v holds when a call is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// NaN.
    Nan,
    /// A quarter of the largest number of the type; its sign alternates from key to key.
    Large,
}

impl Padding {
    /// What it is at one key.
    pub(crate) fn at(self, key: usize, storage: Storage) -> f32 {
        let large = storage.round((storage.largest() / 4.0) as f32);
        match self {
            Self::Nan => f32::NAN,
            Self::Large if key.is_multiple_of(2) => large,
            Self::Large => -large,
        }
    }
}

/// How many keys each entry of a batch has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lengths {
    /// One for each entry.
    #[serde(rename = "lengths")]
    keys: Vec<usize>,
    padding: Padding,
}

impl Lengths {
    /// Whether they fit is known once there are inputs: see [`super::Inputs::with_lengths`].
    pub fn new(keys: Vec<usize>, padding: Padding) -> Self {
        Self { keys, padding }
    }

    /// How many keys each entry has, \[b\].
    pub fn keys(&self) -> &[usize] {
        &self.keys
    }

    /// What padding holds when the call is asked.
    pub fn padding(&self) -> Padding {
        self.padding
    }

    /// In words: "lengths [3, 0] of 4 keys, padding NaN".
    pub fn in_words(&self, dims: &Dims) -> String {
        let padding = match self.padding {
            Padding::Nan => "NaN",
            Padding::Large => "large numbers",
        };
        format!("lengths {:?} of {} keys, padding {padding}", self.keys, dims.keys)
    }

    pub(crate) fn check(&self, dims: &Dims) -> Result<()> {
        if self.keys.len() != dims.batch {
            let found = format!("[{}]", self.keys.len());
            return Err(Error::Shape(Detail::new("lengths", found, format!("[{}]", dims.batch))));
        }
        match self.keys.iter().position(|&length| length > dims.keys) {
            None => Ok(()),
            Some(b) => {
                let expected = format!("at most the {} keys", dims.keys);
                Err(Error::Shape(Detail::new(format!("lengths[{b}]"), self.keys[b], expected)))
            }
        }
    }

    /// k or v [b, hk, n, ·] with other numbers in the padding: `of` a key's position.
    pub(super) fn fill(&self, tensor: &mut Array4<f32>, of: impl Fn(usize) -> f32) {
        for (batch, &length) in self.keys.iter().enumerate() {
            for key in length..tensor.dim().2 {
                tensor.slice_mut(s![batch, .., key, ..]).fill(of(key));
            }
        }
    }

    /// k or v as they are asked.
    pub(super) fn padded(&self, tensor: &Array4<f32>, storage: Storage) -> Array4<f32> {
        let mut padded = tensor.clone();
        self.fill(&mut padded, |key| self.padding.at(key, storage));
        padded
    }
}
