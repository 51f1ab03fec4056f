//! What is checked: cases, the recipes and files they come from, and strategies that make random ones.

#[cfg(feature = "files")]
pub mod activations;
#[cfg(feature = "files")]
pub mod bundled;
pub mod capabilities;
pub mod case;
pub mod domain;
pub mod error;
#[cfg(feature = "files")]
pub mod file;
#[cfg(any(feature = "torch", feature = "internals"))]
pub mod gguf_header;
pub mod history;
pub mod large_plan;
#[cfg(feature = "files")]
pub mod memory;
pub mod observation;
pub mod profiles;
pub mod promise;
pub mod ragged;
pub(crate) mod ragged_plan;
pub mod recipe;
pub mod rounding_model;
pub mod rule_names;
pub(crate) mod seed;
pub mod sequence;
pub mod sequence_plan;
pub mod session;
#[cfg(feature = "files")]
pub mod session_file;
pub mod session_plan;
pub mod shapes;
#[cfg(feature = "files")]
pub mod stage_file;
pub mod stage_plan;
pub mod stages;
pub mod strategies;
#[cfg(feature = "files")]
pub(crate) mod tensors;

pub use capabilities::{Capabilities, Feature, Outline};
pub use case::{Answer, AnsweredLabels, CalibrationCase, Case, Expectation, LabelCase, NoAnswer};
pub use domain::{Constraint, Domain, Quantity};
pub use error::Error;
#[cfg(feature = "files")]
pub use file::{CaseFile, Reader, StoredSequence};
#[cfg(feature = "files")]
pub use memory::Memory;
pub use observation::Observation;
pub use promise::Promise;
pub use ragged::Entry;
pub use recipe::Recipe;
pub use rounding_model::{
    Accumulation, Exponent, FactorOrder, LabelRounding, Precision, Products, RoundingModel,
};
pub use sequence::{Call, EarlierMasker, Instance, Sequence};
pub use session::{Held, Opening, Outcome, Session, SessionObservation, Step, StepAnswer};
#[cfg(feature = "files")]
pub use session_file::StoredSession;
pub use shapes::Shape;
#[cfg(feature = "files")]
pub use stage_file::StoredStage;
pub use stages::{Attended, Given, ScoresCall, SelectionCall, StageAnswer, StageCall, Stages, Takes};
