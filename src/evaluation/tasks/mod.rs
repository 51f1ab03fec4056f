//! What a model is asked: question answering in LongBench's format, and generated retrieval tasks. Each item is text in
//! two parts, since one of the two evaluation set-ups attends sparsely from the question on (SPEC D15).

mod error;
pub mod longbench;
pub mod retrieval;

pub use error::{Error, Result};

/// One question to a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Display name: `hotpotqa 17`, `passkey 3`.
    pub name: String,
    /// The prompt up to the end of the context.
    pub context: String,
    /// The rest of the prompt: the question, up to where the answer begins.
    pub question: String,
    /// Answers that count as right, at least one.
    pub answers: Vec<String>,
    /// How many tokens may be generated.
    pub most_tokens: usize,
}
