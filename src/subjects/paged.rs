//! A serving engine with one of the faults of [`CACHE_FAULTS`](crate::behaviours::CACHE_FAULTS), or none: what is held lies in
//! pages, and keys are selected as the reference does. Calls are the reference's, so that only sessions show the fault.

use super::{Reference, Subject, not_opened};
use crate::behaviours::{CacheFault, Paged};
use crate::cases::{
    Answer, Call, Capabilities, Instance, NoAnswer, Opening, RoundingModel, Step, StepAnswer,
};

/// The engine.
#[derive(Debug, Default)]
pub struct PagedEngine {
    fault: Option<&'static CacheFault>,
    reference: Reference,
    instance: Option<Instance>,
    cache: Option<Paged>,
}

impl PagedEngine {
    /// Right, or with a fault.
    pub fn new(fault: Option<&'static CacheFault>) -> Self {
        Self { fault, ..Self::default() }
    }
}

impl Subject for PagedEngine {
    fn name(&self) -> String {
        self.fault.map_or("pages".into(), |fault| format!("pages with {}", fault.name))
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { sessions: true, ..self.reference.capabilities() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        (self.instance, self.cache) = (Some(instance.clone()), None);
        self.reference.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        self.reference.call(call)
    }

    fn open(&mut self, opening: &Opening) -> Result<(), NoAnswer> {
        self.cache = Some(Paged::new(opening, self.fault.map(|fault| fault.kind)));
        Ok(())
    }

    fn step(&mut self, step: &Step) -> StepAnswer {
        let (Some(cache), Some(instance)) = (&mut self.cache, &self.instance) else {
            return Err(not_opened());
        };
        let reads = cache.step(step)?;
        reads.iter().map(|read| Ok(read.answer(instance)?)).collect()
    }
}
