//! Labels (SPEC §2.5), quantised by the operations of each order and rounded in every way, against what is allowed where labels may be
//! rounded in any order.

use doublecheck::algorithm::{LabelBits, Storage};
use doublecheck::cases::recipe::Words;
use doublecheck::verdicts::bounds::Approximate;
use doublecheck::verdicts::labels::rounded_rows;
use ndarray::Array2;

use super::numbers::{Exact, Format};
use super::rounding::{Rounder, Way};
use super::scores::numbers;
use super::tally::Tally;

pub const ORDERS: [&str; 3] = ["label: reciprocal, product", "label: quotient", "label: step"];

/// The nearest whole number, half way to the even one.
fn whole(x: &Exact) -> Exact {
    x.nearest(Format { digits: x.first_bit().max(0) + 1, lowest: 0, largest: f64::MAX })
}

/// The label of one number of a row. `None` where the row has no scale.
fn label(
    r: &mut Rounder,
    order: usize,
    row: &[f32],
    x: f32,
    (codes, most): (f64, f64),
    to: Format,
) -> Option<Exact> {
    let of = |x: f32| Exact::of(f64::from(x));
    let (lo, hi) = row.iter().fold((f32::MAX, f32::MIN), |(lo, hi), &x| (lo.min(x), hi.max(x)));
    let range = r.round(of(hi).minus(&of(lo)), to, false);
    let range = if range.is_zero() { Exact::whole(1) } else { range };
    let codes = Exact::of(codes);
    let scale = match order {
        0 => {
            let reciprocal = r.round(Exact::whole(1).over(&range), to, true);
            if reciprocal.is_zero() {
                return None;
            }
            r.round(reciprocal.times(&codes), to, true)
        }
        1 => r.round(codes.over(&range), to, true),
        _ => r.round(range.over(&codes), to, false),
    };
    // Where range or scale is no normal number of the type nothing is promised (SPEC §2.5), and where it overflows the row is refused (D9).
    if r.overflowed || [&range, &scale].into_iter().any(|x| x.is_zero() || x.first_bit() < to.normal()) {
        return None;
    }
    let moved = r.round(of(x).minus(&of(lo)), to, true);
    let steps = if order == 2 { moved.over(&scale) } else { moved.times(&scale) };
    let steps = r.round(steps, to, true);
    let code = if steps.is_zero() { steps } else { whole(&steps) };
    let most = Exact::of(most);
    let code = if code.is_negative() {
        Exact::zero()
    } else if code.compare(&most).is_gt() {
        most
    } else {
        code
    };
    if code.is_zero() {
        return Some(of(lo));
    }
    let product = if order == 2 { code.times(&scale) } else { code.over(&scale) };
    let product = r.round(product, to, true);
    Some(r.round(product.plus(&of(lo)), to, true))
}

/// All labels of one row in every way.
pub fn ask(tally: &mut Tally, order: usize, seed: u64) {
    let words = Words::new(seed, 3);
    let storage = Storage::ALL[words.word(0) as usize % 3];
    let bits = LabelBits::new(1 + words.word(1) % 15).unwrap();
    let count = 2 + words.word(2) as usize % 5;
    let row = numbers(words, 100, count, storage);
    let allowed =
        rounded_rows(Array2::from_shape_vec((1, count), row.clone()).unwrap().view(), bits, storage);
    let codes = f64::from(bits.largest_code());
    let most = f64::from(storage.round(bits.largest_code()));
    let place = (ORDERS[order], storage.to_string());
    for (channel, &x) in row.iter().enumerate() {
        let (value, radius) = allowed.at(channel, 0);
        let allowed = Approximate::new(value, radius);
        tally.radius(&place);
        for (index, way) in Way::ALL.into_iter().enumerate() {
            let mut r = Rounder::new(way, words.word(1000 + (10 * channel + index) as u64));
            if let Some(found) = label(&mut r, order, &row, x, (codes, most), Format::of(storage)) {
                tally.compare(&place, allowed, &found, &r, &|| {
                    format!("seed {seed}, {x:e} of {row:?}, {bits:?}")
                });
            }
        }
    }
}
