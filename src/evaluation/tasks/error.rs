//! What can be wrong with a file of tasks, or with the settings of a task. Every message names the field, what was found
//! and what was expected; one about a file also says which, and the line.

use std::path::{Path, PathBuf};

use crate::algorithm::Detail;

/// A task that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot access {}: {source}", path.display())]
    Access {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line that is not a record, or has a field missing or of the wrong type.
    #[error("not a record: {0}")]
    Format(Detail),
    /// A data set whose prompt is not known.
    #[error("data set not known: {0}")]
    Dataset(Detail),
    /// A setting outside what a task can be made of.
    #[error("setting not allowed: {0}")]
    Setting(Detail),
    /// One of the above, in this line of this file.
    #[error("{}, line {line}: {error}", path.display())]
    In {
        /// Which file.
        path: PathBuf,
        /// Which line, the first being 1.
        line: usize,
        /// What is wrong with it.
        error: Box<Error>,
    },
}

impl Error {
    /// Says which line of which file an error is about.
    pub(super) fn at(self, path: &Path, line: usize) -> Self {
        Self::In { path: path.to_owned(), line, error: Box::new(self) }
    }
}

/// Result of making tasks.
pub type Result<T> = std::result::Result<T, Error>;
