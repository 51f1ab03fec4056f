//! The meta test: every fault of the catalogue is checked as if it were somebody's implementation. It must be caught, be
//! named rightly or called unknown, and shrink to something small; those that conform must conform.

use std::time::Instant;

use serde::Serialize;

use super::check::{Options, Report, Size, check};
use crate::behaviours::Fault;
use crate::subjects::Faulty;

/// How one fault fared.
#[derive(Debug, Clone, Serialize)]
pub struct FaultResult {
    /// The fault.
    pub name: &'static str,
    /// The row of SPEC §3 or the section of §2 it goes against.
    pub row: &'static str,
    /// Whether it must conform.
    pub must_conform: bool,
    /// Which check caught it first; `None` where nothing did.
    pub caught_by: Option<&'static str>,
    /// After how many sequences.
    pub after: usize,
    /// How many of the sequences show it.
    pub sequences: usize,
    /// What the first counterexample was shrunk to.
    pub size: Option<Size>,
    /// How long that took.
    pub shrinking_seconds: f64,
    /// What all findings together were named; empty where one is unknown.
    pub diagnosis: Vec<&'static str>,
    /// Wall-clock time of everything.
    pub seconds: f64,
}

impl FaultResult {
    /// Whether the suite did what it must: caught it and named nothing else, or accepted it.
    pub fn right(&self) -> bool {
        if self.must_conform {
            return self.caught_by.is_none();
        }
        self.caught_by.is_some() && (self.diagnosis.is_empty() || self.diagnosis == [self.name])
    }
}

/// The names in all findings, each once; none where a finding has none.
fn named(report: &Report) -> Vec<&'static str> {
    if report.findings.iter().any(|finding| finding.diagnosis.is_empty()) {
        return Vec::new();
    }
    let mut names: Vec<_> = report.findings.iter().flat_map(|finding| finding.diagnosis.clone()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Checks one fault.
pub fn fault_result(fault: &Fault, options: &Options) -> FaultResult {
    let start = Instant::now();
    let report = check(&mut Faulty::new(&[fault]), options);
    let first = report.findings.first();
    FaultResult {
        name: fault.name,
        row: fault.row,
        must_conform: fault.conforms,
        caught_by: first.map(|finding| finding.kind),
        after: first.map_or(report.sequences, |finding| finding.after),
        sequences: report.diverged,
        size: first.map(|finding| finding.size),
        shrinking_seconds: first.map_or(0.0, |finding| finding.shrinking_seconds),
        diagnosis: named(&report),
        seconds: start.elapsed().as_secs_f64(),
    }
}
