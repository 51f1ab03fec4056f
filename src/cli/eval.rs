//! `doublecheck eval perplexity|qa|passkey|key-value --model FILE --channels FILE …` (feature torch)

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tch::Kind;

use super::{Failure, print, subject, write};
use crate::algorithm::{ChannelKind, GroupFactor, HeadMode, LabelBits};
use crate::evaluation::contenders::{ContenderSettings, Implementation};
use crate::evaluation::joined::joined;
use crate::evaluation::progress::Progress;
use crate::evaluation::results::{Evaluation, Setup};
use crate::evaluation::run::evaluate;
use crate::evaluation::steps::StepFault;
use crate::evaluation::work::{self, Workload};
use crate::model::Model;
use crate::reports::{evaluation, html, quoted};
use crate::runner::check::Shard;
use crate::torch::{DeviceChoice, device};

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Task(Box<Task>),
    /// Print a finished evaluation again, from the evaluation.json of its folder
    Show {
        /// evaluation.json; several of one model are joined: shares of one evaluation, other texts, or both
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Print heat maps of recall too
        #[arg(long)]
        recall: bool,
        /// Leave times out of the text
        #[arg(long)]
        no_times: bool,
        /// Write evaluation.json, of several the joined one
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
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
        /// How many passages
        #[arg(long, default_value_t = 2)]
        passages: usize,
        #[command(flatten)]
        common: Common,
    },
    /// Question answering on files in LongBench's format, scored by token-level F1
    Qa {
        /// JSON lines: input, context, answers, all_classes, length, dataset
        #[arg(long, required = true, num_args = 1..)]
        data: Vec<PathBuf>,
        /// Longest prompt in tokens; the middle of longer ones is left out [default: what the model was made for]
        #[arg(long)]
        limit: Option<usize>,
        /// Only the first N items of each file
        #[arg(long, value_name = "N")]
        items: Option<usize>,
        #[command(flatten)]
        common: Common,
    },
    /// Finding a number in filler sentences, at depths from first to last; prompts are generated
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
    /// Finding one of many numbers by its name; prompts are generated
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
    /// Values of H, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "16,64,256,1024")]
    heavy_size: Vec<usize>,
    /// Values of G, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "4")]
    group_factor: Vec<u64>,
    /// Values of B, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "4")]
    label_bits: Vec<u64>,
    /// Head modes of Double Sparsity
    #[arg(long, value_delimiter = ',', default_value = "per-head,summed-scores,summed-labels")]
    heads: Vec<HeadMode>,
    /// Deliberate faults: names or rows of SPEC §3, next-row-overwritten or newest-key-held-out, one contender each; "none" for
    /// none
    #[arg(long, value_delimiter = ',', default_value = "D4,next-layers-channels,least-important-channels")]
    fault: Vec<String>,
    /// Heavy sizes at which faults are tried [default: those of --heavy-size]
    #[arg(long, value_delimiter = ',')]
    fault_heavy_size: Vec<usize>,
    /// Measure one of several shares of the settings, 3/16 for the third of 16, beside dense attention; see `show`
    #[arg(long, value_name = "K/N", default_value_t = Shard::WHOLE, hide_default_value = true)]
    shard: Shard,
    /// Configuration files: lists of maskers, one contender each
    #[arg(long)]
    config: Vec<PathBuf>,
    /// Layers that stay dense, such as 0,1 (SPEC D5)
    #[arg(long, value_delimiter = ',')]
    dense_layers: Vec<usize>,
    /// Which part of a prompt is attended to sparsely (SPEC D15); perplexity is the same in both
    #[arg(long, value_enum, default_value_t = SetupName::Context)]
    setup: SetupName,
    /// Which implementation of this project selects
    #[arg(long, value_enum, default_value_t = By::Torch)]
    subject: By,
    /// A command that selects, asked over the process protocol (docs/PROTOCOL.md); run by sh
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
    /// Put each prompt into the chat template of the model's file, as instruction-tuned models expect
    #[arg(long)]
    chat: bool,
    /// Folder for evaluation.json, plot.svg, report.html and the progress from which an interrupted run resumes
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print where each selection loses what exact top-k keeps, by layer and head
    #[arg(long)]
    recall: bool,
    /// Leave times out of the text
    #[arg(long)]
    no_times: bool,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let task = match &arguments.command {
        Command::Task(task) => task,
        Command::Show { files, recall, no_times, json, svg, html } => {
            let parts: Vec<Evaluation> = files.iter().map(|file| read(file)).collect::<Result<_, _>>()?;
            let found = joined(&parts).map_err(|error| error.to_string())?;
            if let Some(path) = json {
                write(path, &(serde_json::to_string_pretty(&found)? + "\n"))?;
            }
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
    let model = Model::read(&common.model, device::open(common.device)?, Kind::Float)?;
    let workload = task.workload(&model)?;
    let mut contenders = common.settings()?.contenders(model.llama.config().layers)?;
    let mut index = 0;
    contenders.list.retain(|contender| {
        let dense = contender.heavy_size.is_none() && contender.masker == "dense";
        index += usize::from(!dense);
        dense || common.shard.holds(index - 1)
    });
    let setup = workload.setup(match common.setup {
        SetupName::Prompt => Setup::Prompt,
        SetupName::Context => Setup::Context,
    });
    let mut progress = match &common.out {
        Some(folder) => Progress::in_folder(folder, &model, setup, &workload.pieces)?,
        None => Progress::unwritten(),
    };
    let steps = workload.pieces.len() * contenders.list.len();
    let bar = ProgressBar::new(steps as u64).with_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} {elapsed} of about {duration} {wide_msg}",
    )?);
    let mut tick = |step: &str| {
        bar.set_message(step.to_owned());
        bar.inc(1);
    };
    let found = evaluate(&model, &workload, setup, &mut contenders, &mut progress, &mut tick)?;
    bar.finish_and_clear();
    let command =
        std::env::args_os().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ");
    common.tell(&Evaluation { command, ..found })?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Evaluation, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut json = serde_json::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(&mut json)
        .map_err(|error| format!("{}: {error}, expected what eval --out writes", path.display()).into())
}

impl Task {
    /// What the model is given, and how it is scored.
    fn workload(&self, model: &Model) -> work::Result<Workload> {
        match self {
            Self::Perplexity { text, context, scored, passages, .. } => {
                Workload::perplexity(model, text, *context, *scored, *passages)
            }
            Self::Qa { data, limit, items, common } => {
                Workload::questions(model, data, *limit, *items, common.chat)
            }
            Self::Passkey { sentences, items, common } => {
                Workload::pass_keys(model, *sentences, *items, common.seed, common.chat)
            }
            Self::KeyValue { pairs, items, common } => {
                Workload::values(model, *pairs, *items, common.seed, common.chat)
            }
        }
    }
}

impl Common {
    fn settings(&self) -> Result<ContenderSettings, Failure> {
        let named = self.fault.iter().filter(|name| *name != "none");
        let (of_steps, faults): (Vec<_>, Vec<_>) =
            named.cloned().partition(|name| StepFault::find(name).is_some());
        let fault_heavy_sizes = match self.fault_heavy_size.as_slice() {
            [] => &self.heavy_size,
            sizes => sizes,
        };
        Ok(ContenderSettings {
            channels: self.channels.clone(),
            shared_channels: self.shared_channels.clone(),
            kind: self.kind,
            heavy_sizes: self.heavy_size.clone(),
            group_factors: self
                .group_factor
                .iter()
                .map(|&factor| GroupFactor::new(factor))
                .collect::<Result<_, _>>()?,
            label_bits: self.label_bits.iter().map(|&bits| LabelBits::new(bits)).collect::<Result<_, _>>()?,
            heads: self.heads.clone(),
            faults: subject::faults(&faults, "--fault")?,
            step_faults: of_steps.iter().filter_map(|name| StepFault::find(name)).collect(),
            fault_heavy_sizes: fault_heavy_sizes.to_vec(),
            configurations: self.config.clone(),
            dense_layers: self.dense_layers.clone(),
            implementation: self.implementation()?,
        })
    }

    fn implementation(&self) -> Result<Implementation, Failure> {
        let Some(command) = &self.command else {
            return Ok(match self.subject {
                By::Torch => Implementation::Torch,
                By::Reference => Implementation::Reference,
                By::Engine => Implementation::Engine,
            });
        };
        let timeout = Duration::try_from_secs_f64(self.timeout).ok().filter(|timeout| !timeout.is_zero());
        let timeout =
            timeout.ok_or_else(|| format!("--timeout: found {}, expected seconds above 0", self.timeout))?;
        super::interrupts::end_with_this_process()?;
        Ok(Implementation::Command(command.clone(), timeout))
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
