//! Case files: one safetensors file per case (SPEC §6). A metadata key that holds JSON says which kind it is; these, and for
//! one stage those of `stage_file`:
//!
//! * `case`: an attention layer. Settings as in SPEC §6; tensors `q` [b, h, m, d], `k` [b, hk, n, d],
//!   `v` [b, hk, n, dv] (F32, F16 or BF16, cast to `dtype` before use) and `channels` (I64 [rows, ≥ r]), or a
//!   [`Recipe`] under the metadata key `recipe`; optional `attention_mask` (F32, broadcastable to [b, h, m, n], leading
//!   dimensions of 1 may be left out), `previous` (F32 [b, h, m, n]) and `head_weights` (F32 [b, h, m]).
//!   Expectations: `selected` (I32 [b, h, m, ·], ascending, −1 pads) and/or `mask`
//!   (U8 [b, h, m, n]), `output` (F32 [b, h, m, dv]). Entries of unequal lengths: "ragged" in the settings, an object of
//!   "lengths", a list of b, and "padding", `nan` or `large`: what it holds when the case is asked (it is 0 in the file).
//! * `sequence`: calls of one instance. {"settings", "channel_selection", "dense_layers"} as in `docs/PROTOCOL.md`, and
//!   "calls", a list of {"layer", "causal", "dtype", "scaling"} and where entries have unequal lengths "ragged" as above; the JSON text of a channel file under the metadata key
//!   `channel_file`; tensors `call_0.q`, `call_0.k`, `call_0.v`, `call_0.attention_mask`, `call_0.previous`,
//!   `call_0.head_weights`, `call_1.q`, …. `source` says who diverged on it.
//! * `quantisation`: {"dtype"}; for each number of bits BB a pair `bits_BB.rows` and `bits_BB.labels` [rows, r], and
//!   optionally `bits_BB.nonfinite_rows`, which have no finite labels and must be refused (SPEC D9).
//! * `calibration`: {"kind"}; `block_0.q`, `block_0.k`, `block_1.q`, … [1, heads, t, d] as the kind needs, and the
//!   expected `channels` (I64 [rows, d]).
//!
//! `source` says where an expectation came from; `known_divergence` names the row of SPEC §3 for which a recorded
//! expectation must diverge from the SPEC.

use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, Array4, Axis};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::bundled::Found;
use super::capabilities::Outline;
use super::case::{CalibrationCase, Case, Expectation, LabelCase};
use super::error::{Error, Result};
use super::memory::{self, Memory};
use super::recipe::Recipe;
use super::rounding_model::RoundingModel;
use super::sequence::{Call, EarlierMasker, Instance, InstanceSettings, Sequence};
use super::session_file::{self, StoredSession};
use super::stage_file::{self, StoredStage};
use super::tensors::{
    FLOATS, Tensors, Writer, broadcastable, bytes, channels, float_rows, floats, integers, shape4,
};
use crate::algorithm::calibrate::{BlockActivations, Importance};
use crate::algorithm::config::from_json;
use crate::algorithm::{
    ChannelFile, ChannelKind, ChannelOrder, Detail, Dims, InputParts, Inputs, LabelBits, Lengths, Mask,
    Selection, Storage,
};

/// The content of one file.
#[derive(Debug)]
pub enum CaseFile {
    /// An attention layer.
    Attention(Box<Case>),
    /// Calls of one instance.
    Sequence(Box<StoredSequence>),
    /// Rows and labels, one entry per number of bits.
    Quantisation(Vec<LabelCase>),
    /// Activations and a channel order.
    Calibration(CalibrationCase),
    /// A question to one stage.
    Stage(Box<StoredStage>),
    /// A session of a serving engine.
    Session(Box<StoredSession>),
}

/// A sequence that was written to a file.
#[derive(Debug)]
pub struct StoredSequence {
    /// The sequence.
    pub sequence: Sequence,
    /// Sequences that have to be asked before it, in order, to see what it shows.
    pub before: Vec<Sequence>,
    /// Who diverged on it.
    pub source: String,
}

/// The JSON under the metadata key `case`.
#[derive(Serialize, Deserialize)]
struct CaseSettings {
    #[serde(flatten)]
    selection: Selection,
    causal: bool,
    dtype: Storage,
    #[serde(default)]
    scaling: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<RoundingModel>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier_maskers: Vec<EarlierMasker>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ragged: Option<Lengths>,
    #[serde(flatten)]
    unknown: serde_json::Map<String, serde_json::Value>,
}

impl CaseSettings {
    /// Errors: a field that is missing or of the wrong type, by its path.
    fn from_json(json: &str) -> Result<Self> {
        // Errors inside a flattened part lose the field's name: it is read on its own first.
        from_json::<Selection>("case", json)?;
        Ok(from_json("case", json)?)
    }
}

#[derive(Serialize, Deserialize)]
struct SequenceMetadata {
    #[serde(flatten)]
    instance: InstanceSettings,
    calls: Vec<CallMetadata>,
}

impl SequenceMetadata {
    fn of(sequence: &Sequence) -> Self {
        let call = |call: &Call| {
            let parts = call.inputs.parts();
            let (layer, causal, dtype, scaling) = (call.layer, parts.causal, parts.storage, parts.scaling);
            CallMetadata { layer, causal, dtype, scaling, ragged: call.inputs.lengths().cloned() }
        };
        Self { instance: sequence.instance.settings(), calls: sequence.calls.iter().map(call).collect() }
    }
}

/// A sequence that was asked before.
#[derive(Serialize, Deserialize)]
struct EarlierMetadata {
    sequence: SequenceMetadata,
    /// The text of its channel file.
    channel_file: String,
}

#[derive(Serialize, Deserialize)]
struct CallMetadata {
    layer: usize,
    causal: bool,
    dtype: Storage,
    #[serde(default)]
    scaling: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ragged: Option<Lengths>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantisationMetadata {
    dtype: Storage,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CalibrationMetadata {
    kind: ChannelKind,
}

/// Reads case files, and keeps the inputs of the last recipe because neighbouring cases often share them.
#[derive(Default)]
pub struct Reader {
    memory: Memory,
    last: Option<(RecipeUse, Arc<Inputs>, ChannelOrder)>,
}

/// Everything that inputs made by a recipe depend on.
#[derive(PartialEq)]
struct RecipeUse {
    recipe: Recipe,
    storage: Storage,
    causal: bool,
    scaling: Option<f64>,
}

impl Reader {
    /// A reader that refuses files that would take more memory than this; the default is [`Memory::DEFAULT`].
    pub fn within(memory: Memory) -> Self {
        Self { memory, last: None }
    }

    /// Reads one file; `name` is what reports call it. Errors name the file, the field, what was found and expected.
    pub fn read(&mut self, path: &Path, name: &str) -> Result<CaseFile> {
        let bytes = self.memory.read(path)?;
        self.parse(&bytes, name).map_err(|error| error.in_file(path))
    }

    /// Reads a file that was found.
    pub fn read_found(&mut self, found: &Found) -> Result<CaseFile> {
        self.parse(&found.read_within(self.memory)?, &found.name)
            .map_err(|error| error.in_file(&found.path()))
    }

    /// Reads the bytes of one file. Nothing is made of it that takes more memory than allowed.
    pub fn parse(&mut self, bytes: &[u8], name: &str) -> Result<CaseFile> {
        let file = Tensors::parse(bytes)?;
        self.memory.check_json("metadata", file.metadata.values().map(String::len).sum())?;
        if let Some(settings) = file.metadata.get("case") {
            return self.attention_case(&file, settings, name).map(|case| CaseFile::Attention(case.into()));
        }
        if let Some(json) = file.metadata.get("sequence") {
            return stored_sequence(&file, json, name, self.memory)
                .map(|stored| CaseFile::Sequence(stored.into()));
        }
        if let Some(json) = file.metadata.get("quantisation") {
            return quantisation_cases(&file, json, name).map(CaseFile::Quantisation);
        }
        if let Some(json) = file.metadata.get("calibration") {
            return calibration_case(&file, json, name).map(CaseFile::Calibration);
        }
        if let Some(stored) = stage_file::parse(&file, name, self.memory)? {
            return Ok(CaseFile::Stage(stored.into()));
        }
        if let Some(stored) = session_file::parse(&file, name, self.memory)? {
            return Ok(CaseFile::Session(stored.into()));
        }
        let found = match file.metadata.keys().map(String::as_str).collect::<Vec<_>>() {
            keys if keys.is_empty() => "none".to_owned(),
            mut keys => {
                keys.sort_unstable();
                keys.join(", ")
            }
        };
        Err(metadata(
            "metadata keys",
            found,
            "case, sequence, session, quantisation, calibration, scores_case or selection_case",
        ))
    }

    fn attention_case(&mut self, file: &Tensors, settings: &str, name: &str) -> Result<Case> {
        let settings = CaseSettings::from_json(settings)?;
        let attention_mask = file.optional("attention_mask")?.map(|view| broadcastable(&view)).transpose()?;
        let recipe = match file.metadata.get("recipe") {
            Some(json) => Some(from_json::<Recipe>("recipe", json)?),
            None => None,
        };
        let (dims, channel_rows) = match &recipe {
            Some(recipe) => (recipe.dims()?, recipe.channel_rows()),
            // Channels that the file holds as tensors take as much as these.
            None => (layer_dims(file, "")?, 0),
        };
        let bytes = memory::of_call(&dims, &settings.selection)
            .saturating_add(memory::of_channels(channel_rows, dims.head_dim));
        let field = if recipe.is_some() { "recipe" } else { "case" };
        self.memory.check(field, sizes(&dims), bytes)?;
        let (inputs, channels) = match &recipe {
            Some(recipe) if attention_mask.is_none() => self.made_by(recipe, &settings)?,
            Some(recipe) => {
                let made = recipe.generate()?;
                (inputs(made.q, made.k, made.v, attention_mask, &settings)?, made.channels)
            }
            None => {
                let tensor = |name: &str| floats(&file.required(name)?, FLOATS);
                let made = inputs(tensor("q")?, tensor("k")?, tensor("v")?, attention_mask, &settings)?;
                (made, channels(&file.required("channels")?)?)
            }
        };
        let channels = match file.optional("channel_weights")? {
            None => channels,
            Some(view) => {
                let rows = float_rows(&view, Storage::F32)?;
                channels.with_weights(rows.outer_iter().map(|row| row.to_vec()).collect())?
            }
        };
        let inputs = weighted(inputs, file, "head_weights")?;
        let dims = inputs.dims();
        let previous = match file.optional("previous")? {
            None => None,
            Some(view) => Some(Mask::from_weights(floats(&view, &[Dtype::F32])?, &dims)?),
        };
        let call = with_lengths(Call { layer: 0, inputs, previous }, settings.ragged)?;
        let expectation = expectation(file, settings.model)?;
        if let Some(expectation) = &expectation {
            check_expectation(expectation, &call.inputs)?;
        }
        let mut instance = Instance::of_layer(settings.selection, channels, &dims);
        instance.earlier_maskers = settings.earlier_maskers;
        Ok(Case { name: name.to_owned(), instance, call, recipe, expectation, unknown: settings.unknown })
    }

    fn made_by(&mut self, recipe: &Recipe, settings: &CaseSettings) -> Result<(Arc<Inputs>, ChannelOrder)> {
        let wanted = RecipeUse {
            recipe: recipe.clone(),
            storage: settings.dtype,
            causal: settings.causal,
            scaling: settings.scaling,
        };
        if let Some((made, inputs, channels)) = &self.last
            && *made == wanted
        {
            return Ok((inputs.clone(), channels.clone()));
        }
        self.last = None;
        let made = recipe.generate()?;
        let inputs = inputs(made.q, made.k, made.v, None, settings)?;
        self.last = Some((wanted, inputs.clone(), made.channels.clone()));
        Ok((inputs, made.channels))
    }
}

/// The sizes of a layer whose tensors have names that begin with a prefix; shapes that do not fit one another are found later.
/// Errors: a tensor that is missing, or has other than four dimensions.
pub(super) fn layer_dims(file: &Tensors, prefix: &str) -> Result<Dims> {
    let shape = |name: &str| -> Result<[usize; 4]> { shape4(&file.required(&format!("{prefix}{name}"))?) };
    let ([batch, heads, queries, head_dim], [_, kv_heads, keys, _], [_, _, _, value_dim]) =
        (shape("q")?, shape("k")?, shape("v")?);
    Ok(Dims { batch, heads, kv_heads, queries, keys, head_dim, value_dim })
}

/// Sizes for a message.
pub(super) fn sizes(dims: &Dims) -> String {
    let Dims { batch, heads, kv_heads, queries, keys, head_dim, value_dim } = dims;
    format!("[b, h, hk, m, n, d, dv] {:?}", [batch, heads, kv_heads, queries, keys, head_dim, value_dim])
}

/// The inputs with the head weights of a tensor, where there is one.
fn weighted(inputs: Arc<Inputs>, file: &Tensors, name: &str) -> Result<Arc<Inputs>> {
    let Some(view) = file.optional(name)? else { return Ok(inputs) };
    let weights = broadcastable(&view)?.index_axis_move(Axis(0), 0);
    Ok(Arc::new(Inputs::clone(&inputs).with_head_weights(Some(weights))?))
}

/// The call with entries of unequal lengths, where there are some.
fn with_lengths(call: Call, lengths: Option<Lengths>) -> Result<Call> {
    Ok(match lengths {
        None => call,
        Some(lengths) => call.with_lengths(lengths)?,
    })
}

/// What a case file's metadata and tensor shapes say, without making or reading its numbers: enough to tell most cases that an
/// implementation does not offer. `None` for files in which values decide (a sequence, an additive mask, an earlier mask)
/// and for files that hold no attention layer.
///
/// Errors: those of [`Reader::parse`] that concern the metadata.
pub fn peek(bytes: &[u8]) -> Result<Option<Outline>> {
    let file = Tensors::parse(bytes)?;
    let Some(settings) = file.metadata.get("case") else { return Ok(None) };
    if file.optional("attention_mask")?.is_some() || file.optional("previous")?.is_some() {
        return Ok(None);
    }
    let settings = CaseSettings::from_json(settings)?;
    if settings.ragged.is_some() {
        return Ok(None);
    }
    let (dims, channel_rows) = match file.metadata.get("recipe") {
        Some(json) => {
            let recipe = from_json::<Recipe>("recipe", json)?;
            (recipe.dims()?, recipe.channel_rows())
        }
        None => {
            let shape = |name: &str| Ok::<_, Error>(file.required(name)?.view.shape().to_vec());
            let (q, k, v, rows) = (shape("q")?, shape("k")?, shape("v")?, shape("channels")?);
            let ([batch, heads, queries, head_dim], [_, kv_heads, keys, _], [_, _, _, value_dim], [rows, _]) =
                (&q[..], &k[..], &v[..], &rows[..])
            else {
                // Reading the whole file will say what is wrong.
                return Ok(None);
            };
            let dims = Dims {
                batch: *batch,
                heads: *heads,
                kv_heads: *kv_heads,
                queries: *queries,
                keys: *keys,
                head_dim: *head_dim,
                value_dim: *value_dim,
            };
            if dims.kv_heads == 0 || !dims.heads.is_multiple_of(dims.kv_heads) {
                return Ok(None);
            }
            (dims, *rows)
        }
    };
    Ok(Some(Outline {
        selection: settings.selection,
        earlier_maskers: !settings.earlier_maskers.is_empty(),
        dims,
        storage: settings.dtype,
        causal: settings.causal,
        scaling: settings.scaling,
        channel_rows,
    }))
}

fn inputs(
    q: Array4<f32>,
    k: Array4<f32>,
    v: Array4<f32>,
    attention_mask: Option<Array4<f32>>,
    settings: &CaseSettings,
) -> Result<Arc<Inputs>> {
    let parts = InputParts {
        q,
        k,
        v,
        attention_mask,
        causal: settings.causal,
        storage: settings.dtype,
        scaling: settings.scaling,
    };
    Ok(Arc::new(Inputs::new(parts)?))
}

fn expectation(file: &Tensors, model: Option<RoundingModel>) -> Result<Option<Expectation>> {
    let selected = file.optional("selected")?.map(|view| integers(&view)).transpose()?;
    let mask = file.optional("mask")?.map(|view| bytes(&view)).transpose()?;
    let output = file.optional("output")?.map(|view| floats(&view, &[Dtype::F32])).transpose()?;
    if selected.is_none() && mask.is_none() && output.is_none() {
        return Ok(None);
    }
    let source = file.metadata.get("source").cloned();
    let source = source
        .ok_or_else(|| metadata("source", "nothing", "a sentence saying where the expectation came from"))?;
    let known_divergence = file.metadata.get("known_divergence").cloned();
    Ok(Some(Expectation { selected, mask, output, source, model, known_divergence }))
}

fn check_expectation(expectation: &Expectation, inputs: &Inputs) -> Result<()> {
    let (b, h, m, n) = inputs.dims().mask_shape();
    let wrong = |name: &str, found: &[usize], expected: String| {
        Err(Error::Tensor(Detail::new(name, format!("shape {found:?}"), expected)))
    };
    if let Some(selected) = &expectation.selected
        && selected.shape()[..3] != [b, h, m]
    {
        return wrong("selected", selected.shape(), format!("[{b}, {h}, {m}, ·]"));
    }
    if let Some(mask) = &expectation.mask
        && mask.dim() != (b, h, m, n)
    {
        return wrong("mask", mask.shape(), format!("[{b}, {h}, {m}, {n}]"));
    }
    if let Some(output) = &expectation.output
        && output.dim() != inputs.dims().output_shape()
    {
        return wrong("output", output.shape(), format!("{:?}", inputs.dims().output_shape()));
    }
    if expectation.selected.is_none() && expectation.mask.is_none() {
        let expected = "selected or mask beside output, which is judged with it";
        return Err(Error::Tensor(Detail::new("expectation", "output alone", expected)));
    }
    Ok(())
}

fn stored_sequence(file: &Tensors, json: &str, name: &str, memory: Memory) -> Result<StoredSequence> {
    let own = from_json::<SequenceMetadata>("sequence", json)?;
    let text = file.metadata.get("channel_file");
    let text = text.ok_or_else(|| metadata("channel_file", "nothing", "the JSON text of a channel file"))?;
    let earlier = match file.metadata.get("before") {
        None => Vec::new(),
        Some(json) => from_json::<Vec<EarlierMetadata>>("before", json)?,
    };
    check_memory(file, &own, &earlier, memory)?;
    let sequence = sequence_of(file, own, text, name, "")?;
    let of_earlier = |(index, earlier): (usize, EarlierMetadata)| {
        let name = format!("{name}, asked before ({})", index + 1);
        sequence_of(file, earlier.sequence, &earlier.channel_file, &name, &format!("before_{index}."))
    };
    let before = earlier.into_iter().enumerate().map(of_earlier).collect::<Result<Vec<_>>>()?;
    let source = file.metadata.get("source").cloned().unwrap_or_default();
    Ok(StoredSequence { sequence, before, source })
}

/// Errors: [`Error::Memory`] where the calls of all sequences of a file take more than is allowed.
fn check_memory(
    file: &Tensors,
    own: &SequenceMetadata,
    earlier: &[EarlierMetadata],
    memory: Memory,
) -> Result<()> {
    let earlier = (0..).zip(earlier).map(|(index, earlier)| (format!("before_{index}."), &earlier.sequence));
    let mut bytes: u64 = 0;
    for (prefix, sequence) in std::iter::once((String::new(), own)).chain(earlier) {
        for index in 0..sequence.calls.len() {
            let dims = layer_dims(file, &format!("{prefix}call_{index}."))?;
            bytes = bytes.saturating_add(memory::of_call(&dims, &sequence.instance.settings.selection));
            memory.check(&format!("{prefix}call_{index}"), sizes(&dims), bytes)?;
        }
    }
    Ok(())
}

/// A sequence from its metadata, the text of its channel file, and tensors whose names begin with a prefix.
fn sequence_of(
    file: &Tensors,
    SequenceMetadata { instance, calls }: SequenceMetadata,
    channel_file: &str,
    name: &str,
    prefix: &str,
) -> Result<Sequence> {
    if calls.is_empty() {
        return Err(metadata("sequence.calls", "an empty list", "at least one call"));
    }
    let call = |(index, call): (usize, CallMetadata)| -> Result<Call> {
        let tensor = |tensor: &str| format!("{prefix}call_{index}.{tensor}");
        let numbers = |name: &str| floats(&file.required(&tensor(name))?, FLOATS);
        let mask = file.optional(&tensor("attention_mask"))?;
        let inputs = Inputs::new(InputParts {
            q: numbers("q")?,
            k: numbers("k")?,
            v: numbers("v")?,
            attention_mask: mask.map(|view| broadcastable(&view)).transpose()?,
            causal: call.causal,
            storage: call.dtype,
            scaling: call.scaling,
        })?;
        let previous = match file.optional(&tensor("previous"))? {
            None => None,
            Some(view) => Some(Mask::from_weights(floats(&view, &[Dtype::F32])?, &inputs.dims())?),
        };
        let inputs = weighted(Arc::new(inputs), file, &tensor("head_weights"))?;
        with_lengths(Call { layer: call.layer, inputs, previous }, call.ragged)
    };
    let calls = calls.into_iter().enumerate().map(call).collect::<Result<Vec<_>>>()?;
    check_calls_alike(&calls)?;
    let instance = Instance::from_settings(instance, ChannelFile::from_json(channel_file)?);
    Ok(Sequence { name: name.to_owned(), instance, calls })
}

/// Checks that the calls of one instance differ only in batch, queries, keys and layer.
fn check_calls_alike(calls: &[Call]) -> Result<()> {
    let sizes = |call: &Call| {
        let dims = call.inputs.dims();
        [dims.heads, dims.kv_heads, dims.head_dim, dims.value_dim]
    };
    let first = sizes(&calls[0]);
    match calls.iter().position(|call| sizes(call) != first) {
        None => Ok(()),
        Some(index) => {
            let field = format!("call_{index}");
            let found = format!("[h, hk, d, dv] {:?}", sizes(&calls[index]));
            Err(Error::Tensor(Detail::new(field, found, format!("{first:?}, as in call_0"))))
        }
    }
}

/// The bytes of a sequence's file. The same sequence gives the same bytes.
pub fn sequence_to_bytes(sequence: &Sequence, source: &str) -> Vec<u8> {
    sequence_after_to_bytes(sequence, &[], source)
}

/// The same of a sequence that has to be asked after others, in order.
pub fn sequence_after_to_bytes(sequence: &Sequence, before: &[Sequence], source: &str) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.metadata("sequence", serde_json::json!(SequenceMetadata::of(sequence)).to_string());
    writer.metadata("channel_file", sequence.instance.channel_file.to_json());
    writer.metadata("source", source.to_owned());
    write_calls(&mut writer, sequence, "");
    if !before.is_empty() {
        let earlier = before.iter().map(|earlier| EarlierMetadata {
            sequence: SequenceMetadata::of(earlier),
            channel_file: earlier.instance.channel_file.to_json(),
        });
        writer.metadata("before", serde_json::json!(earlier.collect::<Vec<_>>()).to_string());
    }
    for (index, earlier) in before.iter().enumerate() {
        write_calls(&mut writer, earlier, &format!("before_{index}."));
    }
    writer.finish()
}

/// The tensors of each call, under names that begin with a prefix.
fn write_calls(writer: &mut Writer, sequence: &Sequence, prefix: &str) {
    for (index, call) in sequence.calls.iter().enumerate() {
        let parts = call.inputs.parts();
        for (name, tensor) in [("q", &parts.q), ("k", &parts.k), ("v", &parts.v)] {
            writer.floats(&format!("{prefix}call_{index}.{name}"), parts.storage, tensor.view().into_dyn());
        }
        if let Some(mask) = &parts.attention_mask {
            writer.floats(
                &format!("{prefix}call_{index}.attention_mask"),
                Storage::F32,
                mask.view().into_dyn(),
            );
        }
        if let Some(previous) = &call.previous {
            let weights = previous.weights().view().into_dyn();
            writer.floats(&format!("{prefix}call_{index}.previous"), Storage::F32, weights);
        }
        if let Some(weights) = call.inputs.head_weights() {
            writer.floats(
                &format!("{prefix}call_{index}.head_weights"),
                Storage::F32,
                weights.view().into_dyn(),
            );
        }
    }
}

fn quantisation_cases(file: &Tensors, json: &str, name: &str) -> Result<Vec<LabelCase>> {
    let QuantisationMetadata { dtype } = from_json("quantisation", json)?;
    let source = file.metadata.get("source").cloned().unwrap_or_default();
    let mut cases = Vec::new();
    for bits in 1..=15u64 {
        let case = |suffix: &str, rows: Array2<f32>, labels: Option<Array2<f32>>| -> Result<LabelCase> {
            let name = format!("{name} {suffix}");
            let bits = LabelBits::new(bits)?;
            Ok(LabelCase { name, storage: dtype, bits, rows, labels, source: source.clone() })
        };
        if let Some(rows) = file.optional(&format!("bits_{bits:02}.rows"))? {
            let labels = file.required(&format!("bits_{bits:02}.labels"))?;
            let (rows, labels) = (float_rows(&rows, dtype)?, float_rows(&labels, dtype)?);
            if rows.dim() != labels.dim() {
                let field = format!("bits_{bits:02}.labels");
                let expected = format!("shape {:?} as its rows", rows.dim());
                return Err(Error::Tensor(Detail::new(field, format!("{:?}", labels.dim()), expected)));
            }
            cases.push(case(&format!("{bits} bits"), rows, Some(labels))?);
        }
        if let Some(rows) = file.optional(&format!("bits_{bits:02}.nonfinite_rows"))? {
            let rows = float_rows(&rows, dtype)?;
            cases.push(case(&format!("{bits} bits, no finite labels"), rows, None)?);
        }
    }
    if cases.is_empty() {
        let expected = "pairs bits_BB.rows and bits_BB.labels";
        return Err(Error::Tensor(Detail::new("quantisation", "no such tensor", expected)));
    }
    Ok(cases)
}

fn calibration_case(file: &Tensors, json: &str, name: &str) -> Result<CalibrationCase> {
    let CalibrationMetadata { kind } = from_json("calibration", json)?;
    let mut blocks = Vec::new();
    loop {
        let index = blocks.len();
        let q = file.optional(&format!("block_{index}.q"))?.map(|view| floats(&view, FLOATS)).transpose()?;
        let k = file.optional(&format!("block_{index}.k"))?.map(|view| floats(&view, FLOATS)).transpose()?;
        blocks.push(match (kind, q, k) {
            (_, None, None) => break,
            (ChannelKind::QProj, Some(x), _) | (ChannelKind::KProj, _, Some(x)) => BlockActivations::One(x),
            (ChannelKind::QkProj, Some(q), Some(k)) => BlockActivations::Pair { q, k },
            _ => {
                let expected = format!("the tensors that {} needs", kind.name());
                return Err(Error::Tensor(Detail::new(format!("block_{index}"), "others", expected)));
            }
        });
    }
    check_blocks(kind, &blocks)?;
    Ok(CalibrationCase {
        name: name.to_owned(),
        kind,
        blocks,
        channels: channels(&file.required("channels")?)?,
        source: file.metadata.get("source").cloned().unwrap_or_default(),
        known_divergence: file.metadata.get("known_divergence").cloned(),
    })
}

/// Checks that an order can be derived from the blocks, so that an implementation that cannot is not blamed for the file. Errors:
/// those of [`Importance::add`], by block.
fn check_blocks(kind: ChannelKind, blocks: &[BlockActivations]) -> Result<()> {
    if blocks.is_empty() {
        let expected = format!("at least one, with the tensors that {} needs", kind.name());
        return Err(Error::Tensor(Detail::new("block_0", "no block", expected)));
    }
    let mut importance = Importance::new(kind);
    for (index, block) in blocks.iter().enumerate() {
        importance.add(block).map_err(|error| {
            Error::Tensor(Detail::new(format!("block_{index}"), error, "activations of tokens"))
        })?;
    }
    Ok(())
}

/// The bytes of an attention case's file. The same case gives the same bytes.
pub fn to_bytes(case: &Case) -> Vec<u8> {
    let mut writer = Writer::default();
    let parts = case.call.inputs.parts();
    let settings = CaseSettings {
        selection: case.instance.selection,
        causal: parts.causal,
        dtype: parts.storage,
        scaling: parts.scaling,
        model: case.expectation.as_ref().and_then(|expectation| expectation.model),
        earlier_maskers: case.instance.earlier_maskers.clone(),
        ragged: case.call.inputs.lengths().cloned(),
        unknown: case.unknown.clone(),
    };
    writer.metadata("case", serde_json::json!(settings).to_string());
    match &case.recipe {
        Some(recipe) => writer.metadata("recipe", serde_json::json!(recipe).to_string()),
        None => {
            for (name, tensor) in [("q", &parts.q), ("k", &parts.k), ("v", &parts.v)] {
                writer.floats(name, parts.storage, tensor.view().into_dyn());
            }
            if let Ok(channels) = case.channels() {
                let rows = channels.rows();
                let data = rows.iter().flatten().flat_map(|&c| (c as i64).to_le_bytes()).collect();
                writer.tensor("channels", "I64", &[rows.len(), channels.width()], data);
            }
        }
    }
    if let Some(weights) = case.channels().ok().and_then(ChannelOrder::weights) {
        let data = weights.iter().flatten().flat_map(|weight| weight.to_le_bytes()).collect();
        writer.tensor("channel_weights", "F32", &[weights.len(), weights[0].len()], data);
    }
    if let Some(mask) = &parts.attention_mask {
        writer.floats("attention_mask", Storage::F32, mask.view().into_dyn());
    }
    if let Some(previous) = &case.call.previous {
        writer.floats("previous", Storage::F32, previous.weights().view().into_dyn());
    }
    if let Some(weights) = case.call.inputs.head_weights() {
        writer.floats("head_weights", Storage::F32, weights.view().into_dyn());
    }
    if let Some(expectation) = &case.expectation {
        writer.metadata("source", expectation.source.clone());
        if let Some(row) = &expectation.known_divergence {
            writer.metadata("known_divergence", row.clone());
        }
        if let Some(selected) = &expectation.selected {
            let data = selected.iter().flat_map(|key| key.to_le_bytes()).collect();
            writer.tensor("selected", "I32", selected.shape(), data);
        }
        if let Some(mask) = &expectation.mask {
            writer.tensor("mask", "U8", mask.shape(), mask.iter().copied().collect());
        }
        if let Some(output) = &expectation.output {
            writer.floats("output", Storage::F32, output.view().into_dyn());
        }
    }
    writer.finish()
}

/// Writes one attention case. Errors: [`Error::Access`].
pub fn write(path: &Path, case: &Case) -> Result<()> {
    std::fs::write(path, to_bytes(case)).map_err(|source| Error::Access { path: path.to_owned(), source })
}

/// An error about metadata.
pub(super) fn metadata(field: &str, found: impl std::fmt::Display, expected: &str) -> Error {
    Error::Metadata(Detail::new(field, found, expected))
}
