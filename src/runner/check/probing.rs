//! Probes within a check: they are asked first, and what deviates is looked into last, when the causes that random sequences
//! showed are known.

use std::time::{Duration, Instant};

use super::Options;
use super::coverage::Coverage;
use super::report::Report;
use super::run::{Run, left_out};
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
    report.declared = options.known.iter().map(|fault| fault.name).collect();
    let mut probed = probe(subject, &capabilities, &options.known, options.seconds.unwrap_or(MOST_TIME));
    probed.find_cause(report.model);
    report.probes = Some(probed);
    report.seconds = start.elapsed().as_secs_f64();
    report
}

/// What deviates, apart from what is reported of it: calls of an instance, or questions to one stage.
pub(super) fn taken(probed: &mut Probed) -> (Vec<Observation>, Vec<(String, StageCall)>) {
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
pub(super) fn time_for_probes(options: &Options) -> Duration {
    options.seconds.map_or(MOST_TIME, |seconds| seconds / 6)
}

/// Whether the wires are measured: each question may have a shape of its own.
pub(super) fn is_probed(options: &Options, capabilities: &Capabilities) -> bool {
    options.probes && capabilities.shapes.is_none()
}

impl Run<'_> {
    /// Measures the wires; what deviates is kept for the end.
    pub(super) fn probe(&mut self, options: &Options) {
        let mut probed = probe(self.subject, &self.capabilities, &options.known, time_for_probes(options));
        (self.deviating, _) = taken(&mut probed);
        self.report.probes = Some(probed);
    }

    /// Looks into what deviated and is not explained yet.
    pub(super) fn look_into_probes(&mut self) {
        for observation in std::mem::take(&mut self.deviating) {
            if self.is_over() {
                break;
            }
            let verdicts = judge_observation(&observation, self.report.model);
            if let Some((_, kind)) = first_failure(&verdicts) {
                self.report.probed += 1;
                self.diverges(observation, kind);
            }
        }
    }
}
