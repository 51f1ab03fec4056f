//! What can be wrong with a file of cases. Every message names the field, what was found and what was expected.

use std::path::PathBuf;

use crate::algorithm::{Detail, Error as AlgorithmError};

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or folder cannot be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Access {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a safetensors file, or not one of the kinds of SPEC §6.
    #[error("not a case file: {0}")]
    Format(Detail),
    /// A tensor that is missing, or has the wrong type or shape.
    #[error("tensor does not fit: {0}")]
    Tensor(Detail),
    /// Metadata that is missing or cannot be understood.
    #[error("metadata does not fit: {0}")]
    Metadata(Detail),
    /// Sizes that take more memory than is allowed.
    #[error("too much memory: {0}")]
    Memory(Detail),
    /// Values that the algorithm refuses.
    #[error(transparent)]
    Refused(#[from] AlgorithmError),
    /// One of the above, in this file.
    #[error("{}: {error}", path.display())]
    In {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<Error>,
    },
}

impl Error {
    /// Field, found and expected without the kind of mistake, as a sentence.
    #[cfg(feature = "process")]
    pub(crate) fn sentence(self) -> String {
        match self {
            Self::Format(detail) | Self::Tensor(detail) | Self::Metadata(detail) | Self::Memory(detail) => {
                detail.to_string()
            }
            other => other.to_string(),
        }
    }

    /// Says which file an error is about.
    pub fn in_file(self, path: &std::path::Path) -> Self {
        match self {
            located @ (Self::In { .. } | Self::Access { .. }) => located,
            error => Self::In { path: path.to_owned(), error: Box::new(error) },
        }
    }
}

/// Result of reading and writing cases.
pub type Result<T> = std::result::Result<T, Error>;
