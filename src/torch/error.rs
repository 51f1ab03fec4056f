//! Why libtorch gives no answer.

use tch::TchError;

use crate::algorithm;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An input or a setting that the SPEC refuses.
    #[error(transparent)]
    Refused(#[from] algorithm::Error),
    /// libtorch failed: the first line of what it says.
    #[error("libtorch: {0}")]
    Failed(String),
}

impl From<TchError> for Error {
    /// The lines after the first are a stack of libtorch's own functions.
    fn from(error: TchError) -> Self {
        Self::Failed(error.to_string().lines().next().unwrap_or_default().to_owned())
    }
}

/// What functions of this module return.
pub type Result<T> = std::result::Result<T, Error>;
