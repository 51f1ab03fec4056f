//! Channel orders and channel files (SPEC §4). An order is a list of rows, a row lists channel indices by
//! falling importance; there is one row per query head, one per KV head, or one for all heads. A channel file
//! holds such an order for each layer and kind.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::config::ChannelKind;
use super::error::{Detail, Error, Result};
use super::inputs::Dims;

/// The channel order C of one layer: rows of channel indices by falling importance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelOrder {
    rows: Vec<Vec<usize>>,
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
        Ok(Self { rows })
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
        if self.rows.len() == 1 {
            &self.rows[0]
        } else if self.rows.len() == dims.heads {
            &self.rows[head]
        } else {
            &self.rows[dims.kv_head(head)]
        }
    }

    /// Whether all rows begin with the same `label_channels` channels in the same order.
    pub fn is_shared(&self, label_channels: usize) -> bool {
        let leading = |row: &'_ Vec<usize>| row[..label_channels.min(row.len())].to_vec();
        self.rows.iter().all(|row| leading(row) == leading(&self.rows[0]))
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
    /// (`model.layers.{i}.…`, for instance v_proj, o_proj, down_proj) are ignored.
    ///
    /// Errors: [`Error::Json`] and [`Error::Format`] for anything but an object of lists of lists of whole numbers,
    /// [`Error::ChannelKind`] for a kind that does not exist, [`Error::ChannelRows`],
    /// [`Error::ChannelRepeated`] and [`Error::ChannelRange`] (at or beyond the row's length) for the rows.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value = super::config::from_json("channel file", text)?;
        let Value::Object(entries) = value else {
            let found = json_type(&value);
            let expected = "an object of model.layers.{i}.self_attn.{kind}";
            return Err(Error::Format(Detail::new("channel file", found, expected)));
        };
        let mut file = Self::default();
        for (key, rows) in &entries {
            if let Some((layer, kind)) = parse_key(key)? {
                let order = parse_rows(key, rows)?;
                file.insert(kind, layer, order);
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
            entries.insert(key, Value::from(self.kinds[&kind][&layer].rows.clone()));
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

/// Puts the file's key before the field name.
fn in_key(key: &str, mut error: Error) -> Error {
    if let Error::ChannelRows(detail) | Error::ChannelRepeated(detail) | Error::ChannelRange(detail) =
        &mut error
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
