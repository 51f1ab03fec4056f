//! Reading the reports of checks, and the counterexamples that they name.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::cases::Memory;
use crate::reports::record::Record;

/// Counterexamples are small: a larger file is none, or helps nobody.
const LARGEST: u64 = 2_000_000;

/// What a text of a check begins with where it holds its command.
const COMMAND: &str = "doublecheck check ";

/// A check that was read.
#[derive(Debug, Clone)]
pub struct Check {
    /// The name of its file, without `check-` and the extension.
    pub name: String,
    /// What its report says.
    pub record: Record,
    /// The command line: as the report says it, or the first line of the text beside it.
    pub command: Option<String>,
    /// The counterexample of each finding, where its file is there.
    pub counterexamples: Vec<Option<Counterexample>>,
}

/// A counterexample.
#[derive(Debug, Clone)]
pub struct Counterexample {
    /// The name of its file.
    pub name: String,
    /// What the file holds.
    pub bytes: Vec<u8>,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Loaded {
    /// In the order in which they were named.
    pub checks: Vec<Check>,
    /// JSON files of folders that are no reports of checks.
    pub skipped: Vec<PathBuf>,
    /// Counterexamples that reports name and that are not there.
    pub missing: usize,
}

/// Reads reports: files, and every `*.json` right in a folder, of which those that are no reports of checks are skipped. Errors: what
/// cannot be read; a file that is no report; a report with what it must not hold; no report at all.
pub fn load(paths: &[PathBuf], memory: Memory) -> Result<Loaded, String> {
    let (mut loaded, mut seen, mut names) = (Loaded::default(), BTreeSet::new(), BTreeSet::new());
    for path in paths {
        let cannot_read = |error: std::io::Error| format!("cannot access {}: {error}", path.display());
        let is_folder = std::fs::metadata(path).map_err(cannot_read)?.is_dir();
        let files = if is_folder { json_files(path).map_err(cannot_read)? } else { vec![path.clone()] };
        for file in files {
            if !seen.insert(std::fs::canonicalize(&file).unwrap_or_else(|_| file.clone())) {
                continue;
            }
            let text = memory.read_json(&file).map_err(|error| error.to_string())?;
            match Record::read(&text) {
                Some(record) => {
                    let record = record.map_err(|error| format!("{}: {error}", file.display()))?;
                    loaded.checks.push(check(&file, record, &mut names, &mut loaded.missing));
                }
                None if is_folder => loaded.skipped.push(file),
                None => {
                    return Err(format!(
                        "{}: found no report of a check, expected one, as check --json writes it",
                        file.display()
                    ));
                }
            }
        }
    }
    if loaded.checks.is_empty() {
        return Err("site: found no report of a check, expected some, as check --json writes them".into());
    }
    Ok(loaded)
}

/// The JSON files right in a folder, in the order of their names.
fn json_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "json") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn check(file: &Path, record: Record, names: &mut BTreeSet<String>, missing: &mut usize) -> Check {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = stem.strip_prefix("check-").unwrap_or(&stem);
    let numbered = (2..).map(|number| format!("{stem}-{number}"));
    let name = std::iter::once(stem.to_owned())
        .chain(numbered)
        .find(|name| !names.contains(name))
        .unwrap_or_default();
    names.insert(name.clone());
    let command = record.command.clone().or_else(|| command_of_text(&file.with_extension("txt")));
    let mut counterexamples = Vec::new();
    for finding in &record.findings {
        let found = finding.file.as_ref().and_then(|named| counterexample(file, Path::new(named)));
        *missing += usize::from(found.is_none() && finding.file.is_some());
        counterexamples.push(found);
    }
    Check { name, record, command, counterexamples }
}

/// The first line of a text, where it is the command.
fn command_of_text(path: &Path) -> Option<String> {
    let text = Memory::DEFAULT.read(path).ok()?;
    let line = text.split(|byte| *byte == b'\n').next()?;
    let line = str::from_utf8(line).ok()?;
    line.starts_with(COMMAND).then(|| line.to_owned())
}

/// The file of a counterexample: as a report names it, from the report's folder or one above, as far as the path of the report leads.
/// A report may be anyone's: it can name only a small case file at or below these, and not by a link.
fn counterexample(report: &Path, named: &Path) -> Option<Counterexample> {
    let below = named.components().all(|part| matches!(part, Component::Normal(_)));
    if !below || named.extension().is_none_or(|kind| kind != "safetensors") {
        return None;
    }
    let name = named.file_name()?.to_str()?.to_owned();
    let folders = report.ancestors().skip(1).chain([Path::new("")]);
    let mut files = folders.map(|folder| folder.join(named));
    let is_one = |path: &PathBuf| {
        std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() <= LARGEST)
    };
    let bytes = std::fs::read(files.find(is_one)?).ok()?;
    Some(Counterexample { name, bytes })
}
