//! From a failure to a finding: shrinking it, naming its cause, showing each cause once and by the smallest example.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::events::Event;
use super::report::Finding;
use super::run::Run;
use super::suspects::{LARGEST_CONFORMING, NEAR_MISSES};
use crate::behaviours::{Behaviour, Fault};
use crate::cases::{Call, Capabilities, Observation, Sequence};
#[cfg(feature = "probes")]
use crate::diagnosis::probes::Probed;
use crate::diagnosis::relations::Told;
use crate::diagnosis::reproduction::reproduces;
use crate::diagnosis::{self, Seen};
use crate::runner::shrink::edge::edges;
use crate::runner::shrink::{Shrunk, shrink};
use crate::subjects::{Reference, ask, ask_until};
use crate::verdicts::Evidence;
use crate::verdicts::judge::{first_failure, judge_observation};
use crate::verdicts::rows::compared_rows;

/// What is said of the cause before everything was seen.
const UNKNOWN_YET: &str = "Not known yet: causes are named at the end of the check.";

/// How often more is asked to tell causes apart, and until how long after they were first sought: each search takes its time again.
const ROUNDS: u64 = 2;
const MOST_TIME_TO_ASK_MORE: Duration = Duration::from_secs(15);

/// A counterexample of more numbers than this is shrunk again once its cause is known.
const LARGE: usize = 32;

impl Run<'_> {
    /// Shrinks a failure and adds what is left of it to the findings.
    pub(super) fn find(&mut self, observation: Observation, kind: &'static str) {
        let first_seen = observation.sequence.name.clone();
        let seen = observation.clone();
        let number = self.announce(&seen, kind);
        let (shrunk, near_misses) = self.shrink(observation.sequence, kind, number);
        self.has_shrunk(shrunk.seconds);
        let observation = ask(self.subject, &shrunk.sequence);
        if first_failure(&judge_observation(&observation, self.report.model)).is_none() {
            // Shrinking took a try that fails only sometimes for one that always does.
            self.not_repeatable(None, seen);
            return;
        }
        self.suspects.keep_near_misses(near_misses, self.asked);
        if !self.suspects.reproduce(&observation) {
            self.suspects.extend(&observation);
        }
        let faults = self.suspects.shown_by(&observation);
        let finding = Finding::new(observation.clone(), self.asked, faults, self.report.model);
        self.report.findings.push(Finding {
            first_seen,
            tries: shrunk.tries,
            shrinking_seconds: shrunk.seconds,
            shrunk: shrunk.finished,
            sentence: UNKNOWN_YET.into(),
            ..finding
        });
        self.has_ended(number);
        self.suspects.keep_counterexample(observation, self.asked);
    }

    /// Tells of a failure before it is shrunk; returns the number of the finding.
    pub(super) fn announce(&mut self, observation: &Observation, kind: &'static str) -> usize {
        let number = self.findings() + 1;
        let mut finding = Finding::new(observation.clone(), self.asked, Vec::new(), self.report.model);
        (finding.kind, finding.sentence) = (kind, UNKNOWN_YET.into());
        (self.watch)(Event::Found(number, &finding));
        number
    }

    /// Tells that the finding of this number, the last one among the findings, was shrunk.
    fn has_ended(&mut self, number: usize) {
        if let Some(finding) = self.report.findings.last() {
            (self.watch)(Event::Shrunk(number, finding));
        }
    }

    /// The smallest sequence that fails in this way and that no declared or named fault explains, and the last small ones that
    /// conformed on the way.
    fn shrink(
        &mut self,
        sequence: Sequence,
        kind: &'static str,
        number: usize,
    ) -> (Shrunk, VecDeque<Observation>) {
        let limits = self.limits();
        let deadline = limits.deadline();
        let mut near_misses = VecDeque::new();
        let (model, capabilities) = (self.report.model, &self.capabilities);
        let declared = self.suspects.declared_sets();
        let (any_named, suspects) = (self.suspects.any_named(), self.suspects.all());
        let (subject, watch, mut tries) = (&mut *self.subject, &mut *self.watch, 0);
        let mut fails = |candidate: &Sequence| {
            tries += 1;
            watch(Event::Shrinking(number, tries));
            let observation = ask_until(subject, candidate, deadline);
            let verdicts = judge_observation(&observation, model);
            if first_failure(&verdicts).is_none() {
                remember(&mut near_misses, observation);
                return false;
            }
            let explained = |faults: &[&'static Fault]| {
                !faults.is_empty() && reproduces(Behaviour::with(faults.iter().copied()), &observation, model)
            };
            verdicts.iter().any(|verdict| verdict.kind() == Some(kind))
                && !declared.iter().any(|faults| explained(faults))
                && !(any_named && explained(&suspects))
        };
        let shrunk = shrink(sequence, limits, capabilities, &mut fails);
        (shrunk, near_misses)
    }

    /// Names causes, and shows each by one finding.
    pub(super) fn conclude(&mut self) {
        let findings = self.findings();
        if findings > 0 {
            (self.watch)(Event::Naming(findings));
        }
        let start = Instant::now();
        let (mut explained, mut told) = self.explain();
        for round in 0..ROUNDS {
            let is_late = start.elapsed() > self.at_most(MOST_TIME_TO_ASK_MORE);
            if is_late || self.is_settled(explained, told.as_ref()) || !self.sharpen(round) {
                break;
            }
            let before = told.and_then(|told| told.relation);
            (explained, told) = self.explain();
            if before.is_some() && before == told.as_ref().and_then(|told| told.relation.clone()) {
                break;
            }
        }
        if let Some(told) = told.clone().filter(|told| told.relation.is_some()) {
            self.conclude_with(told);
            return;
        }
        if explained {
            self.isolate();
            let more = self.suspects.not_shown(&self.report.findings);
            self.report.findings.extend(more);
        }
        for finding in self.report.findings.iter_mut().filter(|_| !explained) {
            finding.wider_model = self.suspects.wider_model(finding.kind, finding.faults.is_empty());
        }
        if explained {
            self.prefer_a_rounding();
        }
        if !explained {
            self.doubt_rare_causes();
        }
        for finding in &mut self.report.findings {
            let ambiguous = explained.then(|| self.suspects.ambiguous(&finding.faults)).flatten();
            finding.sentence = match &finding.wider_model {
                Some(wider) => format!("Rounding: every failure of this kind conforms with {wider}."),
                None => {
                    sentence(&finding.faults, explained, ambiguous, told.as_ref(), self.suspects.unfinished())
                }
            };
            if !explained {
                finding.relation.clone_from(&told);
            }
            if explained && ambiguous.is_none() {
                finding.diagnosis = finding.faults.iter().map(|fault| fault.name).collect();
                finding.rows = finding.faults.iter().map(|fault| fault.row).collect();
            }
        }
        self.merge();
        self.group();
        self.fold_into_unrepeatable();
        self.shrink_further();
        self.find_edges();
        if self.conditions {
            self.find_states();
            self.find_conditions();
            self.group_again();
        }
        for finding in self.report.findings.iter_mut().filter(|finding| !finding.faults.is_empty()) {
            // The sequence that showed it first may have been too large to keep.
            finding.sequences = self.suspects.failures_needing(&finding.faults).max(1);
        }
        self.add_what_is_apart();
    }

    /// Coarse sums reproduce many small errors. Where products that are rounded explain as much, they are told: sums of them round less.
    fn prefer_a_rounding(&mut self) {
        for finding in &mut self.report.findings {
            let [fault] = finding.faults.as_slice() else { continue };
            if !fault.behaviour().half_sums {
                continue;
            }
            let wider = self.suspects.wider_model(finding.kind, false);
            finding.wider_model =
                wider.filter(|words| words.starts_with("products") && !words.contains(" and "));
            if finding.wider_model.is_some() {
                finding.faults.clear();
            }
        }
    }

    /// Names faults, and looks for a relation where they do not explain everything, or are several. Whether they do.
    fn explain(&mut self) -> (bool, Option<Told>) {
        self.suspects.resolve(&mut self.report.findings);
        let kept = self.suspects.kept();
        // What conforms needs no explanation.
        let reproduced = if self.report.findings.is_empty() { kept } else { self.suspects.reproduced() };
        let explained = reproduced == kept;
        (self.report.reproduced, self.report.explained) = (reproduced, explained);
        // One fault that explains everything needs no relation, and in place of several there would have to be one.
        let sought = !self.report.findings.is_empty() && (!explained || self.suspects.named() > 1);
        let told = if sought { self.suspects.relation(self.probe_answers(), !explained) } else { None };
        (explained, told)
    }

    /// Whether more answers would tell no more of the cause.
    fn is_settled(&self, explained: bool, told: Option<&Told>) -> bool {
        let ambiguous = |finding: &Finding| self.suspects.ambiguous(&finding.faults).is_some();
        match told {
            Some(told) if told.relation.is_some() || !explained => told.settled,
            _ => !(explained && self.report.findings.iter().any(ambiguous)),
        }
    }

    /// What was found has one cause, a relation: it is shown by the smallest example.
    fn conclude_with(&mut self, told: Told) {
        (self.report.reproduced, self.report.explained) = (self.suspects.kept(), true);
        let findings = std::mem::take(&mut self.report.findings);
        let (after, sequences) = (
            findings.iter().map(|finding| finding.after).min(),
            findings.iter().map(|finding| finding.sequences).sum(),
        );
        let smallest = findings.into_iter().min_by_key(|finding| finding.size.numbers());
        let mut found = Vec::from_iter(smallest);
        for finding in &mut found {
            (finding.after, finding.sequences) = (after.unwrap_or(finding.after), sequences);
            finding.sentence = told.sentence();
            finding.stage = finding.stage.or(told.one_stage());
            finding.relation = Some(told.clone());
            finding.faults.clear();
        }
        self.report.findings = found;
        self.find_edges();
        if self.conditions {
            self.find_states();
        }
        self.add_what_is_apart();
    }

    /// Adds what no catalogue explains, and what is shown beside each finding.
    fn add_what_is_apart(&mut self) {
        self.explain_sessions();
        self.report.explained &= self.apart.iter().all(|finding| !finding.diagnosis.is_empty());
        self.report.findings.append(&mut self.apart);
        let model = self.report.model;
        let inside_domain = !self.capabilities.domains.is_empty();
        for finding in &mut self.report.findings {
            finding.inside_domain = inside_domain;
            if finding.session.is_none() {
                attach_evidence(finding, model);
            }
        }
    }

    /// Answers to probes, which relations must reproduce as well.
    #[cfg(feature = "probes")]
    fn probe_answers(&self) -> &[Seen] {
        self.report.probes.as_ref().map_or(&[], Probed::seen)
    }

    /// Without probes there are none.
    #[cfg(not(feature = "probes"))]
    fn probe_answers(&self) -> &[Seen] {
        &[]
    }

    /// Asks what holds around each counterexample.
    fn find_edges(&mut self) {
        for index in 0..self.report.findings.len() {
            let sequence = self.report.findings[index].observation.sequence.clone();
            let (limits, model) = (self.limits(), self.report.model);
            let (suspects, subject) = (&self.suspects, &mut *self.subject);
            let deadline = limits.deadline();
            let mut fails = |candidate: &Sequence| {
                let observation = ask_until(subject, candidate, deadline);
                first_failure(&judge_observation(&observation, model)).is_some()
                    && !suspects.declare(&observation)
            };
            let offers = Capabilities::offers_all;
            self.report.findings[index].edges =
                edges(sequence, limits, &self.capabilities, offers, &mut fails);
        }
    }

    /// Where a finding shows a fault only together with others, another answer may show it alone.
    fn isolate(&mut self) {
        let alone = |findings: &[Finding], fault| findings.iter().any(|finding| finding.faults == [fault]);
        for index in 0..self.report.findings.len() {
            let faults = self.report.findings[index].faults.clone();
            for fault in faults.iter().copied().filter(|_| faults.len() > 1) {
                if alone(&self.report.findings, fault) {
                    continue;
                }
                if let Some(observation) = self.suspects.showing_alone(fault) {
                    let finding = &mut self.report.findings[index];
                    finding.faults = vec![fault];
                    finding.show(observation.clone(), self.report.model);
                    finding.shrunk = false;
                    break;
                }
            }
        }
    }

    /// Findings that turned out to have the same cause are one: the smallest of them.
    fn merge(&mut self) {
        let mut kept: Vec<Finding> = Vec::new();
        for mut finding in self.report.findings.drain(..) {
            let same = |other: &&mut Finding| !finding.faults.is_empty() && other.faults == finding.faults;
            match kept.iter_mut().find(same) {
                Some(other) if finding.size.numbers() < other.size.numbers() => {
                    finding.after = other.after;
                    *other = finding;
                }
                Some(_) => {}
                None => kept.push(finding),
            }
        }
        self.report.findings = kept;
    }

    /// With the cause known, a counterexample may be shrunk to what still shows that cause and no other.
    fn shrink_further(&mut self) {
        let (model, suspects) = (self.report.model, self.suspects.all());
        for index in 0..self.report.findings.len() {
            let finding = &self.report.findings[index];
            if finding.diagnosis.is_empty() || (finding.shrunk && finding.size.numbers() <= LARGE) {
                continue;
            }
            let limits = self.limits();
            let faults = finding.faults.clone();
            let behaviour = Behaviour::with(faults.iter().copied());
            let shows_all = |observation: &Observation| {
                faults.iter().all(|fault| diagnosis::needs(&suspects, fault, observation, model))
            };
            let must_show = shows_all(&finding.observation);
            let (capabilities, subject, watch) = (&self.capabilities, &mut *self.subject, &mut *self.watch);
            let mut tries = finding.tries;
            let deadline = limits.deadline();
            let mut fails = |candidate: &Sequence| {
                tries += 1;
                watch(Event::Shrinking(index + 1, tries));
                let observation = ask_until(subject, candidate, deadline);
                judge_observation(&observation, model).iter().any(|verdict| !verdict.conforms())
                    && reproduces(behaviour, &observation, model)
                    && (!must_show || shows_all(&observation))
            };
            let start = finding.observation.sequence.clone();
            let shrunk = shrink(start, limits, capabilities, &mut fails);
            self.has_shrunk(shrunk.seconds);
            let observation = ask(self.subject, &shrunk.sequence);
            if first_failure(&judge_observation(&observation, model)).is_none() {
                continue;
            }
            let finding = &mut self.report.findings[index];
            finding.show(observation, model);
            finding.tries += shrunk.tries;
            finding.shrinking_seconds += shrunk.seconds;
            finding.shrunk = shrunk.finished;
        }
    }
}

/// Keeps an answer that conforms, where it is small, and forgets the one seen first of too many.
fn remember(near_misses: &mut VecDeque<Observation>, observation: Observation) {
    if observation.sequence.calls.iter().map(Call::bytes).sum::<usize>() > LARGEST_CONFORMING {
        return;
    }
    if near_misses.len() == NEAR_MISSES {
        near_misses.pop_front();
    }
    near_misses.push_back(observation);
}

/// What reports print: what each verdict rests on, and what the reference answers.
fn attach_evidence(finding: &mut Finding, model: crate::cases::RoundingModel) {
    let Observation { sequence, answers, .. } = &finding.observation;
    let of = |(call, answer)| Evidence::of(&sequence.instance, call, answer, model);
    finding.ragged = sequence.calls.get(finding.call).and_then(|call| call.inputs.lengths().cloned());
    finding.evidence = sequence.calls.iter().zip(answers).map(of).collect();
    let failing = sequence.calls.get(finding.call).zip(answers.get(finding.call));
    if let (Some((call, Ok(answer))), Some(evidence)) = (failing, finding.evidence.get(finding.call)) {
        finding.compared = compared_rows(evidence, answer, &call.inputs.dims());
    }
    finding.reference = ask(&mut Reference::default(), sequence).answers.into();
}

fn sentence(
    faults: &[&'static Fault],
    explained: bool,
    ambiguous: Option<(&'static Fault, &'static Fault)>,
    told: Option<&Told>,
    unfinished: bool,
) -> String {
    let words = |faults: &[&'static Fault]| {
        let words: Vec<_> = faults
            .iter()
            .map(|fault| format!("{} ({}, {})", fault.sentence, fault.name, fault.row))
            .collect();
        words.join(" And: ")
    };
    match (explained && !faults.is_empty(), ambiguous) {
        (true, None) => words(faults),
        (true, Some((one, other))) => {
            let [one, other] = [one, other].map(|fault| words(&[fault]));
            format!("One of two that these answers do not tell apart: {one} Or: {other}")
        }
        (false, _) if unfinished => {
            "Unknown: the time for causes was over before all of the catalogue was tried.".into()
        }
        (false, _) => told.map_or_else(
            || "Unknown: nothing in the catalogue reproduces every answer.".into(),
            Told::sentence,
        ),
    }
}
