//! A question to one stage and its answers as text, the tensors where they are small enough to print.

use std::fmt::Write;

use ndarray::{Array3, Array4, Axis};

use super::tensors::{Keys, mask, numbers, numbers_of};
use crate::cases::{NoAnswer, StageAnswer, StageCall};

/// Everything that is asked; of large tensors the rows of the keys that matter.
pub fn render(call: &StageCall, matter: &[usize]) -> String {
    let lengths = call.lengths().map(|lengths| format!("{}\n", lengths.in_words(&call.dims())));
    tensors(call, matter) + &lengths.unwrap_or_default()
}

fn tensors(call: &StageCall, matter: &[usize]) -> String {
    match call {
        StageCall::Scores(call) => {
            let (heavy_size, storage) = (call.heavy_size(), call.storage());
            format!("select {heavy_size} keys of each row, {storage}\n")
                + &numbers_of("scores", call.scores(), Keys::Columns, matter)
        }
        StageCall::Selection(call) => {
            let parts = call.inputs.parts();
            let mut text = format!("attend, {}, scaling {}\n", parts.storage, call.inputs.scaling());
            text += &numbers("q", &parts.q);
            text += &numbers_of("k", &parts.k, Keys::Rows, matter);
            text += &numbers_of("v", &parts.v, Keys::Rows, matter);
            let selected = call.selected().mapv(|key| key as f32);
            text + &numbers("selected", &selected)
        }
    }
}

/// An answer.
pub fn answer(answer: &Result<StageAnswer, NoAnswer>) -> String {
    match answer {
        Err(no_answer) => format!("  no answer: {no_answer}\n"),
        Ok(StageAnswer::Selected(selected)) => mask(selected),
        Ok(StageAnswer::Attended(attended)) => {
            let mut text = String::new();
            let lse = attended.lse.as_ref().map(in_rows);
            for (name, tensor) in [("output", attended.output.as_ref()), ("lse", lse.as_ref())] {
                if let Some(tensor) = tensor {
                    let _ = write!(text, "{}", numbers(name, tensor));
                }
            }
            text
        }
    }
}

/// [b, h, m] as [b, h, m, 1], one row a line.
pub fn in_rows(lse: &Array3<f32>) -> Array4<f32> {
    lse.clone().insert_axis(Axis(3))
}
