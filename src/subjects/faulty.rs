//! Deliberately wrong subjects: the reference with a behaviour of the catalogue in place of the SPEC's. They show that the
//! suite catches what it should, and that it names the cause.

use ndarray::Array4;

use super::{Subject, not_configured};
use crate::algorithm::Mask;
use crate::behaviours::answer::{answer, answer_with};
use crate::behaviours::prediction::is_remembered;
use crate::behaviours::{Behaviour, Fault, Outcome, predict};
use crate::cases::{Answer, Call, Capabilities, Instance, NoAnswer, RoundingModel, Sequence};
use crate::verdicts::changed::ChangedRows;

/// The reference with some faults.
#[derive(Debug)]
pub struct Faulty {
    name: String,
    behaviour: Behaviour,
    capabilities: Capabilities,
    /// The instance and those of its calls that matter to later ones: faults may carry state over.
    seen: Option<Sequence>,
}

impl Faulty {
    /// The reference with these faults, applied in order.
    pub fn new(faults: &[&Fault]) -> Self {
        let names: Vec<_> = faults.iter().map(|fault| fault.name).collect();
        let behaviour = Behaviour::with(faults.iter().copied());
        let capabilities = Fault::capabilities(faults);
        Self { name: format!("reference with {}", names.join(" and ")), behaviour, capabilities, seen: None }
    }
}

impl Subject for Faulty {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        let (name, instance) = (self.name.clone(), instance.clone());
        self.seen = Some(Sequence { name, instance, calls: Vec::new() });
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let seen = self.seen.as_mut().ok_or_else(not_configured)?;
        seen.calls.push(call.clone());
        let outcome = predict(self.behaviour, seen, seen.calls.len() - 1);
        if let Some((call, kept)) = seen.calls.split_last()
            && !is_remembered(self.behaviour, &seen.instance, kept, call)
        {
            seen.calls.pop();
        }
        match outcome {
            Outcome::Refused(errors) => match errors.into_iter().next() {
                Some(error) => Err(error.into()),
                None => Err(NoAnswer::Declined("refused".into())),
            },
            Outcome::Broken => Err(NoAnswer::Failed("it broke, as this fault does".into())),
            // Labels are NaN, and any key may come first.
            Outcome::Anything => {
                let dims = call.inputs.dims();
                let output =
                    Array4::from_elem((dims.batch, dims.heads, dims.queries, dims.value_dim), f32::NAN);
                Ok(Answer::new(Mask::full(&dims), Some(output)))
            }
            Outcome::Answered(prediction) | Outcome::BrokenOr(prediction) => {
                let answered = match (&prediction.ranked, self.behaviour.rows) {
                    (Some(ranked), Some(_)) => {
                        answer_with(&prediction, ChangedRows::selected(&prediction, ranked))
                    }
                    _ => answer(&prediction),
                };
                Ok(answered?)
            }
        }
    }
}
