//! Sessions (SPEC §2.14): rows arrive packed, and answers leave packed.

use doublecheck::cases::{Answer, NoAnswer, Opening, Step};
use doublecheck::subjects::{Reference, Subject};
use ndarray::Array3;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::{Failure, Tensor, float_values};

/// An answer without its id, and its tensors.
type Reply = Result<(Value, Vec<Tensor>), NoAnswer>;

/// The answer to `open` or to a step, without its id; `None` to any other question.
pub fn answer(
    subject: &mut Reference,
    question: &Value,
    tensors: &SafeTensors,
) -> Result<Option<Reply>, Failure> {
    let number = |field: &str| question[field].as_u64().map(|number| number as usize);
    let named = |field: &str| number(field).ok_or_else(|| format!("{field} is missing"));
    let parts = || serde_json::from_value(question["requests"].clone());
    let rows = |name: &str| -> Result<Array3<f32>, Failure> {
        let view = tensors.tensor(name)?;
        let shape: [usize; 3] = view.shape().try_into()?;
        Ok(Array3::from_shape_vec(shape, float_values(&view)?)?)
    };
    let step = match question["type"].as_str() {
        Some("open") => {
            let mut opening = question.clone();
            let fields = opening.as_object_mut().ok_or("a question is an object")?;
            fields.retain(|name, _| name != "type" && name != "id");
            let opening: Opening = serde_json::from_value(opening)?;
            return Ok(Some(subject.open(&opening).map(|()| (json!({"type": "opened"}), Vec::new()))));
        }
        Some("append") => {
            Step::Append { layer: named("layer")?, parts: parts()?, k: rows("k")?, v: rows("v")? }
        }
        Some("attend") => Step::Attend { layer: named("layer")?, parts: parts()?, q: rows("q")? },
        Some("fork") => Step::Fork { from: named("from")?, to: named("to")?, length: named("length")? },
        Some("truncate") => Step::Truncate { request: named("request")?, length: named("length")? },
        Some("free") => Step::Free { request: named("request")? },
        _ => return Ok(None),
    };
    let done = subject.step(&step).map(|answers| match step {
        Step::Attend { .. } => (json!({"type": "answer"}), packed(&answers)),
        _ => (json!({"type": "done"}), Vec::new()),
    });
    Ok(Some(done))
}

/// The rows of all requests: masks [t, h, n] of as many keys as the longest request has, and outputs [t, h, dv].
fn packed(answers: &[Answer]) -> Vec<Tensor> {
    let queries = |answer: &Answer| answer.mask.weights().dim().2;
    let total: usize = answers.iter().map(queries).sum();
    let most = answers.iter().map(|answer| answer.mask.weights().dim().3).max().unwrap_or(0);
    let (mut masks, mut outputs) = (Vec::new(), Vec::new());
    let (mut heads, mut value_dim) = (0, 0);
    for answer in answers {
        let weights = answer.mask.weights();
        heads = weights.dim().1;
        for (i, h) in (0..queries(answer)).flat_map(|i| (0..heads).map(move |h| (i, h))) {
            masks.extend((0..most).map(|key| weights.get([0, h, i, key]).copied().unwrap_or(0.0)));
            if let Some(output) = &answer.output {
                value_dim = output.dim().3;
                outputs.extend((0..value_dim).map(|c| output[[0, h, i, c]]));
            }
        }
    }
    let tensor = |name, width, numbers: Vec<f32>| Tensor {
        name,
        dtype: Dtype::F32,
        shape: vec![total, heads, width],
        bytes: numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    vec![tensor("mask", most, masks), tensor("output", value_dim, outputs)]
}
