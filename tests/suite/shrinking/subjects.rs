//! Implementations that are wrong on purpose, and what is asked of them.

use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use doublecheck::algorithm::Mask;
use doublecheck::behaviours::Fault;
use doublecheck::cases::{
    Answer, Call, Capabilities, Instance, NoAnswer, RoundingModel, ScoresCall, Sequence,
};
use doublecheck::runner::check::check_sequence;
use doublecheck::subjects::{Faulty, Reference};
use doublecheck::{Event, Limits, Options, Report, Subject};
use ndarray::{Array4, Axis};

/// No time limits a search.
pub const LIMITS: Limits = Limits { time: Duration::MAX, tries: 20_000, interrupted: None };

/// The reference, which answers some calls wrongly: of each row the last selected key is missing.
pub struct Wrong {
    pub reference: Reference,
    pub capabilities: Capabilities,
    pub heavy_size: usize,
    pub fails: fn(&Call, usize) -> bool,
    pub fails_at: fn(&ScoresCall) -> bool,
    /// How long it is waited for, whenever that was set.
    pub patience: Vec<Duration>,
}

impl Wrong {
    pub fn new(capabilities: Capabilities) -> Self {
        let reference = Reference::default();
        let (heavy_size, patience) = (0, Vec::new());
        Self { reference, capabilities, heavy_size, fails: |_, _| false, fails_at: |_| false, patience }
    }
}

fn without_last(mut mask: Mask, rows: impl Iterator<Item = (usize, usize, usize)>) -> Mask {
    for row in rows {
        let last = mask.row(row).last();
        if let Some((key, _)) = last {
            mask.remove(row, key);
        }
    }
    mask
}

impl Subject for Wrong {
    fn name(&self) -> String {
        "wrong somewhere".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.reference.rounding_model()
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.heavy_size = instance.selection.heavy_size.resolve(usize::MAX);
        self.reference.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let answer = self.reference.call(call)?;
        if !(self.fails)(call, self.heavy_size) {
            return Ok(answer);
        }
        let mask = without_last(answer.mask, call.inputs.dims().rows());
        let output = doublecheck::algorithm::attention::attention(&call.inputs, &mask).ok();
        Ok(Answer::new(mask, output))
    }

    fn set_patience(&mut self, patience: Option<Duration>) {
        self.patience.extend(patience);
    }

    fn select(&mut self, call: &ScoresCall) -> Result<Mask, NoAnswer> {
        let mask = self.reference.select(call)?;
        Ok(if (self.fails_at)(call) { without_last(mask, call.dims().rows()) } else { mask })
    }
}

pub fn options(tries: usize) -> Options {
    let shrinking = Limits { tries, ..LIMITS };
    let (naming, conditions, probes) = (Duration::ZERO, false, false);
    Options { shrinking, naming, conditions, probes, ..Options::default() }
}

pub fn edges(report: &Report) -> Vec<String> {
    assert_eq!(report.findings.len(), 1, "{report}");
    report.findings[0].edges.iter().map(ToString::to_string).collect()
}

/// An instance and the calls that it was asked.
pub type Asked = (Instance, Vec<Call>);

/// A faulty subject that keeps what it is asked once causes are sought, until that is enough.
struct Recording {
    faulty: Faulty,
    capabilities: Capabilities,
    records: Rc<Cell<bool>>,
    asked: Rc<RefCell<Vec<Asked>>>,
}

/// So many questions are kept.
const ENOUGH: usize = 90;

impl Subject for Recording {
    fn name(&self) -> String {
        "recording".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.faulty.rounding_model()
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        if self.records.get() {
            let mut asked = self.asked.borrow_mut();
            if asked.len() == ENOUGH {
                std::panic::resume_unwind(Box::new("that is enough"));
            }
            asked.push((instance.clone(), Vec::new()));
        }
        self.faulty.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        if let Some((_, calls)) = self.asked.borrow_mut().last_mut() {
            calls.push(call.clone());
        }
        self.faulty.call(call)
    }
}

/// Which parts of an axis a tensor has; `None` where it is none that was made from the other by these.
pub fn parts(tensor: &Array4<f32>, original: &Array4<f32>, axis: usize) -> Option<Vec<usize>> {
    let place =
        |part: ndarray::ArrayView3<f32>| original.axis_iter(Axis(axis)).position(|other| other == part);
    tensor.axis_iter(Axis(axis)).map(place).collect()
}

/// What is asked to learn of the cause of a failure of codes without a zero point, until that is enough; and whether it was. The clock ends
/// no search.
pub fn asked_to_learn(start: &Sequence, capabilities: Capabilities) -> (Vec<Asked>, bool) {
    let faulty = Faulty::new(&[Fault::find_all("codes-without-zero-point")[0]]);
    let (records, asked) = (Rc::new(Cell::new(false)), Rc::new(RefCell::new(Vec::new())));
    let mut subject = Recording { faulty, capabilities, records: records.clone(), asked: asked.clone() };
    let options = Options { naming: Duration::from_secs(60), by_clock: false, ..options(100) };
    let checked = std::panic::catch_unwind(AssertUnwindSafe(|| {
        check_sequence(&mut subject, start, &options, &mut |event| {
            records.set(records.get() || matches!(event, Event::Naming(_)));
        })
    }));
    (asked.take(), checked.is_err())
}
