//! What a check found, for Python.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use doublecheck::report::{finding_in_words, html, in_words, write_counterexamples, write_finding};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::question::Question;

/// The report of a check.
#[pyclass(frozen, module = "doublecheck._native")]
pub struct Report {
    report: Arc<doublecheck::Report>,
    /// Written to by `save` alone, which notes the files.
    saving: Mutex<()>,
}

impl Report {
    /// What the library reports.
    pub fn new(report: doublecheck::Report) -> Self {
        Self { report: Arc::new(report), saving: Mutex::new(()) }
    }
}

#[pymethods]
impl Report {
    /// Whether nothing diverged except as declared.
    #[getter]
    fn conforms(&self) -> bool {
        self.report.conforms()
    }

    #[getter]
    fn interrupted(&self) -> bool {
        self.report.interrupted
    }

    /// The report as text.
    fn text(&self, times: bool) -> String {
        in_words(&self.report, times)
    }

    /// The report as JSON, as `check --json` writes it.
    fn json(&self) -> PyResult<String> {
        serde_json::to_string_pretty(&*self.report).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// The report as one HTML file; `again` is how the subject is named in it.
    fn html(&self, again: &str) -> String {
        html(&self.report, again)
    }

    /// Writes each counterexample to a folder, in place of those of an earlier run. Returns the case files.
    fn save(&self, folder: PathBuf) -> PyResult<Vec<PathBuf>> {
        let _alone = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::create_dir_all(&folder)?;
        let mut report = doublecheck::Report::clone(&self.report);
        write_counterexamples(&mut report, &folder)
            .map_err(|error| PyOSError::new_err(format!("cannot write to {}: {error}", folder.display())))?;
        Ok(report.findings.into_iter().filter_map(|finding| finding.file).collect())
    }

    /// The findings, in order.
    fn findings(&self) -> Vec<Finding> {
        (0..self.report.findings.len()).map(|index| Finding { report: self.report.clone(), index }).collect()
    }
}

/// Reports of a check that was split, by name as JSON, put together: JSON, text, and whether all of it conforms.
#[pyfunction]
pub fn merge(reports: Vec<(String, String)>) -> PyResult<(String, String, bool)> {
    let read = |(name, report): (String, String)| {
        let report =
            serde_json::from_str(&report).map_err(|error| format!("{name}: {error}, expected a report"))?;
        Ok((name, report))
    };
    let reports = reports.into_iter().map(read).collect::<Result<_, String>>();
    let merged = reports.and_then(doublecheck::report::merge).map_err(PyValueError::new_err)?;
    let json = serde_json::to_string_pretty(&merged.report)
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok((json, merged.render(), merged.exit_code() == 0))
}

/// One finding of a report.
#[pyclass(frozen, module = "doublecheck._native")]
pub struct Finding {
    report: Arc<doublecheck::Report>,
    index: usize,
}

impl Finding {
    fn finding(&self) -> &doublecheck::Finding {
        &self.report.findings[self.index]
    }
}

#[pymethods]
impl Finding {
    #[getter]
    fn kind(&self) -> &'static str {
        self.finding().kind
    }

    #[getter]
    fn stage(&self) -> Option<&'static str> {
        self.finding().stage
    }

    #[getter]
    fn diagnosis(&self) -> &str {
        &self.finding().sentence
    }

    #[getter]
    fn explanations(&self) -> Vec<String> {
        self.finding().explanations.clone()
    }

    /// The failing call of the counterexample; of a session the one that the failing attend stands for, `None` where another step fails.
    #[getter]
    fn call(&self) -> Option<usize> {
        let Some(example) = &self.finding().session else { return Some(self.finding().call) };
        let failure = example.failure.as_ref()?;
        let step = failure.step?;
        let calls = example.observation.session.calls().ok()?;
        let first = calls.iter().position(|(of, _)| *of == step)?;
        Some(first + failure.place.unwrap_or(0))
    }

    /// The failing step of a session.
    #[getter]
    fn step(&self) -> Option<usize> {
        self.finding().session.as_ref()?.failure.as_ref()?.step
    }

    fn text(&self) -> String {
        finding_in_words(self.index, self.finding())
    }

    /// Writes the counterexample: a case file, and beside it a text of the same name.
    fn save(&self, path: PathBuf) -> PyResult<()> {
        write_finding(self.index + 1, self.finding(), &self.report.subject, &path)
            .map_err(|error| PyOSError::new_err(format!("cannot write {}: {error}", path.display())))
    }

    /// The counterexample.
    fn question(&self) -> PyResult<Question> {
        let finding = self.finding();
        Ok(match (&finding.example, &finding.session) {
            (Some(example), _) => Question::of_stage(finding.first_seen.clone(), example.call.clone()),
            (None, Some(example)) => Question::of_session(example.observation.session.clone())?,
            (None, None) => {
                let before = finding.state.as_ref().map_or_else(Vec::new, |state| state.earlier.clone());
                Question::of_sequence(finding.observation.sequence.clone(), before)
            }
        })
    }
}
