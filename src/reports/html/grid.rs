//! Masks as grids, one for each (batch, head): rows are queries, columns keys. A cell shows what is expected of the key in
//! its corner and what was answered in its middle; a cell that is wrong is also marked.

use std::collections::HashSet;

use maud::{Markup, html};

use super::numbers::exact;
use super::scroll;
use crate::algorithm::{Dims, Mask, Row};
use crate::verdicts::Certificate;
use crate::verdicts::certificate::Class;

/// Masks up to this many cells are drawn; of larger ones only the failing row.
const LARGEST: usize = 2048;
/// Rows up to this many keys are drawn.
const LONGEST: usize = 256;

/// What is drawn.
pub struct Grids<'a> {
    pub dims: Dims,
    /// `None` where the call must be refused.
    pub certificate: Option<&'a Certificate>,
    /// `None` where no mask was answered.
    pub mask: Option<&'a Mask>,
    /// Keys whose weight no conforming answer has.
    pub wrong: &'a HashSet<[usize; 4]>,
    /// The row to be drawn where there is no room for all.
    pub row: Row,
}

/// Name, glyph and meaning of a class.
pub fn class(class: Class) -> (&'static str, &'static str, &'static str) {
    match class {
        Class::In => ("in", "+", "certainly in"),
        Class::Out => ("out", "−", "certainly out"),
        Class::Open => ("open", "?", "open"),
        Class::Before => ("before", "P", "attended before"),
        Class::Excluded => ("excluded", "∅", "excluded"),
    }
}

/// A filled disc, an empty one, or the weight where it is neither 1 nor 0.
pub fn answered(weight: f32) -> Markup {
    html! {
        @if weight == 1.0 { "●" } @else if weight == 0.0 { "○" } @else { span.weight { (exact(weight)) } }
    }
}

impl Grids<'_> {
    pub fn render(&self) -> Markup {
        let Dims { batch, heads, queries, keys, .. } = self.dims;
        if self.certificate.is_none() && self.mask.is_none() {
            return html! { p.aside { "There is no mask to show." } };
        }
        if keys > LONGEST {
            return html! { p.aside { "Rows of " (keys) " keys are too long to be drawn." } };
        }
        if batch * heads * queries * keys > LARGEST {
            let (b, head, query) = self.row;
            return html! {
                p.aside { "The mask is too large to be drawn; this is the row that fails." }
                div.parts { (self.grid((b, head), query..query + 1)) }
            };
        }
        html! {
            div.parts.grids {
                @for b in 0..batch { @for head in 0..heads { (self.grid((b, head), 0..queries)) } }
            }
        }
    }

    fn grid(&self, (b, head): (usize, usize), queries: std::ops::Range<usize>) -> Markup {
        scroll(&html! {
            table.grid {
                caption { "batch " (b) ", head " (head) }
                thead {
                    tr {
                        td.corner { "query ╲ key" }
                        @for key in 0..self.dims.keys { th scope="col" { (key) } }
                        @if self.mask.is_some() { td {} }
                    }
                }
                tbody { @for query in queries { (self.row((b, head, query))) } }
            }
        })
    }

    fn row(&self, at @ (_, _, query): Row) -> Markup {
        html! {
            tr {
                th scope="row" { (query) }
                @for key in 0..self.dims.keys { (self.cell(at, key)) }
                @if let Some((note, wrong)) = self.count(at) {
                    td.note.wrong[wrong] { @if wrong { "✗ " } (note) }
                }
            }
        }
    }

    fn class(&self, (b, head, query): Row, key: usize) -> Option<Class> {
        let certificate = self.certificate?;
        let Some(rows) = &certificate.rows else {
            let before = certificate.before.attends(b, head, query, key);
            return Some(if before { Class::Before } else { Class::In });
        };
        let Dims { heads, queries, .. } = self.dims;
        rows[(b * heads + head) * queries + query].classes.get(key).copied()
    }

    fn cell(&self, at @ (b, head, query): Row, key: usize) -> Markup {
        let class = self.class(at, key).map(class);
        let found = self.mask.map(|mask| mask.weight(b, head, query, key));
        let wrong = self.wrong.contains(&[b, head, query, key]);
        let expected = class.map_or("nothing expected", |class| class.2);
        let answer = match found {
            None => "no answer".to_owned(),
            Some(0.0) => "not attended".to_owned(),
            Some(weight) => format!("attended with weight {}", exact(weight)),
        };
        let title = format!("key {key}: {expected}; {answer}{}", if wrong { ": wrong" } else { "" });
        html! {
            td class=(class.map_or("none", |class| class.0)) title=(title) {
                div.cell.wrong[wrong] {
                    @if let Some((_, glyph, _)) = class { span.expected { (glyph) } }
                    span.answered { @if let Some(weight) = found { (answered(weight)) } @else { " " } }
                    @if wrong { span.flag { "✗" } }
                }
            }
        }
    }

    /// How many keys a row selects, and whether that is a wrong number.
    fn count(&self, at @ (b, head, query): Row) -> Option<(String, bool)> {
        let (certificate, mask) = (self.certificate?, self.mask?);
        let Dims { heads, queries, keys, .. } = self.dims;
        let row = &certificate.rows.as_ref()?[(b * heads + head) * queries + query];
        let selected =
            |key: &usize| mask.attends(b, head, query, *key) && self.class(at, *key) != Some(Class::Before);
        let found = (0..keys).filter(selected).count();
        let expected = if row.fewest == row.most {
            row.most.to_string()
        } else {
            format!("{} to {}", row.fewest, row.most)
        };
        let wrong = !(row.fewest..=row.most).contains(&found);
        Some((format!("{found} of {expected}"), wrong))
    }

    /// What the cells mean.
    pub fn legend(&self) -> Markup {
        let classes = [Class::In, Class::Out, Class::Open, Class::Before, Class::Excluded];
        let more = |class: Class| match class {
            Class::Open => ": rounding decides",
            Class::Excluded => ": no candidate",
            _ => "",
        };
        let sample = |name: &str, expected: &str, answered: &str, flag: bool| {
            html! {
                span class=(format!("sample {name}")) {
                    span.cell.wrong[flag] {
                        span.expected { (expected) }
                        span.answered { (answered) }
                        @if flag { span.flag { "✗" } }
                    }
                }
            }
        };
        html! {
            ul.legend aria-label="Legend" {
                @for (more, (name, glyph, meaning)) in classes.map(|kind| (more(kind), class(kind))) {
                    li { (sample(name, glyph, " ", false)) (meaning) (more) }
                }
                li { (sample("none", "", "●", false)) "attended" }
                li { (sample("none", "", "○", false)) "not attended" }
                li { (sample("out", "−", "●", true)) "wrong" }
                li { span.note { "1 of 2" } "keys selected, of those to select" }
            }
        }
    }
}
