//! `doublecheck replay FILE --command "…"`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use doublecheck::cases::{CaseFile, Reader};
use doublecheck::reports::check::replay;
use doublecheck::subjects::ask;
use doublecheck::verdicts::judge::judge_observation;

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
