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
use sha2::{Digest, Sha256};
use tch::Kind;

use super::{Failure, print, subject, write};

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    task: Task,
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
    let common = match &arguments.task {
        Task::Perplexity { common, .. }
        | Task::Qa { common, .. }
        | Task::Passkey { common, .. }
        | Task::KeyValue { common, .. } => common,
        Task::Show { file, recall, no_times, svg, html } => {
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
    let device = device::open(common.device)?;
    let model = Model::read(&common.model, device, Kind::Float)?;
    let (work, measure, task) = arguments.task.work(&model, common)?;
    let mut contenders = common.contenders(&model)?;
    let setup = match common.setup {
        SetupName::Prompt => Setup::Prompt,
        SetupName::Context => Setup::Context,
    };
    let mut progress = common.progress(&model, &contenders, &task, &work)?;
    let resumed = progress.len();
    let bar = ProgressBar::new((work.len() * contenders.len()) as u64).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} of about {duration} {wide_msg}")?,
    );
    let mut tick = |step: &str| {
        bar.set_message(step.to_owned());
        bar.inc(1);
    };
    run::run(&model, &work, setup, &mut contenders, &mut progress, &mut tick)?;
    bar.finish_and_clear();
    let (rows, mut notes) = run::rows(&model, measure, work.len(), &contenders, &progress)?;
    if resumed > 0 {
        notes.push(format!("{resumed} of {} steps were done by an earlier run", progress.len()));
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
        device: device::describe(device),
        channels: format!("{} of {}", common.kind.name(), file_name(&common.channels)),
        task,
        measure,
        setup,
        dense_layers: common.dense_layers.clone(),
        rows,
        notes,
        command: std::env::args().map(|word| quoted(&word)).collect::<Vec<_>>().join(" "),
        seconds: progress.seconds(),
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

impl Task {
    /// What the model is given, how it is scored, and one line that says so.
    fn work(&self, model: &Model, common: &Common) -> Result<(Vec<Work>, Measure, String), Failure> {
        match self {
            Self::Perplexity { text, context, scored, passages, .. } => {
                let names: Vec<_> = text.iter().map(|path| file_name(path)).collect();
                let task = format!(
                    "perplexity of {scored} tokens after {context} of context, {passages} passages of {}",
                    names.join(", ")
                );
                Ok((passages_of(model, text, [*context, *scored, *passages])?, Measure::Perplexity, task))
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
                let work = all.iter().map(|item| question(model, item, *limit, longbench::f1));
                Ok((work.collect::<Result<_, _>>()?, Measure::F1, task))
            }
            Self::Passkey { sentences, items, .. } => {
                let depth = |item: usize| item as f64 / (*items - 1).max(1) as f64;
                let made = (0..*items)
                    .map(|item| retrieval::passkey(common.seed + item as u64, *sentences, depth(item)));
                let task = format!("{items} pass keys, each in {sentences} filler sentences");
                retrieved(model, made.collect::<Result<_, _>>()?, task)
            }
            Self::KeyValue { pairs, items, .. } => {
                let made = (0..*items).map(|item| retrieval::key_value(common.seed + item as u64, *pairs));
                let task = format!("{items} values, each among {pairs} pairs");
                retrieved(model, made.collect::<Result<_, _>>()?, task)
            }
            Self::Show { .. } => Err("eval show: found no work, expected a task".into()),
        }
    }
}

fn retrieved(model: &Model, items: Vec<Item>, task: String) -> Result<(Vec<Work>, Measure, String), Failure> {
    let score = |prediction: &str, answers: &[String]| {
        if retrieval::right(prediction, answers) { 100.0 } else { 0.0 }
    };
    let work: Vec<_> =
        items.iter().map(|item| question(model, item, None, score)).collect::<Result<_, _>>()?;
    let lengths = work.iter().map(|piece| match piece {
        Work::Question { context, question, .. } => context.len() + question.len(),
        Work::Passage { .. } => 0,
    });
    let longest = lengths.max().unwrap_or(0);
    Ok((work, Measure::Accuracy, format!("{task}, up to {longest} tokens")))
}

/// Passages of a text, each of context and scored tokens, one after the other.
fn passages_of(model: &Model, files: &[PathBuf], sizes: [usize; 3]) -> Result<Vec<Work>, Failure> {
    let [context, scored, passages] = sizes;
    if context == 0 || scored == 0 || passages == 0 {
        return Err("--context, --scored, --passages: found 0, expected at least 1 each".into());
    }
    let mut tokens = Vec::new();
    for file in files {
        tokens.extend(model.tokenizer.encode(&text::read(file)?)?);
    }
    let first: Vec<u32> = model.tokenizer.first().into_iter().collect();
    // The token before the first scored one is the contender's own.
    let length = context + scored + 1 - first.len();
    if tokens.len() < length * passages {
        return Err(format!(
            "--text: found {} tokens, expected {} for {passages} passages of {context} + {scored} + 1",
            tokens.len(),
            length * passages
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

/// An item in tokens, the middle of its prompt left out where it is longer than `limit`.
fn question(
    model: &Model,
    item: &Item,
    limit: Option<usize>,
    score: fn(&str, &[String]) -> f64,
) -> Result<Work, Failure> {
    let first: Vec<u32> = model.tokenizer.first().into_iter().collect();
    let room = model.llama.config().context.saturating_sub(item.most_tokens + first.len());
    let limit = limit.unwrap_or(room).min(room);
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
    let whole = longbench::truncate_middle(&[context, question.clone()].concat(), limit);
    let context = [first.as_slice(), &whole[..whole.len() - question.len()]].concat();
    Ok(Work::Question {
        name: item.name.clone(),
        context,
        question,
        answers: item.answers.clone(),
        most_tokens: item.most_tokens,
        score,
    })
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

    fn contenders(&self, model: &Model) -> Result<Vec<Contender>, Failure> {
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
                eprintln!("left out: summed-labels, which needs --shared-channels");
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
            contenders.push(self.configured(path)?);
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
                let timeout = Duration::try_from_secs_f64(self.timeout)
                    .map_err(|_| format!("--timeout: found {}, expected seconds above 0", self.timeout))?;
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
    fn configured(&self, path: &Path) -> Result<Contender, Failure> {
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
        let size = stages.iter().rev().find_map(|stage| match stage {
            Stage::DoubleSparsity(selection, ..) => Some(selection.heavy_size),
            Stage::Oracle(size) | Stage::Random(size) | Stage::Sink(size) | Stage::Local(size) => Some(*size),
        });
        let labels = stages.iter().find_map(|stage| match stage {
            Stage::DoubleSparsity(selection, ..) => Some(*selection),
            _ => None,
        });
        let mut dense_layers = self.dense_layers.clone();
        dense_layers.extend(config.dense_layers);
        Ok(Contender {
            masker: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
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

    /// Everything that decides the outcomes, but for who is asked how often.
    fn progress(
        &self,
        model: &Model,
        contenders: &[Contender],
        task: &str,
        work: &[Work],
    ) -> Result<Progress, Failure> {
        let Some(folder) = &self.out else { return Ok(Progress::unwritten()) };
        std::fs::create_dir_all(folder).map_err(|error| format!("--out {}: {error}", folder.display()))?;
        let hex = |bytes: &[u8]| -> String {
            Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let digest = |path: &Path| -> Result<String, Failure> {
            let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(hex(&bytes))
        };
        let tokens = serde_json::to_vec(&work.iter().map(Work::tokens).collect::<Vec<_>>())?;
        let settings = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": model.sha256,
            "channels": digest(&self.channels)?,
            "shared_channels": self.shared_channels.as_deref().map(digest).transpose()?,
            "kind": self.kind.name(),
            "group_factor": self.group_factor,
            "label_bits": self.label_bits,
            "dense_layers": self.dense_layers,
            "prompt_dense": self.setup == SetupName::Prompt,
            "device": format!("{:?}", self.device),
            "seed": self.seed,
            "task": task,
            "tokens": hex(&tokens),
            "subjects": contenders.iter().map(|contender| contender.subject.clone()).collect::<Vec<_>>(),
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
