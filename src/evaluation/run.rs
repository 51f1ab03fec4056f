//! The evaluation itself: each passage or item is prefilled once with dense attention, and then continued with every contender from
//! there. What is done is written down step by step, so that a run that was cut off goes on where it stopped.
//!
//! Perplexity gives a contender the queries of many tokens in one call; since nothing later is attended to, that is what decode
//! steps would give, but for settings that depend on n (heavy sizes as fractions, SPEC D3).

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::attention::Sparse;
use super::bootstrap;
use super::recall::RecallSums;
use super::results::{Measure, Row, Setup, Unit};
use super::tasks;
use crate::algorithm::Detail;
use crate::cases::bundled::sha256;
use crate::model::llama::{Cache, Dense};
use crate::model::{self, Llama, Model};

/// Why an evaluation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// Items that cannot be used.
    #[error(transparent)]
    Task(#[from] tasks::Error),
    /// What an earlier run has written cannot be used, or nothing can be written.
    #[error("progress: {0}")]
    Progress(Detail),
    /// Text that is too short, or settings that leave nothing to do.
    #[error("evaluation: {0}")]
    Nothing(Detail),
}

type Result<T> = std::result::Result<T, Error>;

/// Tokens of a dense forward call.
const PREFILL: usize = 512;
/// Scored tokens that make one unit of the bootstrap.
const BLOCK: usize = 32;

/// Someone who selects keys, by name.
pub struct Contender {
    /// The row's name, see [`Row::masker`].
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
    /// SHA-256 of its settings, maskers and channels. Of a command nothing but its own name is known.
    pub fn fingerprint(&self) -> String {
        let known = format!("{} {:?} {}", self.masker, self.heavy_size, self.sparse.describe());
        sha256(known.as_bytes())
    }

    fn name(&self) -> String {
        let size = self.heavy_size.map_or(String::new(), |size| format!(" H {size}"));
        format!("{}{size}", self.masker)
    }
}

/// What the model is given.
#[derive(Debug, Clone)]
pub enum Work {
    /// Tokens of a text.
    Passage {
        /// For people.
        name: String,
        /// Prefilled densely.
        context: Vec<u32>,
        /// Given to each contender: every token but the first is scored, by the query of the one before it.
        tail: Vec<u32>,
    },
    /// A question.
    Question {
        /// For people.
        name: String,
        /// Prefilled densely.
        context: Vec<u32>,
        /// Prefilled densely in set-up A, given to each contender in B.
        question: Vec<u32>,
        /// Right answers.
        answers: Vec<String>,
        /// How many tokens may be generated.
        most_tokens: usize,
        /// In percent.
        score: fn(&str, &[String]) -> f64,
    },
}

/// What one contender made of one piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Index of the work.
    pub work: usize,
    /// SHA-256 of everything that is known of the contender ([`Contender::fingerprint`]).
    pub contender: String,
    /// For people: its name and H.
    pub name: String,
    /// Empty where it failed.
    pub units: Vec<Unit>,
    /// Why it failed.
    pub failed: Option<String>,
    /// What was generated.
    pub answer: Option<String>,
    /// Keys attended to, keys there were, and rows.
    pub tally: (f64, f64, f64),
    /// What was kept of exact top-k.
    pub recall: RecallSums,
    /// Wall-clock time, without prefilling.
    pub seconds: f64,
}

/// What was done before and is done now, a line of JSON each, below a line with the settings.
#[derive(Debug)]
pub struct Progress {
    done: Vec<Outcome>,
    file: Option<File>,
}

impl Progress {
    /// Kept in memory only.
    pub fn unwritten() -> Self {
        Self { done: Vec::new(), file: None }
    }

    /// Kept in a file; what an earlier run with the same settings has written there is taken over. A last line that was cut off,
    /// and what failed, is done again.
    ///
    /// Errors: [`Error::Progress`] for other settings and for files that cannot be read or written.
    pub fn open(path: &Path, settings: &Value) -> Result<Self> {
        let name = path.display().to_string();
        let wrong =
            |found: String, expected: &str| Error::Progress(Detail::new(name.clone(), found, expected));
        let bytes = if path.exists() {
            std::fs::read(path).map_err(|error| wrong(error.to_string(), "a readable file"))?
        } else {
            Vec::new()
        };
        // The last character may be cut off, too.
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        if let Some(first) = lines.next()
            && serde_json::from_str::<Value>(first).ok().as_ref() != Some(settings)
        {
            let expected = "those of this run, or another folder for --out";
            return Err(wrong("an evaluation with other settings".into(), expected));
        }
        let whole = lines.map_while(|line| serde_json::from_str::<Outcome>(line).ok());
        let done: Vec<Outcome> = whole.filter(|outcome| outcome.failed.is_none()).collect();
        // Written beside it and put in its place, so that being stopped here loses nothing.
        let fresh = path.with_extension("new");
        let unwritable = |error: std::io::Error| wrong(error.to_string(), "a file that can be written");
        let file = File::create(&fresh).map_err(unwritable)?;
        let mut progress = Self { done: Vec::new(), file: Some(file) };
        progress.write(settings)?;
        done.into_iter().try_for_each(|outcome| progress.save(outcome))?;
        std::fs::rename(&fresh, path).map_err(unwritable)?;
        Ok(progress)
    }

    /// How many of these contenders' outcomes there are.
    pub fn count(&self, contenders: &[Contender]) -> usize {
        let known: Vec<_> = contenders.iter().map(Contender::fingerprint).collect();
        self.done.iter().filter(|outcome| known.contains(&outcome.contender)).count()
    }

    fn has(&self, work: usize, contender: &str) -> bool {
        self.done.iter().any(|outcome| outcome.work == work && outcome.contender == contender)
    }

    fn save(&mut self, outcome: Outcome) -> Result<()> {
        self.write(&outcome)?;
        self.done.push(outcome);
        Ok(())
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let text = serde_json::to_string(line).map_err(std::io::Error::from);
        let written = text.and_then(|text| writeln!(file, "{text}")).and_then(|()| file.flush());
        written.map_err(|error| {
            Error::Progress(Detail::new("progress file", error, "a file that can be written"))
        })
    }
}

/// Does all work with every contender, as far as it is not done yet. `tick` hears what is done next.
///
/// Errors: those of the model; of progress that cannot be written. What a contender fails at is an outcome.
pub fn run(
    model: &Model,
    work: &[Work],
    setup: Setup,
    contenders: &mut [Contender],
    progress: &mut Progress,
    tick: &mut dyn FnMut(&str),
) -> Result<()> {
    if work.is_empty() || work.iter().any(Work::is_empty) {
        return Err(Error::Nothing(Detail::new(
            "work",
            "nothing",
            "at least one passage or item, with a context",
        )));
    }
    let known: Vec<_> = contenders.iter().map(Contender::fingerprint).collect();
    for (index, piece) in work.iter().enumerate() {
        if known.iter().all(|contender| progress.has(index, contender)) {
            contenders.iter().for_each(|_| tick("done before"));
            continue;
        }
        let mut start = Start::new(model, piece, setup)?;
        for (contender, known) in contenders.iter_mut().zip(&known) {
            tick(&format!("{}: {}", piece.name(), contender.name()));
            if !progress.has(index, known) {
                let outcome = start.outcome(model, index, piece, contender)?;
                progress.save(Outcome { contender: known.clone(), ..outcome })?;
            }
        }
    }
    Ok(())
}

impl Work {
    fn name(&self) -> &str {
        match self {
            Self::Passage { name, .. } | Self::Question { name, .. } => name,
        }
    }

    /// Whether there is nothing to prefill, or nothing to score.
    fn is_empty(&self) -> bool {
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
}

/// A cache that holds what every contender starts from.
struct Start {
    cache: Cache,
    prefilled: usize,
    /// Logits of the last prefilled token, [vocabulary]; the first generated token in set-up A comes from them.
    logits: Tensor,
    /// What is given to a contender before it generates.
    given: Vec<u32>,
}

impl Start {
    fn new(model: &Model, piece: &Work, setup: Setup) -> Result<Self> {
        let (dense, given, generated) = match piece {
            // The last token is scored, but asks for nothing.
            Work::Passage { context, tail, .. } => (context.clone(), tail[..tail.len() - 1].to_vec(), 0),
            Work::Question { context, question, most_tokens, .. } => match setup {
                Setup::Prompt => ([context.as_slice(), question].concat(), Vec::new(), *most_tokens),
                Setup::Context => (context.clone(), question.clone(), *most_tokens),
            },
        };
        let llama = &model.llama;
        let mut cache = llama.cache(dense.len() + given.len() + generated)?;
        let mut last = None;
        for part in dense.chunks(PREFILL) {
            last = Some(llama.forward(part, &mut cache, &mut Dense)?);
        }
        let last = last.ok_or_else(|| {
            let expected = "a prompt with a context";
            Error::Nothing(Detail::new(piece.name(), "no token to prefill", expected))
        })?;
        let logits = llama.logits(&last.narrow(0, -1, 1))?;
        Ok(Self { prefilled: dense.len(), logits, cache, given })
    }

    fn outcome(
        &mut self,
        model: &Model,
        index: usize,
        piece: &Work,
        contender: &mut Contender,
    ) -> Result<Outcome> {
        let started = Instant::now();
        self.cache.truncate(self.prefilled);
        let done = contender.sparse.begin(index as i64).and_then(|()| match piece {
            Work::Passage { tail, .. } => {
                Ok((self.likelihoods(&model.llama, tail, &mut contender.sparse)?, None))
            }
            Work::Question { answers, most_tokens, score, .. } => {
                let answer = self.generate(model, *most_tokens, &mut contender.sparse)?;
                Ok((vec![Unit { sum: score(&answer, answers), count: 1.0 }], Some(answer)))
            }
        });
        let (units, answer, failed) = match done {
            Ok((units, answer)) => (units, answer, None),
            Err(error @ (model::Error::Attention { .. } | model::Error::NotFinite(_))) => {
                (Vec::new(), None, Some(error.to_string()))
            }
            Err(error) => return Err(error.into()),
        };
        let tally = contender.sparse.tally();
        Ok(Outcome {
            work: index,
            contender: String::new(),
            name: contender.name(),
            units,
            failed,
            answer,
            tally: (tally.read, tally.held, tally.rows),
            recall: tally.recall.clone(),
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Negative log likelihoods of the tail's tokens after the first, in blocks.
    fn likelihoods(&mut self, llama: &Llama, tail: &[u32], sparse: &mut Sparse) -> model::Result<Vec<Unit>> {
        let wanted = &tail[1..];
        let hidden = llama.forward(&self.given, &mut self.cache, sparse)?;
        let mut units = Vec::new();
        for (block, wanted) in wanted.chunks(BLOCK).enumerate() {
            let hidden = hidden.f_narrow(0, (block * BLOCK) as i64, wanted.len() as i64)?;
            let logits = finite(llama.logits(&hidden)?)?;
            let wanted: Vec<i64> = wanted.iter().map(|&token| i64::from(token)).collect();
            let wanted = Tensor::f_from_slice(&wanted)?.f_to_device(llama.device())?.f_unsqueeze(1)?;
            let likelihoods = logits.f_log_softmax(-1, Kind::Double)?.f_gather(1, &wanted, false)?;
            let sum = -likelihoods.f_sum(Kind::Double)?.f_double_value(&[])?;
            units.push(Unit { sum, count: wanted.size()[0] as f64 });
        }
        Ok(units)
    }

    /// A greedy continuation, up to a control token, such as those that end a text or a turn.
    fn generate(&mut self, model: &Model, most_tokens: usize, sparse: &mut Sparse) -> model::Result<String> {
        let llama = &model.llama;
        let mut logits = match self.given.as_slice() {
            [] => self.logits.shallow_clone(),
            given => {
                let hidden = llama.forward(given, &mut self.cache, sparse)?;
                llama.logits(&hidden.f_narrow(0, -1, 1)?)?
            }
        };
        let mut tokens = Vec::new();
        loop {
            let next = finite(logits)?.f_argmax(-1, false)?.f_int64_value(&[0])? as u32;
            if model.tokenizer.is_control(next) {
                break;
            }
            tokens.push(next);
            if tokens.len() == most_tokens {
                break;
            }
            logits = llama.logits(&llama.forward(&[next], &mut self.cache, sparse)?)?;
        }
        model.tokenizer.decode(&tokens)
    }
}

fn finite(logits: Tensor) -> model::Result<Tensor> {
    if logits.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0 {
        return Ok(logits);
    }
    Err(model::Error::NotFinite(Detail::new("logits", "a NaN or infinity", "finite numbers")))
}

/// The rows of a report, dense attention first, and a note for each contender that failed.
///
/// Errors: [`Error::Nothing`] where dense attention is not among the contenders or some work is not done.
pub fn rows(
    model: &Model,
    measure: Measure,
    work: usize,
    contenders: &[Contender],
    progress: &Progress,
) -> Result<(Vec<Row>, Vec<String>)> {
    let (mut rows, mut notes) = (Vec::<Row>::new(), Vec::new());
    let config = model.llama.config();
    for contender in contenders {
        let known = contender.fingerprint();
        let own = |outcome: &&Outcome| outcome.contender == known;
        let mut outcomes: Vec<_> = progress.done.iter().filter(own).collect();
        outcomes.sort_by_key(|outcome| outcome.work);
        if outcomes.len() != work {
            let found = format!("{} of {work} pieces of work by {}", outcomes.len(), contender.masker);
            return Err(Error::Nothing(Detail::new("progress", found, "all of them")));
        }
        if let Some(problem) = outcomes.iter().find_map(|outcome| outcome.failed.as_ref()) {
            notes.push(format!("left out: {} by {}: {problem}", contender.name(), contender.subject));
            continue;
        }
        let units: Vec<Unit> = outcomes.iter().flat_map(|outcome| outcome.units.clone()).collect();
        let sum = |of: fn(&Outcome) -> f64| outcomes.iter().map(|outcome| of(outcome)).sum::<f64>();
        let rows_read = sum(|outcome| outcome.tally.2).max(1.0);
        let (read, held) =
            (sum(|outcome| outcome.tally.0) / rows_read, sum(|outcome| outcome.tally.1) / rows_read);
        let mut recall = RecallSums::default();
        outcomes.iter().for_each(|outcome| recall.merge(&outcome.recall));
        let against = match rows.first() {
            None => None,
            Some(dense) => bootstrap::against(measure, &units, &dense.units),
        };
        rows.push(Row {
            masker: contender.masker.clone(),
            subject: contender.subject.clone(),
            heavy_size: contender.heavy_size,
            group_factor: contender.group_factor,
            label_bits: contender.label_bits,
            keys_read: read,
            keys_held: held,
            bytes: contender.sparse.bytes(&config.dims(1, held as usize), read, held),
            quality: bootstrap::quality(measure, &units),
            units,
            against_dense: against,
            recall: recall.means(config.layers),
            seconds: sum(|outcome| outcome.seconds),
        });
    }
    match rows.first() {
        Some(row) if row.masker == "dense" => Ok((rows, notes)),
        _ => Err(Error::Nothing(Detail::new("rows", notes.join("; "), "dense attention among them"))),
    }
}
