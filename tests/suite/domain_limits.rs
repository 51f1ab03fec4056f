//! What a domain says of a size, held against enumeration: which values each kind of constraint allows, which quantity each
//! name limits, and that sizes are moved inside where they lie outside, and nowhere else.

use std::collections::BTreeSet;

use doublecheck::algorithm::{Dims, HeavySize, Selection, Storage};
use doublecheck::cases::domain::Sizes;
use doublecheck::cases::session_plan::session;
use doublecheck::cases::{Capabilities, Constraint, Domain, Quantity};
use doublecheck::subjects::{Reference, Subject};
use rstest::rstest;
use serde_json::{Value, json};

fn domain(json: &Value) -> Domain {
    Domain::from_json(json).unwrap()
}

/// Numbers of keys are asked with one query, which every domain here allows. Beyond 400 none of the lists has a value.
#[rstest]
#[case::a_list(json!([4, 8, 50]), |n| [4, 8, 50].contains(&n))]
#[case::one_value(json!([37]), |n| n == 37)]
#[case::from(json!({"from": 20}), |n| n >= 20)]
#[case::to(json!({"to": 50}), |n| n <= 50)]
#[case::both_ends(json!({"from": 20, "to": 50}), |n| (20..=50).contains(&n))]
#[case::multiples(json!({"multiple_of": 8}), |n: usize| n.is_multiple_of(8))]
#[case::multiples_between(
    json!({"from": 12, "to": 50, "multiple_of": 8}),
    |n| [16, 24, 32, 40, 48].contains(&n)
)]
#[case::one_multiple(json!({"from": 8, "to": 15, "multiple_of": 8}), |n| n == 8)]
fn each_kind_of_constraint_allows_what_it_says(
    #[case] constraint: Value,
    #[case] allowed: fn(usize) -> bool,
) {
    let domain = domain(&json!({"keys": constraint, "page_size": constraint, "batch": constraint}));
    let capabilities = Capabilities { domains: vec![domain.clone()], ..Capabilities::default() };
    for n in 1..200 {
        assert_eq!(domain.allows_lengths(1, n), allowed(n), "keys {n}");
        assert_eq!(domain.allows_page(n), allowed(n), "a page of {n}");
        assert_eq!(domain.allows_batch(n), allowed(n), "batch {n}");
        assert_eq!(domain.allows_at_least(n), (n..400).any(allowed), "at least {n}");
        assert_eq!(capabilities.allows_fewer_keys(n), (1..n).any(allowed), "fewer than {n}");
    }
    for heavy_size in 1..60 {
        for seed in 0..20 {
            match domain.keys_above(heavy_size, seed) {
                Some(n) => assert!(allowed(n) && n > heavy_size, "{n} keys above {heavy_size}"),
                None => assert!(!allowed(2 * heavy_size), "none above {heavy_size}"),
            }
        }
    }
}

/// One key is left out at least, and up to as many as are selected.
#[test]
fn any_number_of_keys_between_the_heavy_size_and_its_double_is_drawn() {
    let drawn: BTreeSet<_> = (0..600).filter_map(|seed| Domain::default().keys_above(64, seed)).collect();
    assert_eq!(drawn, (65..=128).collect());
}

/// A constraint must allow something up to 2^20, and the smallest call has at most 2^28 numbers in a tensor or mask.
#[test]
fn the_largest_sizes_are_allowed_and_larger_ones_refused() {
    assert!(Constraint::list(&[1 << 20]).is_ok_and(|constraint| constraint.allows(1 << 20)));
    assert!(Constraint::list(&[1, (1 << 20) + 1]).is_ok());
    assert!(Constraint::list(&[(1 << 20) + 1]).is_err());
    assert!(Constraint::range(1 << 20, None, 1).is_ok());
    assert!(Constraint::range((1 << 20) + 1, None, 1).is_err());
    let (most, above) = (json!([1 << 14]), json!([(1 << 14) + 1]));
    for (first, second) in
        [("batch", "heads"), ("heads", "head_dim"), ("batch", "keys"), ("heads", "value_dim")]
    {
        assert!(Domain::from_json(&json!({first: most, second: most})).is_ok(), "{first} and {second}");
        let error = Domain::from_json(&json!({first: most, second: above})).unwrap_err().to_string();
        assert!(error.contains("at most 2^28 numbers"), "{first} and {second}: {error}");
    }
    // A mask, as there are no fewer keys than queries.
    assert!(Domain::from_json(&json!({"queries": most})).is_ok());
    assert!(Domain::from_json(&json!({"queries": above})).is_err());
}

fn selection(heavy_size: HeavySize) -> Selection {
    Selection::new(heavy_size, 3, 4).unwrap()
}

fn dims() -> Dims {
    Dims { batch: 2, heads: 12, kv_heads: 3, queries: 5, keys: 40, head_dim: 24, value_dim: 7 }
}

/// b = 2, h = 12, hk = 3, m = 5, n = 40, d = 24, dv = 7, G = 3, H = 9 and B = 4.
#[rstest]
#[case("batch", 2)]
#[case("heads", 12)]
#[case("kv_heads", 3)]
#[case("group", 4)]
#[case("queries", 5)]
#[case("keys", 40)]
#[case("head_dim", 24)]
#[case("value_dim", 7)]
#[case("group_factor", 3)]
#[case("label_channels", 8)]
#[case("heavy_size", 9)]
#[case("label_bits", 4)]
fn each_name_limits_its_quantity(#[case] name: &str, #[case] value: usize) {
    let selection = selection(HeavySize::count(9).unwrap());
    let outside =
        |allowed: usize| domain(&json!({ name: [allowed] })).sizes_outside(&selection, &dims(), Storage::F32);
    assert_eq!(outside(value), Vec::<String>::new());
    assert_eq!(outside(value + 1), [format!("{name} {value}")]);
}

/// H is constrained as the kernel is given it: a count also where it is above n = 40, a fraction resolved.
#[rstest]
#[case(HeavySize::count(64).unwrap(), 64)]
#[case(HeavySize::fraction(0.25).unwrap(), 10)]
#[case(HeavySize::fraction(0.01).unwrap(), 1)]
fn a_heavy_size_is_constrained_as_it_is_given(#[case] size: HeavySize, #[case] value: usize) {
    let outside = |allowed: usize| {
        domain(&json!({ "heavy_size": [allowed] })).sizes_outside(&selection(size), &dims(), Storage::F32)
    };
    assert_eq!(outside(value), Vec::<String>::new());
    assert_eq!(outside(value + 1), [format!("heavy_size {value}")]);
}

#[test]
fn types_and_tied_value_dimensions_are_constraints_too() {
    let selection = selection(HeavySize::count(9).unwrap());
    let square = Dims { value_dim: 24, ..dims() };
    let tied = domain(&json!({"value_dim": "d"}));
    assert_eq!(tied.sizes_outside(&selection, &dims(), Storage::F32), ["value_dim 7 with head_dim 24"]);
    assert_eq!(tied.sizes_outside(&selection, &square, Storage::F32), Vec::<String>::new());
    let halves = domain(&json!({"dtype": ["f16", "bf16"]}));
    assert_eq!(halves.sizes_outside(&selection, &square, Storage::F32), ["dtype f32"]);
    assert_eq!(halves.sizes_outside(&selection, &square, Storage::Bf16), Vec::<String>::new());
    let drawn: BTreeSet<_> = (0..20)
        .map(|seed| {
            assert_eq!(halves.fit_dtype(Storage::F16, seed), Storage::F16);
            assert_eq!(halves.fit_dtype(Storage::Bf16, seed), Storage::Bf16);
            halves.fit_dtype(Storage::F32, seed).to_string()
        })
        .collect();
    assert_eq!(drawn, ["bf16", "f16"].map(str::to_owned).into());
}

/// Questions to one stage have some of the sizes only.
#[rstest]
#[case::both(&[(Quantity::HeadDim, 64), (Quantity::ValueDim, 64)], Storage::F16, [true, true])]
#[case::untied(&[(Quantity::HeadDim, 64), (Quantity::ValueDim, 5)], Storage::F16, [false, true])]
#[case::no_value_dimension(&[(Quantity::HeadDim, 64)], Storage::F16, [true, true])]
#[case::no_head_dimension(&[(Quantity::ValueDim, 5)], Storage::F16, [true, true])]
#[case::another_head_dimension(
    &[(Quantity::HeadDim, 5), (Quantity::ValueDim, 5)],
    Storage::F16,
    [false, false]
)]
#[case::another_type(&[(Quantity::HeadDim, 64), (Quantity::ValueDim, 64)], Storage::F32, [false, false])]
fn sizes_that_are_given_decide(
    #[case] sizes: &[(Quantity, usize)],
    #[case] storage: Storage,
    #[case] expected: [bool; 2],
) {
    let tied = domain(&json!({"head_dim": [64, 128], "value_dim": "d", "dtype": ["f16"]}));
    let free = domain(&json!({"head_dim": [64, 128], "dtype": ["f16"]}));
    let with_others = [&[(Quantity::Batch, 1), (Quantity::Keys, 9)], sizes].concat();
    for sizes in [sizes, &with_others] {
        assert_eq!([&tied, &free].map(|domain| domain.holds(sizes, storage)), expected, "{sizes:?}");
    }
}

#[rstest]
#[case::of_all(json!({"head_dim": [64, 128], "group_factor": [2, 4, 8], "label_channels": [16, 32, 64]}))]
#[case::of_head_dimensions(json!({"head_dim": [64, 128]}))]
#[case::of_group_factors(json!({"group_factor": [2, 4, 8]}))]
#[case::of_label_channels(json!({"label_channels": [16, 32, 64]}))]
fn channels_are_allowed_where_all_three_quantities_are(#[case] json: Value) {
    let found = domain(&json);
    let listed = |name: &str, value: usize| {
        json.get(name).is_none_or(|list| list.as_array().unwrap().contains(&json!(value)))
    };
    for group_factor in 1..=16 {
        for label_channels in 1..=70 {
            let head_dim = group_factor * label_channels;
            let expected = listed("head_dim", head_dim)
                && listed("group_factor", group_factor)
                && listed("label_channels", label_channels);
            assert_eq!(
                found.allows_channels(head_dim, group_factor),
                expected,
                "d = {head_dim}, G = {group_factor}"
            );
        }
    }
}

/// Sizes of all kinds, in an order without pattern.
fn many_sizes() -> impl Iterator<Item = Sizes> {
    let mut word = 1u64;
    let mut draw = move |choices: &[usize]| {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        choices[(word >> 33) as usize % choices.len()]
    };
    (0..400).map(move |_| Sizes {
        batch: draw(&[1, 2, 3, 4]),
        kv_heads: draw(&[1, 2, 4, 8, 16]),
        group: draw(&[1, 2, 4]),
        queries: draw(&[1, 4, 10, 12]),
        keys: draw(&[1, 2, 4, 5, 10, 12, 50]),
        label_channels: draw(&[1, 2, 16, 32, 56, 64]),
        group_factor: draw(&[1, 2, 4, 8]),
        value_dim: draw(&[1, 7, 64, 128]),
        label_bits: draw(&[4, 8, 16]),
    })
}

#[rstest]
#[case(json!({}), |_: &Sizes| true)]
#[case(json!({"batch": {"from": 2, "to": 3}}), |s: &Sizes| [2, 3].contains(&s.batch))]
#[case(json!({"heads": [8]}), |s: &Sizes| s.kv_heads * s.group == 8)]
#[case(
    json!({"kv_heads": [2, 3], "group": {"multiple_of": 2}}),
    |s: &Sizes| [2, 3].contains(&s.kv_heads) && s.group.is_multiple_of(2)
)]
#[case(json!({"head_dim": [64, 128]}), |s: &Sizes| [64, 128].contains(&(s.label_channels * s.group_factor)))]
#[case(
    json!({"label_channels": [16], "group_factor": [2, 4]}),
    |s: &Sizes| s.label_channels == 16 && [2, 4].contains(&s.group_factor)
)]
#[case(
    json!({"head_dim": [128], "value_dim": "d"}),
    |s: &Sizes| s.label_channels * s.group_factor == 128 && s.value_dim == 128
)]
#[case(json!({"value_dim": [7, 9]}), |s: &Sizes| [7, 9].contains(&s.value_dim))]
#[case(json!({"queries": [10]}), |s: &Sizes| s.queries == 10)]
#[case(json!({"keys": {"from": 4, "to": 6}}), |s: &Sizes| (4..=6).contains(&s.keys))]
#[case(json!({"queries": [10], "keys": [2, 50]}), |s: &Sizes| s.queries == 10 && s.keys == 50)]
#[case(
    json!({"queries": {"multiple_of": 4}, "keys": {"multiple_of": 5}}),
    |s: &Sizes| s.queries.is_multiple_of(4) && s.keys.is_multiple_of(5)
)]
#[case(json!({"label_bits": [4, 8]}), |s: &Sizes| [4, 8].contains(&s.label_bits))]
fn sizes_are_moved_inside_only_where_they_are_outside(
    #[case] json: Value,
    #[case] inside: fn(&Sizes) -> bool,
) {
    let domain = domain(&json);
    let may_be_asked = |sizes: &Sizes| inside(sizes) && sizes.queries <= sizes.keys;
    let (mut stayed, mut moved) = (0, 0);
    for (sizes, seed) in many_sizes().zip(0..) {
        let found = domain.fit(sizes, seed);
        assert!(may_be_asked(&found), "{sizes:?} become {found:?}");
        if may_be_asked(&sizes) {
            assert_eq!(found, sizes);
            stayed += 1;
        } else {
            moved += 1;
        }
    }
    assert!(stayed + moved == 400 && moved > 0, "{stayed} stayed, {moved} moved");
}

type Inside = fn(usize, usize) -> bool;

/// Of two sizes with a product, heads or channels: the smallest products, of equal ones those with the smaller first.
#[rstest]
#[case::a_first_factor(json!({"first": [5], "second": {"from": 1}}), |first, _| first == 5)]
#[case::a_second_factor(json!({"first": {"from": 1}, "second": [5]}), |_, second| second == 5)]
#[case::both(
    json!({"first": {"from": 2, "to": 20}, "second": {"from": 3, "to": 20}}),
    |first, second| first >= 2 && second >= 3
)]
#[case::products(
    json!({"product": {"from": 30}, "first": {"multiple_of": 3}}),
    |first: usize, second| first * second >= 30 && first.is_multiple_of(3)
)]
fn one_of_the_sixteen_smallest_pairs_is_drawn(#[case] constraints: Value, #[case] inside: Inside) {
    let mut smallest: Vec<_> = (1..=64)
        .flat_map(|first| (1..=64).map(move |second| (first, second)))
        .filter(|&(first, second)| inside(first, second))
        .collect();
    smallest.sort_by_key(|&(first, second)| (first * second, first));
    let expected: BTreeSet<_> = smallest.into_iter().take(16).collect();
    let named = |names: [&str; 3]| {
        let fields = ["product", "first", "second"].into_iter().zip(names);
        let fields =
            fields.filter_map(|(field, name)| Some((name.to_owned(), constraints.get(field)?.clone())));
        domain(&Value::Object(fields.collect()))
    };
    let (heads, channels) =
        (named(["heads", "kv_heads", "group"]), named(["head_dim", "label_channels", "group_factor"]));
    // 1 times 1 is outside all of them.
    let outside = Sizes::of_heads(1, 1, 1, 1);
    let drawn = |domain: &Domain, pair: fn(Sizes) -> (usize, usize)| {
        (0..400).map(|seed| pair(domain.fit(outside, seed))).collect::<BTreeSet<_>>()
    };
    assert_eq!(drawn(&heads, |sizes| (sizes.kv_heads, sizes.group)), expected);
    assert_eq!(drawn(&channels, |sizes| (sizes.label_channels, sizes.group_factor)), expected);
}

/// Prompts are as long as the domain wants: every session asks, over that many keys.
#[test]
fn sessions_have_keys_of_the_only_length_that_is_asked() {
    let domains = vec![domain(&json!({"keys": [37]}))];
    let capabilities = Capabilities { domains, ..Reference::serving().capabilities() };
    let sessions: Vec<_> = (0..30).filter_map(|seed| session(&capabilities, seed)).collect();
    assert!(sessions.len() > 20, "{} of 30 seeds have a session", sessions.len());
    for session in sessions {
        let keys: BTreeSet<_> =
            session.calls().unwrap().iter().map(|(_, call)| call.inputs.dims().keys).collect();
        assert_eq!(keys, [37].into(), "{}", session.name);
    }
}

/// The smallest values of a range of products have none of the factors that these domains want.
#[rstest]
#[case(json!({"heads": {"from": 1, "to": 128}, "kv_heads": [8], "group": [8]}), &[(8, 8)], &[])]
#[case(json!({"heads": {"from": 1}, "kv_heads": [40]}), &[(40, 1), (40, 2)], &[])]
#[case(json!({"head_dim": {"to": 256}, "label_channels": [64]}), &[], &[(64, 1), (64, 2), (64, 3), (64, 4)])]
#[case(json!({"head_dim": {"to": 256}, "group_factor": [64]}), &[], &[(1, 64), (2, 64), (3, 64), (4, 64)])]
#[case(
    json!({"head_dim": {"from": 16, "to": 256}, "label_channels": [16], "group_factor": [4]}),
    &[],
    &[(16, 4)]
)]
fn factors_are_found_whose_product_lies_far_in_a_range(
    #[case] constraints: Value,
    #[case] heads: &[(usize, usize)],
    #[case] channels: &[(usize, usize)],
) {
    let domain = domain(&constraints);
    let (kv_heads, group, label_channels, group_factor) = (97, 89, 83, 79);
    let outside = Sizes {
        batch: 1,
        kv_heads,
        group,
        queries: 1,
        keys: 1,
        label_channels,
        group_factor,
        value_dim: 1,
        label_bits: 16,
    };
    let fitted: Vec<Sizes> = (0..200).map(|seed| domain.fit(outside, seed)).collect();
    for pair in heads {
        assert!(fitted.iter().any(|sizes| (sizes.kv_heads, sizes.group) == *pair), "{pair:?}");
    }
    let found: BTreeSet<_> = fitted.iter().map(|sizes| (sizes.label_channels, sizes.group_factor)).collect();
    if !channels.is_empty() {
        assert_eq!(found, channels.iter().copied().collect());
    }
}
