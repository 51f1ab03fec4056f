//! How an implementation may round. Each operation is computed exactly and then rounded in one of several ways: as IEEE 754 has it,
//! with subnormal numbers flushed to 0, or by as much as SPEC §5 allows one operation to be off, in the direction that moves the
//! result furthest.

use doublecheck::algorithm::Storage;
use doublecheck::cases::recipe::Words;

use super::numbers::{Exact, Format};

/// How operations are rounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Way {
    /// To the nearest number, half way to the even one.
    Nearest,
    /// The same, and what is subnormal in f32 or bf16 becomes 0.
    Flushed,
    /// Off by half a unit, each operation in the direction that makes the result larger.
    Highest,
    /// In the other direction.
    Lowest,
    /// Off by half a unit in a direction that is drawn.
    Drawn,
}

impl Way {
    pub const ALL: [Self; 5] = [Self::Nearest, Self::Flushed, Self::Highest, Self::Lowest, Self::Drawn];

    /// Whether each number is one of its type.
    pub fn is_real(self) -> bool {
        matches!(self, Self::Nearest | Self::Flushed)
    }
}

/// Rounds the operations of one result.
pub struct Rounder {
    pub way: Way,
    words: Words,
    drawn: u64,
    /// Whether something left its type.
    pub overflowed: bool,
}

impl Rounder {
    pub fn new(way: Way, seed: u64) -> Self {
        Self { way, words: Words::new(seed, 77), drawn: 0, overflowed: false }
    }

    /// One of so many equally right ways to compute something.
    pub fn choose(&mut self, ways: u64) -> u64 {
        self.drawn += 1;
        // The low bits of a word depend on all of it.
        self.words.word(self.drawn) % ways
    }

    /// Whether an error is added (or taken away) where `raises` says that more makes the result larger; `None` where it is not up to
    /// an adversary.
    fn adds(&mut self, raises: bool) -> Option<bool> {
        match self.way {
            Way::Nearest | Way::Flushed => None,
            Way::Highest => Some(raises),
            Way::Lowest => Some(!raises),
            Way::Drawn => Some(self.choose(2) == 0),
        }
    }

    /// One operation: `exact` rounded to a type.
    pub fn round(&mut self, exact: Exact, to: Format, raises: bool) -> Exact {
        if exact.is_zero() {
            return exact;
        }
        let normal = exact.first_bit() >= to.normal();
        let rounded = match self.adds(raises) {
            None => {
                let rounded = exact.nearest(to);
                let subnormal = !rounded.is_zero() && rounded.first_bit() < to.normal();
                // No processor flushes subnormal f16 numbers.
                let flushed = self.way == Way::Flushed && to != Format::of(Storage::F16);
                if subnormal && flushed { Exact::zero() } else { rounded }
            }
            Some(adds) => {
                let error =
                    if normal { exact.abs().times(&to.unit_roundoff()) } else { Exact::power(to.lowest - 1) };
                let moved = if adds { exact.plus(&error) } else { exact.minus(&error) };
                // A subnormal number may be flushed as well, which moves it further.
                let towards_zero = adds == exact.is_negative();
                let flushed = !normal && towards_zero && to != Format::of(Storage::F16);
                // No rounding changes a sign.
                let crosses = moved.is_negative() != exact.is_negative();
                if flushed || crosses { Exact::zero() } else { moved }
            }
        };
        self.overflowed |= rounded.abs().compare(&Exact::of(to.largest)).is_gt();
        rounded
    }

    /// A number that a library gives with a relative error: the nearest of f32, or off by as much.
    pub fn off(&mut self, exact: Exact, share: f64, raises: bool) -> Exact {
        match self.adds(raises) {
            None => self.round(exact, Format::F32, raises),
            Some(adds) => {
                let error = exact.abs().times(&Exact::of(share));
                if adds { exact.plus(&error) } else { exact.minus(&error) }
            }
        }
    }

    /// One end of an interval, or on the grid of a type what `real` is.
    pub fn end(&mut self, low: f64, high: f64, real: f64, raises: bool) -> Exact {
        Exact::of(match self.adds(raises) {
            None => real,
            Some(true) => high,
            Some(false) => low,
        })
    }

    /// An operand cut or rounded to the 11 significant bits of tf32.
    fn tf32(&mut self, x: &Exact, raises: bool) -> Exact {
        let format = Format { digits: 11, ..Format::F32 };
        match self.adds(raises) {
            None if self.choose(2) == 0 => x.truncated(format),
            None => x.nearest(format),
            Some(adds) => {
                let error = x.abs().times(&Exact::power(-10));
                if adds { x.plus(&error) } else { x.minus(&error) }
            }
        }
    }
}

/// What is multiplied and added in a sum of products.
#[derive(Debug, Clone, Copy)]
pub struct Sums {
    /// Operands are cut to tf32.
    pub tf32: bool,
    /// Products are rounded to this type.
    pub products: Option<Format>,
    /// Partial sums are rounded to this type.
    pub accumulated: Format,
}

/// In which order terms are added.
#[derive(Debug, Clone)]
pub struct Order {
    terms: Vec<usize>,
    /// Halves are summed apart.
    halved: bool,
    /// A product is rounded with the sum.
    fused: bool,
}

impl Order {
    /// All orders of up to three terms, and of more so many that are drawn.
    pub fn some(terms: usize, words: Words, at: u64) -> Vec<Self> {
        let shapes = [(false, false), (false, true), (true, false)];
        let of = |order: Vec<usize>, shape: usize| {
            let (halved, fused) = shapes[shape % 3];
            Self { terms: order, halved, fused }
        };
        if terms <= 3 {
            let all = permutations(terms);
            let first = at as usize;
            return all.into_iter().enumerate().map(|(index, order)| of(order, first + index)).collect();
        }
        let drawn = |index: u64| {
            let mut order: Vec<usize> = (0..terms).collect();
            for place in (1..terms).rev() {
                order.swap(place, words.word(at + 16 * index + place as u64) as usize % (place + 1));
            }
            of(order, (at + index) as usize)
        };
        (0..4).map(drawn).collect()
    }

    fn sum(&self, terms: &[Exact], range: &[usize], add: &mut impl FnMut(Exact) -> Exact) -> Exact {
        if range.len() == 1 {
            return terms[range[0]].clone();
        }
        if self.halved {
            let (first, second) = range.split_at(range.len() / 2);
            let (first, second) = (self.sum(terms, first, add), self.sum(terms, second, add));
            return add(first.plus(&second));
        }
        let mut sum = terms[range[0]].clone();
        for &term in &range[1..] {
            sum = add(sum.plus(&terms[term]));
        }
        sum
    }

    /// Σ terms, each partial sum rounded.
    pub fn add(&self, r: &mut Rounder, terms: &[Exact], to: Format, raises: bool) -> Exact {
        self.sum(terms, &self.terms, &mut |sum| r.round(sum, to, raises))
    }

    /// Σ x·y.
    pub fn dot(&self, r: &mut Rounder, x: &[Exact], y: &[Exact], sums: Sums, raises: bool) -> Exact {
        let fused = self.fused && sums.products.is_none();
        let product = |(x, y): (&Exact, &Exact)| {
            let (x, y) = if sums.tf32 {
                (r.tf32(x, raises != y.is_negative()), r.tf32(y, raises != x.is_negative()))
            } else {
                (x.clone(), y.clone())
            };
            let product = x.times(&y);
            match sums.products {
                Some(format) => r.round(product, format, raises),
                None if fused => product,
                None => r.round(product, sums.accumulated, raises),
            }
        };
        let mut products: Vec<Exact> = x.iter().zip(y).map(product).collect();
        if fused {
            // The first of them is added to 0.
            let first = &mut products[self.terms[0]];
            *first = r.round(first.clone(), sums.accumulated, raises);
        }
        self.add(r, &products, sums.accumulated, raises)
    }
}

fn permutations(terms: usize) -> Vec<Vec<usize>> {
    if terms == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(terms - 1);
    let insert = |order: &Vec<usize>, place: usize| {
        let mut order = order.clone();
        order.insert(place, terms - 1);
        order
    };
    (0..terms)
        .flat_map(|place| shorter.iter().map(move |order| insert(order, place)).collect::<Vec<_>>())
        .collect()
}
