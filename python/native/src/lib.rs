//! The compiled module of the Python package `doublecheck`: the command, and checks of kernels in their own process. What it says
//! and takes is made for the package alone, which is in `python/doublecheck`.

#![deny(unsafe_code)]

mod dlpack;
mod kernel;
mod question;
mod report;
mod tensors;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use doublecheck::behaviours::Fault;
use doublecheck::cases::{Takes, bundled};
use doublecheck::subjects::Process;
use doublecheck::{
    Event, Limits, Options, Shard, Subject, check_sequence, check_session, check_stage_call, check_with,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use self::kernel::Kernel;
use self::question::{Asked, Question, declaration};
use self::report::Report;
use self::tensors::Halves;

/// The time between two looks at how far a check is.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Ends a check cleanly: what was found so far is reported.
#[pyclass(frozen, module = "doublecheck._native")]
pub struct Stop {
    flag: &'static AtomicBool,
}

#[pymethods]
impl Stop {
    #[new]
    fn new() -> Self {
        // The library takes one that lives as long as the process; a check takes seconds, and this one byte.
        Self { flag: Box::leak(Box::new(AtomicBool::new(false))) }
    }

    fn set(&self) {
        self.flag.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }
}

/// The command `doublecheck`, with the name of the program first. Returns its exit code; where the arguments are wrong, or ask for
/// help, the process ends.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    let code = py.detach(|| doublecheck::command_with(arguments));
    // An ExitCode says nothing about itself but whether it equals another.
    (0..=u8::MAX).find(|&found| ExitCode::from(found) == code).unwrap_or(u8::MAX)
}

/// Checks a kernel, or a command where there is none: everything that its declaration allows, or one question alone, whose first failure is shrunk.
///
/// `watch` is called with a share from 0 to 1 or None, and a text, now and then. Errors: ValueError with the field, what was found and
/// what was expected; KeyboardInterrupt where a kernel was interrupted.
#[pyfunction]
#[pyo3(signature = (kernel, declared, stop, watch, *, bits, command="", timeout=30.0, only=None, seconds=None, cases=None, seed=0, largest_keys=None,
    known=Vec::new(), goldens=true, shrink_seconds=60.0, stop_after=None, repeat=1, probes=true, conditions=true, shard=None))]
#[expect(clippy::too_many_arguments, reason = "keywords, which Python names")]
fn check(
    py: Python<'_>,
    kernel: Option<Py<PyAny>>,
    declared: &str,
    stop: &Stop,
    watch: Option<Py<PyAny>>,
    bits: bool,
    command: &str,
    timeout: f64,
    only: Option<&Question>,
    seconds: Option<f64>,
    cases: Option<usize>,
    seed: u64,
    largest_keys: Option<usize>,
    known: Vec<String>,
    goldens: bool,
    shrink_seconds: f64,
    stop_after: Option<NonZeroUsize>,
    repeat: usize,
    probes: bool,
    conditions: bool,
    shard: Option<(NonZeroUsize, NonZeroUsize)>,
) -> PyResult<Report> {
    let halves = if bits { Halves::Bits } else { Halves::Widened };
    let mut asked = match kernel {
        Some(kernel) => {
            Checked::Kernel(Box::new(Kernel::new(kernel, declaration(declared)?, halves, stop.flag)))
        }
        None => {
            let timeout = duration("timeout", timeout)?;
            let process = py.detach(|| Process::start(command, timeout));
            Checked::Process(Box::new(process.map_err(|error| PyValueError::new_err(error.to_string()))?))
        }
    };
    let largest = match (seconds, asked.subject().capabilities().stages.takes) {
        (None, _) => 16_384,
        (Some(_), Takes::Scores) => 1_048_576,
        (Some(_), Takes::Inputs | Takes::Selection) => 131_072,
    };
    let mut faults = Vec::new();
    for name in &known {
        let found = Fault::find_all(name);
        if found.is_empty() {
            return Err(PyValueError::new_err(format!(
                "known: found {name:?}, expected D1 to D23 or a name in docs/findings.md"
            )));
        }
        faults.extend(found);
    }
    let goldens = match goldens && only.is_none() {
        true => bundled::cases().map_err(|error| PyValueError::new_err(error.to_string()))?,
        false => Vec::new(),
    };
    let shard = match shard {
        None => Shard::WHOLE,
        Some((number, of)) => Shard::new(number, of).ok_or_else(|| {
            PyValueError::new_err(format!("shard: found ({number}, {of}), expected a number up to {of}"))
        })?,
    };
    let options = Options {
        cases: cases.unwrap_or(usize::MAX),
        seconds: seconds.map(|found| duration("seconds", found)).transpose()?,
        seed,
        largest_keys: largest_keys.unwrap_or(largest),
        known: faults,
        goldens,
        shrinking: Limits {
            tries: if shrink_seconds == 0.0 { 0 } else { Limits::default().tries },
            ..Limits::default()
        },
        shrinking_in_all: Some(duration("shrink_seconds", shrink_seconds)?),
        stop_after,
        repeat: repeat.max(1),
        interrupted: Some(stop.flag),
        probes,
        conditions,
        shard,
        ..Options::default()
    };
    let mut looked = Instant::now();
    let mut tell = |event: Event<'_>| {
        let now = matches!(event, Event::Found(..) | Event::Shrunk(..) | Event::Naming(_));
        if stop.is_set() || !(now || looked.elapsed() >= BETWEEN_LOOKS) {
            return;
        }
        looked = Instant::now();
        let (share, text) = words(&event);
        Python::attach(|py| {
            let told = watch.as_ref().map_or(Ok(()), |watch| watch.call1(py, (share, text)).map(drop));
            if told.and_then(|()| py.check_signals()).is_err() {
                stop.set();
            }
        });
    };
    let report = py.detach(|| {
        let subject = asked.subject();
        match only.map(|only| &only.asked) {
            None => check_with(subject, &options, &mut tell),
            Some(Asked::Calls { sequence, .. }) => check_sequence(subject, sequence, &options, &mut tell),
            Some(Asked::Session { session, .. }) => check_session(subject, session, &options, &mut tell),
            Some(Asked::Stage { name, call }) => check_stage_call(subject, (name, call), &options, &mut tell),
        }
    });
    if let Checked::Kernel(kernel) = asked {
        kernel.ended()?;
    }
    Ok(Report::new(report))
}

/// Who is checked.
enum Checked {
    /// In this process.
    Kernel(Box<Kernel>),
    /// In one of its own.
    Process(Box<Process>),
}

impl Checked {
    fn subject(&mut self) -> &mut dyn Subject {
        match self {
            Self::Kernel(kernel) => kernel.as_mut(),
            Self::Process(process) => process.as_mut(),
        }
    }
}

fn duration(field: &str, found: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(found)
        .map_err(|_| PyValueError::new_err(format!("{field}: found {found}, expected seconds")))
}

/// How far it is, and what happens.
fn words(event: &Event<'_>) -> (Option<f64>, String) {
    match event {
        Event::Asking(progress) => {
            let plural = if progress.findings == 1 { "finding" } else { "findings" };
            let text = format!(
                "{} asked, {:.0} a second, {} keys, {} {plural}",
                progress.asked, progress.per_second, progress.keys, progress.findings
            );
            (Some(progress.done), text)
        }
        Event::Found(number, finding) => (
            None,
            format!("FINDING {number}: {}, in {} ({})", finding.kind, finding.first_seen, finding.size),
        ),
        Event::Shrinking(number, tries) => (Some(1.0), format!("shrinking finding {number}, {tries} tries")),
        Event::Shrunk(number, finding) => (None, format!("finding {number}: shrunk to {}", finding.size)),
        Event::Naming(findings) => (Some(1.0), format!("naming the causes of {findings} findings")),
    }
}

/// The compiled module.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::dlpack::Bfloat16;
    #[pymodule_export]
    use super::question::{Question, load, parse, seconds_of_asking};
    #[pymodule_export]
    use super::report::{Finding, Report, merge};
    #[pymodule_export]
    use super::{Stop, check, main};
}
