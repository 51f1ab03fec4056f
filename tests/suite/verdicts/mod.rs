//! Verdicts in cases small enough to work out by hand or to enumerate: each bound from both sides, each check by an answer that only it
//! refuses. Most of these tests were written against changes of the code that no other test noticed.

mod calibration;
mod changed_rows;
mod derivations;
mod each_invariant;
mod edges;
mod figures;
mod judging;
mod long_rows;
mod score_bounds;
mod shown_evidence;
