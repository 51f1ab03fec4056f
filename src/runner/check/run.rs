//! A check under way: which failures are of a new kind, what is kept for the diagnosis, and what is named in the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::Options;
use super::report::{Finding, Report, Size};
use crate::behaviours::{Behaviour, Fault};
use crate::cases::{Capabilities, CaseFile, Observation, Reader, RoundingModel, Sequence};
use crate::diagnosis::reproduction::reproduces;
use crate::diagnosis::{self, Faults, Seen};
use crate::runner::shrink::{Limits, Shrunk, shrink};
use crate::subjects::{Subject, ask};
use crate::verdicts::Sharpness;
use crate::verdicts::Verdict;
use crate::verdicts::judge::{first_failure, judge_observation};

/// Observations kept for diagnosis, at most.
const MOST_KEPT: usize = 512 << 20;

pub(super) struct Run<'a> {
    subject: &'a mut dyn Subject,
    model: RoundingModel,
    pub(super) capabilities: Capabilities,
    known: Faults,
    /// Declared divergences that no conforming answer contradicts.
    shown: Faults,
    /// Faults named so far: they reproduce everything seen that they can.
    named: Faults,
    seen: Vec<Seen>,
    seen_bytes: usize,
    dropped: usize,
    pub(super) findings: Vec<Finding>,
    most_findings: usize,
    not_looked_into: usize,
    shrinking: Limits,
    left_out: BTreeMap<String, usize>,
    pub(super) bad_inputs: Vec<String>,
    asked: usize,
    pub(super) asked_goldens: usize,
    pub(super) asked_random: usize,
    calls: usize,
    /// Answers with a mask, with an output, with labels.
    answered: [usize; 3],
    conforming: usize,
    refused: usize,
    known_sequences: usize,
    diverged: usize,
    sharpness: Sharpness,
    start: Instant,
    thinking: Duration,
    resolved: usize,
    /// Time spent on sequences without a usable answer, and how many they were.
    unusable: (Duration, usize),
    pub(super) stopped: Option<String>,
}

impl<'a> Run<'a> {
    pub(super) fn new(subject: &'a mut dyn Subject, options: &Options) -> Self {
        let capabilities = subject.capabilities().and(&options.profile);
        let mut left_out: BTreeMap<String, usize> =
            capabilities.lacks.iter().map(|feature| (feature.name(), 0)).collect();
        let all = Capabilities::default();
        let types = all.dtypes.iter().filter(|dtype| !capabilities.dtypes.contains(dtype));
        left_out.extend(types.map(|dtype| (dtype.to_string(), 0)));
        let modes = all.heads.iter().filter(|heads| !capabilities.heads.contains(heads));
        left_out.extend(modes.map(|heads| (heads.name().to_owned(), 0)));
        Self {
            model: subject.rounding_model(),
            subject,
            capabilities,
            known: options.known.clone(),
            shown: options.known.clone(),
            named: Vec::new(),
            seen: Vec::new(),
            seen_bytes: 0,
            dropped: 0,
            findings: Vec::new(),
            most_findings: options.most_findings,
            not_looked_into: 0,
            shrinking: options.shrinking,
            left_out,
            bad_inputs: Vec::new(),
            asked: 0,
            asked_goldens: 0,
            asked_random: 0,
            calls: 0,
            answered: [0; 3],
            conforming: 0,
            refused: 0,
            known_sequences: 0,
            diverged: 0,
            sharpness: Sharpness::default(),
            start: Instant::now(),
            thinking: Duration::ZERO,
            resolved: 0,
            unusable: (Duration::ZERO, 0),
            stopped: None,
        }
    }

    /// Goldens that apply, as sequences.
    pub(super) fn goldens(&mut self, options: &Options) -> Vec<Sequence> {
        let mut reader = Reader::default();
        let mut sequences = Vec::new();
        for found in &options.goldens {
            let sequence = match reader.read_found(found) {
                Ok(CaseFile::Attention(case)) => Sequence::from(case.as_ref()),
                Ok(CaseFile::Sequence(stored)) => stored.sequence,
                Ok(CaseFile::Quantisation(_) | CaseFile::Calibration(_)) => continue,
                Err(error) => {
                    self.bad_inputs.push(error.to_string());
                    continue;
                }
            };
            let sequence = sequence.on_layers_from(self.capabilities.first_layer);
            let missing = self.capabilities.missing(&sequence);
            if missing.is_empty() {
                sequences.push(sequence);
            }
            for feature in missing {
                *self.left_out.entry(feature).or_default() += 1;
            }
        }
        sequences
    }

    pub(super) fn sequence(&mut self, sequence: &Sequence) {
        self.asked += 1;
        self.calls += sequence.calls.len();
        let asking = Instant::now();
        let observation = ask(self.subject, sequence);
        let verdicts = judge_observation(&observation, self.model);
        for answer in observation.answers.iter().flatten() {
            self.answered[0] += 1;
            self.answered[1] += usize::from(answer.output.is_some());
            self.answered[2] += usize::from(answer.labels.is_some());
        }
        if verdicts.iter().any(|verdict| matches!(verdict, Verdict::Failed(_))) {
            self.unusable(asking.elapsed());
        }
        let Some((_, kind)) = first_failure(&verdicts) else {
            self.conforming += 1;
            for verdict in &verdicts {
                self.refused += usize::from(matches!(verdict, Verdict::RefusedRightly));
                self.sharpness.add(&Sharpness::of(verdict));
            }
            self.doubt_declared(&observation);
            self.keep(observation, true);
            return;
        };
        if self.declared(&observation) {
            self.known_sequences += 1;
            return;
        }
        self.diverged += 1;
        let named = self.reproduced(&observation);
        self.keep(observation.clone(), false);
        if named {
            return;
        }
        let thinking = Instant::now();
        // Shrinking may end at one of several causes: the others are looked for as long as new ones are named.
        const MOST_CAUSES: usize = 4;
        for _ in 0..MOST_CAUSES {
            // What nothing explained before is not looked into again.
            let unknown = |finding: &Finding| finding.kind == kind && finding.faults.is_empty();
            if let Some(index) = self.findings.iter().position(unknown) {
                self.findings[index].sequences += 1;
                break;
            }
            if self.findings.len() >= self.most_findings {
                self.not_looked_into += 1;
                break;
            }
            self.finding(observation.clone(), kind);
            if self.reproduced(&observation)
                || self.findings.last().is_some_and(|last| last.faults.is_empty())
            {
                break;
            }
        }
        self.thinking += thinking.elapsed();
    }

    /// A subject that hangs again and again is not waited for until the end.
    fn unusable(&mut self, time: Duration) {
        const MOST_TIME: Duration = Duration::from_secs(120);
        const FEWEST: usize = 4;
        self.unusable.0 += time;
        self.unusable.1 += 1;
        if self.unusable.0 > MOST_TIME && self.unusable.1 >= FEWEST {
            let (time, count) = self.unusable;
            self.stopped =
                Some(format!("{count} sequences without a usable answer took {:.0} s", time.as_secs_f64()));
        }
    }

    /// Whether declared divergences reproduce the answers: all of them together, or one alone.
    fn declared(&self, observation: &Observation) -> bool {
        let together = diagnosis::independent_sets(&self.known).into_iter().map(Behaviour::with);
        let alone = self.known.iter().map(|fault| fault.behaviour());
        !self.known.is_empty()
            && together.chain(alone).any(|behaviour| reproduces(behaviour, observation, self.model))
    }

    /// Declared divergences that an answer contradicts explain nothing.
    fn doubt_declared(&mut self, observation: &Observation) {
        let model = self.model;
        self.shown.retain(|fault| reproduces(fault.behaviour(), observation, model));
    }

    /// Declared and named faults together.
    fn suspected(&self) -> Faults {
        self.shown.iter().chain(&self.named).copied().collect()
    }

    fn reproduced(&self, observation: &Observation) -> bool {
        !self.named.is_empty() && reproduces(Behaviour::with(self.suspected()), observation, self.model)
    }

    /// Keeps an answer for diagnosis, and gives up named faults that it contradicts.
    fn keep(&mut self, observation: Observation, conforms: bool) {
        let bytes: usize = observation.sequence.calls.iter().map(|call| call.bytes()).sum();
        if self.seen_bytes + bytes > MOST_KEPT {
            self.dropped += 1;
            return;
        }
        let contradicted = !self.named.is_empty() && !self.reproduced(&observation);
        self.seen_bytes += bytes;
        self.seen.push(Seen { observation, conforms, after: self.asked });
        const MOST_RESOLVED: usize = 12;
        if contradicted && self.resolved < MOST_RESOLVED {
            let thinking = Instant::now();
            self.resolved += 1;
            self.resolve();
            self.thinking += thinking.elapsed();
        }
    }

    /// Names faults anew, from all findings in order and everything seen.
    fn resolve(&mut self) {
        self.named.clear();
        for index in 0..self.findings.len() {
            let target = self.findings[index].observation.clone();
            if !self.reproduced(&target) {
                self.extend(&target);
            }
        }
        // A finding may need faults that only a later one showed.
        for index in 0..self.findings.len() {
            let target = self.findings[index].observation.clone();
            self.findings[index].faults = self.faults_of(&target);
        }
    }

    /// Adds faults that explain an answer to the named ones.
    fn extend(&mut self, target: &Observation) {
        if let Some(faults) = diagnosis::extend(&self.suspected(), target, &self.seen, self.model) {
            self.named = faults.into_iter().filter(|fault| !self.shown.contains(fault)).collect();
        }
    }

    fn faults_of(&self, target: &Observation) -> Faults {
        if self.reproduced(target) {
            diagnosis::shown_by(&self.suspected(), target, self.model)
        } else {
            Vec::new()
        }
    }

    fn finding(&mut self, observation: Observation, kind: &'static str) {
        let first_seen = observation.sequence.name.clone();
        let shrunk = self.shrink(observation.sequence, kind);
        let observation = ask(self.subject, &shrunk.sequence);
        let fails = first_failure(&judge_observation(&observation, self.model)).is_some();
        // What conforms when asked again needs no explanation by a fault.
        if fails && !self.reproduced(&observation) {
            self.extend(&observation);
        }
        let faults = if fails { self.faults_of(&observation) } else { Vec::new() };
        let finding = Finding::new(observation.clone(), self.asked, faults, self.model);
        self.findings.push(Finding {
            first_seen,
            kind: if fails { finding.kind } else { kind },
            tries: shrunk.tries,
            shrinking_seconds: shrunk.seconds,
            shrunk: shrunk.finished,
            ..finding
        });
        self.seen.push(Seen { observation, conforms: !fails, after: self.asked });
    }

    fn shrink(&mut self, sequence: Sequence, kind: &'static str) -> Shrunk {
        let (model, capabilities) = (self.model, self.capabilities.clone());
        let declared = diagnosis::independent_sets(&self.known);
        let named = self.suspected();
        let has_named = !self.named.is_empty();
        let subject = &mut *self.subject;
        let mut fails = |candidate: &Sequence| {
            if !capabilities.missing(candidate).is_empty() {
                return false;
            }
            let observation = ask(subject, candidate);
            let verdicts = judge_observation(&observation, model);
            let explained = |faults: &[&'static Fault]| {
                !faults.is_empty() && reproduces(Behaviour::with(faults.iter().copied()), &observation, model)
            };
            verdicts.iter().any(|verdict| verdict.kind() == Some(kind))
                && !declared.iter().any(|faults| explained(faults))
                && !(has_named && explained(&named))
        };
        shrink(sequence, self.shrinking, &mut fails)
    }

    pub(super) fn finish(mut self, options: &Options) -> Report {
        let thinking = Instant::now();
        self.resolve();
        let suspected = self.suspected();
        let behaviour = Behaviour::with(suspected.iter().copied());
        // What conforms needs no explanation.
        let reproduced = match self.findings.is_empty() {
            true => self.seen.len(),
            false => {
                let model = self.model;
                let fits = |seen: &&Seen| reproduces(behaviour, &seen.observation, model);
                self.seen.par_iter().filter(fits).count()
            }
        };
        let explained = reproduced == self.seen.len();
        if explained {
            self.isolate();
            self.show_the_rest();
        }
        for index in 0..self.findings.len() {
            let faults = self.findings[index].faults.clone();
            let ambiguous = self.ambiguous(&faults, explained);
            let finding = &mut self.findings[index];
            finding.sentence = sentence(&faults, explained, ambiguous.as_ref(), reproduced, self.seen.len());
            if explained && ambiguous.is_none() {
                finding.diagnosis = faults.iter().map(|fault| fault.name).collect();
                finding.rows = faults.iter().map(|fault| fault.row).collect();
            }
        }
        self.merge_findings();
        self.shrink_further();
        self.count_findings();
        self.thinking += thinking.elapsed();
        let seconds = self.start.elapsed().as_secs_f64();
        let asking = seconds - self.thinking.as_secs_f64();
        Report {
            version: env!("CARGO_PKG_VERSION"),
            subject: self.subject.name(),
            rounding_model: self.model.to_string(),
            model: self.model,
            seed: options.seed,
            sequences: self.asked_random,
            goldens: self.asked_goldens,
            calls: self.calls,
            answered: self.answered[0],
            outputs: self.answered[1],
            labels: self.answered[2],
            left_out: self.left_out,
            conforming: self.conforming,
            refused: self.refused,
            known: self.known_sequences,
            declared: self.known.iter().map(|fault| fault.name).collect(),
            diverged: self.diverged,
            sharpness: self.sharpness,
            findings: self.findings,
            explained,
            reproduced,
            not_kept: self.dropped,
            not_looked_into: self.not_looked_into,
            stopped: self.stopped,
            bad_inputs: self.bad_inputs,
            seconds,
            sequences_per_second: self.asked as f64 / asking.max(1e-9),
        }
    }

    /// Another fault that would explain everything as well as the one named.
    fn ambiguous(
        &self,
        faults: &[&'static Fault],
        explained: bool,
    ) -> Option<(&'static Fault, &'static Fault)> {
        if !explained {
            return None;
        }
        let suspected = self.suspected();
        faults.iter().filter(|fault| self.named.contains(fault)).find_map(|fault| {
            let others = diagnosis::alternatives(&suspected, fault, &self.seen, self.model);
            others.first().map(|other| (*fault, *other))
        })
    }

    /// Where a finding shows a fault only together with others, another answer may show it alone.
    fn isolate(&mut self) {
        let suspected = self.suspected();
        let alone = |findings: &[Finding], fault| findings.iter().any(|finding| finding.faults == [fault]);
        for index in 0..self.findings.len() {
            let faults = self.findings[index].faults.clone();
            for fault in faults.iter().copied().filter(|_| faults.len() > 1) {
                let shows = |seen: &&Seen| {
                    !seen.conforms
                        && reproduces(fault.behaviour(), &seen.observation, self.model)
                        && diagnosis::needs(&suspected, fault, &seen.observation, self.model)
                };
                if alone(&self.findings, fault) {
                    continue;
                }
                if let Some(seen) = self.seen.iter().find(shows) {
                    let finding = &mut self.findings[index];
                    finding.faults = vec![fault];
                    finding.show(seen.observation.clone(), self.model);
                    finding.shrunk = false;
                    break;
                }
            }
        }
    }

    /// Each named fault is shown: where no finding does, by the smallest answer that is not reproduced without it.
    fn show_the_rest(&mut self) {
        let suspected = self.suspected();
        for fault in self.named.clone() {
            if self.findings.iter().any(|finding| finding.faults.contains(&fault)) {
                continue;
            }
            let shows = |seen: &&Seen| {
                !seen.conforms && diagnosis::needs(&suspected, fault, &seen.observation, self.model)
            };
            let size = |seen: &&Seen| Size::of(&seen.observation.sequence).numbers();
            let Some(seen) = self.seen.iter().filter(shows).min_by_key(size) else { continue };
            let (observation, after) = (seen.observation.clone(), seen.after);
            let faults = diagnosis::shown_by(&suspected, &observation, self.model);
            self.findings.push(Finding::new(observation, after, faults, self.model));
        }
    }

    /// Findings that turned out to have the same cause are one: the smallest of them.
    fn merge_findings(&mut self) {
        let mut kept: Vec<Finding> = Vec::new();
        for mut finding in self.findings.drain(..) {
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
        self.findings = kept;
    }

    /// With the cause known, a counterexample may be shrunk to what still shows that cause and no other.
    fn shrink_further(&mut self) {
        const LARGE: usize = 32;
        let (model, suspected) = (self.model, self.suspected());
        for index in 0..self.findings.len() {
            let finding = &self.findings[index];
            if finding.diagnosis.is_empty() || (finding.shrunk && finding.size.numbers() <= LARGE) {
                continue;
            }
            let faults = finding.faults.clone();
            let behaviour = Behaviour::with(faults.iter().copied());
            let shows_all = |observation: &Observation| {
                faults.iter().all(|fault| diagnosis::needs(&suspected, fault, observation, model))
            };
            let must_show = shows_all(&finding.observation);
            let (capabilities, subject) = (&self.capabilities, &mut *self.subject);
            let mut fails = |candidate: &Sequence| {
                if !capabilities.missing(candidate).is_empty() {
                    return false;
                }
                let observation = ask(subject, candidate);
                judge_observation(&observation, model).iter().any(|verdict| !verdict.conforms())
                    && reproduces(behaviour, &observation, model)
                    && (!must_show || shows_all(&observation))
            };
            let start = finding.observation.sequence.clone();
            let shrunk = shrink(start, self.shrinking, &mut fails);
            let observation = ask(self.subject, &shrunk.sequence);
            let verdicts = judge_observation(&observation, model);
            if first_failure(&verdicts).is_none() {
                continue;
            }
            let finding = &mut self.findings[index];
            finding.show(observation, model);
            finding.tries += shrunk.tries;
            finding.shrinking_seconds += shrunk.seconds;
            finding.shrunk = shrunk.finished;
        }
    }

    /// How many sequences show each finding: those that its faults are needed for.
    fn count_findings(&mut self) {
        let suspected = self.suspected();
        for finding in self.findings.iter_mut().filter(|finding| !finding.faults.is_empty()) {
            let others = suspected.iter().copied().filter(|fault| !finding.faults.contains(fault));
            let without = Behaviour::with(others);
            let shows = |seen: &&Seen| !seen.conforms && !reproduces(without, &seen.observation, self.model);
            finding.sequences = self.seen.iter().filter(shows).count().saturating_sub(1).max(1);
        }
    }
}

fn sentence(
    faults: &[&'static Fault],
    explained: bool,
    ambiguous: Option<&(&'static Fault, &'static Fault)>,
    reproduced: usize,
    seen: usize,
) -> String {
    let words = |faults: &[&'static Fault]| {
        let words: Vec<_> = faults
            .iter()
            .map(|fault| format!("{} ({}, {})", fault.sentence, fault.name, fault.row))
            .collect();
        words.join(" And: ")
    };
    match (faults.is_empty(), explained, ambiguous) {
        (true, ..) => "Unknown: nothing in the catalogue reproduces these answers.".into(),
        (false, true, None) => words(faults),
        (false, true, Some((one, other))) => format!(
            "Unknown: {} and {} reproduce all answers alike; more cases would have to decide.",
            one.name, other.name
        ),
        (false, false, _) => format!(
            "Unknown; the nearest explanation reproduces this, but only {reproduced} of {seen} answers: {}",
            words(faults)
        ),
    }
}
