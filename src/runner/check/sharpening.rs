//! What the answers kept leave open is asked for: where several causes reproduce them all, or one of which it is not certain where
//! it acts, the smallest failing sequences are asked again with one thing changed, and random ones beside them. The answers are
//! kept like all others, and causes are sought anew.

use std::time::{Duration, Instant};

use super::Options;
use super::draws::Draws;
use super::report::Size;
use super::run::Run;
use crate::cases::{Observation, Sequence};
use crate::diagnosis::condition::clause::Clause;
use crate::diagnosis::condition::features::{Choice, Features, Number, Trait};
use crate::runner::shrink::Limits;
use crate::runner::shrink::changes::against;
use crate::subjects::ask;
use crate::verdicts::judge::{first_failure, judge_observation};

/// Failing sequences of which one thing is changed.
const PARENTS: usize = 8;

/// Changed sequences asked for each of them.
const CHANGED: usize = 48;

/// Random sequences.
const DRAWN: usize = 240;

/// The most time that one round takes.
const MOST_TIME: Duration = Duration::from_secs(5);

impl Run<'_> {
    /// Asks more for round `round`; whether anything was asked.
    pub(super) fn sharpen(&mut self, round: u64) -> bool {
        let limits = self.limits();
        if limits.tries == 0 || self.shapes.is_some() || !self.suspects.may_name() {
            return false;
        }
        let limits = Limits { time: self.at_most(limits.time.min(MOST_TIME)), ..limits };
        let start = Instant::now();
        let options = Options { seed: !self.report.seed ^ (round << 32), ..Options::default() };
        let mut draws = Draws::new(&self.capabilities, &options);
        let random = std::iter::from_fn(|| draws.small()).take(DRAWN);
        // One of each in turn, so that neither takes all the time.
        let mut changed = self.changed().into_iter();
        let mut asked = 0;
        for drawn in random {
            for sequence in changed.by_ref().take(2).chain([drawn]) {
                if limits.exhausted(start, asked) {
                    return asked > 0;
                }
                asked += usize::from(self.ask_and_keep(&sequence));
            }
        }
        for sequence in changed {
            if limits.exhausted(start, asked) {
                break;
            }
            asked += usize::from(self.ask_and_keep(&sequence));
        }
        asked > 0
    }

    /// The smallest failing sequences with one thing changed in each.
    fn changed(&self) -> Vec<Sequence> {
        let mut failing: Vec<&Observation> = self.suspects.failing().collect();
        failing.sort_by_key(|observation| Size::of(&observation.sequence).numbers());
        let mut all = Vec::new();
        for observation in failing.into_iter().take(PARENTS) {
            let verdicts = judge_observation(observation, self.report.model);
            let Some((index, _)) = first_failure(&verdicts) else { continue };
            let sequence = &observation.sequence;
            let changed: Vec<Sequence> = clauses(&Features::of(sequence, index))
                .into_iter()
                .flat_map(|clause| against(sequence, index, clause))
                .filter(|sequence| self.capabilities.offers_all(sequence))
                .collect();
            let step = changed.len().div_ceil(CHANGED).max(1);
            all.extend(changed.into_iter().step_by(step));
        }
        all
    }

    /// Asks a sequence and keeps the answers, unless a declared fault reproduces what fails; whether they were kept.
    fn ask_and_keep(&mut self, sequence: &Sequence) -> bool {
        let observation = ask(self.subject, sequence);
        let conforms = first_failure(&judge_observation(&observation, self.report.model)).is_none();
        if !conforms && self.suspects.declare(&observation) {
            return false;
        }
        self.suspects.keep_evidence(observation, conforms, self.asked);
        true
    }
}

/// What may be changed in a call: each number, trait and choice that it has.
fn clauses(features: &Features) -> Vec<Clause> {
    let numbers = Number::ALL.into_iter();
    let numbers = numbers.filter_map(|of| features.number(of).map(|value| Clause::Equal(of, value)));
    let traits = Trait::ALL.into_iter().map(|of| Clause::Has(of, features.has(of)));
    let choices = Choice::ALL.into_iter().map(|of| Clause::Is(of, features.choice(of)));
    numbers.chain(traits).chain(choices).collect()
}
