//! Channel orders and channel files (SPEC §4). An order is a list of rows, a row lists channel indices by
//! falling importance; there is one row per query head, one per KV head, or one for all heads. A channel file
//! holds such an order for each layer and kind. Beside an order it may hold channel weights, one for each row and label channel
//! (SPEC §2.12).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::config::ChannelKind;
use super::error::{Detail, Error, Result};
use super::inputs::Dims;

/// The channel order C of one layer: rows of channel indices by falling importance, and channel weights where there are any.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelOrder {
    rows: Vec<Vec<usize>>,
    weights: Option<Vec<Vec<f32>>>,
}

impl ChannelOrder {
    /// Checks that rows are non-empty, equally long and without repeats.
    ///
    /// Errors: [`Error::ChannelRows`], [`Error::ChannelRepeated`].
    pub fn new(rows: Vec<Vec<usize>>) -> Result<Self> {
        let Some(width) = rows.first().map(Vec::len).filter(|&width| width > 0) else {
            return Err(Error::ChannelRows(Detail::new(
                "channels",
                "no rows, or an empty row",
                "at least one row of channel indices",
            )));
        };
        for (index, row) in rows.iter().enumerate() {
            if row.len() != width {
                let found = format!("{} channels", row.len());
                let expected = format!("{width}, as in row 0");
                let field = format!("channels[{index}]");
                return Err(Error::ChannelRows(Detail::new(field, found, expected)));
            }
            check_no_repeats(index, row)?;
        }
        Ok(Self { rows, weights: None })
    }

    /// The order with channel weights: as many rows, and in each one weight for each of its first channels.
    ///
    /// Errors: [`Error::ChannelRows`] for another number of rows, rows that are not equally long or longer than those of
    /// channels; [`Error::NotFinite`] for NaN or ±∞.
    pub fn with_weights(self, weights: Vec<Vec<f32>>) -> Result<Self> {
        let wrong = |field: String, found: usize, expected: String| {
            Err(Error::ChannelRows(Detail::new(field, found, expected)))
        };
        if weights.len() != self.rows.len() {
            let expected = format!("{}, as there are rows of channels", self.rows.len());
            return wrong("channel_weights rows".into(), weights.len(), expected);
        }
        for (index, row) in weights.iter().enumerate() {
            if row.len() != weights[0].len() || row.len() > self.width() {
                let expected = format!("as many in each row, at most {}", self.width());
                return wrong(format!("channel_weights[{index}]"), row.len(), expected);
            }
            if let Some((position, weight)) = row.iter().enumerate().find(|(_, weight)| !weight.is_finite()) {
                let field = format!("channel_weights[{index}, {position}]");
                return Err(Error::NotFinite(Detail::new(
                    field,
                    format!("{weight:?}"),
                    "finite numbers in f32",
                )));
            }
        }
        Ok(Self { weights: Some(weights), ..self })
    }

    /// The channel weights, where there are any: a row for each row of channels.
    pub fn weights(&self) -> Option<&[Vec<f32>]> {
        self.weights.as_deref()
    }

    /// The channel weights of a query head, where there are any. Rows must fit the heads ([`ChannelOrder::check`]).
    pub fn weights_of(&self, head: usize, dims: &Dims) -> Option<&[f32]> {
        self.weights.as_ref().map(|weights| weights[self.row_of(head, dims)].as_slice())
    }

    /// Some of the rows, with their weights.
    pub fn of_rows(&self, kept: &[usize]) -> Self {
        let of = |weights: &Vec<Vec<f32>>| kept.iter().map(|&row| weights[row].clone()).collect();
        let rows = kept.iter().map(|&row| self.rows[row].clone()).collect();
        Self { rows, weights: self.weights.as_ref().map(of) }
    }

    /// The channels that `renamed` keeps, by their new names and with their weights, as many in each row as all have.
    ///
    /// Errors: those of [`ChannelOrder::new`].
    pub fn of_channels(&self, renamed: impl Fn(usize) -> Option<usize>) -> Result<Self> {
        let row = |row: &Vec<usize>| row.iter().filter_map(|&channel| renamed(channel)).collect();
        let order = Self::new(self.rows.iter().map(row).collect())?;
        let Some(weights) = &self.weights else { return Ok(order) };
        let kept = |(row, weights): (&Vec<usize>, &Vec<f32>)| {
            let both = row.iter().zip(weights).filter(|&(&channel, _)| renamed(channel).is_some());
            both.map(|(_, &weight)| weight).collect()
        };
        let mut weights: Vec<Vec<f32>> = self.rows.iter().zip(weights).map(kept).collect();
        let width = weights.iter().map(Vec::len).min().unwrap_or(0);
        weights.iter_mut().for_each(|row| row.truncate(width));
        order.with_weights(weights)
    }

    /// The rows.
    pub fn rows(&self) -> &[Vec<usize>] {
        &self.rows
    }

    /// How many channels each row lists.
    pub fn width(&self) -> usize {
        self.rows[0].len()
    }

    /// Checks that rows fit the heads and list at least `label_channels` channels, each below d.
    ///
    /// Errors: [`Error::ChannelRange`], [`Error::ChannelRows`].
    pub fn check(&self, dims: &Dims, label_channels: usize) -> Result<()> {
        let (rows, h, hk) = (self.rows.len(), dims.heads, dims.kv_heads);
        if rows != 1 && rows != h && rows != hk {
            let expected = format!("{h} (one per query head), {hk} (one per KV head) or 1 (shared)");
            return Err(Error::ChannelRows(Detail::new("channels rows", rows, expected)));
        }
        if self.width() < label_channels {
            let expected = format!("at least the {label_channels} label channels");
            return Err(Error::ChannelRows(Detail::new("channels columns", self.width(), expected)));
        }
        if let Some(weights) = self.weights.as_ref().filter(|weights| weights[0].len() < label_channels) {
            let expected = format!("at least the {label_channels} label channels");
            return Err(Error::ChannelRows(Detail::new(
                "channel_weights columns",
                weights[0].len(),
                expected,
            )));
        }
        self.check_range(dims.head_dim)
    }

    fn check_range(&self, head_dim: usize) -> Result<()> {
        for (index, row) in self.rows.iter().enumerate() {
            if let Some(position) = row.iter().position(|&channel| channel >= head_dim) {
                let field = format!("channels[{index}, {position}]");
                let expected = format!("below the head dimension {head_dim}");
                return Err(Error::ChannelRange(Detail::new(field, row[position], expected)));
            }
        }
        Ok(())
    }

    /// The row that a query head uses. Rows must fit the heads ([`ChannelOrder::check`]).
    pub fn row(&self, head: usize, dims: &Dims) -> &[usize] {
        &self.rows[self.row_of(head, dims)]
    }

    fn row_of(&self, head: usize, dims: &Dims) -> usize {
        if self.rows.len() == 1 {
            0
        } else if self.rows.len() == dims.heads {
            head
        } else {
            dims.kv_head(head)
        }
    }

    /// Whether all rows begin with the same `label_channels` channels in the same order.
    pub fn is_shared(&self, label_channels: usize) -> bool {
        let leading = |row: &'_ Vec<usize>| row[..label_channels.min(row.len())].to_vec();
        self.rows.iter().all(|row| leading(row) == leading(&self.rows[0]))
    }

    /// Whether all rows of weights begin with the same `label_channels` weights.
    pub fn weights_are_shared(&self, label_channels: usize) -> bool {
        let leading = |row: &'_ Vec<f32>| row[..label_channels.min(row.len())].to_vec();
        self.weights.iter().all(|rows| rows.iter().all(|row| leading(row) == leading(&rows[0])))
    }
}

fn check_no_repeats(index: usize, row: &[usize]) -> Result<()> {
    let mut sorted = row.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => {
            let field = format!("channels[{index}]");
            let found = format!("channel {} twice", pair[0]);
            Err(Error::ChannelRepeated(Detail::new(field, found, "each channel at most once")))
        }
    }
}

/// The channel orders of a model: for each kind, for each layer present.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChannelFile {
    kinds: BTreeMap<ChannelKind, BTreeMap<usize, ChannelOrder>>,
}

impl ChannelFile {
    /// Reads a channel file. Errors: [`Error::Format`] with the path, and those of [`ChannelFile::from_json`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let field = format!("channel file {}", path.display());
            Error::Format(Detail::new(field, error, "a readable JSON file"))
        })?;
        Self::from_json(&text)
    }

    /// Reads the JSON text of a channel file. Keys other than
    /// `model.layers.{i}.self_attn.{q_proj|k_proj|qk_proj}` that have the published form
    /// (`model.layers.{i}.…`, for instance v_proj, o_proj, down_proj) are ignored. A key with `.weights` after it holds channel
    /// weights.
    ///
    /// Errors: [`Error::Json`] and [`Error::Format`] for anything but an object of lists of lists of whole numbers,
    /// [`Error::ChannelKind`] for a kind that does not exist, [`Error::ChannelRows`],
    /// [`Error::ChannelRepeated`] and [`Error::ChannelRange`] (at or beyond the row's length) for the rows, and those of
    /// [`ChannelOrder::with_weights`].
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value = super::config::from_json("channel file", text)?;
        let Value::Object(entries) = value else {
            let found = json_type(&value);
            let expected = "an object of model.layers.{i}.self_attn.{kind}";
            return Err(Error::Format(Detail::new("channel file", found, expected)));
        };
        let mut file = Self::default();
        let (of_weights, of_rows): (Vec<_>, Vec<_>) =
            entries.iter().partition(|(key, _)| key.ends_with(WEIGHTS));
        for (key, rows) in of_rows {
            if let Some((layer, kind)) = parse_key(key)? {
                let order = parse_rows(key, rows)?;
                file.insert(kind, layer, order);
            }
        }
        for (key, rows) in of_weights {
            if let Some((layer, kind)) = parse_key(key.trim_end_matches(WEIGHTS))? {
                let expected =
                    || Error::Format(Detail::new(key, "weights alone", "rows of channels beside them"));
                let order =
                    file.kinds.get(&kind).and_then(|layers| layers.get(&layer)).ok_or_else(expected)?;
                let weighted = order.clone().with_weights(parse_weights(key, rows)?);
                file.insert(kind, layer, weighted.map_err(|error| in_key(key, error))?);
            }
        }
        if file.kinds.is_empty() {
            let expected = "at least one key model.layers.{i}.self_attn.{q_proj|k_proj|qk_proj}";
            return Err(Error::Format(Detail::new("channel file", "none of them", expected)));
        }
        Ok(file)
    }

    /// Adds or replaces the order of one layer.
    pub fn insert(&mut self, kind: ChannelKind, layer: usize, order: ChannelOrder) {
        self.kinds.entry(kind).or_default().insert(layer, order);
    }

    /// The kinds present.
    pub fn kinds(&self) -> impl Iterator<Item = ChannelKind> + '_ {
        self.kinds.keys().copied()
    }

    /// The layers present for one kind, ascending.
    pub fn layers(&self, kind: ChannelKind) -> impl Iterator<Item = (usize, &ChannelOrder)> + '_ {
        self.kinds.get(&kind).into_iter().flatten().map(|(&layer, order)| (layer, order))
    }

    /// The order of one layer. Errors: [`Error::ChannelKind`], [`Error::MissingLayer`].
    pub fn order(&self, kind: ChannelKind, layer: usize) -> Result<&ChannelOrder> {
        let layers = self.kinds.get(&kind).ok_or_else(|| {
            let present: Vec<_> = self.kinds().map(ChannelKind::name).collect();
            let expected = format!("a kind the channel file holds: {}", present.join(", "));
            Error::ChannelKind(Detail::new("channel_selection", kind.name(), expected))
        })?;
        layers.get(&layer).ok_or_else(|| {
            let expected = format!(
                "a layer the channel file holds for {}: {}",
                kind.name(),
                ranges(layers.keys().copied())
            );
            Error::MissingLayer(Detail::new("layer", layer, expected))
        })
    }

    /// The JSON text, layer by layer.
    pub fn to_json(&self) -> String {
        let mut entries = serde_json::Map::new();
        let mut keys: Vec<_> = self
            .kinds
            .iter()
            .flat_map(|(&kind, layers)| layers.keys().map(move |&layer| (layer, kind)))
            .collect();
        keys.sort_unstable();
        for (layer, kind) in keys {
            let key = format!("model.layers.{layer}.self_attn.{}", kind.name());
            let ChannelOrder { rows, weights } = &self.kinds[&kind][&layer];
            if let Some(weights) = weights {
                // As f64, which holds every f32.
                let rows = weights.iter().map(|row| row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
                entries.insert(format!("{key}{WEIGHTS}"), Value::from(rows.collect::<Vec<_>>()));
            }
            entries.insert(key, Value::from(rows.clone()));
        }
        Value::Object(entries).to_string()
    }
}

/// `0–31`, `0–2, 4, 7–9`: ascending numbers as ranges.
pub fn ranges(numbers: impl IntoIterator<Item = usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let text = |&(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}–{last}") }
    };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// What follows the key of the rows that channel weights belong to.
const WEIGHTS: &str = ".weights";

const IGNORED: [&str; 3] = ["v_proj", "o_proj", "down_proj"];

fn parse_key(key: &str) -> Result<Option<(usize, ChannelKind)>> {
    let expected = "model.layers.{i}.self_attn.{q_proj|k_proj|qk_proj}";
    let malformed = || Error::Format(Detail::new("channel file key", format!("{key:?}"), expected));
    let rest = key.strip_prefix("model.layers.").ok_or_else(malformed)?;
    let (layer, rest) = rest.split_once('.').ok_or_else(malformed)?;
    // Only the canonical form (no sign, no leading zero), so that no two keys mean the same layer.
    let number: usize = layer.parse().map_err(|_| malformed())?;
    if number.to_string() != layer {
        return Err(malformed());
    }
    let layer = number;
    let (_, kind) = rest.rsplit_once('.').ok_or_else(malformed)?;
    if IGNORED.contains(&kind) {
        return Ok(None);
    }
    let Some(kind) = rest.strip_prefix("self_attn.") else {
        return Err(malformed());
    };
    match kind.parse() {
        Ok(kind) => Ok(Some((layer, kind))),
        Err(_) => Err(Error::ChannelKind(Detail::new(key, format!("{kind:?}"), expected))),
    }
}

fn parse_rows(key: &str, value: &Value) -> Result<ChannelOrder> {
    let format = |field: String, value: &Value, expected: &str| {
        Error::Format(Detail::new(field, json_type(value), expected))
    };
    let Value::Array(rows) = value else {
        return Err(format(key.to_owned(), value, "a list of rows"));
    };
    let parse_row = |(index, row): (usize, &Value)| {
        let field = || format!("{key}[{index}]");
        let Value::Array(channels) = row else {
            return Err(format(field(), row, "a list of channel indices"));
        };
        let parse_channel = |(position, channel): (usize, &Value)| {
            let whole = channel.as_u64().and_then(|channel| usize::try_from(channel).ok());
            whole.ok_or_else(|| {
                let field = format!("{}[{position}]", field());
                Error::Format(Detail::new(field, channel, "a whole number of at least 0"))
            })
        };
        channels.iter().enumerate().map(parse_channel).collect()
    };
    let rows = rows.iter().enumerate().map(parse_row).collect::<Result<Vec<Vec<usize>>>>()?;
    let order = ChannelOrder::new(rows).map_err(|error| in_key(key, error))?;
    order.check_range(order.width()).map_err(|error| in_key(key, error))?;
    Ok(order)
}

fn parse_weights(key: &str, value: &Value) -> Result<Vec<Vec<f32>>> {
    let rows: Vec<Vec<f64>> = serde_json::from_value(value.clone()).map_err(|error| {
        Error::Format(Detail::new(key, error, "a list of rows of numbers, one for each label channel"))
    })?;
    Ok(rows.into_iter().map(|row| row.into_iter().map(|weight| weight as f32).collect()).collect())
}

/// Puts the file's key before the field name.
fn in_key(key: &str, mut error: Error) -> Error {
    if let Error::ChannelRows(detail)
    | Error::ChannelRepeated(detail)
    | Error::ChannelRange(detail)
    | Error::NotFinite(detail) = &mut error
    {
        detail.field = format!("{key} {}", detail.field);
    }
    error
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The index of a channel in a model whose RoPE pairs channel c with c + d/2 (half-split), rewritten for weights stored
/// with the pair side by side (interleaved): c → (2c mod d) + ⌊2c/d⌋ (SPEC D13).
///
/// Errors: [`Error::Shape`] for an odd or zero head dimension, [`Error::ChannelRange`].
pub fn half_split_to_interleaved(channel: usize, head_dim: usize) -> Result<usize> {
    check_layout(channel, head_dim)?;
    Ok(2 * channel % head_dim + 2 * channel / head_dim)
}

fn check_layout(channel: usize, head_dim: usize) -> Result<()> {
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        let expected = "an even number of at least 2, as RoPE pairs channels";
        return Err(Error::Shape(Detail::new("head_dim", head_dim, expected)));
    }
    if channel >= head_dim {
        let expected = format!("below the head dimension {head_dim}");
        return Err(Error::ChannelRange(Detail::new("channel", channel, expected)));
    }
    Ok(())
}
