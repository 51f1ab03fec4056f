//! Changes of one step: rows that select otherwise, labels that come from elsewhere, attention that is another one. They are the
//! grammar in which the diagnosis says what an answer is right for, and faults of the catalogue are made of them.

pub mod labels;
pub mod outputs;
pub mod places;
pub mod rows;

pub use labels::{Forgotten, Kept, LabelChange, Renewed, Source};
pub use outputs::{OutputChange, Pads, Split, Written};
pub use places::{Axis, Map};
pub use rows::{Bins, Counted, Forced, Lost, Place, RowChange};
