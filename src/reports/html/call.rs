//! One call of a counterexample: its tensors, its labels, what was expected of it and what came back.

use maud::{Markup, html};
use ndarray::s;

use super::grid::Grids;
use super::numbers::{exact, precise, radius};
use super::plot::ScoredRow;
use super::scroll;
use super::tensors::{self, Mark};
use crate::algorithm::labels::{Labels, labels};
use crate::algorithm::{ChannelOrder, Error, Row};
use crate::cases::{Answer, Call, Instance, NoAnswer, RoundingModel};
use crate::verdicts::certificate::{Candidacy, ScoreBounds, thresholds};
use crate::verdicts::output::expected_row;
use crate::verdicts::{Certificate, Judgement, Verdict};

/// How much is pointed at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// A call that is shown besides.
    None,
    /// The call that fails: with scores and a legend.
    Failure,
}

/// A call and everything that is known of it.
pub struct CallView<'a> {
    instance: &'a Instance,
    answer: &'a Result<Answer, NoAnswer>,
    verdict: &'a Verdict,
    model: RoundingModel,
    marks: Marks,
    call: &'a Call,
    certificate: Result<Certificate, Error>,
}

impl<'a> CallView<'a> {
    pub fn new(
        instance: &'a Instance,
        call: &'a Call,
        answer: &'a Result<Answer, NoAnswer>,
        verdict: &'a Verdict,
        model: RoundingModel,
        marks: Marks,
    ) -> Self {
        let certificate = Certificate::derive(instance, call, model);
        Self { instance, answer, verdict, model, marks, call, certificate }
    }

    pub fn render(&self) -> Markup {
        html! {
            (self.refusals())
            div.sides.narrow[self.is_narrow()] {
                div { (self.selection()) }
                div { (self.output()) (self.labels()) (self.inputs()) }
            }
        }
    }

    /// Where one side gives no answer: what was said and what had to be.
    fn refusals(&self) -> Markup {
        html! {
            @if let Err(found) = self.answer {
                p.no-answer { strong { "The subject gave no answer: " } code { (found) } }
            }
            @match &self.certificate {
                Err(expected) => p.expected-refusal {
                    strong { "The call must be refused: " } code { (expected) }
                },
                Ok(_) if self.answer.is_err() => p.expected-answer { "The call must be answered." },
                Ok(_) => "",
            }
        }
    }

    /// Whether masks and tensors have room side by side.
    fn is_narrow(&self) -> bool {
        let dims = self.call.inputs.dims();
        dims.keys <= 8 && dims.head_dim <= 8 && dims.value_dim <= 4
    }

    fn judgement(&self) -> Option<&Judgement> {
        self.verdict.judgement()
    }

    /// The answer, where its tensors have the call's shapes.
    fn fitting(&self) -> Option<&Answer> {
        self.answer.as_ref().ok().filter(|answer| answer.fits(&self.call.inputs.dims()))
    }

    /// The row that shows the failure: that of the first divergence.
    fn row(&self) -> Row {
        let Some(judgement) = self.judgement() else { return (0, 0, 0) };
        let mask = judgement.mask.divergences.first().map(|divergence| divergence.row);
        let outputs = || judgement.output.iter().flat_map(|output| &output.divergences);
        let label = || judgement.labels.as_ref().filter(|label| label.tensor == "q").map(|label| label.index);
        let index = || label().or_else(|| outputs().next().map(|output| output.index));
        mask.or_else(|| index().map(|[b, head, query, _]| (b, head, query))).unwrap_or((0, 0, 0))
    }

    /// Masks, and the scores of one row.
    fn selection(&self) -> Markup {
        let grids = Grids {
            dims: self.call.inputs.dims(),
            certificate: self.certificate.as_ref().ok(),
            mask: self.fitting().map(|answer| &answer.mask),
            heads: self.instance.selection.heads,
            row: self.row(),
        };
        let failing = self.marks == Marks::Failure;
        html! {
            h4 { "Mask: expected and answered" }
            @if self.certificate.as_ref().is_ok_and(|certificate| certificate.rows.is_none()) {
                p { "Every key must be attended to (SPEC §2.2)." }
            }
            (grids.render())
            @if failing { (grids.legend()) }
            @if failing && let Some(scores) = self.scores() { (scores) }
        }
    }

    /// Scores of the failing row; `None` where nothing is ranked or nothing was answered.
    fn scores(&self) -> Option<Markup> {
        let certificate = self.certificate.as_ref().ok()?;
        let rows = certificate.rows.as_ref()?;
        let bounds = ScoreBounds::new(self.instance, self.call, self.model, &certificate.before).ok()??;
        let dims = self.call.inputs.dims();
        let at = self.row();
        let index = dims.rows().position(|row| row == at)?;
        let keys: Vec<Candidacy> = bounds.row(at);
        let heavy_size = self.instance.selection.heavy_size.resolve(dims.keys);
        let (b, head, query) = at;
        let weights = |mask: &crate::algorithm::Mask| mask.weights().slice(s![b, head, query, ..]).to_vec();
        let row = ScoredRow {
            at,
            limits: thresholds(&keys, heavy_size),
            keys,
            certificate: &rows[index],
            before: weights(&certificate.before),
            found: weights(&self.fitting()?.mask),
            heavy_size,
        };
        Some(row.render())
    }

    /// The output against its recomputation with the subject's own mask.
    fn output(&self) -> Markup {
        let answer = self.fitting();
        let Some((answer, output)) = answer.and_then(|answer| Some((answer, answer.output.as_ref()?))) else {
            return html! {};
        };
        let dims = self.call.inputs.dims();
        if self.certificate.is_err() || output.len() > tensors::LARGEST {
            return html! {
                h4 { "Output, as answered" }
                (tensors::numbers("output", output, &|_| Mark::None))
            };
        }
        html! {
            h4 { "Output: expected and answered" }
            p.aside { "Expected with the subject’s own mask; ± is how far rounding may move it." }
            (scroll(&html! {
                table.numbers.output {
                    thead {
                        tr {
                            th scope="col" { "batch/head/query" } th {}
                            @for dim in 0..dims.value_dim { th scope="col" { (dim) } }
                        }
                    }
                    @for row in dims.rows() { (self.output_row(answer, output, row)) }
                }
            }))
        }
    }

    fn output_row(
        &self,
        answer: &Answer,
        output: &ndarray::Array4<f32>,
        row @ (b, head, query): Row,
    ) -> Markup {
        let expected = expected_row(&self.call.inputs, &answer.mask, self.model, row);
        let found = output.slice(s![b, head, query, ..]);
        let wrong = |found: f32, expected: &crate::verdicts::bounds::Approximate| {
            let error = (f64::from(found) - expected.value).abs();
            expected.radius.is_finite() && (error.is_nan() || error > expected.radius)
        };
        html! {
            tbody {
                tr {
                    th scope="rowgroup" rowspan="3" { (b) "/" (head) "/" (query) }
                    th scope="row" { "answered" }
                    @for (&found, expected) in found.iter().zip(&expected) {
                        @if wrong(found, expected) {
                            td.wrong { span.glyph aria-hidden="true" { "✗" } (exact(found)) }
                        } @else {
                            td { (exact(found)) }
                        }
                    }
                }
                tr { th scope="row" { "expected" } @for x in &expected { td { (precise(x.value)) } } }
                tr.radius { th scope="row" { "±" } @for x in &expected { td { (radius(x.radius)) } } }
            }
        }
    }

    /// The labels as the SPEC makes them, and those of the subject where it shows any.
    fn labels(&self) -> Markup {
        let Some(expected) = self.expected_labels() else { return html! {} };
        let dims = self.call.inputs.dims();
        let shown = self.fitting().and_then(|answer| answer.labels.as_ref());
        let stacked = |part: &dyn Fn(usize, usize) -> ndarray::Array2<f32>| {
            let parts: Vec<_> = (0..dims.batch)
                .flat_map(|b| (0..dims.heads).map(move |head| (b, head)))
                .map(|(b, head)| part(b, head))
                .collect();
            let (positions, channels) = parts[0].dim();
            ndarray::Array4::from_shape_fn(
                (dims.batch, dims.heads, positions, channels),
                |(b, head, i, j)| parts[b * dims.heads + head][[i, j]],
            )
        };
        let q = stacked(&|b, head| expected[b].queries(head).reversed_axes().to_owned());
        let k = stacked(&|b, head| expected[b].keys(head).reversed_axes().to_owned());
        let plain = |_: [usize; 4]| Mark::None;
        html! {
            h4 { "Labels" }
            p.aside {
                "As SPEC §2.4 and §2.5 make them, for each query head; rows are batch/head/position, columns the "
                "label channels in the order of the channel row."
            }
            div.parts {
                (tensors::numbers("q̂", &q, &plain))
                (tensors::numbers("k̂", &k, &plain))
            }
            @if let Some(shown) = shown {
                p.aside { "As the subject shows them; marked where a bit differs." }
                div.parts {
                    (tensors::numbers("q̂, as answered", &shown.q, &|at| tensors::differs(&q, &shown.q, at)))
                    (tensors::numbers("k̂, as answered", &shown.k, &|at| tensors::differs(&k, &shown.k, at)))
                }
            }
        }
    }

    /// Those of each batch entry. `None` where the call makes no labels, or none that fit.
    fn expected_labels(&self) -> Option<Vec<Labels>> {
        if self.instance.dense_layers.contains(&self.call.layer) {
            return None;
        }
        let (inputs, channels) = (&self.call.inputs, self.channels()?);
        let dims = inputs.dims();
        let label_channels = self.instance.selection.group_factor.label_channels(dims.head_dim).ok()?;
        channels.check(&dims, label_channels).ok()?;
        let bits = self.instance.selection.label_bits;
        let of_batch = |b| labels(inputs, channels, label_channels, bits, (b, 0..dims.heads)).ok();
        (0..dims.batch).map(of_batch).collect()
    }

    fn channels(&self) -> Option<&ChannelOrder> {
        self.instance.channels(self.call.layer).ok()
    }

    /// q, k, v and the masks that are given.
    fn inputs(&self) -> Markup {
        let parts = self.call.inputs.parts();
        let plain = |_: [usize; 4]| Mark::None;
        let dims = self.call.inputs.dims();
        let marked = self.label_channels();
        let q = |[_, head, _, channel]: [usize; 4]| Mark::label(marked(head, channel));
        let heads_of = |kv_head: usize| (0..dims.heads).filter(move |&head| dims.kv_head(head) == kv_head);
        let k = |[_, kv_head, _, channel]: [usize; 4]| {
            Mark::label(heads_of(kv_head).any(|head| marked(head, channel)))
        };
        html! {
            h4 { "Inputs" }
            p.aside {
                "Rows are batch/head/position. Label channels are "
                span.label-channel { "marked" } "."
                @if let Some(scaling) = parts.scaling { " Scaling: " (scaling) "." }
            }
            div.parts {
                (tensors::numbers("q", &parts.q, &q))
                (tensors::numbers("k", &parts.k, &k))
                (tensors::numbers("v", &parts.v, &plain))
                @if let Some(mask) = &parts.attention_mask {
                    (tensors::numbers("attention_mask", mask, &plain))
                }
                @if let Some(previous) = &self.call.previous {
                    (tensors::numbers("previous", previous.weights(), &plain))
                }
            }
        }
    }

    /// Whether a channel is a label channel of a query head.
    fn label_channels(&self) -> impl Fn(usize, usize) -> bool + '_ {
        let dims = self.call.inputs.dims();
        let count = self.instance.selection.group_factor.label_channels(dims.head_dim).ok();
        let fitting = count.and_then(|count| {
            let channels = self.channels()?;
            channels.check(&dims, count).ok().map(|()| (channels, count))
        });
        move |head, channel| {
            fitting.is_some_and(|(channels, count)| channels.row(head, &dims)[..count].contains(&channel))
        }
    }
}
