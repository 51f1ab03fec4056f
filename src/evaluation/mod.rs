//! What a selection of keys does to the answers of a language model. [`tasks`] asks questions of a model, [`results`] holds what
//! came out, [`bootstrap`] says how sure it is.

pub mod bootstrap;
pub mod results;
pub mod tasks;
