//! Which labels a conforming implementation may have (SPEC §2.5, §5). With exact labels there is one value for each;
//! with rounded labels a code may be either neighbour where it lies within rounding of a half step.

use std::ops::Range;

use ndarray::{ArcArray2, Array2, ArrayView1, ArrayView2, Axis};

use super::bounds::{Approximate, U32, gamma, underflow};
use crate::algorithm::labels::labels_of;
use crate::algorithm::quantize::labels_by_quotient;
use crate::algorithm::{ChannelOrder, Error, Inputs, LabelBits, Storage};
use crate::cases::{AnsweredLabels, Call, Instance, LabelCase, LabelRounding};

/// Labels of the positions of one head, [r, positions].
#[derive(Debug, Clone)]
pub enum AllowedLabels {
    /// One value for each.
    Exact(ArcArray2<f32>),
    /// Each up to a radius.
    Within {
        /// The values, in f64.
        values: Array2<f64>,
        /// Their radii; infinite where a label may be.
        radii: Array2<f64>,
    },
}

impl AllowedLabels {
    /// r and how many positions.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::Exact(values) => values.dim(),
            Self::Within { values, .. } => values.dim(),
        }
    }

    /// One label and its radius.
    pub fn at(&self, channel: usize, position: usize) -> (f64, f64) {
        let index = [channel, position];
        match self {
            Self::Exact(values) => (f64::from(values[index]), 0.0),
            Self::Within { values, radii } => (values[index], radii[index]),
        }
    }
}

/// The hull of the labels that any order of the operations of SPEC §2.5 may give, each rounded at most once to the storage
/// type.
///
/// With u the unit roundoff, t = (x − lo)·(2^B − 1)/range carries the roundings of the subtraction, the range, the quotient or
/// the reciprocal and product, and the final product: at most five, so |t̃ − t| ≤ γ_5·t, and a code c is possible where
/// |c − t| ≤ 1/2 + γ_5·t. The label c·range/(2^B − 1) + lo carries four more on the product and one on the sum. The reciprocal
/// of a large range may be subnormal and is then off by up to η absolutely, η·range relatively. What is rounded here in f64 is
/// less than what γ_k exceeds (1 + u)^k − 1 by.
fn rounded_labels(row: &[f32], bits: LabelBits, storage: Storage) -> Vec<Approximate> {
    let lo = f64::from(row.iter().copied().fold(f32::INFINITY, f32::min));
    let hi = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let range = if hi == lo { 1.0 } else { hi - lo };
    let largest = f64::from(storage.round(bits.largest_code()));
    let step = range / f64::from(bits.largest_code());
    let u = storage.unit_roundoff().max(U32);
    let reciprocal = underflow(storage) * range;
    // Relative errors of scale and of its inverse: 1 / (1 − x) ≤ 1 + 2x for x ≤ 1/2. Beyond, the reciprocal may vanish and
    // nothing is known of the codes.
    let (scale_error, step_error) = if reciprocal < 0.5 {
        (gamma(5, u) + 2.0 * reciprocal, gamma(4, u) + 2.0 * reciprocal)
    } else {
        (f64::INFINITY, f64::INFINITY)
    };
    let label = |&x: &f32| {
        let steps = (f64::from(x) - lo) / step;
        let slack = 0.5 + if steps == 0.0 { 0.0 } else { scale_error * steps };
        let lowest = (steps - slack).ceil().clamp(0.0, largest);
        let highest = (steps + slack).floor().clamp(lowest, largest);
        let error = |code: f64| {
            let product = code * step;
            let moved = if code == 0.0 { 0.0 } else { step_error * product };
            moved + u * ((product + lo).abs() + moved) + storage.smallest_normal()
        };
        let low = lowest * step + lo - error(lowest);
        let high = highest * step + lo + error(highest);
        Approximate::hull(low, high)
    };
    row.iter().map(label).collect()
}

/// Labels of rows that are already chosen channels, [positions, r], rounded in any way the SPEC's operations allow.
pub fn rounded_rows(rows: ArrayView2<f32>, bits: LabelBits, storage: Storage) -> AllowedLabels {
    let (positions, label_channels) = rows.dim();
    let mut values = Array2::zeros((label_channels, positions));
    let mut radii = Array2::zeros((label_channels, positions));
    for (position, row) in rows.outer_iter().enumerate() {
        for (channel, allowed) in rounded_labels(&row.to_vec(), bits, storage).into_iter().enumerate() {
            values[[channel, position]] = allowed.value;
            radii[[channel, position]] = allowed.radius;
        }
    }
    AllowedLabels::Within { values, radii }
}

/// Labels of rows that are already chosen channels, [positions, r], by other operations of a fixed order. `None` where labels are
/// rounded in any order, and where one is not finite: that row must be answered all the same (SPEC D9).
fn other_exact_rows(
    rows: ArrayView2<f32>,
    bits: LabelBits,
    storage: Storage,
    rounding: LabelRounding,
) -> Option<AllowedLabels> {
    let step = match rounding {
        LabelRounding::Quotient => false,
        LabelRounding::Step => true,
        LabelRounding::Exact | LabelRounding::Rounded => return None,
    };
    let mut labels = Array2::zeros((rows.ncols(), rows.nrows()));
    for (row, mut column) in rows.outer_iter().zip(labels.columns_mut()) {
        column.assign(&ArrayView1::from(&labels_by_quotient(&row.to_vec(), bits, storage, step)));
    }
    let finite = labels.iter().all(|label: &f32| label.is_finite());
    finite.then(|| AllowedLabels::Exact(labels.into_shared()))
}

/// Allowed labels of queries [r, m] and keys [r, n] for each of some heads of one batch entry.
///
/// Errors: [`Error::LabelRange`] (SPEC D9). Rows that the operations of SPEC §2.5 cannot quantise are refused whatever the
/// rounding.
pub fn head_labels(
    inputs: &Inputs,
    channels: &ChannelOrder,
    label_channels: usize,
    [query_bits, key_bits]: [LabelBits; 2],
    rounding: LabelRounding,
    (batch, heads): (usize, Range<usize>),
) -> Result<Vec<(AllowedLabels, AllowedLabels)>, Error> {
    let bits = [query_bits, key_bits];
    let exact = labels_of(inputs, channels, label_channels, bits, (batch, heads.clone()))?;
    let of_head = |(head, (exact_queries, exact_keys))| {
        let row = &channels.row(head, &inputs.dims())[..label_channels];
        let allowed = |bits: LabelBits, source: ArrayView2<f32>, exact: ArcArray2<f32>| {
            if rounding == LabelRounding::Exact || !bits.quantises() {
                return AllowedLabels::Exact(exact);
            }
            let rows = source.select(Axis(1), row);
            let other = other_exact_rows(rows.view(), bits, inputs.storage(), rounding);
            other.unwrap_or_else(|| rounded_rows(rows.view(), bits, inputs.storage()))
        };
        (
            allowed(query_bits, inputs.queries(batch, head), exact_queries),
            allowed(key_bits, inputs.keys(batch, head), exact_keys),
        )
    };
    Ok(heads.zip(exact.into_heads()).map(of_head).collect())
}

/// A label that is not what it must be.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelDivergence {
    /// Row and column.
    pub index: (usize, usize),
    /// The value that was quantised.
    pub x: f32,
    /// The label found, `None` where the row was refused.
    pub found: Option<f32>,
    /// The labels allowed, `None` where the row must be refused.
    pub allowed: Option<(f32, f32)>,
}

impl std::fmt::Display for LabelDivergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (row, column) = self.index;
        write!(f, "row {row}, channel {column}, value {:e}: label ", self.x)?;
        match self.found {
            Some(found) => write!(f, "{found:e} (bits {:08x})", found.to_bits())?,
            None => f.write_str("refused")?,
        }
        match self.allowed {
            Some((low, high)) if low == high => write!(f, ", expected {low:e} (bits {:08x})", low.to_bits()),
            Some((low, high)) => write!(f, ", expected {low:e} to {high:e}"),
            None => f.write_str(", expected a refusal: the row has no finite labels"),
        }
    }
}

/// Compares labels that an implementation gives for the rows of a case: bit for bit with those the case holds where it
/// declares exact labels, with the allowed ones where it declares rounded labels; a row without finite labels must be
/// refused. `answers` holds one entry per row, `None` where it was refused.
pub fn judge_labels(
    case: &LabelCase,
    answers: &[Option<Vec<f32>>],
    rounding: LabelRounding,
) -> Vec<LabelDivergence> {
    let mut wrong = Vec::new();
    for (index, (row, answer)) in case.rows.outer_iter().zip(answers).enumerate() {
        let stored = case.labels.as_ref().map(|labels| labels.row(index).to_vec());
        let allowed: Option<Vec<(f32, f32)>> = stored.map(|stored| match rounding {
            LabelRounding::Exact => stored.iter().map(|&label| (label, label)).collect(),
            _ => {
                let exact = other_exact_rows(row.insert_axis(Axis(0)), case.bits, case.storage, rounding);
                let allowed =
                    exact.unwrap_or_else(|| rounded_rows(row.insert_axis(Axis(0)), case.bits, case.storage));
                let ends = |column| {
                    let (value, radius) = allowed.at(column, 0);
                    ((value - radius) as f32, (value + radius) as f32)
                };
                (0..row.len()).map(ends).collect()
            }
        });
        let at = |column: usize| LabelDivergence {
            index: (index, column),
            x: row[column],
            found: answer.as_ref().and_then(|labels| labels.get(column).copied()),
            allowed: allowed.as_ref().map(|allowed| allowed[column]),
        };
        match (answer, &allowed) {
            (None, None) => {}
            (Some(found), Some(allowed)) if found.len() == allowed.len() => {
                let differs = |&column: &usize| match (rounding, allowed[column]) {
                    (LabelRounding::Exact, (label, _)) => found[column].to_bits() != label.to_bits(),
                    (LabelRounding::Quotient | LabelRounding::Step, (low, high)) if low == high => {
                        found[column].to_bits() != low.to_bits()
                    }
                    (_, (low, high)) => !(low..=high).contains(&found[column]),
                };
                wrong.extend((0..allowed.len()).find(differs).map(at));
            }
            _ => wrong.push(at(0)),
        }
    }
    wrong
}

/// Whether two rows of labels are bit-equal, shapes included.
pub fn same_bits(a: ArrayView2<f32>, b: ArrayView2<f32>) -> bool {
    a.dim() == b.dim() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// A label shown with an answer that no conforming implementation has.
#[derive(Debug, Clone, PartialEq)]
pub struct AnsweredLabel {
    /// `q` or `k`.
    pub tensor: &'static str,
    /// Batch, head, position, channel of the label.
    pub index: [usize; 4],
    /// What it shows; `None` where the number of label channels is wrong.
    pub found: Option<f32>,
    /// The smallest and the largest it may be.
    pub allowed: (f32, f32),
}

impl std::fmt::Display for AnsweredLabel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [b, head, position, channel] = self.index;
        write!(f, "{} label[batch {b}, head {head}, position {position}, {channel}]: found ", self.tensor)?;
        match self.found {
            Some(found) => write!(f, "{found:e}, expected ")?,
            None => f.write_str("another number of label channels, expected ")?,
        }
        match self.allowed {
            (low, high) if low == high => write!(f, "{low:e}"),
            (low, high) => write!(f, "{low:e} to {high:e}"),
        }
    }
}

/// The first label shown with an answer that no conforming implementation has: bit for bit where labels are exact, within
/// the allowed ones where they are rounded.
pub fn judge_answered(
    instance: &Instance,
    call: &Call,
    labels: &AnsweredLabels,
    rounding: LabelRounding,
) -> Option<AnsweredLabel> {
    let dims = call.inputs.dims();
    let channels = instance.channels(call.layer).ok()?;
    let label_channels = instance.selection.group_factor.label_channels(dims.head_dim).ok()?;
    let heads = (0..dims.batch).flat_map(|b| (0..dims.heads).map(move |head| (b, head)));
    for (b, head) in heads {
        let (bits, heads) = (instance.selection.bits(), head..head + 1);
        let allowed = head_labels(&call.inputs, channels, label_channels, bits, rounding, (b, heads));
        let (q, k) = allowed.ok()?.pop()?;
        for (tensor, allowed, found) in [("q", q, &labels.q), ("k", k, &labels.k)] {
            for (position, channel) in ndarray::indices((allowed.dim().1, label_channels)) {
                let (value, radius) = allowed.at(channel, position);
                let (low, high) = ((value - radius) as f32, (value + radius) as f32);
                let index = [b, head, position, channel];
                let found = (found.dim().3 == label_channels).then(|| found[index]);
                let right = found.is_some_and(|found| match radius {
                    0.0 => found.to_bits() == low.to_bits(),
                    _ => (low..=high).contains(&found),
                });
                if !right {
                    return Some(AnsweredLabel { tensor, index, found, allowed: (low, high) });
                }
            }
        }
    }
    None
}
