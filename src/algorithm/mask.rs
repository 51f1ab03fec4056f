//! SPEC §2.10: masks. A mask holds a weight for every (batch, head, query, key): 0 means not attended, 1 attended,
//! and anything between is the probability with which an earlier sampling masker chose the key.

use ndarray::{Array4, ArrayView1};

use super::error::{Detail, Error, Result};
use super::inputs::{Dims, Row};

/// Which keys each query attends to, and with which weight. Weights are finite and at least 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    weights: Array4<f32>,
}

impl Mask {
    /// Nothing attended.
    pub fn empty(dims: &Dims) -> Self {
        Self { weights: Array4::zeros(dims.mask_shape()) }
    }

    /// Everything attended, with weight 1.
    pub fn full(dims: &Dims) -> Self {
        Self { weights: Array4::ones(dims.mask_shape()) }
    }

    /// Everything attended: keys attended before keep their weight, as maskers only ever add; the others get weight 1.
    pub fn filled(&self) -> Self {
        Self { weights: self.weights.mapv(|weight| if weight == 0.0 { 1.0 } else { weight }) }
    }

    /// A mask from weights [b, h, m, n].
    ///
    /// Errors: [`Error::Shape`]; [`Error::Weight`] for a weight that is negative, NaN or infinite.
    pub fn from_weights(mut weights: Array4<f32>, dims: &Dims) -> Result<Self> {
        if weights.dim() != dims.mask_shape() {
            let expected = format!("{:?}", dims.mask_shape());
            let found = format!("{:?}", weights.dim());
            return Err(Error::Shape(Detail::new("mask", found, expected)));
        }
        let wrong = weights.indexed_iter().find(|(_, x)| !(x.is_finite() && **x >= 0.0));
        if let Some((index, x)) = wrong {
            let field = format!("mask{index:?}");
            let expected = "a finite weight of at least 0";
            return Err(Error::Weight(Detail::new(field, format!("{x:?}"), expected)));
        }
        if !weights.is_standard_layout() {
            weights = weights.as_standard_layout().into_owned();
        }
        Ok(Self { weights })
    }

    /// One entry of a batch alone: the weights of its queries from `first_query` on for its first `keys` keys.
    pub(crate) fn entry(&self, batch: usize, first_query: usize, keys: usize) -> Self {
        let own = ndarray::s![batch..batch + 1, .., first_query.., ..keys];
        Self { weights: self.weights.slice(own).to_owned() }
    }

    /// Writes such an entry.
    pub(crate) fn assign_entry(&mut self, batch: usize, first_query: usize, entry: &Self) {
        let keys = entry.weights.dim().3;
        let own = ndarray::s![batch..batch + 1, .., first_query.., ..keys];
        self.weights.slice_mut(own).assign(&entry.weights);
    }

    /// The weights [b, h, m, n].
    pub fn weights(&self) -> &Array4<f32> {
        &self.weights
    }

    /// Whether every key is attended by every query.
    pub fn is_full(&self) -> bool {
        self.weights.iter().all(|&weight| weight != 0.0)
    }

    /// The weight of one key.
    pub fn weight(&self, batch: usize, head: usize, query: usize, key: usize) -> f32 {
        self.weights[[batch, head, query, key]]
    }

    /// Whether one key is attended.
    pub fn attends(&self, batch: usize, head: usize, query: usize, key: usize) -> bool {
        self.weight(batch, head, query, key) != 0.0
    }

    /// The weights of one row, n of them.
    pub fn row_weights(&self, (batch, head, query): Row) -> ArrayView1<'_, f32> {
        self.weights.slice(ndarray::s![batch, head, query, ..])
    }

    /// The attended keys of one row, ascending, with their weights.
    pub fn row(&self, row: Row) -> impl Iterator<Item = (usize, f32)> + '_ {
        /// Keys that are passed over at once where none of them is attended.
        const TOGETHER: usize = 16;
        let weights = self.row_weights(row).to_slice().expect("masks have the standard layout");
        let is_attended = |&(_, weight): &(usize, f32)| weight != 0.0;
        // Every weight is looked at, which takes one comparison for several of them.
        let any = |part: &[f32]| part.iter().fold(false, |any, &weight| any | (weight != 0.0));
        let parts = weights.chunks(TOGETHER).enumerate().filter(move |(_, part)| any(part));
        parts
            .flat_map(move |(index, part)| (index * TOGETHER..).zip(part.iter().copied()).filter(is_attended))
    }

    /// Attends to keys of one row with weight 1.
    pub fn add(&mut self, (batch, head, query): Row, keys: impl IntoIterator<Item = usize>) {
        let mut row = self.weights.slice_mut(ndarray::s![batch, head, query, ..]);
        keys.into_iter().for_each(|key| row[key] = 1.0);
    }

    /// Stops attending to a key of one row.
    pub fn remove(&mut self, (batch, head, query): Row, key: usize) {
        self.weights[[batch, head, query, key]] = 0.0;
    }
}
