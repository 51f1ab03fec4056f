//! The search: changes one at a time, then two at a time, on the smallest failing answers first, within a time. What reproduces
//! all that fails is held against everything that conforms; where it contradicts some of that, one feature may say where it acts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;

use super::answers::{Item, items};
use super::fits::{attention_of_relation_fits, selection_fits, support};
use super::members;
use super::restriction::Restriction;
use super::{Acts, How, Member, Relation};
use crate::behaviours::Behaviour;
use crate::behaviours::changes::{OutputChange, RowChange};
use crate::cases::RoundingModel;
use crate::diagnosis::Seen;

/// How long relations are sought, where nothing else is said.
pub const MOST_TIME: Duration = Duration::from_secs(30);

/// The same where named faults explain everything.
pub const MOST_TIME_IF_NAMED: Duration = Duration::from_secs(10);

/// How many changes that explain some answer are tried two at a time.
const MOST_IN_PAIRS: usize = 48;

/// How many relations that reproduce everything alike are told.
const MOST_TOLD: usize = 3;

const SELECTION: &str = "selection";
const ATTENTION: &str = "attention, by the mask that was answered";

/// What is known of the cause of all that fails.
#[derive(Debug, Clone, Serialize)]
pub struct Told {
    /// The relation, as a sentence without its end; `None` where nothing was proved.
    pub relation: Option<String>,
    /// Others that reproduce every answer as well.
    pub others: Vec<String>,
    /// What is wrong: the selection, the attention, or both.
    pub stage: &'static str,
    /// Calls whose answers fail.
    pub failing: usize,
    /// Calls whose answers were held against it, failing ones included.
    pub calls: usize,
    /// How many relations were tried.
    pub tried: usize,
    /// Whether the time for the search was over before all were.
    pub cut: bool,
    /// Whether more answers would tell no more: one relation that acts everywhere, or none that reproduces what fails.
    #[serde(skip)]
    pub settled: bool,
}

impl Told {
    /// The stage, where it is one.
    pub fn one_stage(&self) -> Option<&'static str> {
        match self.stage {
            SELECTION => Some("labels, scores or selection"),
            ATTENTION => Some("attention"),
            _ => None,
        }
    }

    /// The cause in a sentence; where it is unknown, what was ruled out.
    pub fn sentence(&self) -> String {
        let Self { failing, calls, tried, stage, .. } = self;
        let Some(relation) = &self.relation else {
            let tried = match self.cut {
                true => {
                    format!("the time for the search was over before all of {tried} relations were tried")
                }
                false => format!("none of {tried} relations reproduces every answer"),
            };
            return format!("Unknown: {tried}. What fails is the {stage}.");
        };
        let conforming = calls - failing;
        let proof = format!("{failing} failing and {conforming} conforming answers are reproduced");
        let mut first = relation.chars();
        let relation: String = first.next().into_iter().flat_map(char::to_uppercase).chain(first).collect();
        match self.others.as_slice() {
            [] => format!("{relation} ({proof})."),
            others => {
                format!("{relation} ({proof}). These answers do not tell it from: {}.", others.join("; or "))
            }
        }
    }
}

/// Looks for one relation that reproduces everything seen. `None` where nothing fails, or some answer is of no use.
/// With `pairs` two changes are tried together as well, and one for each part of the answers.
pub fn explain(
    seen: &[&Seen],
    base: Behaviour,
    model: RoundingModel,
    (time, pairs): (Duration, bool),
) -> Option<Told> {
    let items = items(seen, model)?;
    let members = members::all(&items);
    explain_items(&items, members, base, model, (time, pairs))
}

/// The same of answers that are items already, by these members.
pub(super) fn explain_items(
    items: &[Item<'_>],
    members: Vec<Member>,
    base: Behaviour,
    model: RoundingModel,
    (time, pairs): (Duration, bool),
) -> Option<Told> {
    let deadline = Instant::now() + time;
    let (proof_deadline, near) = (deadline + time, AtomicBool::new(false));
    let search = Search { items, base, model, deadline, proof_deadline, near };
    let fails = |acts: Acts| items.iter().filter(|item| !item.conforms(acts)).count();
    let (selection, attention) = (fails(Acts::Selection), fails(Acts::Attention));
    let (stage, parts): (_, &[Acts]) = match (selection, attention) {
        (0, 0) => return None,
        (_, 0) => (SELECTION, &[Acts::Selection]),
        (0, _) => (ATTENTION, &[Acts::Attention]),
        _ => (
            "selection, and the attention by the mask that was answered",
            &[Acts::Selection, Acts::Attention],
        ),
    };
    let mut tried = 0;
    let mut found: Vec<Relation> = Vec::new();
    if parts.len() > 1 {
        // One change may be the cause of both.
        let both: Vec<Member> = members.iter().filter(|member| member.acts == Acts::Both).cloned().collect();
        found = search.singles(&both, parts, &mut tried);
    }
    // In place of several causes that explain everything there would have to be one.
    if found.is_empty() && (pairs || parts.len() == 1) {
        for &part in parts {
            let some =
                |member: &&Member| member.acts == part || (parts.len() == 1 && member.acts == Acts::Both);
            let of_part: Vec<Member> = members.iter().filter(some).cloned().collect();
            let mut here = search.singles(&of_part, &[part], &mut tried);
            if here.is_empty() && pairs {
                here = search.pairs(&of_part, part, &mut tried);
            }
            if here.is_empty() {
                found.clear();
                break;
            }
            found = match found.is_empty() {
                true => here,
                false => vec![Relation {
                    members: found[0].members.iter().chain(&here[0].members).cloned().collect(),
                    ..found.remove(0)
                }],
            };
        }
    }
    let settled = match found.as_slice() {
        [] => !search.near.load(Ordering::Relaxed),
        [one] => one.only.is_none(),
        _ => false,
    };
    let mut words = without_implied(&found).into_iter();
    Some(Told {
        relation: words.next(),
        others: words.take(MOST_TOLD - 1).collect(),
        stage,
        failing: items.iter().filter(|item| !(item.selection && item.attention)).count(),
        calls: items.len(),
        tried,
        cut: Instant::now() >= search.deadline,
        settled,
    })
}

/// In words; of relations that differ in how coarse scores are, all of which reproduce everything, the least coarse is told. That a
/// part of an output is anything is told where nothing says what it is, and of the largest part that is right.
fn without_implied(found: &[Relation]) -> Vec<String> {
    let unwritten = |relation: &Relation| {
        relation.hows().find_map(|how| match how {
            How::Output(OutputChange::Unwritten(written)) => Some(*written),
            _ => None,
        })
    };
    let says_what = found.iter().any(|relation| unwritten(relation).is_none());
    let most = found.iter().filter_map(unwritten).min();
    let told = |relation: &&Relation| match unwritten(relation) {
        None => true,
        Some(written) => !says_what && Some(written) == most,
    };
    // Those of the catalogue have bits, too.
    let coarse = |relation: &Relation| {
        let of_hows = relation.hows().find_map(|how| match how {
            How::Row(RowChange::Coarse(bits)) => Some(*bits),
            _ => None,
        });
        of_hows.or(match relation.behaviour().rows {
            Some(RowChange::Coarse(bits)) => Some(bits),
            _ => None,
        })
    };
    let finest = found.iter().filter_map(coarse).max();
    // That negative scores tie allows any order among them.
    let ties = |relation: &Relation| {
        let is_tie = |change: &RowChange| matches!(change, RowChange::NegativeIsZero);
        relation.hows().any(|how| matches!(how, How::Row(change) if is_tie(change)))
            || relation.behaviour().rows.as_ref().is_some_and(is_tie)
    };
    let by_bits = found
        .iter()
        .any(|relation| relation.hows().any(|how| matches!(how, How::Row(RowChange::ByBits { .. }))));
    let mut words: Vec<String> = Vec::new();
    for relation in found.iter().filter(told) {
        if (coarse(relation) != finest && coarse(relation).is_some()) || (by_bits && ties(relation)) {
            continue;
        }
        // Some differ in what the words leave out.
        if !words.contains(&relation.words()) {
            words.push(relation.words());
        }
    }
    words
}

/// Whether answers that fail and that a behaviour gives say something for it. True where the selection is not what fails, or where
/// something was refused.
pub fn is_supported(behaviour: Behaviour, failing: &[&Seen], model: RoundingModel) -> bool {
    let Some(items) = items(failing, model) else { return true };
    let failing: Vec<&Item<'_>> = items.iter().filter(|item| !item.selection).collect();
    failing.is_empty() || supports(&Relation::new(behaviour, Vec::new()), failing, model)
}

/// Whether selections that a relation gives say something for it: one that leaves every key of every row open would give any others
/// as well, unless the same keys of those that tie are always taken.
fn supports<'a>(
    relation: &Relation,
    selections: impl IntoIterator<Item = &'a Item<'a>>,
    model: RoundingModel,
) -> bool {
    let (mut lowest, mut highest) = (true, true);
    for item in selections {
        let support = support(relation, item, model);
        if support.decided {
            return true;
        }
        (lowest, highest) = (lowest && support.lowest, highest && support.highest);
    }
    lowest || highest
}

struct Search<'a> {
    items: &'a [Item<'a>],
    base: Behaviour,
    model: RoundingModel,
    deadline: Instant,
    proof_deadline: Instant,
    /// Whether some relation reproduces all that fails and contradicts something else.
    near: AtomicBool,
}

impl Item<'_> {
    fn conforms(&self, acts: Acts) -> bool {
        match acts {
            Acts::Selection => self.selection,
            Acts::Attention => self.attention,
            Acts::Both => self.selection && self.attention,
        }
    }
}

impl<'a> Search<'a> {
    fn fits(&self, relation: &Relation, item: &Item<'_>, part: Acts) -> bool {
        let plain;
        let relation = match relation.only {
            Some(only) if !only.holds(item) => {
                plain = Relation::new(self.base, Vec::new());
                &plain
            }
            _ => relation,
        };
        if relation.members.is_empty() && self.base == Behaviour::default() {
            return item.conforms(part);
        }
        let of = match part {
            Acts::Selection => selection_fits,
            _ => attention_of_relation_fits,
        };
        of(relation, item, self.model)
    }

    fn failing(&self, part: Acts) -> Vec<&Item<'a>> {
        self.items.iter().filter(|item| !item.conforms(part)).collect()
    }

    /// Single changes that reproduce everything; those that act everywhere, or else those that act where a feature says.
    fn singles(&self, members: &[Member], parts: &[Acts], tried: &mut usize) -> Vec<Relation> {
        *tried += members.len();
        let relations: Vec<Relation> =
            members.iter().map(|member| Relation::new(self.base, vec![member.clone()])).collect();
        self.proved(relations, parts, true)
    }

    /// Those that reproduce everything; where none does and `restricted` allows it, those that do so where one feature says.
    fn proved(&self, relations: Vec<Relation>, parts: &[Acts], restricted: bool) -> Vec<Relation> {
        let failing: Vec<(Acts, &Item<'_>)> = parts
            .iter()
            .flat_map(|&part| self.failing(part).into_iter().map(move |item| (part, item)))
            .collect();
        let reproduces = |relation: &Relation| {
            failing
                .iter()
                .all(|(part, item)| Instant::now() < self.deadline && self.fits(relation, item, *part))
        };
        let says_something =
            |relation: &Relation| !parts.contains(&Acts::Selection) || self.is_supported(relation);
        let fitting: Vec<Relation> =
            relations.into_par_iter().filter(reproduces).filter(says_something).collect();
        let (mut everywhere, mut somewhere) = (Vec::new(), Vec::new());
        for mut relation in fitting {
            let contradicting = self.contradicting(&relation);
            if contradicting.is_empty() {
                everywhere.push(relation);
                continue;
            }
            if !everywhere.is_empty() || !restricted {
                continue;
            }
            self.near.store(true, Ordering::Relaxed);
            let needing: Vec<&Item<'_>> = failing.iter().map(|(_, item)| *item).collect();
            for only in Restriction::between(&needing, &contradicting) {
                relation.only = Some(only);
                if self.contradicting(&relation).is_empty() {
                    somewhere.push(relation.clone());
                }
            }
        }
        if everywhere.is_empty() { somewhere } else { everywhere }
    }

    /// Whether answers that fail say something for a relation that gives all of them.
    fn is_supported(&self, relation: &Relation) -> bool {
        supports(relation, self.failing(Acts::Selection), self.model)
    }

    /// Conforming answers that a relation does not give, or was not held against: what is told was held against each, for which
    /// there is as much time again as for the search.
    fn contradicting(&self, relation: &Relation) -> Vec<&Item<'a>> {
        let parts: Vec<Acts> =
            [Acts::Selection, Acts::Attention].into_iter().filter(|part| relation.acts_on(*part)).collect();
        let gives = |item: &&Item<'a>| {
            let conforming = parts.iter().filter(|part| item.conforms(**part));
            conforming
                .into_iter()
                .any(|part| Instant::now() >= self.proof_deadline || !self.fits(relation, item, *part))
        };
        self.items.par_iter().filter(gives).collect()
    }

    /// Two changes, each of which gives some answer that fails.
    fn pairs(&self, members: &[Member], part: Acts, tried: &mut usize) -> Vec<Relation> {
        let failing = self.failing(part);
        let some = &failing[..failing.len().min(40)];
        let gives = |member: &&Member| {
            let relation = Relation::new(self.base, vec![(*member).clone()]);
            Instant::now() < self.deadline && some.iter().any(|item| self.fits(&relation, item, part))
        };
        let useful: Vec<&Member> = members.par_iter().filter(gives).collect();
        let useful = &useful[..useful.len().min(MOST_IN_PAIRS)];
        let pairs: Vec<Relation> = (0..useful.len())
            .flat_map(|a| useful[a + 1..].iter().map(move |b| vec![useful[a].clone(), (*b).clone()]))
            .map(|members| Relation::new(self.base, members))
            .collect();
        *tried += pairs.len();
        self.proved(pairs, &[part], false)
    }
}
