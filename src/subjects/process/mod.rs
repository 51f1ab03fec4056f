//! Any command as a subject, asked over its standard input and output (`docs/PROTOCOL.md`). The command is
//! started once and restarted after anything that leaves its conversation in doubt: it ended, was silent
//! for too long, wrote something other than the answer to its question. What happened is the answer to that
//! question, and the next one is asked of the new process.

mod answer;
mod child;
pub mod direct;
#[cfg(feature = "internals")]
pub mod frames;
mod memory;
mod messages;
mod sessions;
mod stages;

use std::sync::Arc;
use std::time::Duration;

use ndarray::Array4;

use self::child::{Child, Tail};
use self::memory::Memory;
use self::messages::{Decoded, Hello};
use super::{Subject, not_configured, not_opened};
use crate::algorithm::Mask;
use crate::cases::{
    Answer, Attended, Call, Capabilities, Held, Instance, NoAnswer, Opening, Outcome, RoundingModel,
    ScoresCall, SelectionCall, Step, StepAnswer,
};
use crate::visible;

/// How long a command may take to say hello, at least: importing torch is slow.
const STARTUP: Duration = Duration::from_secs(120);

/// How long a command may take to end after goodbye.
const FAREWELL: Duration = Duration::from_secs(1);

/// After this many starts in a row without a hello the command is given up.
const STARTS: usize = 3;

/// How many lines of standard error a finding shows.
const LINES: usize = 12;

/// A command that cannot be used as a subject. Messages end with the end of its standard error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started at all.
    #[error("cannot run sh -c {command:?}: {problem}; check that sh can be run here")]
    Start {
        /// Which command.
        command: String,
        /// What the system says.
        problem: String,
    },
    /// It did not say hello as it should.
    #[error(
        "{command:?} did not say hello: {problem}\n\
         check that it runs by itself and answers as docs/PROTOCOL.md says"
    )]
    Hello {
        /// Which command.
        command: String,
        /// What was found instead, and the end of its standard error.
        problem: String,
    },
}

/// Ends every command that runs as a subject and what it started. For a suite that was told to end: its commands run in
/// groups of their own, which a terminal's signal does not reach. To be followed by the end of the process: from here on,
/// commands neither start nor end.
pub fn end_all() {
    child::end_all();
}

/// A command that answers the process protocol.
pub struct Process {
    command: String,
    timeout: Duration,
    /// How long answers are waited for now, where that is less.
    patience: Option<Duration>,
    startup: Duration,
    hello: Hello,
    child: Option<Child>,
    /// Where the running child takes tensors, if not in frames.
    memory: Option<Arc<Memory>>,
    tail: Tail,
    instance: Option<Instance>,
    /// What the running child answered to `configure`.
    configured: Option<Result<(), NoAnswer>>,
    /// What the session of the running child holds.
    held: Option<Held>,
    last_id: u64,
    restarts: usize,
    failed_starts: usize,
    /// The tensor `selected` of the last answer.
    selected: Option<Array4<i32>>,
}

impl Process {
    /// Runs `sh -c command` and waits for its hello: 120 seconds at most, or `timeout` where that is longer, which is that of each
    /// later question.
    ///
    /// Errors: [`ProcessError`].
    pub fn start(command: &str, timeout: Duration) -> Result<Self, ProcessError> {
        Self::start_within(command, timeout, STARTUP.max(timeout))
    }

    /// As [`Process::start`], with `startup` as the time for each hello.
    pub fn start_within(command: &str, timeout: Duration, startup: Duration) -> Result<Self, ProcessError> {
        let (child, hello, memory) = start(command, startup)?;
        Ok(Self {
            command: command.to_owned(),
            timeout,
            patience: None,
            startup,
            hello,
            tail: child.tail(),
            child: Some(child),
            memory,
            instance: None,
            configured: None,
            held: None,
            last_id: 0,
            restarts: 0,
            failed_starts: 0,
            selected: None,
        })
    }

    /// How often the command was restarted.
    pub fn restarts(&self) -> usize {
        self.restarts
    }

    /// Asks one question. After an error of the conversation the child is gone.
    fn ask<T>(
        &mut self,
        limit: u64,
        question: impl FnOnce(u64) -> Vec<u8>,
        read: impl FnOnce(&[u8], u64) -> Decoded<Result<T, NoAnswer>>,
    ) -> Result<T, NoAnswer> {
        let child = self.child.as_ref().ok_or_else(not_running)?;
        self.last_id += 1;
        let id = self.last_id;
        let timeout = self.patience.map_or(self.timeout, |patience| patience.min(self.timeout));
        let answer = child.ask(question(id), limit, timeout).and_then(|bytes| read(&bytes, id));
        answer.unwrap_or_else(|problem| Err(self.lose(problem)))
    }

    /// Ends a child whose conversation is in doubt.
    fn lose(&mut self, problem: String) -> NoAnswer {
        (self.configured, self.held) = (None, None);
        self.memory = None;
        let problem = self.child.take().map_or_else(|| problem.clone(), |child| epitaph(child, &problem));
        NoAnswer::Failed(problem)
    }

    /// Restarts the command if it is gone.
    fn revive(&mut self) -> Result<(), NoAnswer> {
        if self.child.is_some() {
            return Ok(());
        }
        if self.failed_starts >= STARTS {
            return Err(NoAnswer::Failed(format!(
                "the command was started {STARTS} times in a row without a hello, and is not started again"
            )));
        }
        self.restarts += 1;
        let started = start(&self.command, self.startup).map_err(|error| error.to_string());
        let (child, hello, memory) = started.map_err(|problem| self.not_revived(problem))?;
        if hello.model != self.hello.model || hello.capabilities != self.hello.capabilities {
            return Err(self.not_revived(epitaph(child, "its hello differs from that of its first start")));
        }
        self.failed_starts = 0;
        self.tail = child.tail();
        self.child = Some(child);
        self.memory = memory;
        Ok(())
    }

    fn not_revived(&mut self, problem: String) -> NoAnswer {
        self.failed_starts += 1;
        NoAnswer::Failed(format!("the command could not be started again: {problem}"))
    }

    /// Configures the child for the current instance, unless it is already.
    fn ready(&mut self) -> Result<(), NoAnswer> {
        self.revive()?;
        if let Some(configured) = &self.configured {
            return configured.clone();
        }
        let instance = self.instance.take().ok_or_else(not_configured)?;
        let question = |id| messages::configure(id, &instance);
        let configured = self.ask(messages::largest_message(), question, messages::read_configured);
        self.instance = Some(instance);
        if self.child.is_some() {
            self.configured = Some(configured.clone());
        }
        configured
    }
}

impl Subject for Process {
    fn name(&self) -> String {
        let name = self.hello.name.as_ref().unwrap_or(&self.command);
        visible::one_line(name).into_owned()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.hello.model
    }

    fn capabilities(&self) -> Capabilities {
        self.hello.capabilities.clone()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.instance = Some(instance.clone());
        (self.configured, self.held) = (None, None);
        self.ready()
    }

    fn open(&mut self, opening: &Opening) -> Result<(), NoAnswer> {
        self.held = None;
        self.ready()?;
        let limit = messages::largest_message();
        self.ask(limit, |id| sessions::open(id, opening), sessions::read_opened)?;
        self.held = Some(Held::new(opening));
        Ok(())
    }

    fn step(&mut self, step: &Step) -> StepAnswer {
        let (Some(mut held), Some(instance)) = (self.held.take(), self.instance.clone()) else {
            return Err(not_opened());
        };
        let done = held.outcome(step) == Outcome::Done;
        let calls = if done { held.calls(step)? } else { Vec::new() };
        let (dtype, memory) = (held.opening().dtype, self.memory.clone());
        let any_order = self.hello.capabilities.promises.is_some();
        let answer = self.ask(
            sessions::largest_step(&calls),
            |id| sessions::step(id, step, dtype, memory.as_deref()),
            |bytes, id| sessions::read_step(bytes, id, step, &instance, &calls, any_order),
        );
        if done && answer.is_ok() {
            held.apply(step);
        }
        // A command that was lost has lost its session.
        self.held = self.child.is_some().then_some(held);
        answer
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        self.selected = None;
        self.ready()?;
        let instance = self.instance.take().ok_or_else(not_configured)?;
        // A command that declares `promises` says there how it lists keys.
        let any_order = self.hello.capabilities.promises.is_some();
        let memory = self.memory.clone();
        let answer = self.ask(
            messages::largest_answer(call),
            |id| messages::mask(id, call, memory.as_deref()),
            |bytes, id| messages::read_answer(bytes, id, &instance, call, any_order),
        );
        self.instance = Some(instance);
        let (answer, selected) = answer?;
        self.selected = selected;
        Ok(answer)
    }

    fn set_patience(&mut self, most: Option<Duration>) {
        self.patience = most;
    }

    fn selected(&self) -> Option<&Array4<i32>> {
        self.selected.as_ref()
    }

    fn restart(&mut self) -> bool {
        (self.configured, self.held) = (None, None);
        if let Some(child) = self.child.take() {
            child.say_goodbye(messages::bye(), FAREWELL);
        }
        self.revive().is_ok()
    }

    fn select(&mut self, call: &ScoresCall) -> Result<Mask, NoAnswer> {
        self.selected = None;
        self.revive()?;
        let limit = stages::largest_selection(call);
        let any_order = self.hello.capabilities.promises.is_some();
        let memory = self.memory.clone();
        let answer = self.ask(
            limit,
            |id| stages::select(id, call, memory.as_deref()),
            |bytes, id| stages::read_selection(bytes, id, call, any_order),
        );
        let (mask, selected) = answer?;
        self.selected = selected;
        Ok(mask)
    }

    fn attend(&mut self, call: &SelectionCall) -> Result<Attended, NoAnswer> {
        self.revive()?;
        let limit = stages::largest_attention(call);
        let memory = self.memory.clone();
        let question = |id| stages::attend(id, call, memory.as_deref());
        self.ask(limit, question, |bytes, id| stages::read_attention(bytes, id, call))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            child.say_goodbye(messages::bye(), FAREWELL);
        }
    }
}

fn not_running() -> NoAnswer {
    NoAnswer::Failed("the command is not running".into())
}

/// The child, its hello, and the memory that it shares if it says so.
type Started = (Child, Hello, Option<Arc<Memory>>);

fn start(command: &str, startup: Duration) -> Result<Started, ProcessError> {
    let (limit, memory) = (messages::largest_message(), Memory::create());
    let child = Child::start(command, limit, memory.as_ref())
        .map_err(|error| ProcessError::Start { command: command.to_owned(), problem: error.to_string() })?;
    let answer = child.ask(messages::hello(memory.as_ref()), limit, startup);
    match answer.and_then(|bytes| messages::read_hello(&bytes)) {
        Ok(hello) => {
            let shared = memory.filter(|_| hello.shared_memory).map(Arc::new);
            Ok((child, hello, shared))
        }
        Err(problem) => {
            let problem = epitaph(child, &problem);
            Err(ProcessError::Hello { command: command.to_owned(), problem })
        }
    }
}

/// Ends a child. Returns what happened, how it ended if it did so by itself, and the end of its standard error.
fn epitaph(mut child: Child, problem: &str) -> String {
    let status = child.end().map(|status| format!(" ({status})")).unwrap_or_default();
    let tail = child.tail().text();
    let lines: Vec<&str> = tail.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(LINES)..];
    if shown.is_empty() {
        return format!("{problem}{status}; nothing on its standard error");
    }
    let shown: Vec<_> = shown.iter().map(|line| visible::one_line(line)).collect();
    format!("{problem}{status}; its standard error ended with:\n  {}", shown.join("\n  "))
}
