//! The command line: one file per command, each of them only reading arguments, calling the library and printing.

mod calibrate;
mod check;
mod clock;
#[cfg(feature = "torch")]
mod eval;
mod faults;
mod inspect;
mod interrupts;
mod known;
mod limit;
mod merge;
mod replay;
mod run;
mod site;
mod subject;
mod verify;
mod watching;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::algorithm::ChannelFile;
use crate::cases::Memory;
use crate::reports::{files, quoted};
use crate::visible;

#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Judge case files and invariants; the main job
    Verify(verify::Arguments),
    /// Check an implementation: random sequences, shrinking, diagnosis
    Check(Box<check::Arguments>),
    /// Put reports of shares of a check together
    Merge(merge::Arguments),
    /// Ask one counterexample again
    Replay(replay::Arguments),
    /// Make a static site of the reports of checks
    Site(site::Arguments),
    /// Compute a case file with the reference and write the answer
    Run(run::Arguments),
    /// Show what a case file or a channel file holds
    Inspect(inspect::Arguments),
    /// Mutation-test the suite itself: each planted bug must be caught and named
    Faults(faults::Arguments),
    /// Derive a channel file from activations, or from a model and a text
    Calibrate(calibrate::Arguments),
    /// Measure what selecting keys does to a language model's answers (feature torch)
    #[cfg(feature = "torch")]
    Eval(eval::Arguments),
    /// Measure what selecting keys does to a language model's answers; not in this build, which lacks the feature torch
    #[cfg(not(feature = "torch"))]
    Eval {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<String>,
    },
}

/// What a command may fail with; the message goes to stderr and the exit code is 2.
type Failure = Box<dyn std::error::Error>;

/// What a command that needs libtorch says in a build without it.
#[cfg(not(feature = "torch"))]
const WITHOUT_TORCH: &str = "found a build without libtorch, expected one made with \
                             LIBTORCH=$(ci/libtorch) cargo build --release --features torch";

/// The command `doublecheck`, with the arguments of this process, for programs that bring it under a name of their own. Exit codes:
/// 0 where everything conforms, 1 where something diverges, 2 where it could not be asked.
pub fn main() -> ExitCode {
    main_with(std::env::args_os())
}

/// The same with other arguments, the name of the program first. Where these are wrong, or ask for help, the process ends.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let line = command_line(&arguments);
    let result = match Arguments::parse_from(arguments).command {
        Command::Verify(arguments) => verify::main(&arguments),
        Command::Check(arguments) => check::main(&arguments, line),
        Command::Merge(arguments) => merge::main(&arguments),
        Command::Replay(arguments) => replay::main(&arguments),
        Command::Site(arguments) => site::main(&arguments),
        Command::Run(arguments) => run::main(&arguments),
        Command::Inspect(arguments) => inspect::main(&arguments),
        Command::Faults(arguments) => faults::main(&arguments),
        Command::Calibrate(arguments) => calibrate::main(&arguments),
        #[cfg(feature = "torch")]
        Command::Eval(arguments) => eval::main(&arguments),
        #[cfg(not(feature = "torch"))]
        Command::Eval { arguments } => Err(format!("eval {}: {WITHOUT_TORCH}", arguments.join(" ")).into()),
    };
    result.unwrap_or_else(|error| {
        complain(&format!("doublecheck: {error}"));
        ExitCode::from(2)
    })
}

/// A command line as a person would type it.
fn command_line(arguments: &[OsString]) -> String {
    let words = arguments.iter().skip(1).map(|word| quoted(&word.to_string_lossy()));
    std::iter::once("doublecheck".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// Reads a channel file. Errors: those of its content, with the path.
fn channel_file(path: &Path, memory: Memory) -> Result<ChannelFile, Failure> {
    let text = memory.read_json(path)?;
    ChannelFile::from_json(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Writes a text file. Errors: with the path.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    files::write(path, text.as_bytes())
        .map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

/// A report, as it is delivered.
#[derive(Default)]
struct Delivery<'a> {
    files: Vec<(&'a Path, String)>,
    /// What could not be written so far.
    problems: Vec<String>,
}

impl<'a> Delivery<'a> {
    /// Writes a report as JSON, where it is asked for.
    fn json(mut self, path: Option<&'a Path>, report: &impl serde::Serialize) -> Self {
        match (path, serde_json::to_string_pretty(report)) {
            (None, _) => {}
            (Some(path), Ok(text)) => self.files.push((path, visible::json(&text).into_owned() + "\n")),
            (Some(path), Err(error)) => {
                self.problems.push(format!("cannot write {}: {error}", path.display()))
            }
        }
        self
    }

    /// Writes a page or another text, where it is asked for.
    fn text(mut self, path: Option<&'a Path>, text: impl FnOnce() -> String) -> Self {
        self.files.extend(path.map(|path| (path, text())));
        self
    }

    /// Writes the files and prints the text, each whether or not the others could be: what was found is not lost. Errors: what
    /// could not be written.
    fn with(mut self, text: &str) -> Result<(), Failure> {
        for (path, content) in &self.files {
            self.problems.extend(write(path, content).err().map(|error| error.to_string()));
        }
        self.problems.extend(print(text).err().map(|error| format!("cannot print the report: {error}")));
        if self.problems.is_empty() { Ok(()) } else { Err(self.problems.join("\ndoublecheck: ").into()) }
    }
}

/// Errors where a file cannot be written, before anything is asked.
fn check_writable(path: &Path) -> Result<(), Failure> {
    files::check_writable(path).map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

/// Reads a number of seconds. Errors: what it must be.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds
        .filter(|seconds| !seconds.is_zero())
        .ok_or_else(|| format!("found {text:?}, expected seconds above 0"))
}

/// Prints a line on standard error. There is nobody to tell where that cannot be written.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", visible::lines(text));
}

/// Prints text; a reader that went away, as in `doublecheck verify | head`, is no error.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(visible::lines(text).as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
