//! `doublecheck verify [PATH…] [--subject reference|engine|torch|torch-cache|torch-cache-storage] [--device cpu|cuda|cuda:N] [--json FILE] [--html FILE]`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, print, subject, write};
use crate::cases::bundled;
use crate::reports::{html, verify as text};
use crate::runner::verify::{VerifyOptions, verify};
use crate::verdicts::invariants::INVARIANTS;

#[derive(Args)]
pub struct Arguments {
    /// Case files, or folders of them [default: the bundled cases]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    subject: subject::Choice,
    /// Write the whole report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the whole report as one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Random cases for each invariant; 0 for none
    #[arg(long, value_name = "N", default_value_t = 200)]
    random_cases: u32,
    /// Seed of the random cases
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Leave times out of the text, so that it is the same for each run
    #[arg(long)]
    no_times: bool,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut subject = arguments.subject.open()?;
    let mut files = Vec::new();
    if arguments.paths.is_empty() {
        files = bundled::cases()?;
    }
    for path in &arguments.paths {
        files.extend(bundled::find(path)?);
    }
    let bar = ProgressBar::new((files.len() + INVARIANTS.len()) as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}")?);
    let mut progress = |step: &str| {
        bar.inc(1);
        bar.set_message(step.to_owned());
    };
    let options = VerifyOptions { random_cases: arguments.random_cases, seed: arguments.seed };
    let report = verify(&files, subject.as_mut(), options, &mut progress);
    bar.finish_and_clear();
    if let Some(path) = &arguments.json {
        write(path, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    if let Some(path) = &arguments.html {
        write(path, &html::verify(&report))?;
    }
    print(&text::render(&report, !arguments.no_times))?;
    Ok(ExitCode::from(report.exit_code()))
}
