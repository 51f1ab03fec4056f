//! A conformance suite for Double Sparsity attention: top-k key selection through a few "label" channels
//! (arXiv 2408.07092). It tells you whether your implementation is correct and, if not, what is wrong.
//!
//! An implementation is put behind the trait [`Subject`] and checked by [`check`]: random sequences of calls are asked, every
//! answer is judged by derived rounding bounds, and the first failure of each kind is shrunk to the smallest input that
//! shows it.
//!
//! ```
//! use doublecheck::prelude::*;
//!
//! /// A correct masker with a bug that real ones have: every layer uses the channels of the first layer asked.
//! #[derive(Default)]
//! struct MyMasker {
//!     inner: Reference,
//!     first: Option<usize>,
//! }
//!
//! impl Subject for MyMasker {
//!     fn name(&self) -> String {
//!         "my masker".into()
//!     }
//!
//!     fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
//!         self.first = None;
//!         self.inner.configure(instance)
//!     }
//!
//!     fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
//!         let layer = *self.first.get_or_insert(call.layer);
//!         self.inner.call(&Call { layer, ..call.clone() })
//!     }
//! }
//!
//! let report = check(&mut MyMasker::default(), &Options { cases: 100, ..Options::default() });
//! assert!(!report.conforms());
//! // The counterexample needs two calls, one key to select and one to miss.
//! assert_eq!((report.findings[0].size.calls, report.findings[0].size.keys), (2, 2), "{report}");
//! ```
//!
//! In a test of your own, write `assert!(report.conforms(), "{report}")`. `docs/SPEC.md`, "SPEC" for short, defines what is
//! asked and what a right answer is; the README describes the command line and implementations in other languages.
//!
//! The feature `internals` makes public what the project's own tests and benches use; none of it is meant for others, and it may
//! change in any release.

#![deny(missing_docs, unsafe_code)]
// Whatever the public API hands out can be named by it.
#![cfg_attr(not(feature = "internals"), deny(unnameable_types))]
// Some of what the command uses stays without it.
#![cfg_attr(not(feature = "cli"), allow(dead_code))]

pub mod algorithm;
pub mod behaviours;
pub mod cases;
#[cfg(feature = "files")]
mod checksum;
#[cfg(feature = "cli")]
mod cli;
mod compute;
#[cfg(feature = "internals")]
pub mod diagnosis;
#[cfg(not(feature = "internals"))]
mod diagnosis;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "internals")]
pub mod evaluation;
#[cfg(all(feature = "torch", not(feature = "internals")))]
mod evaluation;
#[cfg(all(feature = "torch", feature = "internals"))]
pub mod model;
#[cfg(all(feature = "torch", not(feature = "internals")))]
mod model;
pub mod prelude;
#[cfg(feature = "internals")]
pub mod reports;
#[cfg(not(feature = "internals"))]
mod reports;
#[cfg(feature = "internals")]
pub mod runner;
#[cfg(not(feature = "internals"))]
mod runner;
pub mod subjects;
#[cfg(feature = "torch")]
pub mod torch;
pub mod verdicts;
mod visible;

#[cfg(feature = "cli")]
pub use cli::{main as command, main_with as command_with};
#[cfg(feature = "probes")]
pub use runner::check::probe_only;
pub use runner::check::{
    Event, Finding, Options, Progress, Report, Shard, Size, check, check_sequence, check_session,
    check_stage_call, check_with,
};
pub use runner::shrink::Limits;
pub use subjects::Subject;

/// The parts of a [`Report`], and how it and they are told.
pub mod report {
    pub use crate::diagnosis::Faults;
    pub use crate::diagnosis::condition::Condition;
    pub use crate::diagnosis::probes::Probed;
    #[cfg(feature = "probes")]
    pub use crate::diagnosis::probes::{Deviation, Measurement, State};
    pub use crate::diagnosis::relations::Told;
    pub use crate::reports::check::{
        finding as finding_in_words, render as in_words, replay as replay_in_words,
        replay_stage as replay_stage_in_words,
    };
    #[cfg(feature = "files")]
    pub use crate::reports::counterexamples::{write as write_counterexamples, write_finding};
    #[cfg(feature = "cli")]
    pub use crate::reports::html::check as html;
    #[cfg(feature = "cli")]
    pub use crate::reports::merge::{Merged, merge};
    pub use crate::reports::sessions::{render as session_in_words, replay as replay_session_in_words};
    pub use crate::runner::check::{
        Asked, BySize, Coverage, Declaration, Declared, Excuse, Implementation, Kept, Like, Needs, OfSize,
        Repeats, ReportedStages, SessionExample, Sessions, StageExample,
    };
    pub use crate::runner::shrink::edge::Edge;
}
