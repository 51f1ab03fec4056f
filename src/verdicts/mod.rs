//! How answers are judged: error bounds, certified selection, the output's bound (SPEC §5), and invariants that any
//! implementation must satisfy.

pub mod bounds;
pub mod calibration;
pub mod certificate;
pub mod changed;
pub mod estimated;
pub mod evidence;
#[cfg(feature = "cli")]
pub mod invariants;
pub mod judge;
pub mod labels;
pub mod lse;
pub mod output;
mod peaks;
pub mod ragged;
pub mod rows;
pub mod scores;
pub mod session;
pub mod sharpness;
pub mod stages;
pub mod topk;

pub use certificate::Certificate;
pub use evidence::Evidence;
pub use judge::{Judgement, Verdict, judge};
pub use session::{SessionJudge, SessionVerdict, StepFailure, judge_session};
pub use sharpness::Sharpness;
pub use stages::{StageVerdict, judge_stage};
