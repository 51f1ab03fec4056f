//! The evaluation itself: each passage or item is prefilled once with dense attention, and then continued with every contender from
//! there.
//!
//! Perplexity gives a contender the queries of many tokens in one call; since nothing later is attended to, that is what decode
//! steps would give, but for settings that depend on n (heavy sizes as fractions, SPEC D3).

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::attention::Sparse;
use super::bootstrap;
use super::contenders::{Contender, Contenders};
use super::progress::{Progress, Trial};
use super::recall::RecallSums;
use super::results::{ContenderResult, Evaluation, Measure, Setup, Unit};
use super::work::{Error, Result, Work, Workload};
use crate::algorithm::Detail;
use crate::model::llama::{Cache, Dense};
use crate::model::{self, Llama, Model};
use crate::torch::device;

/// Tokens of a dense forward call.
const PREFILL: usize = 512;
/// Scored tokens that make one unit of the bootstrap.
const BLOCK: usize = 32;

/// The whole evaluation: does what is not done yet, and compares. `tick` is called with what is done next, for each piece of work and
/// contender. The command line is left empty.
///
/// Errors: those of [`run`] and of [`results`].
pub fn evaluate(
    model: &Model,
    workload: &Workload,
    setup: Setup,
    contenders: &mut Contenders,
    progress: &mut Progress,
    tick: &mut dyn FnMut(&str),
) -> Result<Evaluation> {
    let work = &workload.pieces;
    let steps = work.len() * contenders.list.len();
    let resumed = progress.count(&contenders.list);
    run(model, work, setup, &mut contenders.list, progress, tick)?;
    let (rows, failures) = results(model, workload.measure, work.len(), &contenders.list, progress)?;
    let mut notes = [workload.notes.clone(), contenders.notes.clone(), failures].concat();
    if resumed > 0 {
        notes.push(format!("{resumed} of {steps} steps were done by an earlier run"));
    }
    let config = model.llama.config();
    Ok(Evaluation {
        version: env!("CARGO_PKG_VERSION").into(),
        model: model.name.clone(),
        model_sha256: model.sha256.clone(),
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        device: match model.llama.device() {
            Device::Cpu => format!("cpu, {} threads", tch::get_num_threads()),
            device => device::describe(device),
        },
        channels: contenders.channels.clone(),
        task: workload.task.clone(),
        texts: Vec::new(),
        measure: workload.measure,
        setup,
        dense_layers: contenders.dense_layers.clone(),
        seconds: rows.iter().map(|row| row.seconds).sum(),
        rows,
        notes,
        command: String::new(),
    })
}

/// Does all work with every contender, as far as it is not done yet. `tick` is called with what is done next.
///
/// Errors: those of the model; of progress that cannot be written. A contender's failure is recorded as a trial.
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
                let trial = start.trial(model, index, piece, contender)?;
                progress.save(Trial { contender: known.clone(), ..trial })?;
            }
        }
    }
    Ok(())
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

    fn trial(
        &mut self,
        model: &Model,
        index: usize,
        piece: &Work,
        contender: &mut Contender,
    ) -> Result<Trial> {
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
        Ok(Trial {
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

/// The result of each contender, dense attention first, and a note for each that failed.
///
/// Errors: [`Error::Nothing`] where dense attention is not among the contenders or some work is not done.
pub fn results(
    model: &Model,
    measure: Measure,
    work: usize,
    contenders: &[Contender],
    progress: &Progress,
) -> Result<(Vec<ContenderResult>, Vec<String>)> {
    let (mut rows, mut notes) = (Vec::<ContenderResult>::new(), Vec::new());
    let config = model.llama.config();
    for contender in contenders {
        let trials = progress.of(&contender.fingerprint());
        if trials.len() != work {
            let found = format!("{} of {work} pieces of work by {}", trials.len(), contender.masker);
            return Err(Error::Nothing(Detail::new("progress", found, "all of them")));
        }
        if let Some(problem) = trials.iter().find_map(|trial| trial.failed.as_ref()) {
            notes.push(format!("left out: {} by {}: {problem}", contender.name(), contender.subject));
            continue;
        }
        let units: Vec<Unit> = trials.iter().flat_map(|trial| trial.units.clone()).collect();
        let sum = |of: fn(&Trial) -> f64| trials.iter().map(|trial| of(trial)).sum::<f64>();
        let rows_read = sum(|trial| trial.tally.2).max(1.0);
        let (read, held) = (sum(|trial| trial.tally.0) / rows_read, sum(|trial| trial.tally.1) / rows_read);
        let mut recall = RecallSums::default();
        trials.iter().for_each(|trial| recall.merge(&trial.recall));
        let against = match rows.first() {
            None => None,
            Some(dense) => bootstrap::against(measure, &units, &dense.units),
        };
        rows.push(ContenderResult {
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
            by_text: Vec::new(),
            recall: recall.means(config.layers),
            seconds: sum(|trial| trial.seconds),
        });
    }
    match rows.first() {
        Some(row) if row.masker == "dense" => Ok((rows, notes)),
        _ => Err(Error::Nothing(Detail::new("rows", notes.join("; "), "dense attention among them"))),
    }
}
