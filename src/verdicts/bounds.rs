//! Error bounds of floating-point arithmetic (SPEC §5), the only source of tolerances in this crate.
//!
//! With unit roundoff u (2^-24 in f32, 2^-11 in f16, 2^-8 in bf16, 2^-53 in f64), one operation gives the exact result
//! times (1 + δ) plus η, |δ| ≤ u, |η| at most the smallest normal number (so that flushing subnormals to zero is
//! covered). A sum of k products gives, for *every* order of summation, with or without fused operations,
//!
//! > |computed − Σ xᵢyᵢ| ≤ γ_k Σ |xᵢyᵢ|, γ_k = k·u / (1 − k·u)
//!
//! (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., §3.1, lemma 3.1 and eq. 3.5.) From these two:
//!
//! * **score** (SPEC §2.6): the sum over r products under γ_r of the accumulation type; rounding of the sum to the kept
//!   type; √r, its reciprocal and the product, or one division, under γ_3 of f32; rounding to the kept type; A rounded
//!   to the kept type, the addition, rounding. Where A is 0 nothing is added.
//! * **tf32**: an operand rounded or cut to 11 significant bits is off by 2^-10 relatively, a product by 2·2^-10 + 2^-20, which the sum
//!   carries. Operands of f16 and bf16 are not changed. (Nothing is said of operands that are subnormal in f32.)
//! * **products rounded to storage**: u of that type for each, which the sum carries, with its underflow; one that may leave the type may be
//!   an infinity. In the attention products of exponentials and values are rounded, too, of exponentials relative to the largest logit
//!   attended to: relative to a larger one an underflow would have no bound here.
//! * **factor before the sum**: each number of q is multiplied by the factor as a score is, γ_3 of f32 and a rounding to the kept type,
//!   and carries that into the products as a label's radius; the sum is not multiplied again and overflows by what it then is.
//! * **labels off by ρ**: |q̃k̃ − qk| ≤ |q|ρ_k + ρ_q|k| + ρ_qρ_k for each product.
//! * **channel weights** (SPEC §2.12): the weight rounded to the kept type or not, which is known exactly, and the product rounded to
//!   the kept type. A kernel that multiplies k̂ instead in f32, or the products, rounds as often, by shares of the same magnitudes.
//! * **head sum** (SPEC §2.7): sums of h terms in f32 at least under γ_{h+2} (the two more allow a mean), rounded to the
//!   kept type. A mean multiplies that by 1/h, as a factor. A maximum rounds nothing: its smallest value is the largest of the
//!   smallest, its largest the largest of the largest.
//! * **ranks** (SPEC §2.12): the head rule within each part, with all of its roundings; where parts are exchanged in another type,
//!   one rounding to it, half a unit in the last place of a part, u of that type times its magnitude at most; then t − 1 additions in
//!   that type or wider and a last rounding to it, γ_t: whether partial sums are rounded to it depends on how they are reduced.
//!   The certificate's own value rounds no part, so that its radius holds what the reference rounds, too.
//! * **norm** (of the rule `cosine`): the sum of r squares as a sum of products, where a label off by ρ moves its square by
//!   2|x|ρ + ρ² at most; its square root under γ_4 of f32, as roots on GPUs are within 2 units, rounded to the kept type.
//! * **cosine**: the product of two norms, rounded; ε rounded to the kept type, the addition, rounding; the quotient under γ_4
//!   of f32, rounded. Each is monotone in each operand, so that its extremes lie at the ends of the operands' intervals. A
//!   denominator that may be 0, or a dot product that may overflow, leaves nothing to say.
//! * **relu**: max(x, 0) rounds nothing. The head weight is rounded to the kept type, the product rounded. Where w · factor is
//!   computed first, the same roundings occur, γ_3 of f32 among them, and its underflow is multiplied by the dot product.
//!
//! A value that can lie beyond the largest number of the kept type may be an infinity of that sign, which leaves the other
//! side of its interval as it is: a mask of the most negative number does not make a key a candidate for the largest score.
//! Where an f32 sum of products can overflow on the way, both sides are open. A score that may be +∞ before A = −∞ is added
//! may be NaN after it, and rank anywhere.

use crate::algorithm::config::Combined;
use crate::algorithm::{Ranks, Storage};
use crate::cases::{Accumulation, FactorOrder, Products, RoundingModel};

/// u of f32.
pub const U32: f64 = 1.0 / (1u64 << 24) as f64;
/// u of f64.
pub const U64: f64 = 1.0 / (1u64 << 53) as f64;

/// γ_k: the relative error bound of k roundings; infinite where k·u reaches 1.
#[inline]
pub fn gamma(operations: usize, unit_roundoff: f64) -> f64 {
    let ku = operations as f64 * unit_roundoff;
    if ku < 1.0 { ku / (1.0 - ku) } else { f64::INFINITY }
}

/// The relative error of a mean Σ e·v / Σ e of `terms` values that the verdicts recompute in f64, as a share of Σ e·|v| / Σ e.
///
/// One exponential carries the rounding of its exponent x = w − max, u·|x|, where |x| < 746 as exp(x) is 0 in f64 below −745.14;
/// two of exp itself, which is within one unit in the last place; one of the division by the weight: 749 in all. It stands in
/// the numerator and in the denominator. The sums round `terms` − 1 times each, products and the division twice.
#[inline]
pub fn recomputed_mean(terms: usize) -> f64 {
    const OF_ONE_EXPONENTIAL: usize = 746 + 2 + 1;
    gamma(2 * (OF_ONE_EXPONENTIAL + terms), U64)
}

/// The absolute error that an underflow of a type can add: η.
#[inline]
pub fn underflow(storage: Storage) -> f64 {
    match storage {
        // No processor flushes subnormal f16 numbers, so the error is half their spacing.
        Storage::F16 => storage.smallest_subnormal() / 2.0,
        Storage::F32 | Storage::Bf16 => storage.smallest_normal(),
    }
}

/// A number known up to a radius.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Approximate {
    /// Recomputed in f64.
    pub value: f64,
    /// How far a conforming implementation may be from it, unless it overflows.
    pub radius: f64,
    /// Whether an implementation may have −∞.
    pub may_be_minus_infinity: bool,
    /// Whether an implementation may have +∞.
    pub may_be_plus_infinity: bool,
}

impl Approximate {
    /// The score of a key that A excludes.
    pub const EXCLUDED: Self = Self::new(f64::NEG_INFINITY, 0.0);

    /// NaN, which may rank anywhere.
    pub const UNDETERMINED: Self =
        Self { value: 0.0, radius: f64::INFINITY, may_be_minus_infinity: true, may_be_plus_infinity: true };

    /// A number up to a radius.
    pub const fn new(value: f64, radius: f64) -> Self {
        Self { value, radius, may_be_minus_infinity: false, may_be_plus_infinity: false }
    }

    /// All numbers from `low` to `high`; any number where one of them is infinite.
    ///
    /// With M the larger magnitude of the two, centre and radius are rounded by u·|low + high|/2 and u·(high − low)/2, together
    /// u·M, and [`Self::low`] or [`Self::high`] once more by u·M: γ_3·M covers these and its own addition.
    pub fn hull(low: f64, high: f64) -> Self {
        if !(low.is_finite() && high.is_finite()) {
            return Self::new(0.0, f64::INFINITY);
        }
        Self::new((low + high) / 2.0, (high - low) / 2.0 + gamma(3, U64) * low.abs().max(high.abs()))
    }

    /// The smallest value that an implementation may have.
    pub fn low(self) -> f64 {
        if self.may_be_minus_infinity { f64::NEG_INFINITY } else { self.value - self.radius }
    }

    /// The largest value that an implementation may have.
    pub fn high(self) -> f64 {
        if self.may_be_plus_infinity { f64::INFINITY } else { self.value + self.radius }
    }

    /// The same number with the other sign.
    pub fn negated(self) -> Self {
        Self {
            value: -self.value,
            radius: self.radius,
            may_be_minus_infinity: self.may_be_plus_infinity,
            may_be_plus_infinity: self.may_be_minus_infinity,
        }
    }

    fn magnitude(self) -> f64 {
        self.value.abs() + self.radius
    }

    fn widen(self, by: f64) -> Self {
        Self { radius: self.radius + by, ..self }
    }

    fn open(self, minus: bool, plus: bool) -> Self {
        Self {
            may_be_minus_infinity: self.may_be_minus_infinity || minus,
            may_be_plus_infinity: self.may_be_plus_infinity || plus,
            ..self
        }
    }
}

/// A rounding model at work on values of one storage type.
#[derive(Debug, Clone, Copy)]
pub struct Arithmetic {
    /// Unit roundoff of sums of products.
    pub accumulation: f64,
    /// The largest partial sum that does not overflow, and the error that an underflow of one adds.
    pub sum_range: (f64, f64),
    /// The type that scores and logits are rounded to.
    pub kept: Storage,
    /// The relative error of a product of two operands that are rounded first.
    pub product: f64,
    /// Whether the factor is multiplied into q before the sum.
    pub factor_first: bool,
}

/// Whether x and what is added, which may be −∞ or +∞, may be infinities of opposite signs, whose sum is NaN.
fn opposite(x: Approximate, (minus, plus): (bool, bool)) -> bool {
    (x.may_be_plus_infinity && minus) || (x.may_be_minus_infinity && plus)
}

/// Whether q or k may have more significant bits than tf32: in f32, and where q is multiplied by a factor first.
fn is_wide(model: RoundingModel, storage: Storage) -> bool {
    storage == Storage::F32 || model.factor == FactorOrder::Before
}

/// How far a product is off relatively where each operand is rounded or cut to 11 significant bits: (1 + 2^-10)² − 1. Numbers of
/// f16 and bf16 have no more. A product that is rounded itself is off by u of the storage type.
pub(super) fn product_error(products: Products, wide: bool, storage: Storage) -> f64 {
    const CUT: f64 = 1.0 / 1024.0;
    match products {
        Products::Tf32 if wide => 2.0 * CUT + CUT * CUT,
        Products::Tf32 | Products::Exact => 0.0,
        Products::Storage => storage.unit_roundoff(),
    }
}

/// The largest partial sum that does not overflow, and the error that an underflow adds to a sum for each of its products: both of a
/// product as well where that is rounded. Magnitudes of all products together bound each.
fn sum_range(model: RoundingModel, products: Products, storage: Storage) -> (f64, f64) {
    let largest = match model.accumulation {
        Accumulation::F32 => Storage::F32.largest(),
        Accumulation::F64 => f64::INFINITY,
    };
    let of_sums = (largest, Storage::F32.smallest_normal());
    match products {
        Products::Exact | Products::Tf32 => of_sums,
        Products::Storage => (of_sums.0.min(storage.largest()), of_sums.1 + underflow(storage)),
    }
}

impl Arithmetic {
    /// The arithmetic of the attention that a model allows for a storage type.
    pub fn of_attention(model: RoundingModel, storage: Storage) -> Self {
        let (products, scores) = (model.attention_products, Self::new(model, storage));
        Self {
            product: product_error(products, is_wide(model, storage), storage),
            sum_range: sum_range(model, products, storage),
            ..scores
        }
    }

    /// The same for scores of labels that are wider than the storage type: summed, or weighted.
    pub fn with_wide_labels(self, model: RoundingModel, storage: Storage) -> Self {
        Self { product: product_error(model.score_products, true, storage), ..self }
    }

    /// The arithmetic of scores that a model allows for a storage type.
    pub fn new(model: RoundingModel, storage: Storage) -> Self {
        let accumulation = match model.accumulation {
            Accumulation::F32 => U32,
            Accumulation::F64 => U64,
        };
        let kept = model.scores_kept.of(storage);
        Self {
            accumulation,
            sum_range: sum_range(model, model.score_products, storage),
            kept,
            product: product_error(model.score_products, is_wide(model, storage), storage),
            factor_first: model.factor == FactorOrder::Before,
        }
    }

    /// Unit roundoff of the kept type.
    pub fn u(&self) -> f64 {
        self.kept.unit_roundoff()
    }

    /// The absolute error that an underflow of the kept type can add.
    pub fn underflow(&self) -> f64 {
        underflow(self.kept)
    }

    /// One rounding to the kept type.
    #[inline]
    pub fn round(&self, x: Approximate) -> Approximate {
        let rounded = x.widen(self.u() * x.magnitude() + self.underflow());
        let largest = self.kept.largest();
        rounded.open(rounded.value - rounded.radius < -largest, rounded.value + rounded.radius > largest)
    }

    /// A sum of `terms` products, `value` in f64, the sum of their magnitudes, and the error they carry already.
    #[inline]
    pub fn sum_of_products(&self, terms: usize, value: f64, magnitude: f64, carried: f64) -> Approximate {
        // 0 · ∞ would be NaN.
        let operands = if self.product == 0.0 { 0.0 } else { self.product * (magnitude + carried) };
        let carried = carried + operands;
        let exactness = gamma(terms + 1, U64);
        let relative = gamma(terms, self.accumulation) + exactness;
        let (largest, underflow) = self.sum_range;
        let underflow = terms as f64 * underflow;
        let radius = carried + relative * (magnitude + carried) + underflow;
        // In the worst order all products of one sign come first.
        let overflows = magnitude + radius > largest;
        self.round(Approximate::new(value, radius).open(overflows, overflows))
    }

    /// Multiplication or division by a number that is itself known up to rounding to f32.
    #[inline]
    pub fn scale(&self, x: Approximate, factor: f64) -> Approximate {
        self.scale_by(x, factor, 3)
    }

    /// The same with so many roundings to f32.
    #[inline]
    pub fn scale_by(&self, x: Approximate, factor: f64, roundings: usize) -> Approximate {
        let (minus, plus) = (x.may_be_minus_infinity, x.may_be_plus_infinity);
        let (minus, plus) = if factor < 0.0 { (plus, minus) } else { (minus, plus) };
        // 0 times an infinity is NaN.
        if (minus || plus) && factor as f32 == 0.0 {
            return Approximate::UNDETERMINED;
        }
        let scaled = Approximate::new(x.value * factor, x.radius * factor.abs()).open(minus, plus);
        self.round(scaled.widen(gamma(roundings, U32) * scaled.magnitude()))
    }

    /// Addition of A at one key.
    #[inline]
    pub fn add_mask(&self, x: Approximate, mask: f32) -> Approximate {
        if mask == f32::NEG_INFINITY {
            // What overflowed to +∞ is NaN then.
            return if x.may_be_plus_infinity { Approximate::UNDETERMINED } else { Approximate::EXCLUDED };
        }
        if mask == 0.0 {
            return x;
        }
        // A beyond the kept type becomes an infinity when it is cast.
        let stored = f64::from(self.kept.round(mask));
        let mask = f64::from(mask);
        let cast = if stored.is_finite() { (stored - mask).abs() } else { 0.0 };
        let cast_opens = (stored == f64::NEG_INFINITY, stored == f64::INFINITY);
        if opposite(x, cast_opens) {
            return Approximate::UNDETERMINED;
        }
        let sum = Approximate { value: x.value + mask, radius: x.radius + cast, ..x };
        self.round(sum.open(cast_opens.0, cast_opens.1))
    }

    /// Addition of A at one key to a logit that is multiplied by `unit`, as is A: a product of f32 with a rounded constant.
    pub fn add_scaled_mask(&self, x: Approximate, mask: f32, unit: f64) -> Approximate {
        if mask == f32::NEG_INFINITY || mask == 0.0 {
            return self.add_mask(x, mask);
        }
        let mask = Approximate::new(f64::from(mask) * unit, gamma(3, U32) * f64::from(mask.abs()) * unit);
        let mask = self.round(mask);
        let (minus, plus) = (mask.may_be_minus_infinity, mask.may_be_plus_infinity);
        if opposite(x, (minus, plus)) {
            return Approximate::UNDETERMINED;
        }
        let sum = Approximate { value: x.value + mask.value, radius: x.radius + mask.radius, ..x };
        self.round(sum.open(minus, plus))
    }

    /// ‖x‖ of a label of values with radii: at least 0, and +∞ where the sum of squares may overflow.
    pub fn norm(&self, label: impl Iterator<Item = (f64, f64)>) -> Approximate {
        let (mut terms, mut squares, mut carried) = (0, 0.0, 0.0);
        for (x, radius) in label {
            terms += 1;
            squares += x * x;
            carried += 2.0 * x.abs() * radius + radius * radius;
        }
        if !carried.is_finite() {
            return Approximate::UNDETERMINED;
        }
        let sum = self.sum_of_products(terms, squares, squares, carried);
        let (low, high) = ((sum.value - sum.radius).max(0.0).sqrt(), (sum.value + sum.radius).sqrt());
        let root = squares.sqrt();
        let radius = (high - root).max(root - low) + gamma(2, U64) * high;
        let rooted = Approximate::new(root, radius).open(false, sum.may_be_plus_infinity);
        self.round(rooted.widen(gamma(4, U32) * high))
    }

    /// dot / (‖q̂‖ · ‖k̂‖ + ε).
    pub fn cosine(&self, dot: Approximate, q: Approximate, k: Approximate, epsilon: f64) -> Approximate {
        let infinite = |x: Approximate| x.may_be_minus_infinity || x.may_be_plus_infinity;
        let unbounded = |x: Approximate| !x.radius.is_finite();
        if infinite(dot) || [dot, q, k].into_iter().any(unbounded) {
            return Approximate::UNDETERMINED;
        }
        let low = |x: Approximate| (x.value - x.radius).max(0.0);
        let high = |x: Approximate| x.value + x.radius;
        // 0 · ∞ is NaN.
        let vanishes = |x: Approximate| low(x) == 0.0;
        if (q.may_be_plus_infinity && vanishes(k)) || (k.may_be_plus_infinity && vanishes(q)) {
            return Approximate::UNDETERMINED;
        }
        let between = |value: f64, low: f64, high: f64| {
            Approximate::new(
                value,
                (high - value).max(value - low) + gamma(4, U64) * high.abs().max(low.abs()),
            )
        };
        let product = between(q.value * k.value, low(q) * low(k), high(q) * high(k));
        let product = self.round(product.open(false, infinite(q) || infinite(k)));
        let stored = epsilon * self.u() + self.underflow();
        let sum = Approximate { value: product.value + epsilon, radius: product.radius + stored, ..product };
        let divisor = self.round(sum);
        // A rounding of x ≥ 0 leaves x(1 − u) − η at least, and f64 takes less than γ_4 of what is left.
        let rounded_down = |x: f64| (x * (1.0 - self.u()) - self.underflow()).max(0.0);
        let shares = rounded_down(low(q) * low(k)) + rounded_down(epsilon);
        let least = rounded_down(shares * (1.0 - gamma(4, U64)));
        let most = divisor.value + divisor.radius;
        if least <= 0.0 {
            return Approximate::UNDETERMINED;
        }
        let (a, b) = (dot.value - dot.radius, dot.value + dot.radius);
        // Divided by ∞ it is 0.
        let ends = [a / least, a / most, b / least, b / most, 0.0];
        let ends = if divisor.may_be_plus_infinity { &ends[..] } else { &ends[..4] };
        let smallest = ends.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = ends.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let quotient = between(dot.value / divisor.value, smallest, largest);
        self.round(quotient.widen(gamma(4, U32) * quotient.magnitude()))
    }

    /// w · x, which no rule of the SPEC has: one rounding of w and one of the product.
    pub fn head_weighted(&self, x: Approximate, weight: f32) -> Approximate {
        let infinite = x.may_be_minus_infinity || x.may_be_plus_infinity;
        if !x.radius.is_finite() || (infinite && weight == 0.0) {
            return Approximate::UNDETERMINED;
        }
        let product = self.scale(x, f64::from(weight));
        self.round(product)
    }

    /// w · max(x, 0), where x is a dot product multiplied by `factor`.
    pub fn relu(&self, x: Approximate, weight: f32, factor: f64) -> Approximate {
        let positive = |bound: f64| bound.max(0.0);
        let (low, high) = (positive(x.value - x.radius), positive(x.value + x.radius));
        let value = positive(x.value);
        let x = Approximate {
            value,
            radius: (high - value).max(value - low),
            // −∞ becomes 0.
            may_be_minus_infinity: false,
            may_be_plus_infinity: x.may_be_plus_infinity,
        };
        let weight = f64::from(weight);
        let overflows =
            weight.abs().max(weight.abs() * factor) * (1.0 + 4.0 * self.u()) > self.kept.largest();
        if overflows || !x.radius.is_finite() || (x.may_be_plus_infinity && weight == 0.0) {
            return Approximate::UNDETERMINED;
        }
        let size = x.magnitude();
        let cast =
            (self.u() + gamma(3, U32)) * weight.abs() * size + self.underflow() * (size + size / factor);
        let product = Approximate {
            value: x.value * weight,
            radius: x.radius * weight.abs() + cast,
            may_be_minus_infinity: weight < 0.0 && x.may_be_plus_infinity,
            may_be_plus_infinity: weight > 0.0 && x.may_be_plus_infinity,
        };
        self.round(product)
    }

    /// A label multiplied by a channel weight.
    pub fn weighted(&self, label: Approximate, weight: f32) -> Approximate {
        let stored = f64::from(self.kept.round(weight));
        if !stored.is_finite() {
            return label.open(true, true);
        }
        let weight = f64::from(weight);
        let size = weight.abs().max(stored.abs());
        let cast = (stored - weight).abs() * label.value.abs();
        self.round(Approximate::new(label.value * weight, label.radius * size + cast))
    }

    /// The scores of heads that share a selection as one: `together` of them by the head rule, and the sum of these parts.
    pub fn combine(&self, combined: Combined, ranks: Ranks, scores: &[Approximate]) -> Approximate {
        let together = scores.len() / ranks.count();
        if together == scores.len() {
            return self.combine_part(combined, scores);
        }
        let parts = scores.chunks(together).map(|part| self.combine_part(combined, part));
        self.sum_of_parts(ranks.parts(), &parts.collect::<Vec<_>>())
    }

    fn combine_part(&self, combined: Combined, scores: &[Approximate]) -> Approximate {
        match combined {
            Combined::Sum => self.sum_over_heads(scores),
            Combined::Mean => {
                let sum = self.sum_over_heads(scores);
                if sum == Approximate::EXCLUDED || sum == Approximate::UNDETERMINED {
                    return sum;
                }
                self.scale(sum, 1.0 / scores.len() as f64)
            }
            Combined::Max => largest(scores),
        }
    }

    /// The sum of the parts of ranks, each rounded to the type in which they are exchanged.
    pub fn sum_of_parts(&self, exchanged: Storage, parts: &[Approximate]) -> Approximate {
        if exchanged == Storage::F32 {
            return self.sum_over_heads(parts);
        }
        let exchange = Self { kept: exchanged, ..*self };
        let settled = |part: &Approximate| *part == Approximate::EXCLUDED || !part.radius.is_finite();
        let rounded = |part: &Approximate| if settled(part) { *part } else { exchange.round(*part) };
        let parts: Vec<_> = parts.iter().map(rounded).collect();
        // Additions in f32 round by less than those in the type that they are not rounded to.
        self.sum_in(exchanged, parts.len(), &parts)
    }

    /// A sum over heads, in f32 at least.
    pub fn sum_over_heads(&self, parts: &[Approximate]) -> Approximate {
        self.sum_in(Storage::F32, parts.len() + 2, parts)
    }

    /// A sum of scores in some type at least, with so many roundings to it.
    fn sum_in(&self, storage: Storage, roundings: usize, parts: &[Approximate]) -> Approximate {
        if parts.iter().any(|part| part.value == f64::NEG_INFINITY) {
            let nan = parts.iter().any(|part| part.may_be_plus_infinity);
            return if nan { Approximate::UNDETERMINED } else { Approximate::EXCLUDED };
        }
        let value = parts.iter().map(|part| part.value).sum();
        let magnitude: f64 = parts.iter().map(|part| part.magnitude()).sum();
        let carried: f64 = parts.iter().map(|part| part.radius).sum();
        let rounding = gamma(roundings, storage.unit_roundoff()) * magnitude;
        let overflows = magnitude + rounding > storage.largest();
        let minus = overflows || parts.iter().any(|part| part.may_be_minus_infinity);
        let plus = overflows || parts.iter().any(|part| part.may_be_plus_infinity);
        // Infinities of both signs add to NaN, which may rank anywhere.
        self.round(Approximate::new(value, carried + rounding).open(minus, plus))
    }
}

/// The largest of some scores. What may be NaN may rank anywhere, and so may a maximum over it.
fn largest(parts: &[Approximate]) -> Approximate {
    if parts.iter().any(|part| !part.radius.is_finite()) {
        return Approximate::UNDETERMINED;
    }
    let scored = || parts.iter().filter(|part| **part != Approximate::EXCLUDED);
    if scored().next().is_none() {
        return Approximate::EXCLUDED;
    }
    let most = |of: fn(&Approximate) -> f64| scored().map(of).fold(f64::NEG_INFINITY, f64::max);
    let (value, high) = (most(|part| part.value), most(|part| part.value + part.radius));
    let low = most(|part| part.low());
    let bounded = if low == f64::NEG_INFINITY { most(|part| part.value - part.radius) } else { low };
    // The differences are rounded by u of the larger operand each.
    let rounding = gamma(2, U64) * value.abs().max(high.abs()).max(bounded.abs());
    Approximate::new(value, (high - value).max(value - bounded) + rounding)
        .open(low == f64::NEG_INFINITY, scored().any(|part| part.may_be_plus_infinity))
}
