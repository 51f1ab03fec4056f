//! What a failure needs of what was asked before: earlier calls of its instance, another instance, or the same one again. It is
//! found by asking: the failing call alone, the sequence in a new process, the sequence after others. What it needs is kept with the
//! counterexample, so that it can be seen again.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::report::Finding;
use super::run::Run;
use crate::algorithm::{ChannelOrder, HeavySize};
use crate::cases::{Observation, Sequence};
use crate::runner::shrink::edge::Resized;
use crate::runner::shrink::reductions::{with_file, with_parts};
use crate::runner::shrink::{Limits, shrink};
use crate::subjects::ask;
use crate::verdicts::judge::{first_failure, judge_observation};

/// How often a sequence must fail after another one, and conform without it.
const AGREEING: usize = 3;

/// The most sequences tried as what came before, and for how long.
const MOST_EARLIER: usize = 8;
const MOST_TIME: Duration = Duration::from_secs(10);

/// Of longer histories only the beginning and the end are asked again.
const LONGEST_HISTORY: usize = 512;

/// Tries and time of making them smaller; each may start a new process.
const SHRINKING: (usize, Duration) = (60, Duration::from_secs(5));

/// What a failure needs.
#[derive(Debug, Clone, Serialize)]
pub struct Needs {
    /// In plain words; empty where it needs nothing.
    pub sentence: String,
    /// Whether it needs earlier calls of the same instance.
    pub earlier_calls: bool,
    /// How many instances have to be asked before.
    pub earlier_instances: usize,
    /// Whether that is the same sequence: it fails when it is asked again.
    pub repetition: bool,
    /// Whether it was asked in a new process.
    pub new_process: bool,
    /// The instances asked before, in order.
    #[serde(skip)]
    pub earlier: Vec<Sequence>,
}

impl Run<'_> {
    /// Finds what each finding needs.
    pub(super) fn find_states(&mut self) {
        let start = Instant::now();
        for index in 0..self.report.findings.len() {
            if self.limits().tries == 0 {
                return;
            }
            let state = self.state(index, start);
            let finding = &mut self.report.findings[index];
            if let Some(observation) = state.1 {
                finding.show(observation, self.report.model);
            }
            finding.state = Some(state.0);
        }
    }

    /// What a finding needs, and the observation that shows it where what was asked before matters.
    fn state(&mut self, index: usize, start: Instant) -> (Needs, Option<Observation>) {
        let finding = &self.report.findings[index];
        let sequence = finding.observation.sequence.clone();
        let (call, first_seen) = (finding.call, finding.first_seen.clone());
        let restarts = self.shapes.is_none() && self.subject.restart();
        let mut state = Needs {
            sentence: String::new(),
            earlier_calls: false,
            earlier_instances: 0,
            repetition: false,
            new_process: restarts,
            earlier: Vec::new(),
        };
        let mut observation = None;
        if restarts && self.failing(&sequence).is_none() {
            observation = self.after_an_earlier_one(&sequence, &first_seen, start, &mut state);
        } else if sequence.calls.len() > 1 {
            let alone = Sequence { calls: vec![sequence.calls[call].clone()], ..sequence.clone() };
            let conforms = self.capabilities.offers_all(&alone) && self.failing(&alone).is_none();
            state.earlier_calls = conforms;
            if conforms {
                state.sentence =
                    format!("Needs an earlier call of the instance: call {call} alone conforms.");
            }
        }
        (state, observation)
    }

    /// The observation, if it fails.
    fn failing(&mut self, sequence: &Sequence) -> Option<Observation> {
        let observation = ask(self.subject, sequence);
        first_failure(&judge_observation(&observation, self.report.model)).map(|_| observation)
    }

    /// Looks for what a sequence has to be asked after, where it conforms in a new process.
    fn after_an_earlier_one(
        &mut self,
        sequence: &Sequence,
        first_seen: &str,
        start: Instant,
        state: &mut Needs,
    ) -> Option<Observation> {
        let again = (1..AGREEING).any(|_| self.failing(sequence).is_some());
        if again {
            state.sentence = "Shows only when it is asked again in a new process.".into();
            state.repetition = true;
            state.earlier = vec![sequence.clone()];
            state.earlier_instances = 1;
            self.subject.restart();
            ask(self.subject, sequence);
            return self.failing(sequence);
        }
        let asked = self.suspects.earlier_than(first_seen, MOST_EARLIER);
        for earlier in like_it(sequence).into_iter().chain(asked) {
            if start.elapsed() > self.at_most(MOST_TIME) {
                break;
            }
            if !self.capabilities.offers_all(&earlier) {
                continue;
            }
            if let Some(observation) = self.fails_after(&earlier, sequence) {
                let earlier = self.smaller_earlier(earlier, sequence);
                state.sentence = NEEDS_EARLIER.into();
                state.earlier_instances = 1;
                state.earlier = vec![earlier];
                return Some(observation);
            }
        }
        let found = self.search_history(sequence, first_seen, start);
        state.sentence = match &found {
            Some(_) => NEEDS_EARLIER.into(),
            None => "In a new process it conforms, alone and after what was asked before: what it needs was not found.".into(),
        };
        let (earlier, observation) = found?;
        state.earlier_instances = earlier.len();
        state.earlier = earlier;
        Some(observation)
    }

    /// The sequence as it was before it was shrunk, or as it is, after as few as possible of those asked before it.
    fn search_history(
        &mut self,
        sequence: &Sequence,
        first_seen: &str,
        start: Instant,
    ) -> Option<(Vec<Sequence>, Observation)> {
        let mut earlier = self.suspects.all_before(first_seen);
        if earlier.len() > LONGEST_HISTORY {
            let left_out = LONGEST_HISTORY / 2..earlier.len() - LONGEST_HISTORY / 2;
            earlier.drain(left_out);
        }
        let original = self.suspects.first_of(first_seen).unwrap_or_else(|| sequence.clone());
        let shown = [sequence.clone(), original]
            .into_iter()
            .find(|sequence| self.fails_after_all(&earlier, sequence).is_some())?;
        let mut run = earlier.len() / 2;
        while run > 0 {
            let mut first = 0;
            while first < earlier.len() && start.elapsed() < 2 * self.at_most(MOST_TIME) {
                let mut fewer = earlier.clone();
                fewer.drain(first..(first + run).min(earlier.len()));
                if self.fails_after_all(&fewer, &shown).is_some() {
                    earlier = fewer;
                } else {
                    first += run;
                }
            }
            run /= 2;
        }
        let observation = self.fails_after_all(&earlier, &shown)?;
        Some((earlier, observation))
    }

    /// Whether a sequence fails after others, in a new process.
    fn fails_after_all(&mut self, earlier: &[Sequence], sequence: &Sequence) -> Option<Observation> {
        self.subject.restart();
        for earlier in earlier {
            ask(self.subject, earlier);
        }
        self.failing(sequence)
    }

    /// Whether a sequence fails after another one, in a new process where there is one.
    fn fails_after(&mut self, earlier: &Sequence, sequence: &Sequence) -> Option<Observation> {
        self.subject.restart();
        ask(self.subject, earlier);
        self.failing(sequence)
    }

    /// A smaller sequence after which the other one still fails.
    fn smaller_earlier(&mut self, earlier: Sequence, sequence: &Sequence) -> Sequence {
        let (tries, time) = SHRINKING;
        let limits = Limits { tries, time, ..self.limits() };
        let (subject, model) = (&mut *self.subject, self.report.model);
        let mut fails = |candidate: &Sequence| {
            subject.restart();
            ask(subject, candidate);
            let observation = ask(subject, sequence);
            first_failure(&judge_observation(&observation, model)).is_some()
        };
        shrink(earlier, limits, &self.capabilities, &mut fails).sequence
    }

    /// Adds a finding for a failure that does not always show, if it does so after the sequence asked before it, or when it is asked
    /// again, each time, and never otherwise.
    pub(super) fn find_earlier(&mut self, diverging: &Observation) -> bool {
        let sequence = &diverging.sequence;
        let recent: Vec<Sequence> = self.recent.iter().rev().cloned().collect();
        for earlier in recent {
            let always = (0..AGREEING)
                .all(|_| self.fails_after(&earlier, sequence).is_some() && self.failing(sequence).is_none());
            if always {
                self.add_needing(diverging, earlier, false);
                return true;
            }
        }
        let restarts = self.shapes.is_none() && self.subject.restart();
        let repeated = restarts
            && (0..AGREEING).all(|_| {
                self.subject.restart();
                self.failing(sequence).is_none() && self.failing(sequence).is_some()
            });
        if repeated {
            self.add_needing(diverging, sequence.clone(), true);
        }
        repeated
    }

    fn add_needing(&mut self, diverging: &Observation, earlier: Sequence, repetition: bool) {
        let model = self.report.model;
        let kind = first_failure(&judge_observation(diverging, model)).map_or("", |(_, kind)| kind);
        let number = self.announce(diverging, kind);
        let (sequence, tries, seconds, finished) =
            self.shrink_after(&diverging.sequence, &earlier, repetition);
        let earlier = if repetition { sequence.clone() } else { self.smaller_earlier(earlier, &sequence) };
        let observation = self.fails_after(&earlier, &sequence);
        let mut finding =
            Finding::new(observation.unwrap_or_else(|| diverging.clone()), self.asked, Vec::new(), model);
        finding.first_seen.clone_from(&diverging.sequence.name);
        finding.sentence = "Unknown: nothing in the catalogue knows of other instances.".into();
        finding.state = Some(Needs {
            sentence: if repetition {
                "Shows only when the same sequence is asked again.".into()
            } else {
                NEEDS_EARLIER.into()
            },
            earlier_calls: false,
            earlier_instances: 1,
            repetition,
            new_process: false,
            earlier: vec![earlier],
        });
        (finding.tries, finding.shrinking_seconds, finding.shrunk) = (tries, seconds, finished);
        (self.watch)(super::events::Event::Shrunk(number, &finding));
        self.apart.push(finding);
    }

    /// A smaller sequence that fails after the other one, and conforms after itself; or that fails after itself only.
    fn shrink_after(
        &mut self,
        sequence: &Sequence,
        earlier: &Sequence,
        repetition: bool,
    ) -> (Sequence, usize, f64, bool) {
        let (tries, time) = SHRINKING;
        let limits = self.limits();
        let limits = Limits { tries: (4 * tries).min(limits.tries), time: time.min(limits.time), ..limits };
        let (subject, model) = (&mut *self.subject, self.report.model);
        let mut fails = |candidate: &Sequence| {
            subject.restart();
            let mut conforms = |sequence: &Sequence| {
                first_failure(&judge_observation(&ask(subject, sequence), model)).is_none()
            };
            if repetition {
                return conforms(candidate) && !conforms(candidate);
            }
            conforms(earlier);
            !conforms(candidate) && conforms(candidate)
        };
        let shrunk = shrink(sequence.clone(), limits, &self.capabilities, &mut fails);
        self.has_shrunk(shrunk.seconds);
        (shrunk.sequence, shrunk.tries, shrunk.seconds, shrunk.finished)
    }
}

/// Sequences of the same shapes with other numbers, other channels, or another H: what is kept by shape or by layer is kept of them.
fn like_it(sequence: &Sequence) -> Vec<Sequence> {
    let numbers = with_parts(sequence, |parts| {
        parts.q.mapv_inplace(|x| -x);
        parts.v.mapv_inplace(|x| 1.0 - x);
    });
    let channels = with_file(sequence, |_, _, order| {
        let reversed = order.rows().iter().map(|row| row.iter().rev().copied().collect()).collect();
        ChannelOrder::new(reversed).ok()
    });
    let count = sequence.instance.selection.heavy_size.resolve(sequence.keys());
    let of_size = |count: usize| Some((HeavySize::count(count).ok()?, sequence.clone()));
    let sizes =
        [count + 1, count.saturating_sub(1)].into_iter().filter_map(of_size).map(|(size, mut changed)| {
            changed.instance.selection.heavy_size = size;
            changed
        });
    numbers.into_iter().chain(channels).chain(sizes).collect()
}

const NEEDS_EARLIER: &str = "Needs another instance before: without it the sequence conforms.";
