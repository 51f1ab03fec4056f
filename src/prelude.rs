//! What an adapter and its test need: `use doublecheck::prelude::*;`

pub use crate::algorithm::{
    ChannelKind, ChannelOrder, Dims, Error, GroupFactor, HeadMode, HeavySize, Inputs, LabelBits, Mask,
    Selection, Storage,
};
pub use crate::cases::{
    Accumulation, Answer, AnsweredLabels, Call, Capabilities, Case, EarlierMasker, Feature, Instance,
    LabelRounding, NoAnswer, Precision, Promise, RoundingModel, Sequence,
};
#[cfg(feature = "process")]
pub use crate::subjects::Process;
pub use crate::subjects::{Reference, Subject};
pub use crate::{Finding, Limits, Options, Report, check};
