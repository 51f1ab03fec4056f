//! Without case files (feature `files`) there are no goldens.

use super::Options;
use super::report::Report;
use super::run::Run;
use crate::cases::{Capabilities, Sequence, StageCall};

/// None.
pub(super) struct Goldens;

impl Goldens {
    pub(super) fn new(_run: &mut Run, _options: &Options) -> Self {
        Self
    }

    pub(super) fn sort(&mut self) {}

    pub(super) fn len(&self) -> usize {
        0
    }

    pub(super) fn asked(&self) -> usize {
        0
    }

    pub(super) fn first(&self) -> Option<(usize, usize)> {
        None
    }

    pub(super) fn next(&mut self, _run: &mut Run) -> Option<Sequence> {
        None
    }

    pub(super) fn count_waiting(&self, _run: &mut Run) {}
}

pub(super) fn of_stage(
    _capabilities: &Capabilities,
    _options: &Options,
    _report: &mut Report,
) -> Vec<(String, StageCall)> {
    Vec::new()
}
