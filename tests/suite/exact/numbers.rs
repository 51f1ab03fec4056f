//! Numbers without rounding. Everything that a floating-point type holds is a whole number times a power of two, and so are sums
//! and products of such numbers. Quotients, roots, exponentials and logarithms are not: they are known here to more than
//! [`DIGITS`] − 40 significant bits, where no type has more than 53 and no radius is derived to more.

use std::cmp::Ordering;

use doublecheck::algorithm::Storage;
use num_bigint::{BigInt, BigUint, Sign};

/// Significant bits of what has no end.
const DIGITS: u64 = 240;

/// A whole number times a power of two.
#[derive(Debug, Clone)]
pub struct Exact {
    whole: BigInt,
    power: i64,
}

/// A binary floating-point type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Format {
    /// Significant bits.
    pub digits: i64,
    /// The smallest number above 0 is 2 to this power.
    pub lowest: i64,
    /// Its largest number.
    pub largest: f64,
}

impl Format {
    pub const F32: Self = Self { digits: 24, lowest: -149, largest: f32::MAX as f64 };
    pub const F64: Self = Self { digits: 53, lowest: -1074, largest: f64::MAX };

    pub fn of(storage: Storage) -> Self {
        match storage {
            Storage::F32 => Self::F32,
            Storage::F16 => Self { digits: 11, lowest: -24, largest: 65504.0 },
            Storage::Bf16 => Self { digits: 8, lowest: -133, largest: 255.0 * 2f64.powi(120) },
        }
    }

    /// The power of two of the smallest normal number.
    pub fn normal(self) -> i64 {
        self.lowest + self.digits - 1
    }

    pub fn unit_roundoff(self) -> Exact {
        Exact::power(-self.digits)
    }
}

impl Exact {
    pub fn zero() -> Self {
        Self { whole: BigInt::ZERO, power: 0 }
    }

    pub fn power(power: i64) -> Self {
        Self { whole: BigInt::from(1), power }
    }

    pub fn whole(number: i64) -> Self {
        Self { whole: BigInt::from(number), power: 0 }
    }

    /// Of a finite number.
    pub fn of(x: f64) -> Self {
        assert!(x.is_finite(), "{x}");
        let bits = x.to_bits();
        let (biased, fraction) = ((bits >> 52 & 0x7FF) as i64, (bits & ((1 << 52) - 1)) as i64);
        let (fraction, power) =
            if biased == 0 { (fraction, -1074) } else { (fraction | 1 << 52, biased - 1075) };
        let whole = BigInt::from(if x < 0.0 { -fraction } else { fraction });
        Self { whole, power }.short()
    }

    /// Without zeros at the end.
    fn short(self) -> Self {
        match self.whole.trailing_zeros() {
            None => Self::zero(),
            Some(zeros) => Self { whole: self.whole >> zeros, power: self.power + zeros as i64 },
        }
    }

    pub fn is_zero(&self) -> bool {
        self.whole.sign() == Sign::NoSign
    }

    pub fn is_negative(&self) -> bool {
        self.whole.sign() == Sign::Minus
    }

    pub fn is_positive(&self) -> bool {
        self.whole.sign() == Sign::Plus
    }

    pub fn negated(&self) -> Self {
        Self { whole: -&self.whole, power: self.power }
    }

    pub fn abs(&self) -> Self {
        if self.is_negative() { self.negated() } else { self.clone() }
    }

    /// Both as whole numbers times the same power of two.
    fn aligned(&self, other: &Self) -> (BigInt, BigInt, i64) {
        let power = self.power.min(other.power);
        (&self.whole << (self.power - power), &other.whole << (other.power - power), power)
    }

    pub fn plus(&self, other: &Self) -> Self {
        if self.is_zero() {
            return other.clone();
        }
        if other.is_zero() {
            return self.clone();
        }
        let (a, b, power) = self.aligned(other);
        Self { whole: a + b, power }
    }

    pub fn minus(&self, other: &Self) -> Self {
        self.plus(&other.negated())
    }

    pub fn times(&self, other: &Self) -> Self {
        Self { whole: &self.whole * &other.whole, power: self.power + other.power }
    }

    pub fn compare(&self, other: &Self) -> Ordering {
        match (self.whole.sign(), other.whole.sign()) {
            (a, b) if a != b => a.cmp(&b),
            _ => {
                let (a, b, _) = self.aligned(other);
                a.cmp(&b)
            }
        }
    }

    pub fn larger(self, other: Self) -> Self {
        if self.compare(&other) == Ordering::Less { other } else { self }
    }

    /// The power of two of the first significant bit.
    pub fn first_bit(&self) -> i64 {
        self.whole.bits() as i64 - 1 + self.power
    }

    /// The first [`DIGITS`] significant bits.
    fn trimmed(self) -> Self {
        let extra = self.whole.bits().saturating_sub(DIGITS);
        Self { whole: self.whole >> extra, power: self.power + extra as i64 }
    }

    /// A quotient. Its last bit is set where there is a rest, so that it is no tie that the true one is not.
    pub fn over(&self, other: &Self) -> Self {
        assert!(!other.is_zero());
        let (sign, a, b) =
            (self.whole.sign() * other.whole.sign(), self.whole.magnitude(), other.whole.magnitude());
        let shift = (DIGITS + b.bits()).saturating_sub(a.bits());
        let a = a << shift;
        let (quotient, rest) = (&a / b, &a % b);
        let whole = with_rest(quotient, rest != BigUint::ZERO);
        Self { whole: BigInt::from_biguint(sign, whole), power: self.power - other.power - 1 - shift as i64 }
    }

    /// A root of what is not negative, with a last bit as of [`Exact::over`].
    pub fn root(&self) -> Self {
        assert!(!self.is_negative());
        let shift = 2 * DIGITS + (self.power.rem_euclid(2)) as u64;
        let square = self.whole.magnitude() << shift;
        let root = square.sqrt();
        let rest = &root * &root != square;
        let whole = with_rest(root, rest);
        Self {
            whole: BigInt::from_biguint(self.whole.sign(), whole),
            power: (self.power - shift as i64) / 2 - 1,
        }
    }

    /// e to this power: the series of a 2^k-th of it, squared k times. Below −1000, where it is far below the smallest number of every
    /// type, that of −1000.
    pub fn exp(&self) -> Self {
        let least = Self::whole(-1000);
        if self.compare(&least).is_lt() {
            return least.exp();
        }
        if self.is_zero() {
            return Self::whole(1);
        }
        let halvings = (self.first_bit() + 9).max(0);
        let small = Self { power: self.power - halvings, ..self.clone() }.trimmed();
        // The first term that is left out is below 2^(-8 · 30) / 30!.
        let one = Self::whole(1);
        let mut sum = one.clone();
        for n in (1..30).rev() {
            sum = one.plus(&small.times(&sum).over(&Self::whole(n))).trimmed();
        }
        for _ in 0..halvings {
            sum = sum.times(&sum).trimmed();
        }
        sum
    }

    /// The natural logarithm of what is above 0. From y near it, y + 2(x − e^y)/(x + e^y) is off by less than the cube of what y is off by.
    pub fn ln(&self) -> Self {
        assert!(self.is_positive());
        let power = self.first_bit();
        let significant = Self { power: self.power - power, ..self.clone() };
        let mut near = Self::of(significant.to_f64().ln() + power as f64 * std::f64::consts::LN_2);
        for _ in 0..2 {
            let e = near.exp();
            let correction = Self::whole(2).times(&self.minus(&e)).over(&self.plus(&e));
            near = near.plus(&correction).trimmed();
        }
        near
    }

    /// The nearest number of a type; half way the even one. It may lie beyond the largest.
    pub fn nearest(&self, format: Format) -> Self {
        self.cut(format, |rest, half, odd| match rest.cmp(half) {
            Ordering::Less => false,
            Ordering::Equal => odd,
            Ordering::Greater => true,
        })
    }

    /// The next number of a type towards 0.
    pub fn truncated(&self, format: Format) -> Self {
        self.cut(format, |_, _, _| false)
    }

    fn cut(&self, format: Format, up: impl Fn(&BigUint, &BigUint, bool) -> bool) -> Self {
        if self.is_zero() {
            return Self::zero();
        }
        let power = (self.first_bit() - (format.digits - 1)).max(format.lowest);
        if self.power >= power {
            return self.clone();
        }
        let shift = (power - self.power) as u64;
        let size = self.whole.magnitude();
        let mut kept = size >> shift;
        let rest = size - (&kept << shift);
        if up(&rest, &(BigUint::from(1u32) << (shift - 1)), kept.bit(0)) {
            kept += 1u32;
        }
        Self { whole: BigInt::from_biguint(self.whole.sign(), kept), power }.short()
    }

    /// The nearest f64; for reports, and where the number is known to be one.
    pub fn to_f64(&self) -> f64 {
        if self.is_zero() {
            return 0.0;
        }
        let short = self.nearest(Format::F64).short();
        let whole = short.whole.iter_u64_digits().next().unwrap_or(0) as f64;
        let whole = if short.is_negative() { -whole } else { whole };
        // In two steps: 2^-1074 is no normal number.
        let half = short.power / 2;
        whole * 2f64.powi(half as i32) * 2f64.powi((short.power - half) as i32)
    }
}

fn with_rest(number: BigUint, rest: bool) -> BigUint {
    (number << 1u32) + u32::from(rest)
}

#[test]
fn these_numbers_are_those_of_the_processor_where_it_rounds_once() {
    let words = doublecheck::cases::recipe::Words::new(11, 0);
    let same = |exact: Exact, found: f64, what: &str| {
        assert_eq!(exact.nearest(Format::F64).to_f64(), found, "{what}");
    };
    for i in 0..2000 {
        let number = |at: u64| {
            f64::from(words.value(3 * i + at)) * 2f64.powi((words.word(3 * i + at) % 60) as i32 - 30)
        };
        let (x, y) = (number(0), number(1));
        same(Exact::of(x).plus(&Exact::of(y)), x + y, "sum");
        same(Exact::of(x).minus(&Exact::of(y)), x - y, "difference");
        same(Exact::of(x).times(&Exact::of(y)), x * y, "product");
        if y != 0.0 {
            same(Exact::of(x).over(&Exact::of(y)), x / y, "quotient");
        }
        same(Exact::of(x.abs()).root(), x.abs().sqrt(), "root");
        for storage in Storage::ALL {
            let x = x as f32;
            let rounded = Exact::of(f64::from(x)).nearest(Format::of(storage)).to_f64();
            if rounded.abs() <= storage.largest() {
                assert_eq!(rounded, f64::from(storage.round(x)), "{x} in {storage}");
            }
        }
    }
    // Subnormal numbers, and ties to even.
    for storage in Storage::ALL {
        for step in 0..64 {
            let x = (storage.smallest_subnormal() * 0.25 * f64::from(step)) as f32;
            let rounded = Exact::of(f64::from(x)).nearest(Format::of(storage)).to_f64();
            assert_eq!(rounded, f64::from(storage.round(x)), "{x:e} in {storage}");
        }
    }
}

/// e and ln 2 to 60 digits, and both functions as each other's inverse.
#[test]
fn exponentials_and_logarithms_are_known_to_sixty_digits() {
    let decimal = |digits: &str| {
        let whole = BigInt::parse_bytes(digits.as_bytes(), 10).unwrap();
        Exact { whole, power: 0 }
            .over(&Exact { whole: BigInt::from(10).pow(digits.len() as u32 - 1), power: 0 })
    };
    let close = |found: &Exact, expected: &Exact| {
        let error = found.minus(expected).abs();
        assert!(error.is_zero() || error.first_bit() < found.first_bit() - 195, "{}", found.to_f64());
    };
    close(&Exact::whole(1).exp(), &decimal("2718281828459045235360287471352662497757247093699959574966967"));
    close(&Exact::whole(2).ln(), &decimal("0693147180559945309417232121458176568075500134360255254120680"));
    for x in [-700.0, -87.3, -3.25, -1e-9, 0.1, 1.0, 40.5] {
        close(&Exact::of(x).exp().ln(), &Exact::of(x));
    }
}
