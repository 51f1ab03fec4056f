//! The time of a step over n as a drawing, both axes logarithmic. Its colours can be read on light and on dark ground.

use maud::{Markup, html};

use super::estimates::points;
use super::measured::Measured;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 60.0;
/// Of text, axes and grid.
const NEUTRAL: &str = "#7a7a7a";

/// A named line.
struct Curve {
    name: &'static str,
    colour: &'static str,
    /// Dashes tell lines apart without colours.
    dashes: &'static str,
    points: Vec<(f64, f64)>,
}

/// From n and ms to pixels.
struct Scale {
    /// Powers of two.
    keys: (i32, i32),
    /// Powers of ten.
    ms: (i32, i32),
}

impl Scale {
    fn of(curves: &[Curve]) -> Self {
        let ends = |of: fn(&(f64, f64)) -> f64| {
            let logs = curves.iter().flat_map(|curve| &curve.points).map(of);
            let (low, high) =
                logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
            (low.floor() as i32, high.ceil() as i32)
        };
        Self { keys: ends(|point| point.0.log2()), ms: ends(|point| point.1.log10()) }
    }

    fn x(&self, keys: f64) -> f64 {
        let (low, high) = self.keys;
        LEFT + (keys.log2() - f64::from(low)) / f64::from((high - low).max(1)) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, ms: f64) -> f64 {
        let (low, high) = self.ms;
        let share = (ms.log10() - f64::from(low)) / f64::from((high - low).max(1));
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

/// Engine, dense attention and reference.
pub fn step_over_keys(measured: &Measured) -> Markup {
    let reference = points(&measured.estimates, "masker m=1", "reference B=4");
    let curve = |name, colour, dashes, points| Curve { name, colour, dashes, points };
    let mut curves = vec![
        curve("reference: mask from raw keys, B = 4", "#cc79a7", "2 4", reference),
        curve("torch: dense attention", "#d55e00", "8 4", measured.dense_growth()),
        curve("engine: decode step, B = 16", "#009e73", "none", measured.growth(16)),
        curve("engine: decode step, B = 4", "#3f8fd0", "none", measured.growth(4)),
    ];
    curves.retain(|curve| !curve.points.is_empty());
    let title = "Time of a decode step over the number of keys";
    html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) width=(WIDTH) height=(HEIGHT)
            font-family="sans-serif" font-size="13" fill=(NEUTRAL) role="img" aria-label=(title) {
            title { (title) }
            @if !curves.is_empty() {
                @let scale = Scale::of(&curves);
                (grid(&scale))
                @for curve in &curves { (line(&scale, curve)) }
                @for (index, curve) in curves.iter().enumerate() { (key(index, curve)) }
            }
        }
    }
}

fn px(x: f64) -> String {
    format!("{x:.1}")
}

fn grid(scale: &Scale) -> Markup {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let middle = format!("translate(18 {}) rotate(-90)", px((TOP + bottom) / 2.0));
    html! {
        g stroke=(NEUTRAL) stroke-opacity="0.35" {
            @for power in scale.keys.0..=scale.keys.1 {
                @let x = px(scale.x(f64::from(power).exp2()));
                line x1=(x) x2=(x) y1=(px(TOP)) y2=(px(bottom)) {}
            }
            @for power in scale.ms.0..=scale.ms.1 {
                @let y = px(scale.y(10f64.powi(power)));
                line x1=(px(LEFT)) x2=(px(right)) y1=(y) y2=(y) {}
            }
        }
        g text-anchor="middle" {
            @for power in scale.keys.0..=scale.keys.1 {
                @let x = px(scale.x(f64::from(power).exp2()));
                text x=(x) y=(px(bottom + 20.0)) { "2" tspan dy="-5" font-size="10" { (power) } }
            }
            text x=(px((LEFT + right) / 2.0)) y=(px(HEIGHT - 14.0)) { "cached keys n" }
            text transform=(middle) { "time (ms)" }
        }
        g text-anchor="end" {
            @for power in scale.ms.0..=scale.ms.1 {
                text x=(px(LEFT - 8.0)) y=(px(scale.y(10f64.powi(power)) + 4.5)) { (10f64.powi(power)) }
            }
        }
    }
}

fn line(scale: &Scale, curve: &Curve) -> Markup {
    let place = |&(keys, ms): &(f64, f64)| (px(scale.x(keys)), px(scale.y(ms)));
    let places: Vec<_> = curve.points.iter().map(place).collect();
    let path: Vec<_> = places.iter().map(|(x, y)| format!("{x},{y}")).collect();
    html! {
        polyline points=(path.join(" ")) fill="none" stroke=(curve.colour) stroke-width="2.2"
            stroke-dasharray=(curve.dashes) {}
        @for (x, y) in &places { circle cx=(x) cy=(y) r="3.4" fill=(curve.colour) {} }
    }
}

/// One line of the legend, at the upper left.
fn key(index: usize, curve: &Curve) -> Markup {
    let (x, y) = (LEFT + 14.0, TOP + 20.0 * (index as f64 + 1.0));
    html! {
        line x1=(px(x)) x2=(px(x + 30.0)) y1=(px(y)) y2=(px(y)) stroke=(curve.colour) stroke-width="2.2"
            stroke-dasharray=(curve.dashes) {}
        circle cx=(px(x + 15.0)) cy=(px(y)) r="3.4" fill=(curve.colour) {}
        text x=(px(x + 38.0)) y=(px(y + 4.5)) { (curve.name) }
    }
}
