//! Calls of one instance. An implementation is configured once, with settings and a channel file, and then called for
//! several layers and lengths, as in a model that generates. Only this reveals state carried over by mistake (SPEC D4):
//! each call is judged as a case of its own.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::algorithm::config::WindowConfig;
use crate::algorithm::maskers::{ChannelSource, DoubleSparsity, Local, Sink};
use crate::algorithm::scores::check_head_mode;
use crate::algorithm::{
    ChannelFile, ChannelKind, ChannelOrder, Dims, Error, Inputs, Mask, Masker, Selection, SparseAttention,
};

/// What one instance of an implementation is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// H, G, B, the head mode and the dense fallback.
    pub selection: Selection,
    /// Maskers applied before Double Sparsity, in order.
    pub earlier_maskers: Vec<EarlierMasker>,
    /// Layers that get a full mask.
    pub dense_layers: Vec<usize>,
    /// The rows of this kind are used.
    pub channel_selection: ChannelKind,
    /// Channel orders by kind and layer.
    pub channel_file: Arc<ChannelFile>,
}

/// A masker that may come before Double Sparsity in a case: one whose mask leaves no room for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EarlierMasker {
    /// The first keys.
    Sink(WindowConfig),
    /// The last keys up to and including the query's own position.
    Local(WindowConfig),
}

/// One call of an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Which layer asks.
    pub layer: usize,
    /// q, k, v, A, storage type and scaling.
    pub inputs: Arc<Inputs>,
    /// P.
    pub previous: Option<Mask>,
}

/// An instance and its calls, at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Display name.
    pub name: String,
    /// What is configured.
    pub instance: Instance,
    /// In order.
    pub calls: Vec<Call>,
}

/// The JSON form of an [`Instance`], apart from its channel file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceSettings {
    /// H, G, B, head mode, dense fallback and earlier maskers.
    pub settings: SelectionSettings,
    /// Which kind of rows.
    pub channel_selection: ChannelKind,
    /// Layers that get a full mask.
    #[serde(default)]
    pub dense_layers: Vec<usize>,
}

/// The JSON form of a [`Selection`] and the maskers before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelectionSettings {
    /// H, G, B, head mode and dense fallback.
    #[serde(flatten)]
    pub selection: Selection,
    /// Maskers applied before Double Sparsity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_maskers: Vec<EarlierMasker>,
}

impl Instance {
    /// An instance for calls of layer 0, with these rows. Rows count as `k_proj` where there is one for each
    /// KV head and the KV heads are fewer than the heads, otherwise as `qk_proj`.
    pub fn of_layer(selection: Selection, channels: ChannelOrder, dims: &Dims) -> Self {
        let per_kv_head = channels.rows().len() == dims.kv_heads && dims.kv_heads < dims.heads;
        let kind = if per_kv_head { ChannelKind::KProj } else { ChannelKind::QkProj };
        let mut file = ChannelFile::default();
        file.insert(kind, 0, channels);
        Self {
            selection,
            earlier_maskers: Vec::new(),
            dense_layers: Vec::new(),
            channel_selection: kind,
            channel_file: Arc::new(file),
        }
    }

    /// From its JSON form and a channel file.
    pub fn from_settings(json: InstanceSettings, channel_file: ChannelFile) -> Self {
        let InstanceSettings { settings, channel_selection, dense_layers } = json;
        Self {
            selection: settings.selection,
            earlier_maskers: settings.earlier_maskers,
            dense_layers,
            channel_selection,
            channel_file: Arc::new(channel_file),
        }
    }

    /// Its JSON form, without the channel file.
    pub fn settings(&self) -> InstanceSettings {
        InstanceSettings {
            settings: SelectionSettings {
                selection: self.selection,
                earlier_maskers: self.earlier_maskers.clone(),
            },
            channel_selection: self.channel_selection,
            dense_layers: self.dense_layers.clone(),
        }
    }

    /// The rows of one layer. Errors: those of [`ChannelFile::order`].
    pub fn channels(&self, layer: usize) -> Result<&ChannelOrder, Error> {
        self.channel_file.order(self.channel_selection, layer)
    }

    /// The maskers, ready to be used.
    pub fn attention(&self) -> SparseAttention {
        let double_sparsity = DoubleSparsity {
            selection: self.selection,
            channels: ChannelSource::File(self.channel_file.clone(), self.channel_selection),
        };
        let maskers = self.earlier().chain([Box::new(double_sparsity) as Box<dyn Masker>]).collect();
        SparseAttention::new(maskers, self.dense_layers.clone())
    }

    /// The maskers before Double Sparsity alone, whatever the layer.
    pub fn earlier_attention(&self) -> SparseAttention {
        SparseAttention::new(self.earlier().collect(), Vec::new())
    }

    fn earlier(&self) -> impl Iterator<Item = Box<dyn Masker>> + '_ {
        self.earlier_maskers.iter().map(|masker| -> Box<dyn Masker> {
            match *masker {
                EarlierMasker::Sink(WindowConfig { size }) => Box::new(Sink { size }),
                EarlierMasker::Local(WindowConfig { size }) => Box::new(Local { size }),
            }
        })
    }

    /// The mask that Double Sparsity starts from: P and, unless the layer is dense, what earlier maskers added.
    /// Errors: those of the maskers.
    pub fn before(&self, call: &Call) -> Result<Mask, Error> {
        if let Some(entries) = call.entries() {
            let mut whole = Mask::empty(&call.inputs.dims());
            for entry in &entries {
                if let Some(alone) = &entry.call {
                    entry.write(&mut whole, &self.before(alone)?);
                }
            }
            return Ok(whole);
        }
        let start = self.start(call);
        if self.earlier_maskers.is_empty() || self.dense_layers.contains(&call.layer) {
            return Ok(start);
        }
        self.earlier_attention().extend_mask(&call.inputs, call.layer, start)
    }

    /// Everything for which a call may be refused (end of SPEC §2); an implementation may check in any order.
    pub fn faults(&self, call: &Call) -> Vec<Error> {
        if let Some(entries) = call.entries() {
            return entries.iter().flat_map(|entry| &entry.call).flat_map(|call| self.faults(call)).collect();
        }
        if self.dense_layers.contains(&call.layer) {
            return Vec::new();
        }
        let dims = call.inputs.dims();
        let channels = self.channels(call.layer);
        let label_channels = self.selection.group_factor.label_channels(dims.head_dim);
        let mut faults = Vec::new();
        if let (Ok(channels), Ok(label_channels)) = (&channels, &label_channels) {
            let head_mode = check_head_mode(&call.inputs, channels, *label_channels, &self.selection);
            let fits = channels.check(&dims, *label_channels);
            // Labels exist only where channels fit.
            if fits.is_ok() && head_mode.is_ok() {
                faults.extend(self.attention().extend_mask(&call.inputs, call.layer, self.start(call)).err());
            }
            faults.extend(fits.err());
            faults.extend(head_mode.err());
        } else if let Ok(channels) = &channels {
            faults.extend(channels.check(&dims, 1).err());
        }
        faults.extend(channels.err());
        faults.extend(label_channels.err());
        faults
    }

    /// The mask that a call starts from: P, or an empty one.
    pub fn start(&self, call: &Call) -> Mask {
        call.previous.clone().unwrap_or_else(|| Mask::empty(&call.inputs.dims()))
    }
}

impl Call {
    /// About how many bytes of memory the call and its answer take.
    pub fn bytes(&self) -> usize {
        let parts = self.inputs.parts();
        let masks = parts.attention_mask.as_ref().map_or(0, |mask| mask.len());
        let dims = self.inputs.dims();
        let answer = dims.batch * dims.heads * dims.queries * (dims.keys + dims.value_dim);
        4 * (parts.q.len() + parts.k.len() + parts.v.len() + masks + 2 * answer)
    }
}

impl Sequence {
    /// The sequence with its layers moved to `first` and above, for implementations that treat lower ones apart.
    pub fn on_layers_from(mut self, first: usize) -> Self {
        let lowest = self.calls.iter().map(|call| call.layer).min().unwrap_or(first);
        let shift = first.saturating_sub(lowest);
        if shift == 0 {
            return self;
        }
        let mut file = ChannelFile::default();
        for kind in self.instance.channel_file.kinds() {
            for (layer, order) in self.instance.channel_file.layers(kind) {
                file.insert(kind, layer + shift, order.clone());
            }
        }
        self.instance.channel_file = Arc::new(file);
        self.instance.dense_layers.iter_mut().for_each(|layer| *layer += shift);
        self.calls.iter_mut().for_each(|call| call.layer += shift);
        self
    }
}
