//! Counterexamples as files.

use std::path::Path;

use super::check;
use crate::cases::{file, stage_file};
use crate::runner::check::Report;

/// Writes each counterexample as a case file and as text, in place of those of an earlier run, and notes the files in the
/// report. Errors: those of writing.
pub fn write(report: &mut Report, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let stem =
            path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.strip_prefix("finding-"));
        let ours = stem.is_some_and(|number| number.parse::<usize>().is_ok());
        if ours && path.extension().is_some_and(|kind| kind == "safetensors" || kind == "txt") {
            std::fs::remove_file(path)?;
        }
    }
    let (subject, version) = (report.subject.clone(), report.version);
    for (index, finding) in report.findings.iter_mut().enumerate() {
        let path = folder.join(format!("finding-{}.safetensors", index + 1));
        let source =
            format!("doublecheck {version}: {subject} diverges: {}", finding.explanations.join("; "));
        let bytes = match &finding.example {
            Some(example) => stage_file::to_bytes(&example.call, &source),
            None => file::sequence_to_bytes(&finding.observation.sequence, &source),
        };
        std::fs::write(&path, bytes)?;
        std::fs::write(path.with_extension("txt"), check::finding(index, finding))?;
        finding.file = Some(path);
    }
    Ok(())
}
