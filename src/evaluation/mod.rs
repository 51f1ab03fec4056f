//! What a selection of keys does to the answers of a language model. [`tasks`] asks questions of a model, [`results`] holds what
//! came out, [`bootstrap`] says how sure it is.

#[cfg(feature = "torch")]
pub mod attention;
pub mod bootstrap;
#[cfg(feature = "torch")]
pub mod recall;
pub mod results;
#[cfg(feature = "torch")]
pub mod run;
pub mod tasks;
