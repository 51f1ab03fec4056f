//! Where a relation acts, where it does not act everywhere: one feature of a call that separates the answers which need it from
//! those which contradict it.

use super::answers::Item;
use crate::algorithm::HeadMode;

/// One feature that calls have.
#[derive(Clone, Copy)]
pub(super) struct Restriction {
    feature: Feature,
    rule: Rule,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    /// More than this.
    Above(usize),
    /// Less than this.
    Below(usize),
    /// This alone.
    Is(usize),
}

/// A number that a call has.
#[derive(Clone, Copy)]
struct Feature {
    name: &'static str,
    of: fn(&Item<'_>) -> usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    /// 1 where it holds; the words for it and for the contrary.
    Truth(&'static str, &'static str),
}

const fn number(name: &'static str, of: fn(&Item<'_>) -> usize) -> Feature {
    Feature { name, of, kind: Kind::Number }
}

const fn truth(holds: &'static str, fails: &'static str, of: fn(&Item<'_>) -> usize) -> Feature {
    Feature { name: "", of, kind: Kind::Truth(holds, fails) }
}

const FEATURES: &[Feature] = &[
    number("n", |item| item.dims().keys),
    number("B", |item| usize::from(item.selection().label_bits.get())),
    number("r", |item| item.label_channels()),
    truth("where r is not a power of two", "where r is a power of two", |item| {
        usize::from(!item.label_channels().is_power_of_two())
    }),
    truth("where r is odd", "where r is even", |item| item.label_channels() % 2),
    number("m", |item| item.dims().queries),
    number("b", |item| item.dims().batch),
    number("h", |item| item.dims().heads),
    truth("where h is even", "where h is odd", |item| usize::from(item.dims().heads % 2 == 0)),
    number("g", |item| item.dims().group_size()),
    number("hk", |item| item.dims().kv_heads),
    number("H", |item| item.selection().heavy_size.resolve(item.dims().keys)),
    number("d", |item| item.dims().head_dim),
    number("dv", |item| item.dims().value_dim),
    truth("in per-head", "where heads share a selection", |item| {
        usize::from(item.selection().heads == HeadMode::PerHead)
    }),
    truth("in summed-labels", "outside summed-labels", |item| {
        usize::from(item.selection().heads == HeadMode::SummedLabels)
    }),
    truth("in summed-scores", "outside summed-scores", |item| {
        usize::from(item.selection().heads == HeadMode::SummedScores)
    }),
    truth("in causal calls", "in calls that are not causal", |item| {
        usize::from(item.call().inputs.parts().causal)
    }),
    truth("in calls after the first", "in the first call", |item| usize::from(item.index > 0)),
    truth("where there is an additive mask", "where there is no additive mask", |item| {
        usize::from(item.call().inputs.parts().attention_mask.is_some())
    }),
    truth("where there is an earlier mask", "where there is no earlier mask", |item| {
        usize::from(item.call().previous.is_some())
    }),
    truth(
        "where the shortest entry of the batch has fewer keys than H",
        "where every entry of the batch has as many keys as H",
        |item| usize::from(item.shortest() < item.configured()),
    ),
    truth(
        "where the shortest entry of the batch has at most H keys",
        "where every entry of the batch has more keys than H",
        |item| usize::from(item.shortest() <= item.configured()),
    ),
    number("the shortest length of the batch", |item| item.shortest()),
    truth("where entries have unequal lengths", "where no lengths are given", |item| {
        usize::from(item.place.is_some())
    }),
    truth("in float16", "in other types than float16", |item| {
        usize::from(item.call().inputs.storage() == crate::algorithm::Storage::F16)
    }),
    truth("in bfloat16", "in other types than bfloat16", |item| {
        usize::from(item.call().inputs.storage() == crate::algorithm::Storage::Bf16)
    }),
];

/// How many features that separate alike are looked at.
const MOST_FEATURES: usize = 3;

/// A rule that rests on fewer answers on either side says too little.
const FEWEST: usize = 3;

impl Restriction {
    /// The first features each of which separates calls that need a relation from those that contradict it.
    pub(super) fn between(needing: &[&Item<'_>], contradicting: &[&Item<'_>]) -> Vec<Self> {
        if needing.len() < FEWEST || contradicting.len() < FEWEST {
            return Vec::new();
        }
        let separating = FEATURES.iter().filter_map(|&feature| {
            let of = |items: &[&Item<'_>]| items.iter().map(|item| (feature.of)(item)).collect::<Vec<_>>();
            let (needing, contradicting) = (of(needing), of(contradicting));
            let ends = |values: &[usize]| Some((*values.iter().min()?, *values.iter().max()?));
            let (low, high) = ends(&needing)?;
            let (lowest, highest) = ends(&contradicting)?;
            let rule = if low > highest {
                Rule::Above(highest)
            } else if high < lowest {
                Rule::Below(lowest)
            } else if low == high && !contradicting.contains(&low) {
                Rule::Is(low)
            } else {
                return None;
            };
            Some(Self { feature, rule })
        });
        separating.take(MOST_FEATURES).collect()
    }

    /// Whether a call is one where the relation acts.
    pub(super) fn holds(&self, item: &Item<'_>) -> bool {
        let found = (self.feature.of)(item);
        match self.rule {
            Rule::Above(limit) => found > limit,
            Rule::Below(limit) => found < limit,
            Rule::Is(value) => found == value,
        }
    }

    pub(super) fn words(&self) -> String {
        let name = self.feature.name;
        match (self.feature.kind, self.rule) {
            (Kind::Truth(holds, _), Rule::Above(_)) => holds.into(),
            (Kind::Truth(_, fails), Rule::Below(_)) => fails.into(),
            (Kind::Truth(holds, fails), Rule::Is(value)) => if value == 1 { holds } else { fails }.into(),
            (Kind::Number, Rule::Above(limit)) => format!("where {name} > {limit}"),
            (Kind::Number, Rule::Below(limit)) => format!("where {name} < {limit}"),
            (Kind::Number, Rule::Is(value)) => format!("where {name} = {value}"),
        }
    }
}

impl Item<'_> {
    pub(super) fn call(&self) -> &crate::cases::Call {
        &self.observation.sequence.calls[self.index]
    }

    pub(super) fn dims(&self) -> crate::algorithm::Dims {
        self.call().inputs.dims()
    }

    /// The keys of the shortest entry of the batch.
    fn shortest(&self) -> usize {
        self.place.as_ref().map_or(self.dims().keys, super::answers::Place::shortest)
    }

    /// H as configured, which may be more than the shortest entry has keys; as a share of its keys it never is.
    fn configured(&self) -> usize {
        match self.selection().heavy_size {
            crate::algorithm::HeavySize::Count(count) => count.get(),
            share @ crate::algorithm::HeavySize::Fraction(_) => share.resolve(self.shortest()),
        }
    }

    fn selection(&self) -> crate::algorithm::Selection {
        self.observation.sequence.instance.selection
    }

    fn label_channels(&self) -> usize {
        self.selection().group_factor.label_channels(self.dims().head_dim).unwrap_or(0)
    }
}
