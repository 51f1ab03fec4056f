//! Counterexamples as files: each as a case file and as text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{check, files};
use crate::cases::{file, session_file, stage_file};
use crate::runner::check::{Finding, Report};

/// What the name of a file has after the number of a finding that is still being shrunk.
const UNSHRUNK: &str = "-unshrunk";

/// Makes a folder for counterexamples. Errors: it cannot be written to.
pub fn prepare(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    files::check_writable(&folder.join("finding-1.txt"))
}

/// Writes each counterexample, in place of those of an earlier run, and notes the files in the report. Errors: those of writing.
pub fn write(report: &mut Report, folder: &Path) -> std::io::Result<()> {
    let mut written = BTreeSet::new();
    for (index, finding) in report.findings.iter_mut().enumerate() {
        let path = folder.join(format!("finding-{}.safetensors", index + 1));
        write_finding(index + 1, finding, &report.subject, &path)?;
        written.extend([path.with_extension("txt"), path.clone()]);
        finding.file = Some(path);
    }
    remove_others(folder, &written)
}

/// Removes the counterexamples of an earlier run, once those of this one are there. Errors: those of removing.
fn remove_others(folder: &Path, written: &BTreeSet<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let stem =
            path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.strip_prefix("finding-"));
        let number = stem.map(|stem| stem.strip_suffix(UNSHRUNK).unwrap_or(stem));
        let ours = number.is_some_and(|number| number.parse::<usize>().is_ok());
        if ours
            && !written.contains(&path)
            && path.extension().is_some_and(|kind| kind == "safetensors" || kind == "txt")
        {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Writes a finding that is still to be shrunk. Errors: those of writing.
pub fn write_unshrunk(number: usize, finding: &Finding, subject: &str, folder: &Path) -> std::io::Result<()> {
    write_finding(number, finding, subject, &unshrunk(number, folder))
}

/// Writes a finding that was shrunk, in place of what it was before. Errors: those of writing.
pub fn write_shrunk(number: usize, finding: &Finding, subject: &str, folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!("finding-{number}.safetensors"));
    write_finding(number, finding, subject, &path)?;
    let before = unshrunk(number, folder);
    for path in [before.with_extension("txt"), before] {
        if path.exists() {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Writes a finding as a case file and, beside it, as text. Errors: those of writing.
pub fn write_finding(number: usize, finding: &Finding, subject: &str, path: &Path) -> std::io::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let source = format!("doublecheck {version}: {subject} diverges: {}", finding.explanations.join("; "));
    let bytes = match (&finding.example, &finding.session) {
        (Some(example), _) => stage_file::to_bytes(&example.call, &source),
        (None, Some(example)) => session_file::to_bytes(&example.observation.session, &source),
        (None, None) => {
            let before = finding.state.as_ref().map_or(&[][..], |state| &state.earlier);
            file::sequence_after_to_bytes(&finding.observation.sequence, before, &source)
        }
    };
    files::write(path, &bytes)?;
    files::write(&path.with_extension("txt"), check::finding(number - 1, finding).as_bytes())
}

fn unshrunk(number: usize, folder: &Path) -> PathBuf {
    folder.join(format!("finding-{number}{UNSHRUNK}.safetensors"))
}
