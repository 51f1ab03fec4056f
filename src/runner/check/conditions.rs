//! Under which condition a finding shows: the features of every call that was asked are kept, the shortest rule over them is
//! found, and each of its clauses is tested by new sequences: counterexamples of which one thing is changed, and random ones that
//! fit all other clauses. A clause that one of them refutes is gone; one that is neither refuted nor supported is not told.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::Options;
use super::draws::{Draws, LargeDraws};
use super::report::{Finding, Size};
use super::run::Run;
use super::suspects::Suspects;
use crate::cases::{Capabilities, Observation, RoundingModel, Sequence};
use crate::diagnosis::Faults;
use crate::diagnosis::condition::clause::Clause;
use crate::diagnosis::condition::features::Features;
use crate::diagnosis::condition::{Condition, Example, Origin, Rule};
use crate::runner::shrink::Limits;
use crate::runner::shrink::changes::against;
use crate::subjects::{Subject, ask};
use crate::verdicts::Verdict;
use crate::verdicts::judge::{first_failure, judge_observation};

/// How often a rule is revised.
const MOST_ROUNDS: usize = 12;

/// The most questions that are asked for one finding.
const MOST_ASKED: usize = 320;

/// Their share of the time in which a finding may be shrunk: one part in so many.
const SHARE_OF_TIME: u32 = 8;

/// Failing sequences of which one thing is changed: the counterexample, and some of the others.
const PARENTS: usize = 6;

/// Changed sequences that are asked for one clause.
const CHANGED: usize = 36;

/// Random sequences that are drawn for one finding, small ones and large ones, of which those are asked that a clause needs.
const POOL: (usize, usize) = (400, 16);

/// How many of them are asked for one clause, and as many for the rule as it is.
const DRAWN: usize = 24;

/// The most keys of these.
const LARGE_KEYS: usize = 2048;

/// How many sequences that conform are kept, by the features of their calls: about 1 KB each.
const MOST_CONFORMING: usize = 1 << 15;

/// Random sequences have at most so many keys.
const SMALL_KEYS: usize = 40;

/// A clause stands where so many failures would have been expected without it and none was seen. If clauses are tried by the
/// hundred, one in ten rules would hold one by chance: e⁻⁷ · 100.
const EXPECTED_FAILURES: f64 = 7.0;

/// Changed sequences resemble one another: they count for at most so many of these.
const MOST_OF_CHANGED: usize = 6;

/// The features of calls that were asked, and what came of them. Of sequences that conform every one is kept, then every second,
/// every fourth and so on, and never more than [`MOST_CONFORMING`]: as many are enough to refute a rule.
pub(super) struct AskedCalls {
    asked: Vec<AskedSequence>,
    /// How many of them conform.
    conforming: usize,
    /// Of so many that conform one is kept.
    stride: usize,
    /// How many that conform were left out since the last that was kept.
    left_out: usize,
    /// Whether the last one that was asked is among them.
    has_last: bool,
}

impl Default for AskedCalls {
    fn default() -> Self {
        Self { asked: Vec::new(), conforming: 0, stride: 1, left_out: 0, has_last: false }
    }
}

struct AskedSequence {
    calls: Vec<(Features, Option<&'static str>)>,
    /// Its number among the observations kept, where it fails and was kept.
    kept: Option<usize>,
}

impl AskedCalls {
    pub(super) fn add(&mut self, sequence: &Sequence, verdicts: &[Verdict]) {
        let calls = verdicts.iter().enumerate();
        let conforms = verdicts.iter().all(|verdict| verdict.kind().is_none());
        self.has_last = !conforms || self.left_out + 1 >= self.stride;
        if !self.has_last {
            self.left_out += 1;
            return;
        }
        let calls = calls.map(|(index, verdict)| (Features::of(sequence, index), verdict.kind())).collect();
        self.asked.push(AskedSequence { calls, kept: None });
        if conforms {
            (self.conforming, self.left_out) = (self.conforming + 1, 0);
            if self.conforming > MOST_CONFORMING {
                self.thin();
            }
        }
    }

    /// Leaves out every second one that conforms; never the last.
    fn thin(&mut self) {
        let mut of_pair = self.conforming % 2;
        self.asked.retain(|asked| {
            let conforms = asked.calls.iter().all(|(_, kind)| kind.is_none());
            of_pair += usize::from(conforms);
            !conforms || of_pair.is_multiple_of(2)
        });
        self.conforming = self.conforming.div_ceil(2);
        self.stride *= 2;
    }

    /// Notes where the last sequence was kept.
    pub(super) fn note_kept(&mut self, kept: usize) {
        if let Some(last) = self.asked.last_mut().filter(|_| self.has_last) {
            last.kept = Some(kept);
        }
    }

    /// Each call that conforms, and each that fails for this cause; `alone` says that every failure does.
    fn examples(&self, cause: &Cause, suspects: &Suspects, alone: bool) -> Vec<Example> {
        let of_sequence = |asked: &AskedSequence| {
            let caused = asked.kept.map_or(alone, |kept| cause.shows(suspects.observation(kept), suspects));
            let example = |(features, kind): &(Features, Option<&'static str>)| {
                let fails = match kind {
                    None => false,
                    Some(kind) if caused && cause.is_of(kind) => true,
                    Some(_) => return None,
                };
                Some(Example { features: features.clone(), fails, origin: Origin::Run })
            };
            asked.calls.iter().filter_map(example).collect::<Vec<_>>()
        };
        self.asked.par_iter().flat_map_iter(of_sequence).collect()
    }

    /// Failing observations of this cause, by their numbers among those kept.
    fn failing<'a>(&'a self, cause: &'a Cause, suspects: &'a Suspects) -> Vec<&'a Observation> {
        let fails = |asked: &&AskedSequence| {
            asked.calls.iter().any(|(_, kind)| kind.is_some_and(|kind| cause.is_of(kind)))
        };
        let kept = self.asked.iter().filter(fails).filter_map(|asked| asked.kept);
        kept.map(|kept| suspects.observation(kept)).collect()
    }
}

/// What a finding is about.
#[derive(Clone)]
pub(super) struct Cause {
    kinds: Vec<&'static str>,
    faults: Faults,
}

impl Cause {
    pub(super) fn of(finding: &Finding) -> Self {
        let others = finding.more.iter().map(|like| like.kind);
        Self { kinds: others.chain([finding.kind]).collect(), faults: finding.faults.clone() }
    }

    /// A named fault may show in any way.
    fn is_of(&self, kind: &str) -> bool {
        !self.faults.is_empty() || self.kinds.contains(&kind)
    }

    /// Whether a failure is of this cause.
    fn shows(&self, observation: &Observation, suspects: &Suspects) -> bool {
        suspects.shows(&self.faults, observation)
    }
}

impl Run<'_> {
    /// Finds the condition of each finding.
    pub(super) fn find_conditions(&mut self) {
        // With several causes, what fails for one of them is known too roughly for a rule, and a named one needs none.
        let several = self.report.findings.len() > 1;
        for index in 0..self.report.findings.len() {
            let finding = &self.report.findings[index];
            if several && !finding.diagnosis.is_empty() {
                continue;
            }
            let cause = Cause::of(finding);
            let (rule, condition) = self.condition(&cause, &finding.observation.clone());
            self.report.findings[index].condition = condition;
            self.name_within(index, &cause, &rule);
        }
    }

    /// Names the fault of the catalogue that explains what is unknown so far, where it acts under a condition only.
    fn name_within(&mut self, index: usize, cause: &Cause, rule: &Rule) {
        let conditions: Vec<String> = rule
            .clauses
            .iter()
            .filter(|clause| **clause != Clause::SELECTS)
            .map(ToString::to_string)
            .collect();
        let finding = &self.report.findings[index];
        if conditions.is_empty() || !cause.faults.is_empty() || finding.wider_model.is_some() {
            return;
        }
        let is_shown = |observation: &Observation| {
            let kind = first_failure(&judge_observation(observation, self.report.model));
            kind.is_some_and(|(_, kind)| cause.is_of(kind)) && cause.shows(observation, &self.suspects)
        };
        if let Some(fault) = self.suspects.within(rule, is_shown) {
            let finding = &mut self.report.findings[index];
            let conditions = conditions.join(" and ");
            finding.sentence =
                format!("{} ({}, {}) Only with {conditions}.", fault.sentence, fault.name, fault.row);
            (finding.diagnosis, finding.rows) = (vec![fault.name], vec![fault.row]);
        }
    }

    /// The rule that what was asked suggests for a finding, as far as that alone supports it.
    pub(super) fn suggested(&mut self, finding: &Finding) -> Rule {
        let cause = Cause::of(finding);
        let examples = self.asked_calls.examples(&cause, &self.suspects, false);
        let rule = Rule::shortest(&examples, &[]);
        let stands = |clause: &Clause| expected_failures(&rule, *clause, &examples) >= EXPECTED_FAILURES;
        Rule { clauses: rule.clauses.iter().copied().filter(stands).collect() }
    }

    fn condition(&mut self, cause: &Cause, counterexample: &Observation) -> (Rule, Option<Condition>) {
        let alone = self.report.findings.len() == 1 && self.apart.is_empty();
        let examples = self.asked_calls.examples(cause, &self.suspects, alone);
        let mut failing = self.asked_calls.failing(cause, &self.suspects);
        failing.sort_by_key(|observation| Size::of(&observation.sequence).numbers());
        let shown = failing.into_iter().filter(|observation| cause.shows(observation, &self.suspects));
        let parents = [counterexample].into_iter().chain(shown).take(PARENTS).cloned().collect();
        let limits = self.limits();
        let may_ask = self.shapes.is_none() && limits.tries > 0;
        let options = Options {
            seed: !self.report.seed,
            largest_keys: LARGE_KEYS.min(self.capabilities.largest_keys.unwrap_or(LARGE_KEYS)),
            ..Options::default()
        };
        let mut test = Test {
            subject: &mut *self.subject,
            capabilities: &self.capabilities,
            suspects: &self.suspects,
            model: self.report.model,
            cause,
            examples,
            parents,
            limits: Limits {
                time: if may_ask { limits.time / SHARE_OF_TIME } else { Duration::ZERO },
                tries: if may_ask { MOST_ASKED } else { 0 },
                ..limits
            },
            start: Instant::now(),
            asked: 0,
            pool: Vec::new(),
        };
        if may_ask {
            test.draw(&options);
            test.start = Instant::now();
        }
        test.add_counterexample(counterexample);
        let rule = test.settle();
        let condition = Condition::of(&rule, &test.examples);
        (rule, condition)
    }
}

/// A rule under test.
struct Test<'a> {
    subject: &'a mut dyn Subject,
    capabilities: &'a Capabilities,
    suspects: &'a Suspects,
    model: RoundingModel,
    cause: &'a Cause,
    examples: Vec<Example>,
    parents: Vec<Observation>,
    limits: Limits,
    start: Instant,
    asked: usize,
    /// Random sequences that were not asked yet, with the features of their calls.
    pool: Vec<(Sequence, Vec<Features>)>,
}

impl Test<'_> {
    /// The counterexample is the smallest that fails: it rules out most of what failing calls share by chance.
    fn add_counterexample(&mut self, observation: &Observation) {
        let verdicts = judge_observation(observation, self.model);
        self.add(observation, &verdicts, Origin::Changed);
    }

    /// Revises the rule until every clause was tested and none is refuted.
    fn settle(&mut self) -> Rule {
        let (mut tested, mut refused): (Vec<Clause>, Vec<Clause>) = (Vec::new(), Vec::new());
        for _ in 0..MOST_ROUNDS {
            let rule = Rule::shortest(&self.examples, &refused);
            let untested =
                rule.clauses.iter().copied().filter(|clause| !is_known(tested.as_slice(), *clause));
            let untested: Vec<Clause> = untested.collect();
            if untested.is_empty() {
                return self.standing(rule);
            }
            for clause in untested {
                self.test(&rule, clause);
                tested.push(clause);
            }
            let rule = Rule::shortest(&self.examples, &refused);
            let fallen = rule.clauses.iter().copied().filter(|clause| {
                *clause != Clause::SELECTS && tested.contains(clause) && !self.stands(&rule, *clause)
            });
            refused.extend(fallen.collect::<Vec<_>>());
        }
        let rule = Rule::shortest(&self.examples, &refused);
        let clauses = rule.clauses.iter().copied().filter(|clause| is_known(tested.as_slice(), *clause));
        self.standing(Rule { clauses: clauses.collect() })
    }

    /// The rule with those of its clauses that stand.
    fn standing(&self, rule: Rule) -> Rule {
        let stands = |clause: &Clause| *clause == Clause::SELECTS || self.stands(&rule, *clause);
        Rule { clauses: rule.clauses.iter().copied().filter(stands).collect() }
    }

    /// Whether without this clause failures would have been expected where none is.
    fn stands(&self, rule: &Rule, clause: Clause) -> bool {
        expected_failures(rule, clause, &self.examples) >= EXPECTED_FAILURES
    }

    /// Asks what would refute a clause: what fits all other clauses.
    fn test(&mut self, rule: &Rule, clause: Clause) {
        let rest = rule.without(clause);
        let mut changed = Vec::new();
        for parent in self.parents.clone() {
            let verdicts = judge_observation(&parent, self.model);
            let Some((index, _)) = first_failure(&verdicts) else { continue };
            changed.extend(against(&parent.sequence, index, clause));
        }
        for sequence in spread(changed, CHANGED) {
            self.question(&sequence, Origin::Changed);
        }
        for inside in [false, true] {
            let fits = |features: &Features| rest.holds(features) && clause.holds(features) == inside;
            let mut wanted = DRAWN;
            let (asked, kept) = std::mem::take(&mut self.pool).into_iter().partition(|(_, features)| {
                let is_asked = wanted > 0 && features.iter().any(fits);
                wanted -= usize::from(is_asked);
                is_asked
            });
            self.pool = kept;
            let asked: Vec<(Sequence, Vec<Features>)> = asked;
            asked.iter().for_each(|(sequence, _)| self.question(sequence, Origin::Drawn));
        }
    }

    /// Draws random sequences, larger ones first.
    fn draw(&mut self, options: &Options) {
        let mut draws = Draws::new(self.capabilities, options);
        let mut sizes = LargeDraws::new((SMALL_KEYS + 1, options.largest_keys), None);
        let large = (0..POOL.1).filter_map(|_| draws.try_large(&mut sizes)).collect::<Vec<_>>();
        let small = std::iter::from_fn(|| draws.small()).take(POOL.0);
        let with_features = |sequence: Sequence| {
            let features = (0..sequence.calls.len()).map(|index| Features::of(&sequence, index)).collect();
            (sequence, features)
        };
        self.pool = large.into_iter().chain(small).map(with_features).collect();
    }

    fn is_over(&self) -> bool {
        self.limits.exhausted(self.start, self.asked)
    }

    fn question(&mut self, sequence: &Sequence, origin: Origin) {
        if self.is_over() || !self.capabilities.offers_all(sequence) {
            return;
        }
        self.asked += 1;
        let observation = ask(self.subject, sequence);
        let verdicts = judge_observation(&observation, self.model);
        self.add(&observation, &verdicts, origin);
    }

    /// Adds each call that conforms or fails for this cause.
    fn add(&mut self, observation: &Observation, verdicts: &[Verdict], origin: Origin) {
        let fails = first_failure(verdicts).is_some();
        let caused = fails && self.cause.shows(observation, self.suspects);
        for (index, verdict) in verdicts.iter().enumerate() {
            let is_example = verdict.kind().is_none_or(|kind| caused && self.cause.is_of(kind));
            if is_example {
                let features = Features::of(&observation.sequence, index);
                self.examples.push(Example { features, fails: !verdict.conforms(), origin });
            }
        }
    }
}

fn is_known(tested: &[Clause], clause: Clause) -> bool {
    clause == Clause::SELECTS || tested.contains(&clause)
}

/// At most so many of a list, from all of it.
fn spread<T>(list: Vec<T>, most: usize) -> Vec<T> {
    let step = list.len().div_ceil(most).max(1);
    list.into_iter().step_by(step).collect()
}

/// The rule that what was asked supports, without new questions.
pub(super) fn supported(examples: &[Example]) -> Rule {
    let rule = Rule::shortest(examples, &[]);
    let stands = |clause: &Clause| {
        *clause == Clause::SELECTS || expected_failures(&rule, *clause, examples) >= EXPECTED_FAILURES
    };
    Rule { clauses: rule.clauses.iter().copied().filter(stands).collect() }
}

/// How many failures one would expect among calls for which all other clauses hold, and not this one, if it did not matter.
fn expected_failures(rule: &Rule, clause: Clause, examples: &[Example]) -> f64 {
    let counts = rule.counts(examples);
    let rate = counts.failing as f64 / (counts.failing + counts.conforming_inside).max(1) as f64;
    let beside = |example: &&Example| !example.fails && rule.misses_only(clause, &example.features);
    let (changed, random): (Vec<_>, Vec<_>) =
        examples.iter().filter(beside).partition(|example| example.origin == Origin::Changed);
    random.len() as f64 * rate + changed.len().min(MOST_OF_CHANGED) as f64
}
