//! What is told while a check runs, on standard error: a bar where there is a terminal, otherwise a line now and then. Each finding
//! is told at once and, where findings are written, written at once, before it is shrunk.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, complain};
use crate::reports::{check, counterexamples};
use crate::runner::check::{Event, Finding, Progress};

/// The time between lines where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// The length of the bar.
const WHOLE: f64 = 1000.0;

pub struct Watching<'a> {
    bar: ProgressBar,
    in_terminal: bool,
    out: Option<&'a Path>,
    subject: String,
    start: Instant,
    told: Instant,
}

impl<'a> Watching<'a> {
    /// Findings go to the folder `out`. Errors: none that a user can cause.
    pub fn new(out: Option<&'a Path>, subject: String) -> Result<Self, Failure> {
        let style = ProgressStyle::with_template("{bar:20} {elapsed} {wide_msg}")?;
        let bar = ProgressBar::new(WHOLE as u64).with_style(style);
        let now = Instant::now();
        Ok(Self { bar, in_terminal: std::io::stderr().is_terminal(), out, subject, start: now, told: now })
    }

    pub fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Asking(progress) => self.progress(&progress),
            Event::Found(number, finding) => {
                let Finding { kind, first_seen, size, .. } = finding;
                self.tell(&format!("FINDING {number}: {kind}, in {first_seen} ({size})"));
                self.write(number, finding, counterexamples::write_unshrunk);
            }
            Event::Shrinking(number, tries) => {
                self.now(|| format!("shrinking finding {number}, {tries} tries"))
            }
            Event::Naming(findings) => self.now(|| format!("naming the causes of {findings} findings")),
            Event::Shrunk(number, finding) => {
                self.tell(&format!("finding {number}: {}", check::shrinking(finding)));
                self.write(number, finding, counterexamples::write_shrunk);
            }
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn progress(&mut self, progress: &Progress) {
        let Progress { done, asked, per_second, keys, findings } = *progress;
        let plural = if findings == 1 { "finding" } else { "findings" };
        self.bar.set_position((done * WHOLE) as u64);
        self.now(|| {
            let done = 100.0 * done;
            format!("{done:.0} %, {asked} asked, {per_second:.1} a second, {keys} keys, {findings} {plural}")
        });
    }

    /// What it is doing now: beside the bar, or on a line if it is time for one.
    fn now(&mut self, words: impl FnOnce() -> String) {
        if self.in_terminal {
            self.bar.set_message(words());
        } else if self.told.elapsed() >= BETWEEN_LINES {
            self.tell(&words());
        }
    }

    fn tell(&mut self, words: &str) {
        self.told = Instant::now();
        let seconds = self.start.elapsed().as_secs();
        self.bar.suspend(|| complain(&format!("doublecheck: {seconds} s: {words}")));
    }

    fn write(
        &mut self,
        number: usize,
        finding: &Finding,
        write: fn(usize, &Finding, &str, &Path) -> std::io::Result<()>,
    ) {
        if let Some(folder) = self.out
            && let Err(error) = write(number, finding, &self.subject, folder)
        {
            self.tell(&format!("cannot write to {}: {error}", folder.display()));
        }
    }
}
