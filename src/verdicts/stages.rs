//! The verdict on what an implementation of one stage answers: a top-k by its scores alone (`topk`), a sparse attention by the
//! bounds of its output (`output`) and of its log-sum-exp (`lse`).

use super::judge::MOST_EXPLAINED;
use super::lse::judge_lse;
use super::output::judge_output;
use super::sharpness::Sharpness;
use super::topk::{explain, judge_top_k};
use crate::cases::{NoAnswer, RoundingModel, StageAnswer, StageCall};

/// The verdict on one answer.
#[derive(Debug, Clone, Default)]
pub struct StageVerdict {
    /// The kind of a failure, in a few words; `None` where the answer conforms.
    pub kind: Option<&'static str>,
    /// The stage at fault: what it started from was given to it.
    pub stage: Option<&'static str>,
    /// What is wrong, one line each.
    pub explanations: Vec<String>,
    /// How many rows were judged.
    pub rows: usize,
    /// In how many of them a key was, or had to be, left out.
    pub selecting: usize,
    /// How much room the verdict left.
    pub sharpness: Sharpness,
}

impl StageVerdict {
    /// Whether the answer conforms.
    pub fn conforms(&self) -> bool {
        self.kind.is_none()
    }

    fn failed(problem: String) -> Self {
        Self { kind: Some("gave no usable answer"), explanations: vec![problem], ..Self::default() }
    }
}

/// Judges an answer under a rounding model, which does not matter to a top-k.
pub fn judge_stage(
    call: &StageCall,
    answer: &Result<StageAnswer, NoAnswer>,
    model: RoundingModel,
) -> StageVerdict {
    match (call, answer) {
        // Everything that is asked is allowed.
        (_, Err(NoAnswer::Failed(problem))) => StageVerdict::failed(format!("failed: {problem}")),
        (_, Err(refused)) => StageVerdict {
            kind: Some("refused what must be answered"),
            explanations: vec![format!("refused ({refused}), expected an answer")],
            ..StageVerdict::default()
        },
        (StageCall::Scores(call), Ok(StageAnswer::Selected(mask))) => {
            if mask.weights().dim() != call.scores().dim() {
                return StageVerdict::failed("a mask of another shape than [b, h, m, n]".into());
            }
            let verdict = judge_top_k(call, mask);
            let kind = verdict.divergences.first().map(|divergence| divergence.fault.kind());
            StageVerdict {
                kind,
                stage: kind.map(|_| "selection"),
                explanations: verdict
                    .divergences
                    .iter()
                    .map(|divergence| explain(call, divergence))
                    .collect(),
                rows: verdict.rows,
                selecting: verdict.selecting,
                sharpness: Sharpness { rows: verdict.rows, open: verdict.open, ..Sharpness::default() },
            }
        }
        (StageCall::Selection(call), Ok(StageAnswer::Attended(answer))) => {
            let dims = call.inputs.dims();
            let fits = answer.output.as_ref().is_none_or(|output| output.dim() == dims.output_shape())
                && answer.lse.as_ref().is_none_or(|lse| lse.dim() == (dims.batch, dims.heads, dims.queries));
            if !fits {
                let problem = "an output of another shape than [b, h, m, dv], or lse than [b, h, m]";
                return StageVerdict::failed(problem.into());
            }
            let output =
                answer.output.as_ref().map(|output| judge_output(&call.inputs, &call.mask, output, model));
            let lse = answer.lse.as_ref().map(|lse| judge_lse(&call.inputs, &call.mask, lse, model));
            let outputs = output.iter().flat_map(|output| &output.divergences).map(ToString::to_string);
            let sums = lse.iter().flat_map(|lse| &lse.divergences).map(ToString::to_string);
            let (outputs, sums): (Vec<_>, Vec<_>) =
                (outputs.take(MOST_EXPLAINED).collect(), sums.take(MOST_EXPLAINED).collect());
            let kind = match (outputs.is_empty(), sums.is_empty()) {
                (false, _) => Some("output out of bounds"),
                (true, false) => Some("lse out of bounds"),
                (true, true) => None,
            };
            StageVerdict {
                kind,
                stage: kind.map(|_| "attention"),
                explanations: outputs.into_iter().chain(sums).collect(),
                rows: dims.rows().count(),
                selecting: dims.rows().filter(|&row| call.mask.row(row).count() < dims.keys).count(),
                sharpness: Sharpness {
                    worst_output_error: output.as_ref().map(|output| output.worst_share),
                    widest_output_bound: output.as_ref().map(|output| output.widest_bound),
                    ..Sharpness::default()
                },
            }
        }
        _ => StageVerdict::failed("an answer to another question".into()),
    }
}
