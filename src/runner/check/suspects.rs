//! Which faults a subject seems to have: those it declares and those named so far, held against every answer kept.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::Options;
use super::report::{Finding, Size};
use crate::behaviours::{Behaviour, Fault};
use crate::cases::{Call, Observation, RoundingModel, Sequence};
use crate::diagnosis::condition::Rule;
use crate::diagnosis::relations::{self, MOST_TIME, MOST_TIME_IF_NAMED, Told};
use crate::diagnosis::reproduction::reproduces;
use crate::diagnosis::{self, Faults, Patience, Seen};
use crate::verdicts::judge::{first_failure, judge_observation};

/// Failing observations kept for diagnosis, at most, in bytes.
const MOST_KEPT: usize = 512 << 20;

/// The same of those that conform. A subject without a fault makes no others, and is asked for as long as one likes.
const MOST_CONFORMING: usize = 48 << 20;

/// Answers that conform rule out what does not reproduce them. Every candidate computes each of them again: large ones take far
/// longer than they tell.
pub(super) const LARGEST_CONFORMING: usize = 256 << 10;

/// How often named faults that an answer contradicts are named anew.
const MOST_RESOLVED: usize = 12;

/// Each search for causes gets this share of the time that is left for all.
const NAMING_SHARE: u32 = 4;

/// How many small answers that conform are kept of those that shrinking saw: the last ones are next to the counterexample.
pub(super) const NEAR_MISSES: usize = 16;

pub(super) struct Suspects {
    model: RoundingModel,
    declared: Faults,
    /// Names of those that an answer shows.
    occurred: BTreeSet<&'static str>,
    /// Declared faults that no conforming answer contradicts.
    shown: Faults,
    /// Faults named so far: together with `shown` they reproduce everything seen that they can.
    named: Faults,
    seen: Vec<Seen>,
    /// Of failing observations, and of those that conform.
    seen_bytes: [usize; 2],
    resolved: usize,
    /// Whether causes are looked for at all.
    seeks: bool,
    /// How long faults may still be looked for. Relations have a time of their own.
    naming_left: Duration,
    /// How long relations are looked for where causes were named, and where none was.
    for_relations: [Duration; 2],
    interrupted: Option<&'static AtomicBool>,
    /// Whether some were not tried for lack of time.
    unfinished: bool,
}

impl Suspects {
    pub(super) fn new(options: &Options, model: RoundingModel) -> Self {
        Self {
            model,
            declared: options.known.clone(),
            occurred: BTreeSet::new(),
            shown: options.known.clone(),
            named: Vec::new(),
            seen: Vec::new(),
            seen_bytes: [0; 2],
            resolved: 0,
            seeks: !options.naming.is_zero(),
            naming_left: options.naming(),
            for_relations: [MOST_TIME_IF_NAMED, MOST_TIME].map(|time| options.at_most(time)),
            interrupted: options.interrupted,
            unfinished: false,
        }
    }

    /// Sets of declared faults that do not undo one another.
    pub(super) fn declared_sets(&self) -> Vec<Faults> {
        diagnosis::independent_sets(&self.declared)
    }

    /// Whether declared faults reproduce the answers: all of them together, or one alone.
    pub(super) fn declare(&self, observation: &Observation) -> bool {
        let together = self.declared_sets().into_iter().map(Behaviour::with);
        let alone = self.declared.iter().map(|fault| fault.behaviour());
        !self.declared.is_empty()
            && together.chain(alone).any(|behaviour| reproduces(behaviour, observation, self.model))
    }

    /// Notes which declared faults show in an answer that they reproduce, as long as some have shown in none.
    pub(super) fn note_declared(&mut self, observation: &Observation) {
        if self.declared.iter().any(|fault| !self.occurred.contains(fault.name)) {
            let shown =
                diagnosis::declared_in(&self.declared, &self.declared_sets(), observation, self.model);
            self.occurred.extend(shown.iter().map(|fault| fault.name));
        }
    }

    /// Names of the declared faults that showed.
    pub(super) fn occurred(&self) -> &BTreeSet<&'static str> {
        &self.occurred
    }

    /// Declared faults that a conforming answer contradicts explain nothing.
    pub(super) fn doubt_declared(&mut self, observation: &Observation) {
        let model = self.model;
        self.shown.retain(|fault| reproduces(fault.behaviour(), observation, model));
    }

    /// Declared and named faults together.
    pub(super) fn all(&self) -> Faults {
        self.shown.iter().chain(&self.named).copied().collect()
    }

    /// The narrowest wider model under which every failure of one kind conforms that no declared fault reproduces, or with
    /// `unexplained` no named fault either; in words.
    pub(super) fn wider_model(&self, kind: &str, unexplained: bool) -> Option<String> {
        let verdicts = |seen: &Seen, model| judge_observation(&seen.observation, model);
        let mut failures: Vec<_> = self
            .seen
            .iter()
            .filter(|seen| !seen.conforms)
            .filter(|seen| {
                first_failure(&verdicts(seen, self.model)).is_some_and(|(_, found)| found == kind)
                    && !self.declare(&seen.observation)
                    && !(unexplained && self.reproduce(&seen.observation))
            })
            .collect();
        // Most models fail at the first, which should not take long.
        let bytes = |seen: &&Seen| seen.observation.sequence.calls.iter().map(Call::bytes).sum::<usize>();
        failures.sort_by_key(bytes);
        let conforms = |seen: &&Seen, model| first_failure(&verdicts(seen, model)).is_none();
        let explains = |model| !failures.is_empty() && failures.iter().all(|seen| conforms(seen, model));
        self.model.wider().into_iter().find(|&(model, _)| explains(model)).map(|(_, words)| words)
    }

    pub(super) fn any_named(&self) -> bool {
        !self.named.is_empty()
    }

    /// Whether the named faults reproduce the answers.
    pub(super) fn reproduce(&self, observation: &Observation) -> bool {
        self.any_named() && reproduces(Behaviour::with(self.all()), observation, self.model)
    }

    /// Whether a failure needs these faults; without faults, whether nothing declared or named reproduces it.
    pub(super) fn shows(&self, faults: &[&'static Fault], observation: &Observation) -> bool {
        let without: Faults = self.all().into_iter().filter(|fault| !faults.contains(fault)).collect();
        let reproduced = !without.is_empty() && reproduces(Behaviour::with(without), observation, self.model);
        !reproduced && !self.declare(observation)
    }

    /// Sequences asked before the first one of this name: the last ones before it, and the very first ones.
    pub(super) fn earlier_than(&self, name: &str, most: usize) -> Vec<Sequence> {
        let before = self.all_before(name);
        let (first, last) = before.split_at(before.len().saturating_sub(most / 2));
        last.iter().rev().chain(first.iter().take(most / 2)).cloned().collect()
    }

    /// All sequences asked before the first one of this name, in order, as far as they were kept.
    pub(super) fn all_before(&self, name: &str) -> Vec<Sequence> {
        let asked = self.seen.iter().filter(|seen| seen.asked).map(|seen| &seen.observation.sequence);
        asked.take_while(|sequence| sequence.name != name).cloned().collect()
    }

    /// The first sequence of this name.
    pub(super) fn first_of(&self, name: &str) -> Option<Sequence> {
        let of_name = |seen: &&Seen| seen.asked && seen.observation.sequence.name == name;
        self.seen.iter().find(of_name).map(|seen| seen.observation.sequence.clone())
    }

    /// The fault that, where a rule holds, reproduces every answer that conforms and every failure of which `is_shown` is true.
    pub(super) fn within(
        &self,
        rule: &Rule,
        is_shown: impl Fn(&Observation) -> bool,
    ) -> Option<&'static Fault> {
        let seen = self.seen.iter().filter(|seen| seen.conforms || is_shown(&seen.observation));
        let mut seen: Vec<&Seen> = seen.collect();
        // Failures rule out most.
        seen.sort_by_key(|seen| seen.conforms);
        let seen: Vec<&Observation> = seen.into_iter().map(|seen| &seen.observation).collect();
        diagnosis::within(rule, &seen, self.model)
    }

    /// One of the observations kept.
    pub(super) fn observation(&self, index: usize) -> &Observation {
        &self.seen[index].observation
    }

    /// Keeps an observation for diagnosis. `None` where there is no room, otherwise whether it contradicts the named
    /// faults, which should be named anew then.
    pub(super) fn keep(&mut self, observation: Observation, conforms: bool, after: usize) -> Option<bool> {
        let tensors: usize = observation.sequence.calls.iter().map(|call| call.bytes()).sum();
        let bytes = tensors + overhead(&observation.sequence);
        let kept = &mut self.seen_bytes[usize::from(conforms)];
        let most = if conforms { MOST_CONFORMING } else { MOST_KEPT };
        if *kept + bytes > most || (conforms && tensors > LARGEST_CONFORMING) {
            return None;
        }
        *kept += bytes;
        let contradicted = self.any_named() && !self.reproduce(&observation);
        self.seen.push(Seen { observation, conforms, after, asked: true });
        let again = contradicted && self.resolved < MOST_RESOLVED;
        self.resolved += usize::from(again);
        Some(again)
    }

    /// Keeps a counterexample, for which there is always room.
    pub(super) fn keep_counterexample(&mut self, observation: Observation, after: usize) {
        self.seen.push(Seen { observation, conforms: false, after, asked: false });
    }

    /// Keeps what conformed while a counterexample was shrunk: a fault that would show there is not the cause.
    pub(super) fn keep_near_misses(&mut self, near: impl IntoIterator<Item = Observation>, after: usize) {
        let seen = |observation| Seen { observation, conforms: true, after, asked: false };
        self.seen.extend(near.into_iter().map(seen));
    }

    /// Keeps what was asked to tell causes apart.
    pub(super) fn keep_evidence(&mut self, observation: Observation, conforms: bool, after: usize) {
        self.seen.push(Seen { observation, conforms, after, asked: false });
    }

    /// What fails.
    pub(super) fn failing(&self) -> impl Iterator<Item = &Observation> {
        self.seen.iter().filter(|seen| !seen.conforms).map(|seen| &seen.observation)
    }

    /// Names faults anew, from all findings in order and everything seen.
    pub(super) fn resolve(&mut self, findings: &mut [Finding]) {
        self.named.clear();
        for finding in findings.iter() {
            if !self.reproduce(&finding.observation) {
                self.extend(&finding.observation);
            }
        }
        self.extend_to_others();
        // A finding may need faults that only a later one showed.
        for finding in findings {
            finding.faults = self.shown_by(&finding.observation);
        }
    }

    /// Failures that became no finding, as faults reproduced them that are named no longer: the smallest first.
    fn extend_to_others(&mut self) {
        if !self.any_named() {
            return;
        }
        let mut others: Vec<Observation> = self
            .seen
            .par_iter()
            .filter(|seen| !seen.conforms && !self.reproduce(&seen.observation))
            .map(|seen| seen.observation.clone())
            .collect();
        others.sort_by_key(|observation| Size::of(&observation.sequence).numbers());
        for observation in others.iter().take(MOST_RESOLVED) {
            if !self.reproduce(observation) {
                self.extend(observation);
            }
        }
    }

    /// Adds faults that explain an observation to the named ones.
    pub(super) fn extend(&mut self, target: &Observation) {
        let start = Instant::now();
        let patience = Patience::new(self.naming_left / NAMING_SHARE, self.interrupted);
        let faults = diagnosis::extend(&self.all(), target, &self.seen, self.model, patience);
        self.naming_left = self.naming_left.saturating_sub(start.elapsed());
        self.unfinished |= faults.is_none() && patience.is_over();
        if let Some(faults) = faults {
            self.named = faults.into_iter().filter(|fault| !self.shown.contains(fault)).collect();
        }
    }

    /// The faults that an observation shows; none where they do not reproduce it.
    pub(super) fn shown_by(&self, target: &Observation) -> Faults {
        if self.reproduce(target) { diagnosis::shown_by(&self.all(), target, self.model) } else { Vec::new() }
    }

    /// How many faults were named.
    pub(super) fn named(&self) -> usize {
        self.named.len()
    }

    /// One relation, with `pairs` of two changes, that reproduces everything kept, and `more` answers; or what was ruled out.
    /// `None` where answers are of no use.
    pub(super) fn relation(&self, more: &[Seen], pairs: bool) -> Option<Told> {
        if !self.seeks {
            return None;
        }
        let seen: Vec<&Seen> = self.seen.iter().chain(more).collect();
        let time = self.for_relations[usize::from(pairs)];
        relations::explain(&seen, Behaviour::with(self.shown.iter().copied()), self.model, (time, pairs))
    }

    /// Whether causes are looked for, and there is time for it.
    pub(super) fn may_name(&self) -> bool {
        !self.naming_left.is_zero()
    }

    /// Whether some faults were not tried for lack of time.
    pub(super) fn unfinished(&self) -> bool {
        self.unfinished
    }

    /// How many observations were kept.
    pub(super) fn kept(&self) -> usize {
        self.seen.len()
    }

    /// How many of them the declared and named faults reproduce.
    pub(super) fn reproduced(&self) -> usize {
        let behaviour = Behaviour::with(self.all());
        let fits = |seen: &&Seen| reproduces(behaviour, &seen.observation, self.model);
        self.seen.par_iter().filter(fits).count()
    }

    /// A named fault and another one that would explain everything as well.
    pub(super) fn ambiguous(&self, faults: &[&'static Fault]) -> Option<(&'static Fault, &'static Fault)> {
        let all = self.all();
        faults.iter().filter(|fault| self.named.contains(fault)).find_map(|fault| {
            let others = diagnosis::alternatives(&all, fault, &self.seen, self.model);
            others.first().map(|other| (*fault, *other))
        })
    }

    /// A failure that shows this fault and no other.
    pub(super) fn showing_alone(&self, fault: &'static Fault) -> Option<&Observation> {
        let all = self.all();
        let shows = |seen: &&Seen| {
            !seen.conforms
                && reproduces(fault.behaviour(), &seen.observation, self.model)
                && diagnosis::needs(&all, fault, &seen.observation, self.model)
        };
        self.seen.iter().find(shows).map(|seen| &seen.observation)
    }

    /// A finding for each named fault that no finding shows: the smallest answer that is not reproduced without it.
    pub(super) fn not_shown(&self, findings: &[Finding]) -> Vec<Finding> {
        let all = self.all();
        let mut more: Vec<Finding> = Vec::new();
        for &fault in &self.named {
            if findings.iter().chain(&more).any(|finding| finding.faults.contains(&fault)) {
                continue;
            }
            let shows =
                |seen: &&Seen| !seen.conforms && diagnosis::needs(&all, fault, &seen.observation, self.model);
            let size = |seen: &&Seen| Size::of(&seen.observation.sequence).numbers();
            let Some(seen) = self.seen.iter().filter(shows).min_by_key(size) else { continue };
            let faults = diagnosis::shown_by(&all, &seen.observation, self.model);
            more.push(Finding::new(seen.observation.clone(), seen.after, faults, self.model));
        }
        more
    }

    /// How many of the failing sequences that were asked the other suspects do not reproduce without these faults.
    pub(super) fn failures_needing(&self, faults: &[&'static Fault]) -> usize {
        let others = self.all().into_iter().filter(|fault| !faults.contains(fault));
        let without = Behaviour::with(others);
        let shows = |seen: &&Seen| {
            seen.asked && !seen.conforms && !reproduces(without, &seen.observation, self.model)
        };
        self.seen.iter().filter(shows).count()
    }
}

/// What a sequence takes beside its tensors, about, in bytes: rows of channels, which are most of a small one, and lists.
fn overhead(sequence: &Sequence) -> usize {
    let file = &sequence.instance.channel_file;
    let orders = file.kinds().flat_map(|kind| file.layers(kind)).map(|(_, order)| order);
    let rows: usize = orders.map(|order| 256 + order.rows().len() * (48 + 8 * order.width())).sum();
    1024 + rows + 1024 * sequence.calls.len()
}
