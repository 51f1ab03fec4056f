//! A subject in a process of its own: reads questions from standard input and writes answers to standard
//! output, as `docs/PROTOCOL.md` says. It answers with this crate's reference, through which it shows all
//! there is to the protocol:
//!
//!     doublecheck check --command target/release/examples/subject
//!
//! The tests of the suite run it too, with the name of something to do wrong as its argument
//! (`misbehaviour`).

mod misbehaviour;
mod sessions;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use doublecheck::algorithm::{ChannelFile, Error, InputParts, Inputs, Lengths, Mask, Padding, Storage};
use doublecheck::cases::sequence::InstanceSettings;
use doublecheck::cases::{Answer, Call, Instance, NoAnswer};
use doublecheck::subjects::{Reference, Subject};
use half::{bf16, f16};
use ndarray::{Array4, s};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use misbehaviour::Misbehaviour;

type Failure = Box<dyn std::error::Error>;

/// Arguments that are no misbehaviour.
const RAGGED: &str = "ragged";
const SHARED: &str = "shared";
const SESSIONS: &str = "sessions";

/// The metadata key of a message.
const KEY: &str = "doublecheck";

/// A question or an answer: JSON and the tensors beside it.
struct Message {
    json: Value,
    tensors: Vec<Tensor>,
}

struct Tensor {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn main() -> Result<(), Failure> {
    let mut misbehaviour = Misbehaviour::from_arguments();
    let mut subject = Reference::serving();
    while let Some(frame) = read_frame()? {
        let (_, header) = SafeTensors::read_metadata(&frame)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let question: Value = serde_json::from_str(metadata.get(KEY).ok_or("a frame without a message")?)?;
        if question["type"] == "bye" {
            break;
        }
        let in_memory = shared_tensors(&question)?;
        let tensors = SafeTensors::deserialize(in_memory.as_deref().unwrap_or(&frame))?;
        let answer = answer(&mut subject, &question, &tensors)?;
        misbehaviour.write(&question, answer)?;
    }
    Ok(())
}

/// The bytes after a frame's length; `None` at the end of input.
fn read_frame() -> io::Result<Option<Vec<u8>>> {
    let mut input = io::stdin().lock();
    let mut length = [0; 8];
    if input.read(&mut length[..1])? == 0 {
        return Ok(None);
    }
    input.read_exact(&mut length[1..])?;
    let mut frame = vec![0; u64::from_le_bytes(length) as usize];
    input.read_exact(&mut frame)?;
    Ok(Some(frame))
}

/// The tensors that a question has in shared memory, as a file of safetensors; `None` where it has none there.
fn shared_tensors(question: &Value) -> Result<Option<Vec<u8>>, Failure> {
    // Inherited from the suite; the number is that of the first question.
    static MEMORY: OnceLock<File> = OnceLock::new();
    if let (Some(number), true) = (question["memory_file"].as_u64(), is_argument(SHARED)) {
        let memory = File::open(format!("/proc/self/fd/{number}"))?;
        MEMORY.set(memory).map_err(|_| "a second hello")?;
    }
    let (Some(entries), Some(memory)) = (question["shared"].as_object(), MEMORY.get()) else {
        return Ok(None);
    };
    let mut tensors = Vec::new();
    for (name, entry) in entries {
        let dtype: Dtype = serde_json::from_value(entry["dtype"].clone())?;
        let shape: Vec<usize> = serde_json::from_value(entry["shape"].clone())?;
        let [first, end]: [u64; 2] = serde_json::from_value(entry["data_offsets"].clone())?;
        let mut bytes = vec![0; (end - first) as usize];
        memory.read_exact_at(&mut bytes, first)?;
        tensors.push((name, dtype, shape, bytes));
    }
    let mut views = Vec::new();
    for (name, dtype, shape, bytes) in &tensors {
        views.push((name, TensorView::new(*dtype, shape.clone(), bytes)?));
    }
    Ok(Some(safetensors::serialize(views, None)?))
}

fn is_argument(name: &str) -> bool {
    std::env::args().nth(1).is_some_and(|argument| argument == name)
}

/// A message as a frame.
fn frame(message: &Message) -> Result<Vec<u8>, Failure> {
    let mut views = Vec::new();
    for tensor in &message.tensors {
        views.push((tensor.name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)?));
    }
    let metadata = HashMap::from([(KEY.to_owned(), message.json.to_string())]);
    let file = safetensors::serialize(views, Some(metadata))?;
    Ok([&(file.len() as u64).to_le_bytes()[..], &file].concat())
}

fn answer(subject: &mut Reference, question: &Value, tensors: &SafeTensors) -> Result<Message, Failure> {
    let id = &question["id"];
    let (json, tensors) = match question["type"].as_str() {
        Some("hello") => (hello(), Vec::new()),
        Some("configure") => match instance(question) {
            Ok(instance) => match subject.configure(&instance) {
                Ok(()) => (json!({"type": "configured", "id": id}), Vec::new()),
                Err(no_answer) => (refused_or_failed(id, &no_answer), Vec::new()),
            },
            Err(error) => (refused_or_failed(id, &NoAnswer::Refused(error)), Vec::new()),
        },
        Some("mask") => {
            match call(question, tensors)?.map_err(NoAnswer::Refused).and_then(|call| subject.call(&call)) {
                Ok(answer) => (json!({"type": "answer", "id": id}), answer_tensors(&answer)),
                Err(no_answer) => (refused_or_failed(id, &no_answer), Vec::new()),
            }
        }
        _ => match sessions::answer(subject, question, tensors)? {
            Some(Ok((mut json, tensors))) => {
                json["id"] = id.clone();
                (json, tensors)
            }
            Some(Err(no_answer)) => (refused_or_failed(id, &no_answer), Vec::new()),
            None => return Err(format!("a question of an unknown type: {question}").into()),
        },
    };
    Ok(Message { json, tensors })
}

/// How the reference rounds; it offers everything, which is the default, and with the argument `ragged` entries of unequal
/// lengths, with `sessions` these, too. With `shared` it takes tensors in shared memory, also in sessions.
fn hello() -> Value {
    let offered = [(RAGGED, is_argument(RAGGED)), (SESSIONS, is_argument(SESSIONS) || is_argument(SHARED))];
    let offers: Vec<&str> = offered.iter().filter(|(_, offers)| *offers).map(|(name, _)| *name).collect();
    let shared_memory = if is_argument(SHARED) { json!(true) } else { Value::Null };
    json!({
        "type": "hello",
        "protocol": if offers.is_empty() { 1 } else { 2 },
        "offers": if offers.is_empty() { Value::Null } else { json!(offers) },
        "shared_memory": shared_memory,
        "name": "the reference in a process",
        "version": env!("CARGO_PKG_VERSION"),
        "model": {"labels": "exact", "kept": "f32", "accumulation": "f64"},
    })
}

fn refused_or_failed(id: &Value, no_answer: &NoAnswer) -> Value {
    let message = no_answer.to_string();
    match no_answer {
        NoAnswer::Refused(error) => {
            json!({"type": "refused", "id": id, "kind": error.kind(), "message": message})
        }
        NoAnswer::Declined(_) => json!({"type": "refused", "id": id, "message": message}),
        NoAnswer::Failed(_) => json!({"type": "failed", "id": id, "message": message}),
    }
}

fn instance(question: &Value) -> Result<Instance, Error> {
    let settings: InstanceSettings =
        doublecheck::algorithm::config::from_json("configure", &question.to_string())?;
    let file = ChannelFile::from_json(question["channel_file"].as_str().unwrap_or_default())?;
    Ok(Instance::from_settings(settings, file))
}

/// The inner error is the refusal of an input, the outer one a question that cannot be understood.
fn call(question: &Value, tensors: &SafeTensors) -> Result<Result<Call, Error>, Failure> {
    let lengths = tensors.tensor("lengths").ok().map(|view| lengths(&view)).transpose()?;
    let unpadded = |mut tensor: Array4<f32>| {
        for (entry, &length) in lengths.iter().flatten().enumerate() {
            tensor.slice_mut(s![entry, .., length.., ..]).fill(0.0);
        }
        tensor
    };
    let parts = InputParts {
        q: floats(&tensors.tensor("q")?)?,
        k: unpadded(floats(&tensors.tensor("k")?)?),
        v: unpadded(floats(&tensors.tensor("v")?)?),
        attention_mask: optional(tensors, "attention_mask")?,
        causal: question["causal"].as_bool().ok_or("causal is missing")?,
        storage: serde_json::from_value::<Storage>(question["dtype"].clone())?,
        scaling: question["scaling"].as_f64(),
    };
    let layer = question["layer"].as_u64().ok_or("layer is missing")? as usize;
    let previous = optional(tensors, "previous")?;
    Ok(Inputs::new(parts).and_then(|inputs| {
        let previous = previous.map(|weights| Mask::from_weights(weights, &inputs.dims())).transpose()?;
        let call = Call { layer, inputs: Arc::new(inputs), previous };
        match lengths {
            Some(lengths) => call.with_lengths(Lengths::new(lengths, Padding::Nan)),
            None => Ok(call),
        }
    }))
}

/// How many keys each entry has: I32 [b].
fn lengths(view: &TensorView) -> Result<Vec<usize>, Failure> {
    let numbers = view.data().chunks_exact(4).map(|x| i32::from_le_bytes([x[0], x[1], x[2], x[3]]));
    Ok(numbers.map(usize::try_from).collect::<Result<_, _>>()?)
}

fn optional(tensors: &SafeTensors, name: &str) -> Result<Option<Array4<f32>>, Failure> {
    tensors.tensor(name).ok().map(|view| floats(&view)).transpose()
}

fn floats(view: &TensorView) -> Result<Array4<f32>, Failure> {
    let shape: [usize; 4] = view.shape().try_into()?;
    Ok(Array4::from_shape_vec(shape, float_values(view)?)?)
}

fn float_values(view: &TensorView) -> Result<Vec<f32>, Failure> {
    let half = |bytes: &[u8]| [bytes[0], bytes[1]];
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect(),
        Dtype::F16 => data.chunks_exact(2).map(|x| f16::from_le_bytes(half(x)).to_f32()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|x| bf16::from_le_bytes(half(x)).to_f32()).collect(),
        other => return Err(format!("found a tensor of {other:?}, expected F32, F16 or BF16").into()),
    })
}

fn answer_tensors(answer: &Answer) -> Vec<Tensor> {
    let f32s = |name: &'static str, values: &Array4<f32>| Tensor {
        name,
        dtype: Dtype::F32,
        shape: values.shape().to_vec(),
        bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    let mask = f32s("mask", answer.mask.weights());
    let output = answer.output.as_ref().map(|output| f32s("output", output));
    [mask].into_iter().chain(output).collect()
}

/// Writes a frame in one piece.
fn write(frame: &[u8]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(frame)?;
    output.flush()
}
