//! A sequence of calls or a question to one stage, for Python: its tensors, what the reference answers, what any answer must
//! satisfy, and the verdict on one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use doublecheck::algorithm::Error;
use doublecheck::cases::{
    Answer, Call, CaseFile, Instance, NoAnswer, Reader, Sequence, Session, StageAnswer, StageCall, Takes,
};
use doublecheck::report::{
    replay_in_words, replay_session_in_words, replay_stage_in_words, session_in_words,
};
use doublecheck::subjects::process::direct::{
    self, Declaration, read_answer, read_attention, read_selection,
};
use doublecheck::subjects::{Process, Reference, Subject, ask, ask_session, ask_stage};
use doublecheck::verdicts::certificate::{Candidacy, Class, ScoreBounds};
use doublecheck::verdicts::judge::judge_observation;
use doublecheck::verdicts::{Certificate, judge_session, judge_stage, topk};
use ndarray::{Array3, Array4};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::kernel::{Kernel, configuration};
use crate::tensors::{self, Given, Halves};

/// What is asked.
#[derive(Clone)]
pub enum Asked {
    /// Calls of one instance, and the sequences asked before it.
    Calls { sequence: Sequence, before: Vec<Sequence> },
    /// A session, and the calls that its attends stand for, with the number of the step of each.
    Session { session: Session, calls: Vec<(usize, Call)> },
    /// A question to one stage, and its name.
    Stage { name: String, call: StageCall },
}

/// Tensors by name, or why there are none.
type Answered<'py> = (Option<Bound<'py, PyDict>>, Option<String>);

/// A case.
#[pyclass(frozen, module = "doublecheck._native")]
pub struct Question {
    pub asked: Asked,
}

impl Question {
    pub fn of_sequence(sequence: Sequence, before: Vec<Sequence>) -> Self {
        Self { asked: Asked::Calls { sequence, before } }
    }

    pub fn of_stage(name: String, call: StageCall) -> Self {
        Self { asked: Asked::Stage { name, call } }
    }

    /// Errors: ValueError for a session whose attends stand for calls that cannot be.
    pub fn of_session(session: Session) -> PyResult<Self> {
        let calls = session.calls().map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self { asked: Asked::Session { session, calls } })
    }

    fn sequence_call(&self, index: usize) -> PyResult<(&Instance, &Call)> {
        match &self.asked {
            Asked::Calls { sequence, .. } => {
                let call = sequence.calls.get(index).ok_or_else(|| no_call(index, sequence.calls.len()))?;
                Ok((&sequence.instance, call))
            }
            Asked::Session { session, calls } => {
                let (_, call) = calls.get(index).ok_or_else(|| no_call(index, calls.len()))?;
                Ok((&session.instance, call))
            }
            Asked::Stage { .. } => Err(no_call(index, 0)),
        }
    }
}

fn no_call(found: usize, calls: usize) -> PyErr {
    PyIndexError::new_err(format!("call: found {found}, expected one of {calls}"))
}

fn refused(error: &Error) -> PyErr {
    PyValueError::new_err(format!("this call must be refused: {error}"))
}

/// Reads a case file. Errors: OSError, ValueError with file, field, found and expected.
#[pyfunction]
pub fn load(path: PathBuf) -> PyResult<Question> {
    parse(&std::fs::read(&path)?, path.display().to_string())
}

/// Reads the bytes of a case file. Errors: ValueError with name, field, found and expected.
#[pyfunction]
pub fn parse(bytes: &[u8], name: String) -> PyResult<Question> {
    let wrong = |text: String| PyValueError::new_err(format!("{name}: {text}"));
    Ok(match Reader::default().parse(bytes, &name).map_err(|error| wrong(error.to_string()))? {
        CaseFile::Sequence(stored) => Question::of_sequence(stored.sequence, stored.before),
        CaseFile::Attention(case) => Question::of_sequence(case.sequence(), Vec::new()),
        CaseFile::Stage(stored) => Question::of_stage(name, stored.call),
        CaseFile::Session(stored) => Question::of_session(stored.session)?,
        CaseFile::Quantisation(_) | CaseFile::Calibration(_) => {
            let expected = "a sequence, a session, a case of an attention layer or a question to one stage";
            return Err(wrong(format!("found another kind of case file, expected {expected}")));
        }
    })
}

#[pymethods]
impl Question {
    /// Where an implementation that is asked this starts.
    #[getter]
    fn takes(&self) -> &'static str {
        match &self.asked {
            Asked::Calls { .. } | Asked::Session { .. } => Takes::Inputs.name(),
            Asked::Stage { call, .. } => call.takes().name(),
        }
    }

    /// The message `configure`; `None` for one stage.
    fn configuration(&self) -> Option<String> {
        match &self.asked {
            Asked::Calls { sequence, .. } => Some(configuration(&sequence.instance)),
            Asked::Session { session, .. } => Some(configuration(&session.instance)),
            Asked::Stage { .. } => None,
        }
    }

    /// The message `open` of a session; `None` for anything else.
    fn opening(&self) -> Option<String> {
        match &self.asked {
            Asked::Session { session, .. } => Some(direct::opening(&session.opening)),
            Asked::Calls { .. } | Asked::Stage { .. } => None,
        }
    }

    /// The steps of a session as messages and tensors, each with the places of its calls among all; nothing for anything else.
    fn steps<'py>(&self, py: Python<'py>, bits: bool) -> PyResult<Vec<(tensors::Question<'py>, Vec<usize>)>> {
        let Asked::Session { session, calls } = &self.asked else { return Ok(Vec::new()) };
        let halves = if bits { Halves::Bits } else { Halves::Widened };
        let step = |(index, step)| {
            let of_step = calls.iter().enumerate().filter(|(_, (of, _))| *of == index);
            let places = of_step.map(|(place, _)| place).collect();
            Ok((tensors::step(py, step, session.opening.dtype, halves)?, places))
        };
        session.steps.iter().enumerate().map(step).collect()
    }

    /// A session as a story of its steps; nothing for anything else.
    fn story(&self) -> String {
        match &self.asked {
            Asked::Session { session, .. } => session_in_words(session, ""),
            Asked::Calls { .. } | Asked::Stage { .. } => String::new(),
        }
    }

    /// The questions as messages and tensors; of a session the calls that its attends stand for. `bits`: f16 and bf16 as u16, in place of f32.
    fn calls<'py>(&self, py: Python<'py>, bits: bool) -> PyResult<Vec<tensors::Question<'py>>> {
        let halves = if bits { Halves::Bits } else { Halves::Widened };
        match &self.asked {
            Asked::Calls { sequence, .. } => {
                sequence.calls.iter().map(|call| tensors::mask(py, call, halves)).collect()
            }
            Asked::Session { calls, .. } => {
                calls.iter().map(|(_, call)| tensors::mask(py, call, halves)).collect()
            }
            Asked::Stage { call: StageCall::Scores(call), .. } => {
                Ok(vec![tensors::select(py, call, halves)?])
            }
            Asked::Stage { call: StageCall::Selection(call), .. } => {
                Ok(vec![tensors::attend(py, call, halves)?])
            }
        }
    }

    /// What has to be asked before it.
    fn before(&self) -> Vec<Question> {
        match &self.asked {
            Asked::Calls { before, .. } => {
                before.iter().map(|earlier| Self::of_sequence(earlier.clone(), Vec::new())).collect()
            }
            Asked::Session { .. } | Asked::Stage { .. } => Vec::new(),
        }
    }

    /// What the reference answers to each call: tensors by name, or a text that says why there are none.
    fn reference<'py>(&self, py: Python<'py>) -> PyResult<Vec<Answered<'py>>> {
        let mut reference = Reference::default();
        let told = |answer: Result<Bound<'py, PyDict>, NoAnswer>| match answer {
            Ok(tensors) => (Some(tensors), None),
            Err(no_answer) => (None, Some(no_answer.to_string())),
        };
        let of_call = |answer: Result<Answer, NoAnswer>| match answer {
            Ok(Answer { mask, output, .. }) => {
                let found = PyDict::new(py);
                put4(&found, "mask", mask.weights())?;
                output.iter().try_for_each(|output| put4(&found, "output", output))?;
                Ok(told(Ok(found)))
            }
            Err(no_answer) => Ok(told(Err(no_answer))),
        };
        match &self.asked {
            Asked::Calls { sequence, .. } => {
                let answers = py.detach(|| ask(&mut reference, sequence)).answers;
                answers.into_iter().map(of_call).collect()
            }
            Asked::Session { session, calls } => {
                let answers: Vec<_> = py.detach(|| {
                    let configured = reference.configure(&session.instance);
                    let answer = |call| configured.clone().and_then(|()| reference.call(call));
                    calls.iter().map(|(_, call)| call).map(answer).collect()
                });
                answers.into_iter().map(of_call).collect()
            }
            Asked::Stage { call, .. } => {
                let found = PyDict::new(py);
                let answer = match py.detach(|| ask_stage(&mut reference, call)) {
                    Ok(StageAnswer::Selected(mask)) => {
                        put4(&found, "mask", mask.weights()).map(|()| Ok(found))?
                    }
                    Ok(StageAnswer::Attended(attended)) => {
                        attended.output.iter().try_for_each(|output| put4(&found, "output", output))?;
                        attended.lse.iter().try_for_each(|lse| put3(&found, "lse", lse))?;
                        Ok(found)
                    }
                    Err(no_answer) => Err(no_answer),
                };
                Ok(vec![told(answer)])
            }
        }
    }

    /// What any conforming answer to a call satisfies: `classes` [b, h, m, n] (0 before, 1 excluded, 2 out, 3 open, 4 in), `scores` and
    /// `radii` [b, h, m, n], `fewest` and `most` [b, h, m].
    fn certificate<'py>(&self, py: Python<'py>, call: usize, model: &str) -> PyResult<Bound<'py, PyDict>> {
        let declaration = declaration(model)?;
        let found = PyDict::new(py);
        if let Asked::Stage { call: StageCall::Scores(asked), .. } = &self.asked {
            let dims = asked.dims();
            let rows = dims.rows().map(|(b, head, i)| {
                let row = asked.scores().slice(ndarray::s![b, head, i, ..]).to_vec();
                topk::certify(&row, |_| None, |_| false, asked.heavy_size().get())
            });
            put_rows(&found, &dims, rows.map(Some))?;
            put4(&found, "scores", &asked.scores().mapv(f64::from))?;
            put4(&found, "radii", &Array4::<f64>::zeros(dims.mask_shape()))?;
            return Ok(found);
        }
        let (instance, asked) = self.sequence_call(call)?;
        let certificate = py.detach(|| Certificate::derive(instance, asked, declaration.model));
        let certificate = certificate.map_err(|error| refused(&error))?;
        let dims = asked.inputs.dims();
        match &certificate.rows {
            Some(rows) => put_rows(&found, &dims, rows.iter().cloned().map(Some))?,
            None => put_rows(&found, &dims, dims.rows().map(|_| None))?,
        }
        let scores = ScoreBounds::new(instance, asked, declaration.model, &certificate.before);
        if let Some(bounds) =
            scores.map_err(|error| refused(&error))?.filter(|_| asked.inputs.lengths().is_none())
        {
            let mut scores = Array4::from_elem(dims.mask_shape(), f64::NEG_INFINITY);
            let mut radii = Array4::zeros(dims.mask_shape());
            for (b, head, i) in dims.rows() {
                for (key, candidacy) in bounds.row((b, head, i)).into_iter().enumerate() {
                    if let Candidacy::Scored(score) | Candidacy::Forced(score) = candidacy {
                        scores[[b, head, i, key]] = score.value;
                        radii[[b, head, i, key]] = score.radius;
                    }
                }
            }
            put4(&found, "scores", &scores)?;
            put4(&found, "radii", &radii)?;
        }
        Ok(found)
    }

    /// Judges tensors that answer one call: whether they conform, and what is wrong, a line each.
    fn judge(
        &self,
        py: Python<'_>,
        call: usize,
        model: &str,
        given: &Bound<'_, PyList>,
    ) -> PyResult<(bool, Vec<String>)> {
        let declaration = &declaration(model)?;
        let given = Given::new(given)?;
        let tensors = given.tensors()?;
        if let Asked::Stage { call: asked, .. } = &self.asked {
            let answer = match asked {
                StageCall::Scores(asked) => {
                    read_selection(&tensors, declaration, asked).map(|(mask, _)| StageAnswer::Selected(mask))
                }
                StageCall::Selection(asked) => read_attention(&tensors, asked).map(StageAnswer::Attended),
            };
            let verdict = py.detach(|| judge_stage(asked, &answer, declaration.model));
            return Ok((verdict.conforms(), verdict.explanations));
        }
        let (instance, asked) = self.sequence_call(call)?;
        let answer = read_answer(&tensors, declaration, instance, asked).map(|(answer, _)| answer);
        let verdict = py
            .detach(|| doublecheck::verdicts::judge::judge_call(instance, asked, &answer, declaration.model));
        Ok((verdict.conforms(), verdict.explanations()))
    }

    /// Asks a kernel: whether it conforms, and what was asked, answered and wrong, as `doublecheck replay` prints it.
    fn ask(
        &self,
        py: Python<'_>,
        kernel: Py<PyAny>,
        model: &str,
        bits: bool,
        stop: &crate::Stop,
    ) -> PyResult<(bool, String)> {
        let declaration = declaration(model)?;
        let halves = if bits { Halves::Bits } else { Halves::Widened };
        let mut kernel = Kernel::new(kernel, declaration, halves, stop.flag);
        let told = py.detach(|| match &self.asked {
            Asked::Calls { sequence, before } => {
                before.iter().for_each(|earlier| drop(ask(&mut kernel, earlier)));
                let observation = ask(&mut kernel, sequence);
                let verdicts = judge_observation(&observation, kernel.rounding_model());
                let conforms = verdicts.iter().all(|verdict| verdict.conforms());
                (conforms, replay_in_words(&kernel.name(), &observation, &verdicts))
            }
            Asked::Session { session, .. } => {
                let observation = ask_session(&mut kernel, session);
                let verdict = judge_session(&observation, kernel.rounding_model());
                let told = replay_session_in_words(&kernel.name(), &observation, &verdict);
                (verdict.conforms(), told)
            }
            Asked::Stage { call, .. } => {
                let answer = ask_stage(&mut kernel, call);
                let verdict = judge_stage(call, &answer, kernel.rounding_model());
                (verdict.conforms(), replay_stage_in_words(&kernel.name(), call, &answer, &verdict))
            }
        });
        kernel.ended()?;
        Ok(told)
    }
}

/// How long it takes to ask a kernel, or a command, all calls of a case, in seconds, as often as `times` says, verdicts not included:
/// for benches/in_process.py. Errors: those of starting the command, and of what was asked.
#[pyfunction]
pub fn seconds_of_asking(
    py: Python<'_>,
    question: &Question,
    kernel: Option<Py<PyAny>>,
    command: &str,
    bits: bool,
    times: usize,
) -> PyResult<Vec<f64>> {
    let Asked::Calls { sequence, .. } = &question.asked else { return Err(no_call(0, 0)) };
    let time = |subject: &mut dyn Subject| {
        subject.configure(&sequence.instance)?;
        let once = |_| {
            let start = Instant::now();
            sequence.calls.iter().try_for_each(|call| subject.call(call).map(drop))?;
            Ok::<_, NoAnswer>(start.elapsed().as_secs_f64())
        };
        (0..times).map(once).collect::<Result<Vec<_>, _>>()
    };
    let failed = |no_answer: NoAnswer| PyValueError::new_err(no_answer.to_string());
    let Some(kernel) = kernel else {
        let started = py.detach(|| Process::start(command, Duration::from_secs(30)));
        let mut process = started.map_err(|error| PyValueError::new_err(error.to_string()))?;
        return py.detach(|| time(&mut process)).map_err(failed);
    };
    let halves = if bits { Halves::Bits } else { Halves::Widened };
    let mut kernel = Kernel::new(kernel, declaration("{}")?, halves, crate::Stop::new().flag);
    py.detach(|| time(&mut kernel)).map_err(failed)
}

/// Errors: ValueError with the field, what was found and what was expected.
pub fn declaration(json: &str) -> PyResult<Declaration> {
    Declaration::from_json(json).map_err(PyValueError::new_err)
}

fn put4<T: numpy::Element + Copy>(found: &Bound<'_, PyDict>, name: &str, values: &Array4<T>) -> PyResult<()> {
    let shape = values.shape().to_vec();
    let numbers = PyArray1::from_iter(found.py(), values.iter().copied());
    found.set_item(name, numbers.reshape(shape)?)
}

fn put3<T: numpy::Element + Copy>(found: &Bound<'_, PyDict>, name: &str, values: &Array3<T>) -> PyResult<()> {
    let shape = values.shape().to_vec();
    let numbers = PyArray1::from_iter(found.py(), values.iter().copied());
    found.set_item(name, numbers.reshape(shape)?)
}

/// The classes and counts of all rows; a row of `None` attends to every key.
fn put_rows(
    found: &Bound<'_, PyDict>,
    dims: &doublecheck::algorithm::Dims,
    rows: impl Iterator<Item = Option<doublecheck::verdicts::certificate::RowCertificate>>,
) -> PyResult<()> {
    let (b, h, m, n) = dims.mask_shape();
    let (mut classes, mut fewest, mut most) = (Vec::<i8>::new(), Vec::new(), Vec::new());
    for row in rows {
        match row {
            Some(row) => {
                classes.extend(row.classes.iter().map(|&class| class as i8));
                fewest.push(row.fewest as i64);
                most.push(row.most as i64);
            }
            None => {
                classes.extend(std::iter::repeat_n(Class::In as i8, n));
                fewest.push(n as i64);
                most.push(n as i64);
            }
        }
    }
    let py = found.py();
    found.set_item("classes", PyArray1::from_vec(py, classes).reshape([b, h, m, n])?)?;
    found.set_item("fewest", PyArray1::from_vec(py, fewest).reshape([b, h, m])?)?;
    found.set_item("most", PyArray1::from_vec(py, most).reshape([b, h, m])?)
}
