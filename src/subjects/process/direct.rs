//! What the process protocol says without a process, for programs that call an implementation in their own, as the Python package
//! does: a declaration is a `hello`, and the tensors of an answer are read as those of an `answer` are.

use ndarray::Array4;
use safetensors::Dtype;

use super::answer::AnswerReader;
use super::messages::{self, Hello};
use super::{sessions, stages};
use crate::algorithm::{Detail, Error, Mask};
use crate::cases::tensors::Tensors;
use crate::cases::{
    Answer, Attended, Call, Capabilities, Instance, NoAnswer, Opening, RoundingModel, ScoresCall,
    SelectionCall, StepAnswer,
};

/// What an implementation says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Declaration {
    /// What reports call it, where it says so.
    pub name: Option<String>,
    /// How it rounds.
    pub model: RoundingModel,
    /// What it may be asked for.
    pub capabilities: Capabilities,
}

impl Declaration {
    /// Reads the fields of a `hello`, a JSON object.
    ///
    /// Errors: a sentence naming the field, what was found and what was expected.
    pub fn from_json(json: &str) -> Result<Self, String> {
        let Hello { name, model, capabilities, .. } = messages::declared(json)?;
        Ok(Self { name, model, capabilities })
    }

    /// Whether `selected` may list keys in any order: one that declares promises says there how it lists them.
    fn any_order(&self) -> bool {
        self.capabilities.promises.is_some()
    }
}

/// A refusal as a `refused` message says it: who refuses, and `kind`, one of the protocol's names or `None`.
pub fn refusal(who: &str, kind: Option<&str>, message: &str) -> NoAnswer {
    let Some(kind) = kind else { return NoAnswer::Declined(message.to_owned()) };
    let (field, found) = (format!("refused by {who}"), format!("{message:?}"));
    let detail = Detail::new(field, found, "an input that is allowed");
    match Error::of_kind(kind, detail) {
        Some(error) => NoAnswer::Refused(error),
        None => NoAnswer::Declined(format!("{message} (of an unknown kind, {kind:?})")),
    }
}

/// A tensor of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// As in `docs/PROTOCOL.md`: `mask`, `selected`, `output` and others.
    pub name: &'a str,
    /// Its type as safetensors has it: F32, F16, BF16, I64, I32, U8 or BOOL.
    pub dtype: &'a str,
    /// Its sizes.
    pub shape: &'a [usize],
    /// Its numbers, row-major and little-endian.
    pub bytes: &'a [u8],
}

/// What was answered, and its tensor `selected` as it was given.
pub type AsGiven<T> = (T, Option<Array4<i32>>);

/// Reads the answer to a call of an instance.
///
/// Errors: [`NoAnswer::Failed`] with a sentence naming the tensor, what was found and what was expected.
pub fn read_answer(
    tensors: &[Tensor],
    declaration: &Declaration,
    instance: &Instance,
    call: &Call,
) -> Result<AsGiven<Answer>, NoAnswer> {
    let tensors = &parse(tensors)?;
    let reader = AnswerReader { tensors, instance, call, any_order: declaration.any_order() };
    reader.answer().and_then(|answer| Ok((answer, reader.as_sent()?))).map_err(NoAnswer::Failed)
}

/// The message that opens a session, as JSON.
pub fn opening(opening: &Opening) -> String {
    sessions::opening_message(opening).to_string()
}

/// Reads the answer to an attend of a session, which stands for these calls: one for each. Errors: as of [`read_answer`].
pub fn read_attend(
    tensors: &[Tensor],
    declaration: &Declaration,
    instance: &Instance,
    calls: &[Call],
) -> StepAnswer {
    sessions::answers(&parse(tensors)?, instance, calls, declaration.any_order())
}

/// Reads the answer of a top-k. Errors: as of [`read_answer`].
pub fn read_selection(
    tensors: &[Tensor],
    declaration: &Declaration,
    call: &ScoresCall,
) -> Result<AsGiven<Mask>, NoAnswer> {
    stages::selection(&parse(tensors)?, &call.dims(), declaration.any_order()).map_err(NoAnswer::Failed)
}

/// Reads the answer of a sparse attention. Errors: as of [`read_answer`].
pub fn read_attention(tensors: &[Tensor], call: &SelectionCall) -> Result<Attended, NoAnswer> {
    stages::attention(&parse(tensors)?, &call.inputs.dims()).map_err(NoAnswer::Failed)
}

fn parse<'a>(tensors: &[Tensor<'a>]) -> Result<Tensors<'a>, NoAnswer> {
    let view = |tensor: &Tensor<'a>| Some((tensor.name, dtype(tensor.dtype)?, tensor.shape, tensor.bytes));
    let views: Option<Vec<_>> = tensors.iter().map(view).collect();
    let expected = "F32, F16, BF16, I64, I32, U8 or BOOL";
    let views = views.ok_or_else(|| NoAnswer::Failed(format!("found another type, expected {expected}")))?;
    Tensors::of(&views).map_err(|error| NoAnswer::Failed(error.sentence()))
}

fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::BF16,
        "I64" => Dtype::I64,
        "I32" => Dtype::I32,
        "U8" => Dtype::U8,
        "BOOL" => Dtype::BOOL,
        _ => return None,
    })
}
