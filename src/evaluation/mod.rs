//! What a selection of keys does to the answers of a language model.
//!
//! | what | file |
//! |---|---|
//! | questions, and how answers are scored | `tasks` |
//! | what a model is given, in tokens | `work` |
//! | who selects keys | `contenders` |
//! | the attention that the model is given | `attention` |
//! | what is kept of exact top-k | `recall` |
//! | what is done so far | `progress` |
//! | the evaluation itself | `run` |
//! | what was found | `results` |
//! | how sure a figure is | `bootstrap` |
//! | faults that each query meets as a decode step of its own | `steps` |
//! | several evaluations as one | `joined` |
//! | which settings to choose | `choosing` |
//!
//! All but `tasks`, `results`, `bootstrap`, `steps`, `joined` and `choosing` need the feature `torch`.

#[cfg(feature = "torch")]
pub mod attention;
pub mod bootstrap;
pub mod choosing;
#[cfg(feature = "torch")]
pub mod contenders;
pub mod joined;
#[cfg(feature = "torch")]
pub mod progress;
#[cfg(feature = "torch")]
pub mod recall;
pub mod results;
#[cfg(feature = "torch")]
pub mod run;
pub mod steps;
pub mod tasks;
#[cfg(feature = "torch")]
pub mod work;
