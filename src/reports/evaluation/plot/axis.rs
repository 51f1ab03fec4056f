//! Axes: from a figure to pixels, and the round numbers beside them.

use crate::reports::html::numbers::{brief, ticks};

/// Most round numbers along a logarithmic axis.
const MOST_TICKS: usize = 9;
/// Ranges up to this ratio have evenly spaced round numbers.
const NARROW: f64 = 4.0;
/// Pixels between an end and the marker of what lies beyond.
const EDGE: f64 = 6.0;

/// A range of figures along a line of pixels. All pixels are finite.
#[derive(Debug, Clone)]
pub struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Pixels of `low`.
    start: f64,
    /// Pixels of `high`.
    end: f64,
}

impl Axis {
    /// Covers all figures with some room on both sides, at least 0.02 decades; figures without a logarithm are left out.
    pub fn logarithmic(figures: &[f64], start: f64, end: f64) -> Self {
        let positive = figures.iter().copied().filter(|x| x.is_finite() && *x > 0.0);
        let (low, high) = extremes(positive.map(f64::log10)).unwrap_or((0.0, 1.0));
        let room = (0.06 * (high - low)).max(0.02);
        Self { low: low - room, high: high + room, logarithmic: true, start, end }
    }

    /// Covers all finite figures with some room on both sides, at least 2.
    pub fn linear(figures: &[f64], start: f64, end: f64) -> Self {
        let (low, high) = extremes(figures.iter().copied().filter(|x| x.is_finite())).unwrap_or((0.0, 100.0));
        let room = (0.06 * (high - low)).max(2.0);
        Self { low: low - room, high: high + room, logarithmic: false, start, end }
    }

    /// The pixel of a figure, always finite: far beyond an end if the figure is off the axis, at the start for NaN.
    pub fn pixels(&self, figure: f64) -> f64 {
        let place = if self.logarithmic { figure.log10() } else { figure };
        let share = (place - self.low) / (self.high - self.low);
        let share = if share.is_nan() { 0.0 } else { share.clamp(-50.0, 50.0) };
        self.start + share * (self.end - self.start)
    }

    /// The pixel of a figure, just inside the edge if the figure is off the axis.
    pub fn within(&self, figure: f64) -> f64 {
        let (least, most) = (self.start.min(self.end), self.start.max(self.end));
        self.pixels(figure).clamp(least + EDGE, most - EDGE)
    }

    /// The first and the last figure.
    pub fn ends(&self) -> [f64; 2] {
        [self.low, self.high].map(|end| if self.logarithmic { 10f64.powf(end) } else { end })
    }

    /// Round numbers on the axis, each with its text.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        if !self.logarithmic {
            return ticks(self.low, self.high);
        }
        let [low, high] = self.ends();
        if high / low < NARROW {
            return ticks(low, high).into_iter().map(|(x, _)| (x, brief(x))).collect();
        }
        round_numbers(self.low, self.high).into_iter().map(|x| (x, brief(x))).collect()
    }
}

fn extremes(numbers: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let grow = |(low, high): (f64, f64), x: f64| (low.min(x), high.max(x));
    Some(numbers.fold((f64::INFINITY, f64::NEG_INFINITY), grow)).filter(|(low, high)| low <= high)
}

/// 1, 2, 5 or fewer of each power of ten, between two logarithms.
fn round_numbers(low: f64, high: f64) -> Vec<f64> {
    let powers = || low.floor() as i32..=high.ceil() as i32;
    let numbers = |factors: &[f64]| -> Vec<f64> {
        let of_power = |power: i32| factors.iter().map(move |factor| factor * 10f64.powi(power));
        powers().flat_map(of_power).filter(|x| (low..=high).contains(&x.log10())).collect()
    };
    let sparser = [&[1.0, 2.0, 5.0][..], &[1.0, 3.0], &[1.0]].map(numbers);
    let fit = sparser.iter().find(|numbers| numbers.len() <= MOST_TICKS);
    let each = sparser[2].len().div_ceil(MOST_TICKS).max(1);
    fit.cloned().unwrap_or_else(|| sparser[2].iter().copied().step_by(each).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_few_and_round() {
        let axis = |low, high| Axis::logarithmic(&[low, high], 0.0, 100.0);
        assert_eq!(
            texts(&axis(12.0, 4000.0)),
            ["10", "20", "50", "100", "200", "500", "1000", "2000", "5000"]
        );
        assert_eq!(texts(&axis(12.2, 18.0)), ["12", "14", "16", "18"]);
        assert_eq!(texts(&axis(4.0, 100.0)), ["5", "10", "20", "50", "100"]);
        assert!(texts(&axis(1e-300, 1e300)).len() <= MOST_TICKS);
        assert!(!texts(&axis(5.0, 5.0)).is_empty());
    }

    #[test]
    fn pixels_are_finite() {
        let figures = [0.0, -1.0, 1.0, 1e300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        let nothing = Axis::logarithmic(&[f64::NAN, f64::INFINITY], 0.0, 100.0);
        for axis in [nothing, Axis::linear(&figures, 100.0, 0.0)] {
            for figure in figures {
                assert!(axis.pixels(figure).is_finite());
                assert!((0.0..=100.0).contains(&axis.within(figure)));
            }
        }
    }
}
