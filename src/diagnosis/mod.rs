//! Why an answer diverges. A fault of the catalogue is named only if the SPEC with it, and with
//! the faults named already, reproduces *every* answer of the subject that was kept; where no single fault does, pairs are
//! tried; [`cache`] does the same for sessions. What no named faults reproduce may be right for something else: [`relations`]. What nothing reproduces is called unknown.

pub mod cache;
pub mod condition;
#[cfg_attr(not(feature = "probes"), path = "no_probes.rs")]
pub mod probes;
pub mod relations;
pub mod reproduction;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use self::condition::Rule;
use self::condition::features::Features;
use self::reproduction::{reproduces, reproduces_call};
use crate::algorithm::Selection;
use crate::behaviours::{Behaviour, CATALOGUE, Fault};
use crate::cases::{Observation, RoundingModel};

/// A set of faults that together explain what was seen.
pub type Faults = Vec<&'static Fault>;

/// An answer that was judged.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What was asked and answered.
    pub observation: Observation,
    /// Whether it conforms to the SPEC.
    pub conforms: bool,
    /// How many sequences had been asked by then.
    pub after: usize,
    /// False for a counterexample that shrinking made of a sequence asked before.
    pub asked: bool,
}

impl Seen {
    fn selection(&self) -> Selection {
        self.observation.sequence.instance.selection
    }
}

/// How long a person who interrupts a check waits for each cause.
const AFTER_INTERRUPT: Duration = Duration::from_secs(1);

/// For how long causes are looked for: with a large target each fault of the catalogue may take a second.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    start: Instant,
    until: Option<Instant>,
    interrupted: Option<&'static AtomicBool>,
}

impl Patience {
    /// From now on for so long; where the flag is true, for a second at most.
    pub fn new(time: Duration, interrupted: Option<&'static AtomicBool>) -> Self {
        let start = Instant::now();
        Self { start, until: start.checked_add(time), interrupted }
    }

    /// Whether the time is over.
    pub fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
            || self
                .interrupted
                .is_some_and(|flag| flag.load(Ordering::Relaxed) && self.start.elapsed() >= AFTER_INTERRUPT)
    }
}

/// `known` and one or two more faults that together reproduce the target and every conforming answer seen, and of the
/// diverging ones as many as any other choice, and that some failing answer says something for. `None` where there are none, or none
/// was found in time.
pub fn extend(
    known: &[&'static Fault],
    target: &Observation,
    seen: &[Seen],
    model: RoundingModel,
    patience: Patience,
) -> Option<Faults> {
    let selection = &target.sequence.instance.selection;
    let candidates: Vec<&'static Fault> = CATALOGUE
        .iter()
        .filter(|fault| !fault.conforms && !known.contains(fault) && fault.asked.concerns(selection))
        .collect();
    let singles: Vec<Faults> = candidates.iter().map(|fault| with(known, &[fault])).collect();
    best(known, singles, target, seen, model, patience).or_else(|| {
        // Coarse sums paired with another fault would reproduce too much.
        let candidates: Vec<&'static Fault> = candidates.into_iter().filter(|fault| !coarse(fault)).collect();
        let pairs = (0..candidates.len()).flat_map(|a| {
            let second = candidates[a + 1..].iter();
            second.map(|b| with(known, &[candidates[a], b])).collect::<Vec<_>>()
        });
        let independent = pairs.filter(|pair| independent(pair)).collect();
        best(known, independent, target, seen, model, patience)
    })
}

fn with(known: &[&'static Fault], more: &[&'static Fault]) -> Faults {
    known.iter().chain(more).copied().collect()
}

/// Which of the declared faults an answer shows: those that reproduce it alone, otherwise those that it needs of the first of `sets`
/// which does. None where none does.
pub fn declared_in(
    declared: &[&'static Fault],
    sets: &[Faults],
    observation: &Observation,
    model: RoundingModel,
) -> Faults {
    let fits =
        |faults: &[&'static Fault]| reproduces(Behaviour::with(faults.iter().copied()), observation, model);
    let alone: Faults = declared.iter().copied().filter(|fault| fits(&[fault])).collect();
    if !alone.is_empty() {
        return alone;
    }
    let set = sets.iter().find(|set| fits(set));
    set.map(|set| shown_by(set, observation, model)).unwrap_or_default()
}

/// The largest sets of faults of which none undoes another, one for each choice between those that do: the two sides of D1.
pub fn independent_sets(faults: &[&'static Fault]) -> Vec<Faults> {
    let mut sets: Vec<Faults> = vec![Vec::new()];
    for &fault in faults {
        let mut more = Vec::new();
        for set in &mut sets {
            if independent(&with(set, &[fault])) {
                set.push(fault);
            } else {
                let mut other: Faults = set.clone();
                other.retain(|old| independent(&[old, fault]));
                other.push(fault);
                more.push(other);
            }
        }
        sets.extend(more);
        sets.truncate(MOST_SETS);
    }
    sets
}

const MOST_SETS: usize = 64;

/// Whether no fault undoes another: the order in which they are applied does not matter.
pub fn independent(faults: &[&'static Fault]) -> bool {
    let behaviour = Behaviour::with(faults.iter().copied());
    Behaviour::with(faults.iter().rev().copied()) == behaviour
        && (0..faults.len()).all(|left_out| {
            let others = faults.iter().enumerate().filter(|(index, _)| *index != left_out);
            Behaviour::with(others.map(|(_, fault)| *fault)) != behaviour
        })
}

/// Of the candidates that reproduce the target and every answer that conforms, the one that reproduces most of what was seen. It must
/// decide some of what `known` does not reproduce: a fault after which every key of every failing answer is open gives any answer.
fn best(
    known: &[&'static Fault],
    candidates: Vec<Faults>,
    target: &Observation,
    seen: &[Seen],
    model: RoundingModel,
    patience: Patience,
) -> Option<Faults> {
    let fitting: Vec<(Faults, Behaviour)> = candidates
        .into_par_iter()
        .map(|faults| {
            let behaviour = Behaviour::with(faults.iter().copied());
            (faults, behaviour)
        })
        .filter(|(_, behaviour)| !patience.is_over() && reproduces(*behaviour, target, model))
        .collect();
    // Those that were not tried might be as good.
    if fitting.is_empty() || patience.is_over() {
        return None;
    }
    let scored = fitting.into_par_iter().filter_map(|(faults, behaviour)| {
        let mut score = 0;
        for Seen { observation, conforms, .. } in seen {
            match (reproduces(behaviour, observation, model), conforms) {
                (true, _) => score += 1,
                (false, true) => return None,
                (false, false) => {}
            }
        }
        Some((score, faults))
    });
    let scored: Vec<(usize, Faults)> = scored.collect();
    let without = Behaviour::with(known.iter().copied());
    let new: Vec<&Seen> = seen
        .par_iter()
        .filter(|seen| !seen.conforms && !reproduces(without, &seen.observation, model))
        .collect();
    let is_supported = |faults: &Faults| {
        let behaviour = Behaviour::with(faults.iter().copied());
        let given = new.iter().copied().filter(|seen| reproduces(behaviour, &seen.observation, model));
        relations::is_supported(behaviour, &given.collect::<Vec<_>>(), model)
    };
    let scored: Vec<(usize, Faults)> =
        scored.into_par_iter().filter(|(_, faults)| is_supported(faults)).collect();
    let most = scored.iter().map(|(score, _)| *score).max()?;
    let mut finalists = scored.into_iter().filter(|(score, _)| *score == most).map(|(_, faults)| faults);
    let first = finalists.next()?;
    let any_coarse = |faults: &Faults| faults.iter().any(|fault| coarse(fault));
    if any_coarse(&first) {
        finalists.find(|faults| !any_coarse(faults)).or(Some(first))
    } else {
        Some(first)
    }
}

/// Failing answers that a rule must hold for before a fault is named within it: there are thousands of rules with a fault, some of which
/// give two or three answers by chance (seen: three full masks of a batch with a short companion).
const FEWEST_WITHIN: usize = 4;

/// The fault that reproduces every answer to a call for which a rule holds, where the SPEC explains all others: the only one, coarse
/// sums apart. `seen` are answers that conform, and failures of one cause.
pub fn within(rule: &Rule, seen: &[&Observation], model: RoundingModel) -> Option<&'static Fault> {
    let inside: Vec<(&Observation, usize)> = seen
        .iter()
        .flat_map(|observation| (0..observation.answers.len()).map(|index| (*observation, index)))
        .filter(|(observation, index)| rule.holds(&Features::of(&observation.sequence, *index)))
        .collect();
    let gives = |behaviour: Behaviour, (observation, index): &(&Observation, usize)| {
        reproduces_call(behaviour, observation, *index, model)
    };
    if inside.iter().filter(|item| !gives(Behaviour::default(), item)).take(FEWEST_WITHIN).count()
        < FEWEST_WITHIN
    {
        return None;
    }
    let fits = |fault: &&'static Fault| inside.iter().all(|item| gives(fault.behaviour(), item));
    let fitting: Faults = CATALOGUE.par_iter().filter(|fault| !fault.conforms).filter(fits).collect();
    let exact: Faults = fitting.iter().copied().filter(|fault| !coarse(fault)).collect();
    match (exact.as_slice(), fitting.as_slice()) {
        ([one], _) | ([], [one]) => Some(one),
        _ => None,
    }
}

/// Whether sums are coarse: these reproduce many small errors, so exact faults are preferred.
fn coarse(fault: &Fault) -> bool {
    fault.behaviour().half_sums
}

/// Whether a set of faults reproduces everything.
pub fn explains(faults: &[&'static Fault], seen: &[Seen], model: RoundingModel) -> bool {
    let behaviour = Behaviour::with(faults.iter().copied());
    let fits = |seen: &&Seen| reproduces(behaviour, &seen.observation, model);
    // What diverges rules out more than what conforms.
    let (conforming, diverging): (Vec<&Seen>, Vec<&Seen>) = seen.iter().partition(|seen| seen.conforms);
    diverging.iter().all(fits) && conforming.par_iter().all(fits)
}

/// The faults of a set that one observation shows: those that cannot be left out, where they are enough; otherwise one or two
/// that reproduce it, or a set of which none can be left out.
pub fn shown_by(faults: &[&'static Fault], observation: &Observation, model: RoundingModel) -> Faults {
    let fits =
        |some: &[&'static Fault]| reproduces(Behaviour::with(some.iter().copied()), observation, model);
    let needed: Faults =
        faults.iter().copied().filter(|fault| needs(faults, fault, observation, model)).collect();
    if fits(&needed) {
        return needed;
    }
    if let Some(single) = faults.iter().find(|fault| fits(&[fault])) {
        return vec![single];
    }
    for (index, first) in faults.iter().enumerate() {
        for second in &faults[index + 1..] {
            if fits(&[first, second]) {
                return vec![first, second];
            }
        }
    }
    let mut needed = faults.to_vec();
    for fault in faults {
        let without: Faults = needed.iter().copied().filter(|other| other != fault).collect();
        if fits(&without) {
            needed = without;
        }
    }
    needed
}

/// Whether a set of faults needs this one to reproduce an observation that it reproduces.
pub fn needs(
    faults: &[&'static Fault],
    fault: &'static Fault,
    observation: &Observation,
    model: RoundingModel,
) -> bool {
    let others = faults.iter().copied().filter(|other| *other != fault);
    !reproduces(Behaviour::with(others), observation, model)
}

/// Other faults that explain everything just as well in place of one of a set: where there are some, more cases would have
/// to decide.
pub fn alternatives(
    faults: &[&'static Fault],
    fault: &'static Fault,
    seen: &[Seen],
    model: RoundingModel,
) -> Faults {
    let others: Vec<&'static Fault> = faults.iter().copied().filter(|other| *other != fault).collect();
    CATALOGUE
        .iter()
        .filter(|other| !other.conforms && !faults.contains(other) && !coarse(other))
        .filter(|other| seen.iter().any(|seen| !seen.conforms && other.asked.concerns(&seen.selection())))
        .filter(|other| explains(&with(&others, &[other]), seen, model))
        .collect()
}
