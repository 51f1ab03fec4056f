//! What a model is given: passages of a text and questions, in tokens.

use std::path::{Path, PathBuf};

use super::results::{Measure, Setup};
use super::tasks::{self, Item, longbench, retrieval};
use crate::algorithm::{self, Detail};
use crate::checksum::sha256;
use crate::model::{self, Model, text};
use crate::subjects::process::ProcessError;

/// Why an evaluation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// Items that cannot be used.
    #[error(transparent)]
    Task(#[from] tasks::Error),
    /// Channel files, heavy sizes, configurations.
    #[error(transparent)]
    Algorithm(#[from] algorithm::Error),
    /// A command that cannot be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A setting that cannot be used, by the name of its option where it has one.
    #[error("{0}")]
    Setting(Detail),
    /// What an earlier run has written cannot be used, or nothing can be written.
    #[error("progress: {0}")]
    Progress(Detail),
    /// Settings that leave nothing to do.
    #[error("evaluation: {0}")]
    Nothing(Detail),
}

/// Result of evaluations.
pub type Result<T> = std::result::Result<T, Error>;

pub(super) fn wrong<T>(
    field: impl Into<String>,
    found: impl ToString,
    expected: impl Into<String>,
) -> Result<T> {
    Err(Error::Setting(Detail::new(field, found.to_string(), expected)))
}

/// One piece of work.
#[derive(Debug, Clone)]
pub enum Work {
    /// Tokens of a text.
    Passage {
        /// Display name.
        name: String,
        /// Prefilled densely.
        context: Vec<u32>,
        /// Given to each contender: every token but the first is scored, by the query of the one before it.
        tail: Vec<u32>,
    },
    /// A question.
    Question {
        /// Display name.
        name: String,
        /// Prefilled densely.
        context: Vec<u32>,
        /// Prefilled densely in set-up A, given to each contender in B.
        question: Vec<u32>,
        /// Right answers.
        answers: Vec<String>,
        /// How many tokens may be generated.
        most_tokens: usize,
        /// Scores an answer by the right ones, in percent.
        score: fn(&str, &[String]) -> f64,
    },
}

impl Work {
    /// Its display name.
    pub fn name(&self) -> &str {
        match self {
            Self::Passage { name, .. } | Self::Question { name, .. } => name,
        }
    }

    /// Whether there is nothing to prefill, or nothing to score.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Passage { context, tail, .. } => context.is_empty() || tail.len() < 2,
            Self::Question { context, question, most_tokens, .. } => {
                context.is_empty() || question.is_empty() || *most_tokens == 0
            }
        }
    }

    /// SHA-256 of what is asked, in tokens, and of the answers.
    pub fn fingerprint(work: &[Self]) -> String {
        let asked = work.iter().map(|piece| match piece {
            Self::Passage { name, context, tail } => format!("{name:?} {context:?} {tail:?}"),
            Self::Question { name, context, question, answers, most_tokens, .. } => {
                format!("{name:?} {context:?} {question:?} {answers:?} {most_tokens}")
            }
        });
        sha256(asked.collect::<Vec<_>>().join("\n").as_bytes())
    }

    /// Tokens of its prompt.
    fn prompt_tokens(&self) -> usize {
        match self {
            Self::Passage { context, .. } => context.len(),
            Self::Question { context, question, .. } => context.len() + question.len(),
        }
    }

    /// An item in tokens, the middle of its prompt left out where it is longer than `limit` or than the model's context; and
    /// whether it was.
    ///
    /// Errors: [`Error::Setting`] for a question as long as half a prompt; those of the tokenizer.
    fn of_item(
        model: &Model,
        item: &Item,
        limit: Option<usize>,
        score: fn(&str, &[String]) -> f64,
    ) -> Result<(Self, bool)> {
        let first: Vec<u32> = model.tokenizer.first().into_iter().collect();
        let room = model.llama.config().context.saturating_sub(item.most_tokens + first.len());
        let limit = limit.map_or(room, |limit| limit.saturating_sub(first.len())).min(room);
        let (context, question) =
            (model.tokenizer.encode(&item.context)?, model.tokenizer.encode(&item.question)?);
        if question.len() >= limit / 2 {
            let found = format!("a question of {} tokens", question.len());
            return wrong(&item.name, found, format!("fewer than half of the {limit} of a prompt"));
        }
        let all = [context, question.clone()].concat();
        let whole = longbench::truncate_middle(&all, limit);
        let context = [first.as_slice(), &whole[..whole.len() - question.len()]].concat();
        let (name, answers, most_tokens) = (item.name.clone(), item.answers.clone(), item.most_tokens);
        let work = Self::Question { name, context, question, answers, most_tokens, score };
        Ok((work, whole.len() < all.len()))
    }
}

/// All work of an evaluation, and how it is scored.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The pieces, in order.
    pub pieces: Vec<Work>,
    /// What is measured.
    pub measure: Measure,
    /// One line that says what the model is asked.
    pub task: String,
    /// What a reader should know about it.
    pub notes: Vec<String>,
}

impl Workload {
    /// Perplexity of `scored` tokens after `context` of them, in passages of a text, one after the other from its beginning on.
    ///
    /// Errors: [`Error::Setting`] for sizes of 0, beyond the model's context, or beyond the text; those of the texts.
    pub fn perplexity(
        model: &Model,
        files: &[PathBuf],
        context: usize,
        scored: usize,
        passages: usize,
    ) -> Result<Self> {
        if context == 0 || scored == 0 || passages == 0 {
            return wrong("--context, --scored, --passages", 0, "at least 1 each");
        }
        let (room, together) = (model.llama.config().context, context.saturating_add(scored));
        if together > room {
            let expected = format!("at most the model's {room}");
            return wrong("--context and --scored", format!("{together} together"), expected);
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
            let expected = format!("{needed} for {passages} passages of {context} + {scored} + 1");
            return wrong("--text", format!("{} tokens", tokens.len()), expected);
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
        Ok(Self {
            pieces: tokens.chunks_exact(length).take(passages).enumerate().map(passage).collect(),
            measure: Measure::Perplexity,
            task: format!(
                "perplexity of {scored} tokens after {context} of context, {passages} passages of {}",
                file_names(files)
            ),
            notes: Vec::new(),
        })
    }

    /// Questions of files in LongBench's format, the first `items` of each, as messages of a chat where `chat`; token-level F1.
    /// The middle of prompts longer than `limit` tokens is left out.
    ///
    /// Errors: those of the files and of the tokenizer; [`Error::Setting`] for a question as long as half a prompt.
    pub fn questions(
        model: &Model,
        files: &[PathBuf],
        limit: Option<usize>,
        items: Option<usize>,
        chat: bool,
    ) -> Result<Self> {
        let mut all = Vec::new();
        for path in files {
            let records = longbench::read(path)?;
            let most = items.unwrap_or(records.len());
            for (number, record) in records.iter().enumerate().take(most) {
                all.push(record.item(number)?);
            }
        }
        let task = format!("answers to {} questions of {}", all.len(), file_names(files));
        let all = in_chat(model, all, chat)?;
        let made = all.iter().map(|item| Work::of_item(model, item, limit, longbench::f1));
        let (pieces, cut): (Vec<_>, Vec<_>) = made.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let mut notes = Vec::new();
        let cut = cut.into_iter().filter(|cut| *cut).count();
        if cut > 0 {
            notes.push(format!(
                "{cut} of {} prompts were too long and had their middle left out",
                pieces.len()
            ));
        }
        Ok(Self { pieces, measure: Measure::F1, task, notes })
    }

    /// Pass keys hidden in filler sentences at depths from first to last, as messages of a chat where `chat`; accuracy.
    ///
    /// Errors: those of [`retrieval::passkey`] and of the tokenizer; [`Error::Setting`] for prompts that are too long.
    pub fn pass_keys(model: &Model, sentences: usize, items: usize, seed: u64, chat: bool) -> Result<Self> {
        let depth = |item: usize| item as f64 / items.saturating_sub(1).max(1) as f64;
        let made =
            (0..items).map(|item| retrieval::passkey(seed.wrapping_add(item as u64), sentences, depth(item)));
        let task = format!("{items} pass keys, each in {sentences} filler sentences");
        Self::retrieval(model, in_chat(model, made.collect::<tasks::Result<_>>()?, chat)?, task)
    }

    /// Numbers among `pairs` of names and numbers, as messages of a chat where `chat`; accuracy.
    ///
    /// Errors: those of [`retrieval::key_value`] and of the tokenizer; [`Error::Setting`] for prompts that are too long.
    pub fn values(model: &Model, pairs: usize, items: usize, seed: u64, chat: bool) -> Result<Self> {
        let made = (0..items).map(|item| retrieval::key_value(seed.wrapping_add(item as u64), pairs));
        let task = format!("{items} values, each among {pairs} pairs");
        Self::retrieval(model, in_chat(model, made.collect::<tasks::Result<_>>()?, chat)?, task)
    }

    /// Generated items; none of them may be cut.
    fn retrieval(model: &Model, items: Vec<Item>, task: String) -> Result<Self> {
        let score = |prediction: &str, answers: &[String]| {
            if retrieval::right(prediction, answers) { 100.0 } else { 0.0 }
        };
        let made = items.iter().map(|item| Work::of_item(model, item, None, score));
        let (pieces, cut): (Vec<_>, Vec<_>) = made.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        if cut.contains(&true) {
            let found = format!("prompts longer than the model's {} tokens", model.llama.config().context);
            return wrong(task, found, "shorter ones");
        }
        let longest = pieces.iter().map(Work::prompt_tokens).max().unwrap_or(0);
        let task = format!("{task}, up to {longest} tokens");
        Ok(Self { pieces, measure: Measure::Accuracy, task, notes: Vec::new() })
    }

    /// Which part is sparse where `asked` is: for a perplexity nothing is generated, so that what follows the context is sparse.
    pub fn setup(&self, asked: Setup) -> Setup {
        if self.measure == Measure::Perplexity { Setup::Context } else { asked }
    }
}

/// The items as messages of a chat, where that is asked for.
fn in_chat(model: &Model, items: Vec<Item>, chat: bool) -> Result<Vec<Item>> {
    if !chat {
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

/// The last part of a path.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn file_names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| file_name(path)).collect::<Vec<_>>().join(", ")
}
