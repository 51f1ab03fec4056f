//! Deliberate faults that no [`Behaviour`] has, as what is wrong is not what is computed from the inputs: promises that are not
//! kept, answers that are wrong from time to time, scores, labels or a log-sum-exp that are not those that were used, channels
//! of an earlier instance, and lengths of entries got wrong. They show by the kind of the finding; nothing of the catalogue explains them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array2, Array3, Array4};

use super::above::Above;
use super::ragged::{LengthFault, RaggedKernel};
use super::{Subject, not_configured};
use crate::algorithm::attention::log_sum_exp;
use crate::algorithm::{ChannelOrder, Mask, Row};
use crate::behaviours::answer::{answer, scores};
use crate::behaviours::{
    Behaviour, Causality, Factor, HeadLabels, Heads, Outcome, Prediction, RankingMask, predict,
};
use crate::cases::stages::{Stages, Takes};
use crate::cases::{
    Answer, AnsweredLabels, Call, Capabilities, Given, Instance, NoAnswer, Promise, RoundingModel, Sequence,
};

/// One answer of about so many is wrong where a race is meant.
const ONE_IN: u64 = 20;

/// A named breach of what an implementation declares.
#[derive(Debug, Clone, Copy)]
pub struct Breach {
    /// What commands and records call it.
    pub name: &'static str,
    /// The section of the SPEC that it goes against.
    pub row: &'static str,
    /// One sentence that says what such an implementation does.
    pub sentence: &'static str,
    /// The kinds of which the findings must be that show it.
    pub kinds: &'static [&'static str],
    /// What is promised and not kept.
    pub promise: Option<Promise>,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    TiesToHighest,
    TiesToLowest,
    TiesAtRandom,
    TiesByBatch,
    LastBitByQueries,
    Descending,
    PaddedInFront,
    LastKeyRepeated,
    LosesKey,
    ZerosRow,
    Breaks,
    LseToBaseTwo,
    LseWithoutWeights,
    LseOfAllKeys,
    ScoresWithoutFactor,
    ScoresWithoutMask,
    ScoresOfOneHead,
    LabelsNotQuantised,
    ChannelsOfFirstInstance,
    Lengths(LengthFault),
}

const BROKEN: &[&str] = &["broken promise"];
const SOMETIMES: &[&str] = &["not repeatable"];
const LSE: &[&str] = &["lse out of bounds"];
/// In f16 they may overflow, and a key that is selected then has −∞.
const SCORES_AND_CANDIDATES: &[&str] = &["scores out of bounds", "selected a key that is no candidate"];
/// Keys are also judged by the scores that are given.
const SCORES_AND_KEYS: &[&str] = &["scores out of bounds", "wrong keys"];
const OUTPUT: &[&str] = &["output out of bounds"];
const PADDING: &[&str] = &["selected padding"];
/// Other keys than the SPEC selects, among them such as are none.
const KEYS: &[&str] = &["wrong keys", "wrong number of keys", "selected a key that is no candidate"];
const KEYS_AND_PADDING: &[&str] =
    &["wrong keys", "wrong number of keys", "selected a key that is no candidate", "selected padding"];
const EVERYTHING: &[&str] = &[
    "wrong keys",
    "wrong number of keys",
    "selected a key that is no candidate",
    "selected padding",
    "output out of bounds",
];

const fn breach(
    name: &'static str,
    kinds: &'static [&'static str],
    sentence: &'static str,
    how: How,
) -> Breach {
    Breach { name, row: "§5", sentence, kinds, promise: None, how }
}

const fn broken(promise: Promise, name: &'static str, sentence: &'static str, how: How) -> Breach {
    let kinds = if matches!(promise, Promise::Repeatable) { SOMETIMES } else { BROKEN };
    Breach { name, row: "§5", sentence, kinds, promise: Some(promise), how }
}

const fn lengths(
    name: &'static str,
    kinds: &'static [&'static str],
    sentence: &'static str,
    fault: LengthFault,
) -> Breach {
    Breach { name, row: "§2.13", sentence, kinds, promise: None, how: How::Lengths(fault) }
}

/// All of them.
pub const BREACHES: &[Breach] = &[
    broken(
        Promise::TiesLowest,
        "promised-ties-lowest",
        "It promises ties-lowest, and ties go to the highest key.",
        How::TiesToHighest,
    ),
    broken(
        Promise::TiesHighest,
        "promised-ties-highest",
        "It promises ties-highest, and ties go to the lowest key.",
        How::TiesToLowest,
    ),
    broken(
        Promise::Repeatable,
        "promised-repeatable",
        "It promises repeatable, and one answer in twenty breaks ties otherwise.",
        How::TiesAtRandom,
    ),
    broken(
        Promise::BatchInvariant,
        "promised-batch-invariant",
        "It promises batch-invariant, and breaks ties otherwise where there are several entries.",
        How::TiesByBatch,
    ),
    broken(
        Promise::SliceInvariant,
        "promised-slice-invariant",
        "It promises slice-invariant, and the last bit of an output depends on the number of queries.",
        How::LastBitByQueries,
    ),
    broken(
        Promise::Ascending,
        "promised-ascending",
        "It promises ascending, and lists selected keys from the highest to the lowest.",
        How::Descending,
    ),
    broken(
        Promise::Padded,
        "promised-padded",
        "It promises padded, and writes -1 before the selected keys.",
        How::PaddedInFront,
    ),
    broken(
        Promise::Padded,
        "padded-with-last-key",
        "It promises padded, and repeats the last selected key in place of -1.",
        How::LastKeyRepeated,
    ),
    breach(
        "race-loses-key",
        SOMETIMES,
        "One answer in twenty loses a key that it attends to.",
        How::LosesKey,
    ),
    breach("race-zeros-row", SOMETIMES, "One answer in twenty has a row of zeros as output.", How::ZerosRow),
    breach("race-breaks", SOMETIMES, "One call in twenty gets no usable answer.", How::Breaks),
    breach("lse-to-base-two", LSE, "The log-sum-exp is a logarithm to base 2.", How::LseToBaseTwo),
    breach(
        "lse-without-weights",
        LSE,
        "Weights of the mask are left out of the log-sum-exp.",
        How::LseWithoutWeights,
    ),
    breach("lse-of-all-keys", LSE, "The log-sum-exp is that of every key.", How::LseOfAllKeys),
    breach(
        "scores-without-factor",
        SCORES_AND_CANDIDATES,
        "The scores that it gives are not multiplied by the factor; those that it ranks by are.",
        How::ScoresWithoutFactor,
    ),
    breach(
        "scores-without-mask",
        SCORES_AND_KEYS,
        "The scores that it gives are without the additive mask; those that it ranks by are not.",
        How::ScoresWithoutMask,
    ),
    breach(
        "scores-of-one-head",
        SCORES_AND_KEYS,
        "The scores that it gives are each head's own where heads are taken together.",
        How::ScoresOfOneHead,
    ),
    breach(
        "labels-not-quantised",
        &["labels differ"],
        "The labels that it gives are not quantised; those that it scores are.",
        How::LabelsNotQuantised,
    ),
    Breach {
        row: "§2.2",
        ..breach(
            "channels-of-first-instance",
            &["wrong keys"],
            "A layer keeps the channels of the first instance of a process that has it, as long as the shapes fit.",
            How::ChannelsOfFirstInstance,
        )
    },
    broken(
        Promise::CapacityInvariant,
        "promised-capacity-invariant",
        "It promises capacity-invariant, and the last bit of an output depends on the size of the buffer.",
        How::Lengths(LengthFault::DependsOnTheBuffer),
    ),
    lengths("lengths-ignored", EVERYTHING, "Every entry is taken to have all keys.", LengthFault::Ignored),
    lengths(
        "padding-ranked",
        &["wrong keys", "wrong number of keys"],
        "Scores of padding stay NaN when −∞ is added, and NaN is ranked first.",
        LengthFault::RanksPadding,
    ),
    lengths(
        "queries-aligned-at-n",
        KEYS_AND_PADDING,
        "Query i has the position n − m + i whatever its entry's length.",
        LengthFault::AlignsAtTheEnd,
    ),
    lengths(
        "queries-aligned-at-0",
        KEYS,
        "Query i has the position i in an entry that is shorter than n.",
        LengthFault::AlignsAtTheStart,
    ),
    lengths(
        "length-of-first-entry",
        KEYS_AND_PADDING,
        "All entries have the length of the first one.",
        LengthFault::OfFirstEntry,
    ),
    lengths(
        "length-of-last-entry",
        KEYS_AND_PADDING,
        "All entries have the length of the last one.",
        LengthFault::OfLastEntry,
    ),
    lengths(
        "nan-without-keys",
        OUTPUT,
        "Rows of entries that are too short to hold their position are NaN instead of zeros.",
        LengthFault::DividesByZero,
    ),
    lengths(
        "one-key-at-least",
        PADDING,
        "An entry without keys is taken to have one.",
        LengthFault::AtLeastOneKey,
    ),
    lengths(
        "padding-weighed",
        OUTPUT,
        "Values of padding are multiplied by 0 and added, which leaves NaN.",
        LengthFault::WeighsPadding,
    ),
];

impl Breach {
    /// The subject that has it: the reference, or a kernel that takes lengths.
    pub fn subject(&'static self) -> Box<dyn Subject> {
        match self.how {
            How::Lengths(fault) => Box::new(RaggedKernel::new(Some(fault)).promising(self.promise)),
            _ => Box::new(Breaching::new(self)),
        }
    }

    /// The same where calls have more than `keys` keys, and right below.
    pub fn subject_above(&'static self, keys: usize) -> Box<dyn Subject> {
        match self.how {
            How::Lengths(_) => {
                let right = RaggedKernel::new(None).promising(self.promise);
                Box::new(Above::new(self.subject(), Box::new(right), keys))
            }
            _ => Box::new(Breaching { above: keys, ..Breaching::new(self) }),
        }
    }

    /// Whether a finding of this kind, in these words, is that of the breach. What is wrong with lengths shows only where a
    /// call has some, so that the finding is `ragged`, and what is kept from one instance to the next only `after_another`.
    pub fn is_shown_by(&self, kind: &str, sentence: &str, ragged: bool, after_another: bool) -> bool {
        let names = |promise: Promise| sentence.starts_with(&format!("Broken promise: {}", promise.name()));
        self.kinds.contains(&kind)
            && (self.kinds != BROKEN || self.promise.is_some_and(names))
            && match self.how {
                How::Lengths(_) => ragged,
                How::ChannelsOfFirstInstance => after_another,
                _ => true,
            }
    }

    /// Whether it shows only after another instance.
    pub fn carries_over(&self) -> bool {
        self.how == How::ChannelsOfFirstInstance
    }

    fn gives(&self) -> &'static [Given] {
        match self.how {
            How::LseToBaseTwo | How::LseWithoutWeights | How::LseOfAllKeys => {
                &[Given::Mask, Given::Output, Given::Lse]
            }
            How::ScoresWithoutFactor | How::ScoresWithoutMask | How::ScoresOfOneHead => {
                &[Given::Mask, Given::Output, Given::Scores]
            }
            How::LabelsNotQuantised => &[Given::Mask, Given::Output, Given::Labels],
            _ => &[],
        }
    }
}

/// The reference with a breach.
#[derive(Debug)]
pub struct Breaching {
    breach: &'static Breach,
    /// Calls of no more keys are answered rightly.
    above: usize,
    instance: Option<Instance>,
    called: u64,
    /// The first channels of each layer since the last restart.
    kept: BTreeMap<usize, ChannelOrder>,
    selected: Option<Array4<i32>>,
}

impl Breaching {
    /// The reference with this breach.
    pub fn new(breach: &'static Breach) -> Self {
        Self { breach, above: 0, instance: None, called: 0, kept: BTreeMap::new(), selected: None }
    }

    /// What a behaviour makes of a call.
    fn predict(&self, behaviour: Behaviour, call: &Call) -> Result<Box<Prediction>, NoAnswer> {
        let instance = self.instance.clone().ok_or_else(not_configured)?;
        let sequence = Sequence { name: self.name(), instance, calls: vec![call.clone()] };
        match predict(behaviour, &sequence, 0) {
            Outcome::Answered(prediction) | Outcome::BrokenOr(prediction) => Ok(prediction),
            Outcome::Refused(errors) => {
                let first = errors.into_iter().next().map(NoAnswer::from);
                Err(first.unwrap_or_else(|| NoAnswer::Declined("refused".into())))
            }
            Outcome::Broken | Outcome::Anything => Err(NoAnswer::Failed("the SPEC says what to do".into())),
        }
    }

    /// What the SPEC says, with everything that is declared.
    fn right(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let highest_of_ties = self.breach.promise == Some(Promise::TiesHighest);
        let prediction = self.predict(Behaviour { highest_of_ties, ..Behaviour::default() }, call)?;
        let mut right = answer(&prediction)?;
        let lists = matches!(self.breach.how, How::Descending | How::PaddedInFront | How::LastKeyRepeated);
        self.selected = lists.then(|| listed(&right.mask, |_| {}));
        for given in self.breach.gives() {
            match given {
                Given::Lse => right.lse = Some(log_sum_exp(&call.inputs, &right.mask)?),
                Given::Scores => right.scores = self.scores(Behaviour::default(), call)?,
                Given::Labels => {
                    right.labels = prediction.ranked.as_ref().map(|ranked| labels(call, &ranked.labels));
                }
                _ => {}
            }
        }
        Ok(right)
    }

    /// Puts the channels that the layer of a call had first in place of its own.
    fn use_first_channels(&mut self, call: &Call) {
        let Some(instance) = &mut self.instance else { return };
        let Ok(own) = instance.channels(call.layer) else { return };
        let first = self.kept.entry(call.layer).or_insert_with(|| own.clone());
        let shape = |order: &ChannelOrder| (order.rows().len(), order.width(), order.weights().is_some());
        if shape(first) == shape(own) {
            let first = first.clone();
            let file = Arc::make_mut(&mut instance.channel_file);
            file.insert(instance.channel_selection, call.layer, first);
        }
    }

    /// Whether it is the turn of an answer that is wrong from time to time.
    fn races(&self) -> bool {
        let mixed = self.called.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        mixed.is_multiple_of(ONE_IN)
    }

    /// The scores of every key as a behaviour has them, where keys are ranked.
    fn scores(&self, behaviour: Behaviour, call: &Call) -> Result<Option<Array4<f32>>, NoAnswer> {
        let prediction = self.predict(behaviour, call)?;
        let Some(ranked) = &prediction.ranked else { return Ok(None) };
        let mut given = Array4::zeros(call.inputs.dims().mask_shape());
        for row @ (b, head, i) in call.inputs.dims().rows() {
            let of_row = scores(&prediction, ranked, row);
            of_row.into_iter().enumerate().for_each(|(key, score)| given[[b, head, i, key]] = score as f32);
        }
        Ok(Some(given))
    }

    fn lse(&self, call: &Call, mask: &Mask) -> Result<Array3<f32>, NoAnswer> {
        let dims = call.inputs.dims();
        let of = |mask: &Mask| log_sum_exp(&call.inputs, mask).map_err(NoAnswer::from);
        match self.breach.how {
            How::LseWithoutWeights => {
                let ones = mask.weights().mapv(|weight| f32::from(u8::from(weight != 0.0)));
                of(&Mask::from_weights(ones, &dims)?)
            }
            How::LseOfAllKeys => of(&Mask::full(&dims)),
            _ => Ok(of(mask)?.mapv(|lse| lse * std::f32::consts::LOG2_E)),
        }
    }
}

impl Subject for Breaching {
    fn name(&self) -> String {
        format!("reference with {}", self.breach.name)
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn capabilities(&self) -> Capabilities {
        let gives = self.breach.gives();
        let gives = (!gives.is_empty()).then_some(gives);
        Capabilities {
            promises: self.breach.promise.map(|promise| [promise].into()),
            stages: Stages::new(Takes::Inputs, gives).unwrap_or_default(),
            ..Capabilities::default()
        }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.instance = Some(instance.clone());
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        self.called += 1;
        let dims = call.inputs.dims();
        if dims.keys <= self.above {
            return self.right(call);
        }
        let how = self.breach.how;
        if how == How::ChannelsOfFirstInstance {
            self.use_first_channels(call);
        }
        let highest_of_ties = match how {
            How::TiesToHighest => true,
            How::TiesAtRandom => self.races(),
            How::TiesByBatch => dims.batch > 1,
            _ => false,
        };
        let prediction = self.predict(Behaviour { highest_of_ties, ..Behaviour::default() }, call)?;
        let mut answer = answer(&prediction)?;
        let spec = Behaviour::default();
        match how {
            How::LastBitByQueries if dims.queries > 1 => {
                // Zeros of rows that attend to nothing are exact.
                let moved = |x: f32| if x.is_normal() { x.next_up() } else { x };
                answer.output.iter_mut().for_each(|output| output.mapv_inplace(moved));
            }
            How::LosesKey if self.races() => {
                let attended = answer.mask.weights().indexed_iter().find(|(_, weight)| **weight != 0.0);
                if let Some(((b, head, i, key), _)) = attended {
                    answer.mask.remove((b, head, i), key);
                }
            }
            How::ZerosRow if self.races() => {
                let last = ndarray::s![-1, -1, -1, ..];
                answer.output.iter_mut().for_each(|output| output.slice_mut(last).fill(0.0));
            }
            How::Breaks if self.races() => return Err(NoAnswer::Failed("it breaks now and then".into())),
            How::Descending | How::PaddedInFront | How::LastKeyRepeated => {
                self.selected = Some(listed(&answer.mask, |keys| match how {
                    How::Descending => keys.reverse(),
                    How::PaddedInFront => keys.insert(0, -1),
                    _ => keys.extend(keys.last().copied()),
                }));
            }
            How::LseToBaseTwo | How::LseWithoutWeights | How::LseOfAllKeys => {
                answer.lse = Some(self.lse(call, &answer.mask)?);
            }
            How::ScoresWithoutFactor => {
                answer.scores = self.scores(Behaviour { factor: Factor::One, ..spec }, call)?;
            }
            How::ScoresWithoutMask => {
                let (ranking_mask, causality) = (RankingMask::Ignored, Causality::Ignored);
                answer.scores = self.scores(Behaviour { ranking_mask, causality, ..spec }, call)?;
            }
            How::ScoresOfOneHead => {
                answer.scores = self.scores(Behaviour { heads: Heads::Alone, ..spec }, call)?;
            }
            How::LabelsNotQuantised => {
                answer.labels = prediction.ranked.map(|ranked| sources(call, &ranked.labels))
            }
            _ => {}
        }
        Ok(answer)
    }

    fn selected(&self) -> Option<&Array4<i32>> {
        self.selected.as_ref()
    }

    fn restart(&mut self) -> bool {
        self.kept.clear();
        self.breach.how == How::ChannelsOfFirstInstance
    }
}

/// The chosen channels of all heads, as they are.
fn sources(call: &Call, labels: &[HeadLabels]) -> AnsweredLabels {
    of_heads(call, labels, |head| &head.q_source, |head| &head.k_source)
}

/// The labels of all heads.
fn labels(call: &Call, labels: &[HeadLabels]) -> AnsweredLabels {
    of_heads(call, labels, |head| &head.q, |head| &head.k)
}

fn of_heads(
    call: &Call,
    labels: &[HeadLabels],
    q: fn(&HeadLabels) -> &Array2<f32>,
    k: fn(&HeadLabels) -> &Array2<f32>,
) -> AnsweredLabels {
    let dims = call.inputs.dims();
    let channels = labels.first().map_or(0, |head| q(head).ncols());
    let of = |b: usize, head: usize| &labels[b * dims.heads + head];
    let (b, h, m, n) = dims.mask_shape();
    AnsweredLabels {
        q: Array4::from_shape_fn((b, h, m, channels), |(b, head, i, c)| q(of(b, head))[[i, c]]),
        k: Array4::from_shape_fn((b, h, n, channels), |(b, head, key, c)| k(of(b, head))[[key, c]]),
    }
}

/// All attended keys of each row, ascending and padded, but for a change.
fn listed(mask: &Mask, change: impl Fn(&mut Vec<i32>)) -> Array4<i32> {
    let (b, h, m, n) = mask.weights().dim();
    let mut selected = Array4::from_elem((b, h, m, n + 1), -1);
    for row @ (b, head, i) in ndarray::indices((b, h, m)) {
        let row: Row = row;
        let mut keys: Vec<i32> = mask.row(row).map(|(key, _)| key as i32).collect();
        change(&mut keys);
        keys.into_iter().enumerate().for_each(|(at, key)| selected[[b, head, i, at]] = key);
    }
    selected
}
