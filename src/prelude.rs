//! What an adapter and its test need: `use doublecheck::prelude::*;`

pub use crate::algorithm::{
    ChannelKind, ChannelOrder, Dims, Error, GroupFactor, HeadMode, HeavySize, Inputs, LabelBits, Mask,
    Selection, Storage,
};
pub use crate::cases::{
    Accumulation, Answer, AnsweredLabels, Call, Capabilities, Case, EarlierMasker, Feature, Held, Instance,
    LabelRounding, NoAnswer, Opening, Precision, Promise, RoundingModel, Sequence, Step, StepAnswer,
};
#[cfg(feature = "process")]
pub use crate::subjects::Process;
pub use crate::subjects::{Reference, Subject};
pub use crate::{Finding, Limits, Options, Report, check};
