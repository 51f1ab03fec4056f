//! The bounds against exact numbers. Small questions are computed exactly, in every order of few terms, and every operation is then
//! rounded as IEEE 754 has it, and by as much as SPEC §5 allows, in the direction that moves the result furthest. No result may lie
//! outside its radius. How near one comes shows how tight the radius is: `golden/records/bounds.txt` has it of a long run.

mod attention;
mod labels;
mod numbers;
mod rounding;
mod scores;
mod tally;

use std::time::Instant;

use crate::support::is_long;
use tally::Tally;

/// Questions of each rule: scores, outputs with log-sum-exps, and labels.
const SHORT: [u64; 3] = [60, 120, 300];
const LONG: [u64; 3] = [1_500, 3_000, 6_000];
const SEED: u64 = 0xD0B1;

/// One question of each rule.
fn ask(tally: &mut Tally, index: u64) {
    let of = if is_long() { LONG } else { SHORT };
    let seed = SEED + index;
    if index < of[0] {
        scores::RULES.into_iter().for_each(|rule| scores::ask(tally, rule, seed));
    }
    if index < of[1] {
        attention::KINDS.into_iter().for_each(|kind| attention::ask(tally, kind, seed));
    }
    if index < of[2] {
        (0..labels::ORDERS.len()).for_each(|order| labels::ask(tally, order, seed));
    }
}

/// Shares of questions are asked by as many threads as there are processors; what is told does not depend on how many.
fn asked() -> Tally {
    let most = if is_long() { LONG } else { SHORT }.into_iter().max().unwrap();
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let share = |first: u64| {
        let mut tally = Tally::default();
        (first..most).step_by(threads as usize).for_each(|index| ask(&mut tally, index));
        tally
    };
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let shares: Vec<_> = (0..threads).map(|first| scope.spawn(move || share(first))).collect();
        shares.into_iter().for_each(|share| all.merge(share.join().unwrap()));
    });
    all
}

/// Nothing right is outside, something was compared under every rule and type, and every rule has a result that comes near enough to its
/// radius that this is not more than 100 times too wide.
#[test]
fn no_result_lies_outside_its_radius_in_any_order_and_however_it_is_rounded() {
    let start = Instant::now();
    let tally = asked();
    println!("{}seed {SEED:#x}, {} s", tally.table(), start.elapsed().as_secs());
    let outside: Vec<&String> = tally.0.values().flat_map(|line| &line.outside).collect();
    assert!(outside.is_empty(), "{outside:#?}");
    let rules = scores::RULES.iter().map(|rule| rule.1);
    let rules = rules.chain(attention::KINDS.iter().flat_map(|kind| [kind.1, kind.2])).chain(labels::ORDERS);
    for rule in rules {
        let lines = || tally.0.iter().filter(|(place, _)| place.0 == rule).map(|(_, line)| line);
        let (results, nearest) = (
            lines().map(|line| line.results).sum::<u64>(),
            lines().map(|line| line.adversary).fold(0.0, f64::max),
        );
        assert!(results > 500, "{rule}: {results} results");
        assert!(nearest > 0.01, "{rule}: the radius is {:.0} times too wide", 1.0 / nearest);
    }
}
