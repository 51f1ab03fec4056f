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
//! Modules that are hidden here serve the command line, the tests and the benches; their items may change in any release.

#![deny(missing_docs, unsafe_code)]

pub mod algorithm;
#[doc(hidden)]
pub mod behaviours;
pub mod cases;
#[cfg(feature = "files")]
mod checksum;
mod compute;
#[doc(hidden)]
pub mod diagnosis;
#[cfg(feature = "engine")]
pub mod engine;
#[doc(hidden)]
#[cfg(feature = "cli")]
pub mod evaluation;
#[cfg(feature = "torch")]
#[doc(hidden)]
pub mod model;
pub mod prelude;
#[doc(hidden)]
pub mod reports;
#[doc(hidden)]
pub mod runner;
pub mod subjects;
#[cfg(feature = "torch")]
pub mod torch;
pub mod verdicts;

pub use runner::check::{Finding, Options, Report, Size, check};
pub use runner::shrink::Limits;
pub use subjects::Subject;
