//! Which of the goldens apply to a subject: decided by their metadata, where that is enough. Each is made when it is its turn, so
//! that those of real size are not held together.

use std::collections::VecDeque;

use super::Options;
use super::draws::shapes_of_goldens;
use super::report::Report;
use super::run::Run;
use crate::cases::bundled::Found;
use crate::cases::file::peek;
use crate::cases::{Capabilities, CaseFile, Reader, Sequence, Shape, StageCall, Takes};

/// Goldens that were not asked yet.
pub(super) struct Goldens {
    reader: Reader,
    waiting: VecDeque<Golden>,
    asked: usize,
    /// How many shapes that no other sequence has may still be asked, where shapes are few.
    shapes: Option<usize>,
}

/// A golden that its metadata does not rule out. Those that are not of one call are small.
struct Golden {
    found: Found,
    keys: usize,
    operations: usize,
}

impl Goldens {
    /// Those that apply, as far as their metadata says; the others are counted, and so are files that cannot be used.
    pub(super) fn new(run: &mut Run, options: &Options) -> Self {
        let mut waiting = VecDeque::new();
        for found in options.goldens_of_shard() {
            let outline = found
                .read_within(options.memory)
                .and_then(|bytes| peek(&bytes).map_err(|error| error.in_file(&found.path())));
            let outline = match outline {
                Ok(outline) => outline,
                Err(error) => {
                    run.report.bad_inputs.push(error.to_string());
                    continue;
                }
            };
            let missing =
                outline.as_ref().map(|outline| run.capabilities.missing_of(outline)).unwrap_or_default();
            if !missing.is_empty() {
                run.report.coverage.goldens += 1;
                run.leave_out(missing);
                continue;
            }
            let (keys, operations) =
                outline.map_or((0, 0), |outline| (outline.dims.keys, outline.dims.operations()));
            waiting.push_back(Golden { found: found.clone(), keys, operations });
        }
        let shapes = run.capabilities.shapes.map(|most| shapes_of_goldens(most.get()));
        Self { reader: Reader::within(options.memory), waiting, asked: 0, shapes }
    }

    /// The smallest first.
    pub(super) fn sort(&mut self) {
        self.waiting.make_contiguous().sort_by_key(|golden| (golden.keys, golden.operations));
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many were asked.
    pub(super) fn asked(&self) -> usize {
        self.asked
    }

    /// Keys and operations of the next one.
    pub(super) fn first(&self) -> Option<(usize, usize)> {
        self.waiting.front().map(|golden| (golden.keys, golden.operations))
    }

    /// The next one that applies, as a sequence.
    pub(super) fn next(&mut self, run: &mut Run) -> Option<Sequence> {
        while let Some(golden) = self.waiting.pop_front() {
            let sequence = match self.reader.read_found(&golden.found) {
                Ok(CaseFile::Attention(case)) => case.sequence(),
                Ok(CaseFile::Sequence(stored)) => stored.sequence,
                Ok(CaseFile::Quantisation(_) | CaseFile::Calibration(_)) => continue,
                Ok(CaseFile::Session(stored)) => {
                    run.golden_session(&stored.session);
                    continue;
                }
                Ok(CaseFile::Stage(stored)) => {
                    run.leave_out(vec![stored.call.takes().name().to_owned()]);
                    continue;
                }
                Err(error) => {
                    run.report.bad_inputs.push(error.to_string());
                    continue;
                }
            };
            let sequence = sequence.on_layers_from(run.capabilities.first_layer);
            let mut missing = run.capabilities.missing(&sequence);
            run.report.coverage.goldens += 1;
            if missing.is_empty() && !self.has_shapes_for(run, &sequence) {
                missing.push("shapes".into());
            }
            if missing.is_empty() {
                self.asked += 1;
                return Some(sequence);
            }
            run.leave_out(missing);
        }
        None
    }

    fn has_shapes_for(&mut self, run: &Run, sequence: &Sequence) -> bool {
        let (Some(left), Some(asked)) = (&mut self.shapes, &run.shapes) else { return true };
        let new = Shape::of_sequence(sequence).difference(asked).count();
        let fits = new <= *left;
        *left -= if fits { new } else { 0 };
        fits
    }

    /// Counts those that were never asked.
    pub(super) fn count_waiting(&self, run: &mut Run) {
        run.report.coverage.goldens += self.waiting.len();
    }
}

impl Run<'_> {
    /// Counts a golden that is not asked for these reasons.
    fn leave_out(&mut self, missing: Vec<String>) {
        for feature in missing {
            *self.report.left_out.entry(feature).or_default() += 1;
        }
    }
}

/// Goldens that are questions to this stage; those of whole layers are counted as not offered.
pub(super) fn of_stage(
    capabilities: &Capabilities,
    options: &Options,
    report: &mut Report,
) -> Vec<(String, StageCall)> {
    let mut reader = Reader::within(options.memory);
    let mut questions = Vec::new();
    for found in options.goldens_of_shard() {
        let missing = match reader.read_found(found) {
            Ok(CaseFile::Stage(stored)) if capabilities.offers_stage(&stored.call) => {
                questions.push((stored.name, stored.call));
                continue;
            }
            Ok(CaseFile::Stage(stored)) => stored.call.takes(),
            Ok(CaseFile::Quantisation(_) | CaseFile::Calibration(_)) => continue,
            Ok(CaseFile::Attention(_) | CaseFile::Sequence(_) | CaseFile::Session(_)) => Takes::Inputs,
            Err(error) => {
                report.bad_inputs.push(error.to_string());
                continue;
            }
        };
        *report.left_out.entry(missing.name().into()).or_default() += 1;
    }
    questions
}
