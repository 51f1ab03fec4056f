//! `doublecheck faults [--list] [--cases N] [--seed S] [--only NAME] [--above KEYS] [--sessions] [--json FILE]`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use super::{Delivery, Failure, check_writable, interrupts};
use crate::Options;
use crate::reports::faults::{list, render, render_above};
use crate::runner::faults::{FaultResult, Planted};

#[derive(Args)]
pub struct Arguments {
    /// Random sequences for each fault
    #[arg(long, value_name = "N", default_value_t = 1000)]
    cases: usize,
    /// Seed of the random sequences
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print what each fault is and where the like was reported, and check nothing
    #[arg(long)]
    list: bool,
    /// Names or rows of SPEC §3, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Plant each fault only in calls of more keys than this, right below, and ask calls of more; several separated by commas
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    above: Vec<usize>,
    /// Faults of what a serving engine holds, each asked so many sessions, in place of the others
    #[arg(long, conflicts_with = "above")]
    sessions: bool,
    /// Write the matrix as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    arguments.json.as_deref().map(check_writable).transpose()?;
    let interrupted = interrupts::end_cleanly()?;
    let planted = match (arguments.only.as_slice(), arguments.sessions) {
        ([], false) => Planted::all(),
        ([], true) => Planted::of_sessions(),
        (names, _) => only(names)?,
    };
    if arguments.list {
        super::print(&list(&planted))?;
        return Ok(ExitCode::SUCCESS);
    }
    // Small sequences show every planted fault.
    let options = Options {
        cases: arguments.cases,
        seed: arguments.seed,
        largest_keys: 0,
        interrupted: Some(interrupted),
        ..Options::default()
    };
    let runs: Vec<(Planted, Option<usize>)> = match arguments.above.as_slice() {
        [] => planted.into_iter().map(|planted| (planted, None)).collect(),
        above => above.iter().flat_map(|&keys| planted.iter().map(move |&one| (one, Some(keys)))).collect(),
    };
    let bar = ProgressBar::new(runs.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}")?);
    let check = |&(planted, above): &(Planted, Option<usize>)| {
        bar.set_message(planted.name());
        let result = match above {
            None => planted.check(&options).0,
            Some(keys) => planted.check_above(&options, keys).0,
        };
        bar.inc(1);
        // What was cut short says nothing.
        (!interrupted.load(Ordering::Relaxed)).then_some(result)
    };
    // One at a time for each core: they differ in how long they take.
    let results: Vec<FaultResult> = runs.par_iter().with_max_len(1).filter_map(check).collect();
    bar.finish_and_clear();
    let mut text = if arguments.above.is_empty() { render(&results) } else { render_above(&results) };
    if results.len() < runs.len() {
        text += &format!("\ninterrupted: {} of {} were tried until then\n", results.len(), runs.len());
    }
    Delivery::default().json(arguments.json.as_deref(), &results).with(&text)?;
    Ok(if results.iter().all(|result| result.right()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is planted by these names or rows.
fn only(names: &[String]) -> Result<Vec<Planted>, Failure> {
    let mut planted = Vec::new();
    for name in names {
        let found = Planted::find_all(name);
        if found.is_empty() {
            let expected: Vec<_> = Planted::all().into_iter().map(Planted::name).collect();
            let expected = expected.join(", ");
            return Err(format!("--only: found {name:?}, expected D1 to D23 or one of {expected}").into());
        }
        planted.extend(found);
    }
    Ok(planted)
}
