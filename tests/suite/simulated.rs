//! The bounds against real arithmetic: implementations that round as SPEC §5 lets them must conform on every random case. They
//! share the reference's labels and nothing else: scores are summed in f32 and kept in f32 or in the storage type, the softmax
//! takes its maximum over all keys or over the attended ones.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::support::{is_long, of_long, proptest_config};
use doublecheck::algorithm::labels::{Labels, labels_of};
use doublecheck::algorithm::quantize::quantize_in_place;
use doublecheck::algorithm::rules::Epsilon;
use doublecheck::algorithm::select::select as select_keys;
use doublecheck::algorithm::{
    Forced, HeadMode, LabelBits, Mask, QuantisedLabels, Ranks, Row, Rules, ScoreFactor, ScoreRule, Selection,
    Storage,
};
use doublecheck::cases::ragged::by_entry;
use doublecheck::cases::strategies::{Plan, Values, plans};
use doublecheck::cases::{
    Accumulation, Answer, Call, Capabilities, Case, Exponent, FactorOrder, Feature, Instance, LabelRounding,
    NoAnswer, Precision, Products, RoundingModel,
};
use doublecheck::diagnosis::probes::{MOST_TIME, probe};
use doublecheck::subjects::{Reference, Subject};
use doublecheck::verdicts::invariants::{Held, INVARIANTS, Implementation};
use doublecheck::verdicts::judge::judge_call;
use doublecheck::verdicts::labels::rounded_rows;
use doublecheck::{Options, Report, check};
use ndarray::{Array2, Array4, ArrayView1};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/simulated.txt");

/// An implementation that rounds to a type after each operation.
#[derive(Debug, Clone, Copy)]
struct Simulated {
    scores_kept: Precision,
    weights_kept: Precision,
    max_over_all: bool,
    output_in_storage: bool,
    /// As flash kernels do: weights are summed in f32, and rounded to their type only for the product with v.
    rounded_for_product: bool,
    /// NaN, as in +∞ + −∞, ranks above all numbers, as in PyTorch's topk, or below.
    nan_first: bool,
    /// The head weight is multiplied by the factor, not the dot product.
    weight_scaled_first: bool,
    /// Sums of the parts of ranks are rounded to their type at each step.
    rounded_steps: bool,
    /// Sums of the parts of ranks are rounded to their type at the end.
    rounded_end: bool,
    /// Channel weights are rounded to the type of scores.
    weights_stored: bool,
    /// Labels of keys are multiplied by channel weights, in f32 and where only the product counts.
    weights_on_keys: bool,
    unusual: Unusual,
}

/// What no model allows that does not declare it.
#[derive(Debug, Clone, Copy)]
struct Unusual {
    score_products: Products,
    attention_products: Products,
    factor_first: bool,
    exp: Exponent,
    exp_ulps: u16,
}

const USUAL: Unusual = Unusual {
    score_products: Products::Exact,
    attention_products: Products::Exact,
    factor_first: false,
    exp: Exponent::Natural,
    exp_ulps: 2,
};

impl Unusual {
    /// exp of a difference of logits, to base 2 where these are, as far off as is declared: up where `even`, down otherwise.
    fn exp(self, x: f32, even: bool) -> f32 {
        let e = match self.exp {
            Exponent::Natural => x.exp(),
            Exponent::Prescaled => x.exp2(),
            Exponent::Fast => (x * std::f32::consts::LOG2_E).exp2(),
        };
        // The library's own exp may be off by one unit in the last place, two units of 2^-24.
        let off = (2.0 * f64::from(self.exp_ulps) - 3.0) / f64::from(1 << 24);
        (f64::from(e) * if even { 1.0 + off } else { 1.0 - off }) as f32
    }

    /// What a logit is multiplied by beside the scaling.
    fn unit(self) -> f32 {
        if self.exp == Exponent::Prescaled { std::f32::consts::LOG2_E } else { 1.0 }
    }
}

/// Cut to the 11 significant bits of tf32.
fn tf32(x: f32) -> f32 {
    f32::from_bits(x.to_bits() & !0x1FFF)
}

impl Simulated {
    fn model(self) -> RoundingModel {
        RoundingModel {
            labels: LabelRounding::Exact,
            scores_kept: self.scores_kept,
            weights_kept: self.weights_kept,
            accumulation: Accumulation::F32,
            score_products: self.unusual.score_products,
            attention_products: self.unusual.attention_products,
            factor: if self.unusual.factor_first { FactorOrder::Before } else { FactorOrder::After },
            exp: self.unusual.exp,
            exp_ulps: self.unusual.exp_ulps,
        }
    }

    fn answer(self, case: &Case) -> Result<Answer, NoAnswer> {
        let kept = self.scores_kept.of(case.call.inputs.storage());
        // What must be refused and what must be full are not a matter of rounding.
        let reference = Reference::default().answer(case)?;
        let before = case.before()?;
        let (dims, settings) = (case.call.inputs.dims(), case.instance.selection);
        let heavy_size = settings.heavy_size.resolve(dims.keys);
        let short = settings.dense_fallback && dims.keys - dims.queries <= heavy_size;
        let mask = if before.is_full() || short { reference.mask } else { self.mask(case, &before, kept)? };
        let mut output = Array4::zeros(dims.output_shape());
        for row @ (b, head, i) in dims.rows() {
            let values = self.output_row(case, &mask, kept, row);
            output.slice_mut(ndarray::s![b, head, i, ..]).assign(&ndarray::arr1(&values));
        }
        Ok(Answer::new(mask, Some(output)))
    }

    fn mask(self, case: &Case, before: &Mask, kept: Storage) -> Result<Mask, NoAnswer> {
        let (inputs, dims, selection) = (&case.call.inputs, case.call.inputs.dims(), case.instance.selection);
        let (mode, sharing) = (selection.heads, selection.heads.sharing(&dims));
        let label_channels = selection.group_factor.label_channels(dims.head_dim)?;
        let bits = selection.bits();
        let of_batch = |b| labels_of(inputs, case.channels()?, label_channels, bits, (b, 0..dims.heads));
        let labels = (0..dims.batch).map(of_batch).collect::<Result<Vec<_>, _>>()?;
        let heavy_size = selection.heavy_size.resolve(dims.keys);
        let mut mask = before.clone();
        for row @ (b, head, i) in dims.rows() {
            let first = head / sharing * sharing;
            let heads = first..first + sharing;
            let ranks = if mode == HeadMode::PerHead { 1 } else { selection.rules.ranks.count() };
            let size = heads.len() / ranks;
            let part = |rank: usize| {
                let heads = first + rank * size..first + (rank + 1) * size;
                let heads = if mode == HeadMode::PerHead { head..head + 1 } else { heads };
                if mode != HeadMode::SummedLabels {
                    let scores = heads.map(|head| self.head_scores(case, &labels, kept, (b, head, i)));
                    return self.combined(mode, &scores.collect::<Vec<_>>(), kept);
                }
                let sum = |label: &dyn Fn(usize) -> Vec<f32>| -> Vec<f32> {
                    let mut sum = vec![0.0f32; label_channels];
                    heads
                        .clone()
                        .for_each(|head| sum.iter_mut().zip(label(head)).for_each(|(sum, x)| *sum += x));
                    sum.into_iter().map(|x| kept.round(x)).collect()
                };
                let q = sum(&|head| labels[b].queries(head).column(i).to_vec());
                let additive = inputs.additive(b, 0, i);
                let score = |key: usize| {
                    let k = sum(&|head| labels[b].keys(head).column(key).to_vec());
                    self.score(case, row, &q, ArrayView1::from(&k), additive.at(key), kept)
                };
                (0..dims.keys).map(score).collect()
            };
            let parts: Vec<Vec<f32>> = (0..ranks).map(part).collect();
            let scores = self.reduced(parts, selection.rules.ranks.parts(), kept);
            let excluded = |key| heads.clone().any(|head| before.attends(b, head, i, key));
            // A score that overflows to −∞ is no candidate.
            let rank = |score: f32| match (score.is_nan(), self.nan_first) {
                (false, _) => f64::from(score),
                (true, true) => f64::INFINITY,
                (true, false) => f64::NEG_INFINITY,
            };
            let scores: Vec<f64> = scores.into_iter().map(rank).collect();
            let position = dims.keys - dims.queries + i;
            let Forced { first, last } = selection.rules.forced;
            let forced = |key: usize| key < first || (key <= position && key + last > position);
            let candidate = |key: usize| scores[key] > f64::NEG_INFINITY && !excluded(key);
            let kept_anyway: Vec<usize> =
                (0..dims.keys).filter(|&key| forced(key) && candidate(key)).collect();
            let rest = heavy_size - kept_anyway.len();
            mask.add(row, select_keys(&scores, |key| excluded(key) || forced(key), rest));
            mask.add(row, kept_anyway);
        }
        Ok(mask)
    }

    /// The sum of the parts of ranks as an all-reduce has it: in f32 and rounded at the end, or rounded at each step.
    fn reduced(self, mut parts: Vec<Vec<f32>>, exchanged: Storage, kept: Storage) -> Vec<f32> {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let step = if self.rounded_steps { exchanged } else { Storage::F32 };
        let sum = |key: usize| {
            let parts = parts.iter().map(|part| exchanged.round(part[key]));
            let sum = parts.reduce(|a, b| step.round(a + b)).unwrap();
            kept.round(if self.rounded_end { exchanged.round(sum) } else { sum })
        };
        (0..parts[0].len()).map(sum).collect()
    }

    fn combined(self, mode: HeadMode, per_head: &[Vec<f32>], kept: Storage) -> Vec<f32> {
        if mode == HeadMode::PerHead {
            return per_head[0].clone();
        }
        let larger = |a: f32, b: f32| match (a.is_nan() || b.is_nan(), self.nan_first) {
            (true, true) => f32::NAN,
            _ => a.max(b),
        };
        let of_key = |key: usize| {
            let scores = || per_head.iter().map(|scores| scores[key]);
            let sum = || kept.round(scores().sum());
            match mode {
                HeadMode::Max | HeadMode::GroupMax => scores().reduce(larger).unwrap(),
                HeadMode::Mean | HeadMode::GroupMean => kept.round(sum() / per_head.len() as f32),
                _ => sum(),
            }
        };
        (0..per_head[0].len()).map(of_key).collect()
    }

    fn head_scores(self, case: &Case, labels: &[Labels], kept: Storage, row @ (b, head, i): Row) -> Vec<f32> {
        let q = labels[b].queries(head).column(i).to_vec();
        let additive = case.call.inputs.additive(b, head, i);
        let keys = labels[b].keys(head);
        let keys = keys.columns().into_iter().enumerate();
        keys.map(|(key, k)| self.score(case, row, &q, k, additive.at(key), kept)).collect()
    }

    fn score(
        self,
        case: &Case,
        row: Row,
        q: &[f32],
        k: ArrayView1<f32>,
        additive: f32,
        kept: Storage,
    ) -> f32 {
        let rules = case.instance.selection.rules;
        let scaled = |x: f32| {
            kept.round(match rules.factor {
                ScoreFactor::LabelChannels => x / (q.len() as f32).sqrt(),
                ScoreFactor::HeadDim => x * (1.0 / (case.dims().head_dim as f32).sqrt()),
                ScoreFactor::Number(factor) => x * factor as f32,
            })
        };
        let weights = case.channels().unwrap().weights_of(row.1, &case.dims());
        let weighted = |labels: &[f32]| -> Vec<f32> {
            let weights = weights.filter(|_| rules.channel_weights);
            let weights = weights.map_or(vec![1.0; labels.len()], |weights| weights.to_vec());
            let stored = |weight: f32| if self.weights_stored { kept.round(weight) } else { weight };
            labels.iter().zip(weights).map(|(x, weight)| kept.round(x * stored(weight))).collect()
        };
        let (q, k) = if self.weights_on_keys && kept == Storage::F32 && rules.score != ScoreRule::Cosine {
            (q.to_vec(), ndarray::Array1::from(weighted(&k.to_vec())))
        } else {
            (weighted(q), k.to_owned())
        };
        let first = self.unusual.factor_first && rules.score != ScoreRule::Cosine;
        let q: Vec<f32> = q.into_iter().map(|x| if first { scaled(x) } else { x }).collect();
        let scaled = |x: f32| if first { x } else { scaled(x) };
        let (q, k) = (q.as_slice(), k.view());
        let (products, storage) = (self.unusual.score_products, case.call.inputs.storage());
        let product = kept.round(dot_of(q, k, products, storage));
        let score = match rules.score {
            ScoreRule::Dot => scaled(product),
            ScoreRule::Cosine => {
                let rounded = if products == Products::Storage { products } else { Products::Exact };
                let norm = |x: ArrayView1<f32>| {
                    kept.round(kept.round(dot_of(&x.to_vec(), x, rounded, storage)).sqrt())
                };
                let norms = kept.round(norm(ArrayView1::from(q)) * norm(k));
                let divisor = kept.round(norms + kept.round(rules.epsilon.get() as f32));
                scaled(kept.round(product / divisor))
            }
            ScoreRule::Relu => {
                let positive = |x: f32| if x < 0.0 { 0.0 } else { x };
                let weight = kept.round(case.call.inputs.head_weight(row));
                if self.weight_scaled_first {
                    kept.round(scaled(weight) * positive(product))
                } else {
                    kept.round(weight * positive(scaled(product)))
                }
            }
        };
        add_mask(score, additive, kept)
    }

    fn output_row(self, case: &Case, mask: &Mask, kept: Storage, row @ (b, head, i): Row) -> Vec<f32> {
        let inputs = &case.call.inputs;
        let (q, k, v) = (inputs.queries(b, head), inputs.keys(b, head), inputs.values(b, head));
        let additive = inputs.additive(b, head, i);
        let weights = self.weights_kept.of(inputs.storage());
        let logit = |key: usize| {
            let unusual = self.unusual;
            let scaling = inputs.scaling() as f32 * unusual.unit();
            let first = |x: &f32| if unusual.factor_first { kept.round(x * scaling) } else { *x };
            let q: Vec<f32> = q.row(i).iter().map(first).collect();
            let dot = kept.round(dot_of(&q, k.row(key), unusual.attention_products, inputs.storage()));
            let scaled = if unusual.factor_first { dot } else { kept.round(dot * scaling) };
            add_mask(scaled, additive.at(key) * unusual.unit(), kept)
        };
        let attended: Vec<(usize, f32)> =
            mask.row(row).filter(|&(key, _)| additive.at(key) > f32::NEG_INFINITY).collect();
        if attended.is_empty() {
            return vec![0.0; v.ncols()];
        }
        let over: Vec<usize> = if self.max_over_all {
            (0..inputs.dims().keys).collect()
        } else {
            attended.iter().map(|&(key, _)| key).collect()
        };
        let max = over.into_iter().map(logit).fold(f32::NEG_INFINITY, f32::max);
        let before_product = if self.rounded_for_product { Storage::F32 } else { weights };
        let e: Vec<f32> = attended
            .iter()
            .map(|&(key, weight)| {
                let e = before_product.round(self.unusual.exp(kept.round(logit(key) - max), key % 2 == 0));
                before_product.round(e / weight)
            })
            .collect();
        let total = before_product.round(e.iter().sum());
        let e: Vec<f32> = e.into_iter().map(|e| weights.round(e)).collect();
        let weights = before_product;
        let products = self.unusual.attention_products;
        (0..v.ncols())
            .map(|dim| {
                let sum: f32 = e
                    .iter()
                    .zip(&attended)
                    .map(|(&e, &(key, _))| product(e, v[[key, dim]], products, inputs.storage()))
                    .sum();
                let output = weights.round(weights.round(sum) / total);
                if self.output_in_storage { inputs.storage().round(output) } else { output }
            })
            .collect()
    }
}

fn product(x: f32, y: f32, products: Products, storage: Storage) -> f32 {
    match products {
        Products::Exact => x * y,
        Products::Tf32 => tf32(x) * tf32(y),
        Products::Storage => storage.round(x * y),
    }
}

fn dot_of(q: &[f32], k: ArrayView1<f32>, products: Products, storage: Storage) -> f32 {
    q.iter().zip(k).map(|(&q, &k)| product(q, k, products, storage)).sum()
}

fn add_mask(score: f32, additive: f32, kept: Storage) -> f32 {
    match additive {
        0.0 => score,
        additive => kept.round(score + kept.round(additive)),
    }
}

fn simulated() -> impl Strategy<Value = Simulated> {
    let kept = || select(vec![Precision::F32, Precision::Storage]);
    (kept(), kept(), any::<[bool; 9]>()).prop_map(|(scores_kept, weights_kept, switches)| {
        let [max_over_all, output_in_storage, rounded_for_product, nan_first, weight_scaled_first, ..] =
            switches;
        let [.., rounded_steps, rounded_end, weights_stored, weights_on_keys] = switches;
        Simulated {
            scores_kept,
            weights_kept,
            max_over_all,
            output_in_storage,
            rounded_for_product,
            nan_first,
            weight_scaled_first,
            rounded_steps,
            rounded_end,
            weights_stored,
            weights_on_keys,
            unusual: USUAL,
        }
    })
}

/// Arithmetic that must be declared, on top of the other.
fn unusual() -> impl Strategy<Value = Simulated> {
    let kept = || select(vec![Precision::F32, Precision::F16, Precision::F16, Precision::Storage]);
    let exp = select(vec![Exponent::Natural, Exponent::Prescaled, Exponent::Fast]);
    let ulps = select(vec![2, 2, 16, 4096]);
    let products = || select(vec![Products::Exact, Products::Tf32, Products::Storage]);
    (simulated(), kept(), kept(), (products(), products(), any::<bool>()), exp, ulps).prop_map(
        |(simulated, scores_kept, weights_kept, products, exp, exp_ulps)| {
            let (score_products, attention_products, factor_first) = products;
            let unusual = Unusual { score_products, attention_products, factor_first, exp, exp_ulps };
            // Rounded products are those of exponentials relative to the largest logit attended to (SPEC §5): relative to a larger one
            // they may underflow without a bound.
            let max_over_all = simulated.max_over_all && attention_products != Products::Storage;
            Simulated { scores_kept, weights_kept, unusual, max_over_all, ..simulated }
        },
    )
}

/// Every invariant must have had something to say.
#[test]
fn arithmetic_that_a_model_allows_conforms() {
    let held = RefCell::new(vec![0; INVARIANTS.len()]);
    let mut runner = TestRunner::new(proptest_config(of_long(6000), REGRESSIONS));
    let outcome = runner.run(&(plans(), simulated()), |(plan, simulated)| {
        let case = plan.case().expect("plans make valid inputs");
        let mut answer = |case: &Case| {
            let one = |call: &Call| simulated.answer(&Case { call: call.clone(), ..case.clone() });
            Some(by_entry(&case.call, one))
        };
        for (invariant, held) in INVARIANTS.iter().zip(held.borrow_mut().iter_mut()) {
            let mut implementation = Implementation { model: simulated.model(), answer: &mut answer };
            let outcome = invariant.check(&case, &mut implementation);
            prop_assert!(outcome.is_ok(), "{}: {:?}", invariant.name, outcome);
            *held += usize::from(outcome == Ok(Held::Yes));
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    for (invariant, held) in INVARIANTS.iter().zip(held.into_inner()) {
        assert!(held > 0, "{} never applied", invariant.name);
    }
}

fn rules() -> impl Strategy<Value = Rules> {
    let factor = prop_oneof![
        2 => Just(ScoreFactor::LabelChannels),
        1 => Just(ScoreFactor::HeadDim),
        2 => select(vec![1.0, 0.03, 2.5, 1e4]).prop_map(ScoreFactor::Number),
    ];
    (
        select(vec![QuantisedLabels::Both, QuantisedLabels::Keys, QuantisedLabels::Queries]),
        select(vec![ScoreRule::Dot, ScoreRule::Cosine, ScoreRule::Relu]),
        select(vec![1e-6, 1e-3, 1.0]),
        factor,
        select(vec![(0, 0), (0, 1), (1, 0), (2, 3)]),
        prop_oneof![2 => Just((1, Storage::F32)), 3 => (2..=4u64, select(Storage::ALL.to_vec()))],
        any::<bool>(),
    )
        .prop_map(
            |(quantised, score, epsilon, factor, (first, last), (ranks, parts), channel_weights)| Rules {
                quantised,
                channel_weights,
                score,
                epsilon: Epsilon::new(epsilon).unwrap(),
                factor,
                ranks: Ranks::new(ranks, parts).unwrap(),
                forced: Forced { first, last },
            },
        )
}

/// What a selection asks for beyond the published algorithm, by name.
fn beyond_the_published(selection: &Selection) -> Vec<String> {
    let (rules, plain) = (selection.rules, Rules::default());
    let named = [
        (rules.factor != plain.factor, "factor"),
        (rules.quantised == QuantisedLabels::Keys, "keys alone quantised"),
        (rules.quantised == QuantisedLabels::Queries, "queries alone quantised"),
        (rules.score == ScoreRule::Cosine, "cosine"),
        (rules.score == ScoreRule::Relu, "relu"),
        (rules.forced != plain.forced, "forced keys"),
        (rules.channel_weights, "channel weights"),
        (rules.ranks.count() > 1 && selection.heads != HeadMode::PerHead, "ranks"),
    ];
    let used = named.into_iter().filter(|(used, _)| *used).map(|(_, name)| name.to_owned());
    used.chain([selection.heads.name().to_owned()]).collect()
}

/// As for the published algorithm, with every rule and head mode: at least 3,000 cases of each are answered in a long run. Some verdict must
/// have left a choice, and some none.
#[test]
fn every_rule_in_arithmetic_that_a_model_allows_conforms() {
    let (open, closed) = (RefCell::new(0), RefCell::new(0));
    let answered = RefCell::new(BTreeMap::<String, u32>::new());
    let mut runner = TestRunner::new(proptest_config(of_long(30_000), REGRESSIONS));
    let modes = select(HeadMode::EVERY.to_vec());
    let outcome = runner.run(&(plans(), rules(), modes, simulated()), |(plan, rules, heads, simulated)| {
        let capabilities = Capabilities { rules: vec![rules], heads: vec![heads], ..Capabilities::default() };
        let case = plan.restricted(&capabilities).case().expect("plans make valid inputs");
        prop_assert_eq!((case.instance.selection.rules, case.instance.selection.heads), (rules, heads));
        let answer = simulated.answer(&case);
        let verdict = judge_call(&case.instance, &case.call, &answer, simulated.model());
        prop_assert!(verdict.conforms(), "{:?}", verdict.explanations());
        if let Some(judgement) = verdict.judgement() {
            for name in beyond_the_published(&case.instance.selection) {
                *answered.borrow_mut().entry(name).or_default() += 1;
            }
            *if judgement.mask.open > 0 { open.borrow_mut() } else { closed.borrow_mut() } += 1;
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(open.into_inner() > of_long(500) && closed.into_inner() > of_long(500));
    let answered = answered.into_inner();
    assert_eq!(answered.len(), 8 + HeadMode::EVERY.len(), "{answered:?}");
    assert!(answered.values().all(|&count| count >= of_long(3000)), "{answered:?}");
}

/// Whether products may leave the range of f16: what becomes of ∞ is no rounding.
fn overflows(plan: &Plan, simulated: &Simulated) -> bool {
    let products = [simulated.unusual.score_products, simulated.unusual.attention_products];
    plan.storage == Storage::F16
        && [plan.q, plan.k].contains(&Values::Huge)
        && products.contains(&Products::Storage)
}

/// What must be declared conforms where it is, with every rule and head mode.
#[test]
fn arithmetic_that_is_declared_conforms() {
    let (open, closed) = (RefCell::new(0), RefCell::new(0));
    let mut runner = TestRunner::new(proptest_config(of_long(9000), REGRESSIONS));
    let modes = select(HeadMode::EVERY.to_vec());
    let outcome = runner.run(&(plans(), rules(), modes, unusual()), |(plan, rules, heads, simulated)| {
        prop_assume!(!overflows(&plan, &simulated));
        let capabilities = Capabilities { rules: vec![rules], heads: vec![heads], ..Capabilities::default() };
        let case = plan.restricted(&capabilities).case().expect("plans make valid inputs");
        let verdict = judge_call(&case.instance, &case.call, &simulated.answer(&case), simulated.model());
        prop_assert!(verdict.conforms(), "{:?}", verdict.explanations());
        if let Some(judgement) = verdict.judgement() {
            *if judgement.mask.open > 0 { open.borrow_mut() } else { closed.borrow_mut() } += 1;
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(open.into_inner() > of_long(500) && closed.into_inner() > of_long(500));
}

/// An implementation that rounds in one way and declares another.
struct Declares {
    simulated: Simulated,
    model: RoundingModel,
    instance: Option<Instance>,
}

impl Subject for Declares {
    fn name(&self) -> String {
        "declares another model".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.model
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { lacks: [Feature::DenseLayers].into(), ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.instance = Some(instance.clone());
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let instance = self.instance.clone().expect("configured");
        let (name, call, unknown) = (String::new(), call.clone(), serde_json::Map::new());
        self.simulated.answer(&Case { name, instance, call, recipe: None, expectation: None, unknown })
    }
}

#[test]
fn probes_find_nothing_in_arithmetic_that_is_declared() {
    let mut runner = TestRunner::deterministic();
    let all = prop_oneof![simulated(), unusual()];
    for _ in 0..of_long(240) {
        let simulated = all.new_tree(&mut runner).unwrap().current();
        let mut subject = Declares { simulated, model: simulated.model(), instance: None };
        let capabilities = subject.capabilities();
        let probed = probe(&mut subject, &capabilities, &Vec::new(), MOST_TIME);
        let told: Vec<String> = probed.deviating().iter().map(|wire| wire.sentence()).collect();
        assert!(probed.conforms(), "{simulated:?} declares {}: {told:#?}", simulated.model());
    }
}

/// The output is shrunk to what conforms under no narrower model, and the finding says which model that is.
#[test]
fn a_finding_names_the_narrowest_wider_model() {
    let flash = Simulated {
        scores_kept: Precision::F32,
        weights_kept: Precision::Storage,
        max_over_all: false,
        output_in_storage: true,
        rounded_for_product: true,
        nan_first: false,
        weight_scaled_first: false,
        rounded_steps: false,
        rounded_end: false,
        weights_stored: false,
        weights_on_keys: false,
        unusual: USUAL,
    };
    let pytorch = Simulated { scores_kept: Precision::Storage, rounded_for_product: false, ..flash };
    let exact = Simulated { weights_kept: Precision::F32, output_in_storage: false, ..flash };
    let with = |unusual| Simulated { unusual, ..exact };
    let models = [
        (flash, "weights kept in storage"),
        (pytorch, "weights kept in storage and scores kept in storage"),
        (with(Unusual { attention_products: Products::Tf32, ..USUAL }), "products of the attention in tf32"),
        (
            with(Unusual { attention_products: Products::Storage, ..USUAL }),
            "products of the attention rounded to storage",
        ),
        (with(Unusual { exp_ulps: 200, ..USUAL }), "exp within 256 units in the last place"),
        (Simulated { weights_kept: Precision::F16, ..exact }, "weights kept in f16"),
    ];
    // Every third of them, unless tests run in full.
    for (simulated, expected) in models.into_iter().step_by(if is_long() { 1 } else { 3 }) {
        let subject = |model| Declares { simulated, model, instance: None };
        let options = Options { cases: 300, ..Options::default() };
        let report = check(&mut subject(RoundingModel::F32), &options);
        assert!(!report.findings.is_empty());
        let wider: Vec<_> =
            report.findings.iter().filter_map(|finding| finding.wider_model.as_deref()).collect();
        assert!(wider.contains(&expected) && wider.len() == report.findings.len(), "{}", shown(&report));
        let report = check(&mut subject(simulated.model()), &options);
        assert!(report.conforms(), "{}", shown(&report));
    }
}

fn shown(report: &Report) -> String {
    doublecheck::reports::check::render(report, false)
}

proptest! {
    #![proptest_config(proptest_config(3000, REGRESSIONS))]

    /// The operations of SPEC §2.5 in their own order are one of the orders that rounded labels allow.
    #[test]
    fn exact_labels_are_among_the_rounded_ones(
        storage in select(Storage::ALL.to_vec()),
        bits in 1..=15u64,
        exponent in -20..126i32,
        offset in select(vec![0.0f32, -0.5, -0.9]),
        positions in prop::collection::vec(0.0f32..=1.0, 1..8),
    ) {
        let bits = LabelBits::new(bits).unwrap();
        let range = (storage.largest() as f32 / 2.0).min(2.0f32.powi(exponent));
        let row: Vec<f32> = positions.iter().map(|x| storage.round((x + offset) * range)).collect();
        let mut labels = row.clone();
        prop_assume!(quantize_in_place(&mut labels, bits, storage).is_ok());
        let source = Array2::from_shape_vec((1, row.len()), row.clone()).unwrap();
        let allowed = rounded_rows(source.view(), bits, storage);
        for (j, &label) in labels.iter().enumerate() {
            let (value, radius) = allowed.at(j, 0);
            prop_assert!((f64::from(label) - value).abs() <= radius, "{}: {label} outside {value} ± {radius}", row[j]);
        }
    }
}
