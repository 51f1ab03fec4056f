//! The messages of the process protocol (`docs/PROTOCOL.md`), the suite's side: questions become frames,
//! answers become what the question asked for. A problem of the conversation itself (no message, a wrong id
//! or type) is kept apart from a message that can be understood and holds an impossible answer: after the
//! first kind nothing that follows can be trusted, after the second kind the conversation goes on.

use ndarray::Array4;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::AnswerReader;
use super::direct;
use super::memory::{Memory, Question};
use crate::algorithm::config::from_json;
use crate::algorithm::{Detail, Error, HeadMode, Lengths, Rules, Storage};
use crate::cases::domain::domains_from_json;
use crate::cases::promise::promises_from_names;
use crate::cases::rounding_model::RoundingModelFields;
use crate::cases::rule_names;
use crate::cases::tensors::{Tensors, Writer};
use crate::cases::{
    Answer, Call, Capabilities, Error as FileError, Feature, Given, Instance, NoAnswer, Promise,
    RoundingModel, Stages, Takes,
};
use crate::visible;

/// The first version of the protocol.
const PROTOCOL: u64 = 1;

/// The version for commands that declare what they take or give.
const NEWEST: u64 = 2;

/// The metadata key of a message.
pub(super) const KEY: &str = "doublecheck";

/// What an answer may need beyond its tensors' numbers, in bytes.
const SLACK: u64 = 1 << 20;

/// What a message says; the outer error is a sentence that says why the conversation cannot go on.
pub(crate) type Decoded<T> = Result<T, String>;

/// What a command says about itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hello {
    /// What reports call it, where it says so.
    pub(crate) name: Option<String>,
    pub(crate) model: RoundingModel,
    pub(crate) capabilities: Capabilities,
    /// Whether it takes tensors in shared memory.
    pub(crate) shared_memory: bool,
}

/// The frame of the first question, with the number of the memory that may be shared.
pub(super) fn hello(memory: Option<&Memory>) -> Vec<u8> {
    let mut message = json!({
        "type": "hello",
        "protocol": PROTOCOL,
        "protocols": [PROTOCOL, NEWEST],
        "version": env!("CARGO_PKG_VERSION"),
    });
    if let Some(memory) = memory {
        message["memory_file"] = memory.number().into();
    }
    frame(message)
}

/// The frame that starts an instance.
pub(crate) fn configure(id: u64, instance: &Instance) -> Vec<u8> {
    let settings = instance.settings();
    frame(json!({
        "type": "configure",
        "id": id,
        "channel_selection": settings.channel_selection,
        "dense_layers": settings.dense_layers,
        "settings": settings.settings,
        "channel_file": instance.channel_file.to_json(),
    }))
}

/// The frame of one call, whose tensors are in shared memory where there is one.
pub(super) fn mask(id: u64, call: &Call, memory: Option<&Memory>) -> Vec<u8> {
    let parts = call.inputs.parts();
    let mut question = Question::new(memory);
    let message = json!({
        "type": "mask",
        "id": id,
        "layer": call.layer,
        "causal": parts.causal,
        "dtype": parts.storage,
        "scaling": call.inputs.scaling(),
    });
    let (k, v) = (call.inputs.padded_keys(), call.inputs.padded_values());
    for (name, tensor) in [("q", &parts.q), ("k", k.as_ref()), ("v", v.as_ref())] {
        question.floats(name, parts.storage, tensor.view().into_dyn());
    }
    write_lengths(&mut question, call.inputs.lengths());
    if let Some(additive) = &parts.attention_mask {
        question.floats("attention_mask", Storage::F32, additive.view().into_dyn());
    }
    if let Some(previous) = &call.previous {
        question.floats("previous", Storage::F32, previous.weights().view().into_dyn());
    }
    if let Some(weights) = call.inputs.head_weights() {
        question.floats("head_weights", Storage::F32, weights.view().into_dyn());
    }
    question.frame(message)
}

/// How many keys each entry has, where that is asked.
pub(super) fn write_lengths(question: &mut Question, lengths: Option<&Lengths>) {
    if let Some(lengths) = lengths {
        let numbers = lengths.keys().iter().map(|&length| length as i32);
        question.integers("lengths", &[lengths.keys().len()], numbers);
    }
}

/// The frame that ends a conversation.
pub(crate) fn bye() -> Vec<u8> {
    frame(json!({"type": "bye"}))
}

fn frame(message: Value) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.metadata(KEY, message.to_string());
    writer.frame()
}

/// The most bytes that an answer without tensors may have.
pub(crate) fn largest_message() -> u64 {
    SLACK
}

/// The most bytes that an answer to a call may have: each tensor that is allowed, in its widest type.
pub(crate) fn largest_answer(call: &Call) -> u64 {
    let dims = call.inputs.dims();
    let size = |(b, h, m, last): (usize, usize, usize, usize)| {
        [b, h, m, last].iter().fold(1u64, |product, &size| product.saturating_mul(size as u64))
    };
    let positions = dims.queries + dims.keys;
    let mask_and_selected = size(dims.mask_shape()).saturating_mul(4 + 8);
    let output = size(dims.output_shape()).saturating_mul(4);
    let labels = size((dims.batch, dims.heads, positions, dims.head_dim)).saturating_mul(4);
    let scores_and_lse = size(dims.mask_shape()).saturating_mul(4 + 4);
    let all = mask_and_selected.saturating_add(output).saturating_add(labels);
    all.saturating_add(scores_and_lse).saturating_add(SLACK)
}

/// Reads the answer to `hello`. Errors: a sentence naming field, found and expected; a typo must not
/// silently widen or narrow the check.
pub(crate) fn read_hello(bytes: &[u8]) -> Decoded<Hello> {
    let message = Message::parse(bytes)?;
    if message.kind() == Some("failed") {
        return Err(format!("it failed: {}", visible::message(message.text("message"))));
    }
    message.expect_type(&["hello"])?;
    let protocol = message.json.get("protocol").unwrap_or(&Value::Null);
    let version = protocol.as_u64().filter(|version| [PROTOCOL, NEWEST].contains(version));
    let Some(version) = version else {
        return Err(format!("found protocol {protocol}, expected {PROTOCOL} or {NEWEST}"));
    };
    let hello: HelloFields =
        from_json("hello", &Value::Object(message.json).to_string()).map_err(|error| error.to_string())?;
    hello.check(version).map_err(|detail| format!("hello.{detail}"))
}

/// What an implementation declares without a conversation: the fields of `hello`. Errors: as of [`read_hello`].
pub(super) fn declared(json: &str) -> Decoded<Hello> {
    let fields: HelloFields = from_json("declaration", json).map_err(|error| error.to_string())?;
    fields.check(NEWEST).map_err(|detail| detail.to_string())
}

/// Reads the answer to `configure`.
pub(crate) fn read_configured(bytes: &[u8], id: u64) -> Decoded<Result<(), NoAnswer>> {
    let message = Message::parse(bytes)?;
    message.expect_id(id)?;
    message.expect_type(&["configured", "refused", "failed"])?;
    Ok(message.no_answer().map_or(Ok(()), Err))
}

/// An answer, and its tensor `selected` as it was sent.
pub(crate) type Answered = (Answer, Option<Array4<i32>>);

/// Reads the answer to a call of an instance. `any_order`: whether `selected` may list keys in any order.
pub(crate) fn read_answer(
    bytes: &[u8],
    id: u64,
    instance: &Instance,
    call: &Call,
    any_order: bool,
) -> Decoded<Result<Answered, NoAnswer>> {
    let message = Message::parse(bytes)?;
    message.expect_id(id)?;
    message.expect_type(&["answer", "refused", "failed"])?;
    if let Some(no_answer) = message.no_answer() {
        return Ok(Err(no_answer));
    }
    let reader = AnswerReader { tensors: &message.tensors, instance, call, any_order };
    let answered = reader.answer().and_then(|answer| Ok((answer, reader.as_sent()?)));
    Ok(answered.map_err(NoAnswer::Failed))
}

/// A message and the tensors beside it.
pub(super) struct Message<'a> {
    pub(super) tensors: Tensors<'a>,
    json: Map<String, Value>,
}

impl<'a> Message<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Decoded<Self> {
        let mut tensors = Tensors::parse(bytes).map_err(|error| {
            let problem = match error {
                FileError::Format(detail) => detail.found,
                other => other.sentence(),
            };
            format!("found a frame of {} bytes that is no message: {problem}", bytes.len())
        })?;
        let wrong =
            |found: String| Detail::new(format!("__metadata__.{KEY}"), found, "a JSON object").to_string();
        let text = tensors.metadata.remove(KEY).ok_or_else(|| wrong("nothing".into()))?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(json)) => Ok(Self { tensors, json }),
            Ok(other) => Err(wrong(other.to_string())),
            Err(error) => Err(wrong(format!("{text:?} ({error})"))),
        }
    }

    fn kind(&self) -> Option<&str> {
        self.json.get("type").and_then(Value::as_str)
    }

    /// A text of the message, empty where there is none.
    fn text(&self, field: &str) -> &str {
        self.json.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn expect_id(&self, id: u64) -> Decoded<()> {
        match self.json.get("id") {
            Some(found) if found.as_u64() == Some(id) => Ok(()),
            found => {
                let found = found.map_or("nothing".to_owned(), Value::to_string);
                let expected = format!("{id}, one answer to each question, in order");
                Err(Detail::new("id", found, expected).to_string())
            }
        }
    }

    pub(super) fn expect_type(&self, types: &[&str]) -> Decoded<()> {
        if self.kind().is_some_and(|kind| types.contains(&kind)) {
            return Ok(());
        }
        let found = self.json.get("type").map_or("nothing".to_owned(), Value::to_string);
        Err(Detail::new("type", found, types.join(", ")).to_string())
    }

    /// What a `refused` or `failed` message says.
    pub(super) fn no_answer(&self) -> Option<NoAnswer> {
        let said = &visible::message(self.text("message"));
        match self.kind()? {
            "failed" => Some(NoAnswer::Failed(said.to_owned())),
            "refused" => Some(self.refusal(said)),
            _ => None,
        }
    }

    fn refusal(&self, said: &str) -> NoAnswer {
        let kind = self.json.get("kind").filter(|kind| !kind.is_null());
        let kind = kind.map(|kind| kind.as_str().map_or_else(|| kind.to_string(), str::to_owned));
        direct::refusal("the command", kind.as_deref(), said)
    }
}

/// The fields of a `hello`; everything else in it is ignored.
#[derive(Deserialize)]
struct HelloFields {
    name: Option<String>,
    version: Option<String>,
    model: Option<RoundingModelFields>,
    dtypes: Option<Vec<Storage>>,
    heads: Option<Vec<HeadMode>>,
    rules: Option<Vec<Value>>,
    largest_keys: Option<usize>,
    lacks: Option<Vec<Feature>>,
    domain: Option<Value>,
    promises: Option<Vec<String>>,
    takes: Option<Takes>,
    gives: Option<Vec<Given>>,
    offers: Option<Vec<Offered>>,
    shapes: Option<usize>,
    shared_memory: Option<bool>,
}

/// What is asked only of a command that offers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Offered {
    /// Batches of entries of unequal lengths.
    Ragged,
    /// Sessions, in which the command holds keys itself.
    Sessions,
}

impl HelloFields {
    fn check(self, version: u64) -> Result<Hello, Detail> {
        let newer = [
            ("takes", self.takes.is_some()),
            ("gives", self.gives.is_some()),
            ("offers", self.offers.is_some()),
            ("shapes", self.shapes.is_some()),
            ("shared_memory", self.shared_memory.is_some()),
        ];
        for (field, declared) in newer {
            if declared && version < NEWEST {
                let found = format!("it in protocol {version}");
                return Err(Detail::new(field, found, format!("protocol {NEWEST}, or the field left out")));
            }
        }
        let stages = Stages::new(self.takes.unwrap_or_default(), self.gives.as_deref())?;
        let offers = |part| self.offers.iter().flatten().any(|offered| *offered == part);
        let (ragged, sessions) = (offers(Offered::Ragged), offers(Offered::Sessions));
        if sessions && stages.takes != Takes::Inputs {
            let found = format!("\"sessions\" beside takes {:?}", stages.takes.name());
            return Err(Detail::new("offers", found, "sessions of those alone who take inputs"));
        }
        let promises = self.promises.map(|names| promises_from_names(&names)).transpose()?;
        if !ragged && promises.iter().flatten().any(|promise| *promise == Promise::CapacityInvariant) {
            let expected = "\"ragged\" in offers beside it";
            return Err(Detail::new("promises", Promise::CapacityInvariant.name(), expected));
        }
        let mut lacks: BTreeSet<Feature> = self.lacks.unwrap_or_default().into_iter().collect();
        if self.gives.is_some() && stages.takes == Takes::Inputs && !stages.gives(Given::Output) {
            lacks.insert(Feature::Output);
        }
        let everything = Capabilities::default();
        let name = match (self.name, self.version) {
            (Some(name), Some(version)) => Some(format!("{name} {version}")),
            (name, _) => name,
        };
        if self.largest_keys == Some(0) {
            return Err(Detail::new("largest_keys", 0, "at least 1, or the field left out"));
        }
        let shapes = self.shapes.map(|shapes| {
            let expected = "at least 1, or the field left out";
            NonZeroUsize::new(shapes).ok_or_else(|| Detail::new("shapes", shapes, expected))
        });
        Ok(Hello {
            name: name.filter(|name| !name.trim().is_empty()),
            model: self.model.unwrap_or_default().or(RoundingModel::default()),
            shared_memory: self.shared_memory.unwrap_or(false),
            capabilities: Capabilities {
                dtypes: not_empty("dtypes", self.dtypes, everything.dtypes)?,
                heads: not_empty("heads", self.heads, everything.heads)?,
                rules: match not_empty("rules", self.rules, Vec::new())? {
                    rules if rules.is_empty() => everything.rules,
                    rules => rules.iter().map(declared_rules).collect::<Result<_, _>>()?,
                },
                largest_keys: self.largest_keys,
                promises,
                lacks,
                domains: self.domain.as_ref().map(domains_from_json).transpose()?.unwrap_or_default(),
                stages,
                ragged,
                sessions,
                shapes: shapes.transpose()?,
                ..Capabilities::default()
            },
        })
    }
}

/// The rules of a name, or rules as `settings` hold them.
fn declared_rules(found: &Value) -> Result<Rules, Detail> {
    let named = found.as_str().map(|name| {
        let expected = || format!("{}, or an object", rule_names::NAMES.join(", "));
        rule_names::find(name).ok_or_else(|| Detail::new("rules", found, expected()))
    });
    named.unwrap_or_else(|| {
        let wrong = |error: Error| Detail::new("rules", found, error.to_string());
        from_json("rules", &found.to_string()).map_err(wrong)
    })
}

fn not_empty<T>(field: &str, found: Option<Vec<T>>, default: Vec<T>) -> Result<Vec<T>, Detail> {
    match found {
        None => Ok(default),
        Some(list) if list.is_empty() => {
            Err(Detail::new(field, "an empty list", "at least one name, or the field left out"))
        }
        Some(list) => Ok(list),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::algorithm::{ChannelFile, InputParts, Inputs, Mask};
    use crate::cases::Accumulation;
    use half::{bf16, f16};

    /// The bytes of the hexadecimal example in the document.
    fn documented() -> Vec<u8> {
        let document = include_str!("../../../docs/PROTOCOL.md");
        let lines = document.lines().skip_while(|line| *line != "```text").skip(1);
        lines
            .take_while(|line| *line != "```")
            .flat_map(|line| line[..23].split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()))
            .collect()
    }

    #[test]
    fn the_document_shows_the_bytes_of_bye() {
        assert_eq!(bye(), documented());
    }

    fn hello_of(fields: Value) -> Decoded<Hello> {
        let mut message = json!({"type": "hello", "protocol": 1});
        message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        read_hello(&frame(message)[8..])
    }

    #[test]
    fn rules_are_names_or_objects() {
        let rules = |found: Value| hello_of(json!({"rules": found})).map(|hello| hello.capabilities.rules);
        assert_eq!(hello_of(json!({})).unwrap().capabilities.rules, [Rules::default()]);
        let both = rules(json!(["twilight", {"factor": 1, "forced": {"last": 1}}])).unwrap();
        let found: Vec<_> = ["twilight", "sglang-v2"].map(|name| rule_names::find(name).unwrap()).into();
        assert_eq!(both, found);
        for wrong in [json!([]), json!(["flat"]), json!([{"score": "flat"}]), json!([7])] {
            let problem = rules(wrong).unwrap_err();
            assert!(problem.contains("rules"), "{problem}");
        }
    }

    #[test]
    fn everything_in_a_hello_may_be_left_out() {
        let hello = hello_of(json!({})).unwrap();
        assert_eq!(hello.name, None);
        assert_eq!(hello.model, RoundingModel::default());
        assert_eq!(hello.capabilities, Capabilities::default());
        let hello =
            hello_of(json!({"model": {"accumulation": "f64"}, "name": "x", "version": "2", "extra": 1}));
        let hello = hello.unwrap();
        assert_eq!(hello.model.accumulation, Accumulation::F64);
        assert_eq!(hello.name.as_deref(), Some("x 2"));
    }

    #[test]
    fn the_documented_hello_is_understood() {
        let document = include_str!("../../../docs/PROTOCOL.md");
        let start = document.find("{\"type\": \"hello\", \"protocol\": 1, \"name\"").unwrap();
        let end = start + document[start..].find("```").unwrap();
        let message: Value = serde_json::from_str(&document[start..end]).unwrap();
        let hello = read_hello(&frame(message)[8..]).unwrap();
        assert_eq!(hello.name.as_deref(), Some("my kernel 3.2"));
        assert_eq!(hello.model, RoundingModel::PYTORCH);
        assert_eq!(hello.capabilities.largest_keys, Some(4096));
        let lacks = [Feature::Previous, Feature::Fractions];
        assert_eq!(hello.capabilities.lacks, lacks.into_iter().collect());
        let few = hello_of(json!({"protocol": 2, "shapes": 8})).unwrap();
        assert_eq!(few.capabilities.shapes.map(usize::from), Some(8));
    }

    #[test]
    fn a_hello_with_a_mistake_is_refused_with_its_field() {
        for (fields, expected) in [
            (json!({"lacks": ["previus"]}), "hello.lacks[0]: unknown variant `previus`, expected one of"),
            (json!({"dtypes": ["f64"]}), "hello.dtypes[0]: unknown variant `f64`, expected one of"),
            (json!({"heads": ["per_head"]}), "hello.heads[0]: unknown variant `per_head`, expected one of"),
            (json!({"dtypes": []}), "hello.dtypes: found an empty list, expected at least one name"),
            (json!({"heads": []}), "hello.heads: found an empty list, expected at least one name"),
            (json!({"promises": ["repeatabel"]}), "hello.promises[0]: found \"repeatabel\", expected one of"),
            (
                json!({"promises": ["padded", "capacity-invariant"]}),
                "hello.promises: found capacity-invariant, expected \"ragged\" in offers beside it",
            ),
            (
                json!({"promises": ["ties-lowest", "ties-highest"]}),
                "hello.promises: found ties-lowest and ties-highest, expected one of the two",
            ),
            (json!({"protocol": 2, "shapes": 0}), "hello.shapes: found 0, expected at least 1"),
            (json!({"shapes": 8}), "hello.shapes: found it in protocol 1, expected protocol 2"),
            (
                json!({"shared_memory": true}),
                "hello.shared_memory: found it in protocol 1, expected protocol 2",
            ),
            (json!({"largest_keys": 0}), "hello.largest_keys: found 0, expected at least 1"),
            (
                json!({"model": {"scores": "f32"}}),
                "hello.model.scores: unknown field `scores`, expected one of",
            ),
            (json!({"protocol": 3}), "found protocol 3, expected 1 or 2"),
            (json!({"takes": "scores"}), "hello.takes: found it in protocol 1, expected protocol 2"),
            (json!({"gives": ["selected"]}), "hello.gives: found it in protocol 1, expected protocol 2"),
            (json!({"offers": ["ragged"]}), "hello.offers: found it in protocol 1, expected protocol 2"),
            (
                json!({"protocol": 2, "offers": ["raged"]}),
                "hello.offers[0]: unknown variant `raged`, expected",
            ),
            (json!({"protocol": 2, "takes": "keys"}), "hello.takes: unknown variant `keys`, expected one of"),
            (
                json!({"protocol": 2, "takes": "selection", "gives": ["selected"]}),
                "hello.gives: found selected, expected at least one of output, lse",
            ),
            (json!({"type": "answer"}), "type: found \"answer\", expected hello"),
        ] {
            let problem = hello_of(fields).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn refusals_keep_their_kind() {
        let read = |message: Value| read_configured(&frame(message)[8..], 3).unwrap().unwrap_err();
        let refused = read(json!({"type": "refused", "id": 3, "kind": "group_factor", "message": "no"}));
        assert!(matches!(refused, NoAnswer::Refused(Error::GroupFactor(_))));
        assert_eq!(
            read(json!({"type": "refused", "id": 3, "message": "no"})),
            NoAnswer::Declined("no".into())
        );
        let unknown = read(json!({"type": "refused", "id": 3, "kind": "mood", "message": "no"}));
        assert!(matches!(unknown, NoAnswer::Declined(_)));
        assert_eq!(read(json!({"type": "failed", "id": 3, "message": "no"})), NoAnswer::Failed("no".into()));
        let wrong_id = read_configured(&frame(json!({"type": "configured", "id": 2}))[8..], 3);
        assert!(wrong_id.unwrap_err().starts_with("id: found 2, expected 3"));
    }

    /// b = 1, h = 1, m = 1, n = 4, d = 4, dv = 1; P attends to key 1 by 0.3, a
    /// sink to key 0.
    fn question() -> (Instance, Call) {
        let parts = InputParts {
            q: Array4::ones((1, 1, 1, 4)),
            k: Array4::ones((1, 1, 4, 4)),
            v: Array4::ones((1, 1, 4, 1)),
            attention_mask: None,
            causal: false,
            storage: Storage::F32,
            scaling: None,
        };
        let weights = Array4::from_shape_vec((1, 1, 1, 4), vec![0.0, 0.3, 0.0, 0.0]).unwrap();
        let inputs = Inputs::new(parts).unwrap();
        let previous = Some(Mask::from_weights(weights, &inputs.dims()).unwrap());
        let call = Call { layer: 0, inputs: Arc::new(inputs), previous };
        let settings = json!({
            "channel_selection": "qk_proj",
            "dense_layers": [],
            "settings": {
                "heavy_size": 1, "group_factor": 2, "label_bits": 16,
                "earlier_maskers": [{"sink": {"size": 1}}],
            },
        });
        let file = ChannelFile::from_json(r#"{"model.layers.0.self_attn.qk_proj":[[0,1,2,3]]}"#).unwrap();
        (Instance::from_settings(serde_json::from_value(settings).unwrap(), file), call)
    }

    type Part<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

    fn answer_with(instance: &Instance, call: &Call, tensors: &[Part]) -> Result<Answer, NoAnswer> {
        read_with(instance, call, tensors, false).map(|(answer, _)| answer)
    }

    fn read_with(
        instance: &Instance,
        call: &Call,
        tensors: &[Part],
        any_order: bool,
    ) -> Result<Answered, NoAnswer> {
        let mut writer = Writer::default();
        writer.metadata(KEY, json!({"type": "answer", "id": 1}).to_string());
        for (name, dtype, shape, bytes) in tensors {
            writer.tensor(name, dtype, shape, bytes.clone());
        }
        read_answer(&writer.frame()[8..], 1, instance, call, any_order).unwrap()
    }

    fn weights_of(tensors: &[Part]) -> Vec<f32> {
        let (instance, call) = question();
        answer_with(&instance, &call, tensors).unwrap().mask.weights().iter().copied().collect()
    }

    fn problem_of(tensors: &[Part]) -> String {
        let (instance, call) = question();
        match answer_with(&instance, &call, tensors) {
            Err(NoAnswer::Failed(problem)) => problem,
            other => panic!("found {other:?}"),
        }
    }

    const ROW: &[usize] = &[1, 1, 1, 4];

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn i64s(values: &[i64]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn every_form_of_a_mask_is_understood() {
        let expected = vec![1.0, 0.3, 0.0, 1.0];
        let halves = |round: fn(f32) -> [u8; 2]| [1.0, 0.3, 0.0, 1.0].into_iter().flat_map(round).collect();
        let i32s = [3i32, -1].into_iter().flat_map(i32::to_le_bytes).collect();
        for part in [
            ("mask", "F32", ROW, f32s(&expected)),
            ("mask", "F16", ROW, halves(|x| f16::from_f32(x).to_le_bytes())),
            ("mask", "BF16", ROW, halves(|x| bf16::from_f32(x).to_le_bytes())),
            ("mask", "U8", ROW, vec![1, 1, 0, 1]),
            ("mask", "BOOL", ROW, vec![1, 1, 0, 1]),
            ("selected", "I64", &[1, 1, 1, 3], i64s(&[0, 1, 3])),
            ("selected", "I64", &[1, 1, 1, 1], i64s(&[3])),
            ("selected", "I32", &[1, 1, 1, 2], i32s),
        ] {
            assert_eq!(weights_of(std::slice::from_ref(&part)), expected, "{part:?}");
        }
        let both = [("mask", "U8", ROW, vec![1, 1, 0, 1]), ("selected", "I64", ROW, i64s(&[0, 1, 3, -1]))];
        assert_eq!(weights_of(&both), expected);
        // A mask that drops a key attended before is an answer, for the judge to find.
        assert_eq!(weights_of(&[("mask", "U8", ROW, vec![0, 0, 0, 1])]), [0.0, 0.0, 0.0, 1.0]);
        assert_eq!(weights_of(&[("selected", "I32", &[1, 1, 1, 0], Vec::new())]), [1.0, 0.3, 0.0, 0.0]);
    }

    #[test]
    fn who_speaks_of_promises_may_list_keys_in_any_order() {
        let (instance, call) = question();
        let sent = [("selected", "I64", &[1, 1, 1, 4][..], i64s(&[-1, 3, 0, 1]))];
        let (answer, selected) = read_with(&instance, &call, &sent, true).unwrap();
        assert_eq!(answer.mask.weights().as_slice(), Some(&[1.0, 0.3, 0.0, 1.0][..]));
        assert_eq!(selected.unwrap().as_slice(), Some(&[-1, 3, 0, 1][..]));
        assert!(read_with(&instance, &call, &sent, false).is_err());
        let twice = [("selected", "I64", &[1, 1, 1, 2][..], i64s(&[3, 3]))];
        assert!(read_with(&instance, &call, &twice, true).is_err());
    }

    #[test]
    fn a_dense_layer_starts_from_the_earlier_mask_alone() {
        let (mut instance, call) = question();
        instance.dense_layers = vec![0];
        let selected = [("selected", "I64", &[1, 1, 1, 1][..], i64s(&[3]))];
        let answer = answer_with(&instance, &call, &selected).unwrap();
        assert_eq!(answer.mask.weights().as_slice(), Some(&[0.0, 0.3, 0.0, 1.0][..]));
    }

    #[test]
    fn a_wrong_tensor_is_named() {
        let mask = || ("mask", "U8", ROW, vec![1, 1, 0, 1]);
        for (tensors, expected) in [
            (vec![("mask", "U8", ROW, vec![1, 1, 0, 2])], "mask[0, 0, 0, 3]: found 2, expected 0 or 1"),
            (
                vec![("mask", "U8", &[1, 1, 4, 1][..], vec![0; 4])],
                "mask: found shape [1, 1, 4, 1], expected [1, 1, 1, 4]",
            ),
            (
                vec![("mask", "U8", &[4], vec![0; 4])],
                "mask: found U8 [4], expected U8, BOOL, F32, F16, BF16 with 4 dimensions",
            ),
            (
                vec![("selected", "I64", &[1, 1, 1, 2], i64s(&[3, 2]))],
                "selected[0, 0, 0, 1]: found 2 after 3",
            ),
            (vec![("selected", "I64", &[1, 1, 1, 1], i64s(&[4]))], "selected[0, 0, 0, 0]: found 4 after -1"),
            (
                vec![("selected", "I64", &[1, 1, 1, 1], i64s(&[1 << 40]))],
                "selected[0, 0, 0, 0]: found 1099511627776",
            ),
            (
                vec![("selected", "I64", &[1, 1, 2, 1], i64s(&[1, 1]))],
                "selected: found shape [1, 1, 2, 1], expected [1, 1, 1, ·]",
            ),
            (
                vec![mask(), ("selected", "I64", &[1, 1, 1, 1], i64s(&[2]))],
                "selected: found other keys than in mask",
            ),
            (
                vec![mask(), ("output", "F32", &[1, 1, 1, 2], f32s(&[0.0; 2]))],
                "output: found shape [1, 1, 1, 2], expected [1, 1, 1, 1]",
            ),
            (vec![mask(), ("q_labels", "F32", &[1, 1, 1, 2], f32s(&[0.0; 2]))], "k_labels: found nothing"),
        ] {
            let problem = problem_of(&tensors);
            assert!(problem.starts_with(expected), "{problem}");
        }
    }

    #[test]
    fn labels_may_have_any_number_of_channels_and_hold_anything() {
        let (instance, call) = question();
        let labels = |channels: usize| {
            let q = vec![f32::NAN; channels];
            let shapes = [vec![1, 1, 1, channels], vec![1, 1, 4, channels]];
            let tensors = [
                ("mask", "U8", ROW, vec![1, 1, 0, 1]),
                ("output", "F32", &[1, 1, 1, 1], f32s(&[f32::NAN])),
                ("q_labels", "F32", &shapes[0], f32s(&q)),
                ("k_labels", "F32", &shapes[1], f32s(&vec![1.0; 4 * channels])),
            ];
            answer_with(&instance, &call, &tensors)
        };
        for channels in [1, 2, 3] {
            assert!(labels(channels).unwrap().fits(&call.inputs.dims()));
        }
    }

    #[test]
    fn frames_that_are_no_message_break_the_conversation() {
        let no_message = Writer::default().frame();
        for (bytes, expected) in [
            (&b"rubbish"[..], "found a frame of 7 bytes that is no message: "),
            (&no_message[8..], "__metadata__.doublecheck: found nothing, expected a JSON object"),
            (&frame(json!([1]))[8..], "__metadata__.doublecheck: found [1], expected a JSON object"),
            (&frame(json!({"type": "configured"}))[8..], "id: found nothing, expected 1"),
            (&frame(json!({"type": "configured", "id": "1"}))[8..], "id: found \"1\", expected 1"),
            (&frame(json!({"type": "hello", "id": 1}))[8..], "type: found \"hello\", expected configured"),
        ] {
            let problem = read_configured(bytes, 1).unwrap_err();
            assert!(problem.starts_with(expected), "{problem}");
        }
    }
}
