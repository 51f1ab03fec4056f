//! `doublecheck verify [PATH…] [--subject reference|engine|torch|torch-cache|torch-cache-storage] [--device cpu|cuda|cuda:N] [--json FILE] [--html FILE]`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::limit::Limit;
use super::{Delivery, Failure, check_writable, interrupts, subject};
use crate::cases::bundled;
use crate::reports::{html, verify as text};
use crate::runner::verify::{VerifyOptions, verify};
use crate::verdicts::invariants::INVARIANTS;
use crate::visible;

#[derive(Args)]
pub struct Arguments {
    /// Case files, or folders of them [default: the bundled cases]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    subject: subject::Choice,
    #[command(flatten)]
    limit: Limit,
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
    /// Leave times out of text, JSON and HTML, so that they are the same for each run
    #[arg(long)]
    no_times: bool,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    for path in arguments.json.iter().chain(&arguments.html) {
        check_writable(path)?;
    }
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
        bar.set_message(visible::one_line(step).into_owned());
    };
    let options = VerifyOptions {
        memory: arguments.limit.memory,
        interrupted: Some(interrupts::end_cleanly()?),
        ..VerifyOptions::new(arguments.random_cases, arguments.seed)
    };
    let mut report = verify(&files, subject.as_mut(), options, &mut progress);
    bar.finish_and_clear();
    if arguments.no_times {
        report.leave_out_times();
    }
    let delivery = Delivery::default().json(arguments.json.as_deref(), &report);
    let delivery = delivery.text(arguments.html.as_deref(), || html::verify(&report));
    delivery.with(&text::render(&report, !arguments.no_times))?;
    Ok(ExitCode::from(report.exit_code()))
}
