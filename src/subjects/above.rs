//! A subject with a fault that only large calls show, as faults of tiles, blocks and histograms do: it answers calls of more than
//! some number of keys as one subject would, and others as another.

use ndarray::Array4;

use super::Subject;
use crate::cases::{Answer, Call, Capabilities, Instance, NoAnswer, RoundingModel};

/// Two subjects of the same capabilities: one answers calls of many keys, the other all others.
pub struct Above {
    faulty: Box<dyn Subject>,
    right: Box<dyn Subject>,
    keys: usize,
    last_was_faulty: bool,
}

impl Above {
    /// `faulty` for calls of more than `keys` keys, `right` for others.
    pub fn new(faulty: Box<dyn Subject>, right: Box<dyn Subject>, keys: usize) -> Self {
        Self { faulty, right, keys, last_was_faulty: false }
    }
}

impl Subject for Above {
    fn name(&self) -> String {
        format!("{} above {} keys", self.faulty.name(), self.keys)
    }

    fn rounding_model(&self) -> RoundingModel {
        self.faulty.rounding_model()
    }

    fn capabilities(&self) -> Capabilities {
        self.faulty.capabilities()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.right.configure(instance)?;
        self.faulty.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        self.last_was_faulty = call.inputs.dims().keys > self.keys;
        // It sees every call, as it may carry state over.
        let answer = self.faulty.call(call);
        if self.last_was_faulty { answer } else { self.right.call(call) }
    }

    fn selected(&self) -> Option<&Array4<i32>> {
        if self.last_was_faulty { self.faulty.selected() } else { self.right.selected() }
    }
}
