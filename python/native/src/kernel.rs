//! A Python kernel as a subject. The check runs without the interpreter's lock, which is held only while the kernel is asked.

use std::sync::atomic::{AtomicBool, Ordering};

use doublecheck::Subject;
use doublecheck::algorithm::Mask;
use doublecheck::cases::{
    Answer, Attended, Call, Capabilities, Held, Instance, NoAnswer, Opening, Outcome, RoundingModel,
    ScoresCall, SelectionCall, Step, StepAnswer,
};
use doublecheck::subjects::process::direct::{
    self, Declaration, read_answer, read_attend, read_attention, read_selection, refusal,
};
use ndarray::Array4;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};

use crate::tensors::{self, Given, Halves, Question};

/// A kernel behind `doublecheck._kernel.Kernel`: that calls it, turns its errors into answers and its tensors into arrays.
pub struct Kernel {
    caller: Caller,
    declaration: Declaration,
    halves: Halves,
    instance: Option<Instance>,
    /// What the session holds.
    held: Option<Held>,
    selected: Option<Array4<i32>>,
}

/// Asks in Python.
struct Caller {
    kernel: Py<PyAny>,
    /// Ends the check.
    interrupted: &'static AtomicBool,
    /// What ended it at once: KeyboardInterrupt, or an error of the package itself.
    ended: Option<PyErr>,
}

/// What a question was answered with.
enum Reply<'py> {
    Tensors(Given<'py>),
    /// Done, without tensors.
    Done,
}

impl Kernel {
    /// A kernel that says `declaration` about itself.
    pub fn new(
        kernel: Py<PyAny>,
        declaration: Declaration,
        halves: Halves,
        interrupted: &'static AtomicBool,
    ) -> Self {
        let caller = Caller { kernel, interrupted, ended: None };
        Self { caller, declaration, halves, instance: None, held: None, selected: None }
    }

    /// Errors: what ended the check at once.
    pub fn ended(self) -> PyResult<()> {
        self.caller.ended.map_or(Ok(()), Err)
    }
}

impl Caller {
    /// Asks and reads the answer. Nothing is asked any more once something has ended the check at once.
    fn ask<T>(
        &mut self,
        ask: impl for<'py> FnOnce(Python<'py>, &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>>,
        read: impl FnOnce(&Reply<'_>) -> PyResult<Result<T, NoAnswer>>,
    ) -> Result<T, NoAnswer> {
        if self.ended.is_some() {
            return Err(NoAnswer::Failed("the check has ended".into()));
        }
        let answered = Python::attach(|py| {
            py.check_signals()?;
            let reply = ask(py, self.kernel.bind(py))?;
            match reply_of(&reply)? {
                Ok(reply) => read(&reply),
                Err(no_answer) => Ok(Err(no_answer)),
            }
        });
        answered.unwrap_or_else(|error| {
            self.interrupted.store(true, Ordering::SeqCst);
            self.ended = Some(error);
            Err(NoAnswer::Failed("the check was ended while it waited for this answer".into()))
        })
    }
}

fn put<'py>(kernel: &Bound<'py, PyAny>, (message, tensors): Question<'py>) -> PyResult<Bound<'py, PyAny>> {
    kernel.call_method1("ask", (message, tensors))
}

/// ("configured",), ("opened",), ("done",), ("answer", tensors), ("refused", kind or None, message) or ("failed", message).
fn reply_of<'py>(reply: &Bound<'py, PyAny>) -> PyResult<Result<Reply<'py>, NoAnswer>> {
    let reply = reply.cast::<PyTuple>()?;
    let kind = reply.get_item(0)?;
    Ok(match kind.cast::<PyString>()?.to_str()? {
        "configured" | "opened" | "done" => Ok(Reply::Done),
        "answer" => Ok(Reply::Tensors(Given::new(reply.get_item(1)?.cast::<PyList>()?)?)),
        "refused" => {
            let kind: Option<String> = reply.get_item(1)?.extract()?;
            let message: String = reply.get_item(2)?.extract()?;
            Err(refusal("the kernel", kind.as_deref(), &message))
        }
        "failed" => Err(NoAnswer::Failed(reply.get_item(1)?.extract()?)),
        other => return Err(unexpected(other)),
    })
}

fn unexpected(found: &str) -> PyErr {
    PyTypeError::new_err(format!("reply: found {found:?}, expected an answer to the question"))
}

fn given<'a, 'py>(reply: &'a Reply<'py>) -> PyResult<&'a Given<'py>> {
    match reply {
        Reply::Tensors(given) => Ok(given),
        Reply::Done => Err(unexpected("done")),
    }
}

impl Subject for Kernel {
    fn name(&self) -> String {
        self.declaration.name.clone().unwrap_or_else(|| "a kernel".into())
    }

    fn rounding_model(&self) -> RoundingModel {
        self.declaration.model
    }

    fn capabilities(&self) -> Capabilities {
        self.declaration.capabilities.clone()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        (self.instance, self.held) = (Some(instance.clone()), None);
        let message = configuration(instance);
        self.caller.ask(|_, kernel| kernel.call_method1("configure", (message,)), |_| Ok(Ok(())))
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let Self { caller, declaration, halves, instance, selected, .. } = self;
        *selected = None;
        let instance =
            instance.as_ref().ok_or_else(|| NoAnswer::Failed("called before it was configured".into()))?;
        let (answer, given) = caller.ask(
            |py, kernel| put(kernel, tensors::mask(py, call, *halves)?),
            |reply| Ok(read_answer(&given(reply)?.tensors()?, declaration, instance, call)),
        )?;
        *selected = given;
        Ok(answer)
    }

    fn select(&mut self, call: &ScoresCall) -> Result<Mask, NoAnswer> {
        let Self { caller, declaration, halves, selected, .. } = self;
        *selected = None;
        let (mask, given) = caller.ask(
            |py, kernel| put(kernel, tensors::select(py, call, *halves)?),
            |reply| Ok(read_selection(&given(reply)?.tensors()?, declaration, call)),
        )?;
        *selected = given;
        Ok(mask)
    }

    fn attend(&mut self, call: &SelectionCall) -> Result<Attended, NoAnswer> {
        let halves = self.halves;
        self.caller.ask(
            |py, kernel| put(kernel, tensors::attend(py, call, halves)?),
            |reply| Ok(read_attention(&given(reply)?.tensors()?, call)),
        )
    }

    fn open(&mut self, opening: &Opening) -> Result<(), NoAnswer> {
        self.held = None;
        let message = direct::opening(opening);
        self.caller.ask(|_, kernel| kernel.call_method1("open", (message,)), |_| Ok(Ok(())))?;
        self.held = Some(Held::new(opening));
        Ok(())
    }

    fn step(&mut self, step: &Step) -> StepAnswer {
        let Self { caller, declaration, halves, instance, held, .. } = self;
        let (Some(instance), Some(held)) = (instance, held) else {
            return Err(NoAnswer::Failed("a step before a session was opened".into()));
        };
        let done = held.outcome(step) == Outcome::Done;
        let calls = if done { held.calls(step)? } else { Vec::new() };
        let answer = caller.ask(
            |py, kernel| put(kernel, tensors::step(py, step, held.opening().dtype, *halves)?),
            |reply| match step {
                Step::Attend { .. } => {
                    Ok(read_attend(&given(reply)?.tensors()?, declaration, instance, &calls))
                }
                _ => Ok(Ok(Vec::new())),
            },
        );
        if done && answer.is_ok() {
            held.apply(step);
        }
        answer
    }

    fn selected(&self) -> Option<&Array4<i32>> {
        self.selected.as_ref()
    }
}

/// The message `configure` as JSON, without the text of the channel file, and that text.
pub fn configuration(instance: &Instance) -> String {
    let settings = instance.settings();
    serde_json::json!({
        "channel_selection": settings.channel_selection,
        "dense_layers": settings.dense_layers,
        "settings": settings.settings,
        "channel_file": instance.channel_file.to_json(),
    })
    .to_string()
}
