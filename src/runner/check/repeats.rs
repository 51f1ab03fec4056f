//! The same question again. A small share of sequences is asked again at once, and a smaller one again after others;
//! `Options::repeat` sets how often each is asked. What diverges only sometimes is a finding of its own kind: it has a rate, no
//! cause in the catalogue, and is not shrunk as if each try decided.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::differences::{differences, of_all_rows, same};
use super::events::Event;
use super::grouping::count_with;
use super::report::Finding;
use super::run::Run;
use crate::cases::{Observation, Promise, Sequence};
use crate::runner::shrink::{Limits, shrink};
use crate::subjects::{Subject, ask};
use crate::verdicts::judge::{first_failure, judge_observation};

/// The kind of finding for a subject that answers differently when asked again.
pub(super) const NOT_REPEATABLE: &str = "not repeatable";

/// One sequence in this many is asked again at once.
const AT_ONCE: usize = 16;

/// One sequence in this many is asked again after some others.
const LATER: usize = 32;

/// How many others.
const OTHERS: usize = 8;

/// Before a failure counts as one that always shows, its sequence is asked this many more times.
const BEFORE_SHRINKING: usize = 4;

/// How often the sequence of a finding is asked to learn its rate, and for how long at most.
const FOR_THE_RATE: (usize, Duration) = (240, Duration::from_secs(10));

/// Tries of shrinking, each of which asks several times.
const MOST_TRIES: usize = 80;

/// The most times that one try asks.
const MOST_ASKED: usize = 64;

/// How repeats went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeats {
    /// How many there were.
    pub asked: usize,
    /// How many of them diverged.
    pub diverged: usize,
    /// How many of them differ from the first answer in some bit.
    pub differed: usize,
}

/// How one sequence fares when asked many times.
struct Rate {
    repeats: Repeats,
    conforming: Option<Observation>,
    diverging: Option<Observation>,
}

impl Run<'_> {
    /// Asks a conforming sequence again, where it is its turn.
    pub(super) fn ask_again(&mut self, observation: &Observation) {
        for _ in 1..self.repeat {
            self.once_more(observation);
        }
        if self.repeat < 2 && self.asked % AT_ONCE == AT_ONCE / 2 {
            self.once_more(observation);
        }
        if self.asked % LATER == LATER - 1 && self.waiting.is_none() {
            self.waiting = Some((self.asked + OTHERS, observation.clone()));
        }
    }

    /// Whether the answers to this sequence are needed again.
    pub(super) fn is_asked_again(&self) -> bool {
        self.repeat > 1 || self.asked % AT_ONCE == AT_ONCE / 2 || self.asked % LATER == LATER - 1
    }

    /// Asks what has waited for others to be asked, if that was long enough ago or nothing else is to come.
    pub(super) fn ask_waiting(&mut self, at_the_end: bool) {
        let due = self.waiting.take_if(|(due, _)| at_the_end || *due <= self.asked);
        if let Some((_, observation)) = due {
            self.once_more(&observation);
        }
    }

    fn once_more(&mut self, first: &Observation) {
        let second = ask(self.subject, &first.sequence);
        self.report.repeats.asked += 1;
        let same = same(&first.answers, &second.answers);
        self.observe(Promise::Repeatable, usize::from(same), 1);
        if same {
            return;
        }
        self.report.repeats.differed += 1;
        let diverges = first_failure(&judge_observation(&second, self.report.model)).is_some();
        self.report.repeats.diverged += usize::from(diverges);
        if diverges || self.capabilities.promises(Promise::Repeatable) {
            self.not_repeatable(Some(first.clone()), second);
        }
    }

    /// Whether a sequence that diverged conforms when it is asked again: then it is a finding that is not repeatable.
    pub(super) fn diverges_sometimes(&mut self, diverging: &Observation, kind: &'static str) -> bool {
        let known =
            self.apart.iter().any(|finding| finding.kind == NOT_REPEATABLE || finding.needs_earlier());
        let unknown = |finding: &Finding| finding.kind == kind && finding.faults.is_empty();
        // A kind of failure that nothing explained before is not asked again each time.
        if !known && self.report.findings.iter().any(unknown) {
            return false;
        }
        for _ in 0..BEFORE_SHRINKING {
            let again = ask(self.subject, &diverging.sequence);
            if first_failure(&judge_observation(&again, self.report.model)).is_none() {
                self.not_repeatable(Some(again), diverging.clone());
                return true;
            }
        }
        false
    }

    /// Adds a finding, or counts another sequence that shows it. `conforming` and `other` are answers to one sequence.
    pub(super) fn not_repeatable(&mut self, conforming: Option<Observation>, other: Observation) {
        let known = |finding: &&mut Finding| finding.kind == NOT_REPEATABLE || finding.needs_earlier();
        if let Some(finding) = self.apart.iter_mut().find(known) {
            finding.sequences += 1;
            return;
        }
        self.think(|run| {
            if !run.find_earlier(&other) {
                run.tell_not_repeatable(conforming, other);
            }
        });
    }

    fn tell_not_repeatable(&mut self, conforming: Option<Observation>, other: Observation) {
        let number = self.announce(&other, NOT_REPEATABLE);
        let model = self.report.model;
        let promised = self.capabilities.promises(Promise::Repeatable);
        let after = self.asked;
        let first_seen = other.sequence.name.clone();
        let rate = self.rate(conforming.as_ref().unwrap_or(&other), FOR_THE_RATE.0);
        let both = conforming.as_ref().or(rate.conforming.as_ref());
        let rows = both.and_then(|one| of_all_rows(&one.answers, &other.answers));
        let rows = rows.map(|rows| format!(" There {rows}.")).unwrap_or_default();
        let (sequence, tries, seconds, finished) = self.shrink_repeated(&other.sequence, &rate);
        // The small sequence, unless it does not show both answers.
        let smaller = (sequence != other.sequence).then(|| {
            let first = ask(self.subject, &sequence);
            self.rate(&first, FOR_THE_RATE.0)
        });
        let (rate, conforming, other) = match smaller {
            Some(Rate { repeats, conforming: Some(one), diverging: Some(other) }) => {
                (repeats, Some(one), other)
            }
            _ => (rate.repeats, conforming.or(rate.conforming), other),
        };
        let mut finding = Finding::new(other.clone(), after, Vec::new(), model);
        let differ = conforming.as_ref().and_then(|one| differences(&one.answers, &other.answers));
        let (call, lines) = differ.unwrap_or((0, Vec::new()));
        finding.first_seen = first_seen;
        finding.kind = NOT_REPEATABLE;
        finding.call = first_failure(&judge_observation(&other, model)).map_or(call, |(call, _)| call);
        let diverges = judge_observation(&other, model).iter().any(|verdict| !verdict.conforms());
        if !diverges {
            finding.explanations.clear();
        }
        finding.explanations.extend(lines.into_iter().map(|line| format!("asked again: {line}")));
        let broken = if promised { "; it promises that its answers are repeatable" } else { "" };
        finding.sentence = format!(
            "Not repeatable: asked again, the same sequence diverged in {} of {} repeats, and differed in {}{broken}.{rows}",
            rate.diverged, rate.asked, rate.differed
        );
        finding.other = conforming;
        finding.repeats = Some(rate);
        (finding.tries, finding.shrinking_seconds, finding.shrunk) = (tries, seconds, finished);
        (self.watch)(Event::Shrunk(number, &finding));
        self.apart.push(finding);
    }

    /// Asks a sequence many times; answers are compared with `first`.
    fn rate(&mut self, first: &Observation, most: usize) -> Rate {
        rate(self.subject, first, self.report.model, most, self.capabilities.promises(Promise::Repeatable))
    }

    /// Where something is not repeatable: failures that conform when they are asked again are counted with it.
    pub(super) fn fold_into_unrepeatable(&mut self) {
        let Some(place) = self.apart.iter().position(|finding| finding.kind == NOT_REPEATABLE) else {
            return;
        };
        let findings = std::mem::take(&mut self.report.findings);
        for finding in findings {
            let unknown = finding.faults.is_empty() && finding.wider_model.is_none();
            if unknown && self.rate(&finding.observation, MOST_ASKED).conforming.is_some() {
                count_with(&mut self.apart[place], finding);
            } else {
                self.report.findings.push(finding);
            }
        }
    }

    /// A smaller sequence of which some answers conform and others do not. Each try asks often enough for a failure of
    /// the rate seen to show, so only a few tries are made.
    fn shrink_repeated(&mut self, sequence: &Sequence, rate: &Rate) -> (Sequence, usize, f64, bool) {
        let unchanged = (sequence.clone(), 0, 0.0, false);
        let seen = rate.repeats.diverged.max(rate.repeats.differed);
        if seen == 0 {
            return unchanged;
        }
        let often = (3 * rate.repeats.asked / seen).clamp(4, MOST_ASKED);
        let limits = self.limits();
        let limits = Limits { tries: MOST_TRIES.min(limits.tries), ..limits };
        let (model, promised) = (self.report.model, self.capabilities.promises(Promise::Repeatable));
        let subject = &mut *self.subject;
        let mut fails = |candidate: &Sequence| {
            let first = ask(subject, candidate);
            let Rate { conforming, diverging, .. } = self::rate(subject, &first, model, often, promised);
            conforming.is_some() && diverging.is_some()
        };
        let shrunk = shrink(sequence.clone(), limits, &self.capabilities, &mut fails);
        self.has_shrunk(shrunk.seconds);
        (shrunk.sequence, shrunk.tries, shrunk.seconds, shrunk.finished)
    }
}

/// Asks a sequence up to `most` more times. Where repeatability is promised, an answer that conforms and differs from the
/// first counts as one that must not be.
fn rate(
    subject: &mut dyn Subject,
    first: &Observation,
    model: crate::cases::RoundingModel,
    most: usize,
    promised: bool,
) -> Rate {
    let start = Instant::now();
    let diverges =
        |observation: &Observation| first_failure(&judge_observation(observation, model)).is_some();
    let (mut conforming, mut diverging) = (None, None);
    let first_diverges = diverges(first);
    *(if first_diverges { &mut diverging } else { &mut conforming }) = Some(first.clone());
    let mut repeats = Repeats::default();
    while repeats.asked < most && start.elapsed() < FOR_THE_RATE.1 {
        let again = ask(subject, &first.sequence);
        repeats.asked += 1;
        if same(&first.answers, &again.answers) {
            repeats.diverged += usize::from(first_diverges);
            continue;
        }
        repeats.differed += 1;
        if diverges(&again) {
            repeats.diverged += 1;
            diverging.get_or_insert(again);
        } else if conforming.is_none() {
            conforming = Some(again);
        } else if promised && diverging.is_none() {
            diverging = Some(again);
        }
        // One try of shrinking is over once both were seen.
        if most < FOR_THE_RATE.0 && conforming.is_some() && diverging.is_some() {
            break;
        }
    }
    Rate { repeats, conforming, diverging }
}
