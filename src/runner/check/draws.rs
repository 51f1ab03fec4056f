//! Where random sequences come from: small ones in the order of the seed, large ones by their numbers. Where a subject takes few
//! shapes, these are chosen first, from the seed alone, and all sequences are of those: numbers, masks, channels and calls vary.

use std::collections::BTreeSet;

use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::{Options, Shard};
use crate::cases::history::after_history;
use crate::cases::large_plan::{Large, large_sequence};
use crate::cases::recipe::mix;
use crate::cases::seed::test_runner;
use crate::cases::sequence_plan::{SequencePlan, sequence_plans};
use crate::cases::shapes::with_full_masks;
use crate::cases::{Capabilities, Feature, RoundingModel, Sequence, Shape};
use crate::verdicts::Certificate;

/// Plans tried to find those whose shapes are asked.
const TRIED_FOR_SHAPES: usize = 400;

/// Large sequences tried for the same.
const TRIED_FOR_LARGE_SHAPES: usize = 64;

/// Draws that the subject does not offer, for each one that it does, before the search for more is given up.
const MOST_REJECTED: usize = 100;

/// Large sequences that are not offered, in a row, before the search for more is given up.
const MOST_LARGE_REJECTED: usize = 32;

pub(super) struct Draws {
    capabilities: Capabilities,
    plans: BoxedStrategy<SequencePlan>,
    runner: TestRunner,
    seed: u64,
    shard: Shard,
    /// Keys before those of each small sequence.
    history: usize,
    /// Small sequences drawn, and draws that were not offered.
    drawn: usize,
    rejected: usize,
    few: Option<FewShapes>,
}

/// What is asked of a subject that takes few shapes.
struct FewShapes {
    plans: Vec<SequencePlan>,
    shapes: BTreeSet<Shape>,
    /// How many are left for large sequences.
    large: usize,
}

/// Large sequences of some sizes.
pub(super) struct LargeDraws {
    next: usize,
    pub(super) least: usize,
    pub(super) most: usize,
    /// How many shapes they may have.
    pub(super) shapes: Option<usize>,
    /// How many were asked.
    pub(super) asked: usize,
    /// Numbers of those that stand for a shape, where shapes are few.
    standing: Option<Vec<(usize, BTreeSet<Shape>)>>,
}

impl LargeDraws {
    /// All of them.
    pub(super) fn new((least, most): (usize, usize), shapes: Option<usize>) -> Self {
        Self { next: 0, least, most, shapes, asked: 0, standing: None }
    }
}

impl Draws {
    pub(super) fn new(capabilities: &Capabilities, options: &Options) -> Self {
        let mut draws = Self {
            capabilities: capabilities.clone(),
            plans: sequence_plans(capabilities).boxed(),
            runner: test_runner(options.seed),
            seed: options.seed,
            shard: options.shard,
            history: options.history,
            drawn: 0,
            rejected: 0,
            few: None,
        };
        draws.few = capabilities.shapes.map(|most| draws.choose_shapes(most.get()));
        draws
    }

    /// Half of the shapes are for small sequences, and one in eight for goldens.
    fn choose_shapes(&mut self, most: usize) -> FewShapes {
        let goldens = shapes_of_goldens(most);
        let large = (most - goldens) * 3 / 7;
        let small = most - goldens - large;
        let mut few = FewShapes { plans: Vec::new(), shapes: BTreeSet::new(), large };
        for tried in 0..TRIED_FOR_SHAPES {
            let Some(plan) = self.plan() else { break };
            let Some(sequence) = self.offered(&plan).map(|sequence| self.with_full_masks(sequence)) else {
                continue;
            };
            let shapes = Shape::of_sequence(&sequence);
            let union = few.shapes.union(&shapes).count();
            let more = union - few.shapes.len();
            // Few shapes would be wasted on calls of which every key is selected, or every channel is a label, or that must be
            // refused whatever their numbers; and on one sequence whose calls have many of them.
            let ranks = plan.plan.selection.group_factor.get() > 1
                && certainly_selects(&sequence)
                && has_rows(&sequence)
                && more <= (small / 2).max(1);
            let answered = sequence.calls.iter().all(|call| sequence.instance.faults(call).is_empty());
            let wanted = (answered && (ranks || few.plans.len() % 4 == 3)) || 2 * tried > TRIED_FOR_SHAPES;
            if wanted && plan.flaw.is_none() && union <= small && more > 0 {
                few.shapes.extend(shapes);
                few.plans.push(plan);
            }
            if few.shapes.len() == small {
                break;
            }
        }
        few
    }

    fn plan(&mut self) -> Option<SequencePlan> {
        Some(self.plans.new_tree(&mut self.runner).ok()?.current())
    }

    fn with_full_masks(&self, sequence: Sequence) -> Sequence {
        with_full_masks(sequence, self.capabilities.offers(Feature::MasksPerHead))
    }

    /// The sequence of a plan, where the subject offers it.
    fn offered(&self, plan: &SequencePlan) -> Option<Sequence> {
        plan.sequence().ok().filter(|sequence| self.capabilities.missing(sequence).is_empty())
    }

    /// The sequence with as much before it as the options say; `None` where there is no room for that.
    fn with_history(&self, sequence: Sequence) -> Option<Sequence> {
        if self.history == 0 {
            return Some(sequence);
        }
        let seed = mix(mix(self.seed) ^ (self.drawn + self.rejected) as u64);
        let keys = self.history + seed as usize % (self.history / 2 + 1);
        after_history(&sequence, &self.capabilities, seed, keys)
    }

    /// The next small sequence; `None` where there are none, or hardly any.
    pub(super) fn small(&mut self) -> Option<Sequence> {
        while self.rejected < MOST_REJECTED * (self.drawn + 10) {
            let plan = self.plan()?;
            let sequence = match &self.few {
                None => self.offered(&plan).and_then(|sequence| self.with_history(sequence)),
                Some(few) if few.plans.is_empty() => return None,
                Some(few) => {
                    let place = (self.drawn + self.rejected) % few.plans.len();
                    few.plans[place].with_numbers_of(&plan).iter().find_map(|plan| {
                        self.offered(plan)
                            .map(|sequence| self.with_full_masks(sequence))
                            .filter(|sequence| Shape::of_sequence(sequence).is_subset(&few.shapes))
                    })
                }
            };
            match sequence {
                Some(sequence) => {
                    self.drawn += 1;
                    if self.shard.holds(self.drawn - 1) {
                        return Some(sequence);
                    }
                }
                None => self.rejected += 1,
            }
        }
        None
    }

    /// How many shapes large sequences may have, where shapes are few.
    pub(super) fn large_shapes(&self) -> Option<usize> {
        self.few.as_ref().map(|few| few.large)
    }

    /// The next large sequence of these sizes; `None` where there are none, or hardly any.
    pub(super) fn large(&mut self, draws: &mut LargeDraws) -> Option<Sequence> {
        (0..MOST_LARGE_REJECTED).find_map(|_| self.try_large(draws))
    }

    /// The sequence of the next number, if there is one.
    pub(super) fn try_large(&self, draws: &mut LargeDraws) -> Option<Sequence> {
        let number = self.shard.index(draws.next);
        draws.next += 1;
        let large = Large { seed: self.seed, number, least: draws.least, most: draws.most, shape: number };
        let drawn = |large: Large| large_sequence(&self.capabilities, large).map(|(sequence, _)| sequence);
        let Some(count) = draws.shapes else { return drawn(large) };
        let choose = |number| {
            let sequence = drawn(Large { number, shape: number, ..large }).filter(selects)?;
            let operations = sequence.calls[0].inputs.dims().operations();
            Some((operations, number, Shape::of_sequence(&self.with_full_masks(sequence))))
        };
        // The cheapest of some, so that more numbers can be asked.
        let standing = draws.standing.get_or_insert_with(|| {
            let some = (0..TRIED_FOR_LARGE_SHAPES).filter_map(choose).take(3 * count);
            let mut some: Vec<_> = some.collect();
            some.sort_by_key(|(operations, ..)| *operations);
            some.truncate(count);
            some.into_iter().map(|(_, number, shapes)| (number, shapes)).collect()
        });
        let (shape, shapes) = standing.get(number % standing.len().max(1))?;
        // Which tensors there are may follow from numbers.
        drawn(Large { shape: *shape, ..large })
            .map(|sequence| self.with_full_masks(sequence))
            .filter(|sequence| Shape::of_sequence(sequence) == *shapes)
    }
}

/// Whether some row of some call has more candidates than H.
fn certainly_selects(sequence: &Sequence) -> bool {
    let certificate = |call| Certificate::derive(&sequence.instance, call, RoundingModel::default());
    sequence.calls.iter().any(|call| certificate(call).is_ok_and(|certificate| certificate.selecting() > 0))
}

/// The same of a large sequence, in which every key is a candidate.
fn selects(sequence: &Sequence) -> bool {
    let heavy = sequence.instance.selection.heavy_size;
    sequence.calls.iter().any(|call| heavy.resolve(call.inputs.dims().keys) < call.inputs.dims().keys)
}

/// Whether every call has several rows of an entry: heads may be confused, or queries.
fn has_rows(sequence: &Sequence) -> bool {
    let dims = sequence.calls.iter().map(|call| call.inputs.dims());
    dims.map(|dims| dims.heads * dims.queries).all(|rows| rows > 1)
}

/// How many of so many shapes are for goldens.
pub(super) fn shapes_of_goldens(most: usize) -> usize {
    most / 8
}
