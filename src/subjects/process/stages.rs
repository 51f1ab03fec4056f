//! The questions of the process protocol to a command that does one stage (`docs/PROTOCOL.md`, `select` and `attend`).

use ndarray::Array4;
use safetensors::Dtype;
use serde_json::json;

use super::answer::{attended, check_shape, read_integers, read_lse, shaped_floats, sort};
use super::memory::{Memory, Question};
use super::messages::{Decoded, Message, largest_message, write_lengths};
use crate::algorithm::{Detail, Dims, Mask};
use crate::cases::tensors::{NamedView, Tensors, floats};
use crate::cases::{Attended, Error as FileError, Expectation, NoAnswer, ScoresCall, SelectionCall};

/// The frame of a question to a top-k.
pub(super) fn select(id: u64, call: &ScoresCall, memory: Option<&Memory>) -> Vec<u8> {
    let mut question = Question::new(memory);
    let message = json!({
        "type": "select",
        "id": id,
        "heavy_size": call.heavy_size(),
        "dtype": call.storage(),
    });
    question.floats("scores", call.storage(), call.padded_scores().view().into_dyn());
    write_lengths(&mut question, call.lengths());
    question.frame(message)
}

/// The frame of a question to a sparse attention.
pub(super) fn attend(id: u64, call: &SelectionCall, memory: Option<&Memory>) -> Vec<u8> {
    let parts = call.inputs.parts();
    let mut question = Question::new(memory);
    let message = json!({
        "type": "attend",
        "id": id,
        "dtype": parts.storage,
        "scaling": call.inputs.scaling(),
    });
    let (k, v) = (call.inputs.padded_keys(), call.inputs.padded_values());
    for (name, tensor) in [("q", &parts.q), ("k", k.as_ref()), ("v", v.as_ref())] {
        question.floats(name, parts.storage, tensor.view().into_dyn());
    }
    write_lengths(&mut question, call.inputs.lengths());
    let selected = call.selected();
    question.integers("selected", selected.shape(), selected.iter().copied());
    question.frame(message)
}

/// The most bytes that an answer to a top-k question may have.
pub(super) fn largest_selection(call: &ScoresCall) -> u64 {
    // A mask in f32, and selected in I64.
    (call.scores().len() as u64).saturating_mul(4 + 8).saturating_add(largest_message())
}

/// The most bytes that an answer to a question of attention may have.
pub(super) fn largest_attention(call: &SelectionCall) -> u64 {
    let (b, h, m, dv) = call.inputs.dims().output_shape();
    ((b * h * m * (dv + 1)) as u64).saturating_mul(4).saturating_add(largest_message())
}

/// What was asked for, or what the command said instead.
type Answered<T> = Decoded<Result<T, NoAnswer>>;

/// A selection, and its tensor `selected` as it was sent.
type Selection = (Mask, Option<Array4<i32>>);

/// Reads the answer of a top-k. `any_order`: whether `selected` may list keys in any order.
pub(super) fn read_selection(
    bytes: &[u8],
    id: u64,
    call: &ScoresCall,
    any_order: bool,
) -> Answered<Selection> {
    read(bytes, id, |message| selection(&message.tensors, &call.dims(), any_order))
}

/// Reads the answer of a sparse attention.
pub(super) fn read_attention(bytes: &[u8], id: u64, call: &SelectionCall) -> Answered<Attended> {
    read(bytes, id, |message| attention(&message.tensors, &call.inputs.dims()))
}

/// The output, the log-sum-exp, or both.
pub(super) fn attention(tensors: &Tensors, dims: &Dims) -> Result<Attended, String> {
    let output = tensors.optional("output").map_err(FileError::sentence)?;
    let output = output.map(|view| shaped_floats("output", &view, dims.output_shape())).transpose()?;
    let lse = read_lse(tensors, dims)?;
    if output.is_none() && lse.is_none() {
        return Err(Detail::new("output", "nothing", "a tensor output or lse").to_string());
    }
    Ok(Attended { output, lse })
}

fn read<T>(bytes: &[u8], id: u64, answer: impl FnOnce(&Message) -> Result<T, String>) -> Answered<T> {
    let message = Message::parse(bytes)?;
    message.expect_id(id)?;
    message.expect_type(&["answer", "refused", "failed"])?;
    if let Some(no_answer) = message.no_answer() {
        return Ok(Err(no_answer));
    }
    Ok(answer(&message).map_err(NoAnswer::Failed))
}

/// The selected keys, in either form.
pub(super) fn selection(tensors: &Tensors, dims: &Dims, any_order: bool) -> Result<Selection, String> {
    let optional = |name| tensors.optional(name).map_err(FileError::sentence);
    let mask = optional("mask")?.map(|view| weights(&view, dims)).transpose()?;
    let listed = optional("selected")?.map(|view| indices(&view, dims)).transpose()?;
    let of_listed = |listed: &Array4<i32>| {
        let mut selected = listed.clone();
        if any_order {
            sort(&mut selected);
        }
        expected(Expectation { selected: Some(selected), ..Expectation::default() }, dims)
    };
    let selected = listed.as_ref().map(of_listed).transpose()?;
    match (mask, selected) {
        (Some(mask), Some(selected)) if attended(&mask) != attended(&selected) => {
            Err(Detail::new("selected", "other keys than in mask", "the same keys, or one of the two")
                .to_string())
        }
        (Some(mask), _) | (None, Some(mask)) => Ok((mask, listed)),
        (None, None) => Err(Detail::new("selected", "nothing", "a tensor selected or mask").to_string()),
    }
}

fn weights(view: &NamedView, dims: &Dims) -> Result<Mask, String> {
    let types = [Dtype::U8, Dtype::BOOL, Dtype::F32, Dtype::F16, Dtype::BF16];
    view.check(&types, 4).map_err(FileError::sentence)?;
    check_shape("mask", view, dims.mask_shape())?;
    if matches!(view.view.dtype(), Dtype::U8 | Dtype::BOOL) {
        let mask = view.array4(view.view.data().to_vec()).map_err(FileError::sentence)?;
        return expected(Expectation { mask: Some(mask), ..Expectation::default() }, dims);
    }
    let weights = floats(view, &types).map_err(FileError::sentence)?;
    Mask::from_weights(weights, dims).map_err(|error| error.to_string())
}

fn indices(view: &NamedView, dims: &Dims) -> Result<Array4<i32>, String> {
    let selected = read_integers(view)?;
    let (b, h, m, _) = dims.mask_shape();
    if selected.shape()[..3] != [b, h, m] {
        let found = format!("shape {:?}", selected.shape());
        return Err(Detail::new("selected", found, format!("[{b}, {h}, {m}, ·]")).to_string());
    }
    Ok(selected)
}

fn expected(expectation: Expectation, dims: &Dims) -> Result<Mask, String> {
    match expectation.answer(&Mask::empty(dims)) {
        Some(answer) => answer.map(|answer| answer.mask),
        None => Err("found no mask".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use ndarray::Array4;

    use super::super::messages::KEY;
    use super::*;
    use crate::algorithm::Storage;
    use crate::cases::stage_plan::stage_call;
    use crate::cases::tensors::Writer;
    use crate::cases::{Capabilities, StageCall, Stages, Takes};

    type Part<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

    fn answer(tensors: &[Part]) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.metadata(KEY, json!({"type": "answer", "id": 1}).to_string());
        for (name, dtype, shape, bytes) in tensors {
            writer.tensor(name, dtype, shape, bytes.clone());
        }
        writer.frame()[8..].to_vec()
    }

    fn question() -> ScoresCall {
        let scores = Array4::from_shape_vec((1, 1, 1, 3), vec![3.0, f32::NEG_INFINITY, 1.0]).unwrap();
        ScoresCall::new(scores, Storage::F16, NonZeroUsize::new(2).unwrap()).unwrap()
    }

    fn i64s(values: &[i64]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn a_selection_is_read_in_every_form_and_mistakes_are_named() {
        let read_with = |tensors: &[Part], any_order| {
            let read = read_selection(&answer(tensors), 1, &question(), any_order).unwrap();
            read.map(|(mask, listed)| (mask.weights().iter().copied().collect::<Vec<_>>(), listed))
        };
        let read = |tensors: &[Part]| read_with(tensors, false).map(|(weights, _)| weights);
        let expected = vec![1.0, 0.0, 1.0];
        for part in [
            ("mask", "U8", &[1, 1, 1, 3][..], vec![1, 0, 1]),
            ("selected", "I64", &[1, 1, 1, 2], i64s(&[0, 2])),
            ("selected", "I64", &[1, 1, 1, 3], i64s(&[0, 2, -1])),
        ] {
            assert_eq!(read(std::slice::from_ref(&part)).unwrap(), expected, "{part:?}");
        }
        let unordered = ("selected", "I64", &[1, 1, 1, 3][..], i64s(&[-1, 2, 0]));
        let (weights, listed) = read_with(&[unordered], true).unwrap();
        assert_eq!((weights, listed.unwrap().as_slice()), (expected, Some(&[-1, 2, 0][..])));
        for (tensors, expected) in [
            (vec![], "selected: found nothing, expected a tensor selected or mask"),
            (
                vec![("selected", "I64", &[1, 1, 1, 2][..], i64s(&[2, 0]))],
                "selected[0, 0, 0, 1]: found 0 after 2",
            ),
            (
                vec![("selected", "I64", &[1, 1, 1, 2], i64s(&[0, 0]))],
                "selected[0, 0, 0, 1]: found 0 after 0",
            ),
            (vec![("selected", "I64", &[1, 1, 1, 1], i64s(&[3]))], "selected[0, 0, 0, 0]: found 3"),
            (vec![("mask", "U8", &[1, 1, 3, 1], vec![1, 0, 1])], "mask: found shape [1, 1, 3, 1]"),
        ] {
            let Err(NoAnswer::Failed(problem)) = read(&tensors) else { panic!("{tensors:?}") };
            assert!(problem.starts_with(expected), "{problem}");
        }
    }

    #[test]
    fn an_attention_gives_an_output_or_lse_of_the_right_shape() {
        let stages = Stages::new(Takes::Selection, None).unwrap();
        let capabilities = Capabilities { stages, ..Capabilities::default() };
        let Some(StageCall::Selection(call)) = stage_call(&capabilities, 0) else { panic!() };
        let dims = call.inputs.dims();
        let shape = [dims.batch, dims.heads, dims.queries];
        let floats = |count: usize| vec![0; 4 * count];
        let rows: usize = shape.iter().product();
        let read = |tensors: &[Part]| read_attention(&answer(tensors), 1, &call).unwrap();
        assert!(read(&[("lse", "F32", &shape, floats(rows))]).unwrap().output.is_none());
        for (tensors, expected) in [
            (vec![], "output: found nothing, expected a tensor output or lse"),
            (vec![("lse", "F32", &[rows][..], floats(rows))], "lse: found F32"),
            (vec![("lse", "F16", &shape, vec![0; 2 * rows])], "lse: found F16"),
            (vec![("lse", "F32", &[1, rows, 7], floats(7 * rows))], "lse: found shape"),
        ] {
            let Err(NoAnswer::Failed(problem)) = read(&tensors) else { panic!("{tensors:?}") };
            assert!(problem.starts_with(expected), "{problem}");
        }
        let frame = attend(7, &call, None);
        let message = Message::parse(&frame[8..]).unwrap();
        let selected = read_integers(&message.tensors.required("selected").unwrap()).unwrap();
        assert_eq!(selected, call.selected());
    }
}
