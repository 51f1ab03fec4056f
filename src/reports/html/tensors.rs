//! Small tensors and channel rows as tables; larger tensors as in the text, by the rows that matter.

use maud::{Markup, html};
use ndarray::{Array4, s};

use super::numbers::exact;
use super::scroll;
use crate::algorithm::{ChannelFile, ChannelKind};
use crate::reports::tensors::{self as text, Keys};

/// Tensors up to this many numbers are shown.
pub const LARGEST: usize = 512;

/// What a number is marked as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    None,
    /// Part of a label.
    Label,
    /// Not what it must be.
    Wrong,
}

impl Mark {
    pub fn label(is_label: bool) -> Self {
        if is_label { Self::Label } else { Self::None }
    }
}

/// Marks a number whose bits differ from those expected.
pub fn differs(expected: &Array4<f32>, found: &Array4<f32>, at: [usize; 4]) -> Mark {
    let same = expected.get(at).is_some_and(|expected| expected.to_bits() == found[at].to_bits());
    if same { Mark::None } else { Mark::Wrong }
}

/// A tensor as a table: a row holds the numbers along its last axis.
pub fn numbers(name: &str, tensor: &Array4<f32>, mark: &dyn Fn([usize; 4]) -> Mark) -> Markup {
    numbers_of(name, tensor, Keys::Nowhere, &[], mark)
}

/// The same; of a large tensor, the rows of the keys that matter as text.
pub fn numbers_of(
    name: &str,
    tensor: &Array4<f32>,
    keys: Keys,
    matter: &[usize],
    mark: &dyn Fn([usize; 4]) -> Mark,
) -> Markup {
    let shape = tensor.shape();
    let caption = html! { code { (name) } " " span.shape { (format!("{shape:?}")) } };
    if tensor.len() > LARGEST {
        let text = text::numbers_of(name, tensor, keys, matter);
        // The first line is the caption.
        let rows: Vec<&str> = text.lines().skip(1).collect();
        return html! { div.tensor { p { (caption) } pre { (rows.join("\n")) } } };
    }
    let rows = ndarray::indices([shape[0], shape[1], shape[2]]).into_iter();
    scroll(&html! {
        table.numbers {
            caption { (caption) }
            thead {
                tr { th {} @for column in 0..shape[3] { th scope="col" { (column) } } }
            }
            tbody {
                @for (b, head, position) in rows {
                    tr {
                        th scope="row" { (b) "/" (head) "/" (position) }
                        @for (column, &x) in tensor.slice(s![b, head, position, ..]).iter().enumerate() {
                            (cell(x, mark([b, head, position, column])))
                        }
                    }
                }
            }
        }
    })
}

fn cell(x: f32, mark: Mark) -> Markup {
    html! {
        @match mark {
            Mark::None => td { (exact(x)) },
            Mark::Label => td { span.label-channel { (exact(x)) } },
            Mark::Wrong => td.wrong { span.glyph aria-hidden="true" { "✗" } (exact(x)) },
        }
    }
}

/// Channel rows of one kind; the leading `marked` channels of each row make up the labels.
pub fn channels(
    file: &ChannelFile,
    kind: ChannelKind,
    marked: usize,
    used_by: &dyn Fn(usize) -> String,
) -> Markup {
    let layers: Vec<_> = file.layers(kind).collect();
    let entries: usize = layers.iter().map(|(_, order)| order.rows().len() * order.width()).sum();
    if entries > LARGEST {
        let count = layers.len();
        return html! { p.tensor { "Channel rows of " code { (kind.name()) } ": " (count) " layers, too large to be shown" } };
    }
    scroll(&html! {
        table.numbers.channels {
            caption {
                "Channel rows " code { (kind.name()) }
                @if marked > 0 { ", " span.label-channel { "label channels" } " marked" }
            }
            thead { tr { th scope="col" { "layer" } th scope="col" { "row" } th scope="col" { "channels" } th scope="col" { "used by" } } }
            @for (layer, order) in layers {
                tbody {
                    @for (index, row) in order.rows().iter().enumerate() {
                        tr {
                            @if index == 0 { th scope="rowgroup" rowspan=(order.rows().len()) { (layer) } }
                            th scope="row" { (index) }
                            td { (channel_row(row, marked)) }
                            @if index == 0 { td.text rowspan=(order.rows().len()) { (used_by(layer)) } }
                        }
                    }
                }
            }
        }
    })
}

fn channel_row(row: &[usize], marked: usize) -> Markup {
    html! {
        @for (position, channel) in row.iter().enumerate() {
            @if position < marked { span.label-channel { (channel) } } @else { span { (channel) } }
            " "
        }
    }
}
