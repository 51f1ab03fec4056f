//! A language model to evaluate attention in (feature `torch`): any GGUF file of the Llama architecture with its own tokenizer. The forward
//! pass runs on libtorch with a cache of keys and values, and asks an [`Attention`] in every layer, so that whatever selects keys
//! can be put inside.
//!
//! | what | file |
//! |---|---|
//! | metadata and weights of the file | `gguf` |
//! | files to text | `text` |
//! | text to tokens and back | `tokenizer` |
//! | the forward pass | `llama` |
//! | channel orders from the model's own activations (SPEC §4) | `calibrate` |

pub mod calibrate;
pub mod gguf;
pub mod llama;
pub mod text;
pub mod tokenizer;

use std::path::{Path, PathBuf};

use tch::{Device, Kind, TchError};

use crate::algorithm::Detail;
use crate::torch;
pub use gguf::Gguf;
pub use llama::{Attention, Cache, Config, Llama};
pub use tokenizer::Tokenizer;

/// Why a model cannot be used, or a step of it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}")]
    Access {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a GGUF file that can be used: field, found, expected.
    #[error("model: {0}")]
    Model(Detail),
    /// Text that cannot be turned into tokens, or back.
    #[error("tokenizer: {0}")]
    Tokenizer(Detail),
    /// A text that cannot be used.
    #[error("text: {0}")]
    Text(Detail),
    /// More tokens than fit, or none.
    #[error("tokens: {0}")]
    Tokens(Detail),
    /// What an attention refused, or failed at.
    #[error("attention of layer {layer}: {problem}")]
    Attention {
        /// The layer.
        layer: usize,
        /// What it said, in a sentence.
        problem: String,
    },
    /// Logits that say nothing.
    #[error("not a finite number: {0}")]
    NotFinite(Detail),
    /// The reference's own errors: channels, shapes.
    #[error(transparent)]
    Algorithm(#[from] crate::algorithm::Error),
    /// libtorch failed, or what runs on it refused its input.
    #[error(transparent)]
    Torch(#[from] torch::Error),
}

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        Self::Torch(error.into())
    }
}

/// What functions of this module return.
pub type Result<T> = std::result::Result<T, Error>;

/// A model with its tokenizer.
#[derive(Debug)]
pub struct Model {
    /// `general.name` of the file, or the file's name.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// Weights.
    pub llama: Llama,
}

impl Model {
    /// Reads a GGUF file whole. `kind` is the type that weights and activations are computed in, `Float` or `Double`.
    ///
    /// Errors: [`Error::Access`], [`Error::Model`], [`Error::Tokenizer`]; those of libtorch.
    pub fn read(path: &Path, device: Device, kind: Kind) -> Result<Self> {
        let mut file = Gguf::read(path)?;
        let file_name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            name: file.text("general.name").map(str::to_owned).unwrap_or_else(|_| file_name()),
            sha256: file.sha256().to_owned(),
            tokenizer: Tokenizer::new(&file)?,
            llama: Llama::new(&mut file, device, kind)?,
        })
    }
}
