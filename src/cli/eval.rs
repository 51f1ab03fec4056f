//! `doublecheck eval perplexity|qa|passkey|key-value --model FILE --channels FILE …` (feature torch)

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use doublecheck::algorithm::{
    AttentionConfig, ChannelFile, ChannelKind, GroupFactor, HeadMode, HeavySize, LabelBits, MaskerConfig,
    Selection,
};
use doublecheck::behaviours::Fault;
use doublecheck::cases::Instance;
use doublecheck::evaluation::attention::{Selector, Sparse, Stage};
use doublecheck::evaluation::results::{Evaluation, Measure, Setup};
use doublecheck::evaluation::run::{self, Contender, Progress, Work};
use doublecheck::evaluation::tasks::{Item, longbench, retrieval};
use doublecheck::model::{Model, text};
use doublecheck::reports::{evaluation, html, quoted};
use doublecheck::subjects::torch::{DeviceChoice, device};
use doublecheck::subjects::{Engine, Faulty, Process, Reference, Subject};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tch::{Device, Kind};

use super::{Failure, print, subject, write};

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Task(Box<Task>),
    /// Tell a finished evaluation again, from the evaluation.json of its folder
    Show {
        /// evaluation.json
        file: PathBuf,
        /// Heat maps of recall too
        #[arg(long)]
        recall: bool,
        /// Leave times out of the text
        #[arg(long)]
        no_times: bool,
        /// Write the plot
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// Write the page
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum Task {
    /// Perplexity of what follows a long context
    Perplexity {
        /// Plain text or HTML; passages are taken from its beginning on, one after the other
        #[arg(long, required = true, num_args = 1..)]
        text: Vec<PathBuf>,
        /// Tokens that are prefilled densely
        #[arg(long, default_value_t = 3072)]
        context: usize,
        /// Tokens that are scored after them
        #[arg(long, default_value_t = 512)]
        scored: usize,
        /// Passages
        #[arg(long, default_value_t = 2)]
        passages: usize,
        #[command(flatten)]
        common: Common,
    },
    /// Question answering on files in LongBench's format; token-level F1
    Qa {
        /// JSON lines: input, context, answers, all_classes, length, dataset
        #[arg(long, required = true, num_args = 1..)]
        data: Vec<PathBuf>,
        /// Longest prompt in tokens; the middle of longer ones is left out [default: what the model was made for]
        #[arg(long)]
        limit: Option<usize>,
        /// The first N items of each file only
        #[arg(long, value_name = "N")]
        items: Option<usize>,
        #[command(flatten)]
        common: Common,
    },
    /// A number hidden in filler sentences, at depths from first to last; made on the spot
    Passkey {
        /// Filler sentences of a prompt
        #[arg(long, default_value_t = 100)]
        sentences: usize,
        /// Prompts
        #[arg(long, default_value_t = 20)]
        items: usize,
        #[command(flatten)]
        common: Common,
    },
    /// One of many numbers by its name; made on the spot
    KeyValue {
        /// Pairs in a prompt
        #[arg(long, default_value_t = 20)]
        pairs: usize,
        /// Prompts
        #[arg(long, default_value_t = 20)]
        items: usize,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SetupName {
    /// A: the whole prompt is dense, sparse from the first generated token on
    Prompt,
    /// B: the context is dense, question and answer are sparse
    Context,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Torch,
    Reference,
    Engine,
}

#[derive(Args)]
struct Common {
    /// A GGUF file of the Llama architecture with its tokenizer
    #[arg(long)]
    model: PathBuf,
    /// Channel file; `doublecheck calibrate --model` makes one
    #[arg(long)]
    channels: PathBuf,
    /// Channel file with one row for all heads, for summed-labels; `calibrate --shared` makes one
    #[arg(long)]
    shared_channels: Option<PathBuf>,
    /// Which rows of the channel files
    #[arg(long, default_value = "qk_proj")]
    kind: ChannelKind,
    /// H
    #[arg(long, value_delimiter = ',', default_value = "16,64,256,1024")]
    heavy_size: Vec<usize>,
    /// G
    #[arg(long, default_value_t = 4)]
    group_factor: u64,
    /// B
    #[arg(long, default_value_t = 4)]
    label_bits: u64,
    /// Head modes of Double Sparsity
    #[arg(long, value_delimiter = ',', default_value = "per-head,summed-scores,summed-labels")]
    heads: Vec<HeadMode>,
    /// Deliberate faults: names or rows of SPEC §3, one contender each; "none" for none
    #[arg(long, value_delimiter = ',', default_value = "D4,next-layers-channels,least-important-channels")]
    fault: Vec<String>,
    /// Heavy sizes at which faults are tried [default: those of --heavy-size]
    #[arg(long, value_delimiter = ',')]
    fault_heavy_size: Vec<usize>,
    /// Configuration files: lists of maskers, one contender each
    #[arg(long)]
    config: Vec<PathBuf>,
    /// Layers that stay dense, such as 0,1 (SPEC D5)
    #[arg(long, value_delimiter = ',')]
    dense_layers: Vec<usize>,
    /// Which part of a prompt is attended to sparsely (SPEC D15); perplexity is the same in both
    #[arg(long, value_enum, default_value_t = SetupName::Context)]
    setup: SetupName,
    /// Who does Double Sparsity
    #[arg(long, value_enum, default_value_t = By::Torch)]
    subject: By,
    /// A command that answers the process protocol does Double Sparsity (docs/PROTOCOL.md); run by sh
    #[arg(long, value_name = "COMMAND", conflicts_with = "subject")]
    command: Option<String>,
    /// How long the command may take for one answer, in seconds
    #[arg(long, value_name = "S", default_value_t = 600.0)]
    timeout: f64,
    /// Where the model computes: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Seed of generated items
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Put each prompt into the chat template of the model's file, as instruction models expect
    #[arg(long)]
    chat: bool,
    /// Folder for evaluation.json, plot.svg, report.html and the progress, from which a run that was cut off goes on
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print where the selection of each contender loses what exact top-k keeps, by layer and head
    #[arg(long)]
    recall: bool,
    /// Leave times out of the text
    #[arg(long)]
    no_times: bool,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let task = match &arguments.command {
        Command::Task(task) => task,
        Command::Show { file, recall, no_times, svg, html } => {
            let found = read(file)?;
            if let Some(path) = svg {
                write(path, &(evaluation::plot(&found).into_string() + "\n"))?;
            }
            if let Some(path) = html {
                write(path, &html::evaluation(&found))?;
            }
            print(&told(&found, !no_times, *recall))?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let (Task::Perplexity { common, .. }
    | Task::Qa { common, .. }
    | Task::Passkey { common, .. }
    | Task::KeyValue { common, .. }) = &**task;
    let device = device::open(common.device)?;
    let model = Model::read(&common.model, device, Kind::Float)?;
    let Asked { work, measure, task, mut notes } = task.work(&model, common)?;
    let mut contenders = common.contenders(&model, &mut notes)?;
    let setup = match common.setup {
        // Nothing is generated for a perplexity: what follows the context is sparse.
        SetupName::Prompt if measure != Measure::Perplexity => Setup::Prompt,
        _ => Setup::Context,
    };
    let mut progress = common.progress(&model, setup, &work)?;
    let resumed = progress.count(&contenders);
    let bar = ProgressBar::new((work.len() * contenders.len()) as u64).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} of about {duration} {wide_msg}")?,
    );
    let mut tick = |step: &str| {
        bar.set_message(step.to_owned());
        bar.inc(1);
    };
    run::run(&model, &work, setup, &mut contenders, &mut progress, &mut tick)?;
    bar.finish_and_clear();
    let (rows, failures) = run::rows(&model, measure, work.len(), &contenders, &progress)?;
    notes.extend(failures);
    if resumed > 0 {
        let all = work.len() * contenders.len();
        notes.push(format!("{resumed} of {all} steps were done by an earlier run"));
    }
    let config = model.llama.config();
    let evaluation = Evaluation {
        version: env!("CARGO_PKG_VERSION").into(),
        model: model.name.clone(),
        model_sha256: model.sha256.clone(),
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        device: match device {
            Device::Cpu => format!("cpu, {} threads", tch::get_num_threads()),
            device => device::describe(device),
        },
        channels: common.channel_names(),
        task,
        measure,
        setup,
        dense_layers: common.dense_layers.clone(),
        seconds: rows.iter().map(|row| row.seconds).sum(),
        rows,
        notes,
        command: std::env::args().map(|word| quoted(&word)).collect::<Vec<_>>().join(" "),
    };
    common.tell(&evaluation)?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Evaluation, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut json = serde_json::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(&mut json)
        .map_err(|error| format!("{}: {error}, expected what eval --out writes", path.display()).into())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What a task comes to.
struct Asked {
    work: Vec<Work>,
    measure: Measure,
    /// One line that says so.
    task: String,
    notes: Vec<String>,
}

impl Task {
    /// What the model is given, how it is scored.
    fn work(&self, model: &Model, common: &Common) -> Result<Asked, Failure> {
        match self {
            Self::Perplexity { text, context, scored, passages, .. } => {
                let names: Vec<_> = text.iter().map(|path| file_name(path)).collect();
                let task = format!(
                    "perplexity of {scored} tokens after {context} of context, {passages} passages of {}",
                    names.join(", ")
                );
                let work = passages_of(model, text, [*context, *scored, *passages])?;
                Ok(Asked { work, measure: Measure::Perplexity, task, notes: Vec::new() })
            }
            Self::Qa { data, limit, items, .. } => {
                let mut all = Vec::new();
                for path in data {
                    let records = longbench::read(path)?;
                    let most = items.unwrap_or(records.len());
                    for (number, record) in records.iter().enumerate().take(most) {
                        all.push(record.item(number)?);
                    }
                }
                let names: Vec<_> = data.iter().map(|path| file_name(path)).collect();
                let task = format!("answers to {} questions of {}", all.len(), names.join(", "));
                let all = common.in_chat(model, all)?;
                let work = all.iter().map(|item| question(model, item, *limit, longbench::f1));
                let work: Vec<(Work, bool)> = work.collect::<Result<_, _>>()?;
                let cut = work.iter().filter(|(_, cut)| *cut).count();
                let notes = match cut {
                    0 => Vec::new(),
                    _ => vec![format!(
                        "{cut} of {} prompts were too long and had their middle left out",
                        work.len()
                    )],
                };
                let work = work.into_iter().map(|(work, _)| work).collect();
                Ok(Asked { work, measure: Measure::F1, task, notes })
            }
            Self::Passkey { sentences, items, .. } => {
                let depth = |item: usize| item as f64 / items.saturating_sub(1).max(1) as f64;
                let made = (0..*items).map(|item| {
                    retrieval::passkey(common.seed.wrapping_add(item as u64), *sentences, depth(item))
                });
                let task = format!("{items} pass keys, each in {sentences} filler sentences");
                retrieved(model, common.in_chat(model, made.collect::<Result<_, _>>()?)?, task)
            }
            Self::KeyValue { pairs, items, .. } => {
                let made = (0..*items)
                    .map(|item| retrieval::key_value(common.seed.wrapping_add(item as u64), *pairs));
                let task = format!("{items} values, each among {pairs} pairs");
                retrieved(model, common.in_chat(model, made.collect::<Result<_, _>>()?)?, task)
            }
        }
    }
}

/// Items made on the spot; none of them may be cut.
fn retrieved(model: &Model, items: Vec<Item>, task: String) -> Result<Asked, Failure> {
    let score = |prediction: &str, answers: &[String]| {
        if retrieval::right(prediction, answers) { 100.0 } else { 0.0 }
    };
    let made = items.iter().map(|item| question(model, item, None, score));
    let made: Vec<(Work, bool)> = made.collect::<Result<_, _>>()?;
    if made.iter().any(|(_, cut)| *cut) {
        let room = model.llama.config().context;
        return Err(format!(
            "{task}: found prompts longer than the model's {room} tokens, expected shorter ones"
        )
        .into());
    }
    let work: Vec<Work> = made.into_iter().map(|(work, _)| work).collect();
    let lengths = work.iter().map(|piece| match piece {
        Work::Question { context, question, .. } => context.len() + question.len(),
        Work::Passage { .. } => 0,
    });
    let longest = lengths.max().unwrap_or(0);
    let task = format!("{task}, up to {longest} tokens");
    Ok(Asked { work, measure: Measure::Accuracy, task, notes: Vec::new() })
}

/// Passages of a text, each of context and scored tokens, one after the other.
fn passages_of(model: &Model, files: &[PathBuf], sizes: [usize; 3]) -> Result<Vec<Work>, Failure> {
    let [context, scored, passages] = sizes;
    if context == 0 || scored == 0 || passages == 0 {
        return Err("--context, --scored, --passages: found 0, expected at least 1 each".into());
    }
    let room = model.llama.config().context;
    if context.saturating_add(scored) > room {
        let found = context.saturating_add(scored);
        return Err(format!(
            "--context and --scored: found {found} together, expected at most the model's {room}"
        )
        .into());
    }
    let mut tokens = Vec::new();
    for file in files {
        tokens.extend(model.tokenizer.encode(&text::read(file)?)?);
    }
    let first: Vec<u32> = model.tokenizer.first().into_iter().collect();
    // The token before the first scored one is the contender's own.
    let length = context + scored + 1 - first.len();
    let needed = length.saturating_mul(passages);
    if tokens.len() < needed {
        let found = tokens.len();
        return Err(format!(
            "--text: found {found} tokens, expected {needed} for {passages} passages of {context} + {scored} + 1"
        )
        .into());
    }
    let passage = |(index, tokens): (usize, &[u32])| {
        let tokens = [first.as_slice(), tokens].concat();
        let (context, tail) = tokens.split_at(context);
        Work::Passage {
            name: format!("passage {}", index + 1),
            context: context.to_vec(),
            tail: tail.to_vec(),
        }
    };
    Ok(tokens.chunks_exact(length).take(passages).enumerate().map(passage).collect())
}

/// An item in tokens, the middle of its prompt left out where it is longer than `limit`; and whether it was.
fn question(
    model: &Model,
    item: &Item,
    limit: Option<usize>,
    score: fn(&str, &[String]) -> f64,
) -> Result<(Work, bool), Failure> {
    let first: Vec<u32> = model.tokenizer.first().into_iter().collect();
    let room = model.llama.config().context.saturating_sub(item.most_tokens + first.len());
    let limit = limit.map_or(room, |limit| limit.saturating_sub(first.len())).min(room);
    let (context, question) =
        (model.tokenizer.encode(&item.context)?, model.tokenizer.encode(&item.question)?);
    if question.len() >= limit / 2 {
        return Err(format!(
            "{}: found a question of {} tokens, expected fewer than half of the {limit} of a prompt",
            item.name,
            question.len()
        )
        .into());
    }
    let all = [context, question.clone()].concat();
    let whole = longbench::truncate_middle(&all, limit);
    let context = [first.as_slice(), &whole[..whole.len() - question.len()]].concat();
    let (name, answers, most_tokens) = (item.name.clone(), item.answers.clone(), item.most_tokens);
    let work = Work::Question { name, context, question, answers, most_tokens, score };
    Ok((work, whole.len() < all.len()))
}

impl Common {
    fn selection(&self, heavy_size: usize, heads: HeadMode) -> Result<Selection, Failure> {
        Ok(Selection {
            heavy_size: HeavySize::count(heavy_size)?,
            group_factor: GroupFactor::new(self.group_factor)?,
            label_bits: LabelBits::new(self.label_bits)?,
            heads,
            dense_fallback: false,
        })
    }

    /// The items as messages of a chat, where that is asked for.
    fn in_chat(&self, model: &Model, items: Vec<Item>) -> Result<Vec<Item>, Failure> {
        if !self.chat {
            return Ok(items);
        }
        let (before, after) = model.tokenizer.chat()?;
        let item = |item: Item| Item {
            context: format!("{before}{}", item.context),
            question: format!("{}{after}", item.question),
            ..item
        };
        Ok(items.into_iter().map(item).collect())
    }

    /// Everyone who selects. Notes say who was left out.
    fn contenders(&self, model: &Model, notes: &mut Vec<String>) -> Result<Vec<Contender>, Failure> {
        let sizes = &self.heavy_size;
        let fault_sizes = if self.fault_heavy_size.is_empty() { sizes } else { &self.fault_heavy_size };
        let channels = Arc::new(ChannelFile::read(&self.channels)?);
        let shared = match &self.shared_channels {
            Some(path) => Some(Arc::new(ChannelFile::read(path)?)),
            None => None,
        };
        let mut contenders = vec![self.contender("dense", "torch", None, Selector::Dense)];
        for (name, stage) in
            [("oracle", Stage::Oracle as fn(HeavySize) -> Stage), ("random keys", Stage::Random)]
        {
            for &size in sizes {
                contenders.push(self.contender(
                    name,
                    "torch",
                    Some(size),
                    Selector::Maskers(vec![stage(HeavySize::count(size)?)]),
                ));
            }
        }
        for &heads in &self.heads {
            let file = match heads {
                HeadMode::SummedLabels => shared.as_ref(),
                _ => Some(&channels),
            };
            let Some(file) = file else {
                notes.push("left out: summed-labels, which needs --shared-channels".into());
                continue;
            };
            for &size in sizes {
                let instance = self.instance(self.selection(size, heads)?, file);
                let (subject, selector) = self.selector(instance)?;
                contenders.push(self.labelled(heads.name(), &subject, size, selector));
            }
        }
        let names: Vec<_> = self.fault.iter().filter(|name| *name != "none").cloned().collect();
        for fault in subject::faults(&names, "--fault")? {
            for &size in fault_sizes {
                let instance = self.instance(self.selection(size, HeadMode::PerHead)?, &channels);
                let selector = Selector::Subject(Box::new(instance), Box::new(Faulty::new(&[fault])));
                contenders.push(self.labelled(&fault_name(fault), "reference", size, selector));
            }
        }
        for path in &self.config {
            contenders.push(self.configured(path, notes)?);
        }
        let names = |contender: &Contender| (contender.masker.clone(), contender.heavy_size);
        let mut seen = std::collections::BTreeSet::new();
        if let Some(twice) = contenders.iter().find(|contender| !seen.insert(names(contender))) {
            return Err(format!(
                "contenders: found {} twice, expected names and heavy sizes once each",
                twice.masker
            )
            .into());
        }
        let layers = model.llama.config().layers;
        if let Some(layer) = self.dense_layers.iter().find(|&&layer| layer >= layers) {
            return Err(format!(
                "--dense-layers: found {layer}, expected below the {layers} layers of the model"
            )
            .into());
        }
        Ok(contenders)
    }

    fn instance(&self, selection: Selection, file: &Arc<ChannelFile>) -> Instance {
        Instance {
            selection,
            earlier_maskers: Vec::new(),
            dense_layers: self.dense_layers.clone(),
            channel_selection: self.kind,
            channel_file: file.clone(),
        }
    }

    /// Who does Double Sparsity.
    fn selector(&self, instance: Instance) -> Result<(String, Selector), Failure> {
        let subject: Box<dyn Subject> = match (&self.command, self.subject) {
            (Some(command), _) => {
                let timeout =
                    Duration::try_from_secs_f64(self.timeout).ok().filter(|timeout| !timeout.is_zero());
                let timeout = timeout
                    .ok_or_else(|| format!("--timeout: found {}, expected seconds above 0", self.timeout))?;
                subject::end_with_this_process()?;
                Box::new(Process::start(command, timeout)?)
            }
            (None, By::Torch) => return Ok(("torch".into(), Selector::of_instance(&instance))),
            (None, By::Reference) => Box::new(Reference::default()),
            (None, By::Engine) => Box::new(Engine::default()),
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

    fn labelled(&self, name: &str, subject: &str, size: usize, selector: Selector) -> Contender {
        Contender {
            group_factor: Some(self.group_factor as usize),
            label_bits: Some(self.label_bits as u8),
            ..self.contender(name, subject, Some(size), selector)
        }
    }

    /// A list of maskers of a configuration file, under the file's name.
    fn configured(&self, path: &Path, notes: &mut Vec<String>) -> Result<Contender, Failure> {
        let text =
            std::fs::read_to_string(path).map_err(|error| format!("--config {}: {error}", path.display()))?;
        let config = AttentionConfig::from_json(&text)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let stage = |masker: &MaskerConfig| -> Result<Stage, Failure> {
            Ok(match masker {
                MaskerConfig::Sink(sink) => Stage::Sink(sink.size),
                MaskerConfig::Local(local) => Stage::Local(local.size),
                MaskerConfig::Oracle(oracle) => Stage::Oracle(oracle.heavy_size),
                MaskerConfig::DoubleSparsity(config) => {
                    let file = ChannelFile::read(&folder.join(&config.sorted_channel_file))?;
                    Stage::DoubleSparsity(config.selection(), Arc::new(file), config.channel_selection)
                }
            })
        };
        let stages: Vec<Stage> = config.maskers.iter().map(stage).collect::<Result<_, _>>()?;
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
            notes.push(format!("{name}: dense layers {:?} besides", config.dense_layers));
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

    /// `qk_proj of channels.json, shared.json for summed-labels`
    fn channel_names(&self) -> String {
        let own = format!("{} of {}", self.kind.name(), file_name(&self.channels));
        match &self.shared_channels {
            None => own,
            Some(path) => format!("{own}, {} for summed-labels", file_name(path)),
        }
    }

    /// What decides outcomes besides who selects.
    fn progress(&self, model: &Model, setup: Setup, work: &[Work]) -> Result<Progress, Failure> {
        let Some(folder) = &self.out else { return Ok(Progress::unwritten()) };
        std::fs::create_dir_all(folder).map_err(|error| format!("--out {}: {error}", folder.display()))?;
        let settings = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": model.sha256,
            "setup": setup,
            "device": format!("{:?}", self.device),
            "work": Work::fingerprint(work),
        });
        Ok(Progress::open(&folder.join("progress.jsonl"), &settings)?)
    }

    fn tell(&self, found: &Evaluation) -> Result<(), Failure> {
        if let Some(folder) = &self.out {
            write(&folder.join("evaluation.json"), &(serde_json::to_string_pretty(found)? + "\n"))?;
            write(&folder.join("plot.svg"), &(evaluation::plot(found).into_string() + "\n"))?;
            write(&folder.join("report.html"), &html::evaluation(found))?;
        }
        print(&told(found, !self.no_times, self.recall))
    }
}

/// The report as text, with heat maps where asked for.
fn told(found: &Evaluation, times: bool, recall: bool) -> String {
    let mut text = evaluation::render(found, times);
    if recall {
        found.rows.iter().for_each(|row| text += &evaluation::heat_map(row));
    }
    text
}

/// `first-layers-channels (D4)`
fn fault_name(fault: &Fault) -> String {
    if fault.row.starts_with('D') { format!("{} ({})", fault.name, fault.row) } else { fault.name.into() }
}
