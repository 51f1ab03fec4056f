//! Scores of one row as a drawing and as a table: a point for each key with the radius in which a conforming score may be,
//! and the two thresholds of SPEC §5.

use std::collections::HashSet;

use maud::{Markup, html};

use super::grid::{answered, class};
use super::numbers::{brief, precise, radius, ticks};
use super::scroll;
use crate::algorithm::Row;
use crate::verdicts::bounds::Approximate;
use crate::verdicts::certificate::{Candidacy, Class, RowCertificate, Thresholds};
use crate::verdicts::evidence::RowScores;

/// Keys up to this many are drawn: those that are wrong, then those closest to the thresholds.
const MOST_KEYS: usize = 40;

const WIDTH: f64 = 460.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 46.0;
const LINE: f64 = 26.0;
const BOTTOM: f64 = 44.0;

/// A row of a mask with its scores.
pub struct ScoredRow<'a> {
    pub at: Row,
    pub scores: &'a RowScores,
    pub certificate: &'a RowCertificate,
    pub wrong: &'a HashSet<[usize; 4]>,
    /// Weights answered.
    pub found: Vec<f32>,
}

/// Maps scores to pixels.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// A scale for all finite numbers, with some room on both sides. Where all scores are alike, rounding alone does not spread
    /// over the whole width.
    fn of(scores: &[f64], bounds: &[f64]) -> Self {
        let extremes = |numbers: &[f64]| {
            let finite = numbers.iter().filter(|x| x.is_finite());
            finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)))
        };
        let (least, most) = extremes(scores);
        if least > most {
            return Self { low: -1.0, high: 1.0 };
        }
        let (low, high) = extremes(&[scores, bounds].concat());
        let alike = if least == most { least.abs().max(1.0) } else { 0.0 };
        let room = (0.08 * (high - low)).max(0.5 * alike);
        Self { low: low - room, high: high + room }
    }

    /// Pixels; what lies outside is put on the edge.
    fn x(&self, score: f64) -> f64 {
        let share = ((score - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }
}

impl ScoredRow<'_> {
    pub fn render(&self) -> Markup {
        let (b, head, query) = self.at;
        let keys = self.shown();
        html! {
            h4 { "Scores of batch " (b) ", head " (head) ", query " (query) }
            @if keys.len() < self.scores.keys.len() {
                p.aside { "Of " (self.scores.keys.len()) " keys, the " (keys.len()) " that matter most." }
            }
            div.parts.scores {
                figure { (self.drawing(&keys)) figcaption { (self.caption()) } }
                (self.table(&keys))
            }
        }
    }

    /// Ascending keys.
    fn shown(&self) -> Vec<usize> {
        let distance = |key: usize| match self.scores.keys[key] {
            _ if self.wrong(key) => -1.0,
            Candidacy::Scored(score) => {
                let from = |limit: f64| (score.value - limit).abs();
                from(self.scores.limits.in_above).min(from(self.scores.limits.out_below))
            }
            _ => f64::INFINITY,
        };
        let mut keys: Vec<usize> = (0..self.scores.keys.len()).collect();
        keys.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)));
        keys.truncate(MOST_KEYS);
        keys.sort_unstable();
        keys
    }

    fn class(&self, key: usize) -> Class {
        self.certificate.classes[key]
    }

    fn wrong(&self, key: usize) -> bool {
        let (b, head, query) = self.at;
        self.wrong.contains(&[b, head, query, key])
    }

    fn caption(&self) -> Markup {
        let Thresholds { in_above, out_below } = self.scores.limits;
        html! {
            "H = " (self.scores.heavy_size) ". "
            @if in_above.is_finite() {
                "A key whose bar lies above " strong { (precise(in_above)) } " is certainly in, one whose bar lies "
                "below " strong { (precise(out_below)) } " certainly out"
            } @else {
                "There are no more than H candidates, so that each of them is in"
            }
            ". Filled points are selected, wrong ones marked ✗. Bars shorter than their point do not show; the "
            "table has their size."
        }
    }

    fn scale(&self, keys: &[usize]) -> Scale {
        let scores = keys.iter().filter_map(|&key| match self.scores.keys[key] {
            Candidacy::Scored(score) | Candidacy::Forced(score) => Some(score),
            _ => None,
        });
        let (mut values, mut bounds) =
            (Vec::new(), vec![self.scores.limits.in_above, self.scores.limits.out_below]);
        for score in scores {
            values.push(score.value);
            bounds.extend([score.low(), score.high()]);
        }
        Scale::of(&values, &bounds)
    }

    fn drawing(&self, keys: &[usize]) -> Markup {
        let scale = self.scale(keys);
        let bottom = TOP + LINE * keys.len() as f64;
        let (b, head, query) = self.at;
        let title = format!("Scores with radii and thresholds of batch {b}, head {head}, query {query}");
        html! {
            svg.plot role="img" aria-label=(title) viewBox=(format!("0 0 {WIDTH} {}", bottom + BOTTOM)) {
                (axis(&scale, bottom))
                (threshold(&scale, self.scores.limits.in_above, "in above", 16.0, bottom))
                (threshold(&scale, self.scores.limits.out_below, "out below", 34.0, bottom))
                @for (line, &key) in keys.iter().enumerate() {
                    (self.point(&scale, key, TOP + LINE * (line as f64 + 0.5)))
                }
            }
        }
    }

    fn point(&self, scale: &Scale, key: usize, y: f64) -> Markup {
        let (name, glyph, meaning) = class(self.class(key));
        let wrong = self.wrong(key);
        html! {
            g class=(name) {
                text.key x=(px(LEFT - 26.0)) y=(px(y + 4.5)) text-anchor="end" { "key " (key) }
                text.key-class x=(px(LEFT - 14.0)) y=(px(y + 4.5)) text-anchor="middle" { (glyph) }
                @match self.scores.keys[key] {
                    Candidacy::Scored(score) | Candidacy::Forced(score) => (self.score(scale, score, key, y)),
                    _ => text.aside x=(px(LEFT + 8.0)) y=(px(y + 4.5)) {
                        (meaning) @if wrong { tspan.flag { " ✗" } }
                    },
                }
            }
        }
    }

    fn score(&self, scale: &Scale, score: Approximate, key: usize, y: f64) -> Markup {
        let (low, x, high) = (scale.x(score.low()), scale.x(score.value), scale.x(score.high()));
        let selected = self.found[key] != 0.0;
        let wrong = self.wrong(key);
        // Beside the point, on the side that has room.
        let beside = if x > WIDTH - RIGHT - 20.0 { x - 18.0 } else { x + 18.0 };
        let cap = |x: f64| html! { line.bar x1=(px(x)) x2=(px(x)) y1=(px(y - 5.0)) y2=(px(y + 5.0)) {} };
        html! {
            line.guide x1=(px(LEFT)) x2=(px(WIDTH - RIGHT)) y1=(px(y)) y2=(px(y)) {}
            line.bar x1=(px(low)) x2=(px(high)) y1=(px(y)) y2=(px(y)) {}
            (cap(low)) (cap(high))
            circle.point.selected[selected].wrong[wrong] cx=(px(x)) cy=(px(y)) r="6" {}
            @if wrong { text.flag x=(px(beside)) y=(px(y + 5.5)) text-anchor="middle" { "✗" } }
        }
    }

    fn table(&self, keys: &[usize]) -> Markup {
        scroll(&html! {
            table.numbers.score-table {
                thead {
                    tr {
                        th scope="col" { "key" } th.text scope="col" { "expected" } th.text scope="col" { "answered" }
                        th scope="col" { "score" } th scope="col" { "± radius" }
                    }
                }
                tbody { @for &key in keys { (self.line(key)) } }
            }
        })
    }

    fn line(&self, key: usize) -> Markup {
        let (_, glyph, meaning) = class(self.class(key));
        let wrong = self.wrong(key);
        html! {
            tr.wrong[wrong] {
                th scope="row" { (key) }
                td.text { (glyph) " " (meaning) }
                td.text { (answered(self.found[key])) @if wrong { span.flag { " ✗ wrong" } } }
                @match self.scores.keys[key] {
                    Candidacy::Scored(score) | Candidacy::Forced(score) => {
                        td { (precise(score.value)) }
                        td { (interval(score)) }
                    },
                    _ => { td { "–" } td { "–" } },
                }
            }
        }
    }
}

fn interval(score: Approximate) -> String {
    match (score.may_be_minus_infinity, score.may_be_plus_infinity) {
        (false, false) => radius(score.radius),
        (true, false) => format!("{}, or -∞", radius(score.radius)),
        (false, true) => format!("{}, or ∞", radius(score.radius)),
        (true, true) => format!("{}, or ±∞", radius(score.radius)),
    }
}

fn px(x: f64) -> String {
    format!("{x:.1}")
}

fn axis(scale: &Scale, bottom: f64) -> Markup {
    html! {
        line.axis x1=(px(LEFT)) x2=(px(WIDTH - RIGHT)) y1=(px(bottom)) y2=(px(bottom)) {}
        @for (score, text) in ticks(scale.low, scale.high) {
            @let x = px(scale.x(score));
            line.axis x1=(x) x2=(x) y1=(px(bottom)) y2=(px(bottom + 5.0)) {}
            text.tick x=(x) y=(px(bottom + 19.0)) text-anchor="middle" { (text) }
        }
        text.tick x=(px(WIDTH - RIGHT)) y=(px(bottom + 37.0)) text-anchor="end" { "score" }
    }
}

/// A threshold with its name, on a line of its own so that two names never meet.
fn threshold(scale: &Scale, at: f64, name: &str, y: f64, bottom: f64) -> Markup {
    if !at.is_finite() {
        return html! {};
    }
    let x = scale.x(at);
    let (anchor, beside) = if x > WIDTH / 2.0 { ("end", x - 5.0) } else { ("start", x + 5.0) };
    html! {
        g class=(format!("threshold {}", name.replace(' ', "-"))) {
            line x1=(px(x)) x2=(px(x)) y1=(px(y - 11.0)) y2=(px(bottom)) {}
            text x=(px(beside)) y=(px(y)) text-anchor=(anchor) { (name) " " (brief(at)) }
        }
    }
}
