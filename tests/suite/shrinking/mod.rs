//! Shrinking, held to the smallest failing example and the number of questions that it takes to get there.

mod around_counterexamples;
mod sequences;
mod sessions;
mod smaller_questions;
mod subjects;
