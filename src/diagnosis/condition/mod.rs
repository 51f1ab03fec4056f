//! Which calls fail: the shortest rule over the features of a call that separates those
//! that fail from those that conform. Every clause is necessary: no call that fails is outside of it. A call that a wrong
//! implementation gets wrong may conform by chance, so a rule is told as exact only where every call inside fails.

pub mod clause;
pub mod features;

use serde::Serialize;

use self::clause::Clause;
use self::features::Features;

/// At most this many clauses, the one that there is something to choose not counted.
const MOST_CLAUSES: usize = 3;

/// Clauses of which every three are tried: those that rule out most.
const MOST_TRIED: usize = 48;

/// What a clause costs, in bits: it must explain more of what conforms inside a rule than that.
const CLAUSE_COST: f64 = 8.0;

/// One call that was asked.
#[derive(Debug, Clone)]
pub struct Example {
    /// Its features.
    pub features: Features,
    /// Whether it fails; otherwise it conforms.
    pub fails: bool,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a call comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was asked in the run.
    Run,
    /// It was drawn at random to test a rule.
    Drawn,
    /// It was made to test a clause, of another call of which one thing was changed.
    Changed,
}

/// Clauses that all hold for every call that fails; none where failing calls have nothing in common that others lack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// In the order in which they are told.
    pub clauses: Vec<Clause>,
}

/// How many calls a rule holds for, those made for it not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that fail; all of them are inside.
    pub failing: usize,
    /// Calls inside that conform.
    pub conforming_inside: usize,
    /// Calls outside, all of which conform.
    pub outside: usize,
    /// Calls drawn or made to test the rule: none of those outside fails.
    pub made: usize,
    /// Those drawn that are inside and conform.
    pub made_conforming_inside: usize,
}

impl Rule {
    /// Whether all clauses hold.
    pub fn holds(&self, features: &Features) -> bool {
        self.clauses.iter().all(|clause| clause.holds(features))
    }

    /// Whether all clauses but one hold, and that one does not.
    pub fn misses_only(&self, missed: Clause, features: &Features) -> bool {
        self.clauses.iter().all(|clause| clause.holds(features) == (*clause != missed))
    }

    /// Without one clause.
    pub fn without(&self, left_out: Clause) -> Self {
        Self { clauses: self.clauses.iter().copied().filter(|clause| *clause != left_out).collect() }
    }

    /// Counts of what was asked.
    pub fn counts(&self, examples: &[Example]) -> Counts {
        let mut counts = Counts::default();
        for example in examples {
            let inside = self.holds(&example.features);
            *match (example.origin, example.fails, inside) {
                (Origin::Run, true, _) => &mut counts.failing,
                (Origin::Run, false, true) => &mut counts.conforming_inside,
                (Origin::Run, false, false) => &mut counts.outside,
                _ => &mut counts.made,
            } += 1;
            counts.made_conforming_inside +=
                usize::from(example.origin == Origin::Drawn && !example.fails && inside);
        }
        counts
    }

    /// The rule that costs least: that there is something to choose, where every failing call has that, and up to three clauses.
    /// `refused` are clauses that did not stand.
    pub fn shortest(examples: &[Example], refused: &[Clause]) -> Self {
        let (failing, conforming): (Vec<&Example>, Vec<&Example>) =
            examples.iter().partition(|example| example.fails);
        let failing: Vec<&Features> = failing.iter().map(|example| &example.features).collect();
        if failing.is_empty() {
            return Self::default();
        }
        let mut clauses = Clause::all_of(&failing);
        clauses.retain(|clause| !refused.contains(clause));
        let mut base = Vec::new();
        if clauses.contains(&Clause::SELECTS) {
            base.push(Clause::SELECTS);
        }
        let inside: Vec<&Features> = conforming
            .iter()
            .map(|example| &example.features)
            .filter(|features| base.iter().all(|clause| clause.holds(features)))
            .collect();
        let mut distinct = distinct(clauses, &inside);
        distinct.sort_by_key(|(_, bits)| count(bits));
        distinct.truncate(MOST_TRIED);
        let mut chosen = cheapest(&distinct, failing.len(), inside.len());
        chosen.sort();
        base.extend(chosen);
        Self { clauses: base }
    }
}

/// A clause and the conforming calls for which it holds, as bits.
type Bits = (Clause, Vec<u64>);

/// Clauses that rule something out, one of each that rule out the same: the first.
fn distinct(clauses: Vec<Clause>, conforming: &[&Features]) -> Vec<Bits> {
    let mut distinct: Vec<Bits> = Vec::new();
    for clause in clauses {
        let mut bits = vec![0u64; conforming.len().div_ceil(64)];
        for (index, features) in conforming.iter().enumerate() {
            bits[index / 64] |= u64::from(clause.holds(features)) << (index % 64);
        }
        let rules_out = count(&bits) < conforming.len();
        if rules_out && !distinct.iter().any(|(_, other)| *other == bits) {
            distinct.push((clause, bits));
        }
    }
    distinct
}

fn count(bits: &[u64]) -> usize {
    bits.iter().map(|word| word.count_ones() as usize).sum()
}

/// The clauses of least cost: the bits that it takes to say which calls inside fail, and so many for each clause.
fn cheapest(clauses: &[Bits], failing: usize, conforming: usize) -> Vec<Clause> {
    let cost =
        |inside: usize, clauses: usize| entropy(failing as f64, inside as f64) + CLAUSE_COST * clauses as f64;
    let mut best = (cost(conforming, 0), Vec::new());
    let mut open: Vec<(Vec<usize>, Vec<u64>)> = vec![(Vec::new(), vec![u64::MAX; conforming.div_ceil(64)])];
    for size in 1..=MOST_CLAUSES {
        let is_last = size == MOST_CLAUSES;
        let mut wider = Vec::new();
        for (chosen, inside) in &open {
            let first = chosen.last().map_or(0, |last| last + 1);
            for (index, (_, bits)) in clauses.iter().enumerate().skip(first) {
                let both = inside.iter().zip(bits).map(|(a, b)| (a & b).count_ones() as usize).sum();
                let chosen = || chosen.iter().copied().chain([index]).collect();
                let cost = cost(both, size);
                if cost < best.0 {
                    best = (cost, chosen());
                }
                if !is_last {
                    wider.push((chosen(), inside.iter().zip(bits).map(|(a, b)| a & b).collect()));
                }
            }
        }
        open = wider;
    }
    best.1.into_iter().map(|index| clauses[index].0).collect()
}

/// Bits to say which of so many are of which kind.
fn entropy(failing: f64, conforming: f64) -> f64 {
    let part = |count: f64| if count > 0.0 { count * ((failing + conforming) / count).log2() } else { 0.0 };
    part(failing) + part(conforming)
}

/// A rule as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// In plain words, with counts.
    pub sentence: String,
    /// The clauses: "n > 64", "n mod 64 ≠ 0".
    pub clauses: Vec<String>,
    /// Whether every call inside fails, not only none outside.
    pub exact: bool,
    /// Calls that fail.
    pub failing: usize,
    /// Calls for which all clauses hold.
    pub inside: usize,
    /// All other calls; none of them fails.
    pub outside: usize,
    /// Calls that were made to test it, not counted above. None refutes it.
    pub tested: usize,
}

impl Condition {
    /// A rule with its counts; `None` where it says nothing: some calls fail, of those that select.
    pub(crate) fn of(rule: &Rule, examples: &[Example]) -> Option<Self> {
        let counts = rule.counts(examples);
        let Counts { failing, conforming_inside, outside, made, made_conforming_inside } = counts;
        let exact = conforming_inside + made_conforming_inside == 0;
        let is_trivial = rule.clauses.iter().all(|clause| *clause == Clause::SELECTS);
        if failing == 0 || (is_trivial && !exact) {
            return None;
        }
        let inside = failing + conforming_inside;
        let clauses: Vec<String> = rule.clauses.iter().map(ToString::to_string).collect();
        let with = in_words(&clauses);
        let mut sentence = match (clauses.is_empty(), exact) {
            (true, _) => format!("Fails in each of the {} asked", calls(failing)),
            (false, true) => {
                format!("Fails in {failing} of {} with {with}, in 0 of {outside} others", calls(inside))
            }
            (false, false) => {
                format!(
                    "Fails only with {with}: in {failing} of {inside} such calls, in 0 of {outside} others"
                )
            }
        };
        sentence.push('.');
        Some(Self { sentence, clauses, exact, failing, inside, outside, tested: made })
    }
}

fn calls(count: usize) -> String {
    if count == 1 { "1 call".into() } else { format!("{count} calls") }
}

/// "a, b and c"
fn in_words(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
