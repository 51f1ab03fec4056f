//! Verification and differential testing for implementations of Double Sparsity attention: top-k key selection through a
//! few "label" channels (arXiv 2408.07092).
//!
//! Data flows one way: [`cases`] are given to [`subjects`], [`verdicts`] judge the answers, [`reports`] tell the result;
//! [`runner`] joins them. [`algorithm`] is the only place that knows what Double Sparsity is; [`engine`] computes
//! the same over a cache that grows, `torch` (a feature) in libtorch operations. "SPEC" in the documentation is `docs/SPEC.md`, the contract that every implementation is checked against.

#![deny(unsafe_code)]

pub mod algorithm;
pub mod behaviours;
pub mod cases;
mod checksum;
mod compute;
pub mod diagnosis;
pub mod engine;
pub mod evaluation;
#[cfg(feature = "torch")]
pub mod model;
pub mod reports;
pub mod runner;
pub mod subjects;
#[cfg(feature = "torch")]
pub mod torch;
pub mod verdicts;

pub use runner::check::{Options, Report, check};
pub use subjects::Subject;
