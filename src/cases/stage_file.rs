//! Case files of one stage (SPEC §6): a question to a top-k under the metadata key `scores_case`, one to a sparse attention
//! under `selection_case`. `check` writes them for its counterexamples.

use std::num::NonZeroUsize;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::file::{layer_dims, sizes};
use super::memory::{self, Memory};
use super::stages::{ScoresCall, SelectionCall, StageCall};
use super::tensors::{FLOATS, Tensors, Writer, floats, integers, shape4};
use crate::algorithm::config::from_json;
use crate::algorithm::{Detail, InputParts, Inputs, Lengths, Mask, Storage};

/// A question to one stage that was written to a file.
#[derive(Debug)]
pub struct StoredStage {
    /// Display name.
    pub name: String,
    /// The question.
    pub call: StageCall,
    /// Who diverged on it.
    pub source: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScoresMetadata {
    heavy_size: NonZeroUsize,
    dtype: Storage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ragged: Option<Lengths>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectionMetadata {
    dtype: Storage,
    #[serde(default)]
    scaling: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ragged: Option<Lengths>,
}

/// The bytes of a question's file. The same question gives the same bytes.
pub fn to_bytes(call: &StageCall, source: &str) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.metadata("source", source.to_owned());
    match call {
        StageCall::Scores(call) => {
            let ragged = call.lengths().cloned();
            let json = ScoresMetadata { heavy_size: call.heavy_size(), dtype: call.storage(), ragged };
            writer.metadata("scores_case", serde_json::json!(json).to_string());
            writer.floats("scores", call.storage(), call.scores().view().into_dyn());
        }
        StageCall::Selection(call) => {
            let parts = call.inputs.parts();
            let ragged = call.inputs.lengths().cloned();
            let json = SelectionMetadata { dtype: parts.storage, scaling: parts.scaling, ragged };
            writer.metadata("selection_case", serde_json::json!(json).to_string());
            for (name, tensor) in [("q", &parts.q), ("k", &parts.k), ("v", &parts.v)] {
                writer.floats(name, parts.storage, tensor.view().into_dyn());
            }
            let selected = call.selected();
            let bytes = selected.iter().flat_map(|key| key.to_le_bytes()).collect();
            writer.tensor("selected", "I32", selected.shape(), bytes);
        }
    }
    writer.finish()
}

/// The question of a file; `None` where it holds no such metadata. Errors: by field, found and expected.
pub(super) fn parse(file: &Tensors, name: &str, memory: Memory) -> Result<Option<StoredStage>> {
    let (call, ragged) = if let Some(json) = file.metadata.get("scores_case") {
        let ScoresMetadata { heavy_size, dtype, ragged } = from_json("scores_case", json)?;
        let scores = file.required("scores")?;
        let shape = shape4(&scores)?;
        memory.check("scores_case", format!("[b, h, m, n] {shape:?}"), memory::of_scores(shape))?;
        let scores = floats(&scores, FLOATS)?;
        (StageCall::Scores(ScoresCall::new(scores, dtype, heavy_size)?), ragged)
    } else if let Some(json) = file.metadata.get("selection_case") {
        let SelectionMetadata { dtype, scaling, ragged } = from_json("selection_case", json)?;
        let dims = layer_dims(file, "")?;
        memory.check("selection_case", sizes(&dims), memory::of_attention(&dims))?;
        let numbers = |name: &str| floats(&file.required(name)?, FLOATS);
        let inputs = Inputs::new(InputParts {
            q: numbers("q")?,
            k: numbers("k")?,
            v: numbers("v")?,
            attention_mask: None,
            causal: false,
            storage: dtype,
            scaling,
        })?;
        let mask = selected_mask(file, &inputs)?;
        (StageCall::Selection(SelectionCall { inputs: Arc::new(inputs), mask }), ragged)
    } else {
        return Ok(None);
    };
    let call = match ragged {
        None => call,
        Some(lengths) => call.with_lengths(lengths)?,
    };
    let source = file.metadata.get("source").cloned().unwrap_or_default();
    Ok(Some(StoredStage { name: name.to_owned(), call, source }))
}

fn selected_mask(file: &Tensors, inputs: &Inputs) -> Result<Mask> {
    let selected = integers(&file.required("selected")?)?;
    let dims = inputs.dims();
    let (b, h, m, _) = dims.mask_shape();
    if selected.shape()[..3] != [b, h, m] {
        let found = format!("shape {:?}", selected.shape());
        return Err(Error::Tensor(Detail::new("selected", found, format!("[{b}, {h}, {m}, ·]"))));
    }
    super::case::selected_mask(&selected, &Mask::empty(&dims)).map_err(|problem| {
        Error::Tensor(Detail::new("selected", problem, "ascending key indices, padded with -1 at the end"))
    })
}
