//! Who selects keys in an evaluation: dense attention, exact top-k, random keys, Double Sparsity in several head modes and by
//! several implementations, deliberate faults, and lists of maskers from configuration files; each at several heavy sizes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::attention::{Selector, Sparse, Stage};
use super::steps::StepFault;
use super::work::{Error, Result, file_name, wrong};
use crate::algorithm::rules::Rules;
use crate::algorithm::{
    AttentionConfig, ChannelFile, ChannelKind, Detail, GroupFactor, HeadMode, HeavySize, LabelBits,
    MaskerConfig, Selection,
};
use crate::behaviours::Fault;
use crate::cases::Instance;
use crate::checksum::sha256;
use crate::subjects::{Engine, Faulty, Process, Reference, Subject};

/// Someone who selects keys, by name.
pub struct Contender {
    /// What results call it, see [`super::results::ContenderResult::masker`].
    pub masker: String,
    /// Who selects.
    pub subject: String,
    /// H; none for dense.
    pub heavy_size: Option<usize>,
    /// G, where labels are used.
    pub group_factor: Option<usize>,
    /// B, where labels are used.
    pub label_bits: Option<u8>,
    /// The attention.
    pub sparse: Sparse,
}

impl Contender {
    /// SHA-256 of its settings, maskers and channels; a command counts by its name alone.
    pub fn fingerprint(&self) -> String {
        let known = format!("{} {:?} {}", self.masker, self.heavy_size, self.sparse.describe());
        sha256(known.as_bytes())
    }

    /// Its display name: masker and H.
    pub fn name(&self) -> String {
        let size = self.heavy_size.map_or(String::new(), |size| format!(" H {size}"));
        format!("{}{size}", self.masker)
    }
}

/// The implementation of Double Sparsity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Implementation {
    /// Maskers in libtorch operations, where the model computes.
    Torch,
    /// The reference.
    Reference,
    /// The decode engine.
    Engine,
    /// A command that answers the process protocol, and how long it may take for one answer.
    Command(String, Duration),
}

/// What contenders are made of.
#[derive(Debug, Clone)]
pub struct ContenderSettings {
    /// Channel file.
    pub channels: PathBuf,
    /// Channel file with one row for all heads, for `summed-labels`, which is left out without it.
    pub shared_channels: Option<PathBuf>,
    /// Which rows of the channel files.
    pub kind: ChannelKind,
    /// H.
    pub heavy_sizes: Vec<usize>,
    /// G; each with each B and H. Faults are tried with the first alone.
    pub group_factors: Vec<GroupFactor>,
    /// B; likewise.
    pub label_bits: Vec<LabelBits>,
    /// Head modes of Double Sparsity.
    pub heads: Vec<HeadMode>,
    /// Deliberate faults, one contender each.
    pub faults: Vec<&'static Fault>,
    /// Faults that each query meets as a decode step of its own, one contender each.
    pub step_faults: Vec<&'static StepFault>,
    /// Heavy sizes at which faults are tried.
    pub fault_heavy_sizes: Vec<usize>,
    /// Configuration files: lists of maskers, one contender each.
    pub configurations: Vec<PathBuf>,
    /// Layers that stay dense.
    pub dense_layers: Vec<usize>,
    /// The implementation of Double Sparsity.
    pub implementation: Implementation,
}

/// Everyone who selects keys in an evaluation.
pub struct Contenders {
    /// Dense attention first.
    pub list: Vec<Contender>,
    /// Where the channels come from: `qk_proj of channels.json, shared.json for summed-labels`.
    pub channels: String,
    /// Layers that stay dense.
    pub dense_layers: Vec<usize>,
    /// Who was left out, and what else a reader should know.
    pub notes: Vec<String>,
}

/// G and B.
type Labels = (GroupFactor, LabelBits);

impl ContenderSettings {
    /// All contenders, for a model of this many layers.
    ///
    /// Errors: those of the files; [`Error::Algorithm`] for heavy sizes that do not exist; [`Error::Process`];
    /// [`Error::Setting`] for dense layers that the model does not have, and where two contenders have one name and heavy size.
    pub fn contenders(&self, layers: usize) -> Result<Contenders> {
        let channels = Arc::new(ChannelFile::read(&self.channels)?);
        let shared = match &self.shared_channels {
            Some(path) => Some(Arc::new(ChannelFile::read(path)?)),
            None => None,
        };
        let mut notes = Vec::new();
        let mut list = self.baselines()?;
        for &heads in &self.heads {
            let file = match heads {
                HeadMode::SummedLabels => shared.as_ref(),
                _ => Some(&channels),
            };
            let Some(file) = file else {
                notes.push("left out: summed-labels, which needs --shared-channels".into());
                continue;
            };
            for labels in self.labels() {
                for &size in &self.heavy_sizes {
                    let (subject, selector) = self.selector(self.instance(size, labels, heads, file)?)?;
                    list.push(self.labelled(heads.name(), &subject, size, labels, selector));
                }
            }
        }
        let Some(labels) = self.labels().next() else {
            return wrong("--group-factor, --label-bits", "none", "at least one of each");
        };
        for &fault in &self.faults {
            for &size in &self.fault_heavy_sizes {
                let instance = self.instance(size, labels, HeadMode::PerHead, &channels)?;
                let selector = Selector::Subject(Box::new(instance), Box::new(Faulty::new(&[fault])));
                list.push(self.labelled(&fault_name(fault), "reference", size, labels, selector));
            }
        }
        for &fault in &self.step_faults {
            for &size in &self.fault_heavy_sizes {
                let instance = self.instance(size, labels, HeadMode::PerHead, &channels)?;
                let selector = Selector::Stepwise(fault, Selector::stages(&instance));
                list.push(self.labelled(fault.name, "torch", size, labels, selector));
            }
        }
        for path in &self.configurations {
            list.push(self.configured(path, &mut notes)?);
        }
        let mut seen = BTreeSet::new();
        let settings =
            |one: &Contender| (one.masker.clone(), one.heavy_size, one.group_factor, one.label_bits);
        if let Some(twice) = list.iter().find(|one| !seen.insert(settings(one))) {
            let expected = "names and settings once each";
            return wrong("contenders", format!("{} twice", twice.masker), expected);
        }
        if let Some(layer) = self.dense_layers.iter().find(|&&layer| layer >= layers) {
            return wrong("--dense-layers", layer, format!("below the {layers} layers of the model"));
        }
        Ok(Contenders {
            list,
            channels: self.channel_names(),
            dense_layers: self.dense_layers.clone(),
            notes,
        })
    }

    /// Dense attention, exact top-k and random keys.
    fn baselines(&self) -> Result<Vec<Contender>> {
        let mut list = vec![self.contender("dense", "torch", None, Selector::Dense)];
        for (name, stage) in
            [("oracle", Stage::Oracle as fn(HeavySize) -> Stage), ("random keys", Stage::Random)]
        {
            for &size in &self.heavy_sizes {
                let stages = vec![stage(HeavySize::count(size)?)];
                list.push(self.contender(name, "torch", Some(size), Selector::Maskers(stages)));
            }
        }
        Ok(list)
    }

    /// Every G with every B.
    fn labels(&self) -> impl Iterator<Item = Labels> {
        let with = |&factor: &GroupFactor| self.label_bits.iter().map(move |&bits| (factor, bits));
        self.group_factors.iter().flat_map(with)
    }

    fn instance(
        &self,
        heavy_size: usize,
        (group_factor, label_bits): Labels,
        heads: HeadMode,
        file: &Arc<ChannelFile>,
    ) -> Result<Instance> {
        Ok(Instance {
            selection: Selection {
                heavy_size: HeavySize::count(heavy_size)?,
                group_factor,
                label_bits,
                heads,
                dense_fallback: false,
                rules: Rules::default(),
            },
            earlier_maskers: Vec::new(),
            dense_layers: self.dense_layers.clone(),
            channel_selection: self.kind,
            channel_file: file.clone(),
        })
    }

    /// The implementation of Double Sparsity, with its name.
    fn selector(&self, instance: Instance) -> Result<(String, Selector)> {
        let subject: Box<dyn Subject> = match &self.implementation {
            Implementation::Torch => return Ok(("torch".into(), Selector::of_instance(&instance))),
            Implementation::Reference => Box::new(Reference::default()),
            Implementation::Engine => Box::new(Engine::default()),
            Implementation::Command(command, timeout) => Box::new(Process::start(command, *timeout)?),
        };
        Ok((subject.name(), Selector::Subject(Box::new(instance), subject)))
    }

    fn contender(&self, name: &str, subject: &str, size: Option<usize>, selector: Selector) -> Contender {
        Contender {
            masker: name.into(),
            subject: subject.into(),
            heavy_size: size,
            group_factor: None,
            label_bits: None,
            sparse: Sparse::new(selector, self.dense_layers.clone()),
        }
    }

    fn labelled(
        &self,
        name: &str,
        subject: &str,
        size: usize,
        (group_factor, label_bits): Labels,
        selector: Selector,
    ) -> Contender {
        Contender {
            group_factor: Some(group_factor.get()),
            label_bits: Some(label_bits.get()),
            ..self.contender(name, subject, Some(size), selector)
        }
    }

    /// A list of maskers of a configuration file, under the file's name.
    fn configured(&self, path: &Path, notes: &mut Vec<String>) -> Result<Contender> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let field = format!("--config {}", path.display());
            Error::Setting(Detail::new(field, error, "a readable file"))
        })?;
        let config = AttentionConfig::from_json(&text)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let stage = |masker: &MaskerConfig| -> Result<Stage> {
            Ok(match masker {
                MaskerConfig::Sink(sink) => Stage::Sink(sink.size),
                MaskerConfig::Local(local) => Stage::Local(local.size),
                MaskerConfig::Oracle(oracle) => Stage::Oracle(oracle.heavy_size),
                MaskerConfig::DoubleSparsity(config) => {
                    let file = ChannelFile::read(&folder.join(&config.sorted_channel_file))?;
                    Stage::DoubleSparsity(config.selection, Arc::new(file), config.channel_selection)
                }
            })
        };
        let stages: Vec<Stage> = config.maskers.iter().map(stage).collect::<Result<_>>()?;
        let size = stages.last().map(|stage| match stage {
            Stage::DoubleSparsity(selection, ..) => selection.heavy_size,
            Stage::Oracle(size) | Stage::Random(size) | Stage::Sink(size) | Stage::Local(size) => *size,
        });
        let labels = stages.iter().find_map(|stage| match stage {
            Stage::DoubleSparsity(selection, ..) => Some(*selection),
            _ => None,
        });
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut dense_layers = self.dense_layers.clone();
        if !config.dense_layers.is_empty() {
            notes.push(format!("{name}: also dense layers {:?}", config.dense_layers));
            dense_layers.extend(config.dense_layers);
        }
        Ok(Contender {
            masker: name,
            subject: "torch".into(),
            heavy_size: match size {
                Some(HeavySize::Count(count)) => Some(count.get()),
                _ => None,
            },
            group_factor: labels.map(|selection| selection.group_factor.get()),
            label_bits: labels.map(|selection| selection.label_bits.get()),
            sparse: Sparse::new(Selector::Maskers(stages), dense_layers),
        })
    }

    fn channel_names(&self) -> String {
        let own = format!("{} of {}", self.kind.name(), file_name(&self.channels));
        match &self.shared_channels {
            None => own,
            Some(path) => format!("{own}, {} for summed-labels", file_name(path)),
        }
    }
}

/// `first-layers-channels (D4)`
fn fault_name(fault: &Fault) -> String {
    if fault.row.starts_with('D') { format!("{} ({})", fault.name, fault.row) } else { fault.name.into() }
}
