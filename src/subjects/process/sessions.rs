//! The questions of the process protocol to a command that holds keys itself (`docs/PROTOCOL.md`, sessions): rows are packed there,
//! and answers are taken apart into one for each request.

use ndarray::Array3;
use serde_json::{Value, json};

use super::answer::AnswerReader;
use super::memory::{Memory, Question};
use super::messages::{Decoded, Message, largest_answer, largest_message};
use crate::algorithm::{Detail, Storage};
use crate::cases::session::Part;
use crate::cases::tensors::{NamedView, Tensors, Writer};
use crate::cases::{Call, Error as FileError, Instance, NoAnswer, Opening, Step, StepAnswer};

/// The frame that opens a session.
pub(super) fn open(id: u64, opening: &Opening) -> Vec<u8> {
    let mut message = opening_message(opening);
    message["id"] = id.into();
    Question::new(None).frame(message)
}

/// The message `open`, without an id.
pub(super) fn opening_message(opening: &Opening) -> Value {
    let mut message = json!(opening);
    message["type"] = "open".into();
    message["scaling"] = opening.scaling.unwrap_or_else(|| 1.0 / (opening.head_dim as f64).sqrt()).into();
    message
}

/// The frame of one step.
pub(super) fn step(id: u64, step: &Step, dtype: Storage, memory: Option<&Memory>) -> Vec<u8> {
    let mut question = Question::new(memory);
    let mut floats = |name: &str, rows: &Array3<f32>| question.floats(name, dtype, rows.view().into_dyn());
    let packed = |layer: &usize, parts: &[Part]| json!({"layer": layer, "requests": parts});
    let mut message: Value = match step {
        Step::Append { layer, parts, k, v } => {
            floats("k", k);
            floats("v", v);
            packed(layer, parts)
        }
        Step::Attend { layer, parts, q } => {
            floats("q", q);
            packed(layer, parts)
        }
        Step::Fork { from, to, length } => json!({"from": from, "to": to, "length": length}),
        Step::Truncate { request, length } => json!({"request": request, "length": length}),
        Step::Free { request } => json!({"request": request}),
    };
    message["type"] = step.name().into();
    message["id"] = id.into();
    question.frame(message)
}

/// The most bytes that an answer to a step may have, whose attend stands for these calls.
pub(super) fn largest_step(calls: &[Call]) -> u64 {
    let longest = calls.iter().max_by_key(|call| call.inputs.dims().keys);
    let each = longest.map_or(0, largest_answer);
    let queries: u64 = calls.iter().map(|call| call.inputs.dims().queries as u64).sum();
    each.saturating_mul(queries.max(1)).saturating_add(largest_message())
}

/// Reads the answer to `open`.
pub(super) fn read_opened(bytes: &[u8], id: u64) -> Decoded<Result<(), NoAnswer>> {
    let message = Message::parse(bytes)?;
    message.expect_id(id)?;
    message.expect_type(&["opened", "refused", "failed"])?;
    Ok(message.no_answer().map_or(Ok(()), Err))
}

/// Reads the answer to a step; of an attend one for each call that it stands for. `any_order`: whether `selected` may list keys in
/// any order.
pub(super) fn read_step(
    bytes: &[u8],
    id: u64,
    step: &Step,
    instance: &Instance,
    calls: &[Call],
    any_order: bool,
) -> Decoded<StepAnswer> {
    let message = Message::parse(bytes)?;
    message.expect_id(id)?;
    let is_attend = matches!(step, Step::Attend { .. });
    message.expect_type(&[if is_attend { "answer" } else { "done" }, "refused", "failed"])?;
    if let Some(no_answer) = message.no_answer() {
        return Ok(Err(no_answer));
    }
    Ok(answers(&message.tensors, instance, calls, any_order))
}

/// The tensors of an attend taken apart: an answer to each call that it stands for. A step that must be refused stands for none:
/// whatever is answered, it is a finding.
pub(super) fn answers(tensors: &Tensors, instance: &Instance, calls: &[Call], any_order: bool) -> StepAnswer {
    let mut first = 0;
    let of_call = |call: &Call| {
        let queries = call.inputs.dims().queries;
        first += queries;
        answer_of(tensors, instance, (calls, call), first - queries, any_order)
    };
    calls.iter().map(of_call).collect::<Result<Vec<_>, String>>().map_err(NoAnswer::Failed)
}

/// The answer to one request: its rows, as those of a call.
fn answer_of(
    tensors: &Tensors,
    instance: &Instance,
    (calls, call): (&[Call], &Call),
    first: usize,
    any_order: bool,
) -> Result<crate::cases::Answer, String> {
    let dims = call.inputs.dims();
    let rows = Packed {
        total: calls.iter().map(|call| call.inputs.dims().queries).sum(),
        most_keys: calls.iter().map(|call| call.inputs.dims().keys).max().unwrap_or(0),
        first,
        queries: dims.queries,
        heads: dims.heads,
        keys: dims.keys,
    };
    let mut writer = Writer::default();
    for name in ["mask", "selected", "output", "lse"] {
        if let Some(view) = tensors.optional(name).map_err(FileError::sentence)? {
            rows.copy(&mut writer, name, &view)?;
        }
    }
    let bytes = writer.finish();
    let tensors = Tensors::parse(&bytes).map_err(FileError::sentence)?;
    AnswerReader { tensors: &tensors, instance, call, any_order }.answer()
}

/// The rows of one request among packed ones.
struct Packed {
    /// All rows of the step.
    total: usize,
    /// The keys of its longest request.
    most_keys: usize,
    first: usize,
    queries: usize,
    heads: usize,
    keys: usize,
}

impl Packed {
    /// Copies the rows of a tensor [t, h, ·] or [t, h] as [1, h, m, ·] or [1, h, m].
    fn copy(&self, writer: &mut Writer, name: &str, view: &NamedView) -> Result<(), String> {
        let shape = view.view.shape();
        let width = match (name, shape) {
            ("lse", [_, _]) => Some(1),
            ("mask", [_, _, keys]) => Some(*keys).filter(|keys| *keys == self.most_keys),
            ("lse", _) => None,
            (_, [_, _, width]) => Some(*width),
            _ => None,
        };
        let fits = shape.len() > 1 && shape[..2] == [self.total, self.heads];
        let Some(width) = width.filter(|_| fits) else {
            let (t, h) = (self.total, self.heads);
            let expected = match name {
                "lse" => format!("[{t}, {h}]"),
                "mask" => format!("[{t}, {h}, {}]", self.most_keys),
                _ => format!("[{t}, {h}, ·]"),
            };
            return Err(Detail::new(name, format!("shape {shape:?}"), expected).to_string());
        };
        let data = view.view.data();
        let size = data.len() / (self.total * self.heads * width).max(1);
        let kept = if name == "mask" { self.keys } else { width };
        let mut bytes = Vec::with_capacity(self.heads * self.queries * kept * size);
        for head in 0..self.heads {
            for row in self.first..self.first + self.queries {
                let start = (row * self.heads + head) * width * size;
                let (own, beyond) = data[start..start + width * size].split_at(kept * size);
                if beyond.iter().any(|&byte| byte != 0) {
                    let field = format!("mask[{row}, {head}]");
                    let found = "a weight beyond the keys of the request";
                    return Err(Detail::new(field, found, format!("0 from key {kept} on")).to_string());
                }
                bytes.extend_from_slice(own);
            }
        }
        let dtype = format!("{:?}", view.view.dtype());
        let shape = [1, self.heads, self.queries, kept];
        writer.tensor(name, &dtype, if name == "lse" { &shape[..3] } else { &shape }, bytes);
        Ok(())
    }
}
