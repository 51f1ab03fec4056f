//! `doublecheck replay FILE --command "…" [--shrink --out FILE]`

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::limit::Limit;
use super::watching::Watching;
use super::{Failure, check_writable, interrupts, print, seconds, subject};
use crate::Options;
use crate::cases::{CaseFile, Reader, Sequence, Session, StageCall};
use crate::reports::check::{finding as finding_in_words, replay, replay_stage};
use crate::reports::counterexamples::write_finding;
use crate::reports::sequence::render;
use crate::reports::sessions::replay as replay_session;
use crate::runner::check::{Event, check_sequence, check_session, check_stage_call};
use crate::runner::shrink::Limits;
use crate::subjects::{Subject, ask, ask_session, ask_stage};
use crate::verdicts::judge::judge_observation;
use crate::verdicts::{judge_session, judge_stage};

#[derive(Args)]
pub struct Arguments {
    /// Case file: a counterexample of `check`, or a case of an attention layer
    file: PathBuf,
    #[command(flatten)]
    subject: subject::Choice,
    #[command(flatten)]
    limit: Limit,
    /// Go on shrinking it, and write what is found to --out
    #[arg(long, requires = "out")]
    shrink: bool,
    /// Seconds for shrinking
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds, requires = "shrink")]
    shrink_seconds: Duration,
    /// Where the smaller counterexample goes: a case file, and beside it a text of the same name
    #[arg(long, value_name = "FILE", requires = "shrink")]
    out: Option<PathBuf>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let name = arguments.file.display().to_string();
    let (sequence, before) = match Reader::within(arguments.limit.memory).read(&arguments.file, &name)? {
        CaseFile::Sequence(stored) => (stored.sequence, stored.before),
        CaseFile::Attention(case) => (case.sequence(), Vec::new()),
        CaseFile::Stage(stored) => return stage(&name, &stored.call, arguments),
        CaseFile::Session(stored) => return session(&stored.session, arguments),
        CaseFile::Quantisation(_) | CaseFile::Calibration(_) => {
            let expected = "a sequence or a case of an attention layer";
            return Err(format!("{name}: found another kind of case file, expected {expected}").into());
        }
    };
    arguments.out.as_deref().map(check_writable).transpose()?;
    let mut subject = arguments.subject.open()?;
    if let Some(out) = &arguments.out {
        if !before.is_empty() {
            let (found, expected) = ("sequences to be asked before it", "a counterexample without them");
            return Err(format!("--shrink: {name} holds {found}, expected {expected}").into());
        }
        return shrink(subject.as_mut(), arguments.shrink_seconds, out, &Question::Sequence(&sequence));
    }
    for earlier in &before {
        ask(subject.as_mut(), earlier);
        print(&format!("asked before: {}\n", render(earlier, "")))?;
    }
    let observation = ask(subject.as_mut(), &sequence);
    let verdicts = judge_observation(&observation, subject.rounding_model());
    print(&replay(&subject.name(), &observation, &verdicts))?;
    let conforms = verdicts.iter().all(|verdict| verdict.conforms());
    Ok(if conforms { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A session.
fn session(session: &Session, arguments: &Arguments) -> Result<ExitCode, Failure> {
    arguments.out.as_deref().map(check_writable).transpose()?;
    let mut subject = arguments.subject.open()?;
    if !subject.capabilities().sessions {
        let name = subject.name();
        return Err(format!("{}: found a session, expected a case that {name} offers", session.name).into());
    }
    if let Some(out) = &arguments.out {
        return shrink(subject.as_mut(), arguments.shrink_seconds, out, &Question::Session(session));
    }
    let observation = ask_session(subject.as_mut(), session);
    let verdict = judge_session(&observation, subject.rounding_model());
    print(&replay_session(&subject.name(), &observation, &verdict))?;
    Ok(if verdict.conforms() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is asked again.
enum Question<'a> {
    Sequence(&'a Sequence),
    Session(&'a Session),
    /// A question to one stage, and its name.
    Stage(&'a str, &'a StageCall),
}

/// Checks one sequence or one question, and writes the first finding.
fn shrink(
    subject: &mut dyn Subject,
    seconds: Duration,
    out: &Path,
    question: &Question<'_>,
) -> Result<ExitCode, Failure> {
    let options = Options {
        shrinking: Limits { tries: usize::MAX, ..Limits::default() },
        shrinking_in_all: Some(seconds),
        stop_after: Some(NonZeroUsize::MIN),
        interrupted: Some(interrupts::end_cleanly()?),
        ..Options::default()
    };
    if out.extension().is_some_and(|extension| extension == "txt") {
        let found = out.display();
        return Err(format!("--out: found {found}, expected another ending, as the text goes to .txt").into());
    }
    let mut watching = Watching::new(None, subject.name())?;
    let mut watch = |event: Event<'_>| watching.event(event);
    let report = match *question {
        Question::Sequence(sequence) => check_sequence(subject, sequence, &options, &mut watch),
        Question::Session(session) => check_session(subject, session, &options, &mut watch),
        Question::Stage(name, call) => check_stage_call(subject, (name, call), &options, &mut watch),
    };
    watching.end();
    let Some(finding) = report.findings.first() else {
        print("conforms: there is nothing to shrink\n")?;
        return Ok(ExitCode::SUCCESS);
    };
    write_finding(1, finding, &report.subject, out)
        .map_err(|error| format!("cannot write {}: {error}", out.display()))?;
    print(&(finding_in_words(0, finding) + &format!("\nwritten to {}\n", out.display())))?;
    Ok(ExitCode::FAILURE)
}

/// A question to one stage.
fn stage(name: &str, call: &StageCall, arguments: &Arguments) -> Result<ExitCode, Failure> {
    arguments.out.as_deref().map(check_writable).transpose()?;
    let mut subject = arguments.subject.open()?;
    if let Some(out) = &arguments.out {
        return shrink(subject.as_mut(), arguments.shrink_seconds, out, &Question::Stage(name, call));
    }
    let answer = ask_stage(subject.as_mut(), call);
    let verdict = judge_stage(call, &answer, subject.rounding_model());
    print(&replay_stage(&subject.name(), call, &answer, &verdict))?;
    Ok(if verdict.conforms() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
