//! Scores (SPEC §2.6, §2.7, §2.12) of a few heads and channels, computed in every order of few terms and rounded in every way, against
//! the radii of the certificate.

use std::sync::Arc;

use doublecheck::algorithm::config::Combined;
use doublecheck::algorithm::labels::labels_of;
use doublecheck::algorithm::{
    ChannelOrder, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Mask, Ranks, ScoreFactor, ScoreRule,
    Selection, Storage,
};
use doublecheck::cases::recipe::Words;
use doublecheck::cases::{
    Accumulation, Call, FactorOrder, Instance, LabelRounding, Precision, Products, RoundingModel,
};
use doublecheck::verdicts::certificate::ScoreBounds;
use doublecheck::verdicts::labels::{AllowedLabels, rounded_rows};
use ndarray::{Array2, Array3, Array4};

use super::numbers::{Exact, Format};
use super::rounding::{Order, Rounder, Sums, Way};
use super::tally::Tally;

/// What is asked, beside the rules that [`settings`] sets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    Dot,
    RoundedLabels,
    FactorFirst,
    Tf32,
    RoundedProducts,
    WithMask,
    ChannelWeights,
    Cosine,
    Relu,
    Heads(HeadMode),
    Ranks,
    RoundedRanks(Storage),
}

pub const RULES: [(Rule, &str); 15] = [
    (Rule::Dot, "score: dot"),
    (Rule::RoundedLabels, "score: dot, labels rounded in any order"),
    (Rule::FactorFirst, "score: dot, factor before the sum"),
    (Rule::Tf32, "score: dot, tf32"),
    (Rule::RoundedProducts, "score: dot, products rounded"),
    (Rule::WithMask, "score: dot + A"),
    (Rule::ChannelWeights, "score: dot, channel weights"),
    (Rule::Cosine, "score: cosine"),
    (Rule::Relu, "score: relu"),
    (Rule::Heads(HeadMode::SummedScores), "score: sum of heads"),
    (Rule::Heads(HeadMode::Mean), "score: mean of heads"),
    (Rule::Heads(HeadMode::Max), "score: largest of heads"),
    (Rule::Heads(HeadMode::SummedLabels), "score: labels summed over heads"),
    (Rule::Ranks, "score: sum of ranks"),
    (Rule::RoundedRanks(Storage::Bf16), "score: sum of ranks, parts in bf16"),
];

const KEYS: usize = 2;

/// The format of what is kept, and the sums of the model.
pub fn kept_in(model: RoundingModel, storage: Storage) -> Format {
    Format::of(model.scores_kept.of(storage))
}

pub fn sums(model: RoundingModel, products: Products, storage: Storage, wide: bool) -> Sums {
    Sums {
        tf32: products == Products::Tf32 && wide,
        products: (products == Products::Storage).then_some(Format::of(storage)),
        accumulated: match model.accumulation {
            Accumulation::F32 => Format::F32,
            Accumulation::F64 => Format::F64,
        },
    }
}

/// x multiplied by a factor: divided by a root in f32, multiplied by its reciprocal, or by the factor as f32 has it.
#[derive(Debug, Clone, Copy)]
pub enum Factor {
    Root(usize),
    Number(f64),
}

impl Factor {
    pub fn times(self, r: &mut Rounder, x: &Exact, kept: Format, raises: bool) -> Exact {
        // Whether a larger factor makes a larger result.
        let larger = raises != x.is_negative();
        let f32 = Format::F32;
        let scaled = match self {
            Self::Root(of) => {
                let root = Exact::whole(of as i64).root();
                match r.choose(3) {
                    0 => {
                        let root = r.round(root, f32, !larger);
                        x.over(&root)
                    }
                    1 => {
                        let root = r.round(root, f32, !larger);
                        let reciprocal = r.round(Exact::whole(1).over(&root), f32, larger);
                        x.times(&reciprocal)
                    }
                    _ => x.times(&r.round(Exact::whole(1).over(&root), f32, larger)),
                }
            }
            Self::Number(factor) => x.times(&r.round(Exact::of(factor), f32, larger)),
        };
        let scaled = r.round(scaled, f32, raises);
        keep(r, scaled, kept, raises)
    }
}

/// Rounded from f32 to what is kept.
pub fn keep(r: &mut Rounder, x: Exact, kept: Format, raises: bool) -> Exact {
    if kept == Format::F32 { x } else { r.round(x, kept, raises) }
}

/// The sum of products in what is kept: f64 is rounded in any case.
pub fn keep_sum(r: &mut Rounder, sum: Exact, sums: Sums, kept: Format, raises: bool) -> Exact {
    if kept == sums.accumulated { sum } else { r.round(sum, kept, raises) }
}

/// + A, cast or not; 0 is not added.
pub fn add_mask(r: &mut Rounder, x: Exact, mask: Exact, kept: Format, raises: bool) -> Exact {
    if mask.is_zero() {
        return x;
    }
    let mask = if r.choose(2) == 0 { mask.nearest(kept) } else { mask };
    r.round(x.plus(&mask), kept, raises)
}

/// One question: a query of some heads over one KV head.
struct Question {
    rule: Rule,
    model: RoundingModel,
    instance: Instance,
    call: Call,
    heads: usize,
    channels: usize,
}

/// Numbers of one of several sizes, some of them equal or opposite.
pub fn numbers(words: Words, at: u64, count: usize, storage: Storage) -> Vec<f32> {
    let size = match words.word(at) % 8 {
        0 => 2f32.powi(-14),
        1 => {
            if storage == Storage::F16 {
                2f32.powi(-9)
            } else {
                2f32.powi(-68)
            }
        }
        2 => {
            if storage == Storage::F16 {
                16.0
            } else {
                2f32.powi(30)
            }
        }
        3 => 0.25,
        4 => 4.0,
        _ => 1.0,
    };
    let cancels = words.word(at + 1).is_multiple_of(4);
    let number = |i: usize| {
        let i = if cancels { i / 2 * 2 } else { i };
        words.value(at + 2 + i as u64) * size
    };
    let sign = |i: usize| if cancels && i % 2 == 1 { -1.0 } else { 1.0 };
    (0..count).map(|i| storage.round(sign(i) * number(i))).collect()
}

fn storage_of(word: u64) -> Storage {
    Storage::ALL[word as usize % 3]
}

fn kept_of(word: u64) -> Precision {
    [Precision::Storage, Precision::F32, Precision::F16][word as usize % 3]
}

impl Question {
    fn new(rule: Rule, seed: u64) -> Self {
        let words = Words::new(seed, 1);
        let storage = storage_of(words.word(0));
        let channels = 1 + words.word(2) as usize % 5;
        let together = matches!(rule, Rule::Heads(_) | Rule::Ranks | Rule::RoundedRanks(_));
        let heads = match rule {
            Rule::Ranks | Rule::RoundedRanks(_) => 4,
            _ if together => 2 + words.word(3) as usize % 2,
            _ => 1,
        };
        let rounding =
            if rule == Rule::RoundedLabels { LabelRounding::Rounded } else { LabelRounding::Exact };
        let sums = if words.word(4).is_multiple_of(4) { Accumulation::F64 } else { Accumulation::F32 };
        let mut model = RoundingModel::new(rounding, kept_of(words.word(1)), sums);
        let bits = if rule == Rule::RoundedLabels { 1 + words.word(5) % 6 } else { 16 };
        let mut selection = Selection::new(HeavySize::count(1).unwrap(), 1, bits).unwrap();
        match rule {
            Rule::FactorFirst => model.factor = FactorOrder::Before,
            Rule::Tf32 => model.score_products = Products::Tf32,
            Rule::RoundedProducts => model.score_products = Products::Storage,
            Rule::ChannelWeights => selection.rules.channel_weights = true,
            Rule::Cosine => selection.rules.score = ScoreRule::Cosine,
            Rule::Relu => selection.rules.score = ScoreRule::Relu,
            Rule::Heads(mode) => selection.heads = mode,
            Rule::Ranks | Rule::RoundedRanks(_) => {
                let modes = [HeadMode::SummedScores, HeadMode::Mean, HeadMode::Max];
                selection.heads = modes[words.word(6) as usize % 3];
                let parts = if let Rule::RoundedRanks(parts) = rule { parts } else { Storage::F32 };
                selection.rules.ranks = Ranks::new(2, parts).unwrap();
            }
            Rule::Dot | Rule::RoundedLabels | Rule::WithMask => {}
        }
        if words.word(7).is_multiple_of(3) {
            selection.rules.factor = ScoreFactor::Number(0.3 + f64::from(words.value(8).abs()));
        }
        let shape = |at: u64, heads: usize, positions: usize| {
            let rows = (0..heads * positions)
                .flat_map(|row| numbers(words, at + 100 * row as u64, channels, storage));
            Array4::from_shape_vec((1, heads, positions, channels), rows.collect()).unwrap()
        };
        let mask = || Array4::from_shape_fn((1, 1, 1, KEYS), |(.., key)| 4.0 * words.value(60 + key as u64));
        let inputs = Inputs::new(InputParts {
            q: shape(1000, heads, 1),
            k: shape(2000, 1, KEYS),
            v: Array4::zeros((1, 1, KEYS, 1)),
            attention_mask: (rule == Rule::WithMask || together && seed.is_multiple_of(2)).then(mask),
            causal: false,
            storage,
            scaling: None,
        })
        .unwrap();
        let weights = Array3::from_shape_fn((1, heads, 1), |(_, head, _)| words.value(40 + head as u64));
        let inputs = inputs.with_head_weights((rule == Rule::Relu).then_some(weights)).unwrap();
        let mut order = ChannelOrder::new(vec![(0..channels).collect()]).unwrap();
        if rule == Rule::ChannelWeights {
            order = order
                .with_weights(vec![(0..channels).map(|c| words.value(20 + c as u64)).collect()])
                .unwrap();
        }
        let instance = Instance::of_layer(selection, order, &inputs.dims());
        let call = Call { layer: 0, inputs: Arc::new(inputs), previous: None };
        Self { rule, model, instance, call, heads, channels }
    }

    fn storage(&self) -> Storage {
        self.call.inputs.storage()
    }

    fn factor(&self) -> Factor {
        match self.instance.selection.rules.factor {
            ScoreFactor::Number(factor) => Factor::Number(factor),
            _ => Factor::Root(self.channels),
        }
    }
}

/// Labels of the query of each head and of each key: of each number the ends that are allowed, and what the SPEC's own order has.
struct Labels {
    q: Vec<Vec<[f64; 3]>>,
    k: Vec<Vec<[f64; 3]>>,
}

impl Labels {
    /// `None` where labels leave their type.
    fn new(question: &Question) -> Option<Self> {
        let (inputs, selection) = (&question.call.inputs, question.instance.selection);
        let order = question.instance.channels(0).unwrap();
        let exact =
            labels_of(inputs, order, question.channels, selection.bits(), (0, 0..question.heads)).ok()?;
        let sources = inputs.parts();
        let of = |source: Vec<f32>, exact: Vec<f32>, bits: LabelBits| -> Vec<[f64; 3]> {
            let real = exact.iter().map(|&x| f64::from(x));
            if question.rule != Rule::RoundedLabels {
                return real.map(|x| [x, x, x]).collect();
            }
            let source = Array2::from_shape_vec((1, source.len()), source).unwrap();
            let allowed: AllowedLabels = rounded_rows(source.view(), bits, question.storage());
            let ends = |(channel, real)| {
                let (value, radius) = allowed.at(channel, 0);
                [value - radius, value + radius, real]
            };
            real.enumerate().map(ends).collect()
        };
        let [of_queries, of_keys] = selection.bits();
        let row = |tensor: &Array4<f32>, head: usize, position: usize| {
            tensor.slice(ndarray::s![0, head, position, ..]).to_vec()
        };
        let q = (0..question.heads)
            .map(|head| of(row(&sources.q, head, 0), exact.queries(head).column(0).to_vec(), of_queries));
        let k = (0..KEYS).map(|key| of(row(&sources.k, 0, key), exact.keys(0).column(key).to_vec(), of_keys));
        let labels = Self { q: q.collect(), k: k.collect() };
        let finite = labels.q.iter().chain(&labels.k).flatten().flatten().all(|x| x.is_finite());
        finite.then_some(labels)
    }
}

/// A label as an implementation may have it, where `raises` says for each number whether a larger one makes a larger score.
fn drawn(r: &mut Rounder, label: &[[f64; 3]], raises: impl Fn(usize) -> bool) -> Vec<Exact> {
    let of = |(channel, &[low, high, real]): (usize, &[f64; 3])| r.end(low, high, real, raises(channel));
    label.iter().enumerate().map(of).collect()
}

impl Question {
    /// The score of a key by labels, with A.
    fn score(
        &self,
        r: &mut Rounder,
        (q, k): (&[Exact], &[Exact]),
        at: (usize, usize),
        order: &Order,
        raises: bool,
    ) -> Exact {
        let (head, key) = at;
        let (model, storage) = (self.model, self.storage());
        let (kept, factor) = (kept_in(model, storage), self.factor());
        let first = model.factor == FactorOrder::Before;
        let wide = storage == Storage::F32 || first;
        let sums = sums(model, model.score_products, storage, wide);
        let mask = self.call.inputs.additive(0, head, 0).at(key);
        // Of what is multiplied by a negative weight less is more.
        let weight = self.call.inputs.head_weight((0, head, 0));
        let weighted = self.rule == Rule::Relu;
        let inner = raises != (weighted && weight < 0.0);
        let q: Vec<Exact> = if first {
            let scaled = |(q, k): (&Exact, &Exact)| factor.times(r, q, kept, inner != k.is_negative());
            q.iter().zip(k).map(scaled).collect()
        } else {
            q.to_vec()
        };
        let dot = order.dot(r, &q, k, sums, inner);
        let dot = keep_sum(r, dot, sums, kept, inner);
        let score = match self.rule {
            Rule::Cosine => self.cosine(r, (&q, k), dot, order, raises),
            Rule::Relu => {
                let positive = |x: Exact| if x.is_negative() { Exact::zero() } else { x };
                let weight = Exact::of(f64::from(weight));
                let weight = if r.choose(2) == 0 { weight.nearest(kept) } else { weight };
                if r.choose(2) == 0 {
                    let scaled = positive(factor.times(r, &dot, kept, inner));
                    let product = r.round(weight.times(&scaled), Format::F32, raises);
                    keep(r, product, kept, raises)
                } else {
                    let weight = factor.times(r, &weight, kept, raises);
                    let product = r.round(weight.times(&positive(dot)), Format::F32, raises);
                    keep(r, product, kept, raises)
                }
            }
            _ if first => dot,
            _ => factor.times(r, &dot, kept, raises),
        };
        add_mask(r, score, Exact::of(f64::from(mask)), kept, raises)
    }

    fn cosine(
        &self,
        r: &mut Rounder,
        (q, k): (&[Exact], &[Exact]),
        dot: Exact,
        order: &Order,
        raises: bool,
    ) -> Exact {
        let (model, storage) = (self.model, self.storage());
        let kept = kept_in(model, storage);
        let sums = sums(model, model.score_products, storage, storage == Storage::F32);
        // A larger divisor makes a smaller quotient, of a negative number a larger one.
        let larger = raises == dot.is_negative();
        let mut norm = |x: &[Exact]| {
            let squares = order.dot(r, x, x, sums, larger);
            let squares = keep_sum(r, squares, sums, kept, larger);
            // Roots on GPUs are within two units in the last place.
            let root = r.off(squares.root(), 2f64.powi(-22), larger);
            keep(r, root, kept, larger)
        };
        let (q, k) = (norm(q), norm(k));
        let product = r.round(q.times(&k), Format::F32, larger);
        let product = keep(r, product, kept, larger);
        let epsilon = self.instance.selection.rules.epsilon.get();
        let epsilon = r.round(Exact::of(epsilon), kept, larger);
        let divisor = r.round(product.plus(&epsilon), kept, larger);
        if divisor.is_zero() {
            r.overflowed = true;
            return Exact::zero();
        }
        let quotient = r.off(dot.over(&divisor), 2f64.powi(-22), raises);
        let quotient = keep(r, quotient, kept, raises);
        self.factor().times(r, &quotient, kept, raises)
    }

    /// The score of a key after the head rule.
    fn combined(
        &self,
        r: &mut Rounder,
        labels: &Labels,
        key: usize,
        orders: (&Order, &Order),
        raises: bool,
    ) -> Exact {
        let (order, of_heads) = orders;
        let kept = kept_in(self.model, self.storage());
        let selection = self.instance.selection;
        let sign = |x: &[f64; 3]| x[2] < 0.0;
        let k = |r: &mut Rounder, q: &[[f64; 3]]| drawn(r, &labels.k[key], |c| raises != sign(&q[c]));
        let q =
            |r: &mut Rounder, head: usize| drawn(r, &labels.q[head], |c| raises != sign(&labels.k[key][c]));
        if selection.heads == HeadMode::SummedLabels {
            let mut sum =
                |of: &dyn Fn(usize, usize) -> Exact, larger: &dyn Fn(usize) -> bool| -> Vec<Exact> {
                    let sum = |c: usize| {
                        let parts: Vec<Exact> = (0..self.heads).map(|head| of(head, c)).collect();
                        let sum = of_heads.add(r, &parts, Format::F32, larger(c));
                        keep(r, sum, kept, larger(c))
                    };
                    (0..self.channels).map(sum).collect()
                };
            let of_q = |head: usize, c: usize| Exact::of(labels.q[head][c][2]);
            let summed = sum(&of_q, &|c| raises != sign(&labels.k[key][c]));
            let of_k = |_: usize, c: usize| Exact::of(labels.k[key][c][2]);
            let keys = sum(&of_k, &|c| raises != summed[c].is_negative());
            return self.score(r, (&summed, &keys), (0, key), order, raises);
        }
        let weights =
            self.instance.channels(0).unwrap().weights_of(0, &self.call.inputs.dims()).map(<[f32]>::to_vec);
        let scores: Vec<Exact> = (0..self.heads)
            .map(|head| {
                let (mut q, mut k) = (q(r, head), k(r, &labels.q[head]));
                if let Some(weights) = &weights {
                    // A kernel that keeps f32 may multiply keys instead.
                    let on_keys = kept == Format::F32 && r.choose(2) == 0;
                    let (labels, others) = if on_keys { (&mut k, q.clone()) } else { (&mut q, k.clone()) };
                    for ((x, &weight), other) in labels.iter_mut().zip(weights).zip(&others) {
                        let weight = Exact::of(f64::from(weight));
                        let weight = if r.choose(2) == 0 { weight.nearest(kept) } else { weight };
                        *x = r.round(x.times(&weight), kept, raises != other.is_negative());
                    }
                }
                self.score(r, (&q, &k), (head, key), order, raises)
            })
            .collect();
        let ranks = selection.rules.ranks;
        if ranks.count() == 1 {
            return self.of_part(r, &scores, of_heads, raises);
        }
        let exchanged = Format::of(ranks.parts());
        let together = self.heads / ranks.count();
        let parts: Vec<Exact> = scores
            .chunks(together)
            .map(|part| {
                let order = &Order::some(together, Words::new(0, 0), 0)[0];
                let part = self.of_part(r, part, order, raises);
                if exchanged == Format::F32 { part } else { r.round(part, exchanged, raises) }
            })
            .collect();
        let step = if exchanged != Format::F32 && r.choose(2) == 0 { exchanged } else { Format::F32 };
        let order = &Order::some(parts.len(), Words::new(0, 0), 0)[0];
        let sum = order.add(r, &parts, step, raises);
        let sum = if step != exchanged { r.round(sum, exchanged, raises) } else { sum };
        keep(r, sum, kept, raises)
    }

    fn of_part(&self, r: &mut Rounder, scores: &[Exact], order: &Order, raises: bool) -> Exact {
        if scores.len() == 1 {
            return scores[0].clone();
        }
        let kept = kept_in(self.model, self.storage());
        let mut sum = || {
            let sum = order.add(r, scores, Format::F32, raises);
            keep(r, sum, kept, raises)
        };
        match self.instance.selection.heads.combined() {
            Combined::Sum => sum(),
            Combined::Mean => {
                let sum = sum();
                let mean = r.round(sum.over(&Exact::whole(scores.len() as i64)), Format::F32, raises);
                keep(r, mean, kept, raises)
            }
            Combined::Max => scores.iter().cloned().reduce(Exact::larger).unwrap(),
        }
    }
}

/// All numbers of one question in every way.
pub fn ask(tally: &mut Tally, (rule, name): (Rule, &'static str), seed: u64) {
    let question = Question::new(rule, seed);
    let Some(labels) = Labels::new(&question) else { return };
    let before = Mask::empty(&question.call.inputs.dims());
    let bounds = ScoreBounds::new(&question.instance, &question.call, question.model, &before);
    let Ok(Some(bounds)) = bounds else { return };
    let kept = question.model.scores_kept.of(question.storage());
    let place = (name, format!("{} kept in {kept}", question.storage()));
    let words = Words::new(seed, 2);
    for (key, allowed) in bounds.ranked_by((0, 0, 0)).into_iter().enumerate() {
        tally.radius(&place);
        let orders = Order::some(question.channels, words, 10_000 + 1000 * key as u64);
        let of_heads = Order::some(question.heads, words, 20_000 + 1000 * key as u64);
        for (index, order) in orders.iter().enumerate() {
            let of_heads = &of_heads[index % of_heads.len()];
            for way in Way::ALL {
                let mut r = Rounder::new(way, words.word(index as u64 + 64 * key as u64));
                let found = question.combined(&mut r, &labels, key, (order, of_heads), true);
                tally.compare(&place, allowed, &found, &r, &|| format!("seed {seed}, key {key}, {order:?}"));
            }
        }
    }
}
