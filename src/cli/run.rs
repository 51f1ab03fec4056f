//! `doublecheck run FILE -o OUT`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::Failure;
use super::limit::Limit;
use crate::cases::{CaseFile, Expectation, Reader, RoundingModel, file};
use crate::subjects::{Reference, Subject};

#[derive(Args)]
pub struct Arguments {
    /// Case file
    file: PathBuf,
    /// Where the case with the reference's answer goes
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    limit: Limit,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let name = arguments.file.display().to_string();
    let CaseFile::Attention(mut case) =
        Reader::within(arguments.limit.memory).read(&arguments.file, &name)?
    else {
        return Err(
            format!("{name}: found no metadata key \"case\", expected a case of an attention layer").into()
        );
    };
    let answer = Reference::default().answer(&case).map_err(|error| format!("{name}: {error}"))?;
    let source = format!("doublecheck {} reference", env!("CARGO_PKG_VERSION"));
    let model = Some(RoundingModel::REFERENCE);
    case.expectation = Some(Expectation { model, ..Expectation::from_answer(&answer, source) });
    file::write(&arguments.output, &case)?;
    Ok(ExitCode::SUCCESS)
}
