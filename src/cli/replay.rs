//! `doublecheck replay FILE --command "…"`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use doublecheck::cases::{CaseFile, Reader, StageCall};
use doublecheck::reports::check::{replay, replay_stage};
use doublecheck::subjects::{ask, ask_stage};
use doublecheck::verdicts::judge::judge_observation;
use doublecheck::verdicts::judge_stage;

use super::{Failure, print, subject};

#[derive(Args)]
pub struct Arguments {
    /// Case file: a counterexample of `check`, or a case of an attention layer
    file: PathBuf,
    #[command(flatten)]
    subject: subject::Choice,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let name = arguments.file.display().to_string();
    let sequence = match Reader::default().read(&arguments.file, &name)? {
        CaseFile::Sequence(stored) => stored.sequence,
        CaseFile::Attention(case) => case.sequence(),
        CaseFile::Stage(stored) => return stage(&stored.call, arguments),
        CaseFile::Quantisation(_) | CaseFile::Calibration(_) => {
            let expected = "a sequence or a case of an attention layer";
            return Err(format!("{name}: found another kind of case file, expected {expected}").into());
        }
    };
    let mut subject = arguments.subject.open()?;
    let observation = ask(subject.as_mut(), &sequence);
    let verdicts = judge_observation(&observation, subject.rounding_model());
    print(&replay(&subject.name(), &observation, &verdicts))?;
    let conforms = verdicts.iter().all(|verdict| verdict.conforms());
    Ok(if conforms { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A question to one stage.
fn stage(call: &StageCall, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut subject = arguments.subject.open()?;
    let answer = ask_stage(subject.as_mut(), call);
    let verdict = judge_stage(call, &answer, subject.rounding_model());
    print(&replay_stage(&subject.name(), call, &answer, &verdict))?;
    Ok(if verdict.conforms() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
