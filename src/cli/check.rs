//! `doublecheck check --command "…" [--seconds S] [--seed S] [--profile NAME] [--known D3,known.toml] [--out DIR] [--html FILE] [--junit FILE] [--probe]`

use std::fs::{File, TryLockError};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::limit::Limit;
use super::watching::Watching;
use super::{Delivery, Failure, check_writable, clock, interrupts, known, seconds, subject};
use crate::Options;
use crate::algorithm::Rules;
use crate::cases::{Capabilities, Takes, bundled, profiles, rule_names};
use crate::reports::badge::Badge;
use crate::reports::check::render;
use crate::reports::record::Record;
use crate::reports::{counterexamples, html, junit, markdown, probes};
use crate::runner::check::{Shard, check_sessions, check_with, probe_only};
use crate::runner::shrink::Limits;

/// How long a subject is asked by default.
const DEFAULT_TIME: Duration = Duration::from_secs(60);

/// How long findings are shrunk where nothing else is said.
const FOR_SHRINKING: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: subject::Choice,
    #[command(flatten)]
    limit: Limit,
    /// Seconds to ask for: small sequences first, then larger ones and goldens, in stages of growing size. Shrinking comes on top
    /// [default: 60 without --cases]
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Random sequences, the same ones in each run, and all goldens; with --seconds at most so many, and as many goldens as fit
    #[arg(long, value_name = "N")]
    cases: Option<usize>,
    /// Random sessions alone, of a subject that offers them; nothing else is asked
    #[arg(long, value_name = "N", conflicts_with_all = ["cases", "seconds", "probe"])]
    sessions: Option<usize>,
    /// Seed of the random sequences
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Ask one of several shares of the questions, 3/16 for the third of 16: all of them ask what one check would, each once.
    /// See `merge`
    #[arg(long, value_name = "K/N", conflicts_with = "probe", default_value_t = Shard::WHOLE, hide_default_value = true)]
    shard: Shard,
    /// The most keys of random calls; 0 asks no large ones. With --cases there is one large call for every 16 random sequences
    /// [default: 131072, 1048576 for a subject that takes scores, or 16384 with --cases alone]
    #[arg(long, value_name = "N")]
    largest_keys: Option<usize>,
    /// Ask at most so many distinct shapes of calls, and other numbers in each: for implementations that compile for each shape
    /// [default: what the subject declares]
    #[arg(long, value_name = "N")]
    shapes: Option<NonZeroUsize>,
    /// Ask only what this kind of implementation supports: everything, author or hub
    #[arg(long, value_name = "NAME", default_value = "everything")]
    profile: String,
    /// Rules to ask for, by name: double-sparsity, sglang-v1, sglang-v2, sglang-v2-cosine, twilight or dsa-indexer, separated by
    /// commas [default: those the subject declares]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    rules: Vec<String>,
    /// Divergences that are known: names or rows of SPEC §3, or TOML files of them and of findings, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    known: Vec<String>,
    /// Fail if a divergence that is declared as known does not occur
    #[arg(long, requires = "known", conflicts_with = "probe")]
    strict_known: bool,
    /// How often each sequence is asked; 1 still asks a small share again
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    repeat: usize,
    /// Case files, or folders of them, to ask as well [default: the bundled cases]
    #[arg(long, value_name = "PATH")]
    goldens: Vec<PathBuf>,
    /// Ask random sequences only
    #[arg(long, conflicts_with = "goldens")]
    no_goldens: bool,
    /// Seconds for shrinking all findings together; each gets at most half of what is left, or all with
    /// --stop-after 1. Causes are looked for as long, and 60 seconds at least [default: 60, or as long as it takes with --no-times]
    #[arg(long, value_name = "S", value_parser = seconds)]
    shrink_seconds: Option<Duration>,
    /// Report findings as they were first seen
    #[arg(long, conflicts_with = "shrink_seconds")]
    no_shrink: bool,
    /// Look for no causes and no conditions: the verdict is the same, and comes sooner
    #[arg(long)]
    no_causes: bool,
    /// Ask nothing more after so many findings
    #[arg(long, value_name = "N")]
    stop_after: Option<NonZeroUsize>,
    /// Where counterexamples go, each as a case file and as text
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the whole report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the whole report as one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the outcome as JUnit XML, for a CI system
    #[arg(long, value_name = "FILE", conflicts_with = "probe")]
    junit: Option<PathBuf>,
    /// Write a summary as Markdown, for the page of a CI job
    #[arg(long, value_name = "FILE", conflicts_with = "probe")]
    markdown: Option<PathBuf>,
    /// Write the JSON of a badge, for shields.io
    #[arg(long, value_name = "FILE", conflicts_with = "probe")]
    badge: Option<PathBuf>,
    /// Measure the wires of the subject and print the table of what it does; nothing else is asked
    #[arg(long, conflicts_with = "out")]
    probe: bool,
    /// Leave times out of text and files, so that they are the same for each run. Without --seconds, searches for smaller examples and for
    /// causes then end by counts alone, not by the clock
    #[arg(long)]
    no_times: bool,
}

impl Arguments {
    /// The files to be written.
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.json, &self.html, &self.junit, &self.markdown, &self.badge].into_iter().flatten()
    }
}

/// `command` is the line that asks for it.
pub fn main(arguments: &Arguments, command: String) -> Result<ExitCode, Failure> {
    let date = clock::now();
    let mut profile = profile(&arguments.profile)?;
    if !arguments.rules.is_empty() {
        profile.rules = arguments.rules.iter().map(|name| rules(name)).collect::<Result<_, _>>()?;
    }
    let declarations = known::read(&arguments.known, arguments.limit.memory)?;
    let mut goldens = Vec::new();
    if !arguments.no_goldens && arguments.goldens.is_empty() {
        goldens = bundled::cases()?;
    }
    for path in &arguments.goldens {
        goldens.extend(bundled::find(path)?);
    }
    for path in arguments.files() {
        check_writable(path)?;
    }
    let cannot_write = |folder: &Path, error| format!("cannot write to {}: {error}", folder.display());
    let out = arguments.out.as_deref();
    if let Some(folder) = out {
        counterexamples::prepare(folder).map_err(|error| cannot_write(folder, error))?;
    }
    // Held until the end.
    let _lock = out.map(own).transpose()?;
    let mut subject = arguments.subject.open()?;
    let of_count = arguments.cases.or(arguments.sessions).is_some();
    let by_time = !of_count || arguments.seconds.is_some();
    if arguments.sessions.is_some() && !subject.capabilities().sessions {
        let name = subject.name();
        return Err(
            format!("--sessions: found {name}, which offers none, expected a subject with sessions").into()
        );
    }
    let by_clock = by_time || !arguments.no_times;
    let default_keys = match (by_time, subject.capabilities().stages.takes) {
        (false, _) => 16_384,
        (true, Takes::Scores) => 1_048_576,
        (true, Takes::Inputs | Takes::Selection) => 131_072,
    };
    profile.shapes = arguments.shapes;
    let mut shrinking = Limits::default();
    if arguments.no_shrink {
        shrinking.tries = 0;
    }
    let mut options = Options {
        cases: arguments.cases.or(arguments.sessions).unwrap_or(usize::MAX),
        seconds: by_time.then(|| arguments.seconds.unwrap_or(DEFAULT_TIME)),
        seed: arguments.seed,
        shard: arguments.shard,
        largest_keys: arguments.largest_keys.unwrap_or(default_keys),
        shrinking,
        shrinking_in_all: arguments.shrink_seconds.or(by_clock.then_some(FOR_SHRINKING)),
        by_clock,
        stop_after: arguments.stop_after,
        interrupted: Some(interrupts::end_cleanly()?),
        profile,
        known: known::faults(&declarations),
        declarations,
        strict_known: arguments.strict_known,
        goldens,
        memory: arguments.limit.memory,
        repeat: arguments.repeat,
        conditions: !arguments.no_causes,
        ..Options::default()
    };
    // Who waits longer for smaller examples waits as long for causes.
    options.naming = options.naming.max(arguments.shrink_seconds.unwrap_or_default());
    if arguments.no_causes {
        options.naming = Duration::ZERO;
    }
    let mut watching = Watching::new(out, subject.name())?;
    let mut report = if arguments.probe {
        probe_only(subject.as_mut(), &options)
    } else if arguments.sessions.is_some() {
        check_sessions(subject.as_mut(), &options, &mut |event| watching.event(event))
    } else {
        check_with(subject.as_mut(), &options, &mut |event| watching.event(event))
    };
    watching.end();
    (report.date, report.command) = (Some(date), Some(command));
    let mut delivery = Delivery::default();
    if let Some(folder) = out
        && let Err(error) = counterexamples::write(&mut report, folder)
    {
        delivery.problems.push(cannot_write(folder, error));
    }
    if arguments.no_times {
        report.leave_out_times();
    }
    let text = match report.probes.as_ref().filter(|_| arguments.probe) {
        Some(probed) => {
            let header = format!("subject: {} (rounding model: {})\n", report.subject, report.rounding_model);
            header + &probes::table(probed, !arguments.no_times)
        }
        None => render(&report, !arguments.no_times),
    };
    let delivery = delivery.json(arguments.json.as_deref(), &report);
    let page = || html::check(&report, &arguments.subject.again());
    let mut delivery = delivery.text(arguments.html.as_deref(), page);
    match Record::of(&report) {
        Ok(record) => {
            delivery = delivery.text(arguments.junit.as_deref(), || junit::render(&record));
            delivery = delivery.text(arguments.markdown.as_deref(), || markdown::render(&record));
            delivery = delivery.json(arguments.badge.as_deref(), &Badge::of(&record));
        }
        Err(error) => delivery.problems.push(format!("cannot tell of the report: {error}")),
    }
    delivery.with(&text)?;
    Ok(ExitCode::from(report.exit_code()))
}

/// Keeps other runs out of a folder of counterexamples, until the result is dropped. Errors: another one is there.
fn own(folder: &Path) -> Result<File, Failure> {
    let opened = File::open(folder).map(|opened| (opened.try_lock(), opened));
    match opened {
        Ok((Err(TryLockError::WouldBlock), _)) => {
            let found = folder.display();
            Err(format!("--out: found {found} in use by another run, expected a folder of its own").into())
        }
        // Some file systems have no locks.
        Ok((_, opened)) => Ok(opened),
        Err(error) => Err(format!("cannot write to {}: {error}", folder.display()).into()),
    }
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
