//! One call of a counterexample: its tensors, its labels, what was expected of it and what came back.

use maud::{Markup, html};
use ndarray::{Array4, s};

use super::grid::Grids;
use super::numbers::{exact, precise, radius};
use super::plot::ScoredRow;
use super::scroll;
use super::tensors::{self, Mark};
use crate::algorithm::{ChannelOrder, Mask, Row};
use crate::cases::{Answer, AnsweredLabels, Call, Instance, NoAnswer};
use crate::reports::rows;
use crate::reports::tensors::Keys;
use crate::verdicts::Evidence;
use crate::verdicts::bounds::Approximate;
use crate::verdicts::rows::{ComparedRow, TILE};

/// How much is pointed at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// A call that does not fail.
    None,
    /// The call that fails: with scores and a legend.
    Failure,
}

/// A call and everything that is known of it.
pub struct CallView<'a> {
    pub instance: &'a Instance,
    pub call: &'a Call,
    pub answer: &'a Result<Answer, NoAnswer>,
    pub evidence: &'a Evidence,
    pub marks: Marks,
    /// Rows of the failing answer beside what they should be.
    pub rows: &'a [ComparedRow],
}

impl CallView<'_> {
    pub fn render(&self) -> Markup {
        html! {
            (self.refusals())
            div.sides.narrow[self.is_narrow()] {
                div { (self.selection()) }
                div { (self.output()) (self.labels()) (self.inputs()) }
            }
        }
    }

    /// Where one side gives no answer: what was said and what should have been.
    fn refusals(&self) -> Markup {
        html! {
            @if let Err(found) = self.answer {
                p.no-answer { strong { "The subject gave no answer: " } code { (found) } }
            }
            @match &self.evidence.certificate {
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

    /// The answer, where its tensors have the call's shapes.
    fn fitting(&self) -> Option<&Answer> {
        self.answer.as_ref().ok().filter(|answer| answer.fits(&self.call.inputs.dims()))
    }

    /// Masks, and the scores of one row.
    fn selection(&self) -> Markup {
        let grids = Grids {
            dims: self.call.inputs.dims(),
            certificate: self.evidence.certificate.as_ref().ok(),
            mask: self.fitting().map(|answer| &answer.mask),
            wrong: &self.evidence.wrong,
            row: self.evidence.row,
        };
        let failing = self.marks == Marks::Failure;
        let dims = self.call.inputs.dims();
        html! {
            h4 { "Mask: expected and answered" }
            @if self.evidence.certificate.as_ref().is_ok_and(|certificate| certificate.rows.is_none()) {
                p { "Every key must be attended to (SPEC §2.2)." }
            }
            (grids.render())
            @if !self.rows.is_empty() && dims.keys > TILE { pre.replay { (rows::render(self.rows)) } }
            @if failing { (grids.legend()) }
            @if failing && let Some(scores) = self.scores() { (scores) }
        }
    }

    /// Scores of the failing row; `None` where nothing is ranked or nothing was answered.
    fn scores(&self) -> Option<Markup> {
        let certificate = self.evidence.certificate.as_ref().ok()?;
        let rows = certificate.rows.as_ref()?;
        let scores = self.evidence.scores.as_ref()?;
        let at @ (b, head, query) = self.evidence.row;
        let index = self.call.inputs.dims().rows().position(|row| row == at)?;
        let weights = |mask: &Mask| mask.weights().slice(s![b, head, query, ..]).to_vec();
        let row = ScoredRow {
            at,
            scores,
            certificate: &rows[index],
            wrong: &self.evidence.wrong,
            found: weights(&self.fitting()?.mask),
        };
        Some(row.render())
    }

    /// The output against its recomputation with the subject's own mask.
    fn output(&self) -> Markup {
        let Some(output) = self.fitting().and_then(|answer| answer.output.as_ref()) else {
            return html! {};
        };
        let dims = self.call.inputs.dims();
        let expected = self.evidence.output.as_ref().filter(|_| output.len() <= tensors::LARGEST);
        let Some(expected) = expected else {
            return html! {
                h4 { "Output, as answered" }
                (tensors::numbers("output", output, &|_| Mark::None))
            };
        };
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
                    @for row in dims.rows() { (output_row(expected, output, row)) }
                }
            }))
        }
    }

    /// The labels as the SPEC makes them, and those of the subject where it shows any.
    fn labels(&self) -> Markup {
        let Some(AnsweredLabels { q, k }) = &self.evidence.labels else { return html! {} };
        let shown = self.fitting().and_then(|answer| answer.labels.as_ref());
        let plain = |_: [usize; 4]| Mark::None;
        html! {
            h4 { "Labels" }
            p.aside {
                "As SPEC §2.4 and §2.5 make them, for each query head; rows are batch/head/position, columns the "
                "label channels in the order of the channel row."
            }
            div.parts {
                (tensors::numbers("q̂", q, &plain))
                (tensors::numbers("k̂", k, &plain))
            }
            @if let Some(shown) = shown {
                p.aside { "As the subject shows them; marked where a bit differs." }
                div.parts {
                    (tensors::numbers("q̂, as answered", &shown.q, &|at| tensors::differs(q, &shown.q, at)))
                    (tensors::numbers("k̂, as answered", &shown.k, &|at| tensors::differs(k, &shown.k, at)))
                }
            }
        }
    }

    fn channels(&self) -> Option<&ChannelOrder> {
        self.instance.channels(self.call.layer).ok()
    }

    /// q, k, v and the masks that are given.
    fn inputs(&self) -> Markup {
        let parts = self.call.inputs.parts();
        let plain = |_: [usize; 4]| Mark::None;
        let dims = self.call.inputs.dims();
        let matter: Vec<usize> = self.rows.iter().flat_map(ComparedRow::keys_that_matter).collect();
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
                (tensors::numbers_of("k", &parts.k, Keys::Rows, &matter, &k))
                (tensors::numbers_of("v", &parts.v, Keys::Rows, &matter, &plain))
                @if let Some(mask) = &parts.attention_mask {
                    (tensors::numbers_of("attention_mask", mask, Keys::Columns, &matter, &plain))
                }
                @if let Some(previous) = &self.call.previous {
                    (tensors::numbers_of("previous", previous.weights(), Keys::Columns, &matter, &plain))
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

/// One row of the output: answered, expected, and the radius of each number.
fn output_row(expected: &Array4<Approximate>, output: &Array4<f32>, (b, head, query): Row) -> Markup {
    let expected = expected.slice(s![b, head, query, ..]);
    let found = output.slice(s![b, head, query, ..]);
    let wrong = |found: f32, expected: &Approximate| {
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
