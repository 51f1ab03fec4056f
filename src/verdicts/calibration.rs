//! The verdict on a calibrated channel order (SPEC §4): importance is recomputed in f64, and a row conforms if no channel
//! comes before one that is certainly more important.

use crate::algorithm::calibrate::{BlockActivations, Importance};
use crate::algorithm::{ChannelOrder, Error};
use crate::cases::CalibrationCase;
use crate::verdicts::bounds::{U32, gamma};

/// A pair of channels in the wrong order.
#[derive(Debug, Clone, PartialEq)]
pub struct OrderDivergence {
    /// Row of the order.
    pub row: usize,
    /// The channel that comes first, and its importance.
    pub earlier: (usize, f64),
    /// The channel that comes later although it is more important, and its importance.
    pub later: (usize, f64),
    /// How far each importance may be off, as a share of it.
    pub bound: f64,
    /// How far it may be off on top of that, by underflow.
    pub underflow: f64,
}

impl std::fmt::Display for OrderDivergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((a, ia), (b, ib)) = (self.earlier, self.later);
        write!(
            f,
            "row {}: channel {a} (importance {ia:.6e}) comes before channel {b} (importance {ib:.6e}), bound ± {:.1e} of each",
            self.row, self.bound
        )
    }
}

/// Judges an order under f32 arithmetic: a mean of t products (γ_{t+2}) summed over blocks (γ_blocks). In each block the products and their
/// mean may underflow, each by η. Where the sum of the products may overflow, the channel may come first.
///
/// Errors: those of [`Importance::add`], and [`Error::ChannelRows`] where the order has other rows than heads.
pub fn judge_order(case: &CalibrationCase, order: &ChannelOrder) -> Result<Option<OrderDivergence>, Error> {
    let mut importance = Importance::new(case.kind);
    case.blocks.iter().try_for_each(|block| importance.add(block))?;
    let sum = importance.sum().cloned().unwrap_or_default();
    if order.rows().len() != sum.nrows() || order.width() != sum.ncols() {
        let found = format!("[{}, {}]", order.rows().len(), order.width());
        let expected = format!("[{}, {}]", sum.nrows(), sum.ncols());
        return Err(Error::ChannelRows(crate::algorithm::Detail::new("channels", found, expected)));
    }
    if let Some(channel) = order.rows().iter().flatten().find(|&&channel| channel >= sum.ncols()) {
        let expected = format!("below the head dimension {}", sum.ncols());
        return Err(Error::ChannelRange(crate::algorithm::Detail::new("channels", channel, expected)));
    }
    let tokens = case.blocks.iter().map(|block| match block {
        BlockActivations::One(x) => x.len() / (x.shape()[1] * x.shape()[3]),
        BlockActivations::Pair { q, .. } => q.len() / (q.shape()[1] * q.shape()[3]),
    });
    let tokens = tokens.max().unwrap_or(0);
    let bound = gamma(tokens + 2 + case.blocks.len(), U32);
    let underflow = 2.0 * case.blocks.len() as f64 * f64::from(f32::MIN_POSITIVE);
    let largest = |importance: f64| {
        let largest = importance * (1.0 + bound) + underflow;
        if largest * tokens as f64 > f64::from(f32::MAX) { f64::INFINITY } else { largest }
    };
    for (row, (channels, importance)) in order.rows().iter().zip(sum.outer_iter()).enumerate() {
        let mut least: Option<(usize, f64)> = None;
        for &channel in channels {
            let found = importance[channel];
            if let Some((earlier, smallest)) = least
                && largest(smallest) < found * (1.0 - bound) - underflow
            {
                let (earlier, later) = ((earlier, smallest), (channel, found));
                return Ok(Some(OrderDivergence { row, earlier, later, bound, underflow }));
            }
            if least.is_none_or(|(_, smallest)| found < smallest) {
                least = Some((channel, found));
            }
        }
    }
    Ok(None)
}
