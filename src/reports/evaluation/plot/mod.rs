//! Quality over what a decode step reads, as a drawing. Where some maskers are close to dense attention and others far away,
//! the upper panel shows them all and the lower one those that are close. Its colours can be read on light and on dark backgrounds.

mod axis;
mod curve;
mod place;

use maud::{Markup, html};

use self::axis::Axis;
use self::curve::{Curve, Point, curves, front};
use self::place::{Area, Taken};
use super::figures;
use crate::evaluation::results::{ContenderResult, Evaluation, Measure};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 66.0;
/// The right margin holds the value of dense attention.
const RIGHT: f64 = 104.0;
const TOP: f64 = 30.0;
/// Between panels: the lower one's title.
const GAP: f64 = 36.0;
/// Below the panels: texts of the axis.
const BOTTOM: f64 = 76.0;
/// Height of a line of the legend.
const LINE: f64 = 22.0;
/// Width of a character of the legend.
const CHARACTER: f64 = 7.4;
/// Colour of text, axes and grid.
const NEUTRAL: &str = "#7a7a7a";
/// A perplexity is close to dense attention's up to this ratio.
const CLOSE: f64 = 1.5;
/// A second panel is worth it from this ratio on.
const FAR: f64 = 2.0;
/// An infinite figure is drawn above all others by this factor.
const INFINITE: f64 = 3.0;
/// Width of the Pareto front.
const FRONT: f64 = 9.0;
const LOWER_IS_BETTER: &str = "perplexity, lower is better";

/// A box of the drawing.
struct Panel {
    title: String,
    area: Area,
    y: Axis,
    /// Lines may leave the box, and are cut off there; else what is infinite lies on its edge.
    cut: bool,
    /// The range that another panel shows in detail, bottom and top in pixels.
    detail: Option<[f64; 2]>,
}

impl Panel {
    fn new(title: &str, area: Area, y: Axis) -> Self {
        Self { title: title.to_owned(), area, y, cut: false, detail: None }
    }

    fn y_of(&self, figure: f64) -> f64 {
        if self.cut { self.y.pixels(figure) } else { self.y.within(figure) }
    }

    /// Pixels of the bar's ends.
    fn bar(&self, point: &Point) -> (f64, f64) {
        let end = |figure: f64| self.y_of(if figure.is_nan() { point.quality.value } else { figure });
        (end(point.quality.low), end(point.quality.high))
    }

    /// Pixels of dense attention's figure, where it has one.
    fn dense_line(&self, dense: &ContenderResult) -> Option<f64> {
        let value = dense.quality.value;
        value.is_finite().then(|| self.y_of(value))
    }
}

/// All that is drawn.
struct Drawing<'a> {
    measure: Measure,
    dense: &'a ContenderResult,
    curves: Vec<Curve>,
    /// The Pareto front of a sweep.
    front: Vec<Point>,
    x: Axis,
    panels: Vec<Panel>,
}

/// The measure over the bytes that a decode step reads in a layer, as a share of dense attention's: one line for each masker. A
/// file of its own.
pub fn plot(evaluation: &Evaluation) -> Markup {
    drawing(evaluation, Some("http://www.w3.org/2000/svg"))
}

/// The same as part of a page, without the XML namespace.
pub(in crate::reports) fn inline(evaluation: &Evaluation) -> Markup {
    drawing(evaluation, None)
}

fn drawing(evaluation: &Evaluation, name_space: Option<&str>) -> Markup {
    let drawing = evaluation.rows.first().map(|dense| Drawing::new(evaluation, dense));
    let title = format!("{} over bytes read in a decode step", figures::measure_name(evaluation.measure));
    let height = drawing.as_ref().map_or(TOP, Drawing::height);
    html! {
        svg.curves xmlns=[name_space] viewBox=(format!("0 0 {WIDTH} {height}")) width=(WIDTH) height=(height)
            font-family="sans-serif" font-size="13" fill=(NEUTRAL) role="img" aria-label=(title) {
            title { (title) }
            @if let Some(drawing) = &drawing { (drawing.render()) }
        }
    }
}

impl<'a> Drawing<'a> {
    fn new(evaluation: &'a Evaluation, dense: &'a ContenderResult) -> Self {
        let curves = curves(evaluation);
        let percents = curves.iter().flat_map(|curve| &curve.points).map(|point| point.percent);
        let x = Axis::logarithmic(&percents.chain([100.0]).collect::<Vec<_>>(), LEFT, WIDTH - RIGHT);
        let panels = panels(evaluation.measure, dense.quality.value, &curves);
        Self { measure: evaluation.measure, dense, curves, front: front(evaluation), x, panels }
    }

    fn is_infinite(&self) -> bool {
        let mut points = self.curves.iter().flat_map(|curve| &curve.points);
        points.any(|point| point.quality.value == f64::INFINITY)
    }

    fn bottom(&self) -> f64 {
        self.panels.last().map_or(TOP, |panel| panel.area.bottom)
    }

    /// Columns of the legend.
    fn columns(&self) -> usize {
        let longest = self.curves.iter().map(|curve| curve.name.chars().count()).max().unwrap_or(0);
        let width = 60.0 + CHARACTER * longest as f64;
        (((WIDTH - LEFT) / width) as usize).clamp(1, 3)
    }

    fn height(&self) -> f64 {
        let lines = (self.curves.len() + 1 + usize::from(!self.front.is_empty())).div_ceil(self.columns());
        self.bottom() + BOTTOM + LINE * lines as f64 + 8.0
    }

    fn render(&self) -> Markup {
        html! {
            @for panel in &self.panels {
                (self.grid(panel))
                (self.data(panel))
                (self.labels(panel))
            }
            (self.below())
            (self.legend())
        }
    }

    fn grid(&self, panel: &Panel) -> Markup {
        let Area { left, top, right, bottom } = panel.area;
        html! {
            @if let Some([bottom, top]) = panel.detail {
                rect x=(px(left)) y=(px(top)) width=(px(right - left)) height=(px(bottom - top)) fill-opacity="0.14" {}
            }
            g stroke=(NEUTRAL) stroke-opacity="0.3" {
                @for (percent, _) in self.x.ticks() {
                    @let x = px(self.x.pixels(percent));
                    line x1=(x) x2=(x) y1=(px(top)) y2=(px(bottom)) {}
                }
                @for (value, _) in panel.y.ticks() {
                    @let y = px(panel.y.pixels(value));
                    line x1=(px(left)) x2=(px(right)) y1=(y) y2=(y) {}
                }
            }
            g text-anchor="end" {
                @for (value, text) in panel.y.ticks() {
                    text x=(px(left - 8.0)) y=(px(panel.y.pixels(value) + 4.5)) { (text) }
                }
                @if !panel.cut && self.is_infinite() {
                    text x=(px(left - 8.0)) y=(px(panel.y.within(f64::INFINITY) + 4.5)) { "∞" }
                }
            }
            text x=(px(left)) y=(px(top - 10.0)) { (panel.title) }
        }
    }

    /// Lines, bars and markers; a box of its own cuts off what leaves the panel.
    fn data(&self, panel: &Panel) -> Markup {
        let Area { left, top, right, bottom } = panel.area;
        let (width, height) = (px(right - left), px(bottom - top));
        let view = format!("{} {} {width} {height}", px(left), px(top));
        html! {
            svg x=(px(left)) y=(px(top)) width=(width) height=(height) viewBox=(view) overflow="hidden" {
                @if let Some(y) = panel.dense_line(self.dense) {
                    line x1=(px(left)) x2=(px(right)) y1=(px(y)) y2=(px(y)) stroke=(NEUTRAL) stroke-width="1.6" {}
                }
                (self.front(panel))
                @for curve in self.curves.iter().rev() { (self.line(panel, curve)) }
            }
        }
    }

    /// A broad line below the others.
    fn front(&self, panel: &Panel) -> Markup {
        let path: Vec<_> = self.front.iter().map(|point| self.place(panel, point)).map(pair).collect();
        html! {
            @if !path.is_empty() {
                polyline points=(path.join(" ")) fill="none" stroke=(NEUTRAL) stroke-width=(FRONT) stroke-opacity="0.35" {}
            }
        }
    }

    fn line(&self, panel: &Panel, curve: &Curve) -> Markup {
        let path: Vec<_> = curve.points.iter().map(|point| self.place(panel, point)).map(pair).collect();
        html! {
            g stroke=(curve.colour) fill=(curve.colour) {
                polyline points=(path.join(" ")) fill="none" stroke-width="1.8" stroke-dasharray=(curve.dashes) {}
                @for point in &curve.points {
                    @let (x, _) = self.place(panel, point);
                    @let (low, high) = panel.bar(point);
                    line x1=(px(x)) x2=(px(x)) y1=(px(low)) y2=(px(high)) stroke-width="1.4" {}
                    path d=(format!("M{}{}", pair(self.place(panel, point)), curve.marker)) stroke-width="1.4" {
                        title { (point.title) }
                    }
                }
            }
        }
    }

    fn place(&self, panel: &Panel, point: &Point) -> (f64, f64) {
        (self.x.within(point.percent), panel.y_of(point.quality.value))
    }

    /// H beside points, and what dense attention reaches.
    fn labels(&self, panel: &Panel) -> Markup {
        let mut taken = self.taken(panel);
        let mut labels: Vec<(f64, f64, String)> = Vec::new();
        for point in self.curves.iter().flat_map(|curve| &curve.points) {
            let (Some(text), place) = (point.label.clone(), self.place(panel, point)) else { continue };
            let said = labels.iter().any(|(x, _, label)| *label == text && (x - place.0).abs() < 50.0);
            if said || !panel.area.holds(place, 0.0) {
                continue;
            }
            labels.extend(taken.label(&text, place).map(|(x, y)| (x, y, text)));
        }
        let value = figures::quality_value(self.dense.quality.value, self.measure);
        html! {
            g font-size="11.5" { @for (x, y, text) in &labels { text x=(px(*x)) y=(px(*y)) { (text) } } }
            @if let Some(y) = panel.dense_line(self.dense) {
                text x=(px(panel.area.right + 6.0)) y=(px(y + 4.5)) { "dense " (value) }
            }
        }
    }

    fn taken(&self, panel: &Panel) -> Taken {
        let mut taken = Taken::new(panel.area);
        if let Some(y) = panel.dense_line(self.dense) {
            taken.line((panel.area.left, y), (panel.area.right, y));
        }
        for curve in &self.curves {
            let places: Vec<_> = curve.points.iter().map(|point| self.place(panel, point)).collect();
            for ends in places.windows(2) {
                taken.line(ends[0], ends[1]);
            }
            for (point, &place) in curve.points.iter().zip(&places) {
                let (low, high) = panel.bar(point);
                taken.line((place.0, low), (place.0, high));
                taken.marker(place);
            }
        }
        taken
    }

    /// The axis that all panels share.
    fn below(&self) -> Markup {
        let bottom = self.bottom();
        html! {
            g text-anchor="middle" {
                @for (percent, text) in self.x.ticks() {
                    text x=(px(self.x.pixels(percent))) y=(px(bottom + 19.0)) { (text) " %" }
                }
                text x=(px((LEFT + WIDTH - RIGHT) / 2.0)) y=(px(bottom + 41.0)) {
                    "bytes that a decode step reads in a layer, share of dense attention's"
                }
                text x=(px((LEFT + WIDTH - RIGHT) / 2.0)) y=(px(bottom + 61.0)) font-size="11.5" {
                    "bars: 95 % intervals of the comparison with dense attention; H: keys selected"
                }
            }
        }
    }

    fn legend(&self) -> Markup {
        let columns = self.columns();
        let place = |index: usize| {
            let x = LEFT + (index % columns) as f64 * (WIDTH - LEFT) / columns as f64;
            (x, self.bottom() + BOTTOM + LINE * ((index / columns) as f64 + 0.5))
        };
        html! {
            @for (index, curve) in self.curves.iter().enumerate() {
                (key(place(index), &curve.name, curve.colour, curve.dashes, Some(curve.marker)))
            }
            (key(place(self.curves.len()), &self.dense.masker, NEUTRAL, "none", None))
            @if !self.front.is_empty() {
                @let (x, y) = place(self.curves.len() + 1);
                line x1=(px(x)) x2=(px(x + 36.0)) y1=(px(y)) y2=(px(y)) stroke=(NEUTRAL) stroke-width=(FRONT) stroke-opacity="0.35" {}
                text x=(px(x + 44.0)) y=(px(y + 4.5)) { "Pareto front" }
            }
        }
    }
}

/// A line of the legend.
fn key((x, y): (f64, f64), name: &str, colour: &str, dashes: &str, marker: Option<&str>) -> Markup {
    html! {
        line x1=(px(x)) x2=(px(x + 36.0)) y1=(px(y)) y2=(px(y)) stroke=(colour) stroke-width="1.8" stroke-dasharray=(dashes) {}
        @if let Some(marker) = marker {
            path d=(format!("M{}{marker}", pair((x + 18.0, y)))) fill=(colour) stroke=(colour) stroke-width="1.4" {}
        }
        text x=(px(x + 44.0)) y=(px(y + 4.5)) { (name) }
    }
}

fn area(top: f64, height: f64) -> Area {
    Area { left: LEFT, top, right: WIDTH - RIGHT, bottom: top + height }
}

/// One panel, or two where perplexities are both close to dense attention's and far from it.
fn panels(measure: Measure, dense: f64, curves: &[Curve]) -> Vec<Panel> {
    let points = || curves.iter().flat_map(|curve| &curve.points).map(|point| point.quality);
    let all: Vec<f64> =
        points().flat_map(|quality| [quality.value, quality.low, quality.high]).chain([dense]).collect();
    let is_far = points().any(|quality| quality.value > FAR * dense);
    let is_close = points().any(|quality| quality.value <= CLOSE * dense);
    let single = area(TOP, 340.0);
    match measure {
        Measure::Perplexity if is_far && is_close => two_panels(&all, dense),
        Measure::Perplexity => {
            vec![Panel::new(
                LOWER_IS_BETTER,
                single,
                Axis::logarithmic(&with_room(&all), single.bottom, single.top),
            )]
        }
        Measure::F1 | Measure::Accuracy => {
            let title = format!("{}, higher is better", figures::measure_name(measure));
            vec![Panel::new(&title, single, Axis::linear(&all, single.bottom, single.top))]
        }
    }
}

fn two_panels(all: &[f64], dense: f64) -> Vec<Panel> {
    let (upper, lower) = (area(TOP, 190.0), area(TOP + 190.0 + GAP, 260.0));
    let close: Vec<f64> = all.iter().copied().filter(|figure| *figure <= CLOSE * dense).collect();
    let y = Axis::logarithmic(&close, lower.bottom, lower.top);
    let every = Axis::logarithmic(&with_room(all), upper.bottom, upper.top);
    let detail = y.ends().map(|figure| every.within(figure));
    vec![
        Panel { detail: Some(detail), ..Panel::new(LOWER_IS_BETTER, upper, every) },
        Panel {
            cut: true,
            ..Panel::new("the shaded range: perplexity close to dense attention's", lower, y)
        },
    ]
}

/// Room for what is infinite above what is not.
fn with_room(figures: &[f64]) -> Vec<f64> {
    let mut figures = figures.to_vec();
    if figures.contains(&f64::INFINITY) {
        let finite = figures.iter().copied().filter(|figure| figure.is_finite());
        figures.push(INFINITE * finite.fold(0.0, f64::max));
    }
    figures
}

fn px(x: f64) -> String {
    format!("{x:.1}")
}

fn pair((x, y): (f64, f64)) -> String {
    format!("{},{}", px(x), px(y))
}
