//! `doublecheck check --command "…" [--cases N] [--seed S] [--profile NAME] [--known D3,D6] [--timeout S] [--out DIR] [--html FILE] [--probe]`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use doublecheck::Options;
use doublecheck::algorithm::Rules;
use doublecheck::cases::{Capabilities, bundled, profiles, rule_names};
use doublecheck::reports::check::render;
use doublecheck::reports::counterexamples;
use doublecheck::reports::{html, probes};
use doublecheck::runner::check::{check_with_progress, probe_only};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, print, subject, write};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: subject::Choice,
    /// Random sequences
    #[arg(long, value_name = "N", default_value_t = 1000)]
    cases: usize,
    /// Seed of the random sequences
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// One large call is asked for every 16 random sequences, of at most this many keys; 0 asks none
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    largest_keys: usize,
    /// Ask only what this kind of implementation supports: everything, author or hub
    #[arg(long, value_name = "NAME", default_value = "everything")]
    profile: String,
    /// Rules to ask for, by name: double-sparsity, sglang-v1, sglang-v2, sglang-v2-cosine, twilight or dsa-indexer, separated by
    /// commas [default: those the subject declares]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    rules: Vec<String>,
    /// Divergences that are known: names or rows of SPEC §3, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    known: Vec<String>,
    /// How often each sequence is asked; 1 still asks a small share again
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    repeat: usize,
    /// Case files, or folders of them, to ask as well [default: the bundled cases]
    #[arg(long, value_name = "PATH")]
    goldens: Vec<PathBuf>,
    /// Ask random sequences only
    #[arg(long, conflicts_with = "goldens")]
    no_goldens: bool,
    /// Where counterexamples go, each as a case file and as text
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the whole report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the whole report as one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure the wires of the subject and print the table of what it does; nothing else is asked
    #[arg(long, conflicts_with = "out")]
    probe: bool,
    /// Leave times out of the text, so that it is the same for each run
    #[arg(long)]
    no_times: bool,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut profile = profile(&arguments.profile)?;
    if !arguments.rules.is_empty() {
        profile.rules = arguments.rules.iter().map(|name| rules(name)).collect::<Result<_, _>>()?;
    }
    let known = subject::faults(&arguments.known, "--known")?;
    let mut goldens = Vec::new();
    if !arguments.no_goldens && arguments.goldens.is_empty() {
        goldens = bundled::cases()?;
    }
    for path in &arguments.goldens {
        goldens.extend(bundled::find(path)?);
    }
    let mut subject = arguments.subject.open()?;
    let options = Options {
        cases: arguments.cases,
        seed: arguments.seed,
        largest_keys: arguments.largest_keys,
        profile,
        known,
        goldens,
        repeat: arguments.repeat,
        ..Options::default()
    };
    let bar = ProgressBar::new(arguments.cases as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {per_sec} {wide_msg}")?);
    let mut progress = |asked: usize, of: usize, findings: usize| {
        bar.set_length(of as u64);
        bar.set_position(asked as u64);
        if findings > 0 {
            bar.set_message(format!("findings: {findings}"));
        }
    };
    let mut report = if arguments.probe {
        probe_only(subject.as_mut(), &options)
    } else {
        check_with_progress(subject.as_mut(), &options, &mut progress)
    };
    bar.finish_and_clear();
    if let Some(folder) = &arguments.out {
        counterexamples::write(&mut report, folder)
            .map_err(|error| format!("cannot write to {}: {error}", folder.display()))?;
    }
    if let Some(path) = &arguments.json {
        write(path, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    if let Some(path) = &arguments.html {
        write(path, &html::check(&report, &arguments.subject.again()))?;
    }
    match report.probes.as_ref().filter(|_| arguments.probe) {
        Some(probed) => {
            let header = format!("subject: {} (rounding model: {})\n", report.subject, report.rounding_model);
            print(&(header + &probes::table(probed, !arguments.no_times)))?;
        }
        None => print(&render(&report, !arguments.no_times))?,
    }
    Ok(ExitCode::from(report.exit_code()))
}

fn rules(name: &str) -> Result<Rules, Failure> {
    rule_names::find(name).ok_or_else(|| {
        let expected = rule_names::NAMES.join(", ");
        format!("--rules: found {name:?}, expected {expected}").into()
    })
}

fn profile(name: &str) -> Result<Capabilities, Failure> {
    profiles::find(name).ok_or_else(|| {
        let expected: Vec<_> = profiles::NAMES.to_vec();
        format!("--profile: found {name:?}, expected {}", expected.join(", ")).into()
    })
}
