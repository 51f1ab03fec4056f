//! Which of the goldens apply to a subject: decided by their metadata, where that is enough.

use super::Options;
use super::report::Report;
use super::run::Run;
use crate::cases::file::peek;
use crate::cases::{Capabilities, CaseFile, Reader, Sequence, StageCall, Takes};

impl Run<'_> {
    /// Goldens that apply, as sequences.
    pub(super) fn goldens(&mut self, options: &Options) -> Vec<Sequence> {
        let mut reader = Reader::default();
        let mut sequences = Vec::new();
        for found in &options.goldens {
            let file = found.read().and_then(|bytes| {
                // What its metadata rules out is not made from its recipe.
                let outline = peek(&bytes).ok().flatten();
                let missing = outline.map(|outline| self.capabilities.missing_of(&outline));
                match missing.filter(|missing| !missing.is_empty()) {
                    Some(missing) => Ok(Err(missing)),
                    None => {
                        let file = reader.parse(&bytes, &found.name);
                        file.map(Ok).map_err(|error| error.in_file(&found.path()))
                    }
                }
            });
            let sequence = match file {
                Ok(Err(missing)) => {
                    self.report.coverage.goldens += 1;
                    self.leave_out(missing);
                    continue;
                }
                Ok(Ok(CaseFile::Attention(case))) => case.sequence(),
                Ok(Ok(CaseFile::Sequence(stored))) => stored.sequence,
                Ok(Ok(CaseFile::Quantisation(_) | CaseFile::Calibration(_))) => continue,
                Ok(Ok(CaseFile::Stage(stored))) => {
                    self.leave_out(vec![stored.call.takes().name().to_owned()]);
                    continue;
                }
                Err(error) => {
                    self.report.bad_inputs.push(error.to_string());
                    continue;
                }
            };
            let sequence = sequence.on_layers_from(self.capabilities.first_layer);
            let missing = self.capabilities.missing(&sequence);
            self.report.coverage.goldens += 1;
            if missing.is_empty() {
                sequences.push(sequence);
            }
            self.leave_out(missing);
        }
        sequences
    }

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
    let mut reader = Reader::default();
    let mut questions = Vec::new();
    for found in &options.goldens {
        let missing = match reader.read_found(found) {
            Ok(CaseFile::Stage(stored)) if capabilities.offers_stage(&stored.call) => {
                questions.push((stored.name, stored.call));
                continue;
            }
            Ok(CaseFile::Stage(stored)) => stored.call.takes(),
            Ok(CaseFile::Quantisation(_) | CaseFile::Calibration(_)) => continue,
            Ok(CaseFile::Attention(_) | CaseFile::Sequence(_)) => Takes::Inputs,
            Err(error) => {
                report.bad_inputs.push(error.to_string());
                continue;
            }
        };
        *report.left_out.entry(missing.name().into()).or_default() += 1;
    }
    questions
}
