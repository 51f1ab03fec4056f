//! Recipe `splitmix-1` (SPEC §6): inputs made from a seed, bit-exact in any language, so that a case on 32,769 keys
//! needs no tensors in its file. All arithmetic on u64 wraps.

use ndarray::Array4;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use crate::algorithm::inputs::LARGEST_TENSOR;
use crate::algorithm::{ChannelOrder, Detail, Dims};
use crate::compute::vectorised;

/// Values that one core makes before it takes others.
const TOGETHER: usize = 1 << 14;

/// Which inputs to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `splitmix-1`.
    pub generator: String,
    /// Any number.
    pub seed: u64,
    /// b
    pub batch: usize,
    /// h
    pub heads: usize,
    /// hk
    pub kv_heads: usize,
    /// m
    pub queries: usize,
    /// n
    pub keys: usize,
    /// d, also dv
    pub head_dim: usize,
    /// How many channel rows there are.
    #[serde(default, skip_serializing_if = "RecipeRows::is_default")]
    pub rows: RecipeRows,
}

/// Channel rows of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecipeRows {
    /// One per query head.
    #[default]
    PerHead,
    /// One per KV head.
    PerKvHead,
    /// One for all heads.
    Shared,
}

impl RecipeRows {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// q [b, h, m, d], k and v [b, hk, n, d], and a channel order.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// Before the cast to the storage type.
    pub q: Array4<f32>,
    /// Before the cast to the storage type.
    pub k: Array4<f32>,
    /// Before the cast to the storage type.
    pub v: Array4<f32>,
    /// All d channels.
    pub channels: ChannelOrder,
}

/// The name of the only generator.
pub const SPLITMIX_1: &str = "splitmix-1";

const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of splitmix64.
#[inline]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Random words: one stream per tensor number `t`.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    start: u64,
}

impl Words {
    /// The stream of tensor `t`.
    pub fn new(seed: u64, t: u64) -> Self {
        Self { start: mix(seed.wrapping_add(t)) }
    }

    /// word(t, i).
    #[inline]
    pub fn word(&self, i: u64) -> u64 {
        mix(self.start.wrapping_add(i.wrapping_add(1).wrapping_mul(GOLDEN_RATIO)))
    }

    /// value(t, i): about normal, mean 0, a multiple of 2^-15 in [−4, 4].
    #[inline]
    pub fn value(&self, i: u64) -> f32 {
        let word = self.word(i);
        // At most 2^18, for which there is a vector instruction in 32 bits.
        let lanes = (0..4).map(|lane| ((word >> (16 * lane)) & 0xFFFF) as u32).sum::<u32>();
        (lanes as f32 - 131_070.0) / 32_768.0
    }
}

impl Recipe {
    /// Makes the inputs. Errors: [`Error::Metadata`] for an unknown generator or sizes that are zero, do not divide,
    /// or exceed 2^30 numbers in one tensor.
    pub fn generate(&self) -> Result<Generated> {
        self.check()?;
        let q = self.tensor(0, self.heads, self.queries)?;
        let mut k = self.tensor(1, self.kv_heads, self.keys)?;
        let v = self.tensor(2, self.kv_heads, self.keys)?;
        let scales = Words::new(self.seed, 3);
        let exponents: Vec<u32> =
            (0..self.head_dim).map(|c| scales.word(c as u64).trailing_zeros().min(3)).collect();
        let factors: Vec<f32> = exponents.iter().map(|&x| (1u32 << x) as f32).collect();
        if let Some(k) = k.as_slice_mut() {
            k.par_chunks_mut(self.head_dim)
                .for_each(|key| key.iter_mut().zip(&factors).for_each(|(x, factor)| *x *= factor));
        }
        let channels = (0..self.channel_rows()).map(|row| self.channel_row(row, &exponents)).collect();
        Ok(Generated { q, k, v, channels: ChannelOrder::new(channels)? })
    }

    /// How many channel rows it makes.
    pub fn channel_rows(&self) -> usize {
        match self.rows {
            RecipeRows::PerHead => self.heads,
            RecipeRows::PerKvHead => self.kv_heads,
            RecipeRows::Shared => 1,
        }
    }

    /// The sizes. Errors: those of [`Self::generate`].
    pub fn dims(&self) -> Result<Dims> {
        self.check()?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            let found = format!("{} heads, {} kv_heads", self.heads, self.kv_heads);
            return Err(Error::Metadata(Detail::new("recipe.heads", found, "a multiple of kv_heads")));
        }
        Ok(Dims {
            batch: self.batch,
            heads: self.heads,
            kv_heads: self.kv_heads,
            queries: self.queries,
            keys: self.keys,
            head_dim: self.head_dim,
            value_dim: self.head_dim,
        })
    }

    fn check(&self) -> Result<()> {
        let wrong = |field: &str, found: String, expected: &str| {
            Err(Error::Metadata(Detail::new(format!("recipe.{field}"), found, expected)))
        };
        if self.generator != SPLITMIX_1 {
            return wrong("generator", format!("{:?}", self.generator), "\"splitmix-1\"");
        }
        let sizes = [self.batch, self.heads, self.kv_heads, self.queries, self.keys, self.head_dim];
        if sizes.contains(&0) {
            return wrong("sizes", format!("{sizes:?}"), "no size of 0");
        }
        self.length(self.heads, self.queries)?;
        self.length(self.kv_heads, self.keys)?;
        Ok(())
    }

    /// How many numbers a tensor has. Errors: more than 2^30.
    fn length(&self, heads: usize, positions: usize) -> Result<usize> {
        let shape = [self.batch, heads, positions, self.head_dim];
        let length = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        length.filter(|&length| length <= LARGEST_TENSOR).ok_or_else(|| {
            let expected = "at most 2^30 numbers in one tensor";
            Error::Metadata(Detail::new("recipe", format!("{shape:?}"), expected))
        })
    }

    fn tensor(&self, t: u64, heads: usize, positions: usize) -> Result<Array4<f32>> {
        let length = self.length(heads, positions)?;
        let shape = [self.batch, heads, positions, self.head_dim];
        let words = Words::new(self.seed, t);
        let mut values = vec![0.0; length];
        values.par_chunks_mut(TOGETHER).enumerate().for_each(|(index, part)| {
            let first = (index * TOGETHER) as u64;
            vectorised(
                #[inline(always)]
                || part.iter_mut().zip(first..).for_each(|(value, i)| *value = words.value(i)),
            );
        });
        Array4::from_shape_vec(shape, values)
            .map_err(|error| Error::Metadata(Detail::new("recipe", error, "a possible shape")))
    }

    /// Falling x(c), then rising word(4, i·d + c).
    fn channel_row(&self, head: usize, exponents: &[u32]) -> Vec<usize> {
        let words = Words::new(self.seed, 4);
        let mut row: Vec<usize> = (0..self.head_dim).collect();
        row.sort_by_key(|&c| {
            (std::cmp::Reverse(exponents[c]), words.word((head * self.head_dim + c) as u64))
        });
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SPEC §6: seed 1, h = 2, hk = 1, m = 1, n = 3, d = 8.
    #[test]
    fn check_values_of_the_spec() {
        let recipe = Recipe {
            generator: SPLITMIX_1.into(),
            seed: 1,
            batch: 1,
            heads: 2,
            kv_heads: 1,
            queries: 1,
            keys: 3,
            head_dim: 8,
            rows: RecipeRows::PerHead,
        };
        assert_eq!(Words::new(1, 0).word(0), 0xBFEF_8030_DDC2_D772);
        let made = recipe.generate().unwrap();
        let start = |x: &Array4<f32>| x.iter().copied().take(2).collect::<Vec<_>>();
        assert_eq!(start(&made.q), [1.916_656_5, -0.551_147_46]);
        assert_eq!(start(&made.k), [-6.711_548, 0.035_278_32]);
        assert_eq!(made.v[[0, 0, 0, 0]], 1.053_558_3);
        assert_eq!(made.channels.rows(), [[4, 0, 6, 7, 1, 3, 2, 5], [4, 6, 0, 7, 1, 3, 5, 2]]);
        // Fewer rows are the first of those.
        for rows in [RecipeRows::PerKvHead, RecipeRows::Shared] {
            let fewer = Recipe { rows, ..recipe.clone() }.generate().unwrap();
            assert_eq!(fewer.channels.rows(), [[4, 0, 6, 7, 1, 3, 2, 5]]);
            assert_eq!((&fewer.q, &fewer.k, &fewer.v), (&made.q, &made.k, &made.v));
        }
    }
}
