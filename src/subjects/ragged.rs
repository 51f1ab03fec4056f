//! A kernel of its own for batches of entries of unequal lengths (SPEC §2.13), and ways in which kernels get lengths wrong. It
//! is the plain algorithm in f64, written down once more: per head, no quantisation, no mask but the causal one. It reads k and
//! v as they are asked, padding included.

use std::collections::BTreeSet;

use ndarray::{Array4, s};

use super::{Subject, not_configured};
use crate::algorithm::{Error, HeadMode, Lengths, Mask, Row, Storage};
use crate::cases::{Answer, Call, Capabilities, Feature, Instance, NoAnswer, Promise, RoundingModel};

/// What a kernel gets wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthFault {
    /// Takes every entry to have all keys.
    Ignored,
    /// Adds −∞ to the scores of padding, which leaves NaN, and ranks NaN first, as torch does.
    RanksPadding,
    /// Query i at n − m + i, whatever the length.
    AlignsAtTheEnd,
    /// Queries from the first position on, not up to the last.
    AlignsAtTheStart,
    /// The length of the first entry for all.
    OfFirstEntry,
    /// The length of the last entry for all.
    OfLastEntry,
    /// 0 / 0 where nothing is attended to.
    DividesByZero,
    /// Reads one key of an entry that has none.
    AtLeastOneKey,
    /// Multiplies the values of padding by 0.
    WeighsPadding,
    /// A sum whose order depends on the size of the buffer: one unit in the last place.
    DependsOnTheBuffer,
}

/// The kernel, right or with a fault.
#[derive(Debug)]
pub struct RaggedKernel {
    fault: Option<LengthFault>,
    promises: Option<BTreeSet<Promise>>,
    instance: Option<Instance>,
}

impl RaggedKernel {
    /// A kernel that promises nothing.
    pub fn new(fault: Option<LengthFault>) -> Self {
        Self { fault, promises: None, instance: None }
    }

    /// The kernel with promises.
    pub fn promising(self, promises: impl IntoIterator<Item = Promise>) -> Self {
        Self { promises: Some(promises.into_iter().collect()), ..self }
    }

    fn is(&self, fault: LengthFault) -> bool {
        self.fault == Some(fault)
    }

    fn length(&self, call: &Call, b: usize) -> usize {
        let n = call.inputs.dims().keys;
        let Some(lengths) = call.inputs.lengths().map(Lengths::keys) else { return n };
        match self.fault {
            Some(LengthFault::Ignored) => n,
            Some(LengthFault::OfFirstEntry) => lengths[0],
            Some(LengthFault::OfLastEntry) => lengths[lengths.len() - 1],
            Some(LengthFault::AtLeastOneKey) => lengths[b].max(1),
            _ => lengths[b],
        }
    }

    /// The keys that a row selects, and their attention.
    fn row(
        &self,
        instance: &Instance,
        call: &Call,
        (b, head, i): Row,
    ) -> Result<(Vec<usize>, Vec<f64>), Error> {
        let dims = call.inputs.dims();
        let (m, n, d) = (dims.queries, dims.keys, dims.head_dim);
        let group = dims.heads / dims.kv_heads;
        let (k, v) = (call.inputs.padded_keys(), call.inputs.padded_values());
        let (k, v) = (k.slice(s![b, head / group, .., ..]), v.slice(s![b, head / group, .., ..]));
        let q = call.inputs.parts().q.slice(s![b, head, i, ..]);
        let dot = |key: usize, c: usize| f64::from(q[c]) * f64::from(k[[key, c]]);
        let rows = instance.channels(call.layer)?.rows();
        let channels = &rows[head * rows.len() / dims.heads][..d / instance.selection.group_factor.get()];

        let length = self.length(call, b);
        let position = match self.fault {
            Some(LengthFault::AlignsAtTheEnd) => Some(n - m + i),
            Some(LengthFault::AlignsAtTheStart) if length < n => Some(i),
            _ => (length + i).checked_sub(m),
        };
        let nothing = vec![if self.is(LengthFault::DividesByZero) { f64::NAN } else { 0.0 }; dims.value_dim];
        let Some(position) = position.filter(|_| length > 0) else { return Ok((Vec::new(), nothing)) };
        let last = if call.inputs.parts().causal { position } else { n - 1 };
        let seen = |key: usize| key < length && key <= last;
        let score = |key: usize| {
            let sum: f64 = channels.iter().map(|&c| dot(key, c)).sum();
            let score = (sum / (channels.len() as f64).sqrt()) as f32;
            if seen(key) { score } else { score + f32::NEG_INFINITY }
        };
        let mut order: Vec<usize> =
            (0..n).filter(|&key| self.is(LengthFault::RanksPadding) || seen(key)).collect();
        let rank = |key: &usize| (!score(*key).is_nan(), -score(*key));
        order.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal));
        order.truncate(instance.selection.heavy_size.resolve(n));
        order.retain(|&key| seen(key));

        let weighed = |key: usize| call.inputs.scaling() * (0..d).map(|c| dot(key, c)).sum::<f64>();
        let most = order.iter().map(|&key| weighed(key)).fold(f64::NEG_INFINITY, f64::max);
        let e = |key: usize| (weighed(key) - most).exp();
        let total: f64 = order.iter().map(|&key| e(key)).sum();
        let padding = if self.is(LengthFault::WeighsPadding) { length..n } else { 0..0 };
        let value = |c: usize| {
            let sum: f64 = order.iter().map(|&key| e(key) / total * f64::from(v[[key, c]])).sum();
            sum + padding.clone().map(|key| 0.0 * f64::from(v[[key, c]])).sum::<f64>()
        };
        let values = if order.is_empty() { nothing } else { (0..dims.value_dim).map(value).collect() };
        Ok((order, values))
    }
}

impl Subject for RaggedKernel {
    fn name(&self) -> String {
        self.fault
            .map_or("a kernel with lengths".into(), |fault| format!("a kernel with lengths and {fault:?}"))
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn capabilities(&self) -> Capabilities {
        let lacks = [
            Feature::AttentionMask,
            Feature::Previous,
            Feature::Weights,
            Feature::EarlierMaskers,
            Feature::Fractions,
            Feature::DenseFallback,
            Feature::DenseLayers,
            Feature::Quantised,
            Feature::Refusals,
        ];
        Capabilities {
            lacks: lacks.into(),
            dtypes: vec![Storage::F32],
            heads: vec![HeadMode::PerHead],
            promises: self.promises.clone(),
            ragged: true,
            ..Capabilities::default()
        }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.instance = Some(instance.clone());
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let instance = self.instance.as_ref().ok_or_else(not_configured)?;
        let dims = call.inputs.dims();
        let mut mask = Mask::empty(&dims);
        let mut output = Array4::zeros(dims.output_shape());
        for row @ (b, head, i) in dims.rows() {
            let (keys, values) = self.row(instance, call, row)?;
            mask.add(row, keys);
            for (c, value) in values.into_iter().enumerate() {
                output[[b, head, i, c]] = value as f32;
            }
        }
        if self.is(LengthFault::DependsOnTheBuffer) && dims.keys % 2 == 1 {
            output.mapv_inplace(|x| if x == 0.0 { x } else { x.next_up() });
        }
        Ok(Answer::new(mask, Some(output)))
    }
}
