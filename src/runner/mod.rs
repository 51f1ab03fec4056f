//! What joins cases, subjects and verdicts: [`verify`](mod@verify) judges files and invariants, [`check`](mod@check) asks
//! anyone's implementation random sequences, [`shrink`](mod@shrink) makes a counterexample small, and
//! [`faults`](mod@faults) shows that the suite catches what it should; [`random`](mod@random) judges one random case at a time.

pub mod check;
pub mod faults;
pub mod random;
pub mod shrink;
pub mod verify;
