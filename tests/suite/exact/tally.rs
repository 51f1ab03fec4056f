//! What was compared: for each rule and type how many radii, how many results of one order and one way of rounding, and the largest
//! error as a share of its radius.

use std::collections::BTreeMap;

use doublecheck::verdicts::bounds::{Approximate, U64};

use super::numbers::Exact;
use super::rounding::Rounder;

/// A rule, the type of q, k and v, and the type that is kept.
pub type Place = (&'static str, String);

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    /// Numbers with a radius.
    pub radii: u64,
    /// Results compared with one.
    pub results: u64,
    /// Results without a bound, as something may overflow or vanish.
    pub open: u64,
    /// The largest error, as a share of the radius, of numbers of their type.
    pub real: f64,
    /// The same of what an adversary may have.
    pub adversary: f64,
    /// What fell outside.
    pub outside: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally(pub BTreeMap<Place, Line>);

impl Tally {
    pub fn radius(&mut self, place: &Place) {
        self.0.entry(place.clone()).or_default().radii += 1;
    }

    /// Compares a result with what is allowed.
    pub fn compare(
        &mut self,
        place: &Place,
        allowed: Approximate,
        found: &Exact,
        r: &Rounder,
        what: &dyn Fn() -> String,
    ) {
        let line = self.0.entry(place.clone()).or_default();
        let may_be_infinite = allowed.may_be_minus_infinity || allowed.may_be_plus_infinity;
        // What becomes of an infinity is not computed here, but tested in `bounds` and `widths`.
        if !allowed.radius.is_finite() || may_be_infinite || r.overflowed {
            line.open += 1;
            return;
        }
        line.results += 1;
        let error = found.minus(&Exact::of(allowed.value)).abs();
        let radius = Exact::of(allowed.radius);
        // The verdict computes value and radius in f64: an adversary, who may choose any number and not only those of its type, reaches
        // the end to the last bit where each rounding counts once.
        let slack = if r.way.is_real() { 0.0 } else { 16.0 * U64 * (allowed.value.abs() + allowed.radius) };
        let is_outside = error.compare(&radius.plus(&Exact::of(slack))).is_gt();
        if is_outside && line.outside.len() < 3 {
            let (found, way) = (found.to_f64(), r.way);
            line.outside.push(format!("{found:e} by {way:?}, of {allowed:?}: {}", what()));
        }
        if error.is_zero() {
            return;
        }
        let share = error.over(&radius).to_f64();
        let largest = if r.way.is_real() { &mut line.real } else { &mut line.adversary };
        *largest = largest.max(share);
    }

    pub fn merge(&mut self, other: Self) {
        for (place, line) in other.0 {
            let of = self.0.entry(place).or_default();
            of.radii += line.radii;
            of.results += line.results;
            of.open += line.open;
            of.real = of.real.max(line.real);
            of.adversary = of.adversary.max(line.adversary);
            of.outside.extend(line.outside);
        }
    }

    /// A line for each rule and type.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<44} {:<18} {:>9} {:>11} {:>9} {:>9} {:>9}\n",
            "rule", "type", "radii", "results", "open", "rounded", "adversary"
        );
        for ((rule, types), line) in &self.0 {
            let Line { radii, results, open, real, adversary, .. } = line;
            text += &format!(
                "{rule:<44} {types:<18} {radii:>9} {results:>11} {open:>9} {real:>9.4} {adversary:>9.4}\n"
            );
        }
        let sum = |of: fn(&Line) -> u64| self.0.values().map(of).sum::<u64>();
        text += &format!(
            "{:<44} {:<18} {:>9} {:>11} {:>9}\n",
            "all",
            "",
            sum(|line| line.radii),
            sum(|line| line.results),
            sum(|line| line.open)
        );
        text
    }
}
