//! Case files of sessions (SPEC §6), under the metadata key `session`. `check` writes them for its counterexamples.

use std::collections::BTreeMap;

use ndarray::Array3;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::memory::{self, Memory};
use super::sequence::{Instance, InstanceSettings};
use super::session::{Opening, Part, Session, Step};
use super::tensors::{FLOATS, Tensors, Writer, floats3};
use crate::algorithm::config::from_json;
use crate::algorithm::{ChannelFile, Detail, Dims, Selection};

/// A session that was written to a file.
#[derive(Debug)]
pub struct StoredSession {
    /// The session.
    pub session: Session,
    /// Who diverged on it.
    pub source: String,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    #[serde(flatten)]
    instance: InstanceSettings,
    open: Opening,
    steps: Vec<StepMetadata>,
}

/// A step without its tensors, which are `step_0.k`, `step_0.v`, `step_1.q` and so on.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum StepMetadata {
    Append { layer: usize, requests: Vec<Part> },
    Attend { layer: usize, requests: Vec<Part> },
    Fork { from: usize, to: usize, length: usize },
    Truncate { request: usize, length: usize },
    Free { request: usize },
}

impl From<&Step> for StepMetadata {
    fn from(step: &Step) -> Self {
        match step {
            Step::Append { layer, parts, .. } => Self::Append { layer: *layer, requests: parts.clone() },
            Step::Attend { layer, parts, .. } => Self::Attend { layer: *layer, requests: parts.clone() },
            &Step::Fork { from, to, length } => Self::Fork { from, to, length },
            &Step::Truncate { request, length } => Self::Truncate { request, length },
            &Step::Free { request } => Self::Free { request },
        }
    }
}

/// The bytes of a session's file. The same session gives the same bytes.
pub fn to_bytes(session: &Session, source: &str) -> Vec<u8> {
    let mut writer = Writer::default();
    let metadata = Metadata {
        instance: session.instance.settings(),
        open: session.opening.clone(),
        steps: session.steps.iter().map(StepMetadata::from).collect(),
    };
    writer.metadata("session", serde_json::json!(metadata).to_string());
    writer.metadata("channel_file", session.instance.channel_file.to_json());
    writer.metadata("source", source.to_owned());
    let dtype = session.opening.dtype;
    for (index, step) in session.steps.iter().enumerate() {
        let mut tensor = |name: &str, tensor: &Array3<f32>| {
            writer.floats(&format!("step_{index}.{name}"), dtype, tensor.view().into_dyn());
        };
        match step {
            Step::Append { k, v, .. } => {
                tensor("k", k);
                tensor("v", v);
            }
            Step::Attend { q, .. } => tensor("q", q),
            Step::Fork { .. } | Step::Truncate { .. } | Step::Free { .. } => {}
        }
    }
    writer.finish()
}

/// The session of a file; `None` where it holds no such metadata. Errors: by field, found and expected.
pub(super) fn parse(file: &Tensors, name: &str, memory: Memory) -> Result<Option<StoredSession>> {
    let Some(json) = file.metadata.get("session") else { return Ok(None) };
    let Metadata { instance, open, steps } = from_json("session", json)?;
    let missing = || Detail::new("channel_file", "nothing", "the JSON text of a channel file");
    let channels = file.metadata.get("channel_file").ok_or_else(|| Error::Tensor(missing()))?;
    let instance = Instance::from_settings(instance, ChannelFile::from_json(channels)?);
    check_opening(&open)?;
    check_memory(file, &instance.selection, &open, &steps, memory)?;
    let step = |(index, step): (usize, StepMetadata)| -> Result<Step> {
        let tensor = |name: &str| -> Result<Array3<f32>> {
            let name = format!("step_{index}.{name}");
            let mut numbers = floats3(&file.required(&name)?, FLOATS)?;
            // Also what is too large for the type.
            numbers.mapv_inplace(|x| open.dtype.round(x));
            if numbers.iter().any(|x| !x.is_finite()) {
                let expected = format!("finite numbers in {}", open.dtype);
                return Err(Error::Tensor(Detail::new(name, "NaN or an infinity", expected)));
            }
            Ok(numbers)
        };
        Ok(match step {
            StepMetadata::Append { layer, requests } => {
                Step::Append { layer, parts: requests, k: tensor("k")?, v: tensor("v")? }
            }
            StepMetadata::Attend { layer, requests } => {
                Step::Attend { layer, parts: requests, q: tensor("q")? }
            }
            StepMetadata::Fork { from, to, length } => Step::Fork { from, to, length },
            StepMetadata::Truncate { request, length } => Step::Truncate { request, length },
            StepMetadata::Free { request } => Step::Free { request },
        })
    };
    let steps = steps.into_iter().enumerate().map(step).collect::<Result<Vec<_>>>()?;
    let session = Session { name: name.to_owned(), instance, opening: open, steps };
    if session.outcomes().is_none() {
        let expected = "steps whose outcome does not depend on how pages are laid out (SPEC 2.14)";
        return Err(Error::Tensor(Detail::new(
            "session.steps",
            "a step that may be refused or not",
            expected,
        )));
    }
    let source = file.metadata.get("source").cloned().unwrap_or_default();
    Ok(Some(StoredSession { session, source }))
}

/// Errors: [`Error::Memory`] where the room, the tokens that are held and the calls that attend take more than is allowed. Lengths
/// are followed as they are where no step is refused.
fn check_memory(
    file: &Tensors,
    selection: &Selection,
    open: &Opening,
    steps: &[StepMetadata],
    memory: Memory,
) -> Result<()> {
    let &Opening { capacity, heads, kv_heads, head_dim, value_dim, .. } = open;
    let layers = open.layers.len();
    let mut bytes = memory::of_room(capacity, layers);
    memory.check("session.open", format!("capacity {capacity} in {layers} layers"), bytes)?;
    // By request, the most of all layers.
    let mut lengths = BTreeMap::<usize, usize>::new();
    for (index, step) in steps.iter().enumerate() {
        // Rows that the parts do not fill are refused.
        let rows = |name: &str| -> Result<usize> {
            let view = file.required(&format!("step_{index}.{name}"))?;
            Ok(view.view.shape().first().copied().unwrap_or(0))
        };
        let fill = |parts: &[Part], rows: usize| {
            parts.iter().map(|&(_, count)| count as u128).sum::<u128>() == rows as u128
        };
        match step {
            StepMetadata::Append { requests, .. } => {
                let rows = rows("k")?;
                if fill(requests, rows) {
                    for &(request, count) in requests {
                        *lengths.entry(request).or_default() += count;
                    }
                    bytes = bytes.saturating_add(memory::of_tokens(rows, kv_heads, head_dim, value_dim));
                }
            }
            StepMetadata::Attend { requests, .. } => {
                if fill(requests, rows("q")?) {
                    for (request, queries) in requests {
                        let keys = lengths.get(request).copied().unwrap_or(0);
                        let queries = *queries;
                        let dims = Dims { batch: 1, heads, kv_heads, queries, keys, head_dim, value_dim };
                        bytes = bytes.saturating_add(memory::of_call(&dims, selection));
                    }
                }
            }
            StepMetadata::Fork { from, to, length } => {
                let held = lengths.get(from).copied().unwrap_or(0).min(*length);
                bytes = bytes.saturating_add(memory::of_room(held, layers));
                lengths.insert(*to, held);
            }
            StepMetadata::Truncate { request, length } => {
                lengths.entry(*request).and_modify(|held| *held = (*held).min(*length));
            }
            StepMetadata::Free { request } => {
                lengths.remove(request);
            }
        }
        let longest = lengths.values().max().copied().unwrap_or(0);
        memory.check(
            &format!("session.steps[{index}]"),
            format!("requests of up to {longest} keys"),
            bytes,
        )?;
    }
    Ok(())
}

fn check_opening(open: &Opening) -> Result<()> {
    let Opening { capacity, page_size, heads, kv_heads, head_dim, value_dim, .. } = open;
    let sizes = [
        ("capacity", *capacity),
        ("page_size", *page_size),
        ("heads", *heads),
        ("kv_heads", *kv_heads),
        ("head_dim", *head_dim),
        ("value_dim", *value_dim),
    ];
    let wrong = |name: &str, found: usize, expected: &str| {
        Error::Tensor(Detail::new(format!("session.open.{name}"), found, expected))
    };
    if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
        return Err(wrong(name, 0, "at least 1"));
    }
    if !heads.is_multiple_of(*kv_heads) {
        return Err(wrong("kv_heads", *kv_heads, "a number that divides the heads"));
    }
    if !capacity.is_multiple_of(*page_size) {
        return Err(wrong("capacity", *capacity, "a multiple of the page size"));
    }
    Ok(())
}
