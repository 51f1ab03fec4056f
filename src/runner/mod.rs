//! What joins cases, subjects and verdicts: `verify` judges files and invariants (feature `cli`), [`check`](mod@check) asks
//! anyone's implementation random sequences, [`shrink`](mod@shrink) makes a counterexample small, and `faults` shows that
//! the suite catches what it should (feature `cli`); `random` judges one random case at a time, and `judged_cases` many
//! (feature `internals`).

pub mod check;
#[cfg(feature = "cli")]
pub mod faults;
#[cfg(feature = "internals")]
pub mod judged_cases;
#[cfg(feature = "cli")]
pub mod random;
pub mod shrink;
#[cfg(feature = "cli")]
pub mod verify;
