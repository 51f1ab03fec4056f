//! Double Sparsity in libtorch operations, on CPU and CUDA (feature `torch`): written from SPEC §2 and not from the reference,
//! so that the two can disagree. Labels are those of SPEC §2.5 bit for bit; scores and attention are computed in f32.
//!
//! | what | file |
//! |---|---|
//! | q, k, v and A on a device; moving numbers there and back | `layer` |
//! | the mask from raw keys (SPEC §2.2 to §2.10), exact top-k, windows | `masker` |
//! | scores, heads and forced keys by other rules (SPEC §2.12) | `rules` |
//! | attention over a mask, or over selected keys (SPEC §2.11) | `attention` |
//! | keys, values and labels kept across decode steps | `cache` |
//! | those of many requests, in pages (SPEC §2.14) | `pages` |
//! | where libtorch computes | `device` |
//! | why there is no answer | `error` |

pub mod attention;
pub mod cache;
pub mod device;
pub mod error;
pub mod layer;
pub mod masker;
pub mod pages;
pub mod rules;

pub use cache::LabelledKvCache;
pub use device::{DeviceChoice, DeviceError};
pub use error::{Error, Result};
pub use layer::{Layer, to_device, to_host};
pub use masker::TorchMasker;
pub use pages::Pages;
