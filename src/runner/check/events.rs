//! What a check under way tells those who wait for it.

use super::report::Finding;

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A sequence is about to be asked.
    Asking(Progress),
    /// A failure of a new kind was found and is about to be shrunk: its number, from 1, and the finding as it is. Later findings may
    /// turn out to have the same cause, so that numbers in the report may differ.
    Found(usize, &'a Finding),
    /// A finding is being shrunk: its number, and how often that was tried.
    Shrinking(usize, usize),
    /// It was shrunk.
    Shrunk(usize, &'a Finding),
    /// Nothing more is asked: causes are being named, of so many findings.
    Naming(usize),
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Which part of it is done, from 0 to 1.
    pub done: f64,
    /// Sequences asked so far, or questions to one stage.
    pub asked: usize,
    /// How many of them are asked in a second.
    pub per_second: f64,
    /// The keys of the longest call of the sequence that is about to be asked.
    pub keys: usize,
    /// Findings so far.
    pub findings: usize,
}
