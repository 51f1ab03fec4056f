//! Outputs and log-sum-exps (SPEC §2.11) of a few keys, computed in several orders and rounded in every way, against their radii.

use doublecheck::algorithm::{InputParts, Inputs, Mask, Storage};
use doublecheck::cases::recipe::Words;
use doublecheck::cases::{
    Accumulation, Exponent, FactorOrder, LabelRounding, Precision, Products, RoundingModel,
};
use doublecheck::verdicts::lse::expected_lse;
use doublecheck::verdicts::output::expected_row;
use ndarray::Array4;

use super::numbers::{Exact, Format};
use super::rounding::{Order, Rounder, Sums, Way};
use super::scores::{Factor, add_mask, keep, keep_sum, kept_in, numbers, sums};
use super::tally::Tally;

/// What a model has beside types.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Natural,
    Prescaled,
    Fast,
    FactorFirst,
    Tf32,
    RoundedProducts,
}

pub const KINDS: [(Kind, &str, &str); 6] = [
    (Kind::Natural, "output", "log-sum-exp"),
    (Kind::Prescaled, "output: logits prescaled", "log-sum-exp: logits prescaled"),
    (Kind::Fast, "output: fast exp", "log-sum-exp: fast exp"),
    (Kind::FactorFirst, "output: factor before the sum", "log-sum-exp: factor before the sum"),
    (Kind::Tf32, "output: tf32", "log-sum-exp: tf32"),
    (Kind::RoundedProducts, "output: products rounded", "log-sum-exp: products rounded"),
];

/// One row.
struct Row {
    inputs: Inputs,
    mask: Mask,
    model: RoundingModel,
    /// Keys that are attended to, with their weights.
    attended: Vec<(usize, f32)>,
    kept: Format,
    weights: Format,
}

impl Row {
    fn new(kind: Kind, seed: u64) -> Self {
        let words = Words::new(seed, 1);
        let storage = Storage::ALL[words.word(0) as usize % 3];
        let precision =
            |at: u64| [Precision::Storage, Precision::F32, Precision::F16][words.word(at) as usize % 3];
        let sums = if words.word(4).is_multiple_of(4) { Accumulation::F64 } else { Accumulation::F32 };
        let mut model = RoundingModel::new(LabelRounding::Exact, precision(1), sums);
        model.weights_kept = precision(2);
        match kind {
            Kind::Natural => {}
            Kind::Prescaled => model.exp = Exponent::Prescaled,
            Kind::Fast => model.exp = Exponent::Fast,
            Kind::FactorFirst => model.factor = FactorOrder::Before,
            Kind::Tf32 => model.attention_products = Products::Tf32,
            Kind::RoundedProducts => model.attention_products = Products::Storage,
        }
        let keys = 1 + words.word(5) as usize % 4;
        let d = 1 + words.word(6) as usize % 4;
        let q = numbers(words, 1000, d, storage);
        let k: Vec<f32> =
            (0..keys).flat_map(|key| numbers(words, 2000 + 100 * key as u64, d, storage)).collect();
        // Logits between which something is left to weigh.
        let dot = |key: usize| -> f64 { (0..d).map(|c| f64::from(q[c]) * f64::from(k[key * d + c])).sum() };
        let largest = (0..keys).map(|key| dot(key).abs()).fold(0.0, f64::max);
        let wanted = [0.5, 2.0, 8.0][words.word(7) as usize % 3];
        let scaling = if largest > 1e-30 { wanted / largest } else { 1.0 };
        let scaling = if words.word(8).is_multiple_of(3) { 1.0 / (d as f64).sqrt() } else { scaling };
        let v: Vec<f32> = (0..keys).map(|key| storage.round(words.value(3000 + key as u64))).collect();
        // Alike in one of four rows, where weights have no say.
        let v = if words.word(9).is_multiple_of(4) { vec![v[0]; keys] } else { v };
        let shape = |rows: usize, columns: usize, of: Vec<f32>| {
            Array4::from_shape_vec((1, 1, rows, columns), of).unwrap()
        };
        let additive = words.word(10).is_multiple_of(3);
        let additive = additive
            .then(|| Array4::from_shape_fn((1, 1, 1, keys), |(.., key)| words.value(50 + key as u64)));
        let inputs = Inputs::new(InputParts {
            q: shape(1, d, q),
            k: shape(keys, d, k),
            v: shape(keys, 1, v),
            attention_mask: additive,
            causal: false,
            storage,
            scaling: Some(scaling),
        })
        .unwrap();
        let weight = |key: usize| match words.word(70 + key as u64) % 8 {
            0 if key > 0 => 0.0,
            1 => 0.7,
            2 => 0.25,
            _ => 1.0,
        };
        let weights: Vec<f32> = (0..keys).map(weight).collect();
        let attended = weights.iter().copied().enumerate().filter(|&(_, weight)| weight > 0.0).collect();
        let mask = Mask::from_weights(shape(1, keys, weights), &inputs.dims()).unwrap();
        let (kept, weights) = (kept_in(model, storage), Format::of(model.weights_kept.of(storage)));
        Self { inputs, mask, model, attended, kept, weights }
    }

    fn storage(&self) -> Storage {
        self.inputs.storage()
    }

    /// log2 e in f32, which a kernel holds.
    fn unit(&self, r: &mut Rounder, raises: bool) -> Exact {
        let unit = Exact::whole(1).over(&Exact::whole(2).ln());
        r.round(unit, Format::F32, raises)
    }

    /// A logit, to base 2 where it is prescaled; `raises` says whether a larger one is wanted.
    fn logit(&self, r: &mut Rounder, key: usize, order: &Order, raises: bool) -> Exact {
        let (model, kept, f32) = (self.model, self.kept, Format::F32);
        let of = |x: &f32| Exact::of(f64::from(*x));
        let q: Vec<Exact> = self.inputs.queries(0, 0).row(0).iter().map(of).collect();
        let k: Vec<Exact> = self.inputs.keys(0, 0).row(key).iter().map(of).collect();
        let prescaled = model.exp == Exponent::Prescaled;
        let scale = |r: &mut Rounder, x: &Exact, raises: bool| {
            let scaling = self.inputs.scaling();
            if !prescaled {
                return Factor::Number(scaling).times(r, x, kept, raises);
            }
            let larger = raises != x.is_negative();
            let (scaling, unit) = (r.round(Exact::of(scaling), f32, larger), self.unit(r, larger));
            let factor = r.round(scaling.times(&unit), f32, larger);
            let scaled = r.round(x.times(&factor), f32, raises);
            keep(r, scaled, kept, raises)
        };
        let first = model.factor == FactorOrder::Before;
        let wide = self.storage() == Storage::F32 || first;
        let sums = sums(model, model.attention_products, self.storage(), wide);
        let q = if first {
            q.iter().zip(&k).map(|(q, k)| scale(r, q, raises != k.is_negative())).collect()
        } else {
            q
        };
        let dot = order.dot(r, &q, &k, sums, raises);
        let dot = keep_sum(r, dot, sums, kept, raises);
        let scaled = if first { dot } else { scale(r, &dot, raises) };
        let mask = of(&self.inputs.additive(0, 0, 0).at(key));
        if !prescaled || mask.is_zero() {
            return add_mask(r, scaled, mask, kept, raises);
        }
        let larger = raises != mask.is_negative();
        let unit = self.unit(r, larger);
        let mask = r.round(mask.times(&unit), f32, raises);
        let mask = keep(r, mask, kept, raises);
        r.round(scaled.plus(&mask), kept, raises)
    }

    /// exp of the difference of a logit from the largest, divided by the weight of its key.
    fn exponential(&self, r: &mut Rounder, x: Exact, weight: f32, raises: bool) -> Exact {
        let (f32, difference) = (Format::F32, self.kept);
        let x = r.round(x, difference, raises);
        let ulps = 2.0 * f64::from(self.model.exp_ulps);
        let share = |x: &Exact, more: f64| (ulps + more * x.to_f64().abs()) * 2f64.powi(-24);
        let two = Exact::whole(2).ln();
        let e = match self.model.exp {
            Exponent::Prescaled => r.off(x.times(&two).exp(), share(&x, 0.0), raises),
            // CUDA's __expf: 2 + 1.173·|x| units in the last place.
            Exponent::Fast => r.off(x.exp(), share(&x, 2.346), raises),
            Exponent::Natural if r.choose(2) == 0 => r.off(x.exp(), share(&x, 0.0), raises),
            Exponent::Natural => {
                let unit = self.unit(r, !raises);
                let x = r.round(x.times(&unit), f32, raises);
                r.off(x.times(&two).exp(), share(&x, 0.0), raises)
            }
        };
        let e = self.keep(r, e, raises);
        if weight == 1.0 {
            return e;
        }
        let weight = Exact::of(f64::from(weight));
        let e = if r.choose(2) == 0 {
            r.round(e.over(&weight), f32, raises)
        } else {
            let reciprocal = r.round(Exact::whole(1).over(&weight), f32, raises);
            r.round(e.times(&reciprocal), f32, raises)
        };
        self.keep(r, e, raises)
    }

    /// Rounded to the type of weights.
    fn keep(&self, r: &mut Rounder, x: Exact, raises: bool) -> Exact {
        keep(r, x, self.weights, raises)
    }

    /// The logits of the attended keys less the largest, and that. It may be taken over all keys.
    fn differences(
        &self,
        r: &mut Rounder,
        order: &Order,
        over_all: bool,
        raises: &[bool],
    ) -> (Vec<Exact>, Exact) {
        let logits: Vec<Exact> = self
            .attended
            .iter()
            .zip(raises)
            .map(|(&(key, _), &raises)| self.logit(r, key, order, raises))
            .collect();
        let mut max = logits.iter().cloned().reduce(Exact::larger).unwrap();
        if over_all {
            for key in 0..self.inputs.dims().keys {
                if !self.attended.iter().any(|&(attended, _)| attended == key) {
                    let other = self.logit(r, key, order, true);
                    max = max.larger(other);
                }
            }
        }
        (logits.into_iter().map(|logit| logit.minus(&max)).collect(), max)
    }

    /// The output. `center` is about what it must be.
    fn output(&self, r: &mut Rounder, orders: (&Order, &Order), center: f64) -> Exact {
        let (order, of_keys) = orders;
        let f32 = Format::F32;
        let values = self.inputs.values(0, 0);
        let v: Vec<Exact> =
            self.attended.iter().map(|&(key, _)| Exact::of(f64::from(values[[key, 0]]))).collect();
        let center = Exact::of(center);
        // More weight of what lies above the mean raises it.
        let raises: Vec<bool> = v.iter().map(|v| v.compare(&center).is_gt()).collect();
        // Rounded products are those of exponentials relative to the largest logit that is attended to.
        let over_all = self.model.attention_products != Products::Storage && r.choose(2) == 0;
        let (differences, _) = self.differences(r, order, over_all, &raises);
        let mut e: Vec<Exact> = Vec::new();
        for ((x, &(_, weight)), &raises) in differences.into_iter().zip(&self.attended).zip(&raises) {
            e.push(self.exponential(r, x, weight, raises));
        }
        let down = !center.is_negative();
        let total = of_keys.add(r, &e, f32, !down);
        let total = self.keep(r, total, !down);
        if total.is_zero() {
            r.overflowed = true;
            return Exact::zero();
        }
        let sums = Sums {
            tf32: self.model.attention_products == Products::Tf32,
            ..sums(self.model, self.model.attention_products, self.storage(), true)
        };
        let divided_first = r.choose(2) == 0 && self.model.attention_products != Products::Storage;
        if divided_first {
            for (e, v) in e.iter_mut().zip(&v) {
                let raises = !v.is_negative();
                let share = r.round(e.over(&total), f32, raises);
                *e = self.keep(r, share, raises);
            }
        }
        let sum = of_keys.dot(r, &e, &v, sums, true);
        let sum = keep_sum(r, sum, sums, self.weights, true);
        let quotient = if divided_first {
            sum
        } else if r.choose(2) == 0 {
            let quotient = r.round(sum.over(&total), f32, true);
            self.keep(r, quotient, true)
        } else {
            let reciprocal = r.round(Exact::whole(1).over(&total), f32, !sum.is_negative());
            let quotient = r.round(sum.times(&reciprocal), f32, true);
            self.keep(r, quotient, true)
        };
        let storage = Format::of(self.storage());
        if self.weights == storage || r.choose(2) == 0 { quotient } else { r.round(quotient, storage, true) }
    }

    /// What the logarithm of a sum, and that added to M, round.
    fn logarithm(&self, r: &mut Rounder, sum: &Exact, max: Exact) -> Exact {
        let (f32, kept) = (Format::F32, if self.weights == Format::F32 { self.kept } else { self.weights });
        let logarithm = sum.ln();
        let near_one = (0.5..=2.0).contains(&sum.to_f64());
        let raises = true;
        let mut logarithm = if near_one && !r.way.is_real() {
            // CUDA's __logf.
            let error = 2f64.powf(-21.41) / logarithm.to_f64().abs().max(1e-30);
            r.off(logarithm, error, raises)
        } else {
            r.off(logarithm, 6.0 * 2f64.powi(-24), raises)
        };
        if r.choose(2) == 0 {
            // To base 2: the constant and the product.
            let larger = raises != logarithm.is_negative();
            let one = r.round(Exact::whole(1), f32, larger);
            logarithm = r.round(logarithm.times(&one), f32, raises);
        }
        let logarithm = keep(r, logarithm, kept, raises);
        let sum = r.round(max.plus(&logarithm), f32, raises);
        keep(r, sum, kept, raises)
    }

    /// The log-sum-exp of some keys: of a block.
    fn of_block(&self, r: &mut Rounder, order: &Order, keys: &[(usize, f32)], over_all: bool) -> Exact {
        let block =
            Self { attended: keys.to_vec(), inputs: self.inputs.clone(), mask: self.mask.clone(), ..*self };
        let (differences, max) = block.differences(r, order, over_all, &vec![true; keys.len()]);
        let mut e = Vec::new();
        for (x, &(_, weight)) in differences.into_iter().zip(keys) {
            e.push(block.exponential(r, x, weight, true));
        }
        let of_keys = &Order::some(keys.len(), Words::new(0, 0), 0)[0];
        let total = of_keys.add(r, &e, Format::F32, true);
        let total = block.keep(r, total, true);
        if !total.is_positive() {
            r.overflowed = true;
            return Exact::zero();
        }
        let max = match self.model.exp {
            Exponent::Prescaled => {
                let natural = max.times(&Exact::whole(2).ln());
                r.off(natural, 2.0 * 2f64.powi(-24), true)
            }
            _ => max,
        };
        self.logarithm(r, &total, max)
    }

    fn lse(&self, r: &mut Rounder, order: &Order) -> Exact {
        let n = self.attended.len();
        if n == 1 || r.choose(2) == 0 {
            let over_all = r.choose(2) == 0;
            return self.of_block(r, order, &self.attended, over_all);
        }
        // Two blocks, which are merged.
        let (first, second) = self.attended.split_at(1 + r.choose(n as u64 - 1) as usize);
        let blocks = [self.of_block(r, order, first, false), self.of_block(r, order, second, false)];
        if r.overflowed {
            return Exact::zero();
        }
        let max = blocks[0].clone().larger(blocks[1].clone());
        let mut e = Vec::new();
        for block in &blocks {
            let x = r.round(block.minus(&max), Format::F32, true);
            let exponential = r.off(x.exp(), 4.0 * 2f64.powi(-24), true);
            e.push(exponential);
        }
        let total = r.round(e[0].plus(&e[1]), Format::F32, true);
        self.logarithm(r, &total, max)
    }
}

/// The output and the log-sum-exp of one row in every way.
pub fn ask(tally: &mut Tally, (kind, output, lse): (Kind, &'static str, &'static str), seed: u64) {
    let row = Row::new(kind, seed);
    let (model, storage) = (row.model, row.storage());
    let types =
        format!("{storage} kept in {}/{}", model.scores_kept.of(storage), model.weights_kept.of(storage));
    let words = Words::new(seed, 2);
    let d = row.inputs.dims().head_dim;
    let orders = Order::some(d, words, 10_000);
    let of_keys = Order::some(row.attended.len(), words, 20_000);
    let allowed = expected_row(&row.inputs, &row.mask, model, (0, 0, 0))[0];
    let allowed_lse = expected_lse(&row.inputs, &row.mask, model, (0, 0, 0));
    let (output, lse) = ((output, types.clone()), (lse, types));
    tally.radius(&output);
    tally.radius(&lse);
    for index in 0..orders.len().max(of_keys.len()) {
        let orders = (&orders[index % orders.len()], &of_keys[index % of_keys.len()]);
        for way in Way::ALL {
            let what = || format!("seed {seed}, {orders:?}, {model}");
            let mut r = Rounder::new(way, words.word(index as u64));
            let found = row.output(&mut r, orders, allowed.value);
            tally.compare(&output, allowed, &found, &r, &what);
            let mut r = Rounder::new(way, words.word(1000 + index as u64));
            let found = row.lse(&mut r, orders.0);
            tally.compare(&lse, allowed_lse, &found, &r, &what);
        }
    }
}
