//! How sure a figure is: 95 % intervals by the percentile bootstrap (Efron, 1979). The units that a measure is averaged
//! over are resampled with replacement 2,000 times; the interval is what the middle 95 % of the figures span. The seed
//! is fixed, so the same units give the same interval.
//!
//! Where there is little to draw from, the interval says little: one unit can only be drawn again and again, and its
//! interval has no width. Nothing at all gives NaN, see [`quality`].

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::results::{Interval, Measure, Unit};

/// How many resamples are drawn.
const RESAMPLES: usize = 2_000;

/// Share of resamples beyond each end of the interval.
const TAIL: f64 = 0.025;

/// Where every sequence of draws starts.
const SEED: u64 = 0x5eed;

/// The measure over all units, with its interval: exp(Σ sum / Σ count) for perplexity, Σ sum / Σ count for the others.
///
/// One unit gives an interval without width. Without units, or with units that count nothing, there is no figure: value, low
/// and high are NaN, which JSON writes as null. Draws that count nothing are left out. A sum that is not finite gives figures
/// that are not finite.
pub fn quality(measure: Measure, units: &[Unit]) -> Interval {
    interval(units.len(), |drawn| {
        let mean = mean(units, drawn)?;
        Some(if measure == Measure::Perplexity { mean.exp() } else { mean })
    })
    .unwrap_or(Interval { value: f64::NAN, low: f64::NAN, high: f64::NAN })
}

/// The measure compared with dense attention's, with its interval: the ratio for perplexity, the difference (`units` minus
/// `dense`) for the others. Pairs are drawn, the same for both, so that what makes one unit harder than the next cancels.
///
/// None where lengths differ, and where there is nothing to compare: no units, or units that count nothing. Otherwise as
/// [`quality`].
pub fn against(measure: Measure, units: &[Unit], dense: &[Unit]) -> Option<Interval> {
    if units.len() != dense.len() {
        return None;
    }
    interval(units.len(), |drawn| {
        let difference = mean(units, drawn)? - mean(dense, drawn)?;
        Some(if measure == Measure::Perplexity { difference.exp() } else { difference })
    })
}

/// Σ sum / Σ count over the units of these indices; None where they count nothing.
fn mean(units: &[Unit], drawn: &[usize]) -> Option<f64> {
    let sum: f64 = drawn.iter().map(|&index| units[index].sum).sum();
    let count: f64 = drawn.iter().map(|&index| units[index].count).sum();
    (count > 0.0).then(|| sum / count)
}

/// The figure of all indices below `units`, and what it is between for 95 % of the resamples. None where all have no figure.
fn interval(units: usize, figure: impl Fn(&[usize]) -> Option<f64>) -> Option<Interval> {
    let mut drawn: Vec<usize> = (0..units).collect();
    let value = figure(&drawn)?;
    let mut random = SmallRng::seed_from_u64(SEED);
    let resample = |_| {
        drawn.iter_mut().for_each(|index| *index = random.random_range(0..units));
        figure(&drawn)
    };
    let mut figures: Vec<f64> = (0..RESAMPLES).filter_map(resample).collect();
    figures.sort_by(f64::total_cmp);
    let beyond = (figures.len() as f64 * TAIL) as usize;
    let low = figures.get(beyond).copied().unwrap_or(value);
    let high = figures.iter().rev().nth(beyond).copied().unwrap_or(value);
    Some(Interval { value, low, high })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn items(scores: &[f64]) -> Vec<Unit> {
        scores.iter().map(|&sum| Unit { sum, count: 1.0 }).collect()
    }

    /// 0 and 100 in turn: mean 50, standard deviation 50.
    fn halves(units: usize) -> Vec<Unit> {
        (0..units).map(|unit| Unit { sum: (unit % 2) as f64 * 100.0, count: 1.0 }).collect()
    }

    #[test]
    fn the_value_is_the_measure_of_all_units() {
        let blocks = [Unit { sum: 6.0, count: 2.0 }, Unit { sum: 3.0, count: 4.0 }];
        assert_eq!(quality(Measure::Perplexity, &blocks).value, 1.5f64.exp());
        assert_eq!(quality(Measure::F1, &blocks).value, 1.5);
        assert_eq!(quality(Measure::Accuracy, &items(&[0.0, 100.0, 100.0, 0.0])).value, 50.0);
    }

    /// The least k to which a share of the probability of a binomial variable (n, 1/2) belongs.
    fn binomial_quantile(n: usize, share: f64) -> usize {
        let mut log_probability = n as f64 * 0.5f64.ln();
        let mut below = log_probability.exp();
        let mut k = 0;
        while below < share {
            k += 1;
            log_probability += ((n - k + 1) as f64 / k as f64).ln();
            below += log_probability.exp();
        }
        k
    }

    /// A resample of n such units holds k right ones, k binomial (n, 1/2), so both ends follow exactly. The share of
    /// resamples below an end is 2.5 % with a standard error of √(0.025 · 0.975 / 2000): 3 of them are allowed, which chance
    /// exceeds once in 370 times.
    #[rstest]
    fn both_ends_are_quantiles_of_the_binomial_distribution(#[values(100, 400, 1600)] units: usize) {
        let found = quality(Measure::Accuracy, &halves(units));
        let allowed = 3.0 * (TAIL * (1.0 - TAIL) / RESAMPLES as f64).sqrt();
        let [least, most] = [TAIL - allowed, TAIL + allowed]
            .map(|share| 50.0 - 100.0 * binomial_quantile(units, share) as f64 / units as f64);
        for half in [found.value - found.low, found.high - found.value] {
            assert!(most <= half && half <= least, "{found:?}: {half} is not from {most} to {least}");
        }
    }

    /// Samples of 200 from units of which 30 % are right. Of 200 intervals 95 % should hold 30: fewer than 180 would come by
    /// chance once in 900 times, all of them once in 30,000.
    #[test]
    fn about_95_in_100_intervals_hold_the_truth() {
        let mut random = SmallRng::seed_from_u64(1);
        let covered = (0..200).filter(|_| {
            let scores: Vec<f64> =
                (0..200).map(|_| if random.random_bool(0.3) { 100.0 } else { 0.0 }).collect();
            let found = quality(Measure::Accuracy, &items(&scores));
            found.low <= 30.0 && 30.0 <= found.high
        });
        let covered = covered.count();
        assert!((180..200).contains(&covered), "{covered}");
    }

    #[test]
    fn a_constant_difference_has_no_width() {
        let dense = items(&[10.0, 90.0, 40.0, 75.0]);
        let units = items(&[7.0, 87.0, 37.0, 72.0]);
        let found = against(Measure::F1, &units, &dense).unwrap();
        assert_eq!((found.value, found.low, found.high), (-3.0, -3.0, -3.0));
        // Unpaired, both figures are uncertain.
        for unpaired in [quality(Measure::F1, &units), quality(Measure::F1, &dense)] {
            assert!(unpaired.low < unpaired.high, "{unpaired:?}");
        }
    }

    #[test]
    fn perplexities_are_divided() {
        let blocks =
            |extra: f64| [1.0, 2.5, 3.0].map(|mean| Unit { sum: 64.0 * (mean + extra), count: 64.0 });
        let found = against(Measure::Perplexity, &blocks(0.5), &blocks(0.0)).unwrap();
        for figure in [found.value, found.low, found.high] {
            assert!((figure - 0.5f64.exp()).abs() < 1e-12, "{found:?}");
        }
    }

    /// How often a resample holds the one unit that differs is binomial (40, 1/40): 36 % have none, 7.8 % have more than 2,
    /// 1.7 % have more than 3.
    #[test]
    fn a_difference_of_one_unit_counts_how_often_it_is_drawn() {
        let dense = items(&[50.0; 40]);
        let mut units = dense.clone();
        units[7].sum = 90.0;
        let found = against(Measure::F1, &units, &dense).unwrap();
        assert_eq!((found.value, found.low, found.high), (1.0, 0.0, 3.0));
    }

    #[test]
    fn the_same_units_give_the_same_interval() {
        let units = items(&[3.0, 50.0, 70.0, 22.0, 91.0]);
        assert_eq!(quality(Measure::F1, &units), quality(Measure::F1, &units));
    }

    #[rstest]
    #[case(&[])]
    #[case(&[Unit { sum: 0.0, count: 0.0 }])]
    fn nothing_to_average_has_no_figure(#[case] units: &[Unit]) {
        let found = quality(Measure::Perplexity, units);
        assert!(found.value.is_nan() && found.low.is_nan() && found.high.is_nan());
        assert_eq!(against(Measure::Perplexity, units, units), None);
    }

    #[test]
    fn one_unit_has_no_width() {
        let unit = [Unit { sum: 40.0, count: 1.0 }];
        assert_eq!(quality(Measure::F1, &unit), Interval { value: 40.0, low: 40.0, high: 40.0 });
        let zero = Interval { value: 0.0, low: 0.0, high: 0.0 };
        assert_eq!(against(Measure::F1, &unit, &unit), Some(zero));
    }

    #[test]
    fn draws_that_count_nothing_are_left_out() {
        let units = [Unit { sum: 0.0, count: 0.0 }, Unit { sum: 8.0, count: 4.0 }];
        assert_eq!(quality(Measure::F1, &units), Interval { value: 2.0, low: 2.0, high: 2.0 });
    }

    #[test]
    fn units_of_different_number_are_not_compared() {
        assert_eq!(against(Measure::F1, &items(&[1.0, 2.0]), &items(&[1.0])), None);
    }
}
