//! Probes within a check: they are asked first, and what deviates is looked into last, when the causes that random sequences
//! showed are known.

use std::time::{Duration, Instant};

use super::Options;
use super::coverage::Coverage;
use super::report::Report;
use super::run::{Run, left_out};
use super::stages;
use crate::cases::{Capabilities, Observation, StageCall, Takes};
use crate::diagnosis::probes::{Deviation, MOST_TIME, Probed, probe};
use crate::subjects::Subject;
use crate::verdicts::judge::{first_failure, judge_observation};

/// Measures the wires of a subject, and asks nothing else.
pub fn probe_only(subject: &mut dyn Subject, options: &Options) -> Report {
    let start = Instant::now();
    let capabilities = subject.capabilities().and(&options.profile);
    let coverage = match capabilities.stages.takes {
        Takes::Inputs => Coverage::new(&capabilities),
        _ => Coverage::of_stage(&capabilities),
    };
    let mut report = Report::new(subject.name(), subject.rounding_model(), options.seed, coverage);
    report.left_out = left_out(&capabilities);
    report.declare(options);
    let mut probed =
        probe(subject, &capabilities, &options.known, options.seconds.unwrap_or(options.at_most(MOST_TIME)));
    probed.find_cause(report.model, |time| options.at_most(time));
    report.settle(&probed.declared().collect());
    report.probes = Some(probed);
    report.seconds = start.elapsed().as_secs_f64();
    report
}

/// What deviates, apart from what is reported of it: calls of an instance, or questions to one stage.
fn taken(probed: &mut Probed) -> (Vec<Observation>, Vec<(String, StageCall)>) {
    let (mut observations, mut calls) = (Vec::new(), Vec::new());
    for deviation in probed.deviations.drain(..) {
        match deviation {
            Deviation::Sequence(observation) => observations.push(*observation),
            Deviation::Stage(name, call) => calls.push((name, *call)),
        }
    }
    (observations, calls)
}

/// How long a subject may take to answer probes: a sixth of the time that there is.
fn time_for_probes(options: &Options) -> Duration {
    options.seconds.map_or(options.at_most(MOST_TIME), |seconds| seconds / 6)
}

/// Whether the wires are measured: each question may have a shape of its own.
fn is_probed(options: &Options, capabilities: &Capabilities) -> bool {
    options.probes && options.shard.holds(0) && capabilities.shapes.is_none()
}

impl stages::Run<'_> {
    /// Measures the wires, where that is wanted; returns what deviates.
    pub(super) fn probe(&mut self) -> Vec<(String, StageCall)> {
        if !is_probed(self.options, &self.capabilities) {
            return Vec::new();
        }
        let time = time_for_probes(self.options);
        let mut probed = probe(self.subject, &self.capabilities, &self.options.known, time);
        let (_, deviating) = taken(&mut probed);
        self.report.probes = Some(probed);
        deviating
    }
}

impl Run<'_> {
    /// Measures the wires, where that is wanted; returns what deviates.
    pub(super) fn probe(&mut self, options: &Options) -> Vec<Observation> {
        if !is_probed(options, &self.capabilities) {
            return Vec::new();
        }
        let time = time_for_probes(options);
        let mut probed = probe(self.subject, &self.capabilities, &options.known, time);
        let (deviating, _) = taken(&mut probed);
        self.report.probes = Some(probed);
        deviating
    }

    /// Looks into what deviated and is not explained yet.
    pub(super) fn look_into_probes(&mut self, deviating: Vec<Observation>) {
        for observation in deviating {
            if self.is_over() {
                break;
            }
            let verdicts = judge_observation(&observation, self.report.model);
            if let Some((_, kind)) = first_failure(&verdicts) {
                self.report.probed += 1;
                self.asked_calls.add(&observation.sequence, &verdicts);
                self.diverges(observation, kind);
            }
        }
    }
}
