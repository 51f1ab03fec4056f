//! SPEC §4, calibration: from activations to channel orders. The importance of a channel of a head is the mean
//! over tokens of |q_c|, |k_c| or |q_c · k_c| of the same token, summed over blocks; a row is the falling order,
//! ties by index.

use ndarray::{Array2, Array4, Axis};

use super::channels::ChannelOrder;
use super::config::ChannelKind;
use super::error::{Detail, Error, Result};

/// What one block of tokens contributes to the order of one kind.
#[derive(Debug, Clone, PartialEq)]
pub enum BlockActivations {
    /// q before RoPE, [b, h, t, d], or k before RoPE, [b, hk, t, d].
    One(Array4<f32>),
    /// q [b, h, m, d] and k [b, hk, n, d] after RoPE, m ≤ n; query i is the token of key n − m + i.
    Pair {
        /// After RoPE.
        q: Array4<f32>,
        /// After RoPE.
        k: Array4<f32>,
    },
}

/// Importance of every channel of every head, summed over blocks in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Importance {
    kind: ChannelKind,
    /// [rows, d]; none before the first block.
    sum: Option<Array2<f64>>,
}

impl Importance {
    /// Nothing summed yet.
    pub fn new(kind: ChannelKind) -> Self {
        Self { kind, sum: None }
    }

    /// The sums so far, [rows, d].
    pub fn sum(&self) -> Option<&Array2<f64>> {
        self.sum.as_ref()
    }

    /// Adds one block. Errors: [`Error::Shape`], [`Error::NotFinite`], [`Error::ChannelKind`] where the block does
    /// not hold what this kind needs.
    pub fn add(&mut self, block: &BlockActivations) -> Result<()> {
        let importance = match (self.kind, block) {
            (ChannelKind::QProj | ChannelKind::KProj, BlockActivations::One(x)) => {
                mean_over_tokens(&self.kind, x.mapv(|x| f64::from(x).abs()))?
            }
            (ChannelKind::QkProj, BlockActivations::Pair { q, k }) => {
                mean_over_tokens(&self.kind, products(q, k)?)?
            }
            (kind, _) => {
                let expected = "one tensor before RoPE for q_proj and k_proj, q and k after RoPE for qk_proj";
                return Err(Error::ChannelKind(Detail::new("block", kind.name(), expected)));
            }
        };
        match &mut self.sum {
            None => self.sum = Some(importance),
            Some(sum) if sum.dim() == importance.dim() => *sum += &importance,
            Some(sum) => {
                let expected = format!("{:?} (heads, head dimension) as in the first block", sum.dim());
                let found = format!("{:?}", importance.dim());
                return Err(Error::Shape(Detail::new("block", found, expected)));
            }
        }
        Ok(())
    }

    /// One row per head. Errors: [`Error::ChannelRows`] before the first block.
    pub fn order(&self) -> Result<ChannelOrder> {
        let sum = self.require_sum()?;
        ChannelOrder::new(sum.outer_iter().map(|row| falling_order(&row.to_vec())).collect())
    }

    /// One row for all heads: importance summed over heads. Errors: [`Error::ChannelRows`] before the first block.
    pub fn shared_order(&self) -> Result<ChannelOrder> {
        let over_heads = self.require_sum()?.sum_axis(Axis(0));
        ChannelOrder::new(vec![falling_order(&over_heads.to_vec())])
    }

    fn require_sum(&self) -> Result<&Array2<f64>> {
        self.sum
            .as_ref()
            .ok_or_else(|| Error::ChannelRows(Detail::new("blocks", 0, "at least one block of activations")))
    }
}

/// |q_c · k_c| of the same token: [b, h, m, d].
fn products(q: &Array4<f32>, k: &Array4<f32>) -> Result<Array4<f64>> {
    let (b, h, m, d) = q.dim();
    let (kb, hk, n, kd) = k.dim();
    let fits = b == kb && d == kd && hk > 0 && h.is_multiple_of(hk) && m <= n;
    if !fits {
        let expected = format!("[{b}, a divisor of {h}, at least {m}, {d}] to fit q");
        return Err(Error::Shape(Detail::new("k", format!("{:?}", k.shape()), expected)));
    }
    let group = h / hk;
    Ok(Array4::from_shape_fn((b, h, m, d), |(b, head, i, c)| {
        (f64::from(q[[b, head, i, c]]) * f64::from(k[[b, head / group, n - m + i, c]])).abs()
    }))
}

/// [b, heads, t, d] to [heads, d].
fn mean_over_tokens(kind: &ChannelKind, magnitudes: Array4<f64>) -> Result<Array2<f64>> {
    let (b, heads, t, d) = magnitudes.dim();
    if b * heads * t * d == 0 {
        let found = format!("{:?}", magnitudes.dim());
        return Err(Error::Shape(Detail::new("block", found, "no empty dimension")));
    }
    if let Some((index, x)) = magnitudes.indexed_iter().find(|(_, x)| !x.is_finite()) {
        let field = format!("{} activation {index:?}", kind.name());
        return Err(Error::NotFinite(Detail::new(field, format!("{x:?}"), "a finite number")));
    }
    Ok(magnitudes.sum_axis(Axis(2)).sum_axis(Axis(0)) / (b * t) as f64)
}

/// Indices by falling value, ties by index.
fn falling_order(importance: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..importance.len()).collect();
    order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]));
    order
}
