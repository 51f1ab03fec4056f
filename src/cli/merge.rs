//! `doublecheck merge A.json B.json … [--json FILE]`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value};

use super::limit::Limit;
use super::{Delivery, Failure, check_writable};
use crate::reports::merge::merge;

#[derive(Args)]
pub struct Arguments {
    /// Reports that `check --json` wrote: shares of one check, or checks of one subject with a seed each
    #[arg(required = true)]
    reports: Vec<PathBuf>,
    #[command(flatten)]
    limit: Limit,
    /// Write the report of all of them as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    arguments.json.iter().try_for_each(|path| check_writable(path))?;
    let read = |path: &PathBuf| -> Result<(String, Map<String, Value>), Failure> {
        let name = path.display().to_string();
        let report = serde_json::from_str(&arguments.limit.memory.read_json(path)?);
        let report =
            report.map_err(|error| format!("{name}: {error}, expected a report of `check --json`"))?;
        Ok((name, report))
    };
    let merged = merge(arguments.reports.iter().map(read).collect::<Result<_, _>>()?)?;
    Delivery::default().json(arguments.json.as_deref(), &merged.report).with(&merged.render())?;
    Ok(ExitCode::from(merged.exit_code()))
}
